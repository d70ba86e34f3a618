"""Pictures of a topology: text for a terminal, Mermaid, Graphviz."""

from __future__ import annotations

from flowkit.protocol.sockets import SOCKETS
from flowkit.topology.model import EndpointModel, LinkModel, Topology
from flowkit.topology.plan import DEFAULT_WINDOW


def as_text(topology: Topology) -> str:
    """The nodes in the order the stream takes, then its links; aligned.

    A link shows its route, how many replicas send and receive, and what is not the default.
    """
    levels = _levels(topology)
    order = sorted(topology.nodes, key=lambda name: levels[name])
    labels = {name: _label(topology, name) for name in order}
    width = max(map(len, labels.values()), default=0)
    lines = [topology.project]
    lines += [f"  {labels[name]:<{width}}  {topology.nodes[name].use}" for name in order]
    rows = [
        (link.from_, f"--[{route(link)}]--", to, _counts(topology, link.from_, to), options(link))
        for name in order
        for link in topology.links
        if link.from_.partition(".")[0] == name
        for to in link.to
    ]
    if rows:
        lines.append("")
        sources, arrows, targets, counts = (max(len(row[at]) for row in rows) for at in range(4))
        lines += [
            f"  {source:<{sources}} {arrow:-<{arrows}}> {to:<{targets}}  {count:<{counts}}  "
            f"{', '.join(rest)}".rstrip()
            for source, arrow, to, count, rest in rows
        ]
    ends = [_endpoint(one) for one in topology.endpoints]
    if ends:
        lines.append("")
        inner, between = (max(len(end[at]) for end in ends) for at in range(2))
        lines += [f"  {one:<{inner}}  {way:^{between}}  {other}" for one, way, other in ends]
    return "\n".join(lines)


def as_mermaid(topology: Topology) -> str:
    """A Mermaid flowchart."""
    # Not the names themselves: Mermaid has reserved words, "end" among them.
    numbers = {name: f"n{at}" for at, name in enumerate(topology.nodes)}
    lines = ["flowchart LR"]
    lines += [f'    {n}["{_label(topology, name)}"]' for name, n in numbers.items()]
    for link in topology.links:
        source = link.from_.partition(".")[0]
        for to in link.to:
            target, _, channel = to.partition(".")
            text = f"{link.from_.partition('.')[2]} -> {channel}<br/>{describe(link)}"
            lines.append(f'    {numbers[source]} -->|"{text}"| {numbers[target]}')
    for at, one in enumerate(topology.endpoints):
        inner, way, other = _endpoint(one)
        mine, peer = numbers.get(inner.partition(".")[0], ""), f'p{at}(["{other}"])'
        if way == "<--":
            mine, peer = peer, mine
        arrow = {"<->": "<-.->", "---": "-.-"}.get(way, "-.->")
        lines.append(f'    {mine} {arrow}|"{_channels(inner)}"| {peer}')
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
    for at, one in enumerate(topology.endpoints):
        inner, way, other = _endpoint(one)
        direction = {"<--": "back", "-->": "forward"}.get(way, "both")
        lines.append(f'    "peer {at}" [shape=ellipse, style=dashed, label="{other}"];')
        lines.append(
            f'    "{inner.partition(".")[0]}" -> "peer {at}" '
            f'[label="{_channels(inner)}", dir={direction}, style=dashed];'
        )
    lines.append("}")
    return "\n".join(lines)


def _endpoint(one: EndpointModel) -> tuple[str, str, str]:
    """The channels of an endpoint, which way messages go, and its socket."""
    socket = SOCKETS.get(one.socket)
    sends = socket is not None and socket.sends is not False
    receives = socket is not None and socket.receives is not False
    two = len(one.channel) > 1
    # Of a socket that can do both the file does not say which a single channel is.
    way = "<->" if two else "---" if sends == receives else "-->" if sends else "<--"
    how = "binds" if one.bind else "connects to"
    return ", ".join(one.channel), way, f"{one.socket} {how} {', '.join(one.addresses)}"


def _channels(text: str) -> str:
    return ", ".join(one.partition(".")[2] for one in text.split(", "))


def describe(link: LinkModel) -> str:
    """Everything that is worth saying about a link, in one line."""
    return ", ".join([route(link), *options(link)])


def route(link: LinkModel) -> str:
    """How a link chooses the replica; its pattern, where that says it."""
    if link.pattern != "pipeline":
        topics = f" {' '.join(link.topics)}" if link.topics else ""
        return link.pattern + topics
    return f"key {link.by}" if link.route == "key" and link.by else link.route


def options(link: LinkModel) -> list[str]:
    """What else is not the default of a link."""
    parts: list[str] = []
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
    return parts


def _label(topology: Topology, name: str) -> str:
    replicas = topology.nodes[name].replicas
    return name if replicas == 1 else f"{name} x{replicas}"


def _counts(topology: Topology, source: str, to: str) -> str:
    """``4 -> 2``: how many replicas send, and how many receive."""
    made = topology.nodes.get(source.partition(".")[0])
    read = topology.nodes.get(to.partition(".")[0])
    return f"{made.replicas} -> {read.replicas}" if made and read else ""


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
