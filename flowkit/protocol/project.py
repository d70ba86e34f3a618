"""The life of a whole project: which replica is started when, who is told what, how it ends.

Told of what happens (`ready`, `done`, `exited`, a signal), it answers with actions for the
supervisor to carry out. Every replica goes the same way::

    WAITING -> STARTING -> READY -> DONE -> (process ends) ENDED
       ^          |          |
       +----------+----------+  it died: announced, and started again after a back-off

A death is announced to all peers of the replica before its next incarnation is started, so that
what it had not acknowledged is delivered to others; only then can no two of it be at work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from flowkit.protocol import control
from flowkit.protocol.events import Terms
from flowkit.protocol.restart import GiveUp, RestartPolicy, RestartState

CONFIGURATION = 2
"""The exit code of a replica that cannot start as it is configured: starting again is no use."""


DEATHS_IN_HAND = 2
"""How many careful deaths a message must have been in hand at to be held responsible."""


class Phase(Enum):
    """Where one replica stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    ENDED = "ended"
    LOST = "lost"
    """Given up, or killed at the end."""


class Status(Enum):
    """How a project ended, or that it has not."""

    RUNNING = "running"
    DRAINED = "drained"
    FAILED = "failed"
    """A node was given up."""
    MISCONFIGURED = "misconfigured"
    """A node cannot start as it is configured."""
    STOPPED = "stopped"
    """The error policy of a node asked for it."""
    TIMED_OUT = "timed out"
    """It was not drained in time."""
    KILLED = "killed"


class Member(NamedTuple):
    """What the project knows of a node before it starts."""

    name: str
    replicas: int
    policy: RestartPolicy
    source: bool
    stateful: bool


@dataclass(slots=True)
class Replica:
    """One replica, over all its incarnations."""

    node: str
    number: int
    restart: RestartState
    source: bool
    stateful: bool
    phase: Phase = Phase.WAITING
    incarnation: int = 0
    restarts: int = 0
    lost_state: bool = False
    ended: bool = False
    """Whether the incarnation has said that its stream has ended and that it wants another."""
    addresses: Mapping[int, str] = field(default_factory=dict)
    launch_at: float | None = None

    @property
    def name(self) -> str:
        return f"{self.node}.{self.number}"

    @property
    def over(self) -> bool:
        return self.phase in (Phase.ENDED, Phase.LOST)


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
    stream has ended, and the policy is "always".
    """

    replica: Replica
    code: int
    error: str | None
    delay: float | None
    reason: str
    number: int = 1


class Over(NamedTuple):
    """Every replica has ended; the project's status says how."""


Action = Launch | Tell | Kill | Bury | Poisoned | Started | Died | Over


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
        self._links = links
        self.replicas = {
            (member.name, number): Replica(
                member.name,
                number,
                RestartState(member.policy),
                member.source,
                member.stateful,
            )
            for member in members
            for number in range(member.replicas)
        }

    # -- what happens --------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start everything."""
        for replica in self.replicas.values():
            replica.launch_at = now
        self.tick(now)

    def tick(self, now: float) -> None:
        """Call when `wake_at` has come."""
        if self.status is not Status.RUNNING:
            return
        for replica in self.replicas.values():
            if replica.launch_at is not None and replica.launch_at <= now:
                replica.launch_at = None
                replica.incarnation += 1
                replica.phase = Phase.STARTING
                replica.ended = False
                self.actions.append(Launch(replica))

    @property
    def wake_at(self) -> float | None:
        """When `tick` is due next; None if nothing waits."""
        times = [replica.launch_at for replica in self.replicas.values()]
        return min((time for time in times if time is not None), default=None)

    def ready(self, node: str, number: int, incarnation: int, addresses: Mapping[int, str]) -> bool:
        """A replica has set itself up. False if it is not the one that should speak: ignore it."""
        replica = self.replicas.get((node, number))
        if replica is None or replica.incarnation != incarnation:
            return False
        if replica.phase is not Phase.STARTING:
            return False
        replica.phase = Phase.READY
        replica.addresses = addresses
        self._introduce(replica)
        if self.started:
            if replica.source and self._sources_run:
                self._tell(replica, control.Start())
        elif all(other.phase is Phase.READY for other in self.replicas.values()):
            self.started = True
            self.actions.append(Started())
            for other in self._sources() if self._sources_run else ():
                self._tell(other, control.Start())
        if self.draining and replica.source:
            self._tell(replica, control.Drain())
        return True

    def done(self, replica: Replica, incarnation: int) -> None:
        """A replica has closed its inputs and all it sent is acknowledged."""
        if replica.incarnation != incarnation or replica.phase is not Phase.READY:
            return
        replica.phase = Phase.DONE
        self._tell(replica, control.Released())
        self._announce(replica, incarnation, done=True)

    def stream_ended(self, replica: Replica, incarnation: int) -> None:
        """A source's stream has ended, all of it is done, and its policy is to begin again."""
        if replica.incarnation == incarnation and replica.phase is Phase.READY:
            replica.ended = True
            self._tell(replica, control.Released())

    def stop(self, replica: Replica, incarnation: int, reason: str) -> None:
        """A replica's error policy asks to stop the project."""
        if replica.incarnation == incarnation and self.status is Status.RUNNING:
            self._fail(Status.STOPPED, f"{replica.name}: {reason}")

    def exited(
        self, replica: Replica, incarnation: int, code: int, error: str | None, now: float
    ) -> None:
        """The process of that incarnation has ended and been waited for."""
        if replica.incarnation != incarnation or replica.over or replica.phase is Phase.WAITING:
            return
        if replica.phase is Phase.DONE:
            # What happens after DONE costs nothing any more.
            replica.phase = Phase.ENDED
            self._check_over()
            return
        was = replica.phase
        replica.addresses = {}
        if self.status is not Status.RUNNING:
            # Nobody takes over what it had in hand: in the books that stays in flight.
            replica.phase = Phase.LOST
            self._check_over()
            return
        if replica.stateful and was is Phase.READY:
            replica.lost_state = True
        if was is Phase.STARTING and code == CONFIGURATION and not self.started:
            replica.phase = Phase.LOST
            reason = f"{replica.name} cannot start"
            self.actions.append(Died(replica, code, error, None, reason))
            self._fail(Status.MISCONFIGURED, reason)
            return
        # Once the stream flows, what cannot be built may be possible again a moment later (a file
        # that is being replaced, a server that is down): the restart policy decides.
        verdict = replica.restart.died(now, clean=replica.ended and code == 0)
        if isinstance(verdict, GiveUp):
            replica.phase = Phase.LOST
            self.actions.append(Died(replica, code, error, None, verdict.reason))
            self._fail(Status.FAILED, f"{replica.name} was given up: {verdict.reason}")
            return
        self.actions.append(Bury(replica, incarnation))
        self._announce(replica, incarnation, done=False)
        replica.phase = Phase.WAITING
        replica.restarts += 1
        replica.launch_at = now + verdict.after
        if self.draining and replica.ended:
            replica.launch_at = now  # it has nothing left but to end
        self.actions.append(Died(replica, code, error, verdict.after, "", verdict.number))

    def had_in_hand(self, replica: Replica, link: int, id: bytes, index: int) -> None:
        """A replica died by itself while it handled that message carefully.

        Call it before `exited`. The second time it is the message that kills, and not chance.
        """
        suspect = (link, id, index)
        self._suspects[suspect] = self._suspects.get(suspect, 0) + 1
        if self._suspects[suspect] != DEATHS_IN_HAND:
            return
        # What it died of is known and will not come again: those deaths use up no restarts.
        for one in self._replicas_of(replica.node):
            one.restart = RestartState(one.restart.policy)
        poison = control.Poison(link, id, index)
        self._poisons[replica.node].append(poison)
        self.actions.append(Poisoned(replica, poison))
        for other in self._replicas_of(replica.node):
            if other.phase is Phase.READY and other is not replica:
                self._tell(other, poison)

    def drain(self) -> None:
        """Stop the sources; everything else ends when its inputs have ended."""
        if self.draining or self.status is not Status.RUNNING:
            return
        self.draining = True
        if not self.started:
            # Nothing was read yet, so there is nothing to drain.
            self._fail(Status.DRAINED, "stopped while starting")
            return
        for replica in self._sources():
            if replica.phase is Phase.READY:
                self._tell(replica, control.Drain())
            elif replica.ended and replica.launch_at is not None:
                replica.launch_at = 0.0  # there is nothing to wait for: it is only to end

    def kill(self, status: Status = Status.KILLED, reason: str = "killed") -> None:
        """End everything now."""
        if self.status is Status.RUNNING:
            self._fail(status, reason)
        else:
            self._kill_all()

    # -- inside --------------------------------------------------------------------------------

    def _sources(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.source]

    def _fail(self, status: Status, reason: str) -> None:
        self.status = status
        self.reason = reason
        self._kill_all()
        self._check_over()

    def _kill_all(self) -> None:
        for replica in self.replicas.values():
            replica.launch_at = None
            if replica.phase in (Phase.STARTING, Phase.READY, Phase.DONE):
                self.actions.append(Kill(replica))
            elif replica.phase is Phase.WAITING:
                replica.phase = Phase.LOST

    def _check_over(self) -> None:
        if all(replica.over for replica in self.replicas.values()):
            if self.status is Status.RUNNING:
                self.status = Status.DRAINED
            if not any(isinstance(action, Over) for action in self.actions):
                self.actions.append(Over())

    def _introduce(self, replica: Replica) -> None:
        """Tell `replica` where its producers are, and its consumers where it is."""
        for poison in self._poisons[replica.node]:
            self._tell(replica, poison)
        for link in self._links:
            if link.target == replica.node:
                for producer in self._replicas_of(link.source):
                    if producer.phase in (Phase.DONE, Phase.ENDED):
                        gone = control.Gone(
                            producer.node, producer.number, producer.incarnation, True
                        )
                        self._tell(replica, gone)
                    elif producer.phase is Phase.READY and producer is not replica:
                        self._tell(replica, self._whereabouts(link, producer))
            if link.source == replica.node:
                for consumer in self._replicas_of(link.target):
                    if consumer.phase is Phase.READY:
                        self._tell(consumer, self._whereabouts(link, replica))

    def _whereabouts(self, link: Terms, producer: Replica) -> control.ProducerAt:
        return control.ProducerAt(
            link.index, producer.number, producer.incarnation, producer.addresses[link.index]
        )

    def _announce(self, replica: Replica, incarnation: int, done: bool) -> None:
        """Tell all peers of `replica` that it is dead, or done."""
        message = control.Gone(replica.node, replica.number, incarnation, done)
        peers = {link.target for link in self._links if link.source == replica.node}
        peers |= {link.source for link in self._links if link.target == replica.node}
        for other in self.replicas.values():
            if other.node in peers and other.phase is Phase.READY:
                self._tell(other, message)

    def _replicas_of(self, node: str) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.node == node]

    def _tell(self, replica: Replica, message: control.FromSupervisor) -> None:
        self.actions.append(Tell(replica, message))
