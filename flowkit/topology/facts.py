"""What the inspection of user code found out, as plain data.

User code runs in a child process; this is what comes back, so the checks need to import no node.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class ChannelFacts(Struct, frozen=True):
    """One channel; `type` as it is written in code."""

    name: str
    type: str
    codec: str | None = None
    key: str | None = None
    answer: str = ""
    """Of a `Call` or a `Serve`: the type of its answers."""


class SettingFacts(Struct, frozen=True):
    """One argument of a constructor; `default` as it is written in code, None if required."""

    name: str
    type: str
    default: str | None


class ClassFacts(Struct, frozen=True):
    """A node class."""

    use: str
    doc: str
    inputs: list[ChannelFacts]
    outputs: list[ChannelFacts]
    settings: list[SettingFacts]
    stateful: bool
    source: bool
    positions: bool

    def has(self, direction: str, channel: str) -> bool:
        """Whether it has this channel; `direction` is ``in`` or ``out``."""
        return self.channel(direction, channel) is not None

    def channel(self, direction: str, name: str) -> ChannelFacts | None:
        """That channel, or None."""
        channels = self.inputs if direction == "in" else self.outputs
        return next((one for one in channels if one.name == name), None)


class Finding(Struct, frozen=True):
    """Something wrong in user code or in how the file uses it.

    `where` is the path in the file's data, `part` what of the text there to point at; `key`: point
    at the key rather than at its value.
    """

    where: list[str | int]
    code: str
    message: str
    hint: str = ""
    part: str = ""
    key: bool = False


class NodeQuestion(Struct, frozen=True):
    """A node to look at. `substituted` is `settings` read as if written without quotes, where a
    setting holds the value of a ``${VAR}``. An `external` one is built by an application."""

    name: str
    use: str
    settings: dict[str, Any]
    substituted: dict[str, Any]
    external: bool = False


class LinkQuestion(Struct, frozen=True):
    """A link whose two ends are to be compared; `target` is the position in its `to` list."""

    index: int
    target: int
    listed: bool
    source: str
    out: str
    into_node: str
    into: str
    route: str
    by: str | None
    codec: str | None
    pattern: str = "pipeline"
    topics: bool = False
    """Whether it lets through what has certain keys."""


class EndpointQuestion(Struct, frozen=True):
    """An endpoint whose codec is to be held against the types of its channels."""

    index: int
    node: str
    channels: list[str]
    codec: str | None


class Questions(Struct, frozen=True):
    """Everything one child is asked; of `modules`, which node classes they define."""

    nodes: list[NodeQuestion]
    links: list[LinkQuestion]
    modules: list[str] = field(default_factory=list)
    endpoints: list[EndpointQuestion] = field(default_factory=list)


class Inspection(Struct):
    """The answers. `classes` and `settings` are by node name; a node whose class could not be
    read is in neither. `modules` has the classes of the modules that were asked about."""

    classes: dict[str, ClassFacts] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    modules: dict[str, list[ClassFacts]] = field(default_factory=dict)
