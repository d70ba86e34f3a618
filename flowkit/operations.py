"""What an operator does to a running project: scale, restart, stop, start.

The core decides how (`flowkit.protocol.change`, `flowkit.protocol.departure`); this looks whether
it can be done at all, does one thing after the other, and answers when it is true.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from flowkit.clock import Clock
from flowkit.errors import OperatorError, UnknownName
from flowkit.importing import did_you_mean
from flowkit.protocol.change import Change
from flowkit.protocol.departure import Arrival, Departure, Withdrawal
from flowkit.protocol.project import (
    Completed,
    Died,
    Member,
    Operation,
    Phase,
    Project,
    Replica,
    Restore,
    Status,
)
from flowkit.protocol.restart import RestartPolicy
from flowkit.runtime import descriptors, spec
from flowkit.topology.changes import Changes, Refusal, changes, refusals, scaled
from flowkit.topology.code import Topology
from flowkit.topology.plan import LinkPlan, Plan, foreign_links
from flowkit.transport.zmq import raise_file_limit
from flowkit.watching import Watching

if TYPE_CHECKING:
    from flowkit.supervisor import Supervisor

T = TypeVar("T")

Given = str | os.PathLike[str] | Topology | Plan
"""A topology: its file, one that was made in Python, or what was made of it."""

LIMIT = 30.0
"""Seconds that each step of a change may take: to start what is new, to come to rest, to end."""


class ChangeError(OperatorError):
    """A change of the running project was refused, or did not succeed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is true now; `seconds` is how long it took, None if it was so before. `notes`: what the
    operator should know besides."""

    text: str
    seconds: float | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        took = "" if self.seconds is None else f" in {self.seconds:.1f} s"
        return "; ".join([self.text + took, *self.notes])


def members_of(plan: Plan) -> list[Member]:
    """The nodes of `plan`, as the core knows them."""
    return [
        Member(
            node.name,
            node.replicas,
            RestartPolicy(
                node.restart.policy,  # type: ignore[arg-type]  # checked with the file
                node.restart.max,
                node.restart.window,
                node.restart.backoff,
                node.restart.backoff_max,
            ),
            node.source,
            node.stateful,
            node.origin,
            node.begins,
            node.external,
        )
        for node in plan.nodes
    ]


class Operations:
    """The changes of one running project, one at a time; others wait their turn."""

    def __init__(
        self, supervisor: Supervisor, project: Project, directory: str, clock: Clock
    ) -> None:
        self.limit = LIMIT
        self.former: list[LinkPlan] = []
        """Links that were taken out: their books stay."""
        self.on_plan: list[Callable[[Plan], object]] = []
        """Called with the plan that holds from now on, whoever has asked for it."""
        self.later: list[Callable[[], None]] = []
        """What is to be done once the change that is under way is over."""
        self._supervisor = supervisor
        self._directory = directory
        self._project = project
        self._clock = clock
        self._closed = False
        self._turn = asyncio.Lock()
        self._plans: dict[Operation, Plan] = {}
        self._before: dict[Operation, Plan] = {}
        self._futures: dict[Operation, asyncio.Future[str]] = {}
        self._cause = ""
        """What a replica that was given up has said last, during this operation."""
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- what the operator asks ----------------------------------------------------------------

    async def scale(self, replicas: Mapping[str, int], lose_state: bool) -> Outcome:
        return await self._finish(self._scale(replicas, lose_state))

    async def restart(self, node: str, number: int | None) -> Outcome:
        return await self._finish(self._restart(node, number))

    async def stop(self, node: str) -> Outcome:
        return await self._finish(self._stop(node))

    async def start(self, node: str) -> Outcome:
        return await self._finish(self._start(node))

    async def withdraw(self, node: str, number: int, limit: float) -> None:
        """Let an external replica leave, with nothing in hand; by force after `limit` seconds."""
        await self._finish(self._withdraw(node, number, limit))

    async def reload(self, topology: Given | None, lose_state: bool) -> Outcome:
        return await self._finish(self._reload(topology, lose_state))

    async def take_in(
        self, plan: Plan, code_changed: Sequence[str], file_changed: bool
    ) -> Outcome | None:
        """Become `plan`, then restart the nodes whose code has changed; state in memory is lost.
        None if nothing has to be done. If the file has not changed, numbers of replicas stay what
        the operator has made them."""
        if not file_changed:
            plan = scaled(plan, {one.name: one.replicas for one in self._supervisor.plan.nodes})
        return await self._finish(self._take_in(plan, code_changed))

    def changes(self, topology: Given, lose_state: bool) -> Changes:
        """What is between the running project and `topology`."""
        plan = self._supervisor.load(topology)
        return changes(self._supervisor.plan, plan, self.former, lose_state)

    @property
    def plan(self) -> Plan:
        """What runs now."""
        return self._supervisor.plan

    @property
    def stopped(self) -> list[str]:
        """The nodes of which a replica is stopped."""
        replicas = self._project.replicas.values()
        return list(dict.fromkeys(one.node for one in replicas if one.phase is Phase.STOPPED))

    # -- how it is done ------------------------------------------------------------------------

    async def watch(self) -> None:
        """Take in what changes in the files of the project, until cancelled."""
        await Watching(self._supervisor, self.take_in, self._directory).run()

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to the end, also if whoever asked goes away: nothing is left half done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _scale(self, replicas: Mapping[str, int], lose_state: bool) -> Outcome:
        async with self._begin() as began:
            plan = self._supervisor.plan
            _refuse(refusals(plan, replicas, lose_state))
            for name in replicas:
                self._check_alive(name)
            self._check_none_stopped()
            new = scaled(plan, replicas)
            before = {node.name: node.replicas for node in plan.nodes}
            moved = [name for name, count in replicas.items() if before[name] != count]
            if not moved:
                texts = [f"{name} has {_replicas(count)}" for name, count in replicas.items()]
                return Outcome(f"{', '.join(texts)} already", None)
            change = Change(
                self._project,
                members_of(new),
                [spec.terms_of(link) for link in new.links],
                self.limit,
                lost_state=frozenset(self._losing(new, moved)),
            )
            await self._change(change, new)
            texts = [f"{name} {before[name]} -> {replicas[name]} replicas" for name in moved]
            return Outcome(", ".join(texts), self._clock() - began, tuple(change.notes))

    async def _restart(self, node: str, number: int | None) -> Outcome:
        async with self._begin() as began:
            replicas = self._replicas(node, number)
            stopped = [one.name for one in replicas if one.phase is Phase.STOPPED]
            if stopped:
                what = node if len(stopped) == len(replicas) else ", ".join(stopped)
                raise ChangeError(f"{what} is stopped", f"flowkit start {node}")
            for replica in replicas:
                if replica.absent:
                    raise ChangeError(f"{replica.name} is not attached", "start its application")
            notes = await self._roll(replicas)
            what = replicas[0].name if number is not None else f"{node}: {_replicas(len(replicas))}"
            return Outcome(f"restarted {what}", self._clock() - began, tuple(notes))

    async def _roll(self, replicas: Sequence[Replica]) -> list[str]:
        """Restart one after the other; returns what the operator should know."""
        notes = []
        for done, replica in enumerate(replicas):
            departure = Departure(self._project, replica, True, self.limit)
            rest = f"; {done} of {len(replicas)} were restarted, the others go on as they are"
            await self._operate(departure, rest if len(replicas) > 1 else "")
            if departure.forced:
                notes.append(_forced(replica))
        return notes

    def _living(self, node: str) -> list[Replica]:
        """The replicas that can be restarted: not those that have ended, or are stopped."""
        return [
            replica
            for replica in self._project.replicas_of(node)
            if not replica.done and replica.phase is not Phase.STOPPED
        ]

    async def _stop(self, node: str) -> Outcome:
        async with self._begin() as began:
            notes = []
            replicas = self._replicas(node, None)
            if all(replica.phase is Phase.STOPPED for replica in replicas):
                return Outcome(f"{node} is stopped already", None, (_start_again(node),))
            for replica in replicas:
                departure = Departure(self._project, replica, False, self.limit)
                stopped = sum(one.phase is Phase.STOPPED for one in replicas)
                rest = f"; {stopped} of {len(replicas)} are stopped: flowkit start {node}"
                await self._operate(departure, rest if stopped else "")
                if departure.forced:
                    notes.append(_forced(replica))
                elif replica.phase is not Phase.STOPPED:
                    notes.append(f"{replica.name} has ended meanwhile")
            notes.append(_start_again(node))
            return Outcome(f"stopped {node}", self._clock() - began, tuple(notes))

    async def _withdraw(self, node: str, number: int, limit: float) -> None:
        async with self._begin():
            (replica,) = self._replicas(node, number)
            await self._operate(Withdrawal(self._project, replica, limit))

    async def _start(self, node: str) -> Outcome:
        async with self._begin(draining=True) as began:
            replicas = self._replicas(node, None)
            stopped = [one for one in replicas if one.phase is Phase.STOPPED]
            if not stopped:
                return Outcome(f"{node} was not stopped", None)
            for replica in stopped:
                await self._operate(Arrival(self._project, replica, self.limit))
            return Outcome(f"started {node}", self._clock() - began)

    async def _reload(self, topology: Given | None, lose_state: bool) -> Outcome:
        async with self._begin() as began:
            given = self._supervisor.plan.path if topology is None else topology
            # Importing the classes takes a moment, in a child; the loop turns meanwhile.
            plan = await asyncio.to_thread(self._supervisor.load, given)
            found = self.changes(plan, lose_state)
            if not found and not found.refusals:
                return Outcome("nothing has changed", None)
            notes = await self._become(found)
            return Outcome("reloaded", self._clock() - began, notes)

    async def _become(self, found: Changes) -> tuple[str, ...]:
        """Nothing at all has changed if this raises, unless the error says what has."""
        _refuse(found.refusals)
        old, new = self._supervisor.plan, found.plan
        for node in old.nodes:
            self._check_alive(node.name)
        self._check_none_stopped()
        change = Change(
            self._project,
            members_of(new),
            [spec.terms_of(link) for link in new.links],
            self.limit,
            renewed=found.renewed,
            whole=found.whole,
            lost_state=frozenset(self._losing(new, found.resized)),
            fallback=members_of(old) if found.renews_only else None,
        )
        try:
            async with self._new_code(new if found.whole else None):
                await self._change(change, new)
        except ChangeError as error:
            if self._supervisor.plan is old:
                raise
            left = "otherwise the project is now what the file says"
            for name in self.stopped:
                left += f"; {name} is stopped: flowkit start {name} tries it again"
            raise ChangeError(f"{error}; {left}", error.hint) from error
        return tuple(change.notes)

    @asynccontextmanager
    async def _new_code(self, plan: Plan | None) -> AsyncIterator[None]:
        """What is launched within has the code of `plan` as it is now. If that comes to nothing,
        what is launched later has the code of before again."""
        fleet = self._supervisor.fleet
        if fleet is None or plan is None:
            yield
            return
        old = self._supervisor.plan
        try:
            await fleet.renew(self._supervisor.nursery_for(plan))
            yield
        except BaseException:
            if self._supervisor.plan is old:
                fleet.revert()
            raise
        finally:
            fleet.keep()

    async def _take_in(self, plan: Plan, code_changed: Sequence[str]) -> Outcome | None:
        async with self._begin() as began:
            found = self.changes(plan, lose_state=True)
            _refuse(found.refusals)
            again = [name for name in code_changed if name not in found.renewed]
            again = [name for name in again if name not in found.removed]
            notes: list[str] = []
            if found:
                notes += await self._become(found)
            self._supervisor.plan = found.plan  # the code may stand in other files now
            if again:
                notes += await self._take_in_code(again)
            done = list(dict.fromkeys([*found.renewed, *again]))
            if not found and not done:
                return None
            text = f"restarted {', '.join(done)}" if done else "reloaded"
            return Outcome(text, self._clock() - began, tuple(notes))

    async def _take_in_code(self, nodes: Sequence[str]) -> list[str]:
        """Restart nodes whose code has changed. If a replica does not come up with it, those that
        have it already get the old code back."""
        replicas = [replica for name in nodes for replica in self._living(name)]
        before = {replica: replica.incarnation for replica in replicas}
        try:
            async with self._new_code(self._supervisor.plan):
                return await self._roll(replicas)
        except ChangeError as error:
            text = "the code of before runs on"
            try:
                # What is stopped first: those before it cannot come to rest without it.
                stopped = [one for one in replicas if one.phase is Phase.STOPPED]
                for replica in stopped:
                    await self._operate(Arrival(self._project, replica, self.limit))
                for replica in replicas:
                    if replica not in stopped and replica.incarnation != before[replica]:
                        await self._roll([replica])
            except ChangeError as worse:
                text = f"and not all are back to the code of before: {worse}"
            raise ChangeError(f"{error}; {text}", error.hint) from error

    # -- what the supervisor asks --------------------------------------------------------------

    def plan_for(self, replica: Replica) -> Plan:
        """The plan that a replica is launched with: that to come, if it is new."""
        operation = self._project.operation
        if isinstance(operation, Change) and replica in operation.added:
            return self._plans[operation]
        return self._supervisor.plan

    def adopted(self, operation: Operation) -> None:
        """From now on the new plan holds."""
        old, new = self._supervisor.plan, self._plans[operation]
        kept = {link.index for link in [*new.links, *foreign_links(new.nodes)]}
        before = [*old.links, *foreign_links(old.nodes)]
        self.former = [link for link in self.former if link.index not in kept]
        self.former += [link for link in before if link.index not in kept]
        self._before[operation] = old
        self._supervisor.plan = new
        for tell in self.on_plan:
            tell(new)

    def died(self, event: Died, last_words: str) -> None:
        """A replica has died. If it was given up, what it said last is most likely the reason."""
        lines = [line for line in last_words.splitlines() if line and not line.startswith("hint:")]
        if event.delay is None and lines:
            self._cause = f"{event.replica.name} said last: {lines[-1]}"

    def happened(self, action: Restore | Completed) -> None:
        """The plan of before, and its code, hold again; or the operation is over."""
        if isinstance(action, Restore):
            self._supervisor.plan = self._before[action.operation]
            if self._supervisor.fleet is not None:
                self._supervisor.fleet.revert()
            return
        future = self._futures.pop(action.operation, None)
        if future is not None and not future.done():
            future.set_result(action.error)
        later, self.later = self.later, []
        for function in later:
            function()

    async def close(self) -> None:
        """The supervisor is closed: nobody waits any longer."""
        self._closed = True
        for future in self._futures.values():
            if not future.done():
                future.set_result("the project has ended")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- inside --------------------------------------------------------------------------------

    @asynccontextmanager
    async def _begin(self, draining: bool = False) -> AsyncIterator[float]:
        """Wait for the turn; yields when it began. A project that ends is not changed any more."""
        began = self._clock()
        async with self._turn:
            self._check_running(draining)
            yield began

    def _check_running(self, draining: bool) -> None:
        name = self._supervisor.plan.project
        if self._project.status is not Status.RUNNING or self._closed:
            raise ChangeError(f"{name} is not running any more")
        if not self._project.started:
            raise ChangeError(f"{name} is not ready yet", "try again in a moment")
        if self._project.draining and not draining:
            raise ChangeError(f"{name} is being drained")

    async def _change(self, change: Change, plan: Plan) -> None:
        if not self._supervisor.in_process:
            descriptors.check(plan, raise_file_limit())
        self._plans[change] = plan
        try:
            await self._operate(change)
        finally:
            del self._plans[change]
            self._before.pop(change, None)

    async def _operate(self, operation: Operation, more: str = "") -> None:
        """Do it, and wait until it is done. Raises ChangeError with what is wrong, and `more`."""
        # Reading a file takes a moment, and so does each replica of a node: look again.
        self._check_running(draining=isinstance(operation, Arrival))
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._futures[operation] = future
        self._cause = ""
        self._project.operate(operation, self._clock())
        if operation in self._plans:
            self._supervisor.open_books(self._plans[operation])
        self._supervisor.carry_out()
        error = await future
        if error:
            raise ChangeError(error + more, self._cause)

    def _replicas(self, node: str, number: int | None) -> list[Replica]:
        replicas = self._project.replicas_of(node)
        names = [one.name for one in self._supervisor.plan.nodes]
        if not replicas or node not in names:
            hint = did_you_mean(node, names) or f"there are {', '.join(names)}"
            raise UnknownName(f"there is no node {node} in {self._supervisor.plan.project}", hint)
        self._check_alive(node)
        if number is None:
            return replicas
        for replica in replicas:
            if replica.number == number:
                return [replica]
        last = f"{node}.{len(replicas) - 1}"
        raise UnknownName(f"there is no replica {node}.{number}", f"the last one is {last}")

    def _check_alive(self, node: str) -> None:
        if any(replica.done for replica in self._project.replicas_of(node)):
            raise ChangeError(f"{node} has ended, or is about to: its input has")

    def _check_none_stopped(self) -> None:
        for replica in self._project.replicas.values():
            if replica.absent and not replica.source:
                raise ChangeError(
                    f"{replica.name} is not attached, so what comes before it cannot come to rest",
                    "start its application",
                )
        stopped = self.stopped
        if stopped:
            names = ", ".join(stopped)
            raise ChangeError(
                f"{names} is stopped, so what comes before it cannot come to rest",
                f"flowkit start {stopped[0]}",
            )

    def _losing(self, plan: Plan, moved: list[str]) -> list[str]:
        """The nodes of `moved` whose keys leave state behind."""
        keyed = {link.target for link in plan.links if link.route == "key"}
        return [name for name in moved if plan.node(name).stateful and name in keyed]


class Changeable:
    """What can be done to a running project: the part of a `Supervisor` that an operator uses.

    Every method waits until what it is asked is true, and says how it went; or raises ChangeError
    with the reason, and what to do (UnknownName if there is no such node or replica). One is done
    after the other. Nothing is lost by any of them.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def scale(self, replicas: Mapping[str, int], *, lose_state: bool = False) -> Outcome:
        """Give nodes other numbers of replicas. Keys move to other replicas: with `lose_state`
        also those of nodes that keep state by key, which stays behind."""
        return await self._operations.scale(replicas, lose_state)

    async def restart(self, node: str, replica: int | None = None) -> Outcome:
        """Restart the replicas of a node one after the other, or one of them. None is touched
        before the one before it is ready again. State in memory is lost, and the report says so."""
        return await self._operations.restart(node, replica)

    async def stop_node(self, node: str) -> Outcome:
        """End the processes of a node, until `start_node`; what comes for it waits."""
        return await self._operations.stop(node)

    async def start_node(self, node: str) -> Outcome:
        """Start the replicas of a node that was stopped."""
        return await self._operations.start(node)

    def changes(self, topology: Given, *, lose_state: bool = False) -> Changes:
        """What `reload` would change; nothing is done. Raises TopologyError with all problems."""
        return self._operations.changes(topology, lose_state)

    async def reload(self, topology: Given | None = None, *, lose_state: bool = False) -> Outcome:
        """Become what the file (by default the same, as it is now) says. If it has problems, or the
        difference cannot be made while the project runs, nothing is changed."""
        return await self._operations.reload(topology, lose_state)

    @property
    def stopped(self) -> list[str]:
        """The nodes of which a replica is stopped: what comes for them waits."""
        return self._operations.stopped

    async def watch(self) -> None:
        """Take in what changes in the project's code and files, until cancelled."""
        await self._operations.watch()


def _refuse(found: list[Refusal]) -> None:
    if found:
        hints = dict.fromkeys(hint for _, hint in found if hint)
        raise ChangeError("; ".join(text for text, _ in found), "; ".join(hints))


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _start_again(node: str) -> str:
    return f"to start it again: flowkit start {node}"


def _forced(replica: Replica) -> str:
    return f"{replica.name} did not come to rest and was killed: what it had is delivered again"
