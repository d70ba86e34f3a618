"""What the pattern of a link demands of its keys, its channels and its nodes.

Pure, as `check`, which asks it about each link.
"""

from __future__ import annotations

from collections.abc import Callable

from flowkit.topology.facts import ChannelFacts
from flowkit.topology.model import LinkModel, Topology
from flowkit.topology.source import Path, Place

Say = Callable[[Place, str, str, str], None]

_USELESS: dict[str, tuple[tuple[str, ...], str]] = {
    "request": (
        ("route", "by", "delivery", "durable", "fsync", "when_full", "window"),
        "a question goes to the server with the fewest in hand, and is asked again only if its "
        "asker says so (retries=)",
    ),
    "pubsub": (
        ("route", "delivery", "durable", "fsync"),
        "every subscriber gets what it has subscribed to, at most once, and a slow one misses some",
    ),
    "pair": (("route", "by"), "a pair has one replica at each end"),
}
"""By pattern: the keys of a link that it has no use for, and why."""


def options(topology: Topology, index: int, link: LinkModel, say: Say) -> None:
    """Keys that the pattern of a link excludes or needs."""
    marks = topology.marks
    at: Path = ("links", index)
    useless, why = _USELESS.get(link.pattern, ((), ""))
    for key in useless:
        if (*at, key) in marks.keys:
            say(
                marks.key((*at, key)),
                "E115",
                f"'{key}' has no meaning with pattern: {link.pattern}",
                f"remove it: {why}",
            )
    if link.pattern == "pubsub" and (*at, "when_full") in marks.keys and link.when_full == "block":
        say(
            marks.value((*at, "when_full")),
            "E115",
            "a publisher waits for nobody: 'when_full: block' has no meaning with pattern: pubsub",
            "use drop-newest (the default there) or drop-oldest, and a larger window",
        )
    if link.topics and link.pattern != "pubsub":
        say(
            marks.key((*at, "topics")),
            "E115",
            f"'topics' has no meaning with pattern: {link.pattern}",
            "add 'pattern: pubsub', or remove 'topics'",
        )
    if link.pattern == "pair":
        _pair(topology, at, link, say)


def _pair(topology: Topology, at: Path, link: LinkModel, say: Say) -> None:
    place = topology.marks.value((*at, "pattern"))
    if len(link.to) > 1:
        say(
            topology.marks.value((*at, "to")),
            "E209",
            "a pair has two ends, and this leads to several inputs",
            "use pattern: pipeline or pubsub, or one pair for each",
        )
    for end in (link.from_, *link.to):
        name = end.partition(".")[0]
        node = topology.nodes.get(name)
        if node is not None and node.replicas > 1:
            say(
                place,
                "E209",
                f"a pair has one replica at each end, and '{name}' has {node.replicas}",
                "use pattern: pipeline, or one replica",
            )


def channels(
    place: Place,
    link: LinkModel,
    source: tuple[str, ChannelFacts],
    target: tuple[str, ChannelFacts],
    say: Say,
) -> bool:
    """Whether the two ends of a link are of the kind that its pattern joins; reports it if not."""
    (out, sends), (into, takes) = source, target
    asks, serves = bool(sends.answer), bool(takes.answer)
    if link.pattern == "request":
        if asks and serves:
            return True
        wrong, kind, wanted = (out, "an Out", "a Call") if not asks else (into, "an In", "a Serve")
        say(
            place,
            "E209",
            f"pattern: request joins a Call with a Serve, and '{wrong}' is {kind}",
            f"declare it as {wanted}(Question, Answer), or remove 'pattern: request'",
        )
        return False
    if not asks and not serves:
        return True
    which, kind = (out, "a Call") if asks else (into, "a Serve")
    both = "add 'pattern: request' to the link" if asks and serves else "join a Call with a Serve"
    say(
        place,
        "E209",
        f"'{which}' is {kind}, which pattern: {link.pattern} cannot carry",
        both,
    )
    return False
