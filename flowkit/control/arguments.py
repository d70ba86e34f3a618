"""The arguments of commands, by verb. What they answer is in `records`, and in `flowkit.status`."""

from __future__ import annotations

from msgspec import Struct


class Nothing(Struct):
    """No arguments."""


class Watch(Struct):
    """How things are, every `every` seconds."""

    every: float


class Stream(Struct):
    """Lines or events from now on; `depth` of them wait for a client that is slow. Lines of the
    nodes or replicas in `names` only, if there are any."""

    depth: int = 1000
    names: list[str] = []


class Scale(Struct):
    """How many replicas each node is to have. With `lose_state` also of nodes whose state in memory
    stays behind when keys move."""

    replicas: dict[str, int]
    lose_state: bool = False


class Restart(Struct):
    """Restart the replicas of a node one after the other, or one of them."""

    node: str
    replica: int | None = None


class OfNode(Struct):
    """Stop a node, or start it again."""

    node: str


class Down(Struct):
    """Drain the project, for at most `timeout` seconds; or end it at once."""

    timeout: float
    kill: bool = False


class Reload(Struct):
    """Change the project to fit a topology file, an absolute path; or only say how (`dry`)."""

    file: str
    dry: bool = False
    lose_state: bool = False


class Tap(Struct):
    """Messages of a channel from now on; `depth` of them wait for a client that is slow."""

    node: str
    channel: str
    depth: int = 100


class Level(Struct):
    """Set the level of a node's log, or of one replica's."""

    node: str
    level: str
    replica: int | None = None


class Attach(Struct):
    """Run a replica of an external node: the one that `name` names, else the one whose class is
    called `cls`. It has the channels `inputs` and `outputs`, and lives in process `pid`. With
    `wait` until there is a place."""

    name: str
    cls: str
    inputs: list[str]
    outputs: list[str]
    pid: int
    wait: bool = False


class Detach(Struct):
    """Let an attached replica leave with nothing in hand, within `timeout` seconds; or say why it
    has failed (`error`)."""

    node: str
    replica: int
    incarnation: int
    timeout: float
    error: str = ""


class Replay(Struct):
    """Try dead letters again, by their numbers."""

    numbers: list[int]
