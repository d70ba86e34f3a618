"""Toy graphs for the simulator, and what must come out of them.

A message is a string that tells its way: ``s0.12/a`` is what became of message 12 of replica 0 of
source ``s``. Handlers are pure, so what every node must see is computed, not recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from flowkit.protocol.events import Terms

Output = tuple[str, str]
"""A channel and a message sent on it."""

KEYS = 5


def key_of(message: str) -> str:
    """Messages that stem from the same or similar source messages share a key."""
    stem = message.split("/", 1)[0]
    _, dot, number = stem.partition(".")
    return f"k{int(number) % KEYS}" if dot else stem


def silent(channel: str, message: str) -> list[Output]:
    """The handler of a sink."""
    return []


def passing(mark: str, out: str = "out") -> Callable[[str, str], list[Output]]:
    """A handler that sends on what it gets, marked with `mark`."""
    return lambda channel, message: [(out, f"{message}/{mark}")]


@dataclass(frozen=True)
class Node:
    """A node of a toy graph.

    `count`: messages of a source, per replica; `many`: messages it sends under one position.
    `finish(replica, handled)`: what it sends at the end. `group`: how many batches are handled as
    one (``batch=``). `ordered`: check the order of messages per source replica and key.
    """

    name: str
    replicas: int = 1
    count: int = 0
    many: int = 1
    handle: Callable[[str, str], list[Output]] = silent
    finish: Callable[[int, int], list[Output]] | None = None
    outs: Sequence[str] = ("out",)
    group: int = 0
    concurrency: int = 1
    ordered: bool = False
    refuses: Callable[[str], bool] = lambda message: False
    """Which messages are given up: dead-lettered."""
    immune: bool = False
    """Never killed: its faults are not what the graph is about, or would make it send twice."""

    @property
    def source(self) -> bool:
        return self.count > 0


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and links."""

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Terms, ...]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def where(self, **changes: object) -> Graph:
        """The same graph with every link changed, such as its window."""
        return replace(self, links=tuple(replace(link, **changes) for link in self.links))

    def is_exact(self, name: str) -> bool:
        """Whether a message gets there once, as long as no replica of the node dies.

        Not in a pool, where a copy may go to another replica; nor behind one on a link that has no
        ids to tell the copy by.
        """
        pool = self.node(name).replicas > 1
        for link in self.links:
            if link.target == name:
                if pool and link.route == "balance" and not link.lossy:
                    return False
                if link.lossy and not self.is_exact(link.source):
                    return False
        return True


def graph(name: str, nodes: Sequence[Node], links: Sequence[tuple[str, ...]]) -> Graph:
    """Links are written ("source.out", "target.in") or ("source.out", "target.in", route)."""
    replicas = {node.name: node.replicas for node in nodes}
    terms = []
    for index, (tail, head, *more) in enumerate(links):
        source, out = tail.split(".")
        target, into = head.split(".")
        terms.append(
            Terms(
                index,
                f"{tail} -> {head}",
                source,
                out,
                target,
                into,
                replicas[source],
                replicas[target],
                more[0] if more else "balance",
                lossy="lossy" in more[1:],
                when_full="drop-oldest" if "drop" in more[1:] else "block",
            )
        )
    return Graph(name, tuple(nodes), tuple(terms))


@dataclass
class Expectation:
    """What nodes must see. `by_origin`: of each source message, for checking what is committed."""

    total: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    by_origin: dict[tuple[str, int, int], Counter[Output]] = field(default_factory=dict)


def source_messages(node: Node, replica: int, position: int) -> list[Output]:
    """What a source sends under one position."""
    first = position * node.many
    last = min(first + node.many, node.count)
    return [(out, f"{node.name}{replica}.{n}") for n in range(first, last) for out in node.outs]


def positions(node: Node) -> int:
    return -(-node.count // node.many)


def expect(graph: Graph) -> Expectation:
    """Follow every message through the graph."""
    result = Expectation(total={node.name: Counter() for node in graph.nodes})

    def follow(source: str, output: Output, times: int, seen: Counter[Output]) -> None:
        out, message = output
        for link in graph.links:
            if (link.source, link.out) == (source, out):
                target = graph.node(link.target)
                copies = times * (target.replicas if link.route == "broadcast" else 1)
                if target.refuses(message):
                    result.refused[target.name] += copies
                    continue
                seen[target.name, message] += copies
                for sent in target.handle(link.into, message):
                    follow(target.name, sent, copies, seen)

    for node in graph.nodes:
        for replica in range(node.replicas if node.source else 0):
            for position in range(positions(node)):
                seen: Counter[Output] = Counter()
                for output in source_messages(node, replica, position):
                    follow(node.name, output, 1, seen)
                result.by_origin[node.name, replica, position] = seen
                for (name, message), times in seen.items():
                    result.total[name][message] += times
    for node in graph.nodes:
        for replica in range(node.replicas if node.finish else 0):
            assert node.finish is not None
            seen = Counter()
            for output in node.finish(replica, result.total[node.name].total()):
                follow(node.name, output, 1, seen)
            for (name, message), times in seen.items():
                result.total[name][message] += times
    return result


def _amplify(mark: str, times: int) -> Callable[[str, str], list[Output]]:
    return lambda channel, message: [("out", f"{message}/{mark}{n}") for n in range(times)]


def _by_channel(channel: str, message: str) -> list[Output]:
    return [("out", f"{message}/{channel}")]


def _goodbye(replica: int, handled: int) -> list[Output]:
    return [("out", f"bye{replica}-{n}") for n in range(3)]


def _total(replica: int, handled: int) -> list[Output]:
    return [("out", f"total-{handled}")]


POOL_SINK = graph(
    "pool to sink",
    [
        Node("s", count=40),
        Node("w", 3, handle=passing("w")),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "t.in")],
)

POOL_KEYED_SINK = graph(
    "pool to keyed to sink",
    [
        Node("s", count=36),
        Node("w", 2, handle=passing("w")),
        Node("k", 2, handle=passing("k")),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "k.in", "key"), ("k.out", "t.in")],
)

POOL_POOL_SINK = graph(
    "pool to pool to sink",
    [
        Node("s", count=36),
        Node("w", 2, handle=passing("w")),
        Node("x", 3, handle=passing("x"), concurrency=2),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "x.in"), ("x.out", "t.in")],
)

SOURCES_CHUNKS = graph(
    "two sources with chunks",
    [
        Node("s", 2, count=16, many=4),
        Node("w", 2, handle=_amplify("a", 3)),
        Node("k", 2, handle=_amplify("b", 2)),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "k.in", "key"), ("k.out", "t.in")],
)

DIAMOND = graph(
    "diamond",
    [
        Node("s", count=24),
        Node("a", 2, handle=passing("a")),
        Node("b", 2, handle=passing("b")),
        Node("d", handle=passing("d")),
        Node("t"),
    ],
    [
        ("s.out", "a.in"),
        ("s.out", "b.in"),
        ("a.out", "d.left"),
        ("b.out", "d.right"),
        ("d.out", "t.in"),
    ],
)

TWO_INPUTS = graph(
    "one output on two inputs of the same node",
    [
        Node("s", count=24),
        Node("w", 2, handle=passing("w")),
        Node("d", 2, handle=_by_channel),
        Node("t"),
    ],
    [
        ("s.out", "w.in"),
        ("w.out", "d.left", "key"),
        ("w.out", "d.right", "key"),
        ("d.out", "t.in"),
    ],
)

BROADCAST = graph(
    "broadcast",
    [
        Node("s", count=24),
        Node("w", 2, handle=passing("w")),
        Node("b", 3, handle=passing("b")),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "b.in", "broadcast"), ("b.out", "t.in")],
)

FINISH = graph(
    "finish that sends",
    [
        Node("s", count=24),
        Node("w", 2, handle=passing("w"), finish=_goodbye),
        Node("k", 2, handle=passing("k"), finish=_goodbye),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "k.in", "key"), ("k.out", "t.in")],
)

COUNT = graph(
    "a count at the end",
    [
        Node("s", count=24),
        Node("w", 2, handle=passing("w")),
        Node("c", finish=_total, immune=True),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "c.in"), ("c.out", "t.in")],
)

ORDER = graph(
    "order per key",
    [
        Node("s", 2, count=30, many=2),
        Node("k", 2, handle=passing("k"), ordered=True),
        Node("t", ordered=True),
    ],
    [("s.out", "k.in", "key"), ("k.out", "t.in")],
)

GROUPS = graph(
    "groups of batches",
    [
        Node("s", count=30),
        Node("w", 2, handle=passing("w")),
        Node("g", handle=passing("g"), group=4),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "g.in"), ("g.out", "t.in")],
)

LOSSY = graph(
    "at most once",
    [
        Node("s", count=30),
        Node("w", 2, handle=passing("w")),
        Node("t"),
    ],
    [("s.out", "w.in", "balance", "lossy"), ("w.out", "t.in", "balance", "lossy")],
)

REFUSING = graph(
    "dead letters",
    [
        Node("s", count=30),
        Node("w", 2, handle=passing("w")),
        Node("t", refuses=lambda message: key_of(message) == "k3"),
    ],
    [("s.out", "w.in"), ("w.out", "t.in")],
)

LOSSY_FIRST = graph(
    "at most once, then at least once",
    [
        Node("s", count=30),
        Node("w", 2, handle=passing("w")),
        Node("t"),
    ],
    [("s.out", "w.in", "balance", "lossy"), ("w.out", "t.in")],
)

DROPPING = graph(
    "at most once, the oldest dropped",
    [
        Node("s", 2, count=30, many=3),
        Node("k", 2, handle=passing("k")),
        Node("t"),
    ],
    [("s.out", "k.in", "key", "lossy", "drop"), ("k.out", "t.in", "broadcast", "lossy", "drop")],
).where(window=4)

LOSSY_LAST = graph(
    "at least once, then at most once",
    [
        Node("s", count=30),
        Node("w", 2, handle=passing("w")),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "t.in", "balance", "lossy")],
)

TIMERS = graph(
    "a pool with timers",
    [
        Node("s", count=40),
        Node("w", 2, handle=passing("w")),
        Node("t"),
    ],
    [("s.out", "w.in"), ("w.out", "t.left"), ("w.out", "t.right")],
)
"""For `worlds.TimerWorld`, in which `w` also sends what nobody asked for."""

EXACT = (
    POOL_SINK,
    POOL_KEYED_SINK,
    POOL_POOL_SINK,
    SOURCES_CHUNKS,
    DIAMOND,
    TWO_INPUTS,
    BROADCAST,
    FINISH,
    COUNT,
    ORDER,
    GROUPS,
)
"""Graphs with at-least-once links: nothing may be lost."""
