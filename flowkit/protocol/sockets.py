"""ZeroMQ's sockets as foreign peers use them: which go together, which way messages go, and what
stands before a message on the wire.

A table and functions on frames; nothing here knows a socket. The rules are those of ZeroMQ's RFCs:
28 (REQ, REP, DEALER, ROUTER), 29 (PUB, SUB, XPUB, XSUB), 30 (PUSH, PULL) and 31 (PAIR).

A message travels as *envelope* and *body*. The envelope is the way back: the identities that ROUTER
sockets have put in front, and the empty frame that REQ and REP end it with. A node finds it in the
headers of a message (`ENVELOPE`), and an answer that has it goes to whoever asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ENVELOPE = "zmq-envelope"
"""The header that holds an envelope: its frames in hexadecimal, each followed by a slash."""


class Socket(NamedTuple):
    """One type of socket. `receives` and `sends`: None where it can and need not."""

    name: str
    receives: bool | None
    sends: bool | None
    peers: frozenset[str]
    opened_as: str
    """The type that is opened for it. REP and REQ keep their envelopes here and not in libzmq, so
    that many requests may be in hand, and one that gets no answer blocks nothing; PUB is opened as
    one that hears of its subscribers."""
    enveloped: bool
    """Whether an answer finds its way by an envelope."""


def _table() -> dict[str, Socket]:
    rows = {
        # receives, sends, peers, opened as, enveloped
        "REQ": (True, True, "REP ROUTER", "DEALER", False),
        "REP": (True, True, "REQ DEALER", "ROUTER", True),
        "DEALER": (None, None, "REP DEALER ROUTER", "DEALER", True),
        "ROUTER": (None, None, "REQ DEALER ROUTER", "ROUTER", True),
        "PUB": (False, True, "SUB XSUB", "XPUB", False),
        "SUB": (True, False, "PUB XPUB", "SUB", False),
        "XPUB": (None, True, "SUB XSUB", "XPUB", False),
        "XSUB": (True, None, "PUB XPUB", "XSUB", False),
        "PUSH": (False, True, "PULL", "PUSH", False),
        "PULL": (True, False, "PUSH", "PULL", False),
        "PAIR": (None, None, "PAIR", "PAIR", False),
    }
    return {
        name: Socket(name, receives, sends, frozenset(peers.split()), opened_as, enveloped)
        for name, (receives, sends, peers, opened_as, enveloped) in rows.items()
    }


SOCKETS = _table()
"""Every type that an endpoint can be."""

OTHERS = {
    "STREAM": "it talks to programs that do not use ZeroMQ: read them in a node of your own",
    **dict.fromkeys(
        ("SERVER", "CLIENT", "RADIO", "DISH", "GATHER", "SCATTER", "DGRAM", "PEER", "CHANNEL"),
        "it is a draft, and not in the libzmq that pyzmq brings",
    ),
}
"""Types that ZeroMQ has besides, and why an endpoint cannot be one."""

PUBLISHERS = frozenset({"PUB", "XPUB"})
SUBSCRIBERS = frozenset({"SUB", "XSUB"})

TRANSPORTS = {
    "ipc": frozenset(SOCKETS),
    "tcp": frozenset(SOCKETS),
    "inproc": frozenset(SOCKETS),
    "pgm": PUBLISHERS | SUBSCRIBERS,
    "epgm": PUBLISHERS | SUBSCRIBERS,
}
"""What may carry which sockets: multicast is for publishing alone."""


def fit(one: str, other: str) -> bool:
    """Whether ZeroMQ lets these two types talk to each other."""
    return other in SOCKETS[one].peers


def opened(kind: str, frames: Sequence[bytes]) -> tuple[list[bytes], list[bytes]] | None:
    """Envelope and body of a message that came in on a `kind`; None if it breaks the rules.

    REQ strips the empty frame that its REP has kept. On a DEALER or ROUTER an empty frame that
    something follows ends the envelope; without one it is what the ROUTER has put in front, the
    peer's identity.
    """
    if kind == "REQ":
        return ([], list(frames[1:])) if len(frames) > 1 and not frames[0] else None
    if kind not in ("REP", "DEALER", "ROUTER"):
        return [], list(frames)
    first = 0 if kind == "DEALER" else 1
    for at in range(first, len(frames) - 1):
        if not frames[at]:
            return list(frames[: at + 1]), list(frames[at + 1 :])
    if kind == "REP" or len(frames) <= first:
        return None
    return list(frames[:first]), list(frames[first:])


def sealed(
    kind: str, envelope: Sequence[bytes] | None, body: Sequence[bytes], peer: str | None = None
) -> list[bytes] | None:
    """The frames of a message on a `kind`; None if it has no address and cannot leave.

    `envelope` is that of the message it answers, or what its sender was told; `peer` is the type at
    the other end, if that is known: a REP insists on the empty frame.
    """
    if kind == "REQ":
        return [b"", *body]
    if kind == "DEALER":
        default = [b""] if peer == "REP" else []
        return [*(default if envelope is None else envelope), *body]
    if kind in ("REP", "ROUTER"):
        return [*envelope, *body] if envelope else None
    return list(body)


def addressed(identity: str, peer: str | None) -> list[bytes]:
    """The envelope of what a ROUTER sends unasked to the peer with that identity."""
    return [identity.encode(), b""] if peer == "REQ" else [identity.encode()]


def to_header(envelope: Sequence[bytes]) -> str:
    """An envelope as the text that headers can hold."""
    return "".join(f"{frame.hex()}/" for frame in envelope)


def from_header(text: str) -> list[bytes]:
    """The envelope in a header. Raises ValueError if it is none."""
    if not text.endswith("/"):
        raise ValueError(f"not an envelope: {text!r:.40}")
    return [bytes.fromhex(frame) for frame in text[:-1].split("/")]


class Subscriptions:
    """What the subscribers of a publisher want, as far as they have said so.

    Told of by the frames that come in on the publisher: one byte, 1 or 0, and a prefix. Only the
    first wish for a prefix and the last farewell to it are told.
    """

    def __init__(self) -> None:
        self._prefixes: set[bytes] = set()

    def heard(self, frame: bytes) -> None:
        """A frame came in."""
        if frame[:1] == b"\1":
            self._prefixes.add(frame[1:])
        elif frame[:1] == b"\0":
            self._prefixes.discard(frame[1:])

    def wants(self, topic: bytes) -> bool:
        """Whether anybody gets a message that begins with `topic`."""
        prefixes = self._prefixes
        if not prefixes:
            return False
        return b"" in prefixes or any(topic.startswith(prefix) for prefix in prefixes)
