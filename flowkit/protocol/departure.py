"""One replica leaves while the others go on: to stop, or for another incarnation of it.

Nothing is delivered twice on this way. Its producers give it nothing new, and say when it has
acknowledged everything (HOLDING); then it is asked to rest, so that what it sent is acknowledged,
too (RESTING); then it is told to leave, without `finish()`, since its stream has not ended. What
its producers have for it waits: on a link to several replicas without keys the others take it.

A replica that does not come to rest in time is killed. What it had in hand is delivered again.
"""

from __future__ import annotations

from enum import Enum

from flowkit.protocol import control
from flowkit.protocol.project import Operation, Phase, Project, Replica, Wanted

KILLED_WITHIN = 30.0
"""Seconds that a process may take to vanish once it is killed; only the kernel can be so slow."""


class Step(Enum):
    HOLDING = "holding"
    RESTING = "resting"
    LEAVING = "leaving"
    STARTING = "starting"


class Departure(Operation):
    """`replica` leaves; `again` if another incarnation is to follow, `down` if it is to stay away.

    `limit` is how many seconds it may take to come to rest, and its successor to be ready.
    """

    def __init__(self, project: Project, replica: Replica, again: bool, limit: float) -> None:
        self.replica = replica
        self.again = again
        self.forced = False
        """Whether it was killed, since it did not come to rest."""
        self.step = Step.HOLDING
        self._project = project
        self._limit = limit
        self._awaited: dict[Replica, int] = {}
        self._round = 0

    # -- what happens --------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        replica = self.replica
        self.allow(self._limit)
        if not self.again and not replica.over:
            replica.wanted = Wanted.DOWN
        match replica.phase:
            case Phase.READY:
                self._hold(True)
                if self._awaited:
                    # Groups of messages wait for no company, and timers begin nothing more. What it
                    # answers to this is not the answer that counts.
                    self._project.tell(replica, control.Rest(self._round, leaving=True))
                self._advance()
            case Phase.STARTING if self.again:
                self.step = Step.STARTING
            case Phase.WAITING if self.again:
                self.step = Step.STARTING
                replica.launch_at = now
            case Phase.STARTING:
                self.step = Step.LEAVING
                self._project.end(replica)
            case Phase.WAITING:
                replica.launch_at = None
                replica.phase = Phase.STOPPED
                self._project.complete()
            case Phase.STOPPED if not self.again:
                self._project.complete()
            case Phase.STOPPED:
                self._project.complete(f"{replica.name} is stopped: start it")
            case _:
                replica.wanted = Wanted.UP
                self._project.complete(f"{replica.name} has ended")

    def ready(self, replica: Replica) -> None:
        if replica is self.replica:
            if self.step is not Step.LEAVING:
                self._project.complete()
            return
        if self.step is not Step.STARTING and replica in self._producers():
            # It was not there when the others were asked; what was true without it is not now.
            self._tell_hold(replica, True)
            if self.step is Step.RESTING:
                self.step = Step.HOLDING

    def held(self, producer: Replica, node: str, number: int) -> None:
        mine = (node, number) == (self.replica.node, self.replica.number)
        if mine and self._awaited.get(producer) == producer.incarnation:
            del self._awaited[producer]
            self._advance()

    def resting(self, replica: Replica, round: int) -> None:
        if replica is self.replica and self.step is Step.RESTING and round == self._round:
            self.step = Step.LEAVING
            replica.leaving = True
            self._project.tell(replica, control.Leave())

    def ended(self, replica: Replica) -> None:
        if replica is not self.replica:
            self._advance()
            return
        self._hold(False)
        if replica.phase is Phase.WAITING:
            self.step = Step.STARTING
            self.allow(self._limit)
        else:
            # Its stream may have ended before it was told to leave.
            ended = self.again and replica.done
            self._project.complete(f"{replica.name} has ended meanwhile" if ended else "")

    def died(self, replica: Replica, reason: str) -> None:
        if replica is not self.replica:
            self._awaited.pop(replica, None)  # it is asked again when it is back
            self._advance()
            return
        # By itself: what it was asked is void, and the restart policy has its way.
        self._hold(False)
        self.step = Step.STARTING
        self.allow(self._limit)
        if reason:
            self._project.complete(f"{replica.name} {reason}; it is stopped now")

    def too_late(self) -> None:
        replica = self.replica
        if self.step is Step.STARTING:
            self._project.complete(f"{replica.name} has not become ready in {self._limit:g} s")
            return
        self.forced = replica.leaving = True
        self.step = Step.LEAVING
        self.allow(KILLED_WITHIN)
        self._project.end(replica)

    # -- inside --------------------------------------------------------------------------------

    def _producers(self) -> list[Replica]:
        return [
            producer
            for producer in self._project.producers_of(self.replica.node)
            if producer.phase is Phase.READY
        ]

    def _hold(self, on: bool) -> None:
        self._awaited = {}
        for producer in self._producers():
            self._tell_hold(producer, on)

    def _tell_hold(self, producer: Replica, on: bool) -> None:
        if on:
            self._awaited[producer] = producer.incarnation
        hold = control.Hold(self.replica.node, self.replica.number, on)
        self._project.tell(producer, hold)

    def _advance(self) -> None:
        """All producers that live have answered: those that do not have nothing on the way."""
        if self.step is not Step.HOLDING:
            return
        if any(
            producer.phase is Phase.READY and producer.incarnation == incarnation
            for producer, incarnation in self._awaited.items()
        ):
            return
        self.step = Step.RESTING
        self._round += 1
        self._project.tell(self.replica, control.Rest(self._round, leaving=True))


class Withdrawal(Departure):
    """An external replica leaves with its application; it is over when the replica has left."""

    def __init__(self, project: Project, replica: Replica, limit: float) -> None:
        super().__init__(project, replica, again=True, limit=limit)

    def begin(self, now: float) -> None:
        if self.replica.phase is Phase.READY:
            super().begin(now)
        else:
            self._project.complete()  # it holds nothing

    def ended(self, replica: Replica) -> None:
        super().ended(replica)
        if replica is self.replica and self.step is Step.STARTING:
            self._project.complete()

    def died(self, replica: Replica, reason: str) -> None:
        super().died(replica, reason)
        if replica is self.replica:
            self._project.complete()


class Arrival(Operation):
    """A replica that was stopped is started again."""

    def __init__(self, project: Project, replica: Replica, limit: float) -> None:
        self.replica = replica
        self._project = project
        self._limit = limit

    def begin(self, now: float) -> None:
        replica = self.replica
        if replica.phase is not Phase.STOPPED:
            self._project.complete(f"{replica.name} has ended" if replica.done else "")
            return
        self.allow(self._limit)
        replica.wanted, replica.trying = Wanted.UP, True
        replica.phase = Phase.WAITING
        replica.launch_at = now

    def ready(self, replica: Replica) -> None:
        if replica is self.replica:
            self._project.complete()

    def died(self, replica: Replica, reason: str) -> None:
        if replica is self.replica and reason:
            self._project.complete(f"{replica.name} {reason}; it is stopped still")

    def too_late(self) -> None:
        name = self.replica.name
        self._project.complete(f"{name} has not become ready in {self._limit:g} s")
