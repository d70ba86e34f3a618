"""The table of sockets, exhaustively against libzmq itself, and the envelopes."""

from __future__ import annotations

import itertools

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from flowkit.protocol.sockets import (
    ENVELOPE,
    OTHERS,
    SOCKETS,
    TRANSPORTS,
    Subscriptions,
    addressed,
    fit,
    from_header,
    opened,
    sealed,
    to_header,
)

NAMES = sorted(SOCKETS)


@pytest.mark.parametrize("one", NAMES)
def test_what_fits_fits_the_other_way_round(one: str) -> None:
    for other in NAMES:
        assert fit(one, other) == fit(other, one)


def test_the_pairs_are_those_of_the_rfcs() -> None:
    pairs = {frozenset((a, b)) for a, b in itertools.product(NAMES, NAMES) if fit(a, b)}
    assert {"-".join(sorted(pair)) for pair in pairs} == {
        "REP-REQ", "REQ-ROUTER", "DEALER-REP", "DEALER-ROUTER", "DEALER", "ROUTER", "PULL-PUSH",
        "PAIR", "PUB-SUB", "PUB-XSUB", "SUB-XPUB", "XPUB-XSUB",
    }  # fmt: skip


@pytest.mark.parametrize("one", NAMES)
def test_libzmq_agrees(one: str) -> None:
    """The greeting of ZMTP names the type, and the other end refuses what does not fit. All other
    types are tried with one, at a time."""
    with zmq.Context() as context, context.socket(getattr(zmq, one)) as bound:
        bound.linger = 0
        port = bound.bind_to_random_port("tcp://127.0.0.1")
        watch = {}
        for other in NAMES:
            peer = context.socket(getattr(zmq, other))
            peer.linger = 0
            events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            events |= zmq.EVENT_DISCONNECTED
            monitor = peer.get_monitor_socket(events)
            peer.connect(f"tcp://127.0.0.1:{port}")
            watch[other] = (peer, monitor)
        try:
            for other, (_, monitor) in watch.items():
                assert monitor.poll(5000), f"{one} and {other} said nothing"
                event = recv_monitor_message(monitor)["event"]
                assert (event == zmq.EVENT_HANDSHAKE_SUCCEEDED) == fit(one, other), (one, other)
        finally:
            for peer, monitor in watch.values():
                peer.disable_monitor()
                monitor.close(0)
                peer.close(0)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_opened_as_something_its_peers_accept(name: str) -> None:
    assert SOCKETS[name].peers <= SOCKETS[SOCKETS[name].opened_as].peers


def test_every_socket_of_zeromq_is_known() -> None:
    assert {kind.name for kind in zmq.SocketType} <= {*SOCKETS, *OTHERS}
    assert all(kinds <= set(SOCKETS) for kinds in TRANSPORTS.values())


# ---------------------------------------------------------------------------- envelopes

ID, HOP = b"\x00\x01\x02\x03\x04", b"\x00abcd"


@pytest.mark.parametrize(
    ("kind", "frames", "expected"),
    [
        ("REQ", [b"", b"a"], ([], [b"a"])),
        ("REQ", [b"", b"a", b"b"], ([], [b"a", b"b"])),
        ("REQ", [b"", b""], ([], [b""])),
        ("REQ", [b"a"], None),
        ("REQ", [b""], None),
        ("REP", [ID, b"", b"a"], ([ID, b""], [b"a"])),
        ("REP", [ID, HOP, b"", b"a", b""], ([ID, HOP, b""], [b"a", b""])),
        ("REP", [ID, b"", b""], ([ID, b""], [b""])),
        ("REP", [ID, b"a"], None),
        ("REP", [ID, b""], None),
        ("REP", [ID], None),
        ("ROUTER", [ID, b"a"], ([ID], [b"a"])),
        ("ROUTER", [ID, b"", b"a"], ([ID, b""], [b"a"])),
        ("ROUTER", [ID, HOP, b"", b"a"], ([ID, HOP, b""], [b"a"])),
        ("ROUTER", [ID, b""], ([ID], [b""])),
        ("ROUTER", [ID, b"a", b"b"], ([ID], [b"a", b"b"])),
        ("ROUTER", [ID], None),
        ("DEALER", [b"a"], ([], [b"a"])),
        ("DEALER", [b"", b"a"], ([b""], [b"a"])),
        ("DEALER", [HOP, b"", b"a"], ([HOP, b""], [b"a"])),
        ("DEALER", [b""], ([], [b""])),
        ("PULL", [b"", b"a"], ([], [b"", b"a"])),
        ("SUB", [b"t", b"a"], ([], [b"t", b"a"])),
        ("PAIR", [b"", b"a"], ([], [b"", b"a"])),
    ],
)
def test_opened(
    kind: str, frames: list[bytes], expected: tuple[list[bytes], list[bytes]] | None
) -> None:
    assert opened(kind, frames) == expected


@pytest.mark.parametrize("kind", ["REP", "ROUTER", "DEALER"])
@pytest.mark.parametrize("hops", [[ID], [ID, b""], [ID, HOP, b""]])
def test_an_answer_goes_back_the_way_its_request_came(kind: str, hops: list[bytes]) -> None:
    found = opened(kind, [*hops, b"ask"])
    if kind == "REP" and b"" not in hops:
        assert found is None
        return
    assert found is not None
    envelope, body = found
    answer = sealed(kind, envelope, [b"answer"])
    assert answer == [*envelope, b"answer"]
    if kind != "DEALER" or b"" in hops:
        assert (envelope, body) == (hops, [b"ask"])


def test_what_answers_nobody() -> None:
    assert sealed("ROUTER", None, [b"a"]) is None
    assert sealed("REP", None, [b"a"]) is None
    assert sealed("ROUTER", [], [b"a"]) is None
    assert sealed("ROUTER", addressed("me", None), [b"a"]) == [b"me", b"a"]
    assert sealed("ROUTER", addressed("me", "REQ"), [b"a"]) == [b"me", b"", b"a"]
    assert sealed("DEALER", None, [b"a"]) == [b"a"]
    assert sealed("DEALER", None, [b"a"], "REP") == [b"", b"a"]
    assert sealed("REQ", None, [b"a", b"b"]) == [b"", b"a", b"b"]
    for kind in ("PUSH", "PUB", "XPUB", "XSUB", "PAIR"):
        assert sealed(kind, None, [b"a", b""]) == [b"a", b""]


@pytest.mark.parametrize("frames", [[ID], [ID, b""], [ID, HOP, b""], [b"\xff" * 255, b""]])
def test_an_envelope_survives_being_a_header(frames: list[bytes]) -> None:
    assert from_header(to_header(frames)) == frames
    assert {ENVELOPE: to_header(frames)}[ENVELOPE].isascii()


@pytest.mark.parametrize("text", ["", "zz/", "00", "0/", "x"])
def test_a_header_that_is_no_envelope(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_header(text)


def test_subscriptions() -> None:
    known = Subscriptions()
    assert not known.wants(b"a") and not known.wants(b"")
    known.heard(b"\1ab")
    assert known.wants(b"abc") and not known.wants(b"a") and not known.wants(b"")
    known.heard(b"\1")
    assert known.wants(b"") and known.wants(b"z")
    known.heard(b"\0")
    assert not known.wants(b"z") and known.wants(b"ab")
    known.heard(b"\0ab")
    known.heard(b"\0never")
    known.heard(b"")
    known.heard(b"odd")
    assert not known.wants(b"ab")
