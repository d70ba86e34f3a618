"""What is to change in a running project, and what forbids it.

Pure. Links of a running project are named by their index for ever; the version of a key map counts
how often it changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from flowkit.importing import did_you_mean
from flowkit.topology.model import MAX_REPLICAS
from flowkit.topology.plan import LinkPlan, NodePlan, Plan

Refusal = tuple[str, str]
"""Why something cannot be done, and what to do instead."""

AGAIN = "drain the project, change the file, and start it again"


def scaled(plan: Plan, replicas: Mapping[str, int]) -> Plan:
    """The same project with other numbers of replicas of some nodes."""
    nodes = [replace(node, replicas=replicas.get(node.name, node.replicas)) for node in plan.nodes]
    counts = {node.name: node.replicas for node in nodes}
    links = []
    for link in plan.links:
        producers, consumers = counts[link.source], counts[link.target]
        moved = link.route == "key" and consumers != link.consumers
        links.append(
            replace(link, producers=producers, consumers=consumers, version=link.version + moved)
        )
    return replace(plan, nodes=nodes, links=links)


def refusals(plan: Plan, replicas: Mapping[str, int], lose_state: bool) -> list[Refusal]:
    """Why `plan` cannot be scaled like that while it runs: texts and hints. Empty if it can."""
    found: list[Refusal] = []
    names = [node.name for node in plan.nodes]
    for name, count in replicas.items():
        if name not in names:
            known = did_you_mean(name, names) or f"there are {', '.join(names)}"
            found.append((f"there is no node {name} in {plan.project}", known))
            continue
        node = plan.node(name)
        if not 1 <= count <= MAX_REPLICAS:
            text = f"{name} cannot have {count} replicas, but 1 to {MAX_REPLICAS:,}"
            found.append(
                (text, f"to have none for a while: flowkit stop {name}" if not count else "")
            )
            continue
        if count == node.replicas:
            continue
        if node.source:
            text = (
                f"{name} is a source: its replicas share the work by their numbers, and with "
                "more or fewer of them some of it would be read twice, or never"
            )
            found.append((text, AGAIN))
        bound = [one for one in node.endpoints if one.bind]
        if bound:
            text = f"{name} binds {bound[0].addresses[0]}, and only one process can"
            found.append((text, f"let its peers bind, and {name} connect: {AGAIN}"))
        found += _links_refuse(plan, name)
        keyed = [link for link in plan.links if link.target == name and link.route == "key"]
        if node.stateful and keyed and not lose_state:
            found.append(
                (
                    f"{name} keeps state by key, and its keys would move away from it",
                    "to do it in spite of that, and lose the state: --lose-state",
                )
            )
    return found


def _links_refuse(plan: Plan, name: str) -> list[Refusal]:
    found = []
    for link in plan.links:
        if link.pattern == "pair" and name in (link.source, link.target):
            text = f"{link.name} is a pair: {name} has one replica"
            found.append((text, "use pattern: pipeline for several"))
        elif link.durable and link.source == name:
            text = (
                f"{link.name} is durable: each replica of {name} keeps a journal of what it has "
                "sent, and a journal belongs to that many replicas"
            )
            found.append((text, AGAIN))
        elif link.durable and link.target == name and link.route != "balance":
            text = (
                f"{link.name} is durable: what its journals hold is addressed to "
                f"{link.consumers} replicas of {name} ({link.route})"
            )
            found.append((text, AGAIN))
    return found


@dataclass(frozen=True)
class Changes:
    """What is between the running project and a new file; `plan` is what it is to become.

    Links that stay keep their numbers; a link whose terms changed is another one, with a number
    that no link ever had. `renewed` are the nodes whose replicas must be started anew.
    """

    plan: Plan
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)
    """By node: what is different, for people."""
    resized: list[str] = field(default_factory=list)
    """The nodes that get another number of replicas."""
    links_added: list[str] = field(default_factory=list)
    links_removed: list[str] = field(default_factory=list)
    links_changed: dict[str, list[str]] = field(default_factory=dict)
    renewed: frozenset[str] = frozenset()
    refusals: list[Refusal] = field(default_factory=list)
    """Why it cannot be done while the project runs: texts and hints. Empty if it can."""

    def __bool__(self) -> bool:
        links = self.links_added or self.links_removed or self.links_changed
        return bool(self.added or self.removed or self.changed or links)

    @property
    def whole(self) -> bool:
        """Whether all of the project has to rest for it."""
        links = self.links_added or self.links_removed or self.links_changed
        return bool(self.added or self.removed or self.renewed or links)

    @property
    def renews_only(self) -> bool:
        """Whether it starts replicas anew and does nothing else."""
        other = self.added or self.removed or self.links_added or self.links_removed
        return bool(self.renewed) and not (other or self.links_changed or self.resized)

    def lines(self) -> list[str]:
        """The plan, for people: what is added (+), removed (-), changed (~)."""
        found = [f"+ node {name}" for name in self.added]
        found += [f"- node {name}" for name in self.removed]
        for name, what in self.changed.items():
            found.append(f"~ node {name}: {', '.join(what)}")
        found += [f"+ link {name}" for name in self.links_added]
        found += [f"- link {name}" for name in self.links_removed]
        for name, what in self.links_changed.items():
            found.append(f"~ link {name}: {', '.join(what)}")
        anew = [node.name for node in self.plan.nodes if node.name in self.renewed]
        if anew:
            found.append(f"restarted at rest: {', '.join(anew)}")
        return found


_NODE = {
    "use": "use",
    "settings": "with",
    "env": "env",
    "on_error": "on_error",
    "watchdog": "watchdog",
    "endpoints": "endpoints",
    "external": "external",
}
"""Members of a `NodePlan` that only a new process takes in, and their names in the file."""

_LINK = (
    "route",
    "by",
    "window",
    "window_bytes",
    "codec",
    "delivery",
    "when_full",
    "transport",
    "durable",
    "fsync",
    "pattern",
    "topics",
)


def changes(
    old: Plan, new: Plan, former: Iterable[LinkPlan] = (), lose_state: bool = False
) -> Changes:
    """What makes `new` of the running project `old`. `former` are links that it once had.

    With `lose_state` nodes that keep state in memory may be started anew.
    """
    refused: list[Refusal] = []
    if old.project != new.project:
        text = f"the file is of project {new.project}, and {old.project} is what runs"
        refused.append((text, f"to run both: flowkit up {new.path}"))
    olds = {node.name: node for node in old.nodes}
    news = {node.name: node for node in new.nodes}
    both = [name for name in news if name in olds]
    changed = {name: _node_differs(olds[name], news[name]) for name in both}
    renewed = {name for name, what in changed.items() if set(what) & set(_NODE.values())}
    for name in both:
        if olds[name].replicas != news[name].replicas:
            changed[name].append(f"replicas {olds[name].replicas} -> {news[name].replicas}")
    links, names = _links(old, new, former)
    links_added, links_removed, links_changed = names
    touched = {*links_added, *links_removed, *links_changed}
    for link in [*old.links, *new.links]:
        if link.name in touched:
            renewed |= {link.source, link.target} & set(both)
            if link.durable:
                text = f"{link.name} is durable, and its journals are open"
                refused.append((text, AGAIN))
    refused = list(dict.fromkeys(refused))
    counts = {name: news[name].replicas for name in both}
    refused += refusals(old, counts, lose_state)
    for name in sorted(renewed):
        node = news[name]
        before = olds[name]
        if (node.positions or before.positions) and before.use != node.use:
            text = f"{name} is another source now, and its positions are those of {before.use}"
            refused.append((text, "give the new source another name"))
        if (before.stateful or node.stateful) and not lose_state:
            text = f"{name} keeps state in memory, and would be started anew"
            refused.append((text, "to do it in spite of that, and lose the state: --lose-state"))
    nodes = [replace(node, origin=olds.get(node.name, node).origin) for node in new.nodes]
    return Changes(
        plan=replace(new, nodes=nodes, links=links),
        added=[name for name in news if name not in olds],
        removed=[name for name in olds if name not in news],
        changed={name: what for name, what in changed.items() if what},
        resized=[name for name in both if olds[name].replicas != news[name].replicas],
        links_added=links_added,
        links_removed=links_removed,
        links_changed=links_changed,
        renewed=frozenset(renewed),
        refusals=refused,
    )


def _node_differs(old: NodePlan, new: NodePlan) -> list[str]:
    what = [name for member, name in _NODE.items() if getattr(old, member) != getattr(new, member)]
    if old.restart != new.restart:
        what.append("restart")
    if (old.source, old.stateful, old.positions) != (new.source, new.stateful, new.positions):
        what = list(dict.fromkeys(["use", *what]))
    return what


def _links(
    old: Plan, new: Plan, former: Iterable[LinkPlan]
) -> tuple[list[LinkPlan], tuple[list[str], list[str], dict[str, list[str]]]]:
    """The links to come, with their numbers; names of those added, removed and changed."""
    olds = {link.name: link for link in old.links}
    news = {link.name for link in new.links}
    number = max([-1, *(link.index for link in [*old.links, *former])])
    links: list[LinkPlan] = []
    added: list[str] = []
    changed: dict[str, list[str]] = {}
    for link in new.links:
        before = olds.get(link.name)
        if before is not None:
            what = [name for name in _LINK if getattr(before, name) != getattr(link, name)]
            if not what:
                moved = link.route == "key" and before.consumers != link.consumers
                version = before.version + moved
                origin = before.origin
                links.append(replace(link, index=before.index, version=version, origin=origin))
                continue
            changed[link.name] = what
        else:
            added.append(link.name)
        number += 1
        links.append(replace(link, index=number))
    removed = [name for name in olds if name not in news]
    return links, (added, removed, changed)
