"""What is to change in a running project, and what forbids it.

Pure. Links of a running project are named by their index for ever; the version of a key map counts
how often it changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from flowkit.importing import did_you_mean
from flowkit.topology.model import MAX_REPLICAS
from flowkit.topology.plan import Plan


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


def refusals(plan: Plan, replicas: Mapping[str, int], lose_state: bool) -> list[tuple[str, str]]:
    """Why `plan` cannot be scaled like that while it runs: texts and hints. Empty if it can."""
    found: list[tuple[str, str]] = []
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
            how = (
                "each goes on from a position of its own" if node.positions else "by their numbers"
            )
            found.append(
                (
                    f"{name} is a source: its replicas share the work, and {how}",
                    "drain the project, change the file, and begin again",
                )
            )
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


def _links_refuse(plan: Plan, name: str) -> list[tuple[str, str]]:
    hint = "drain the project, change the file, and start it again"
    found = []
    for link in plan.links:
        if link.durable and link.source == name:
            found.append(
                (f"{name} has journals, one for each replica: {link.name} is durable", hint)
            )
        elif link.durable and link.target == name and link.route != "balance":
            found.append(
                (f"the journals of {link.name} are cut for {link.consumers} replicas", hint)
            )
    return found
