"""The typed model of a topology file.

Every field is declared once, here, with its description; the parser, the checks and the JSON Schema
derive from it. A validator raises a `PydanticCustomError` whose type is the problem's code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from flowkit.importing import NotImportable, did_you_mean, split_reference
from flowkit.protocol.sockets import OTHERS, SOCKETS
from flowkit.topology import names
from flowkit.topology.plan import DEFAULT_WINDOW, FOREIGN_WINDOW
from flowkit.topology.source import Marks
from flowkit.topology.values import Substituted, resolve
from flowkit.units import duration, size

MAX_REPLICAS = 1000
UNLIMITED = "unlimited"


def refuse(code: str, message: str, hint: str = "") -> PydanticCustomError:
    """An error that becomes a problem with this code, message and hint."""
    # As a context value, so that braces in the message are not taken for a template.
    return PydanticCustomError(
        code,
        "{message}",
        {"message": message, "hint": hint},
    )


def what(value: Any) -> str:
    """A value for a message: ``the text "3"``, ``true``, ``a list``, ``1.5``."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the text "{names.shown(value)}"'
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else str(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    hint = f'quote it: "{what(value)}"' if isinstance(value, bool | int | float) else ""
    raise refuse("E104", f"text is expected, not {what(value)}", hint)


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, Substituted):
            value = resolve(value)
        if isinstance(value, bool) or not isinstance(value, int):
            numeric = isinstance(value, str) and value.strip().lstrip("-").isdigit()
            raise refuse(
                "E104",
                f"a whole number from {low} to {high} is expected, not {what(value)}",
                "remove the quotes" if numeric else "",
            )
        if not low <= value <= high:
            raise refuse("E107", f"{value} is out of range: {low} to {high}")
        return value

    return check


def _choice(*allowed: str, later: tuple[str, ...] = ()) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise refuse("E104", f"one of {', '.join(allowed)} is expected, not {what(value)}")
        if value in later:
            raise refuse(
                "E114",
                f"'{value}' is not available in this version of flowkit",
                "available: " + ", ".join(allowed),
            )
        if value not in allowed:
            raise refuse(
                "E107",
                f"'{names.shown(value)}' is none of {', '.join(allowed)}",
                did_you_mean(value, allowed),
            )
        return str(value)

    return check


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refuse("E104", f"a duration is expected, not {what(value)}", "like 500ms, 30s or 5m")
    try:
        return duration(value)
    except ValueError as error:
        raise refuse("E107", str(error)) from None


def _positive_seconds(value: Any) -> float:
    seconds = _seconds(value)
    if seconds <= 0:
        raise refuse("E107", "a duration longer than nothing is expected", "like 500ms or 30s")
    return seconds


def _limit(value: Any) -> int | str:
    if isinstance(value, str) and value == UNLIMITED:
        return UNLIMITED
    if isinstance(value, Substituted):
        value = resolve(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return _whole(0, 1_000_000)(value)
    raise refuse("E104", f"a whole number or '{UNLIMITED}' is expected, not {what(value)}")


def _window(value: Any) -> int | str:
    if isinstance(value, Substituted):
        value = resolve(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _whole(1, 2**31 - 1)(value)
    if not isinstance(value, str) or value.strip().isdigit():
        raise refuse(
            "E104",
            f"a number of messages or a size is expected, not {what(value)}",
            "like 10000 (messages) or 64MiB (bytes)",
        )
    try:
        found = size(value)
    except ValueError as error:
        raise refuse("E107", str(error), "like 10000 (messages) or 64MiB (bytes)") from None
    if not 1 <= found <= 2**40:
        raise refuse("E107", f"{value} is out of range: 1B to 1TiB")
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, Substituted):
        value = resolve(value)
    if not isinstance(value, bool):
        raise refuse("E104", f"true or false is expected, not {what(value)}")
    return value


def _fsync(value: Any) -> str:
    text = _text(value)
    if text in ("group", "never"):
        return text
    kind, _, interval = text.partition(":")
    if kind != "interval":
        raise refuse(
            "E107",
            f"'{names.shown(text)}' is none of group, interval:<ms>, never",
            did_you_mean(kind, ("group", "interval", "never")),
        )
    try:
        seconds = duration(interval)
    except ValueError as error:
        raise refuse("E107", str(error), "like interval:100ms") from None
    if not 0.001 <= seconds <= 60:
        raise refuse("E107", f"{text} is out of range: interval:1ms to interval:60s")
    return text


def _name(value: Any) -> str:
    text = _text(value)
    if not names.valid(text):
        raise refuse(
            "E108",
            f"'{names.shown(text)}' is not a name: it {names.complaint(text)}",
            names.hint(text),
        )
    return text


def _use(value: Any) -> str:
    text = _text(value)
    try:
        split_reference(text)
    except NotImportable as error:
        raise refuse("E107", str(error), error.hint) from None
    return text


def _by(value: Any) -> str:
    text = _text(value)
    if not text or not all(part.isidentifier() for part in text.split(".")):
        raise refuse(
            "E107", f"'{names.shown(text)}' is no path to a field", "like user_id or user.id"
        )
    return text


def _endpoint(value: Any) -> str:
    if not isinstance(value, str):
        raise refuse("E104", f"node.channel is expected, not {what(value)}")
    node, dot, channel = value.partition(".")
    if not dot or not node or not channel:
        raise refuse(
            "E107", f"'{names.shown(value)}' is not of the form node.channel", "like split.words"
        )
    for part in (node, channel):
        if not names.valid(part):
            raise refuse(
                "E108",
                f"'{names.shown(part)}' is not a name: it {names.complaint(part)}",
                names.hint(part),
            )
    return str(value)


def _endpoints(value: Any) -> list[str]:
    if isinstance(value, list):
        if not value:
            raise refuse("E107", "an empty list: the link leads nowhere", "name an input")
        return value
    return [value]


def _environment(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        raise refuse(
            "E104",
            f"an environment variable is text, not {what(value)}",
            "quote it: " + ('""' if value is None else f'"{what(value)}"'),
        )
    if isinstance(value, int | float):
        return str(value)
    return _text(value)


def _variable(value: Any) -> str:
    text = _text(value)
    if not text or "=" in text or "\0" in text:
        raise refuse("E108", f"'{names.shown(text)}' cannot name an environment variable")
    return text


class Part(BaseModel):
    """A mapping of the file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", populate_by_name=False, protected_namespaces=())


Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[str, BeforeValidator(_name)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
PositiveSeconds = Annotated[float, BeforeValidator(_positive_seconds)]
Endpoint = Annotated[str, BeforeValidator(_endpoint)]
Environment = dict[
    Annotated[str, BeforeValidator(_variable)], Annotated[str, BeforeValidator(_environment)]
]


class Restart(Part):
    """When a replica that ended is started again."""

    policy: Annotated[
        Literal["on-failure", "always", "never"],
        BeforeValidator(_choice("on-failure", "always", "never")),
    ] = Field(
        "on-failure",
        description="When a replica is started again; always: a source also at its stream's end.",
    )
    max: Annotated[int | str, BeforeValidator(_limit)] = Field(
        5, description="Restarts within the window before the node is given up, or 'unlimited'."
    )
    window: PositiveSeconds = Field(60.0, description="The time in which restarts are counted.")
    backoff: Seconds = Field(0.1, description="The pause before the first restart; it doubles.")
    backoff_max: Seconds = Field(10.0, description="The longest pause before a restart.")


class OnError(Part):
    """What becomes of a message whose handler raises."""

    retry: Annotated[int, BeforeValidator(_whole(0, 1000))] = Field(
        0, description="How many more times the message is tried."
    )
    then: Annotated[
        Literal["dead-letter", "stop", "drop"],
        BeforeValidator(_choice("dead-letter", "stop", "drop")),
    ] = Field("dead-letter", description="What is done when the last try has failed.")


class NodeModel(Part):
    """One node: a class and how it is run."""

    use: Annotated[str, BeforeValidator(_use)] = Field(
        description="The node's class: package.module:Class; the current directory is importable."
    )
    with_: dict[str, Any] = Field(
        default_factory=dict,
        alias="with",
        description="Settings: the arguments of the class's constructor.",
    )
    replicas: Annotated[int, BeforeValidator(_whole(1, MAX_REPLICAS))] = Field(
        1, description="How many processes run this node."
    )
    restart: Restart = Field(
        default_factory=lambda: Restart.model_validate({}),
        description="When a replica that ended is started again.",
    )
    on_error: OnError = Field(
        default_factory=lambda: OnError.model_validate({}),
        description="What becomes of a message whose handler raises.",
    )
    watchdog: PositiveSeconds = Field(
        30.0, description="A replica whose event loop does not turn for so long is killed."
    )
    external: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, description="Whether an application runs it: with flowkit.attach, on its own loop."
    )
    blocked: Seconds = Field(
        1.0, description="What holds the event loop for so long is logged with its stack; 0: never."
    )
    env: Environment = Field(
        default_factory=dict, description="Environment variables of this node's processes."
    )


class LinkModel(Part):
    """One output, and the inputs its messages go to."""

    from_: Endpoint = Field(alias="from", description="The output, as node.channel.")
    to: Annotated[list[Endpoint], BeforeValidator(_endpoints)] = Field(
        description="The input, as node.channel, or a list of inputs; each gets every message."
    )
    pattern: Annotated[
        Literal["pipeline", "pubsub", "request", "pair"],
        BeforeValidator(_choice("pipeline", "pubsub", "request", "pair")),
    ] = Field(
        "pipeline",
        description="How messages travel: shared out, published to all who subscribe, asked and "
        "answered, or between exactly two.",
    )
    route: Annotated[
        Literal["balance", "key", "broadcast"],
        BeforeValidator(_choice("balance", "key", "broadcast")),
    ] = Field(
        "balance",
        description="Which replica gets a message: the least loaded, the one of its key, or all.",
    )
    by: Annotated[str | None, BeforeValidator(_by)] = Field(
        None,
        description="With route: key or pattern: pubsub, the field or attribute path that is the "
        "key.",
    )
    topics: list[Text] = Field(
        default_factory=list,
        description="With pattern: pubsub, the beginnings of the keys that are subscribed to; "
        "by default all messages.",
    )
    delivery: Annotated[
        Literal["at-least-once", "at-most-once"],
        BeforeValidator(_choice("at-least-once", "at-most-once")),
    ] = Field("at-least-once", description="Whether messages of a dead replica are sent again.")
    durable: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, description="Keep batches on disk until they are done, over the death of all."
    )
    fsync: Annotated[str, BeforeValidator(_fsync)] = Field(
        "group",
        description="With durable: group (before a batch counts as sent), interval:<ms>, or never.",
    )
    when_full: Annotated[
        Literal["block", "drop-oldest", "drop-newest"],
        BeforeValidator(_choice("block", "drop-oldest", "drop-newest")),
    ] = Field(
        "block",
        description="What happens when the window is full; dropping needs at-most-once.",
    )
    window: Annotated[int | str, BeforeValidator(_window)] = Field(
        DEFAULT_WINDOW, description="Bound in flight: messages as a number, or a size like 64MiB."
    )
    codec: Annotated[
        Literal["raw", "json", "msgpack", "pickle"] | None,
        BeforeValidator(_choice("raw", "json", "msgpack", "pickle")),
    ] = Field(None, description="How messages are encoded; by default the type decides.")
    transport: Annotated[
        Literal["auto", "ipc", "tcp"],
        BeforeValidator(_choice("auto", "ipc", "tcp", later=("inproc",))),
    ] = Field("auto", description="What carries the messages between processes.")


def _socket(value: Any) -> str:
    text = _text(value).upper()
    if text in OTHERS:
        raise refuse("E107", f"an endpoint cannot be a {text}: {OTHERS[text]}")
    if text not in SOCKETS:
        known = did_you_mean(text, SOCKETS) or "one of " + ", ".join(SOCKETS)
        raise refuse("E107", f"'{names.shown(value)}' is no type of ZeroMQ socket", known)
    return text


def _listed(value: Any) -> list[Any]:
    found = value if isinstance(value, list) else [value]
    if not found:
        raise refuse("E104", "an empty list")
    return found


def _topics(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _pair(value: Any) -> list[Any]:
    found = _listed(value)
    if len(found) > 2:
        raise refuse("E104", f"{len(found)} channels; an endpoint has one input and one output")
    return found


def _identity(value: Any) -> str:
    text = _text(value)
    if not 1 <= len(text.encode()) <= 255 or text.startswith("\0"):
        raise refuse("E107", "an identity has 1 to 255 bytes, and does not begin with a zero")
    return text


OPTIONS: dict[str, type] = {
    **dict.fromkeys(
        (
            "sndhwm rcvhwm sndbuf rcvbuf linger reconnect_ivl reconnect_ivl_max backlog maxmsgsize "
            "immediate conflate ipv6 heartbeat_ivl heartbeat_ttl heartbeat_timeout connect_timeout "
            "tcp_keepalive tcp_keepalive_idle tcp_keepalive_cnt tcp_keepalive_intvl tcp_maxrt tos "
            "rate recovery_ivl multicast_hops multicast_maxtpdu probe_router handshake_ivl affinity"
        ).split(),
        int,
    ),
    "bindtodevice": str,
}
"""Options of ZeroMQ's sockets that an endpoint may set, by their names in lower case. The others
are flowkit's to set, or have keys of their own."""


def _options(value: Any) -> dict[str, int | str]:
    if not isinstance(value, dict):
        raise refuse("E104", f"a mapping is expected, not {what(value)}", "like {sndhwm: 10000}")
    found: dict[str, int | str] = {}
    for name, given in value.items():
        kind = OPTIONS.get(str(name))
        if kind is None:
            hint = did_you_mean(str(name), OPTIONS) or "see zmq_setsockopt(3); in lower case"
            raise refuse("E107", f"'{names.shown(str(name))}' is no option of an endpoint", hint)
        given = resolve(given) if isinstance(given, Substituted) else given
        given = int(given) if isinstance(given, bool) else given
        if not isinstance(given, int | str) or not isinstance(given, kind):
            raise refuse("E107", f"{name}: {what(given)} is no value for it")
        found[str(name)] = given
    return found


class EndpointModel(Part):
    """A socket for a foreign peer: a program that uses ZeroMQ and knows nothing of flowkit."""

    channel: Annotated[list[Endpoint], BeforeValidator(_pair)] = Field(
        description="An input or an output, as node.channel, or a list of one input and one output."
    )
    socket: Annotated[str, BeforeValidator(_socket)] = Field(
        description="The type of the socket, in ZeroMQ's words: PULL, PUB, ROUTER and so on."
    )
    bind: Annotated[list[Text] | None, BeforeValidator(_listed)] = Field(
        None, description="The address to listen on, or several: tcp://127.0.0.1:5555."
    )
    connect: Annotated[list[Text] | None, BeforeValidator(_listed)] = Field(
        None, description="The address to connect to, or several."
    )
    peer: Annotated[str | None, BeforeValidator(_socket)] = Field(
        None, description="The type of the peer's socket: checked, and a DEALER speaks so."
    )
    topics: Annotated[list[Text] | None, BeforeValidator(_topics)] = Field(
        None, description="With SUB or XSUB: the prefixes to subscribe to; by default everything."
    )
    identity: Annotated[str | None, BeforeValidator(_identity)] = Field(
        None, description="The name under which a ROUTER finds this socket."
    )
    to: Annotated[str | None, BeforeValidator(_identity)] = Field(
        None, description="With ROUTER: the identity that gets what answers nobody."
    )
    codec: Annotated[
        Literal["raw", "json", "msgpack", "pickle"] | None,
        BeforeValidator(_choice("raw", "json", "msgpack", "pickle")),
    ] = Field(None, description="How messages are encoded; by default the type decides.")
    window: Annotated[int | str, BeforeValidator(_window)] = Field(
        FOREIGN_WINDOW, description="Bound in the replica: messages as a number, or a size."
    )
    when_full: Annotated[
        Literal["block", "drop-newest"] | None, BeforeValidator(_choice("block", "drop-newest"))
    ] = Field(
        None,
        description="When a peer takes no more: wait, or drop; a PUB drops unless told to wait.",
    )
    timeout: PositiveSeconds = Field(
        30.0,
        description="How long a REQ waits for its answer, and a ROUTER for a peer with no room.",
    )
    aside: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, description="The node ends without waiting for this input: a channel for control."
    )
    insecure: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, description="Allow tcp beyond this machine, where anybody may read and write."
    )
    options: Annotated[dict[str, int | str], BeforeValidator(_options)] = Field(
        default_factory=dict, description="Options of the socket, as zmq_setsockopt(3) names them."
    )

    @property
    def addresses(self) -> list[str]:
        """What is bound, or connected to. A port alone is one of this machine."""
        return [local(one) for one in self.bind or self.connect or ()]


def local(address: str) -> str:
    """`address` with the host that is meant where none is written: ``tcp://:5555``."""
    return f"tcp://127.0.0.1:{address[7:]}" if address.startswith("tcp://:") else address


class Top(Part):
    """The keys of the whole file, except the sections whose entries are read one by one."""

    flowkit: Any = Field(None, description="The version of the file format.")
    project: Name | None = Field(
        None, description="Names the run; by default the file's name without its ending."
    )
    include: list[Text] = Field(
        default_factory=list, description="Other files, relative to this one, to merge in."
    )
    env: Environment = Field(
        default_factory=dict, description="Environment variables of all nodes' processes."
    )


@dataclasses.dataclass(slots=True)
class Topology:
    """A topology file that was read, and where everything in it stands.

    `path` is absolute; `shown` is how the user named it. Parts that were wrong have their defaults;
    a node whose class could not be read has an empty `use`, a link's wrong end is an empty text.
    """

    path: str
    shown: str
    project: str
    marks: Marks
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    nodes: dict[str, NodeModel] = dataclasses.field(default_factory=dict)
    links: list[LinkModel] = dataclasses.field(default_factory=list)
    endpoints: list[EndpointModel] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)
    """Itself, and all that is included; real paths."""
