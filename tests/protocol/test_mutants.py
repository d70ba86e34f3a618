"""Rules that look as good as the real ones, and are not: the simulator must tell.

Each mutant changes one rule of the core in the tests alone and must be caught within a number of
seeds, by an oracle that fits it. That the real core passes the same graphs and faults is what
`test_graphs` shows; where a mutant needs a world of its own, it is shown here.

The rules, and the mutants that break them:

============================================================  =====================================
a batch is acknowledged when its handlers have returned and   AckOnReceipt, AckAfterHandler
everything made of it is acknowledged
acknowledgements are cumulative: they wait for the lowest     AckOutOfOrder, CommitOfTheHighest
a copy of a batch in progress waits for the first copy        AckOfCopiesAtOnce
who has sent everything stays until it is acknowledged        DoneWhenSent, NothingOwed
bounds are looked at before a batch is taken, never within    StrictProcess
one, and admit one batch always, by count and by bytes        StrictSender, StrictSession
a timer that finds no room skips its tick                     WaitingTimer
who groups never waits for a full group without a limit       FullGroupsOnly
a batch that is delivered again is the same batch             CutAnew
batches are cut at a count that is the same the next time     CutByCredit
an id is made of the parent's, the link that it came on,      derive_without_link,
the chunk, and the slot, which is never a replica             derive_without_chunk, SlotIsReplica
what finish() sends has the same ids in every incarnation     FinishOfAnIncarnation
ids are remembered by link, for all its producers             SeenByLinks, SeenByProducer
an id is forgotten when it can come no more, not before, and  ForgottenTooEarly,
not because a guessed number of others has come               LeastRecentlyUsed
what was received stays received when a link breaks           BreakDropsQueue
a new session's credit counts what is still queued            FullFirstCredit
HELLO is repeated until it is answered                        HelloOnce
a frame of an unknown session is dropped, and answered        UnknownSessionAccepted,
                                                              UnknownSessionIgnored
an incarnation that was replaced gets no session              LateHelloAccepted
what an ended session had not acknowledged goes first         NewSessionFirst
finish() runs when all inputs are closed, not at END          HearsEnd, FinishAtEnd
DONE is confirmed before CLOSE is said                        CloseBeforeDone
who comes late is told which links are closed                 ClosedLinksForgotten
============================================================  =====================================
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from flowkit import wire
from flowkit.protocol import batching, patterns, project, receiver, sender
from flowkit.protocol import engine as core
from flowkit.protocol.engine import Engine, Inbox
from flowkit.protocol.events import ReportDone
from flowkit.protocol.lineage import DONE, Root, Roots, Seen, Settled, Work, derive, root_id
from flowkit.protocol.project import Project
from flowkit.protocol.receiver import InBatch, Receiver, State
from flowkit.protocol.sender import OutBatch, Sender, Session
from tests.protocol import graphs
from tests.protocol.graphs import Graph
from tests.protocol.processes import CODEC, Failure, Process
from tests.protocol.sim import Faults, World, replaced, run
from tests.protocol.worlds import (
    KillsBeforeDone,
    RetiringWorld,
    SlowWorld,
    TimerProcess,
    TimerWorld,
)

SEEDS = 60
"""Within how many seeds a mutant must be caught."""


# ---------------------------------------------------------------------------- acknowledgement


class AckOnReceipt(Receiver):
    def _data(self, frame: wire.Data) -> None:
        super()._data(frame)
        for entry in self._entries:
            entry.done = True
        self._advance()


class AckAfterHandler(InBatch):
    __slots__ = ()

    def finish(self) -> None:
        self.handled = True
        self.settled()

    def release(self) -> None:
        self.pending -= 1


class AckOfCopiesAtOnce(Receiver):
    def _data(self, frame: wire.Data) -> None:
        known = self._seen.look(frame.id, frame.span)
        super()._data(frame)
        if known is not None and not isinstance(known, Settled) and self._entries:
            self._entries[-1].done = True
            self._advance()


class AckOutOfOrder(Receiver):
    """Acknowledges up to the highest batch that is done, not to the lowest that is not."""

    def _advance(self) -> None:
        last = max((n for n, entry in enumerate(self._entries) if entry.done), default=-1)
        for entry in list(self._entries)[: last + 1]:
            entry.done = True
        super()._advance()


class DoneWhenSent(Sender):
    """Nothing is owed any more when everything is sent."""

    @property
    def idle(self) -> bool:
        return not any(self._queues)


class NothingOwed(Roots):
    idle = True  # type: ignore[assignment]


class CommitOfTheHighest(Roots):
    def _settle(self, root: Root) -> None:
        super()._settle(root)
        if root.position is not None and (self.committed or 0) < root.position:
            self.committed = root.position
            self.on_commit()


# ---------------------------------------------------------------------------- ids and cuts


class CutAnew(Sender):
    """A batch that is delivered again is cut in two."""

    def _drop(self, session: Session, dead: bool) -> None:
        super()._drop(session, dead)
        for queue in self._queues:
            batches = list(queue)
            queue.clear()
            for batch in batches:
                queue.extend(self._halves(batch))

    def _halves(self, batch: OutBatch) -> list[OutBatch]:
        if batch.attempts == 0 or batch.count < 2 or batch.work is None:
            return [batch]
        messages = CODEC.decode(batch.payload, batch.count)
        half = batch.count // 2
        self.bytes -= batch.size
        batch.work.pending += 1
        result = []
        for number, part in enumerate((messages[:half], messages[half:])):
            id = derive(batch.id, b"half", number, 0)
            payload = CODEC.encode(part)
            result.append(OutBatch(batch.work, id, len(part), payload, b"", batch.group, batch.own))
            self.bytes += result[-1].size
        return result


def derive_without_link(parent: bytes, way: bytes, chunk: int, slot: int) -> bytes:
    return derive(parent, way.rpartition(b">")[2], chunk, slot)


def derive_without_chunk(parent: bytes, way: bytes, chunk: int, slot: int) -> bytes:
    return derive(parent, way, 0, slot)


class SlotIsReplica(Engine):
    def release(self, work: Work, *rest: Any) -> list[Any]:
        def derive_from_replica(parent: bytes, way: bytes, chunk: int, slot: int) -> bytes:
            return derive(parent, way, chunk, self.identity.replica + 1)

        with replaced(core, derive=derive_from_replica):
            return super().release(work, *rest)


class CutByCredit(Engine):
    """Chunks are as large as the consumers ask at the moment, not as the root was stamped."""

    def release(self, work: Work, channel: str, *rest: Any) -> list[Any]:
        work.cut = self.root_count(channel)
        return super().release(work, channel, *rest)


class FinishOfAnIncarnation(Roots):
    def finish(self, born: int = 0) -> Root:
        root = super().finish(born)
        root.id = root_id(self._origin, self._incarnation, 1 << 40)
        return root


class ForgottenTooEarly(Roots):
    """Says that less is open than is."""

    def open(self, *rest: Any) -> Root:
        root = super().open(*rest)
        root.span = min(root.span, 1)
        return root


class SeenByLinks(Engine):
    """One memory of ids for all links of a node."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        shared = Seen()
        for one in self._all_receivers():
            one._seen = shared


class SeenByProducer(Engine):
    """A memory of ids for each producer replica."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        for one in self._all_receivers():
            one._seen = Seen()


class LeastRecentlyUsed(Seen):
    """Remembers a number of ids that was guessed."""

    SIZE = 6

    def __init__(self) -> None:
        super().__init__()
        self._known: OrderedDict[bytes, Any] = OrderedDict()

    def look(self, id: bytes, span: int) -> Any:
        return self._known.get(id)

    def begin(self, id: bytes, work: Any) -> None:
        self._known[id] = work
        while len(self._known) > self.SIZE:
            self._known.popitem(last=False)

    def done(self, id: bytes, how: Settled = DONE) -> None:
        if id in self._known:
            self._known[id] = how


# ---------------------------------------------------------------------------- links


class BreakDropsQueue(Receiver):
    def _begin(self, session: int) -> None:
        self.held -= len(self.queue)
        self.queue.clear()
        super()._begin(session)


class FullFirstCredit(Receiver):
    """The first credit of a session forgets what is still queued."""

    def _begin(self, session: int) -> None:
        super()._begin(session)
        self._stale = 0

    def take(self) -> InBatch:
        batch = super().take()
        self._stale = 0
        return batch


class HelloOnce(Receiver):
    def tick(self) -> None:
        if self.state is not State.OPENING:
            super().tick()


class UnknownSessionAccepted(Sender):
    """What belongs to an earlier session of a replica is applied to its present one."""

    def receive(self, peer: bytes, frame: wire.Frame) -> None:
        of_session = self.__dict__.setdefault("of_session", {})
        for session in self.sessions:
            of_session[session.id] = session.replica
        if isinstance(frame, wire.Ack) and frame.session not in self._sessions:
            now = self._of_replica.get(of_session.get(frame.session, -1))
            if now is not None:
                sequence = min(frame.sequence, now.sequence)
                if sequence >= now.acked:
                    frame = replace_frame(frame, session=now.id, sequence=sequence)
                    peer = now.peer
        super().receive(peer, frame)


def replace_frame(frame: wire.Ack, **changes: int) -> wire.Ack:
    values = {name: getattr(frame, name) for name in frame.__struct_fields__}
    return wire.Ack(**(values | changes))


class UnknownSessionIgnored(Sender):
    def refuse(self, peer: bytes, session: int, reason: str) -> None:
        pass


class LateHelloAccepted(Sender):
    def _refusal(self, hello: wire.Hello) -> tuple[str, str] | None:
        refusal = super()._refusal(hello)
        return None if refusal and refusal[0] in ("fenced", "stale") else refusal


class NewSessionFirst(Sender):
    """A new session gets what is queued before what the old one had not acknowledged."""

    def _hello(self, peer: bytes, hello: wire.Hello) -> None:
        late: list[tuple[Session, bool]] = []
        with replaced(self, _drop=lambda session, dead: late.append((session, dead))):
            super()._hello(peer, hello)
        for session, dead in late:
            super()._drop(session, dead)
        self.flush()


# ---------------------------------------------------------------------------- bounds


class StrictProcess(Process):
    """Waits for room in the middle of a batch."""

    def handle(self, channel: str, batches: list[InBatch], work: Work) -> None:
        sent = 0
        for batch in batches:
            for message in CODEC.decode(batch.payload, batch.count):
                sent += len(self.node.handle(channel, message))
        if any(
            sender.messages + sent > sender.terms.window for sender in self.engine.senders.values()
        ):
            self.hands.append((self.world.now + 0.05, channel, batches, work))
            return
        super().handle(channel, batches, work)


class StrictWorld(World):
    process_class = StrictProcess


class StrictSender(Sender):
    """A window that is too small for a batch never admits it."""

    @property
    def full(self) -> bool:
        return self.messages + self.max_count > self.terms.window


class StrictSession(Session):
    __slots__ = ()

    def has_room(self, size: int) -> bool:
        return self.sequence < self.limit and self.sent_bytes + size <= self.limit_bytes


class WaitingTimer(TimerProcess):
    """A timer that finds no room waits for it, and its loop with it."""

    waits = False

    def fire(self) -> None:
        self.waits = self.engine.phase is core.Phase.OPEN and not self.engine.room
        if not self.waits:
            super().fire()

    def turn(self, at: float) -> None:
        if self.waits and self.engine.room:
            self.waits = False
            self.send_tick()
        if not self.waits:
            super().turn(at)
        elif self.alive and self.turn_at == at:
            self.turn_at = None
            self.wake(self.world.now + 1.0)


class WaitingTimerWorld(TimerWorld):
    process_class = WaitingTimer


class FullGroupsOnly(Process):
    """A node that groups waits until the group is full."""

    def take(self) -> bool:
        queued = sum(
            len(one.queue) for inbox in self.engine.inboxes.values() for one in inbox.receivers
        )
        return queued >= self.node.group and super().take()


class FullGroupsWorld(World):
    process_class = FullGroupsOnly


# ---------------------------------------------------------------------------- the end


class HearsEnd(Receiver):
    ended = False

    def receive(self, frame: wire.Frame) -> None:
        self.ended = self.ended or isinstance(frame, wire.End)
        super().receive(frame)


class FinishAtEnd(Inbox):
    @property
    def closed(self) -> bool:
        return all(
            (one.state is State.CLOSED or getattr(one, "ended", False)) and not one.held
            for one in self.receivers
        )


class CloseBeforeDone(Engine):
    def _progress(self) -> None:
        before = self.phase
        super()._progress()
        if self.phase is core.Phase.REPORTING and before is not self.phase:
            report = self.actions.pop()
            assert isinstance(report, ReportDone)
            for sender in self.senders.values():
                sender.close()
            self.actions.append(report)


class ClosedLinksForgotten(Project):
    def introduce(self, replica: project.Replica) -> None:
        before = len(self.actions)
        super().introduce(replica)
        kept = [
            action
            for number, action in enumerate(self.actions)
            if number < before
            or not (
                isinstance(action, project.Tell)
                and isinstance(action.message, project.control.Gone)
            )
        ]
        self.actions = deque(kept)


# ---------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Mutant:
    """`patches`: (module or class, name, replacement). `kinds`: which oracles may catch it."""

    name: str
    graph: Graph
    faults: Faults
    kinds: str
    patches: Sequence[tuple[Any, str, object]] = ()
    world: type[World] = World
    seeds: int = SEEDS

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module, name, new in self.patches:
                stack.enter_context(replaced(module, **{name: new}))
            yield


CLEAN = Faults(slow=0)
KILLS = Faults(kills=5, sinks=False)
HARD = Faults(kills=5, breaks=3, pauses=1, sinks=False)
BREAKS = Faults(breaks=6)

MUTANTS = [
    Mutant(
        "acknowledge on receipt",
        graphs.POOL_KEYED_SINK,
        KILLS,
        "lost rule",
        [(patterns, "Receiver", AckOnReceipt)],
    ),
    Mutant(
        "acknowledge after the handler",
        graphs.POOL_KEYED_SINK,
        KILLS,
        "lost rule left",
        [(receiver, "InBatch", AckAfterHandler)],
    ),
    Mutant(
        "acknowledge copies in progress at once",
        graphs.POOL_KEYED_SINK,
        HARD,
        "lost rule",
        [(patterns, "Receiver", AckOfCopiesAtOnce)],
        seeds=150,
    ),
    Mutant(
        "acknowledge out of order",
        graphs.POOL_POOL_SINK,
        KILLS,
        "lost rule",
        [(patterns, "Receiver", AckOutOfOrder)],
    ),
    Mutant(
        "leave when everything is sent",
        graphs.POOL_SINK,
        Faults(kills=3),
        "lost rule left hung",
        [(patterns, "Sender", DoneWhenSent), (core, "Roots", NothingOwed)],
    ),
    Mutant(
        "commit the highest, not the lowest",
        graphs.POOL_SINK,
        KILLS,
        "rule",
        [(core, "Roots", CommitOfTheHighest)],
    ),
    Mutant(
        "cut a batch anew when it is delivered again",
        graphs.SOURCES_CHUNKS,
        HARD,
        "doubled lost",
        [(patterns, "Sender", CutAnew)],
    ),
    Mutant(
        "cut by credit",
        graphs.SOURCES_CHUNKS,
        HARD,
        "doubled lost rule",
        [(core, "Engine", CutByCredit)],
    ),
    Mutant(
        "ids without the link",
        graphs.DIAMOND,
        CLEAN,
        "lost rule",
        [(core, "derive", derive_without_link)],
    ),
    Mutant(
        "ids without the chunk",
        graphs.SOURCES_CHUNKS,
        CLEAN,
        "lost rule",
        [(core, "derive", derive_without_chunk)],
    ),
    Mutant(
        "forget ids too early",
        graphs.POOL_SINK,
        Faults(slow=0.2),
        "lost rule",
        [(core, "Roots", ForgottenTooEarly)],
    ),
    Mutant(
        "one memory of ids for all links",
        graphs.TWO_INPUTS,
        CLEAN,
        "lost rule",
        [(core, "Engine", SeenByLinks)],
    ),
    Mutant(
        "a memory of ids for each producer",
        graphs.POOL_SINK,
        HARD,
        "doubled",
        [(core, "Engine", SeenByProducer)],
    ),
    Mutant(
        "the replica as slot",
        graphs.POOL_SINK,
        HARD,
        "doubled",
        [(core, "Engine", SlotIsReplica)],
    ),
    Mutant(
        "ids of finish with the incarnation",
        graphs.FINISH,
        KILLS,
        "doubled",
        [(core, "Roots", FinishOfAnIncarnation)],
    ),
    Mutant(
        "remember a fixed number of ids",
        graphs.POOL_KEYED_SINK,
        HARD,
        "doubled",
        [(core, "Seen", LeastRecentlyUsed)],
    ),
    Mutant(
        "a link break drops the queue",
        graphs.POOL_SINK,
        BREAKS,
        "hung",
        [(patterns, "Receiver", BreakDropsQueue)],
    ),
    Mutant(
        "full credit for a new session",
        graphs.POOL_SINK,
        Faults(breaks=12),
        "rule",
        [(patterns, "Receiver", FullFirstCredit), (batching, "AHEAD_SECONDS", 0.0)],
        SlowWorld,
    ),
    Mutant(
        "HELLO is not repeated",
        graphs.POOL_SINK,
        Faults(breaks=14),
        "hung",
        [(patterns, "Receiver", HelloOnce)],
    ),
    Mutant(
        "accept an unknown session",
        graphs.POOL_KEYED_SINK,
        Faults(breaks=14, slow=0.3),
        "lost rule hung",
        [(patterns, "Sender", UnknownSessionAccepted)],
        seeds=150,
    ),
    Mutant(
        "ignore an unknown session",
        graphs.POOL_SINK,
        BREAKS,
        "hung",
        [(patterns, "Sender", UnknownSessionIgnored)],
    ),
    Mutant(
        "accept a late HELLO",
        graphs.POOL_SINK,
        Faults(slow=0.5),
        "hung",
        [(patterns, "Sender", LateHelloAccepted)],
        RetiringWorld,
    ),
    Mutant(
        "send on a new session first",
        graphs.ORDER,
        Faults(breaks=14),
        "order",
        [(patterns, "Sender", NewSessionFirst)],
    ),
    Mutant(
        "wait for room within a batch",
        graphs.SOURCES_CHUNKS.where(window=2),
        CLEAN,
        "hung",
        world=StrictWorld,
    ),
    Mutant(
        "a window too small for a batch",
        graphs.POOL_SINK.where(window=1),
        CLEAN,
        "hung",
        [(patterns, "Sender", StrictSender)],
    ),
    Mutant(
        "bytes too few for a batch",
        graphs.POOL_SINK,
        CLEAN,
        "hung",
        [
            (sender, "Session", StrictSession),
            (receiver, "AHEAD_BYTES", 8),
        ],
    ),
    Mutant(
        "a timer waits for room",
        graphs.TIMERS,
        CLEAN,
        "hung",
        world=WaitingTimerWorld,
    ),
    Mutant(
        "wait for a full group",
        graphs.GROUPS,
        CLEAN,
        "hung",
        world=FullGroupsWorld,
    ),
    Mutant(
        "finish at END",
        graphs.COUNT,
        HARD,
        "rule crash hung left",
        [(patterns, "Receiver", HearsEnd), (core, "Inbox", FinishAtEnd)],
    ),
    Mutant(
        "CLOSE before DONE",
        graphs.FINISH,
        Faults(),
        "hung",
        [(core, "Engine", CloseBeforeDone)],
        KillsBeforeDone,
    ),
    Mutant(
        "forget which links are closed",
        graphs.POOL_SINK,
        Faults(kills=6),
        "hung",
        [(project, "Project", ClosedLinksForgotten)],
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_are_caught(mutant: Mutant) -> None:
    found = []
    with mutant.at_work():
        for seed in range(mutant.seeds):
            try:
                run(mutant.graph, seed, mutant.faults, mutant.world)
            except Failure as failure:
                if failure.kind in mutant.kinds.split():
                    return
                found.append(f"seed {seed}: {failure}")
    pytest.fail(f"not caught in {mutant.seeds} seeds; else: {found[:3]}")


def test_the_list_of_rules_names_every_mutant() -> None:
    """And nothing else, so that it can be believed."""
    parts = [new for mutant in MUTANTS for _, _, new in mutant.patches]
    parts += [mutant.world.process_class for mutant in MUTANTS]
    mutants = {part.__name__ for part in parts if getattr(part, "__module__", "") == __name__}
    assert __doc__ is not None
    table = __doc__.partition("===\n")[2].partition("\n===")[0]
    named = {word.strip(",") for line in table.splitlines() for word in line[62:].split()}
    assert named == mutants


@pytest.mark.parametrize("seed", range(20))
def test_a_replica_that_is_given_up_swallows_nothing(seed: int) -> None:
    run(graphs.POOL_SINK, seed, Faults(slow=0.5), RetiringWorld)


@pytest.mark.parametrize("seed", range(10))
def test_queues_are_bounded_over_sessions(seed: int) -> None:
    with replaced(batching, AHEAD_SECONDS=0.0):
        run(graphs.POOL_SINK, seed, Faults(breaks=12), SlowWorld)


def test_timers_skip_ticks_and_hang_nobody() -> None:
    stats: Counter[str] = Counter()
    for seed in range(10):
        stats += run(graphs.TIMERS, seed, Faults(breaks=2), TimerWorld).stats
    assert 0 < stats["skipped"] < stats["ticks"]


@pytest.mark.parametrize("seed", range(5))
def test_one_batch_is_always_admitted(seed: int) -> None:
    with replaced(receiver, AHEAD_BYTES=8):
        run(graphs.POOL_SINK, seed, BREAKS)
