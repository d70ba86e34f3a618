"""The consumer's end of a link: one receiver for each replica of the producer.

Theory of operation. The supervisor says where a producer is; the receiver connects, opens a session
(HELLO, WELCOME) and grants credit. Batches queue here until the replica takes them: taking one
returns its credit, settling it acknowledges it. Acknowledgements are cumulative, so they wait for
the lowest. A session ends on a gap, a broken rule or a RESET, and another is opened on a fresh
connection; what was received stays received, and copies that come again join it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from flowkit import wire
from flowkit.protocol.batching import Pace
from flowkit.protocol.events import (
    Action,
    Complain,
    Connect,
    Disconnect,
    Identity,
    Leave,
    Terms,
    ToProducer,
)
from flowkit.protocol.lineage import DONE, FAILED, LOST, Seen, Settled, Work, nothing
from flowkit.wire import Ack, Close, Credit, Data, End, Frame, Heartbeat, Hello, Reject, Reset

AHEAD_BYTES = 32 << 20
"""Bytes a producer may send beyond what was taken. A larger batch is let through alone."""

HELLO_TICKS = 2
"""Ticks (seconds) to wait for the answer to HELLO before it is repeated on a fresh connection;
doubled each time, up to `HELLO_TICKS_MAX`: the producer's loop may be busy."""
HELLO_TICKS_MAX = 16


class State(Enum):
    """Where a receiver stands."""

    ABSENT = "absent"
    """The producer is not there: not yet, or it died."""
    OPENING = "opening"
    """HELLO is sent."""
    LIVE = "live"
    CLOSED = "closed"
    """The producer has sent everything and all of it is acknowledged."""
    REFUSED = "refused"
    """The producer will not talk to us; the supervisor decides."""


class _Entry:
    """One batch of a session, in the order of its sequence numbers."""

    __slots__ = ("done", "how")

    def __init__(self) -> None:
        self.done = False
        self.how = DONE


class InBatch(Work):
    """A batch that was received. The handlers' side fills in what it gave up.

    `copies` are the places, in one session or several, that wait for its acknowledgement. `first`
    is the index of its first message: not 0 only for one that was taken out of its batch.
    """

    __slots__ = (
        "receiver",
        "terms",
        "session",
        "count",
        "payload",
        "extras",
        "attempts",
        "dead_lettered",
        "dropped",
        "copies",
        "first",
        "sequence",
    )

    def __init__(
        self, receiver: Receiver, frame: Data, settled: Callable[[], None], first: int = 0
    ) -> None:
        # As `Work.__init__`, without the call: one is made for each batch that comes in.
        self.id = frame.id
        self.span = frame.span
        self.cut = frame.cut
        self.born = frame.born
        self.pending = 0
        self.handled = False
        self.settled = settled
        self.taint = 0
        self.receiver = receiver
        self.terms = receiver.terms
        self.session = frame.session
        self.sequence = frame.sequence
        self.count = frame.count
        self.payload = frame.payload
        self.extras = frame.extras
        self.attempts = frame.attempts
        self.dead_lettered = 0
        self.dropped = 0
        self.copies: list[tuple[Receiver, _Entry]] = []
        self.first = first

    def finish(self) -> None:
        self.receiver.unhandled -= 1
        self.receiver.waiting -= self.count
        super().finish()

    @property
    def size(self) -> int:
        return len(self.payload) + len(self.extras)


class Receiver:
    """One input link from one producer replica. Actions go to `post`.

    `seen` is shared by the receivers of a link, `pace` by those of an input channel. `cut` tells
    how many messages batches made downstream should hold.
    """

    def __init__(
        self,
        identity: Identity,
        terms: Terms,
        producer: int,
        pace: Pace,
        seen: Seen,
        cut: Callable[[], int],
        post: Callable[[Action], None],
    ) -> None:
        self.terms = terms
        self.producer = producer
        self.pace = pace
        self.state = State.ABSENT
        self.queue: deque[InBatch] = deque()
        self.held = 0
        """Batches received and not yet settled."""
        self.unhandled = 0
        """Batches received whose handlers have not all returned."""
        self.waiting = 0
        """The messages in them."""
        self.retired = False
        """Whether there is no such producer any more; one may come that has its number."""
        self.ended = False
        """Whether the producer says that nothing new follows: a hint, see `Inbox.ended`."""
        self._identity = identity
        self._seen = seen
        self._cut = cut
        self._post = post
        self._incarnation = 0
        self._address = ""
        self._counter = 0
        self._waited = 0
        self._patience = HELLO_TICKS
        self._begin(0)

    def _begin(self, session: int) -> None:
        """Forget the figures of the session before."""
        self._session = session
        self._received = 0
        self._taken = 0
        self._taken_bytes = 0
        self._stale = len(self.queue)  # batches of earlier sessions that still take up room
        self._entries: deque[_Entry] = deque()
        self._acked = 0
        self._dead_lettered = 0
        self._dropped = 0
        self._failed = 0
        self._lost = 0
        self._granted = 0
        self._granted_bytes = 0
        self._told = (0, 0)
        self._unsaid_ack = False
        self._spoke = True

    # -- what the supervisor says --------------------------------------------------------------

    def available(self, incarnation: int, address: str) -> None:
        """The producer's `incarnation` listens at `address`. Older news is ignored."""
        if incarnation <= self._incarnation or self.state is State.CLOSED:
            return
        self.ended = False
        self._incarnation = incarnation
        self._address = address
        self._patience = HELLO_TICKS
        self._open()

    def gone(self, incarnation: int, done: bool) -> None:
        """That incarnation of the producer is dead, or `done`: it has closed its links."""
        if incarnation < self._incarnation or self.state is State.CLOSED:
            return
        if self.state is not State.ABSENT:
            self._post(Disconnect(self.terms.index, self.producer))
        self._incarnation = incarnation
        self._begin(0)
        self.state = State.CLOSED if done else State.ABSENT

    def close(self) -> None:
        """The producer will send this replica nothing more, whatever it does for others."""
        self.gone(self._incarnation, done=True)

    # -- what the replica does -----------------------------------------------------------------

    def take(self) -> InBatch:
        """The oldest batch of the queue, which must not be empty; its credit returns."""
        batch = self.queue.popleft()
        if batch.session == self._session:
            self._taken += 1
            self._taken_bytes += len(batch.payload) + len(batch.extras)
        else:
            self._stale -= 1
        return batch

    def flush(self) -> None:
        """Say what is unsaid, acknowledgements and credit, in one frame; once a turn."""
        if self.state is not State.LIVE:
            return
        limit = self._limit()
        if self._unsaid_ack:
            self._acknowledge()
        elif limit > self._granted or self._told != self._wishes():
            self._grant()
            self._say(Credit(self._session, self._granted, self._granted_bytes, *self._told))

    def tick(self) -> None:
        """Call once a second: repeats HELLO, and restates ack and credit on an idle session."""
        if self.state is State.OPENING:
            self._waited += 1
            if self._waited >= self._patience:
                self._patience = min(2 * self._patience, HELLO_TICKS_MAX)
                self._open()
        elif self.state is State.LIVE:
            if not self._spoke:
                self._acknowledge()
            self._spoke = False

    # -- what the producer says ----------------------------------------------------------------

    def receive(self, frame: Frame) -> None:
        """Handle one frame of the producer; whatever it holds, nothing is raised."""
        if isinstance(frame, Data):
            self._data(frame)
        elif isinstance(frame, wire.Welcome):
            if self.state is State.OPENING:
                self.state = State.LIVE
                self._session = frame.session
                self._patience = HELLO_TICKS
        elif isinstance(frame, Reject):
            if self.state is State.OPENING:
                self._rejected(frame)
        elif isinstance(frame, Hello):
            self.restart("HELLO from a producer")
        elif self.state is not State.LIVE or frame.session != self._session:
            if isinstance(frame, Reset) and self.state is State.LIVE and frame.session == 0:
                self.restart(f"refused: {frame.reason}")
        elif isinstance(frame, Heartbeat):
            if frame.sequence != self._received:
                self.restart(f"batch {self._received + 1} was lost")
        elif isinstance(frame, Close):
            self._post(Disconnect(self.terms.index, self.producer))
            self._begin(0)
            self.state = State.CLOSED
        elif isinstance(frame, Reset):
            self.restart(f"reset: {frame.reason}")
        elif isinstance(frame, End):
            self.ended = True
        else:
            self.restart(f"{type(frame).__name__} from a producer")

    def restart(self, reason: str) -> None:
        """Give the session up and open another; also for what cannot be understood."""
        if self.state not in (State.LIVE, State.OPENING):
            return
        self._post(Complain(f"{self.terms.name}: replica {self.producer}: {reason}"))
        if self.state is State.LIVE:
            self._say(Reset(self._session, reason))
        self._open()

    def unreachable(self) -> None:
        """The connection is broken: open another. While HELLO is out, `tick` repeats it anyway."""
        if self.state is State.LIVE:
            self.restart("unreachable")

    # -- inside --------------------------------------------------------------------------------

    def _open(self) -> None:
        self._counter += 1
        self._waited = 0
        self._begin(0)
        self.state = State.OPENING
        self._grant()
        self._post(Connect(self.terms.index, self.producer, self._address))
        mine = self._identity
        self._say(
            Hello(
                wire.VERSION,
                wire.VERSION,
                mine.run,
                mine.token,
                self.terms.name,
                mine.node,
                mine.replica,
                mine.incarnation,
                self._counter,
                self._granted,
                self._granted_bytes,
                *self._told,
            )
        )

    def _rejected(self, frame: Reject) -> None:
        if frame.code == "stale":
            return  # a HELLO that was overtaken by a later one of ours
        self.state = State.REFUSED
        self._post(Disconnect(self.terms.index, self.producer))
        where = f"{self.terms.name}: replica {self.producer}"
        self._post(Leave(f"{where} refused: {frame.text}"))

    def _data(self, frame: Data) -> None:
        if self.state is not State.LIVE or frame.session != self._session:
            self.restart("data outside the session")
            return
        if frame.sequence != self._received + 1:
            self.restart(f"batch {frame.sequence} after {self._received}")
            return
        if frame.sequence > self._granted:
            self.restart(f"batch {frame.sequence} exceeds the credit of {self._granted}")
            return
        self._received += 1
        entry = _Entry()
        self._entries.append(entry)
        known = None if self.terms.lossy else self._seen.look(frame.id, frame.span)
        if known is None:
            batch = InBatch(self, frame, lambda: self._settled(batch))
            batch.copies.append((self, entry))
            if not self.terms.lossy:
                self._seen.begin(frame.id, batch)
            self.held += 1
            self.unhandled += 1
            self.waiting += batch.count
            self.queue.append(batch)
            return
        self._taken += 1
        self._taken_bytes += len(frame.payload) + len(frame.extras)
        if isinstance(known, Settled):
            entry.done = True
            entry.how = known
            self._advance()
        else:
            known.copies.append((self, entry))

    def _settled(self, batch: InBatch) -> None:
        self.held -= 1
        batch.settled = nothing
        taint = (
            batch.taint | (FAILED if batch.dead_lettered else 0) | (LOST if batch.dropped else 0)
        )
        how = Settled(batch.dead_lettered, batch.dropped, taint) if taint else DONE
        if not self.terms.lossy:
            self._seen.done(batch.id, how)
        for receiver, entry in batch.copies:
            entry.done = True
            entry.how = how
            receiver._advance()

    def _advance(self) -> None:
        while self._entries and self._entries[0].done:
            how = self._entries.popleft().how
            if how.taint and self._unsaid_ack:
                self._acknowledge()  # what came before is not tainted
            self._acked += 1
            self._unsaid_ack = True
            if how.taint:
                self._dead_lettered += how.dead_lettered
                self._dropped += how.dropped
                self._failed += bool(how.taint & FAILED)
                self._lost += bool(how.taint & LOST)
                self._acknowledge()

    def _limit(self) -> int:
        return self._taken + self.pace.ahead - self._stale

    def _wishes(self) -> tuple[int, int]:
        """Messages in a batch for this channel, and in one for anything beyond it."""
        return self.pace.max_count, self._cut()

    def _grant(self) -> None:
        self._granted = max(self._granted, self._limit())
        self._granted_bytes = max(self._granted_bytes, self._taken_bytes + AHEAD_BYTES)
        self._told = self._wishes()

    def _acknowledge(self) -> None:
        self._grant()
        self._unsaid_ack = False
        self._say(
            Ack(
                self._session,
                self._acked,
                self._dead_lettered,
                self._dropped,
                self._granted,
                self._granted_bytes,
                *self._told,
                self._failed,
                self._lost,
            )
        )

    def _say(self, frame: Frame) -> None:
        self._spoke = True
        self._post(ToProducer(self.terms.index, self.producer, frame))
