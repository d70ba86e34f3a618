"""`flowkit nodes`: the node classes of modules or of a topology, and what they declare."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flowkit.topology.facts import ChannelFacts, ClassFacts


@click.command("nodes")
@click.argument("targets", metavar="MODULE|FILE...", nargs=-1, required=True)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="For people, or as JSON Lines.",
)
def command(targets: tuple[str, ...], format_: str) -> int:
    """List node classes with their channels, types and settings.

    MODULE is importable from the current directory, like examples.wordcount, or the path of its
    file; FILE is a topology, of which the classes it uses are listed.
    """
    from flowkit.runtime.listing import list_classes

    classes = list_classes(targets, os.environ, os.getcwd())
    if format_ == "json":
        for one in classes:
            click.echo(json.dumps(as_dict(one)))
        return 0
    click.echo("\n\n".join(as_text(one) for one in classes) or "no node classes found")
    return 0


def as_dict(one: ClassFacts) -> dict[str, object]:
    """A class for JSON."""
    return {
        "use": one.use,
        "doc": one.doc,
        "kind": "source" if one.source else "node",
        "stateful": one.stateful,
        "inputs": [_channel(channel) for channel in one.inputs],
        "outputs": [_channel(channel) for channel in one.outputs],
        "settings": [
            {
                "name": setting.name,
                "type": setting.type,
                "required": setting.default is None,
                "default": setting.default,
            }
            for setting in one.settings
        ],
    }


def _channel(channel: ChannelFacts) -> dict[str, object]:
    found: dict[str, object] = {"name": channel.name, "type": channel.type, "codec": channel.codec}
    return {**found, "answer": channel.answer} if channel.answer else found


def _row(kind: str, channel: ChannelFacts) -> tuple[str, str, str]:
    answer = f" -> {channel.answer}" if channel.answer else ""
    return kind, channel.name, channel.type + answer


def as_text(one: ClassFacts) -> str:
    """A class for people: one aligned line for each channel and setting."""
    marks = [word for word, is_ in (("source", one.source), ("stateful", one.stateful)) if is_]
    lines = [one.use + (f"  ({', '.join(marks)})" if marks else "")]
    if one.doc:
        lines.append(f"  {one.doc}")
    rows = [_row("serve" if channel.answer else "in", channel) for channel in one.inputs]
    rows += [_row("call" if channel.answer else "out", channel) for channel in one.outputs]
    for setting in one.settings:
        default = " (required)" if setting.default is None else f" = {setting.default}"
        rows.append(("with", setting.name, setting.type + default))
    width = max((len(name) for _, name, _ in rows), default=0)
    kinds = max((len(kind) for kind, _, _ in rows), default=0)
    lines += [f"  {kind:<{max(kinds, 4)}}  {name:<{width}}  {type_}" for kind, name, type_ in rows]
    return "\n".join(lines)
