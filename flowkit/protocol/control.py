"""What a replica and the supervisor say to each other.

The replica speaks first (`Ready`), and says `Done` before it closes its links. Every message names
the incarnation, so that what a dead one said late is told from what its successor says.
"""

from __future__ import annotations

import msgspec

from flowkit.errors import WireError

LIMIT = 1 << 20
"""Bytes of a message at most: a few hundred addresses."""


class Ready(msgspec.Struct, tag=True):
    """Replica: `setup()` has returned; my output links listen at `addresses` (by link)."""

    token: str
    node: str
    replica: int
    incarnation: int
    addresses: dict[int, str]


class Done(msgspec.Struct, tag=True):
    """Replica: every input is closed, and all I sent is acknowledged. Answered with `Released`."""

    incarnation: int


class Ended(msgspec.Struct, tag=True):
    """Replica: my stream has ended, all of it is done, and I am to be started again (restart policy
    "always"). Answered with `Released`."""

    incarnation: int


class AskDrain(msgspec.Struct, tag=True):
    """Replica: the node asks that the project be drained."""

    incarnation: int


class Stop(msgspec.Struct, tag=True):
    """Replica: the node's error policy asks to stop the project."""

    incarnation: int
    reason: str


class Start(msgspec.Struct, tag=True):
    """Supervisor: all replicas are ready; a source may begin."""


class ProducerAt(msgspec.Struct, tag=True):
    """Supervisor: replica `replica` of input link `link` listens at `address`."""

    link: int
    replica: int
    incarnation: int
    address: str


class Gone(msgspec.Struct, tag=True):
    """Supervisor: that incarnation is dead, or `done` with everything."""

    node: str
    replica: int
    incarnation: int
    done: bool


class Drain(msgspec.Struct, tag=True):
    """Supervisor: a source is to stop reading; everything else ends by itself."""


class Released(msgspec.Struct, tag=True):
    """Supervisor: your `Done` is noted, close your links and leave; or your `Ended`, just leave."""


class Replayed(msgspec.Struct, tag=True):
    """Replica: what became of a dead letter that was replayed. Clients are told the same.

    `error` is empty if it is done downstream now; else it is dead again, or could not be tried.
    """

    number: int
    error: str


class Replay(msgspec.Struct, tag=True):
    """Supervisor: try these dead letters again; each is answered with `Replayed`."""

    numbers: list[int]


class Poison(msgspec.Struct, tag=True):
    """Supervisor: the message at `index` of batch `id` kills whoever handles it: give it up."""

    link: int
    id: bytes
    index: int


# Changes of a running project: see `flowkit.protocol.change` and `flowkit.protocol.departure`.


class Rest(msgspec.Struct, tag=True):
    """Supervisor: begin nothing new; answer with `Resting` when nothing is held or unsettled.

    Sent when all producers rest already; or to one that is `leaving`, when they hold back what they
    have for it: it stops reading for good. Round 0 comes before, so that it begins nothing more and
    waits for no company; the answer to that does not count.
    """

    round: int
    leaving: bool = False


class Resting(msgspec.Struct, tag=True):
    """Replica: what was asked with `Rest` number `round` is true, and positions are committed."""

    incarnation: int
    round: int


class Resume(msgspec.Struct, tag=True):
    """Supervisor: the rest is over."""


class Hold(msgspec.Struct, tag=True):
    """Supervisor: give that consumer nothing new (`on`), or go on; answered with `Held`."""

    node: str
    replica: int
    on: bool


class Held(msgspec.Struct, tag=True):
    """Replica: that consumer gets nothing new and has acknowledged everything I sent it."""

    incarnation: int
    node: str
    replica: int


class Retire(msgspec.Struct, tag=True):
    """Supervisor: all your inputs have ended, for you alone: finish, report `Done`, leave."""


class Leave(msgspec.Struct, tag=True):
    """Supervisor: end now, without `finish()`; you rest, and another incarnation follows."""


class Size(msgspec.Struct):
    """How many replicas the ends of a link have, and the version of its key map."""

    link: int
    producers: int
    consumers: int
    version: int


class Resize(msgspec.Struct, tag=True):
    """Supervisor: your node has `replicas` from now on, and your links these sizes."""

    round: int
    replicas: int
    links: list[Size]


class Resized(msgspec.Struct, tag=True):
    """Replica: `Resize` number `round` is done."""

    incarnation: int
    round: int


# -- words: log records ------------------------------------------------------------------------


class Record(msgspec.Struct):
    """A log record of a replica. `time` is seconds since the epoch, `level` as in `logging`;
    `traceback` is that of its exception, or the stack that it shows, or empty."""

    time: float
    level: int
    logger: str
    text: str
    traceback: str = ""


class Said(msgspec.Struct, tag=True):
    """Replica: a log record, the `sequence`th of this incarnation, from 1."""

    incarnation: int
    sequence: int
    record: Record


class Heard(msgspec.Struct, tag=True):
    """Supervisor: your log records up to `sequence` have come; so many more may follow."""

    sequence: int


class SetLevel(msgspec.Struct, tag=True):
    """Supervisor: log what `logger` (empty: all) says from `level` on."""

    logger: str
    level: int


# -- taps --------------------------------------------------------------------------------------


class Tap(msgspec.Struct, tag=True):
    """Supervisor: copy to me what passes through that channel of yours, until `Untap`."""

    channel: str


class Untap(msgspec.Struct, tag=True):
    """Supervisor: nobody looks at that channel any more."""

    channel: str


class Glimpse(msgspec.Struct):
    """One message that was copied. `value` is JSON, or its beginning where it was `cut`; of bytes
    that are no text it is their base64, and `binary`."""

    id: str
    key: str
    """JSON; empty if it has none."""
    headers: dict[str, str]
    value: bytes
    cut: bool = False
    binary: bool = False


class Tapped(msgspec.Struct, tag=True):
    """Replica: messages of a channel that is tapped. `skipped` more have passed since the last."""

    channel: str
    skipped: int
    size: int
    """What is to be given back with `TapHeard`."""
    messages: list[Glimpse]


class TapHeard(msgspec.Struct, tag=True):
    """Supervisor: so many bytes of that channel have come; as many may follow."""

    channel: str
    size: int


FromReplica = (
    Ready | Done | Ended | AskDrain | Stop | Replayed | Said | Tapped | Resting | Held | Resized
)
FromSupervisor = (
    Start
    | ProducerAt
    | Gone
    | Drain
    | Released
    | Poison
    | Replay
    | Heard
    | SetLevel
    | Tap
    | Untap
    | TapHeard
    | Rest
    | Resume
    | Hold
    | Retire
    | Leave
    | Resize
)

_encode = msgspec.msgpack.Encoder().encode
_of_replica: msgspec.msgpack.Decoder[FromReplica] = msgspec.msgpack.Decoder(FromReplica)
_of_supervisor: msgspec.msgpack.Decoder[FromSupervisor] = msgspec.msgpack.Decoder(FromSupervisor)


def encode(message: FromReplica | FromSupervisor) -> list[bytes]:
    return [_encode(message)]


def from_replica(parts: list[bytes]) -> FromReplica:
    """Decode what a replica said; raises WireError and nothing else."""
    _check(parts)
    try:
        return _of_replica.decode(parts[0])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise WireError("control", str(error)) from None


def from_supervisor(parts: list[bytes]) -> FromSupervisor:
    """Decode what the supervisor said; raises WireError and nothing else."""
    _check(parts)
    try:
        return _of_supervisor.decode(parts[0])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise WireError("control", str(error)) from None


def _check(parts: list[bytes]) -> None:
    if len(parts) != 1 or len(parts[0]) > LIMIT:
        raise WireError("control", f"{len(parts)} parts of {sum(map(len, parts))} bytes")
