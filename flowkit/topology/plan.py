"""What is to be started: the topology file after every check, as plain data.

Everything here is a `msgspec.Struct` of builtins, so that it can be sent to another process.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from flowkit.units import size

if TYPE_CHECKING:
    from flowkit.topology.facts import Inspection
    from flowkit.topology.model import LinkModel, Topology

DEFAULT_WINDOW = 65_536
"""Messages in flight on a link before its producers are paused."""

DEFAULT_WINDOW_BYTES = 64 * 1024 * 1024
"""Bytes in flight on a link before its producers are paused, whichever limit comes first."""


FORGETTING = ("request", "pubsub")
"""Patterns whose links deliver at most once."""


class RestartPlan(Struct, frozen=True):
    """When a replica that ended is started again. Times are in seconds; `max` None: no limit."""

    policy: str = "on-failure"
    max: int | None = 5
    window: float = 60.0
    backoff: float = 0.1
    backoff_max: float = 10.0


class ErrorPolicy(Struct, frozen=True):
    """What becomes of a message whose handler raised: `retry` more tries, and then `then`."""

    retry: int = 0
    then: str = "dead-letter"


class NodePlan(Struct, frozen=True):
    """One node. Replica `r` of it has the origin number `origin + r`, unique in the project."""

    name: str
    use: str
    settings: dict[str, Any]
    replicas: int
    env: dict[str, str]
    restart: RestartPlan
    on_error: ErrorPolicy
    watchdog: float
    origin: int
    stateful: bool
    source: bool
    positions: bool
    """Whether it reads from positions, so that what was in flight when it died is read again."""
    external: bool = False
    """Whether applications run its replicas."""
    blocked: float = 1.0
    """Seconds after which a handler that holds the event loop is shown; 0: never."""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    """The channels of its class, linked or not."""


class LinkPlan(Struct, frozen=True):
    """One link from one output to one input; a `to:` list in the file makes one of each."""

    index: int
    name: str
    source: str
    out: str
    target: str
    into: str
    route: str
    by: str | None
    window: int
    window_bytes: int
    codec: str | None
    delivery: str
    when_full: str
    transport: str
    producers: int
    consumers: int
    durable: bool = False
    fsync: str = "group"
    origin: int = 0
    """With `durable`: origin number of the journal of the producer's replica 0."""
    version: int = 0
    """How often the key map was changed while the project ran."""
    pattern: str = "pipeline"
    topics: list[str] = field(default_factory=list)
    """With ``pubsub``: the prefixes of the keys that are subscribed to; empty: all messages."""
    forgets: str = ""
    """The name of a link, this one or one below it, that forgets what it has sent: nobody learns
    there whether a message is done. Empty if there is none."""


class Plan(Struct, frozen=True):
    """A checked project. `path` is absolute; `modules` are what the nodes' classes live in."""

    project: str
    path: str
    nodes: list[NodePlan]
    links: list[LinkPlan]
    modules: list[str]
    env: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    """The topology file and what it includes."""

    @property
    def processes(self) -> int:
        """How many replicas it has that are not run by applications."""
        return sum(node.replicas for node in self.nodes if not node.external)

    def node(self, name: str) -> NodePlan:
        """The node called `name`; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)


def make_plan(topology: Topology, inspection: Inspection) -> Plan:
    """The plan of a topology that was checked and has no problems."""
    nodes: list[NodePlan] = []
    origin = 0
    for name, model in topology.nodes.items():
        facts = inspection.classes[name]
        limit = model.restart.max
        nodes.append(
            NodePlan(
                name=name,
                use=model.use,
                settings=inspection.settings.get(name, {}),
                replicas=model.replicas,
                env={**topology.env, **model.env},
                restart=RestartPlan(
                    policy=model.restart.policy,
                    max=limit if isinstance(limit, int) else None,
                    window=model.restart.window,
                    backoff=model.restart.backoff,
                    backoff_max=model.restart.backoff_max,
                ),
                on_error=ErrorPolicy(retry=model.on_error.retry, then=model.on_error.then),
                watchdog=model.watchdog,
                origin=origin,
                stateful=facts.stateful,
                positions=facts.positions,
                source=facts.source,
                blocked=model.blocked,
                external=model.external,
                inputs=[channel.name for channel in facts.inputs],
                outputs=[channel.name for channel in facts.outputs],
            )
        )
        origin += model.replicas
    return Plan(
        project=topology.project,
        path=topology.path,
        nodes=nodes,
        links=_links(topology, inspection, origin),
        modules=list(
            dict.fromkeys(node.use.partition(":")[0] for node in nodes if not node.external)
        ),
        env=topology.env,
        files=topology.files,
    )


def _links(topology: Topology, inspection: Inspection, origin: int) -> list[LinkPlan]:
    links: list[LinkPlan] = []
    for model in topology.links:
        source, out = model.from_.split(".", 1)
        window, window_bytes = window_of(model)
        outputs = inspection.classes[source].outputs
        keyed = model.route == "key" or model.pattern == "pubsub"
        declared = next((output.key for output in outputs if output.name == out), None)
        for to in model.to:
            target, into = to.split(".", 1)
            links.append(
                LinkPlan(
                    index=len(links),
                    name=f"{model.from_} -> {to}",
                    source=source,
                    out=out,
                    target=target,
                    into=into,
                    route="broadcast" if model.pattern == "pubsub" else model.route,
                    by=model.by or (declared if keyed else None),
                    window=window,
                    window_bytes=window_bytes,
                    codec=model.codec,
                    delivery="at-most-once" if model.pattern in FORGETTING else model.delivery,
                    when_full=_when_full(model),
                    transport=model.transport,
                    producers=topology.nodes[source].replicas,
                    consumers=topology.nodes[target].replicas,
                    durable=model.durable,
                    fsync=model.fsync,
                    origin=origin if model.durable else 0,
                    pattern=model.pattern,
                    topics=model.topics,
                )
            )
            if model.durable:
                origin += topology.nodes[source].replicas
    return forgetting(links)


def _when_full(link: LinkModel) -> str:
    """A publisher waits for no subscriber; like its ZeroMQ namesake it drops the newest."""
    wait = link.pattern == "pubsub" and link.when_full == "block"
    return "drop-newest" if wait else link.when_full


def forgetting(links: list[LinkPlan]) -> list[LinkPlan]:
    """The links, with what they say of `forgets`."""
    into: dict[str, list[LinkPlan]] = {}
    found: dict[int, str] = {}
    pending: deque[LinkPlan] = deque()
    for link in links:
        into.setdefault(link.target, []).append(link)
        # A question is answered, and that is waited for.
        if link.delivery == "at-most-once" and link.pattern != "request":
            found[link.index] = link.name
            pending.append(link)
    while pending:
        link = pending.popleft()
        for above in into.get(link.source, ()):
            # What is in a journal counts as done.
            if above.index not in found and not above.durable:
                found[above.index] = found[link.index]
                pending.append(above)
    return [replace(link, forgets=found.get(link.index, "")) for link in links]


def window_of(link: LinkModel) -> tuple[int, int]:
    """The link's bounds in messages and in bytes; the one not given has its default."""
    if isinstance(link.window, int):
        return link.window, DEFAULT_WINDOW_BYTES
    return DEFAULT_WINDOW, size(link.window)
