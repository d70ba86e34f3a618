"""What is to be started: the topology file after every check, as plain data.

Everything here is a `msgspec.Struct` of builtins, so that it can be sent to another process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from msgspec import Struct, field
from msgspec.structs import replace

from flowkit.protocol.sockets import PUBLISHERS
from flowkit.units import size

if TYPE_CHECKING:
    from flowkit.topology.facts import ClassFacts, Inspection
    from flowkit.topology.model import EndpointModel, LinkModel, Topology

DEFAULT_WINDOW = 65_536
"""Messages in flight on a link before its producers are paused."""

FOREIGN_WINDOW = 1024
"""Messages that wait in a replica for a foreign peer, or came from one and are not handled. What
ZeroMQ holds comes on top: a thousand for each peer and way, unless options say otherwise."""

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


class EndpointPlan(Struct, frozen=True):
    """One end of a foreign link, in each replica of its node: a ZeroMQ socket. `into` and `out` are
    the channels it brings messages to and takes them from; empty: none."""

    socket: str
    addresses: list[str]
    bind: bool
    into: str = ""
    out: str = ""
    topics: list[str] = field(default_factory=list)
    identity: str = ""
    to: str = ""
    peer: str | None = None
    codec: str | None = None
    window: int = FOREIGN_WINDOW
    window_bytes: int = DEFAULT_WINDOW_BYTES
    when_full: str = "block"
    timeout: float = 30.0
    aside: bool = False
    insecure: bool = False
    options: dict[str, int | str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What it is called in the books: ``PULL tcp://127.0.0.1:5555``."""
        return f"{self.socket} {', '.join(self.addresses)}"


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
    endpoints: list[EndpointPlan] = field(default_factory=list)
    """Its sockets for foreign peers."""

    @property
    def begins(self) -> bool:
        """Whether a stream begins in it: it is told when, and when to stop."""
        return self.source or any(one.into for one in self.endpoints)


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

    @property
    def keeper(self) -> str:
        """The node whose replicas keep its books: its producer, unless that is a foreign peer."""
        return self.source if self.out else self.target

    @property
    def ends(self) -> tuple[str, str]:
        """Where it comes from and where it leads, for people: ``split.words``."""
        return _end(self.source, self.out), _end(self.target, self.into)


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
                endpoints=_endpoints(topology, name, facts),
            )
        )
        origin += model.replicas
    links = _links(topology, inspection, origin)
    # What is sent to a foreign peer is forgotten, too.
    foreign = [link for link in foreign_links(nodes) if link.out]
    links = forgetting([*links, *foreign])[: len(links)]
    return Plan(
        project=topology.project,
        path=topology.path,
        nodes=nodes,
        links=links,
        modules=list(
            dict.fromkeys(node.use.partition(":")[0] for node in nodes if not node.external)
        ),
        env=topology.env,
        files=topology.files,
    )


def _endpoints(topology: Topology, node: str, facts: ClassFacts) -> list[EndpointPlan]:
    found = []
    for model in topology.endpoints:
        owner, channels = channels_of(model)
        if owner != node:
            continue
        window, window_bytes = window_of(model, FOREIGN_WINDOW)
        publishes = model.socket in PUBLISHERS
        found.append(
            EndpointPlan(
                socket=model.socket,
                addresses=model.addresses,
                bind=bool(model.bind),
                into=next((one for one in channels if facts.has("in", one)), ""),
                out=next((one for one in channels if facts.has("out", one)), ""),
                topics=model.topics if model.topics is not None else [""],
                identity=model.identity or "",
                to=model.to or "",
                peer=model.peer,
                codec=model.codec,
                window=window,
                window_bytes=window_bytes,
                when_full=model.when_full or ("drop-newest" if publishes else "block"),
                timeout=model.timeout,
                aside=model.aside,
                insecure=model.insecure,
                options=model.options,
            )
        )
    return found


def channels_of(model: EndpointModel) -> tuple[str, list[str]]:
    """The node of an endpoint and the channels that it names there."""
    parts = [one.partition(".") for one in model.channel]
    return (parts[0][0] if parts else ""), [channel for _, _, channel in parts]


def foreign_links(nodes: Iterable[NodePlan]) -> list[LinkPlan]:
    """The links to and from foreign peers, as the books know them. The peer has no node: its `out`
    or `into` is empty, and its name is the endpoint's."""
    links = []
    for node in nodes:
        for one in node.endpoints:
            for into, out in ((one.into, ""), ("", one.out)):
                if not into and not out:
                    continue
                source, target = (one.label, node.name) if into else (node.name, one.label)
                name = f"{_end(source, out)} -> {_end(target, into)}"
                links.append(
                    LinkPlan(
                        # Of the name, so that it is the same link in every edition of a file; below
                        # zero, where no other link is.
                        index=-2 - crc32(name.encode()),
                        name=name,
                        source=source,
                        out=out,
                        target=target,
                        into=into,
                        route="balance",
                        by=None,
                        window=one.window,
                        window_bytes=one.window_bytes,
                        codec=one.codec,
                        delivery="at-most-once",
                        when_full=one.when_full,
                        transport=one.addresses[0].partition(":")[0],
                        producers=node.replicas if out else 0,
                        consumers=node.replicas if into else 0,
                    )
                )
    return links


def _end(node: str, channel: str) -> str:
    return f"{node}.{channel}" if channel else node


def kept_by(plan: Plan, node: NodePlan) -> list[int]:
    """The links whose books the replicas of `node` keep, in the order of their rows."""
    own = [link.index for link in plan.links if link.source == node.name]
    return own + [link.index for link in foreign_links([node])]


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
    return links


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


def window_of(link: LinkModel | EndpointModel, messages: int = DEFAULT_WINDOW) -> tuple[int, int]:
    """The link's bounds in messages and in bytes; the one not given has its default."""
    if isinstance(link.window, int):
        return link.window, DEFAULT_WINDOW_BYTES
    return messages, size(link.window)
