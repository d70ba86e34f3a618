"""A whole topology in a test: one process, memory between the replicas, every message on record.

::

    run = run_topology("words.yaml", inputs={"read.lines": ["to be"]}, channels=["split.words"])
    assert run.sent("split.words") == ["to", "be"]

It is run by the `Supervisor`, as ``flowkit up --in-process`` does it, in directories of its own. A
`TopologyHarness` is the same for a coroutine, which can do harm meanwhile: kill a replica, hold
messages back, break lines.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from msgspec.structs import replace

from flowkit.channels import In, Out
from flowkit.clock import monotonic
from flowkit.errors import HarnessError
from flowkit.importing import did_you_mean, load_object
from flowkit.launchers.base import Launcher
from flowkit.message import Meta
from flowkit.node import NodeInfo, describe
from flowkit.protocol.project import Replica
from flowkit.report import DEAD_LETTERS, OK, Report
from flowkit.rundir import RunDirectory
from flowkit.runtime.planning import load_plan
from flowkit.store import DeadLetter
from flowkit.supervisor import Supervisor
from flowkit.testing import stand_ins
from flowkit.testing.rig import link_plan
from flowkit.topology.plan import (
    DEFAULT_WINDOW,
    ErrorPolicy,
    LinkPlan,
    NodePlan,
    Plan,
    RestartPlan,
)
from flowkit.transport.memory import MemoryHub

PATIENCE = 30.0
"""Seconds that a topology may take unless the test says otherwise."""

LOOK = 0.002
"""Seconds between two looks whether a condition holds."""

MARK = "test-"
"""What the names of nodes begin with that are the test's; no name in a topology file has a dash."""

Condition = Callable[[], object]


class TopologyHarness:
    """Runs `topology`, a file's path or a `Plan`, from ``async with`` to its end.

    `inputs` are messages in place of what would come: ``{"read.lines": [...]}`` lets the source
    `read` send those and end, ``{"split.lines": [...]}`` gives them to an input, and what leads to
    nothing else is left out. `channels` are the outputs whose messages are kept for `sent`.
    `settings` replaces settings of nodes: ``{"count": {"top": 3}}``. `env` is what the topology's
    ``${NAME}`` are taken from, beside the environment; `directory` is importable and current
    modules are looked for there, by default in the current directory.

    Enter raises `TopologyError` for a topology that has problems, and `HarnessError` for channels
    that are not there.
    """

    def __init__(
        self,
        topology: str | os.PathLike[str] | Plan,
        *,
        inputs: Mapping[str, Iterable[Any]] | None = None,
        channels: Iterable[str] = (),
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        env: Mapping[str, str] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self._topology = topology
        self._inputs, self._channels = dict(inputs or {}), list(channels)
        self._settings, self._env = dict(settings or {}), dict(env or {})
        self._directory = os.path.abspath(directory or os.getcwd())
        self._seen: dict[str, list[tuple[Any, Meta]]] = {}
        self._instead: dict[str, dict[str, Sequence[Any]]] = {}
        self._uses: list[str] = []
        self._infos: dict[str, NodeInfo] = {}
        self._place: Path | None = None
        self._supervisor: _Supervisor | None = None
        self._letters: list[DeadLetter] | None = None
        """The dead letters, when the topology has been closed."""

    async def __aenter__(self) -> Self:
        try:
            self.plan = self._prepared()
            # Not below pytest's own directories: the paths of sockets have to be short.
            self._place = Path(tempfile.mkdtemp(prefix="flowkit-"))
            self._supervisor = _Supervisor(self.plan, self._place)
            await self._supervisor.start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        try:
            if self._supervisor is not None:
                self._letters = self._kept()
                self._supervisor.give_up()
                await self._supervisor.close()
        finally:
            for use in self._uses:
                stand_ins.leave(use)
            self._uses.clear()
            if self._place is not None:
                shutil.rmtree(self._place, ignore_errors=True)

    # -- what a test sees ----------------------------------------------------------------------

    def sent(self, channel: str) -> list[Any]:
        """The messages of an output of `channels` so far, in the order they came in."""
        return [message for message, _ in self._record(channel)]

    def metas(self, channel: str) -> list[Meta]:
        """Id, key and headers of each message of `sent`."""
        return [meta for _, meta in self._record(channel)]

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The messages that were given up so far."""
        return self._kept() if self._letters is None else self._letters

    def report(self) -> Report:
        """The books as they are now, without the links of the test."""
        report = self._running.report()
        links = [link for link in report.links if not link.target.startswith(MARK)]
        nodes = [node for node in report.nodes if not node.node.startswith(MARK)]
        return dataclasses.replace(report, links=links, nodes=nodes)

    # -- how it goes on ------------------------------------------------------------------------

    async def until(self, condition: Condition, timeout: float = PATIENCE) -> None:
        """Return when `condition()` holds. HarnessError if it does not in time, or cannot since
        the topology has ended."""
        end = monotonic() + timeout
        while not condition():
            if self._running.ended:
                if condition():
                    return
                raise HarnessError(f"the topology has ended: {self._state()}")
            if monotonic() > end:
                raise HarnessError(f"not so after {timeout:g} s: {self._state()}")
            await asyncio.sleep(LOOK)

    async def drained(self, timeout: float = PATIENCE) -> Report:
        """Return when all sources have ended and everything is done; HarnessError if that is not
        so in time, or if the topology ends in another way than drained."""
        await self.until(lambda: self._running.ended, timeout)
        report = self.report()
        if report.exit not in (OK, DEAD_LETTERS):
            raise HarnessError(f"the topology has failed: {self._state()}")
        return report

    async def stop(self, timeout: float = PATIENCE) -> Report:
        """Let the sources end, as Ctrl-C does; then as `drained`."""
        self._running.drain(timeout)
        return await self.drained(timeout)

    # -- harm ----------------------------------------------------------------------------------

    def kill(self, replica: str) -> None:
        """Kill a replica (``"split.0"``) in whatever it does; its restart policy decides.

        Its `teardown` does run, since it shares the process with the test.
        """
        one = self._find(replica)
        launcher = self._running._launcher
        assert launcher is not None
        launcher.kill(f"{one.name}#{one.incarnation}")

    def delay(self, seconds: float) -> None:
        """Hold every message between replicas back for so long, from now on."""
        self._running.lines.delay = seconds

    def cut(self, link: str) -> int:
        """Break the connections of a link (``"split.words -> count.words"``), and lose what is
        under way on them; new ones are made. Returns how many there were."""
        known = {one.name: one for one in self.plan.links if not one.target.startswith(MARK)}
        if link not in known:
            raise HarnessError(f"there is no link '{link}'; {did_you_mean(link, known)}")
        producers = [
            one
            for one in self._running._project.replicas.values()
            if one.node == known[link].source and known[link].index in one.addresses
        ]
        lines = self._running.lines
        return sum(lines.cut(one.addresses[known[link].index]) for one in producers)

    # -- inside --------------------------------------------------------------------------------

    @property
    def _running(self) -> _Supervisor:
        if self._supervisor is None:
            raise HarnessError("it does not run yet: async with TopologyHarness(...) as project:")
        return self._supervisor

    def _kept(self) -> list[DeadLetter]:
        store = self._running._store
        return store.dead_letters() if store is not None else []

    def _find(self, name: str) -> Replica:
        replicas = {one.name: one for one in self._running._project.replicas.values()}
        if name not in replicas:
            known = [one for one in replicas if not one.startswith(MARK)]
            raise HarnessError(f"there is no replica '{name}'; {did_you_mean(name, known)}")
        return replicas[name]

    def _record(self, channel: str) -> list[tuple[Any, Meta]]:
        if channel not in self._seen:
            hint = did_you_mean(channel, self._seen) or f"ask for it: channels=['{channel}']"
            raise HarnessError(f"'{channel}' is not on record; {hint}")
        return self._seen[channel]

    def _state(self) -> str:
        """How the topology is, for people."""
        report = self.report()
        words = [report.reason or report.status.value]
        for link in report.links:
            entry = link.entry
            words.append(f"{link.name}: {entry.sent} sent, {entry.done} done")
        if report.traceback:
            words.append(report.traceback)
        return "\n  ".join(words)

    # -- changes of the plan -------------------------------------------------------------------

    def _prepared(self) -> Plan:
        """The plan, with the nodes of the test in it."""
        if self._directory not in sys.path:
            sys.path.insert(0, self._directory)
        plan = self._topology
        if not isinstance(plan, Plan):
            plan = load_plan(os.fspath(plan), {**os.environ, **self._env}, self._directory)
        self._infos = {node.name: describe(load_object(node.use)) for node in plan.nodes}
        for name, values in self._settings.items():
            plan = _configured(plan, name, values)
        for name, messages in self._inputs.items():
            plan = self._fed(plan, name, list(messages))
        for name in self._channels:
            plan = self._recorded(plan, name)
        return plan

    def _channel(self, plan: Plan, place: str) -> tuple[NodeInfo, str, str]:
        node, _, channel = place.partition(".")
        names = [one.name for one in plan.nodes]
        if node not in names:
            hint = did_you_mean(node, names)
            raise HarnessError(f"'{place}' is no channel: there is no node '{node}'; {hint}")
        info = self._infos[node]
        known = {**info.inputs, **info.outputs}
        if not channel:
            there = ", ".join(f"'{one}'" for one in known)
            raise HarnessError(f"'{place}' is no channel: write node.channel; '{node}' has {there}")
        if channel not in known:
            hint = did_you_mean(channel, known)
            raise HarnessError(f"'{place}' is no channel: '{node}' has no '{channel}'; {hint}")
        return info, node, channel

    def _fed(self, plan: Plan, place: str, messages: Sequence[Any]) -> Plan:
        info, node, channel = self._channel(plan, place)
        if channel in info.inputs:
            return self._fed_input(plan, node, info.inputs[channel], messages)
        if info.inputs:
            to = [link.name for link in plan.links if (link.source, link.out) == (node, channel)]
            hint = f"give them to {to[0].partition(' -> ')[2]}" if to else "no link begins there"
            raise HarnessError(f"'{place}' is sent by a node that has inputs; {hint}")
        earlier = self._instead.get(node, {})
        given = {**dict.fromkeys(info.outputs, ()), **earlier, channel: messages}
        self._instead[node] = given
        use = self._enter(stand_ins.sender(info.outputs, given))
        nodes = [
            replace(one, use=use, settings={}, replicas=1, positions=len(given) == 1)
            if one.name == node
            else one
            for one in plan.nodes
        ]
        links = [replace(one, producers=1) if one.source == node else one for one in plan.links]
        return _numbered(replace(plan, nodes=nodes, links=links))

    def _fed_input(self, plan: Plan, node: str, channel: In[Any], messages: Sequence[Any]) -> Plan:
        name = f"{MARK}{node}-{channel.name}"
        leading = [one for one in plan.links if (one.target, one.into) == (node, channel.name)]
        key = leading[0].by if leading else None
        out: Out[Any] = Out(channel.type, key=key, codec=channel.codec)
        use = self._enter(stand_ins.sender({"messages": out}, {"messages": messages}))
        sender = _node(name, use, source=True, outputs=["messages"])
        pattern = leading[0] if leading else _link(name, "messages", node, channel.name)
        link = replace(
            pattern,
            name=f"{name}.messages -> {node}.{channel.name}",
            source=name,
            out="messages",
            producers=1,
            consumers=plan.node(node).replicas,
            durable=False,
        )
        links = [one for one in plan.links if one not in leading]
        nodes = _needed(plan.nodes, plan.links, links)
        kept = {one.name for one in nodes}
        links = [one for one in links if one.source in kept and one.target in kept]
        return _numbered(replace(plan, nodes=[*nodes, sender], links=[*links, link]))

    def _recorded(self, plan: Plan, place: str) -> Plan:
        info, node, channel = self._channel(plan, place)
        if channel not in info.outputs:
            leading = [one for one in plan.links if f"{one.target}.{one.into}" == place]
            hint = f"; keep {leading[0].source}.{leading[0].out}" if leading else ""
            raise HarnessError(f"'{place}' is an input: outputs are kept{hint}")
        if place in self._seen:
            return plan
        seen = self._seen[place] = []
        use = self._enter(
            stand_ins.recorder(
                info.outputs[channel], lambda message, meta: seen.append((message, meta))
            )
        )
        name = f"{MARK}{node}-{channel}"
        recorder = _node(name, use, source=False, inputs=["messages"])
        link = replace(_link(node, channel, name, "messages"), producers=plan.node(node).replicas)
        return _numbered(replace(plan, nodes=[*plan.nodes, recorder], links=[*plan.links, link]))

    def _enter(self, cls: Any) -> str:
        self._uses.append(stand_ins.enter(cls))
        return self._uses[-1]


class _Supervisor(Supervisor):
    """In process, in directories of its own, with its lines at hand."""

    def __init__(self, plan: Plan, place: Path) -> None:
        super().__init__(plan, in_process=True)
        roots = {"FLOWKIT_RUN_DIR": str(place / "run"), "FLOWKIT_STATE_DIR": str(place / "state")}
        self._rundir = RunDirectory(plan.project, plan.path, environ=roots)
        self._journals = self._rundir.state / self._journals.name
        self.lines = MemoryHub()

    def _make_launcher(self, hub: MemoryHub) -> Launcher:
        self.lines = hub
        return super()._make_launcher(hub)

    def give_up(self) -> None:
        """Restart nothing any more."""
        if self._launcher is not None:
            self.kill()

    @property
    def ended(self) -> bool:
        return all(replica.over for replica in self._project.replicas.values())


def run_topology(
    topology: str | os.PathLike[str] | Plan,
    *,
    inputs: Mapping[str, Iterable[Any]] | None = None,
    channels: Iterable[str] = (),
    until: Callable[[TopologyHarness], object] | None = None,
    during: Callable[[TopologyHarness], Awaitable[object]] | None = None,
    check: bool = True,
    timeout: float = PATIENCE,
    **options: Any,
) -> TopologyHarness:
    """Run a topology to its end; what it returns knows what was `sent`, and its `report()`.

    `until`: let the sources end when this holds, ``lambda run: len(run.sent("a.out")) >= 3``.
    `during` is a coroutine function that is called meanwhile, to do harm. For `inputs`, `channels`
    and `options` see `TopologyHarness`.

    Raises `HarnessError` if it is not drained within `timeout` seconds, and, unless `check` is
    false, if a message was given up.
    """

    async def run() -> TopologyHarness:
        async with TopologyHarness(
            topology, inputs=inputs, channels=channels, **options
        ) as project:
            if during is not None:
                await asyncio.wait_for(during(project), timeout)
            if until is not None:
                await project.until(lambda: until(project), timeout)
                report = await project.stop(timeout)
            else:
                report = await project.drained(timeout)
            if check and report.exit != OK:
                letters = [f"{one.link}: {one.error}" for one in project.dead_letters]
                raise HarnessError("messages were given up:\n  " + "\n  ".join(letters))
        return project

    return asyncio.run(run())


# -- plans ---------------------------------------------------------------------------------------


def _configured(plan: Plan, name: str, values: Mapping[str, Any]) -> Plan:
    names = [one.name for one in plan.nodes]
    if name not in names:
        raise HarnessError(f"there is no node '{name}'; {did_you_mean(name, names)}")
    nodes = [
        replace(one, settings={**one.settings, **values}) if one.name == name else one
        for one in plan.nodes
    ]
    return replace(plan, nodes=nodes)


def _needed(
    nodes: Sequence[NodePlan], before: Sequence[LinkPlan], after: Sequence[LinkPlan]
) -> list[NodePlan]:
    """The nodes without those that had links and now lead to nothing."""
    links = list(after)
    led = {link.source for link in before}
    kept = list(nodes)
    while True:
        lead = {link.source for link in links}
        idle = {node.name for node in kept if node.name in led and node.name not in lead}
        if not idle:
            return kept
        kept = [node for node in kept if node.name not in idle]
        links = [link for link in links if link.target not in idle]


def _numbered(plan: Plan) -> Plan:
    """Numbers as `make_plan` would give them."""
    origin = 0
    nodes, links = [], []
    for node in plan.nodes:
        nodes.append(replace(node, origin=origin))
        origin += node.replicas
    for index, link in enumerate(plan.links):
        links.append(replace(link, index=index, origin=origin if link.durable else 0))
        origin += link.producers if link.durable else 0
    return replace(plan, nodes=nodes, links=links)


def _node(
    name: str, use: str, source: bool, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> NodePlan:
    return NodePlan(
        name=name,
        use=use,
        settings={},
        replicas=1,
        env={},
        restart=RestartPlan(max=None, backoff=0.0),
        on_error=ErrorPolicy(),
        watchdog=30.0,
        origin=0,
        stateful=False,
        source=source,
        positions=source,
        inputs=list(inputs),
        outputs=list(outputs),
    )


def _link(source: str, out: str, target: str, into: str) -> LinkPlan:
    return link_plan(source, out, target, into, window=DEFAULT_WINDOW)
