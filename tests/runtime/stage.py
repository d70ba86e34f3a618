"""A project of node classes, in this process: what the tests of the runtime run.

Node classes may be defined inside a test and close over its variables. Nothing is mocked: the real
supervisor, runners and links, over the memory transport, on the test's event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from flowkit import In, Node, Out, Source
from flowkit.protocol.project import Died
from flowkit.report import LinkReport, Report
from flowkit.store import DeadLetter, Store
from flowkit.supervisor import Silent, Supervisor
from flowkit.topology.plan import (
    FORGETTING,
    EndpointPlan,
    ErrorPolicy,
    LinkPlan,
    NodePlan,
    Plan,
    RestartPlan,
    forgetting,
)

SECONDS = 60.0
"""How long a project may take; a test that needs as much has failed."""

AGAIN = RestartPlan(max=5, window=60.0, backoff=0.0)
"""Restart at once."""

# Replicas import their class by name, so every class of a test is put into a module of its own.
_classes = ModuleType("stage_classes")
sys.modules[_classes.__name__] = _classes
_numbers = itertools.count()


class Part(msgspec.Struct):
    """A node of the project; a bare class stands for a part with the defaults."""

    cls: type[Node]
    settings: dict[str, Any] = {}
    replicas: int = 1
    restart: RestartPlan = AGAIN
    retry: int = 0
    then: str = "dead-letter"
    endpoints: list[EndpointPlan] = []


def link(text: str, **changes: Any) -> dict[str, Any]:
    """``"a.out -> b.in"`` with other values than a link's defaults."""
    return {"text": text, **changes}


def make_plan(
    parts: Mapping[str, type[Node] | Part],
    links: Sequence[str | dict[str, Any]],
    directory: Path,
    watchdog: float = 30.0,
) -> Plan:
    """The plan that the topology file of these parts and links would give."""
    nodes: list[NodePlan] = []
    origin = 0
    for name, value in parts.items():
        part = value if isinstance(value, Part) else Part(value)
        use = f"C{next(_numbers)}"
        setattr(_classes, use, part.cls)
        nodes.append(
            NodePlan(
                name=name,
                use=f"{_classes.__name__}:{use}",
                settings=part.settings,
                replicas=part.replicas,
                env={},
                restart=part.restart,
                on_error=ErrorPolicy(part.retry, part.then),
                watchdog=watchdog,
                origin=origin,
                stateful=part.cls.stateful,
                source=part.cls.__flowkit__.source,
                positions=part.cls.__flowkit__.positions,
                inputs=list(part.cls.__flowkit__.inputs),
                outputs=list(part.cls.__flowkit__.outputs),
                endpoints=part.endpoints,
            )
        )
        origin += part.replicas
    count = {node.name: node.replicas for node in nodes}
    classes = {name: getattr(value, "cls", value) for name, value in parts.items()}
    made: list[LinkPlan] = []
    for value in links:
        options = dict(value) if isinstance(value, dict) else {"text": value}
        text = options.pop("text")
        begin, end = text.split(" -> ")
        source, out = begin.split(".")
        target, into = end.split(".")
        defaults: dict[str, Any] = {
            "route": "balance",
            "by": None,
            "window": 65_536,
            "window_bytes": 64 << 20,
            "codec": None,
            "delivery": "at-least-once",
            "when_full": "block",
            "transport": "auto",
        }
        if options.get("pattern") in FORGETTING:
            options["delivery"] = "at-most-once"
        if options.get("pattern") == "pubsub":
            options = {"route": "broadcast", "when_full": "drop-newest", **options}
            options["by"] = options.get("by") or classes[source].__flowkit__.outputs[out].key
        if options.get("route") == "key" and options.get("by") is None:
            options["by"] = classes[source].__flowkit__.outputs[out].key
        made.append(
            LinkPlan(
                index=len(made),
                name=text,
                source=source,
                out=out,
                target=target,
                into=into,
                producers=count[source],
                consumers=count[target],
                **{**defaults, **options},
            )
        )
    return Plan("play", str(directory / "play.yaml"), nodes, forgetting(made), [])


class Stage(Silent):
    """One run of a project. As a context manager it starts, and ends whatever is left.

    `deaths` are those the operator is told of. `ready` is set when all replicas are.
    """

    def __init__(
        self,
        directory: Path,
        parts: Mapping[str, type[Node] | Part],
        links: Sequence[str | dict[str, Any]],
        watchdog: float = 30.0,
        **options: Any,
    ) -> None:
        self.plan = make_plan(parts, links, directory, watchdog)
        self.deaths: list[Died] = []
        self.all_ready = asyncio.Event()
        self.on_ready: list[Any] = []
        self.supervisor = Supervisor(self.plan, in_process=True, watcher=self, **options)

    async def __aenter__(self) -> Stage:
        try:
            await self.supervisor.start()
        except BaseException:
            await self.supervisor.close()
            raise
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.supervisor.close()

    async def wait(self) -> Report:
        return await asyncio.wait_for(self.supervisor.wait(), SECONDS)

    def drain(self) -> None:
        self.supervisor.drain(SECONDS / 2)

    def crash(self, name: str) -> None:
        """Kill a replica ("sink.0"); it is started again."""
        replica = next(one for one in self._replicas.values() if one.name == name)
        launcher = self.supervisor._launcher
        assert launcher is not None
        launcher.kill(f"{name}#{replica.incarnation}")

    @property
    def _replicas(self) -> Any:
        return self.supervisor._project.replicas

    def ready(self, seconds: float) -> None:
        self.all_ready.set()
        for call in self.on_ready:
            call()

    def died(self, event: Died, budget: int | None) -> None:
        self.deaths.append(event)

    # -- what is left on disk --------------------------------------------------------------------

    @property
    def dead_letters(self) -> list[DeadLetter]:
        store = self._store()
        try:
            return store.dead_letters()
        finally:
            store.close()

    def position(self, node: str, replica: int = 0) -> Any:
        store = self._store()
        try:
            return store.position(node, replica)
        finally:
            store.close()

    def _store(self) -> Store:
        return Store(str(self.supervisor.state_directory / "flowkit.db"))


def books(report: Report, text: str) -> LinkReport:
    """The report of the link ``"a.out -> b.in"``."""
    return next(one for one in report.links if one.name == text)


def check(report: Report, status: str = "drained") -> Report:
    """Assert what holds of every run that ended in order."""
    assert report.status.value == status, report.reason
    assert report.balanced
    for one in report.links:
        entry = one.entry
        assert entry.in_flight == 0, (one.name, entry)
        assert entry.delivered <= entry.sent + entry.redelivered, one.name
    return report


def numbers(count: int, first: int = 0) -> type[Source]:
    """A source class whose output `out` carries the integers from `first`; the position counts."""

    class Numbers(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            for number in range(position or 0, count):
                yield first + number, number + 1

    return Numbers


def collect(into: list[Any], kind: Any = int) -> type[Node]:
    """A node class whose input `x` appends to `into`."""

    class Collect(Node):
        x = In(kind)

        def on_x(self, message: Any) -> None:
            into.append(message)

    return Collect


def texts(*messages: str) -> type[Source]:
    """A source class whose output `out` carries `messages`."""

    class Texts(Source):
        out = Out(str)

        def read(self, position: int | None) -> Any:
            for place in range(position or 0, len(messages)):
                yield messages[place], place + 1

    return Texts
