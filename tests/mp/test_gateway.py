"""A queue at an address: for plain ZeroMQ sockets, and for `connect`."""

from __future__ import annotations

import queue as standard
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import zmq

from flowkit import mp
from flowkit.errors import TransportError

Make = Callable[..., Any]
Ask = Callable[..., list[bytes]]
LOCAL = "tcp://127.0.0.1:*"


@pytest.fixture
def plain() -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """`plain(kind, address)`: a plain socket, with a patience of ten seconds."""
    context = zmq.Context()

    def connect(kind: int, address: str) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.rcvtimeo, socket.linger = 10_000, 0
        socket.connect(address)
        opened.append(socket)
        return socket

    opened: list[zmq.Socket[bytes]] = []
    yield connect
    for socket in opened:
        socket.close()
    context.term()


def asked(socket: zmq.Socket[bytes], *frames: bytes) -> list[bytes]:
    socket.send_multipart(frames)
    return socket.recv_multipart()


def test_a_plain_socket_puts_and_gets(make: Make, plain: Any) -> None:
    queue = make(mp.Queue, 2, codec="msgpack", address=LOCAL)
    peer = plain(zmq.REQ, queue.address)
    pack = msgspec.msgpack.encode
    assert asked(peer, b"PUT", pack({"n": 1})) == [b"OK"]
    assert queue.get(timeout=5) == {"n": 1}
    queue.put([2])
    assert asked(peer, b"GET") == [b"ITEM", pack([2])]
    assert asked(peer, b"GET", b"10") == [b"EMPTY"]
    assert asked(peer, b"PUT", pack(3)) == asked(peer, b"PUT", pack(4)) == [b"OK"]
    assert asked(peer, b"SIZE") == [b"OK", b"2", b"2"]
    assert asked(peer, b"PUT", pack(5), b"10") == [b"FULL"]
    for wrong in ([b"FETCH"], [b"PUT", b"\xc1"], [b"GET", b"soon"], [b"DONE"], [b""]):
        answer = asked(peer, *wrong)
        assert answer[0] == b"ERROR" and answer[1]


def test_a_plain_dealer_may_ask_for_many_at_once(make: Make, plain: Any) -> None:
    queue = make(mp.Queue, codec="raw", address=LOCAL)
    peer = plain(zmq.DEALER, queue.address)
    for _ in range(3):
        peer.send_multipart([b"GET"])
    peer.send_multipart([b"", b"SIZE"])
    assert peer.recv_multipart() == [b"", b"OK", b"0", b"0"]
    for item in (b"a", b"b", b"c"):
        queue.put(item)
    assert [peer.recv_multipart() for _ in range(3)] == [
        [b"ITEM", item] for item in (b"a", b"b", b"c")
    ]


def test_whoever_waits_for_room_gets_it(make: Make, plain: Any) -> None:
    queue = make(mp.Queue, 1, codec="raw", address=LOCAL)
    queue.put(b"a")
    peer = plain(zmq.DEALER, queue.address)
    peer.send_multipart([b"PUT", b"b"])
    assert asked(peer, b"SIZE") == [b"OK", b"1", b"1"]
    assert queue.get() == b"a"
    assert peer.recv_multipart() == [b"OK"]
    assert queue.get(timeout=5) == b"b"


def test_an_item_for_a_peer_that_has_left_is_put_back(
    make: Make, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the gateway's socket learns that a peer has left is its own business; so it is said."""
    queue = make(mp.Queue, codec="raw", address=LOCAL)
    gateway, left = queue._gateway, []
    answer = gateway._answer

    def answer_unless_left(envelope: list[bytes], *frames: bytes) -> bool:
        if frames[0] == b"ITEM" and not left:
            left.append(envelope)
            return False
        return bool(answer(envelope, *frames))

    monkeypatch.setattr(gateway, "_answer", answer_unless_left)
    gone, peer = plain(zmq.DEALER, queue.address), plain(zmq.DEALER, queue.address)
    gone.send_multipart([b"GET"])
    assert asked(gone, b"SIZE")[0] == b"OK"  # so that was read too
    queue.put(b"a")
    peer.send_multipart([b"GET", b"5000"])
    assert peer.recv_multipart() == [b"ITEM", b"a"]
    assert len(left) == 1 and queue.qsize() == 0


def test_connect_has_the_methods_of_a_queue(make: Make) -> None:
    queue = make(mp.JoinableQueue, 2, codec="msgpack", address=LOCAL)
    far = make(mp.connect, queue.address)
    assert far.empty() and not far.full() and far.qsize() == 0
    far.put({"a": [1]})
    far.put_nowait("b")
    assert far.full() and not far.empty()
    with pytest.raises(standard.Full):
        far.put(3, timeout=0.02)
    assert (far.get(), far.get_nowait()) == ({"a": [1]}, "b")
    with pytest.raises(standard.Empty):
        far.get(timeout=0.02)
    waiting = threading.Thread(target=queue.join)
    waiting.start()
    for _ in range(2):
        far.task_done()
    waiting.join(10)
    assert not waiting.is_alive()
    with pytest.raises(ValueError, match="too many times"):
        far.task_done()


@pytest.mark.parametrize("method", ["send_multipart", "poll", "recv_multipart"])
def test_who_was_interrupted_may_ask_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    queue = make(mp.Queue, codec="raw", address=LOCAL)
    far = make(mp.connect, queue.address, codec="raw")
    call = getattr(zmq.Socket, method)

    def interrupted(socket: zmq.Socket[bytes], *arguments: Any, **settings: Any) -> Any:
        ours = socket.type == zmq.REQ  # the gateway has sockets in this process too
        result = (
            None if ours and method != "send_multipart" else call(socket, *arguments, **settings)
        )
        if ours:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(zmq.Socket, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            far.qsize()
    far.put(b"x")
    assert (far.get(), far.qsize()) == (b"x", 0)


def test_nobody_is_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.mp.remote.SILENCE", 0.05)
    far = make(mp.connect, "ipc://nobody-is-there")
    with pytest.raises(TransportError, match="nobody answers at ipc://nobody-is-there"):
        far.get(timeout=0.01)


def test_a_closed_queue_is_not_served(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make(mp.Queue, codec="raw", address=LOCAL)
    far = make(mp.connect, queue.address, codec="raw")
    far.put(b"x")
    queue.close()
    monkeypatch.setattr("flowkit.mp.remote.SILENCE", 0.05)
    with pytest.raises(TransportError):
        while True:
            far.qsize()


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"address": LOCAL}, ValueError, "not pickle"),
        ({"address": "tcp://*:*", "codec": "raw"}, ValueError, "insecure=True"),
        ({"address": "tcp://127.example:5555", "codec": "raw"}, ValueError, "insecure=True"),
        ({"address": "tcp://127.0.0.1:99999", "codec": "raw"}, ValueError, "up to 65535; pass"),
        ({"address": "tcp://127.0.0.1:65536", "codec": "raw"}, ValueError, "up to 65535; pass"),
        ({"address": "tcp://127.0.0.1:-1", "codec": "raw"}, ValueError, "form tcp://HOST:PORT"),
        ({"address": "tcp://127.0.0.1:0;[::1]:*", "codec": "raw"}, ValueError, "of the form"),
        ({"address": "ipc:///no/such/place/s", "codec": "raw"}, TransportError, "/no/such/place"),
    ],
)
def test_addresses_that_are_refused(settings: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        mp.Queue(**settings)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("tcp://127.0.0.1:99999", "ports go up to 65535; pass one like tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.1:five", "not of the form tcp://HOST:PORT"),
        ("tcp://127.0.0.1:*", "the port of the peer"),
        ("tcp://127.0.0.1:0", "the port of the peer"),
    ],
)
def test_addresses_that_are_not_connected_to(address: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"cannot connect to .*{text}"):
        mp.connect(address)
