"""The nouns of the core: what a replica is, what links it has, and what the shell is to do.

The core (`Engine`, with its senders and receivers) is told what happened by calls and answers with
actions, which the shell carries out in order. Links are named by their number in the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowkit.wire import Frame

if TYPE_CHECKING:
    from flowkit.protocol.sender import OutBatch


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a replica is. `run` and `token` are the same for all replicas of one run."""

    run: str
    token: str
    node: str
    replica: int
    incarnation: int
    origin: int
    """Number of the replica in the project: the first part of the ids of what begins in it."""
    life: int = 1
    """How many replicas of this number have been ended before this one, and one: what `finish()`
    sends has ids that are the same in every incarnation of one life."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What both ends of a link agree on, from the topology."""

    index: int
    name: str
    source: str
    out: str
    target: str
    into: str
    producers: int
    consumers: int
    route: str = "balance"
    lossy: bool = False
    when_full: str = "block"
    window: int = 1 << 16
    """Messages that may be unacknowledged at one producer replica; one batch always may."""
    window_bytes: int = 64 << 20
    durable: bool = False
    """Batches are on disk before what they were made of is acknowledged."""
    origin: int = 0
    """With `durable`: what replica 0 of the producer puts for its origin in the ids of batches on
    this link, which begin a lineage of their own in the journal."""
    version: int = 0
    """How often the key map was changed; in ids, since another map cuts batches differently."""
    pattern: str = "pipeline"

    @property
    def waits(self) -> bool:
        """Whether producers wait for their consumers. If they do not, something is dropped."""
        return not self.lossy or self.when_full == "block"


# These two are made for every frame: one that is frozen takes four times as long to make.


@dataclass(slots=True)
class ToConsumer:
    """Send `frame` to `peer` on the socket that is bound for output link `link`."""

    link: int
    peer: bytes
    frame: Frame


@dataclass(slots=True)
class ToProducer:
    """Send `frame` on the connection to replica `producer` of input link `link`."""

    link: int
    producer: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a fresh connection to `address`, in place of any other to that producer."""

    link: int
    producer: int
    address: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection to that producer."""

    link: int
    producer: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Write `batches` to the journal of output link `link`; then call `Engine.persisted`."""

    link: int
    batches: list[OutBatch]


@dataclass(frozen=True, slots=True)
class Erase:
    """Batch `sequence` of the journal of `link` is acknowledged: take it out, when there is time;
    then call `Engine.erased`."""

    link: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Complain:
    """Tell the operator: a peer was refused or broke a rule."""

    text: str


@dataclass(frozen=True, slots=True)
class CallFinish:
    """Every input has ended: call the node's `finish`, then `Engine.finished`."""


@dataclass(frozen=True, slots=True)
class ReportDone:
    """Everything is acknowledged: report DONE; call `Engine.released` when that is confirmed."""


@dataclass(frozen=True, slots=True)
class ReportRest:
    """Nothing is held or unsettled, as `Engine.rest` asked with `round`."""

    round: int


@dataclass(frozen=True, slots=True)
class ReportHeld:
    """That consumer has acknowledged everything and gets nothing new: see `Engine.hold`."""

    node: str
    replica: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Everything below `position` is done downstream."""

    position: Any


@dataclass(frozen=True, slots=True)
class Leave:
    """All links are closed: the process may end; or it must, for `reason`."""

    reason: str = ""


Action = (
    ToConsumer
    | ToProducer
    | Connect
    | Disconnect
    | Persist
    | Erase
    | Complain
    | CallFinish
    | ReportDone
    | ReportRest
    | ReportHeld
    | Commit
    | Leave
)
