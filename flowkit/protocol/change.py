"""A change of the graph while it runs: replicas added, removed, renewed, links resized.

Nothing is lost and nothing doubled, because the links change only where nothing is on its way:

1. PREPARING: new replicas are started; their peers do not know them yet.
2. RESTING: from the sources on, node after node rests. A node is asked when all its producers
   rest: all they sent is acknowledged, so nothing is on its way to it. So a node that rests, rests
   for good. (All are told at once to begin nothing new; what they answer to that does not count.)
   Only what leads to the change has to rest, not what follows it.
3. RETIRING: replicas that are to go run their orderly end, in the order of the graph: their inputs
   are closed for them alone, `finish()` runs, everything is acknowledged, DONE.
4. SETTLING: what they said last is settled (only where what follows is to be started anew).
5. APPLYING: the links have their new sizes, and new key maps. Replicas that are to be renewed
   leave and come again. When everybody has done his part they are introduced to each other. If one
   does not come up, and nothing else was changed, all of them come again as they were before.
6. Sources go on. ENDING: the processes of the removed ones end.

Until RETIRING the change can be abandoned: the sources go on, and the new replicas are killed. A
replica that dies on the way is started again, by its restart policy, and asked again; what comes
after it in the graph is asked again, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from flowkit.protocol import control
from flowkit.protocol.events import Terms
from flowkit.protocol.project import Member, Operation, Phase, Project, Replica, Wanted
from flowkit.protocol.restart import RestartState

KILLED_WITHIN = 30.0
"""Seconds that processes may take to vanish once they are killed."""


class Step(Enum):
    PREPARING = "preparing"
    RESTING = "resting"
    RETIRING = "retiring"
    SETTLING = "settling"
    APPLYING = "applying"
    ENDING = "ending"


class Change(Operation):
    """The project is to have `members` and `links`; the nodes of `renewed` start all replicas anew.

    What leads to them rests, and what leads to links whose batches go other ways from now on; with
    `whole` everything. The state in memory of the nodes of `lost_state` goes with their keys: the
    report will say so. `limit` is how many seconds each step may take. `fallback` are the members
    of before, if the change renews nodes and does nothing else: then it can be taken back at rest.
    """

    def __init__(
        self,
        project: Project,
        members: Sequence[Member],
        links: Sequence[Terms],
        limit: float,
        renewed: frozenset[str] = frozenset(),
        whole: bool = False,
        lost_state: frozenset[str] = frozenset(),
        fallback: Sequence[Member] | None = None,
    ) -> None:
        self.members = {member.name: member for member in members}
        self.links = links
        self.step = Step.PREPARING
        self.notes: list[str] = []
        """What did not go as it should, for people."""
        self._project = project
        self._limit = limit
        self._renewed = renewed
        self._whole = whole
        self._lost_state = lost_state
        self._fallback = fallback
        self.added: list[Replica] = []
        self.removed: list[Replica] = []
        self._round = 0
        self._asked: dict[Replica, tuple[int, int]] = {}  # incarnation, round
        self._paused: dict[Replica, int] = {}  # incarnation
        self._rest: dict[Replica, int] = {}  # incarnation
        self._told: set[Replica] = set()  # to retire
        self._awaited: dict[Replica, int] = {}  # resizing

    # -- what happens --------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        project = self._project
        self.allow(self._limit)
        for replica in list(project.replicas.values()):
            member = self.members.get(replica.node)
            gone = member is None or replica.number >= member.replicas
            if gone and replica.phase is not Phase.REMOVED:
                self.removed.append(replica)
        origins = max((one.origin for one in project.replicas.values()), default=0)
        journals = [one.origin + one.producers for one in project.links if one.durable]
        origins = max([origins, *journals])
        for member in self.members.values():
            have = {one.number for one in project.replicas_of(member.name)}
            for number in range(member.replicas):
                if number not in have:
                    origins += 1
                    replica = project.add(member, number, origins)
                    replica.launch_at = now
                    replica.trying, replica.known = True, False
                    self.added.append(replica)
        self._advance()

    def defers(self, replica: Replica) -> bool:
        if self.step is Step.APPLYING:
            return True
        return replica in self.added and self.step is not Step.ENDING

    def ready(self, replica: Replica) -> None:
        if self.step is Step.RESTING and replica in self._restless():
            self._calm(replica)
        if self.step in (Step.RETIRING, Step.SETTLING, Step.APPLYING):
            # It died while everything rests, and has nothing to do before the others have.
            if replica.node in self._resting_nodes() and replica not in self.removed:
                self._ask(replica)
        self._advance()

    def ended(self, replica: Replica) -> None:
        self._advance()

    def died(self, replica: Replica, reason: str) -> None:
        if reason:
            self.notes.append(f"{replica.name} {reason}")
            if replica in self.added:
                self.abandon(f"{replica.name} {reason}")
                return
            if self.step is Step.APPLYING and replica.node in self._renewed and self._fall_back():
                return
        self._asked.pop(replica, None)
        self._rest.pop(replica, None)
        self._told.discard(replica)
        self._forget_after({replica.node})
        self._advance()

    def resting(self, replica: Replica, round: int) -> None:
        if self._asked.get(replica) == (replica.incarnation, round):
            self._rest[replica] = replica.incarnation
            self._advance()

    def resized(self, replica: Replica, round: int) -> None:
        if self._awaited.get(replica) == replica.incarnation:
            del self._awaited[replica]
            self._advance()

    def too_late(self) -> None:
        match self.step:
            case Step.PREPARING:
                names = _names(one for one in self.added if one.phase is not Phase.READY)
                self.abandon(f"{names} did not become ready in {self._limit:g} s")
            case Step.RESTING:
                names = _names(self._restless())
                self.abandon(f"{names} did not come to rest in {self._limit:g} s")
            case Step.RETIRING:
                self.allow(KILLED_WITHIN)
                for replica in self.removed:
                    if not replica.done:
                        self._discard(replica)
                self._advance()
            case Step.SETTLING:
                self._apply()
                self._advance()
            case Step.APPLYING:
                self.allow(KILLED_WITHIN)
                stuck = [one for one in self._awaited if self._waits_for(one)]
                stuck += [one for one in self._project.replicas.values() if one.leaving]
                for replica in stuck:
                    self._project.end(replica)
                if not stuck:
                    late = [one for one in self._present() if one.phase is not Phase.READY]
                    self.notes += [f"{one.name} is not ready yet" for one in late]
                    if late and self._fall_back():
                        return
                    self._go_on()
                    self._advance()
            case Step.ENDING:
                names = _names(one for one in self.removed if one.phase is not Phase.REMOVED)
                self.notes.append(f"{names} has not ended yet")
                self._complete()

    def abandon(self, reason: str) -> bool:
        if self.step not in (Step.PREPARING, Step.RESTING):
            return False
        for replica in self.added:
            replica.wanted, replica.discarded = Wanted.GONE, True
            if replica.phase in (Phase.WAITING, Phase.STOPPED):
                replica.launch_at = None
                replica.phase = Phase.REMOVED
            elif not replica.over:
                self._project.end(replica)
        self._resume()
        self._project.complete(f"{reason}; nothing was changed")
        return True

    # -- the steps -----------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go as far as it goes."""
        if self.step is Step.PREPARING and all(one.phase is Phase.READY for one in self.added):
            self._enter(Step.RESTING)
            self.pausing = True
            for replica in self._restless():
                self._calm(replica)
        if self.step is Step.RESTING:
            self._ask_for_rest()
            if not self._restless():
                ended = self._ended_meanwhile()
                if ended:
                    self.abandon(f"{_names(ended)} has ended meanwhile")
                    return
                self._enter(Step.RETIRING)
                for replica in self.removed:
                    replica.wanted = Wanted.GONE
                    if replica.phase in (Phase.ENDED, Phase.STOPPED):
                        self._project.drop(replica)
        if self.step is Step.RETIRING:
            self._retire()
            if all(one.done for one in self.removed):
                self._enter(Step.SETTLING)
                self._forget_after({one.node for one in self.removed})
        if self.step is Step.SETTLING:
            self._ask_for_rest()
            if not self._whole or not self._restless():
                self._apply()
        if self.step is Step.APPLYING and self._applied:
            self._go_on()
        if self.step is Step.ENDING and all(one.phase is Phase.REMOVED for one in self.removed):
            self._complete()

    def _enter(self, step: Step) -> None:
        self.step = step
        self.allow(self._limit)

    def _calm(self, replica: Replica) -> None:
        """Let it begin nothing more: its timers pause, and groups of messages wait for no company,
        which would not come. What it answers to this is not the answer that counts."""
        if replica.phase is Phase.READY:
            self._paused[replica] = replica.incarnation
            self._project.tell(replica, control.Rest(0))

    def _ask(self, replica: Replica) -> None:
        self._round += 1
        self._asked[replica] = replica.incarnation, self._round
        self._paused[replica] = replica.incarnation
        self._project.tell(replica, control.Rest(self._round))

    def _ended_meanwhile(self) -> list[Replica]:
        """Those whose stream has ended by itself, so that new ones would come too late. From now
        on that cannot happen: they rest, and what follows them waits for their end."""
        touched = {replica.node for replica in self.added + self.removed} | self._renewed
        touched |= {link.target for link in self.links if link.source in touched}
        return [
            replica
            for replica in self._project.replicas.values()
            if replica.node in touched and replica.phase in (Phase.DONE, Phase.ENDED)
        ]

    def _ask_for_rest(self) -> None:
        for replica in self._restless():
            if replica.phase is Phase.WAITING and replica.ended:
                replica.launch_at = 0.0  # its stream begins again later, but it has to rest now
            if replica.phase is not Phase.READY or replica in self._told:
                continue
            # Those that were added have sent nothing yet: nobody knows them.
            producers = set(self._project.producers_of(replica.node)) - set(self.added)
            asked = self._asked.get(replica, (0, 0))[0] == replica.incarnation
            if not asked and all(self._rests(one) for one in producers):
                self._ask(replica)

    def _rests(self, replica: Replica) -> bool:
        absent = replica.absent  # it holds nothing, and is told when it comes
        return replica.done or absent or self._rest.get(replica) == replica.incarnation

    def _restless(self) -> list[Replica]:
        """Those that are to rest, and do not."""
        nodes = self._resting_nodes()
        return [
            replica
            for replica in self._project.replicas.values()
            if replica.node in nodes
            and replica not in self.added
            and replica.phase is not Phase.STOPPED
            and not self._rests(replica)
        ]

    def _resting_nodes(self) -> set[str]:
        """The nodes whose replicas change, those whose links do, and all that lead there."""
        links = self._project.links
        if self._whole:
            return {replica.node for replica in self._project.replicas.values()}
        nodes = {replica.node for replica in self.added + self.removed} | self._renewed
        ways = {(link.index, link.consumers, link.version) for link in self.links}
        nodes |= {
            link.target for link in links if (link.index, link.consumers, link.version) not in ways
        }
        while True:
            more = {link.source for link in links if link.target in nodes} - nodes
            if not more:
                return nodes
            nodes |= more

    def _forget_after(self, nodes: set[str]) -> None:
        """What follows `nodes` in the graph is to be asked for rest again."""
        links = self._project.links
        after: set[str] = set()
        while more := {one.target for one in links if one.source in nodes | after} - after:
            after |= more
        for replica in list(self._asked):
            if replica.node in after:
                self._asked.pop(replica, None)
                self._rest.pop(replica, None)

    def _retire(self) -> None:
        for replica in self.removed:
            producers = set(self._project.producers_of(replica.node)) & set(self.removed)
            ready = replica.phase is Phase.READY and replica not in self._told
            if ready and all(one.done for one in producers):
                self._told.add(replica)
                self._project.tell(replica, control.Retire())

    def _discard(self, replica: Replica) -> None:
        self.notes.append(f"{replica.name} did not end in {self._limit:g} s and was killed")
        replica.discarded = True
        if replica.phase in (Phase.WAITING, Phase.STOPPED):
            self._project.drop(replica)
        else:
            self._project.end(replica)

    def _apply(self) -> None:
        project = self._project
        self._enter(Step.APPLYING)
        before = {link.index: link for link in project.links}
        counts = {one.node: 0 for one in project.replicas.values()}
        for replica in self.added + self.removed:
            counts[replica.node] += 1
        project.adopt(self, self.links)
        for replica in self._present():
            self._become(replica, self.members[replica.node])
            if replica.node in self._lost_state and replica not in self.added:
                replica.lost_state = True
            if replica.phase is not Phase.READY:
                continue
            changed = counts[replica.node] or any(
                before.get(link.index) != link
                for link in self.links
                if replica.node in (link.source, link.target)
            )
            if replica.node in self._renewed and replica not in self.added:
                replica.leaving = True
                project.tell(replica, control.Leave())
            elif changed:
                self._awaited[replica] = replica.incarnation
                project.resize(replica, self._round)
            else:
                replica.edition = project.edition

    def _fall_back(self) -> bool:
        """Start the renewed ones as they were before, since one of them does not come up. Everybody
        rests, so nothing is lost. False if that cannot be, or was done."""
        if self._fallback is None:
            return False
        before, self._fallback = {one.name: one for one in self._fallback}, None
        self._project.restore(self)
        self._enter(Step.APPLYING)
        for replica in self._present():
            self._become(replica, before[replica.node])
            if replica.node not in self._renewed:
                continue
            # What it died of will not come again.
            replica.restart = RestartState(before[replica.node].policy)
            if replica.phase is Phase.STOPPED or replica.phase is Phase.WAITING:
                replica.phase, replica.wanted = Phase.WAITING, Wanted.UP
                replica.trying, replica.launch_at = True, 0.0
            elif replica.phase is Phase.STARTING:
                replica.leaving = True
                self._project.end(replica)
            elif replica.phase is Phase.READY and not replica.leaving:
                replica.leaving = True
                self._project.tell(replica, control.Leave())
        self.notes.append("what ran before runs again, nothing was changed")
        return True

    def _become(self, replica: Replica, member: Member) -> None:
        if replica.restart.policy != member.policy:
            replica.restart = RestartState(member.policy)
        replica.source, replica.stateful = member.source, member.stateful
        replica.begins = member.source or member.begins

    def _waits_for(self, replica: Replica) -> bool:
        same = self._awaited.get(replica) == replica.incarnation
        return same and replica.phase is Phase.READY

    def _present(self) -> list[Replica]:
        """The replicas that there are to be."""
        return [
            replica
            for replica in self._project.replicas.values()
            if replica not in self.removed and not replica.over
        ]

    @property
    def _applied(self) -> bool:
        """Whether everybody has the new links, and whoever was to be started is ready."""
        return not any(self._waits_for(one) for one in self._awaited) and all(
            (replica.phase in (Phase.READY, Phase.DONE, Phase.STOPPED) or replica.absent)
            and not replica.leaving
            for replica in self._present()
            if replica in self.added or replica.node in self._renewed
        )

    def _go_on(self) -> None:
        """Everybody has the new links: let them meet, and let the sources go on."""
        self._enter(Step.ENDING)
        for replica in self._present():
            if replica.phase is Phase.READY and not replica.introduced:
                self._project.introduce(replica)
        self._resume()

    def _resume(self) -> None:
        self.pausing = False
        for replica, incarnation in self._paused.items():
            if replica.incarnation == incarnation and replica.phase is Phase.READY:
                self._project.tell(replica, control.Resume())
        self._project.start_sources()

    def _complete(self) -> None:
        self.deadline = None
        self._project.complete("; ".join(self.notes))


def _names(replicas: object) -> str:
    return ", ".join(replica.name for replica in replicas)  # type: ignore[attr-defined]
