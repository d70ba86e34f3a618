"""The verdict: what limits the flow of a project, and what would help.

A pure function of a `Situation`: how the replicas spent their time, and what held links up. It
reasons as one who looks at `top` does: the limit is a node that works nearly all the time while
those before it wait for it. If nobody works that much, a link holds its producers up although its
consumers have time, or there is nothing to do but to wait for input.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from flowkit.units import human_count

BUSY = 0.6
"""Share of the time in handlers above which a node may be the limit. One that shares its core with
others, or has short messages, seldom gets far above it."""

SATURATED = 0.9
"""Share above which a node is the limit even if nobody waits for it yet."""

PRESSED = 0.1
"""Share of the time that producers wait for a link above which it counts as held up."""

HELD_UP = 0.3
"""The same, for a link to be the limit although its consumers are not busy."""

WINDOW = 0.5
"""Share of the time that a link held its producers up, above which it is its window that did."""

CORES = 0.9
"""Share of the machine's cores in use above which more replicas would only share them."""

STARVED = 0.25
"""The same said by the system: share of the time that a process could run and had no core."""

ASLEEP = 0.5
"""Share of a core below which a node that is at work waits for something outside."""

UNEVEN = 2.0
"""How many times as busy as its siblings a replica is that has more than its part."""


class NodeShare(Struct, frozen=True):
    """How the replicas of a node spent their time, as shares of it between 0 and 1; a list has an
    entry for each replica.

    `busy` in handlers (of a source: reading), `waiting` for room downstream, `rate` messages
    handled per second, `cpu` cores used (None: not known), `starved` ready to run without a core.
    """

    node: str
    busy: list[float]
    waiting: list[float]
    rate: list[float] = []
    cpu: list[float | None] = []
    starved: list[float] = []
    source: bool = False
    stateful: bool = False
    concurrency: int = 0
    """How many of its handlers may run at once, if they are coroutines."""
    lists: int = 0
    """How many messages a handler takes at once, if it takes lists."""
    committing: float = 0.0
    """The part of `busy` that went into making things durable, on average."""
    stopped: bool = False
    """Whether the operator has stopped it, or it is external and not attached."""
    recent: bool = False
    """Whether a replica was started meanwhile: before that nobody took what others held back."""
    external: bool = False
    awaiting: float = 0.0
    """Of a source: the share of the time that it waited for its input, on average."""

    @property
    def cores(self) -> float | None:
        """Cores used by all its replicas; None if not known of each."""
        known = [one for one in self.cpu if one is not None]
        return sum(known) if known and len(known) == len(self.busy) else None


class LinkShare(Struct, frozen=True):
    """How a link was: `full` is the share of the time that it held its producer up, `by_window`
    that because its window was used up, `dropping` messages per second for want of room."""

    source: str
    target: str
    name: str
    route: str = "balance"
    full: float = 0.0
    by_window: float = 0.0
    window: int = 0
    dropping: float = 0.0
    asks: bool = False
    """Whether it carries questions: handlers of its source wait for those of its target."""


class Situation(Struct, frozen=True):
    """What a verdict is passed on. `cores` are those that the processes may use."""

    nodes: list[NodeShare]
    links: list[LinkShare]
    cores: int = 0


class Verdict(Struct, frozen=True):
    """What limits. `kind` is one of::

        handler   a node works all the time             skew    one replica of a keyed node does
        sink      the same, where the flow ends         window  a link admits too little at once
        cores     the same, and no core is free         source  a source reads as fast as it can
        overhead  a link is held up by a node that      input   nothing limits: sources wait
                  is not busy in its handlers           idle    nothing limits: little to do
        stopped   a node that the operator stopped      early   not seen enough yet
        absent    a node that no application attaches

    `bottleneck` is a node or the name of a link, None if nothing limits. `busy` is its share of the
    time, `waits` who waits most for it and `waiting` for how much of the time. `advice` and `text`
    are for people.
    """

    bottleneck: str | None
    busy: float
    advice: str
    kind: str = "idle"
    waits: str | None = None
    waiting: float = 0.0

    @property
    def text(self) -> str:
        """All of it in one line."""
        if self.bottleneck is None:
            return self.advice
        facts = [f"busy {100 * self.busy:.0f} %"]
        if self.kind in ("window", "stopped", "absent"):
            facts = [] if self.kind == "window" else [self.kind]
        if self.waits is not None:
            facts.append(f"{self.waits} waited {100 * self.waiting:.0f} % of the time")
        return f"bottleneck: {self.bottleneck} ({'; '.join(facts)}) - try: {self.advice}"


IDLE = Verdict(None, 0.0, "nothing limits: there is little to do", "idle")
EARLY = Verdict(None, 0.0, "too early to say what limits", "early")


def verdict(situation: Situation) -> Verdict:
    """Say what limits the flow in `situation`."""
    judge = _Judge(situation)
    return judge.stopped() or judge.node() or judge.link() or judge.source() or judge.nothing()


class _Judge:
    def __init__(self, situation: Situation) -> None:
        self._links = situation.links
        self._cores = situation.cores
        self._workers = [node for node in situation.nodes if not node.source]
        self._sources = [node for node in situation.nodes if node.source and not node.stopped]
        self._nodes = {node.node: node for node in situation.nodes}

    # -- the candidates ------------------------------------------------------------------------

    def stopped(self) -> Verdict | None:
        """A node that was stopped, or is not attached, if others wait for it."""
        for node in self._workers:
            link = self._fullest(self._into(node))
            if node.stopped and link is not None and link.full >= HELD_UP:
                if node.external:
                    return self._verdict(node.node, 0.0, "absent", "start its application", link)
                advice = f"flowkit start {node.node}"
                return self._verdict(node.node, 0.0, "stopped", advice, link)
        return None

    def node(self) -> Verdict | None:
        """The node that works most, if that is what all wait for."""
        busiest = max(self._workers, key=self._load, default=None)
        if busiest is None or self._load(busiest) < BUSY:
            return None
        link = self._fullest(self._into(busiest))
        pressed = link is not None and link.full >= PRESSED
        starved = any(_mean(one.busy) + one.awaiting >= BUSY for one in self._sources)
        if not pressed and self._load(busiest) < SATURATED and starved:
            return None  # it keeps up with what its sources read
        kind, advice = self._help(busiest)
        return self._verdict(busiest.node, self._load(busiest), kind, advice, link)

    def link(self) -> Verdict | None:
        """A link that holds its producers up although nobody behind it works all the time."""
        held = [link for link in self._links if link.full >= HELD_UP]
        # What is held up itself only hands the waiting on: the cause is the last one.
        last = [link for link in held if not self._holds_up(link.target, held)]
        link = self._fullest(last or held)
        if link is None:
            return None
        target = self._nodes.get(link.target)
        if target is not None and target.recent:
            return EARLY
        if link.by_window >= WINDOW * link.full:
            advice = f"raise its window ({link.window:,}): {link.target} could take more"
            return self._verdict(link.name, 0.0, "window", advice, link)
        if target is None:
            return None
        target = max(self._asked(target), key=self._load)
        if target.external and not self._load(target):
            return self._verdict(target.node, 0.0, "absent", "start its application", link)
        kind, advice = self._help(target)
        kind = kind if kind in ("cores", "skew") else "overhead"
        return self._verdict(target.node, self._load(target), kind, advice, link)

    def source(self) -> Verdict | None:
        """A source that is never held up, and works to read."""
        reader = max(self._sources, key=lambda one: _mean(one.busy), default=None)
        if reader is not None and _mean(reader.busy) < BUSY:
            reader = max(self._sources, key=lambda one: _mean(one.busy) + one.awaiting)
        if reader is None or _mean(reader.busy) + reader.awaiting < BUSY:
            return None
        cores = reader.cores
        waits = reader.awaiting > _mean(reader.busy)
        if waits or (cores is not None and cores < ASLEEP * len(reader.busy)):
            text = f"nothing limits: {reader.node} waits for its input"
            return Verdict(None, 0.0, text, "input")
        advice = f"everything waits for {reader.node} to read its input: make read() faster"
        if not reader.stateful:
            advice += f", or scale {reader.node} if replicas can share what is read"
        return Verdict(reader.node, round(_mean(reader.busy), 4), advice, "source")

    def nothing(self) -> Verdict:
        for node in self._nodes.values():
            if node.stopped:
                text = f"nothing limits, but {node.node} is stopped: flowkit start {node.node}"
                if node.external:
                    text = f"nothing limits, but {node.node} is absent: start its application"
                return Verdict(None, 0.0, text, "idle")
        return IDLE

    # -- what helps ----------------------------------------------------------------------------

    def _help(self, node: NodeShare) -> tuple[str, str]:
        """The kind of limit that a busy node is, and what would help."""
        name = node.node
        uneven = self._uneven(node)
        if uneven is not None:
            return "skew", uneven
        if self._no_core_for(node):
            return "cores", "make its handler faster, or give it more cores: all are in use"
        keyed = any(link.route == "key" for link in self._into(node))
        ways = [f"scale {name}"]
        if all(link.route == "broadcast" for link in self._into(node)):
            ways = ["make its handler faster"]  # more replicas would each get everything as well
        elif node.stateful and not keyed:
            ways = [f"scale {name}, with route: key on its input, or make its handler faster"]
        ends = not any(link.source == name for link in self._links)
        if not self._awake(node):
            if node.committing >= _mean(node.busy) / 2:
                ways.append(self._commit_more(node))
            elif node.concurrency:
                ways.append(f"raise concurrency= of its input ({node.concurrency})")
            elif ends and not node.lists and not node.stateful:
                ways.append("write many at once: In(..., batch=)")
        return "sink" if ends else "handler", ", or ".join(ways) + self._losses(node)

    def _uneven(self, node: NodeShare) -> str | None:
        """What to say if one replica has far more to do than the others."""
        routes = {link.route for link in self._into(node)}
        if len(node.busy) < 2 or not routes & {"key", "broadcast"}:
            return None
        hot = max(range(len(node.busy)), key=lambda number: node.busy[number])
        rest = [busy for number, busy in enumerate(node.busy) if number != hot]
        if node.busy[hot] < UNEVEN * _mean(rest):
            return None
        name = f"{node.node}.{hot}"
        share = node.rate[hot] / sum(node.rate) if node.rate and sum(node.rate) > 0 else 0.0
        if "key" in routes and share >= UNEVEN / (1 + UNEVEN):
            return (
                f"a finer key: {name} gets {100 * share:.0f} % of the messages of {node.node}, and "
                "more replicas would not change that"
            )
        if "key" in routes:
            return (
                f"a finer key: the messages of some keys, all in {name}, take longer than others, "
                "and more replicas would not change that"
            )
        return f"find out why {name} is slower than its siblings, which get the same messages"

    def _commit_more(self, node: NodeShare) -> str:
        link = self._fullest(self._into(node))
        if link is not None and link.by_window >= WINDOW * link.full > 0:
            window = f"raise the window of {link.name} ({link.window:,})"
            return f"let each commit() cover more: {window}"
        return "make its commit() faster"

    def _losses(self, node: NodeShare) -> str:
        """What links before `node` lose meanwhile."""
        link = max(self._into(node), key=lambda one: one.dropping, default=None)
        if link is None or link.dropping <= 0:
            return ""
        return f"; meanwhile {link.name} drops {human_count(link.dropping)} a second"

    def _asked(self, node: NodeShare) -> list[NodeShare]:
        """`node`, and all that it waits for because it asks them, or those that they ask."""
        found = [node]
        for one in found:
            targets = {link.target for link in self._links if link.asks and link.source == one.node}
            found += [
                self._nodes[name]
                for name in sorted(targets)
                if name in self._nodes and self._nodes[name] not in found
            ]
        return found

    # -- looking -------------------------------------------------------------------------------

    def _load(self, node: NodeShare) -> float:
        """How busy a node is: where a message cannot go elsewhere, its busiest replica counts."""
        if any(link.route in ("key", "broadcast") for link in self._into(node)):
            return max(node.busy, default=0.0)
        return _mean(node.busy)

    def _awake(self, node: NodeShare) -> bool:
        """Whether a busy node computes, as far as is known, rather than waits for others."""
        cores = node.cores
        if cores is None:
            return True
        working = sum(node.busy) or 1.0
        return cores + sum(node.starved) >= ASLEEP * working

    def _no_core_for(self, node: NodeShare) -> bool:
        """Whether its replicas would run more if the machine had more cores."""
        cores, starved = node.cores, sum(node.starved)
        if cores is None or not self._awake(node):
            return False
        if starved >= STARVED * (cores + starved):
            return True
        return self._cores > 0 and self._in_use() >= CORES * self._cores

    def _in_use(self) -> float:
        return sum(node.cores or 0.0 for node in self._nodes.values())

    def _into(self, node: NodeShare) -> list[LinkShare]:
        return [link for link in self._links if link.target == node.node]

    def _holds_up(self, node: str, held: Iterable[LinkShare]) -> bool:
        return any(link.source == node for link in held)

    def _fullest(self, links: Iterable[LinkShare]) -> LinkShare | None:
        return max(links, key=lambda link: link.full, default=None)

    def _verdict(
        self, name: str, busy: float, kind: str, advice: str, link: LinkShare | None
    ) -> Verdict:
        waits = link.source if link is not None and link.full >= PRESSED else None
        waiting = link.full if link is not None and waits is not None else 0.0
        return Verdict(name, round(busy, 4), advice, kind, waits, round(waiting, 4))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
