"""Problems of the graph: what the links say about nodes and channels.

Pure: it is handed what the node classes declare, and imports none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowkit.errors import Problem
from flowkit.importing import did_you_mean, suggest
from flowkit.topology import endpoints, names, patterns
from flowkit.topology.facts import Inspection
from flowkit.topology.model import LinkModel, Topology
from flowkit.topology.plan import FORGETTING
from flowkit.topology.source import Path, Place

MAX_ALL_REPLICAS = 65_535

MOST_COMPARISONS = 20_000
"""Names that are compared to find what a misspelt node may have meant: about a second's worth."""


_OF_PROCESSES = {
    "with": "the application builds the node",
    "env": "the application has an environment of its own",
    "restart": "the application starts itself",
    "blocked": "the application watches its own loop",
}
"""Keys of a node that say how its processes are run."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link: ``node.channel`` and where it is written."""

    node: str
    channel: str
    path: Path

    def __str__(self) -> str:
        return f"{self.node}.{self.channel}"


def ends(topology: Topology, index: int) -> tuple[End | None, list[End]]:
    """The output and the inputs of link `index`; what was not readable is left out."""
    link = topology.links[index]
    source = _end(link.from_, ("links", index, "from"))
    listed = ("links", index, "to", 0) in topology.marks.values
    targets = []
    for at, text in enumerate(link.to):
        path: Path = ("links", index, "to", at) if listed else ("links", index, "to")
        end = _end(text, path)
        if end is not None:
            targets.append(end)
    return source, targets


def _end(text: str, path: Path) -> End | None:
    node, dot, channel = text.partition(".")
    return End(node, channel, path) if dot else None


def check(topology: Topology, inspection: Inspection, readable: bool = True) -> list[Problem]:
    """Every problem of the graph, with those the inspection found.

    `readable` says that the file as such had no problems; if it had and no link was understood,
    they are more likely misspelt than forgotten.
    """
    graph = _Graph(topology, inspection)
    problems = graph.problems
    for finding in inspection.findings:
        path = tuple(finding.where)
        place = topology.marks.key(path) if finding.key else topology.marks.value(path)
        if finding.part:
            place = place.within(finding.part)
        problems.append(place.problem(finding.code, finding.message, finding.hint))
    for name in topology.nodes:
        graph.external(name)
    for index, link in enumerate(topology.links):
        graph.options(index, link)
        graph.link(index)
    graph.used |= endpoints.examine(topology, inspection.classes, graph.say)
    graph.count()
    graph.cycles()
    if readable or any(link.from_ and link.to and all(link.to) for link in topology.links):
        graph.unconnected()
    return problems


class _Graph:
    def __init__(self, topology: Topology, inspection: Inspection) -> None:
        self.topology = topology
        self.classes = inspection.classes
        self.problems: list[Problem] = []
        self._edges: dict[str, dict[str, Place]] = {}
        self._seen: dict[tuple[str, str], Place] = {}
        self._asks: dict[str, Place] = {}
        self.used: set[tuple[str, str, str]] = set()
        # Nodes that a misspelt end most probably meant: not also reported as unconnected.
        self._excused: set[str] = set()
        self._comparisons = MOST_COMPARISONS

    def say(self, place: Place, code: str, message: str, hint: str = "") -> None:
        self.problems.append(place.problem(code, message, hint))

    # -- one node ----------------------------------------------------------------------------

    def external(self, name: str) -> None:
        """Keys of a node that have no meaning where an application runs it."""
        node = self.topology.nodes[name]
        if not node.external:
            return
        for key, why in _OF_PROCESSES.items():
            at: Path = ("nodes", name, key)
            if at in self.topology.marks.keys:
                self.say(
                    self.topology.marks.key(at),
                    "E115",
                    f"'{key}' has no meaning with external: {why}",
                    f"remove '{key}', or 'external'",
                )

    # -- one link ----------------------------------------------------------------------------

    def options(self, index: int, link: LinkModel) -> None:
        """Keys of a link that exclude or need each other."""
        marks = self.topology.marks
        at: Path = ("links", index)
        if (
            link.when_full != "block"
            and link.delivery != "at-most-once"
            and link.pattern not in FORGETTING
        ):
            self.say(
                marks.value((*at, "when_full")),
                "E115",
                f"when_full: {link.when_full} loses messages, and delivery: at-least-once "
                "promises not to",
                "add 'delivery: at-most-once', or remove when_full",
            )
        if link.durable and link.delivery == "at-most-once":
            self.say(
                marks.value((*at, "durable")),
                "E115",
                "durable keeps messages until they are done, and delivery: at-most-once does not",
                "remove one of the two",
            )
        if link.fsync != "group" and not link.durable and link.pattern not in FORGETTING:
            self.say(
                marks.key((*at, "fsync")),
                "E115",
                "'fsync' has no meaning without a journal",
                "add 'durable: true', or remove 'fsync'",
            )
        patterns.options(self.topology, index, link, self.say)
        if link.by is not None and link.route != "key" and link.pattern == "pipeline":
            self.say(
                marks.key((*at, "by")),
                "E115",
                f"'by' has no meaning with route: {link.route}",
                "add 'route: key', or remove 'by'",
            )
        if link.codec == "pickle" and link.transport == "tcp":
            self.say(
                marks.value((*at, "codec")),
                "E115",
                "codec: pickle over transport: tcp would let any peer run code",
                "use msgpack, or transport: ipc",
            )

    def link(self, index: int) -> None:
        """The ends of one link."""
        link = self.topology.links[index]
        source, targets = ends(self.topology, index)
        if source is None:
            self._excuse(self.topology.marks.value(("links", index, "from")))
        elif not self._known(source, "out"):
            source = None
        else:
            self.used.add(("out", source.node, source.channel))
        if not targets:
            self._excuse(self.topology.marks.value(("links", index, "to")))
        for target in targets:
            if not self._known(target, "in"):
                continue
            self.used.add(("in", target.node, target.channel))
            if source is None:
                continue
            place = self.topology.marks.value(target.path)
            pair = (str(source), str(target))
            if pair in self._seen:
                self.say(
                    place,
                    "E208",
                    f"duplicate link {source} -> {target}: {self._seen[pair]} and {place}",
                    "every message would arrive twice; remove one",
                )
                continue
            self._seen[pair] = place
            if not self._fits(link, source, target, place):
                continue
            if source.node == target.node:
                self.say(
                    place,
                    "E204",
                    f"'{source.node}' is linked to itself: {source} -> {target}",
                    "a node's output cannot be its own input: it would wait for itself",
                )
            else:
                self._edges.setdefault(source.node, {}).setdefault(target.node, place)

    def _fits(self, link: LinkModel, source: End, target: End, place: Place) -> bool:
        """Whether the channels are of the kind that the link's pattern joins; reports it if not."""
        sending, taking = self.classes.get(source.node), self.classes.get(target.node)
        out = sending and sending.channel("out", source.channel)
        into = taking and taking.channel("in", target.channel)
        if not out or not into:
            return True
        ends = (str(source), out), (str(target), into)
        if not patterns.channels(place, link, *ends, self.say):
            return False
        before = self._asks.setdefault(str(source), place) if out.answer else place
        if before is not place:
            self.say(
                place,
                "E209",
                f"'{source}' asks another node already: {before}",
                "a question has one answer: declare a Call for each, or link to one of them",
            )
        return before is place

    def _excuse(self, place: Place) -> None:
        """The nodes that are named in an end that cannot be read were meant to be connected."""
        written = place.text.line(place.line)[place.column - 1 :][: place.length]
        words = names.skeleton(written).strip("\"'[]").replace(",", ".").split(".")
        self._excused.update(word.strip() for word in words)

    def _known(self, end: End, direction: str) -> bool:
        """Whether the node and its channel exist; reports it if not."""
        place = self.topology.marks.value(end.path).within(str(end))
        if end.node not in self.topology.nodes:
            self._comparisons -= len(self.topology.nodes)
            nodes = self.topology.nodes if self._comparisons >= 0 else {}
            guess = suggest(end.node, nodes)
            if guess is not None:
                self._excused.add(guess)
            self.say(
                place.within(end.node),
                "E201",
                f"link {'from' if direction == 'out' else 'to'} unknown node '{end.node}'",
                did_you_mean(end.node, nodes),
            )
            return False
        facts = self.classes.get(end.node)
        if facts is None or facts.has(direction, end.channel):
            return True
        after_dot = Place(
            place.text, place.line, place.column + len(end.node) + 1, len(end.channel)
        )
        spot = after_dot if place.length == len(str(end)) else place
        self._excused.add(end.node)
        word = "output" if direction == "out" else "input"
        other = "in" if direction == "out" else "out"
        if facts.has(other, end.channel):
            self.say(
                spot,
                "E203",
                f"'{end}' is an {'input' if other == 'in' else 'output'}, not an {word}",
                "'from' takes an output, 'to' takes an input",
            )
            return False
        channels = facts.outputs if direction == "out" else facts.inputs
        known = [one.name for one in channels]
        hint = did_you_mean(end.channel, known) or (
            f"its {word}s are {', '.join(known)}" if known else f"it has no {word}s"
        )
        self.say(spot, "E202", f"node '{end.node}' has no {word} '{end.channel}'", hint)
        return False

    def count(self) -> None:
        """Every replica has a number of its own, which travels in 16 bits."""
        total = 0
        for name, node in self.topology.nodes.items():
            total += node.replicas
            if total > MAX_ALL_REPLICAS:
                self.say(
                    self.topology.marks.value(("nodes", name, "replicas")),
                    "E107",
                    f"with node '{name}' the project has {total:,} replicas",
                    f"a project has at most {MAX_ALL_REPLICAS:,}",
                )
                return

    # -- the whole ---------------------------------------------------------------------------

    def cycles(self) -> None:
        """Report each cycle once, as a path."""
        state: dict[str, int] = {}  # 1: on the path, 2: done
        for start in self.topology.nodes:
            if state.get(start):
                continue
            path = [start]
            state[start] = 1
            pending = [iter(self._edges.get(start, {}).items())]
            while pending:
                step = next(pending[-1], None)
                if step is None:
                    pending.pop()
                    state[path.pop()] = 2
                    continue
                target, place = step
                if state.get(target) == 1:
                    round_ = [*path[path.index(target) :], target]
                    self.say(
                        place,
                        "E205",
                        "the links form a cycle: " + " -> ".join(round_),
                        "a cycle never ends and can block itself; remove one of its links",
                    )
                elif not state.get(target):
                    state[target] = 1
                    path.append(target)
                    pending.append(iter(self._edges.get(target, {}).items()))

    def unconnected(self) -> None:
        """Channels that no link mentions."""
        for name in self.topology.nodes:
            facts = self.classes.get(name)
            if facts is None or name in self._excused or not names.valid(name):
                continue
            place = self.topology.marks.key(("nodes", name))
            for channel in facts.inputs:
                if ("in", name, channel.name) not in self.used:
                    self.say(
                        place,
                        "E206",
                        f"input '{name}.{channel.name}' is connected to nothing",
                        f"it would wait for ever; add a link to {name}.{channel.name}",
                    )
            for channel in facts.outputs:
                if ("out", name, channel.name) not in self.used:
                    self.say(
                        place,
                        "E207",
                        f"output '{name}.{channel.name}' is connected to nothing",
                        "nobody would answer; add a link with pattern: request"
                        if channel.answer
                        else f"what it sends would be lost; add a link from {name}.{channel.name}",
                    )
