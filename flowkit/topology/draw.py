"""Pictures of a topology: text for a terminal, Mermaid, Graphviz."""

from __future__ import annotations

from flowkit.topology.model import LinkModel, Topology
from flowkit.topology.plan import DEFAULT_WINDOW


def as_text(topology: Topology) -> str:
    """The nodes in the order the stream takes, each with its inputs and outputs, aligned."""
    columns = _levels(topology)
    order = sorted(topology.nodes, key=lambda name: columns[name])
    lines = [topology.project]
    labels = {name: _label(topology, name) for name in order}
    width = max((len(label) for label in labels.values()), default=0)
    uses = {name: topology.nodes[name].use for name in order}
    rows: list[tuple[str, str, str]] = []
    for name in order:
        lines.append(f"  {labels[name]:<{width}}  {uses[name]}".rstrip())
    for name in order:
        for link in topology.links:
            if link.from_.partition(".")[0] == name:
                for to in link.to:
                    rows.append((link.from_, to, describe(link)))
    if rows:
        lines.append("")
        sources = max(len(row[0]) for row in rows)
        targets = max(len(row[1]) for row in rows)
        routes = [_arrow(row[2]) for row in rows]
        arrows = max(len(one) for one in routes)
        for (source, to, _), arrow in zip(rows, routes, strict=True):
            counts = _counts(topology, source, to)
            body = arrow[:-1].ljust(arrows - 1, "-") + ">"
            lines.append(f"  {source:<{sources}} {body} {to:<{targets}}  {counts}".rstrip())
    return "\n".join(lines)


def as_mermaid(topology: Topology) -> str:
    """A Mermaid flowchart."""
    lines = ["flowchart LR"]
    for name in topology.nodes:
        lines.append(f'    {_id(name)}["{_label(topology, name)}"]')
    for link in topology.links:
        source = link.from_.partition(".")[0]
        for to in link.to:
            target, _, channel = to.partition(".")
            text = f"{link.from_.partition('.')[2]} -> {channel}<br/>{describe(link)}"
            lines.append(f'    {_id(source)} -->|"{text}"| {_id(target)}')
    return "\n".join(lines)


def as_dot(topology: Topology) -> str:
    """A Graphviz graph."""
    lines = [f'digraph "{topology.project}" {{', "    rankdir=LR;", "    node [shape=box];"]
    for name in topology.nodes:
        lines.append(f'    "{name}" [label="{_label(topology, name)}"];')
    for link in topology.links:
        source, _, out = link.from_.partition(".")
        for to in link.to:
            target, _, channel = to.partition(".")
            lines.append(
                f'    "{source}" -> "{target}" [label="{out} -> {channel}\\n{describe(link)}"];'
            )
    lines.append("}")
    return "\n".join(lines)


def describe(link: LinkModel) -> str:
    """What is special about a link: its route, and whatever is not the default."""
    parts = [f"key {link.by}" if link.route == "key" and link.by else link.route]
    if link.delivery != "at-least-once":
        parts.append(link.delivery)
    if link.when_full != "block":
        parts.append(link.when_full)
    if link.window != DEFAULT_WINDOW:
        parts.append(f"window {link.window}")
    if link.codec is not None:
        parts.append(link.codec)
    if link.transport != "auto":
        parts.append(link.transport)
    return ", ".join(parts)


def _label(topology: Topology, name: str) -> str:
    replicas = topology.nodes[name].replicas
    return name if replicas == 1 else f"{name} x{replicas}"


def _arrow(text: str) -> str:
    return f"--[{text}]-->"


def _counts(topology: Topology, source: str, to: str) -> str:
    """``4 -> 2``: how many replicas send, and how many receive."""
    made = topology.nodes.get(source.partition(".")[0])
    read = topology.nodes.get(to.partition(".")[0])
    return f"{made.replicas} -> {read.replicas}" if made and read else ""


def _id(name: str) -> str:
    # Mermaid has reserved words, "end" among them; a prefix makes any name an identifier.
    return "n_" + name.replace("-", "__")


def _levels(topology: Topology) -> dict[str, int]:
    """The longest way from a beginning to each node; the order of the file settles ties."""
    levels = dict.fromkeys(topology.nodes, 0)
    edges = [
        (link.from_.partition(".")[0], to.partition(".")[0])
        for link in topology.links
        for to in link.to
    ]
    # As often as there are nodes is enough for any graph without cycles, and ends with one.
    for _ in topology.nodes:
        changed = False
        for source, target in edges:
            if source in levels and target in levels and levels[target] <= levels[source]:
                levels[target] = levels[source] + 1
                changed = True
        if not changed:
            break
    return levels
