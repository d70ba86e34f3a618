"""Nodes that stand in for others in a topology under test: what sends, and what remembers.

Replicas import their class by name, so each gets a name in this module for as long as it is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flowkit.channels import In, Out
from flowkit.message import Meta
from flowkit.node import Node, Source

Remember = Callable[[Any, Meta], None]

_numbers = itertools.count(1)


def enter(cls: type[Node]) -> str:
    """What to put under `use:` for `cls`. Call `leave` with it at the end."""
    name = f"StandIn{next(_numbers)}"
    globals()[name] = cls
    return f"{__name__}:{name}"


def leave(use: str) -> None:
    """The class is not needed any more."""
    del globals()[use.partition(":")[2]]


def sender(outputs: Mapping[str, Out[Any]], messages: Mapping[str, Sequence[Any]]) -> type[Node]:
    """A class that sends `messages` on `outputs`, which are as those of the node it stands in for.

    With one output it is a source with positions, so that nothing is lost if it dies.
    """
    body: dict[str, Any] = {
        name: Out(channel.type, key=channel.key, codec=channel.codec)
        for name, channel in outputs.items()
    }
    if len(body) > 1:

        async def run(self: Node) -> None:
            for name, those in messages.items():
                port = getattr(self, name)
                for message in those:
                    await port.room()
                    port.send(message)

        return type("Send", (Node,), {**body, "run": run})

    (those,) = messages.values()

    def read(self: Source, position: int | None) -> Iterator[tuple[Any, int]]:
        for place in range(position or 0, len(those)):
            yield those[place], place + 1

    return type("Send", (Source,), {**body, "read": read})


def recorder(channel: Out[Any], remember: Remember) -> type[Node]:
    """A class that gives each message of its input, `messages`, to `remember`."""

    def on_messages(self: Node, message: Any, meta: Meta) -> None:
        remember(message, meta)

    messages = In(channel.type, codec=channel.codec)
    return type("Record", (Node,), {"messages": messages, "on_messages": on_messages})
