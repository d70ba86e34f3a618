"""The producer's end of a link: sessions with consumer replicas, credit, replay, end.

Theory of operation. What a handler sent comes in as batches (`offer`) and waits in a queue: one for
the link where any replica may take a batch, one for each replica where not. A consumer replica
opens a session (HELLO, WELCOME) and grants credit; a batch goes to the least loaded session that
has room and stays in that session's replay buffer until it is acknowledged. When a replica is known
to be dead, or comes back with a new session, its unacknowledged batches return to the head of the
queue, as they are. A silent session is only suspected: it gets nothing new while others have room.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from flowkit import wire
from flowkit.message import Payload
from flowkit.protocol.batching import MAX_COUNT
from flowkit.protocol.events import (
    Action,
    Complain,
    Erase,
    Identity,
    Persist,
    Terms,
    ToConsumer,
)
from flowkit.protocol.ledger import Books
from flowkit.protocol.lineage import FAILED, JOURNAL, LOST, MAX_SPAN, Seen, Work, root_id
from flowkit.protocol.routing import ANY
from flowkit.wire import Ack, Close, Credit, Data, End, Frame, Heartbeat, Hello, Reset, Welcome

SUSPECT_AFTER = 5
"""Ticks (seconds) without a frame after which a session gets nothing new. Heartbeats come every
tick; a handler that holds the loop for seconds is not a fault."""

WAITING = 4
"""Batches, for each replica that has a queue of its own, that may wait for credit."""

FREE = 64
"""Messages in a batch at least, on a link whose producer does not wait for its consumers, if it has
so many at a time; fewer if a pool shares them. It makes batches faster than anybody can say how
they should be; single ones would fill the window with what costs most to send and to handle."""

SHARES = 8
"""The window of such a link holds so many batches at least: they are dropped whole."""


class OutBatch:
    """One batch on its way; `work` is what it was made of (None on a lossy link)."""

    __slots__ = (
        "id",
        "span",
        "cut",
        "born",
        "count",
        "payload",
        "extras",
        "size",
        "group",
        "work",
        "own",
        "attempts",
        "sequence",
    )

    def __init__(
        self,
        work: Work,
        id: bytes,
        count: int,
        payload: Payload,
        extras: bytes,
        group: int,
        own: bool,
    ) -> None:
        self.id = id
        self.span = work.span
        self.cut = work.cut
        self.born = work.born
        self.count = count
        self.payload = payload
        self.extras = extras
        self.size = len(payload) + len(extras)
        self.group = group
        self.work: Work | None = work
        self.own = own
        self.attempts = 0
        self.sequence = 0
        """Its place in the journal of a durable link."""


class Session:
    """A live session with one consumer replica. Figures are of this session alone."""

    __slots__ = (
        "id",
        "peer",
        "replica",
        "incarnation",
        "counter",
        "limit",
        "limit_bytes",
        "max_count",
        "cut",
        "sequence",
        "sent_bytes",
        "unacked",
        "acked",
        "dead_lettered",
        "dropped",
        "failed",
        "lost",
        "load",
        "spoke",
        "silent",
    )

    def __init__(self, id: int, peer: bytes, hello: Hello) -> None:
        self.id = id
        self.peer = peer
        self.replica = hello.replica
        self.incarnation = hello.incarnation
        self.counter = hello.counter
        self.limit = hello.limit
        self.limit_bytes = hello.limit_bytes
        self.max_count = hello.max_count
        self.cut = hello.cut
        self.sequence = 0
        self.sent_bytes = 0
        self.unacked: deque[OutBatch] = deque()
        self.acked = 0
        self.dead_lettered = 0
        self.dropped = 0
        self.failed = 0
        self.lost = 0
        self.load = 0
        self.spoke = True
        self.silent = 0

    def has_room(self, size: int) -> bool:
        """Whether credit admits a batch of `size` bytes; one batch always, if none is out."""
        if self.sequence >= self.limit:
            return False
        return self.sent_bytes + size <= self.limit_bytes or not self.unacked


class Sender:
    """One output link of one producer replica. Actions go to `post`."""

    def __init__(
        self,
        identity: Identity,
        terms: Terms,
        books: Books,
        post: Callable[[Action], None],
    ) -> None:
        self.terms = terms
        self.books = books
        self._identity = identity
        self._post = post
        groups = terms.consumers if terms.route != "balance" else 1
        self._queues: list[deque[OutBatch]] = [deque() for _ in range(groups)]
        self._held = [[0, 0] for _ in range(groups)]  # of each queue: messages, bytes, also sent
        self._sessions: dict[int, Session] = {}
        self._of_replica: dict[int, Session] = {}
        self._fenced: dict[int, int] = {}
        self._highest: dict[int, tuple[int, int]] = {}
        self._opened = 0
        self._ended = False
        self._closed = False
        self._made = Seen()
        self._unsaved: list[OutBatch] = []
        self._saving = 0
        self._saved: set[int] = set()  # sequences in the journal
        self._order: deque[int] = deque()  # the same, and some that were taken out since
        self._on_hold: set[int] = set()
        self.derived = False
        """Whether batches that were made of input have been acknowledged."""
        self.messages = 0
        """Messages queued or unacknowledged."""
        self.bytes = 0
        self._waits = terms.waits
        self.max_count = 1
        """Messages a root batch for this link should hold: the least that a live session asks,
        within bounds on a link that does not wait."""
        self.cut = MAX_COUNT
        """Messages that batches made downstream should hold. A link that does not wait has no say
        in that: what is made of its batches begins a lineage of its own."""
        self._adapt()
        self._forgetting = terms.lossy
        """Whether a batch is forgotten when it is sent."""

    # -- what the engine asks ------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether no new work should begin: the window is used up, or batches wait for credit.

        A few may wait, so that credit never finds nothing to send; more would only be cut too
        early, before the consumers have said how they want it. With nothing outstanding it is
        never full.
        """
        if not self._waits:
            return False
        return self.messages > 0 and (
            sum(map(len, self._queues)) >= WAITING * len(self._queues)
            or self.at_window
            or self._saving + len(self._unsaved) >= WAITING * len(self._queues)
            or self._span() >= MAX_SPAN
        )

    @property
    def at_window(self) -> bool:
        """Whether the window is used up."""
        return self.messages >= self.terms.window or self.bytes >= self.terms.window_bytes

    @property
    def idle(self) -> bool:
        """Whether everything that was offered is acknowledged or given up."""
        return self.messages == 0

    @property
    def queued(self) -> int:
        """Messages that wait for credit."""
        return self.messages - sum(session.load for session in self._sessions.values())

    @property
    def credit(self) -> int:
        """Batches that the consumers would take at once."""
        return sum(max(0, one.limit - one.sequence) for one in self._sessions.values())

    @property
    def sessions(self) -> Sequence[Session]:
        return list(self._sessions.values())

    def offer(self, batches: Sequence[OutBatch]) -> None:
        """Take over `batches`, in order; call `flush` when the loop's turn has offered all."""
        if self._closed:
            raise AssertionError(f"{self.terms.name}: a batch after CLOSE")
        for batch in batches:
            if self.terms.durable and not self._is_new(batch):
                continue
            if batch.own or not self.terms.durable:
                self.books.sent(batch.count, batch.own, batch.size)
            if self.terms.lossy:
                batch.work = None
                if self._drop_for(batch):
                    continue
            elif batch.work is not None:
                batch.work.pending += 1
            self._hold(batch)
            if self.terms.durable:
                self._unsaved.append(batch)
            else:
                self._queue(batch)

    def persisted(self, batches: Sequence[OutBatch], sequences: Sequence[int]) -> None:
        """Those batches are in the journal, at `sequences`: what they were made of may be
        acknowledged, and they may go."""
        self._saving -= len(batches)
        for batch, sequence in zip(batches, sequences, strict=True):
            self._enter(batch, sequence)
            if batch.own:
                self.books.safe(batch.count)
                batch.own = False
            else:
                self.books.sent(batch.count, False, batch.size)
            if batch.work is not None:
                batch.work.release()
                batch.work = None
            self._queue(batch)
        self.flush()

    def superseded(self, batches: Sequence[OutBatch]) -> None:
        """Another replica has those in its journal and sends them. It died before it could
        acknowledge what they were made of, or the work came to both."""
        self._saving -= len(batches)
        for batch in batches:
            self._hold(batch, -1)
            if batch.work is not None:
                batch.work.release()
                batch.work = None
        self.flush()

    def erased(self, sequences: Iterable[int]) -> None:
        """The journal holds those no more: only now are they below what may come again. Before
        that, a producer that dies and comes back finds them there and sends them once more, to
        consumers that must not have forgotten them."""
        self._saved.difference_update(sequences)
        self.flush()

    def restore(self, batches: Sequence[OutBatch], sequences: Sequence[int]) -> None:
        """What the journal held when the replica was started, oldest first; before all else."""
        for batch, sequence in zip(batches, sequences, strict=True):
            self._enter(batch, sequence)
            batch.work = None
            self.books.sent(batch.count, own=False)
            self._hold(batch)
            self._queue(batch)

    def made(self, lineages: Sequence[bytes]) -> None:
        """Ids of batches that were journaled before: they are not taken in again."""
        for id in lineages:
            self._made.look(id, 0xFFFF)
            self._made.begin(id, True)

    def flush(self) -> None:
        """Hand queued batches to sessions that have room."""
        if self._unsaved:
            unsaved, self._unsaved = self._unsaved, []
            self._saving += len(unsaved)
            self._post(Persist(self.terms.index, unsaved))
        if self.terms.route == "balance":
            queue = self._queues[0]
            while queue and not self._too_far(queue[0]):
                session = self._least_loaded(queue[0])
                if session is None:
                    return
                self._deliver(session, queue.popleft())
            return
        for group, queue in enumerate(self._queues):
            session = self._of_replica.get(group) if queue else None
            while session is not None and queue and session.has_room(queue[0].size):
                if self._too_far(queue[0]) or self._holds(group, queue[0]):
                    break
                self._deliver(session, queue.popleft())

    def end(self) -> None:
        """Nothing new follows: tell every session, later ones included."""
        if not self._ended:
            self._ended = True
            for session in self._sessions.values():
                self._say(session, End(session.id, session.sequence))

    def close(self) -> None:
        """Everything is acknowledged: let the consumers go. Nothing may be offered after this."""
        self._closed = True
        for session in self._sessions.values():
            self._say(session, Close(session.id))

    def tick(self) -> None:
        """Call once a second: heartbeats on idle sessions, suspicion of silent ones."""
        for session in self._sessions.values():
            session.silent += 1
            if not session.spoke and session.silent <= SUSPECT_AFTER:
                # Nothing more for a suspect: what a stopped process does not read piles up.
                self._say(session, Heartbeat(session.id, session.sequence))
            session.spoke = False

    # -- what the supervisor says --------------------------------------------------------------

    def gone(self, replica: int, incarnation: int) -> None:
        """That consumer is dead, or done: fence it, and take back what it had not acknowledged."""
        self._fenced[replica] = max(incarnation, self._fenced.get(replica, 0))
        session = self._of_replica.get(replica)
        if session is not None and session.incarnation <= incarnation:
            self._drop(session, dead=True)
            self.flush()

    def hold(self, replica: int, on: bool) -> None:
        """Give that consumer nothing new, or go on. What it may have had already it still gets,
        unless others can: it knows copies, and the incarnation after it does not."""
        if on:
            self._on_hold.add(replica)
        else:
            self._on_hold.discard(replica)
            self.flush()

    def is_clear(self, replica: int) -> bool:
        """Whether that consumer has nothing of this link that is not acknowledged."""
        session = self._of_replica.get(replica)
        if session is not None and session.unacked:
            return False
        if self._shared:
            return True
        queue = self._queues[replica if len(self._queues) > 1 else 0]
        return not (queue and queue[0].attempts)

    def resize(self, terms: Terms) -> None:
        """The ends of the link have other numbers of replicas. Nothing may be under way to those
        whose share changes."""
        before, self.terms = self.terms.consumers, terms
        if terms.consumers == before:
            return
        if not self.idle and terms.route != "balance":
            raise AssertionError(f"{terms.name}: resized while {self.messages} messages wait")
        if terms.route != "balance":
            self._queues = [deque() for _ in range(terms.consumers)]
            self._held = [[0, 0] for _ in range(terms.consumers)]
        for session in self.sessions:
            if session.replica >= terms.consumers:
                self._drop(session, dead=True)
        self._adapt()

    # -- what a peer says ----------------------------------------------------------------------

    def receive(self, peer: bytes, frame: Frame) -> None:
        """Handle one frame of a consumer; whatever it holds, nothing is raised."""
        if isinstance(frame, Hello):
            self._hello(peer, frame)
            return
        if isinstance(frame, wire.Reset):
            session = self._sessions.get(frame.session)
            if session is not None and session.peer == peer:
                # The consumer has given this session up and opens another.
                self._drop(session, dead=False)
                self.flush()
            return
        session = self._sessions.get(frame.session) if not isinstance(frame, wire.Reject) else None
        if session is None or session.peer != peer:
            self.refuse(peer, getattr(frame, "session", 0), "unknown session")
            return
        session.silent = 0
        if isinstance(frame, Ack):
            if not session.acked <= frame.sequence <= session.sequence:
                self._break(session, f"ack of {frame.sequence}, sent {session.sequence}")
                return
            self._credit(session, frame)
            self._ack(session, frame)
            self.flush()
        elif isinstance(frame, Credit):
            self._credit(session, frame)
            self.flush()
        elif not isinstance(frame, Heartbeat):
            self._break(session, f"{type(frame).__name__} from a consumer")

    def refuse(self, peer: bytes, session: int, reason: str) -> None:
        """Answer what cannot be understood, or belongs to no session, with RESET."""
        self._post(ToConsumer(self.terms.index, peer, Reset(session, reason)))

    # -- inside --------------------------------------------------------------------------------

    def _hello(self, peer: bytes, hello: Hello) -> None:
        refusal = self._refusal(hello)
        if refusal is not None:
            code, text = refusal
            self._post(ToConsumer(self.terms.index, peer, wire.Reject(code, text)))
            return
        old = self._of_replica.get(hello.replica)
        if old is not None:
            self._drop(old, dead=hello.incarnation > old.incarnation)
        self._highest[hello.replica] = (hello.incarnation, hello.counter)
        self._opened += 1
        session = Session(self._identity.incarnation << 32 | self._opened, peer, hello)
        self._sessions[session.id] = session
        self._of_replica[hello.replica] = session
        self._say(session, Welcome(session.id, wire.VERSION))
        self._adapt()
        if self._ended:
            self._say(session, End(session.id, session.sequence))
        if self._closed:
            self._say(session, Close(session.id))
        self.flush()

    def _refusal(self, hello: Hello) -> tuple[str, str] | None:
        if not hello.low <= wire.VERSION <= hello.high:
            return "version", f"speaks version {wire.VERSION}, not {hello.low} to {hello.high}"
        mine = self._identity
        if hello.run != mine.run or not hmac.compare_digest(
            hello.token.encode(), mine.token.encode()
        ):
            return "run", "belongs to another run"
        terms = self.terms
        if hello.link != terms.name or hello.node != terms.target:
            return "link", f"this is link {terms.name}"
        if not 0 <= hello.replica < terms.consumers:
            return "replica", f"{terms.target} has {terms.consumers} replicas"
        if min(hello.max_count, hello.cut) < 1:
            return "credit", "batches hold one message at least"
        incarnation, counter = self._highest.get(hello.replica, (0, 0))
        fenced = self._fenced.get(hello.replica, 0)
        if hello.incarnation <= fenced or hello.incarnation < incarnation:
            return "fenced", f"incarnation {hello.incarnation} was replaced"
        if hello.incarnation == incarnation and hello.counter <= counter:
            return "stale", f"session {hello.counter} was replaced"
        return None

    def _least_loaded(self, batch: OutBatch) -> Session | None:
        best: Session | None = None
        for session in self._sessions.values():
            if (
                session.silent <= SUSPECT_AFTER
                and (best is None or session.load < best.load)
                and session.has_room(batch.size)
                and not (self._on_hold and self._holds(session.replica, batch))
            ):
                best = session
        return best

    @property
    def _shared(self) -> bool:
        """Whether any of several replicas may take a batch."""
        return self.terms.route == "balance" and self.terms.consumers > 1

    def _holds(self, replica: int, batch: OutBatch) -> bool:
        """Whether `batch` is to wait, or to go to another replica."""
        return replica in self._on_hold and (self._shared or not batch.attempts)

    def _too_far(self, batch: OutBatch) -> bool:
        """Whether a batch of a journal must wait until lower ones are settled: consumers remember
        what lies between, and one input batch may have made more than they should."""
        return bool(batch.sequence) and batch.sequence - self._low() > MAX_SPAN

    def _deliver(self, session: Session, batch: OutBatch) -> None:
        if batch.sequence:
            batch.span = batch.sequence - self._low()
        session.sequence += 1
        session.sent_bytes += batch.size
        session.load += batch.count
        session.unacked.append(batch)
        self.books.delivered(batch.count, again=batch.attempts > 0)
        frame = Data(
            session.id,
            session.sequence,
            batch.id,
            batch.span,
            batch.cut,
            batch.count,
            min(batch.attempts, 0xFFFF),
            batch.payload,
            batch.extras,
            batch.born,
        )
        batch.attempts += 1
        if self._forgetting:
            batch.payload = batch.extras = b""  # forgotten: only its count is kept
        self._say(session, frame)

    def _credit(self, session: Session, frame: Credit | Ack) -> None:
        # Limits are absolute and never go down, so that a late or repeated frame does no harm.
        session.limit = max(session.limit, frame.limit)
        session.limit_bytes = max(session.limit_bytes, frame.limit_bytes)
        if (frame.max_count, frame.cut) != (session.max_count, session.cut):
            session.max_count = max(1, frame.max_count)
            session.cut = max(1, frame.cut)
            self._adapt()

    def _adapt(self) -> None:
        sessions = self._sessions.values()
        if self._waits:
            self.cut = self.fit(min((session.cut for session in sessions), default=1))
        self.max_count = self.fit(min((session.max_count for session in sessions), default=1))

    def fit(self, asked: int) -> int:
        """How many messages a batch holds for whom `asked` would be right. Depends on the terms
        alone."""
        if self._waits:
            return min(asked, MAX_COUNT)
        terms = self.terms
        most = max(1, min(MAX_COUNT, terms.window // SHARES))
        sharers = terms.consumers if terms.route == "balance" else 1
        return min(max(asked, FREE // sharers, 1), most)

    def _ack(self, session: Session, frame: Ack) -> None:
        dead_lettered = frame.dead_lettered - session.dead_lettered
        dropped = frame.dropped - session.dropped
        taint = FAILED if frame.failed > session.failed else 0
        taint |= LOST if frame.lost > session.lost else 0
        session.failed = max(session.failed, frame.failed)
        session.lost = max(session.lost, frame.lost)
        while session.acked < frame.sequence:
            session.acked += 1
            batch = session.unacked.popleft()
            session.load -= batch.count
            # What was given up is known for all the batches of an ACK together; book it on the
            # first ones, so that no batch has more given up than it holds.
            dead = max(0, min(batch.count, dead_lettered))
            gone = max(0, min(batch.count - dead, dropped))
            dead_lettered -= dead
            dropped -= gone
            session.dead_lettered += dead
            session.dropped += gone
            self.books.settled(batch.count, dead, gone, batch.own)
            if batch.work is not None:
                batch.work.taint |= taint
            self._forget(batch)

    def _queue(self, batch: OutBatch) -> None:
        self._queues[0 if batch.group == ANY else batch.group].append(batch)

    def _hold(self, batch: OutBatch, sign: int = 1) -> None:
        self.messages += sign * batch.count
        self.bytes += sign * batch.size
        held = self._held[0 if batch.group == ANY else batch.group]
        held[0] += sign * batch.count
        held[1] += sign * batch.size

    def _is_new(self, batch: OutBatch) -> bool:
        """Whether a batch of a durable link is not in the journal yet: it may be made again when
        the process died between journaling it and acknowledging what it was made of."""
        if self._made.look(batch.id, batch.span) is not None:
            return False
        self._made.begin(batch.id, True)
        return True

    def _enter(self, batch: OutBatch, sequence: int) -> None:
        """Give a batch the id it has as an entry of the journal."""
        self._saved.add(sequence)
        self._order.append(sequence)
        batch.sequence = sequence
        origin = self.terms.origin + self._identity.replica
        batch.id = root_id(origin, JOURNAL, sequence)

    def _low(self) -> int:
        """The lowest sequence in the journal, which must hold one."""
        while self._order[0] not in self._saved:
            self._order.popleft()
        return self._order[0]

    def _span(self) -> int:
        return self._order[-1] - self._low() if self._saved else 0

    def _forget(self, batch: OutBatch) -> None:
        if batch.sequence:
            self._post(Erase(self.terms.index, batch.sequence))
        self._hold(batch, -1)
        self.derived = self.derived or not batch.own
        if batch.work is not None:
            batch.work.release()

    def _drop(self, session: Session, dead: bool) -> None:
        """End `session`; what it had not acknowledged goes back to the head of its queue, or is
        lost."""
        del self._sessions[session.id]
        if self._of_replica.get(session.replica) is session:
            del self._of_replica[session.replica]
        self._take_back(session, dead)
        session.unacked = deque()
        self._adapt()
        if not dead:
            self._post(Complain(f"{self.terms.name}: session with replica {session.replica} ended"))

    def _take_back(self, session: Session, dead: bool) -> None:
        """What `session` had not acknowledged waits again, or is lost."""
        if self.terms.lossy:
            reason = "consumer died" if dead else "link broken"
            for batch in session.unacked:
                self.books.dropped(batch.count, reason, batch.own)
                self._forget(batch)
        else:
            group = session.replica if self.terms.route != "balance" else 0
            self._queues[group].extendleft(reversed(session.unacked))

    def _break(self, session: Session, reason: str) -> None:
        self.refuse(session.peer, session.id, reason)
        self._post(Complain(f"{self.terms.name}: replica {session.replica}: {reason}"))
        self._drop(session, dead=True)
        self.flush()

    def _drop_for(self, batch: OutBatch) -> bool:
        """Make room on a lossy link. True if it is `batch` itself that was dropped.

        Each replica that has a queue of its own has a window of its own: a slow one makes none of
        the others lose anything.
        """
        group = 0 if batch.group == ANY else batch.group
        if self._waits or self._fits(group, batch):
            return False
        if self.terms.when_full == "drop-oldest":
            queue = self._queues[group]
            while queue and not self._fits(group, batch):
                oldest = queue.popleft()
                self._lose(oldest, "no room: oldest")
                self._forget(oldest)
            if self._fits(group, batch):
                return False
        # What is under way alone fills the window: there is nothing older left to drop.
        self._lose(batch, "no room: newest")
        return True

    def _lose(self, batch: OutBatch, reason: str) -> None:
        self.books.dropped(batch.count, reason, batch.own)

    def _fits(self, group: int, batch: OutBatch) -> bool:
        messages, size = self._held[group]
        window, window_bytes = self.terms.window, self.terms.window_bytes
        return not messages or (
            messages + batch.count <= window and size + batch.size <= window_bytes
        )

    def _say(self, session: Session, frame: Frame) -> None:
        session.spoke = True
        self._post(ToConsumer(self.terms.index, session.peer, frame))
