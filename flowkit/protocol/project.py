"""The life of a whole project: which replica is started when, who is told what, how it ends.

Told of what happens (`ready`, `done`, `exited`, a signal), it answers with actions for the
supervisor to carry out. Every replica goes the same way::

    WAITING -> STARTING -> READY -> DONE -> (process ends) ENDED
       ^          |          |
       +----------+----------+  it died: announced, and started again after a back-off

A death is announced to all peers of the replica before its next incarnation is started, so that
what it had not acknowledged is delivered to others; only then can no two of it be at work.

What the operator wants of a replica (`Wanted`) stands above the restart policy: one that is to be
DOWN becomes STOPPED and not started again, one that is to be GONE runs its orderly end and is
REMOVED, and one that was told to leave for another incarnation is no death. Such changes are
`Operation`s, one at a time: see `flowkit.protocol.departure` and `flowkit.protocol.change`.

A replica may be *external*: nobody's child, but attached by an application. Launching it is an
offer. Until an application takes it, the incarnation is STARTING and `absent`: nobody waits for it
to be ready, and it ends with its producers. It counts as dead when its session is lost; that is the
application's business and not the restart policy's: the next incarnation is offered at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flowkit.protocol import control
from flowkit.protocol.events import Terms
from flowkit.protocol.members import Member as Member
from flowkit.protocol.members import Phase as Phase
from flowkit.protocol.members import Replica as Replica
from flowkit.protocol.members import Status as Status
from flowkit.protocol.members import Wanted as Wanted
from flowkit.protocol.restart import GiveUp, RestartState

CONFIGURATION = 2
"""The exit code of a replica that cannot start as it is configured: starting again is no use."""


DEATHS_IN_HAND = 2
"""How many careful deaths a message must have been in hand at to be held responsible."""


class Launch(NamedTuple):
    """Start the replica's current incarnation."""

    replica: Replica


class Tell(NamedTuple):
    """Send `message` to the replica's current incarnation."""

    replica: Replica
    message: control.FromSupervisor


class Kill(NamedTuple):
    """Kill the replica's process."""

    replica: Replica


class Bury(NamedTuple):
    """That incarnation is dead: close its books."""

    replica: Replica
    incarnation: int


class Poisoned(NamedTuple):
    """Tell the operator: a message has killed its replica again and is given up."""

    replica: Replica
    message: control.Poison


class Started(NamedTuple):
    """All replicas are ready for the first time."""


class Died(NamedTuple):
    """Tell the operator: a replica died, and is started again after `delay` seconds, or not.

    It is death `number` of the window that its restart policy looks at; 0 is no death at all: its
    stream has ended, and the policy is "always". `ends`: the project ends with it.
    """

    replica: Replica
    code: int
    error: str | None
    delay: float | None
    reason: str
    number: int = 1
    ends: bool = False


class Vacated(NamedTuple):
    """Tell the operator: the application that ran an external replica has gone. `orderly` if
    nothing of it was left in hand."""

    replica: Replica
    reason: str
    orderly: bool


class Over(NamedTuple):
    """Every replica has ended; the project's status says how."""


class Adopt(NamedTuple):
    """From now on replicas are launched with the links and settings that `operation` brings."""

    operation: Operation


class Restore(NamedTuple):
    """The links and settings of before `operation` hold again."""

    operation: Operation


class Completed(NamedTuple):
    """The operation is over; `error` says why it did not do all that it should."""

    operation: Operation
    error: str


Action = (
    Launch
    | Tell
    | Kill
    | Bury
    | Poisoned
    | Started
    | Died
    | Vacated
    | Over
    | Adopt
    | Restore
    | Completed
)


class Operation(ABC):
    """A change of the running project: told of what happens, it goes on.

    It works on the project through `tell`, `kill` and what else has no underscore there, and calls
    `Project.complete` at its end. `deadline` is when `too_late` is called.
    """

    deadline: float | None = None
    pausing = False
    """Whether sources are not to begin, for now."""
    _allowed: float | None = None

    def allow(self, seconds: float) -> None:
        """The step that begins now may take so long. The time is told at the next tick, which is
        due at once."""
        self._allowed = seconds
        self.deadline = float("-inf")

    def due(self, now: float) -> None:
        """The deadline has passed, or is to be set."""
        if self._allowed is not None:
            self.deadline = now + self._allowed
            self._allowed = None
        else:
            self.deadline = None
            self.too_late()

    @abstractmethod
    def begin(self, now: float) -> None:
        """The first step."""

    @abstractmethod
    def too_late(self) -> None:
        """The deadline has passed: `allow` more, or complete."""

    def abandon(self, reason: str) -> bool:
        """Undo it, if that is possible still; else it goes on, and False is returned."""
        return False

    def defers(self, replica: Replica) -> bool:
        """Whether that replica, which is ready, is not to be introduced to its peers yet."""
        return False

    def ready(self, replica: Replica) -> None:
        """It is ready, and introduced unless that was deferred."""
        return None

    def ended(self, replica: Replica) -> None:
        """It has ended, or is done, as was wanted."""
        return None

    def died(self, replica: Replica, reason: str) -> None:
        """It died; it is started again unless `reason` says why not."""
        return None

    def resting(self, replica: Replica, round: int) -> None:
        """It says `Resting`."""
        return None

    def held(self, producer: Replica, node: str, number: int) -> None:
        """A producer says `Held`."""
        return None

    def resized(self, replica: Replica, round: int) -> None:
        """It says `Resized`."""
        return None


class Project:
    """The pure part of the supervisor. Without `sources`, sources are not told to begin: they
    wait until `drain` ends them."""

    def __init__(
        self, members: Sequence[Member], links: Sequence[Terms], sources: bool = True
    ) -> None:
        self._sources_run = sources
        self.actions: deque[Action] = deque()
        self.status = Status.RUNNING
        self.reason = ""
        """Why the project failed or was stopped, for people."""
        self.draining = False
        self.started = False
        self._poisons: dict[str, list[control.Poison]] = {member.name: [] for member in members}
        self._suspects: dict[tuple[int, bytes, int], int] = {}
        self.links = links
        self.operation: Operation | None = None
        self.edition = 0
        """How often `links` were changed."""
        self.replicas: dict[tuple[str, int], Replica] = {}
        for member in members:
            for number in range(member.replicas):
                self.add(member, number, member.origin + number)

    # -- what happens --------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start everything."""
        for replica in self.replicas.values():
            replica.launch_at = now
        self.tick(now)
        self._check_started()

    def tick(self, now: float) -> None:
        """Call when `wake_at` has come."""
        if self.status is not Status.RUNNING:
            return
        operation = self.operation
        if operation and operation.deadline is not None and operation.deadline <= now:
            operation.due(now)
        for replica in self.replicas.values():
            if replica.launch_at is not None and replica.launch_at <= now:
                replica.launch_at = None
                replica.incarnation += 1
                replica.phase = Phase.STARTING
                replica.leaving = replica.introduced = replica.begun = False
                replica.edition = self.edition
                replica.ended = False
                replica.absent = replica.external
                self.actions.append(Launch(replica))
        if any(replica.absent for replica in self.replicas.values()):
            self._settle_stopped()

    @property
    def wake_at(self) -> float | None:
        """When `tick` is due next; None if nothing waits."""
        times = [replica.launch_at for replica in self.replicas.values()]
        if self.operation is not None:
            times.append(self.operation.deadline)
        return min((time for time in times if time is not None), default=None)

    @property
    def absent(self) -> list[str]:
        """The nodes that have a replica which no application has taken."""
        return list(dict.fromkeys(one.node for one in self.replicas.values() if one.absent))

    def attached(self, replica: Replica, incarnation: int) -> None:
        """An application has taken an external replica; `ready` follows, or `exited`."""
        if replica.incarnation == incarnation:
            replica.absent = False

    def ready(self, node: str, number: int, incarnation: int, addresses: Mapping[int, str]) -> bool:
        """A replica has set itself up. False if it is not the one that should speak: ignore it."""
        replica = self.replicas.get((node, number))
        if replica is None or replica.incarnation != incarnation:
            return False
        if replica.phase is not Phase.STARTING:
            return False
        replica.phase = Phase.READY
        replica.addresses = addresses
        replica.trying = False
        if replica.edition != self.edition:
            self.resize(replica, 0)
        if replica.discarded or replica.wanted is Wanted.DOWN:
            return True  # it is being killed
        if self.operation is None or not self.operation.defers(replica):
            self.introduce(replica)
        if self.started:
            self.start_sources()
        else:
            self._check_started()
        if self.draining and replica.begins:
            self.tell(replica, control.Drain())
        if self.operation is not None:
            self.operation.ready(replica)
        return True

    def done(self, replica: Replica, incarnation: int) -> None:
        """A replica has closed its inputs and all it sent is acknowledged."""
        if replica.incarnation != incarnation or replica.phase is not Phase.READY:
            return
        replica.phase = Phase.DONE
        self.tell(replica, control.Released())
        self._announce(replica, incarnation, done=True)
        if self.operation is not None:
            self.operation.ended(replica)
        self._settle_stopped()

    def heard(
        self,
        replica: Replica,
        message: control.Resting | control.Held | control.Resized,
    ) -> None:
        """A replica answers what an operation has told it."""
        operation = self.operation
        current = replica.incarnation == message.incarnation and replica.phase is Phase.READY
        if operation is None or not current:
            return
        if isinstance(message, control.Resting):
            operation.resting(replica, message.round)
        elif isinstance(message, control.Held):
            operation.held(replica, message.node, message.replica)
        else:
            operation.resized(replica, message.round)

    def stream_ended(self, replica: Replica, incarnation: int) -> None:
        """A source's stream has ended, all of it is done, and its policy is to begin again."""
        if replica.incarnation == incarnation and replica.phase is Phase.READY:
            replica.ended = True
            self.tell(replica, control.Released())

    def stop(self, replica: Replica, incarnation: int, reason: str) -> None:
        """A replica's error policy asks to stop the project."""
        if replica.incarnation == incarnation and self.status is Status.RUNNING:
            self._fail(Status.STOPPED, f"{replica.name}: {reason}")

    def exited(
        self, replica: Replica, incarnation: int, code: int, error: str | None, now: float
    ) -> None:
        """The process of that incarnation has ended and been waited for."""
        idle = replica.phase in (Phase.WAITING, Phase.STOPPED)
        if replica.incarnation != incarnation or replica.over or idle:
            return
        if replica.phase is Phase.DONE:
            # What happens after DONE costs nothing any more.
            removed = replica.wanted is Wanted.GONE
            replica.phase = Phase.REMOVED if removed else Phase.ENDED
            self._left(replica)
            return
        was = replica.phase
        replica.addresses = {}
        replica.absent = False
        if self.status is not Status.RUNNING:
            # Nobody takes over what it had in hand: in the books that stays in flight.
            replica.phase = Phase.LOST
            self._check_over()
            return
        if replica.stateful and was is Phase.READY:
            replica.lost_state = True
        if replica.discarded or replica.wanted is Wanted.DOWN or replica.leaving:
            self._buried(replica, done=replica.discarded)
            if replica.discarded:
                replica.phase = Phase.REMOVED
            elif replica.wanted is Wanted.DOWN:
                replica.phase = Phase.STOPPED
            else:
                replica.planned += 1
                replica.trying = True
                replica.phase = Phase.WAITING
                replica.launch_at = now
            if replica.external:
                self.actions.append(Vacated(replica, "has left in order", orderly=True))
            self._left(replica)
            return
        if replica.external:
            self._vacated(replica, error or "has left", now)
            return
        asked = replica.trying or not self.started
        if was is Phase.STARTING and code == CONFIGURATION and asked:
            self._give_up(replica, Status.MISCONFIGURED, "cannot start", code, error)
            return
        # Once the stream flows, what cannot be built may be possible again a moment later (a file
        # that is being replaced, a server that is down): the restart policy decides.
        verdict = replica.restart.died(now, clean=replica.ended and code == 0)
        if isinstance(verdict, GiveUp):
            self._give_up(replica, Status.FAILED, verdict.reason, code, error)
            return
        self._buried(replica, done=False)
        replica.phase = Phase.WAITING
        replica.restarts += 1
        replica.launch_at = now + verdict.after
        if self.draining and replica.ended:
            replica.launch_at = now  # it has nothing left but to end
        self.actions.append(Died(replica, code, error, verdict.after, "", verdict.number))
        if self.operation is not None:
            self.operation.died(replica, "")

    def _give_up(
        self, replica: Replica, status: Status, reason: str, code: int, error: str | None
    ) -> None:
        """It is not started again. That ends the project, but for an incarnation that the operator
        has asked for: the others go on."""
        if replica.trying:
            replica.trying = False
            self._buried(replica, done=False)
            replica.phase, replica.wanted = Phase.STOPPED, Wanted.DOWN
        else:
            replica.phase = Phase.LOST
        told = f"{replica.name} cannot start" if status is Status.MISCONFIGURED else reason
        ends = replica.phase is Phase.LOST
        self.actions.append(Died(replica, code, error, None, told, ends=ends))
        if replica.phase is Phase.STOPPED:
            if self.operation is not None:
                self.operation.died(replica, reason)
            self._settle_stopped()
        elif status is Status.MISCONFIGURED:
            self._fail(status, told)
        else:
            self._fail(status, f"{replica.name} was given up: {reason}")

    def _vacated(self, replica: Replica, reason: str, now: float) -> None:
        """The application has gone without a word: its place is offered again."""
        self._buried(replica, done=False)
        replica.phase = Phase.WAITING
        replica.restarts += 1
        replica.launch_at = now
        self.actions.append(Vacated(replica, reason, orderly=False))
        if self.operation is not None:
            self.operation.died(replica, "")

    def _buried(self, replica: Replica, done: bool) -> None:
        self.actions.append(Bury(replica, replica.incarnation))
        self._announce(replica, replica.incarnation, done)

    def _left(self, replica: Replica) -> None:
        """A process has ended as it was to."""
        replica.leaving = False
        if self.operation is not None:
            self.operation.ended(replica)
        self._settle_stopped()
        self._check_over()

    def had_in_hand(self, replica: Replica, link: int, id: bytes, index: int) -> None:
        """A replica died by itself while it handled that message carefully.

        Call it before `exited`. The second time it is the message that kills, and not chance.
        """
        suspect = (link, id, index)
        self._suspects[suspect] = self._suspects.get(suspect, 0) + 1
        if self._suspects[suspect] != DEATHS_IN_HAND:
            return
        # What it died of is known and will not come again: those deaths use up no restarts.
        for one in self.replicas_of(replica.node):
            one.restart = RestartState(one.restart.policy)
        poison = control.Poison(link, id, index)
        self._poisons[replica.node].append(poison)
        self.actions.append(Poisoned(replica, poison))
        for other in self.replicas_of(replica.node):
            if other.phase is Phase.READY and other is not replica:
                self.tell(other, poison)

    def drain(self) -> None:
        """Stop the sources; everything else ends when its inputs have ended."""
        if self.draining or self.status is not Status.RUNNING:
            return
        self.draining = True
        if not self.started:
            # Nothing was read yet, so there is nothing to drain.
            self._fail(Status.DRAINED, "stopped while starting")
            return
        if self.operation is not None:
            self.operation.abandon("the project is being drained")
        for replica in self._sources():
            if replica.phase is Phase.READY:
                self.tell(replica, control.Drain())
            elif replica.ended and replica.launch_at is not None:
                replica.launch_at = 0.0  # there is nothing to wait for: it is only to end
        self._settle_stopped()

    def kill(self, status: Status = Status.KILLED, reason: str = "killed") -> None:
        """End everything now."""
        if self.status is Status.RUNNING:
            self._fail(status, reason)
        else:
            self._kill_all()

    # -- what operations use -------------------------------------------------------------------

    def operate(self, operation: Operation, now: float) -> None:
        """Begin an operation; `Completed` follows. There must be none."""
        if self.operation is not None or self.status is not Status.RUNNING:
            raise AssertionError("another operation is under way, or the project has ended")
        self.operation = operation
        operation.begin(now)

    def complete(self, error: str = "") -> None:
        """The operation is over."""
        operation, self.operation = self.operation, None
        if operation is not None:
            self.actions.append(Completed(operation, error))

    def add(self, member: Member, number: int, origin: int) -> Replica:
        """A replica that is to be launched when its `launch_at` is set. One that was removed
        before goes on with its incarnations, in another life."""
        self._poisons.setdefault(member.name, [])
        state = RestartState(member.policy)
        replica = self.replicas.get((member.name, number))
        if replica is None:
            replica = Replica(member.name, number, state, member.source, member.stateful)
            replica.origin, replica.external = origin, member.external
            replica.begins = member.source or member.begins
            self.replicas[member.name, number] = replica
            return replica
        replica.restart, replica.source, replica.stateful = state, member.source, member.stateful
        replica.begins, replica.external = member.source or member.begins, member.external
        replica.phase, replica.wanted = Phase.WAITING, Wanted.UP
        replica.discarded = replica.known = False
        replica.life += 1
        return replica

    def adopt(self, operation: Operation, links: Sequence[Terms]) -> None:
        """The links are these from now on."""
        self.links = links
        self.edition += 1
        self.actions.append(Adopt(operation))

    def restore(self, operation: Operation) -> None:
        """What `operation` has brought does not hold any more. The links are the same."""
        self.actions.append(Restore(operation))

    def resize(self, replica: Replica, round: int) -> None:
        """Tell a replica what sizes its links have."""
        replica.edition = self.edition
        mine = [link for link in self.links if replica.node in (link.source, link.target)]
        sizes = [
            control.Size(link.index, link.producers, link.consumers, link.version) for link in mine
        ]
        self.tell(replica, control.Resize(round, len(self.replicas_of(replica.node)), sizes))

    def start_sources(self) -> None:
        """Tell the sources that wait for it to begin."""
        if not self._sources_run or (self.operation is not None and self.operation.pausing):
            return
        for replica in self._sources():
            ready = replica.phase is Phase.READY and replica.wanted is Wanted.UP
            if ready and not replica.begun:
                replica.begun = True
                self.tell(replica, control.Start())

    def producers_of(self, node: str) -> list[Replica]:
        """The replicas of all nodes that have a link to `node`."""
        sources = dict.fromkeys(link.source for link in self.links if link.target == node)
        return [replica for source in sources for replica in self.replicas_of(source)]

    def replicas_of(self, node: str) -> list[Replica]:
        """Those that have not been removed."""
        return [
            replica
            for replica in self.replicas.values()
            if replica.node == node and replica.phase is not Phase.REMOVED
        ]

    def tell(self, replica: Replica, message: control.FromSupervisor) -> None:
        self.actions.append(Tell(replica, message))

    def drop(self, replica: Replica) -> None:
        """It has no process, and is to have none: nothing will come from it any more."""
        replica.launch_at = None
        replica.phase = Phase.REMOVED
        self._announce(replica, replica.incarnation, done=True)

    def end(self, replica: Replica) -> None:
        """Kill its process; what was wanted of it says what comes then."""
        self.actions.append(Kill(replica))

    # -- inside --------------------------------------------------------------------------------

    def _check_started(self) -> None:
        """Everybody is ready, but for those whom nobody waits for: sources begin."""
        if self.started or not all(
            one.phase is Phase.READY or one.external for one in self.replicas.values()
        ):
            return
        self.started = True
        self.actions.append(Started())
        self.start_sources()

    def _settle_stopped(self) -> None:
        """A replica that is stopped, or absent, ends with its producers: nothing waits for it. If
        it is a source it ends when the project is drained."""
        moved = True
        while moved:
            moved = False
            for replica in self.replicas.values():
                if replica.phase is not Phase.STOPPED and not replica.absent:
                    continue
                producers = self.producers_of(replica.node)
                ended = self.draining or not replica.begins
                if ended and all(one.done for one in producers):
                    if replica.absent:
                        replica.absent = False
                        self.actions.append(Kill(replica))  # the offer
                    replica.phase = Phase.ENDED
                    self._announce(replica, replica.incarnation, done=True)
                    moved = True
        self._check_over()

    def _sources(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.begins]

    def _fail(self, status: Status, reason: str) -> None:
        self.status = status
        self.reason = reason
        self.complete(f"the project ended: {reason}")
        self._kill_all()
        self._check_over()

    def _kill_all(self) -> None:
        for replica in self.replicas.values():
            replica.launch_at = None
            if replica.absent:
                replica.absent = False
                replica.phase = Phase.ENDED
                self.actions.append(Kill(replica))
            elif replica.phase in (Phase.STARTING, Phase.READY, Phase.DONE):
                self.actions.append(Kill(replica))
            elif replica.phase is Phase.WAITING:
                replica.phase = Phase.LOST
            elif replica.phase is Phase.STOPPED:
                replica.phase = Phase.ENDED

    def _check_over(self) -> None:
        if all(replica.over for replica in self.replicas.values()):
            if self.status is Status.RUNNING:
                self.status = Status.DRAINED
            self.complete("the project has ended")
            if not any(isinstance(action, Over) for action in self.actions):
                self.actions.append(Over())

    def introduce(self, replica: Replica) -> None:
        """Tell `replica` where its producers are, and its consumers where it is."""
        replica.introduced = replica.known = True
        for poison in self._poisons[replica.node]:
            self.tell(replica, poison)
        for link in self.links:
            if link.target == replica.node:
                for producer in self.replicas.values():
                    if producer.node != link.source or producer.number >= link.producers:
                        continue
                    if producer.done:  # also one that is removed, and counts still
                        gone = control.Gone(
                            producer.node, producer.number, producer.incarnation, True
                        )
                        self.tell(replica, gone)
                    elif producer.introduced and producer.phase is Phase.READY:
                        self.tell(replica, self._whereabouts(link, producer))
            if link.source == replica.node:
                for consumer in self.replicas_of(link.target):
                    if consumer.introduced and consumer.phase is Phase.READY:
                        self.tell(consumer, self._whereabouts(link, replica))

    def _whereabouts(self, link: Terms, producer: Replica) -> control.ProducerAt:
        return control.ProducerAt(
            link.index, producer.number, producer.incarnation, producer.addresses[link.index]
        )

    def _announce(self, replica: Replica, incarnation: int, done: bool) -> None:
        """Tell all peers of `replica` that it is dead, or done."""
        if not replica.known:
            return
        message = control.Gone(replica.node, replica.number, incarnation, done)
        peers = {link.target for link in self.links if link.source == replica.node}
        peers |= {link.source for link in self.links if link.target == replica.node}
        for other in self.replicas.values():
            # One that is not introduced yet will be told then, with all that is true by then.
            if other.node in peers and other.phase is Phase.READY and other.introduced:
                self.tell(other, message)
