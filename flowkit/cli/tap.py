"""`flowkit tap`: show live messages of a channel without disturbing them."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from flowkit.cli.projects import connect, format_option, project_option
from flowkit.control.client import Skipped
from flowkit.errors import OperatorError


@click.command("tap", short_help="Show live messages of a channel, without disturbing them.")
@click.argument("channel", metavar="NODE.CHANNEL")
@project_option
@click.option("-n", "count", type=click.IntRange(1), help="End after so many messages.")
@format_option
def command(channel: str, project: str | None, count: int | None, format_: str) -> None:
    """Show the messages that pass a channel from now on, decoded, until Ctrl-C.

    Under pressure it is a sample: nothing waits for it, and what was left out is counted. Exits
    with 6 if the project does not run.
    """
    node, dot, name = channel.rpartition(".")
    if not dot or not node or not name:
        raise click.UsageError(f"'{channel}' is not NODE.CHANNEL, like split.words")
    show = _as_json if format_ == "json" else _as_text
    with connect(project) as client:
        shown = 0
        for item in client.tap(node, name):
            show(item)
            shown += not isinstance(item, Skipped)
            if shown == count:
                return
        if count is not None:
            raise OperatorError(f"the project ended after {shown} of {count} messages")


def _as_json(item: Any) -> None:
    if isinstance(item, Skipped):
        item = {"skipped": item.count}
    sys.stdout.write(json.dumps(item) + "\n")


def _as_text(item: Any) -> None:
    if isinstance(item, Skipped):
        sys.stdout.write(f"-- {item.count:,} messages were skipped --\n")
        return
    if item["skipped"]:
        sys.stdout.write(f"-- {item['skipped']:,} messages of it were skipped --\n")
    value = item["value"]
    if item["binary"]:
        shown = f"base64 {value}"
    else:
        shown = value if item["cut"] else json.dumps(value, ensure_ascii=False)
    parts = [f"{item['node']}.{item['replica']}"]
    if item["key"] is not None:
        parts.append(f"key {json.dumps(item['key'], ensure_ascii=False)}")
    parts += [f"{name}: {text}" for name, text in item["headers"].items()]
    sys.stdout.write(f"{'  '.join(parts)}  {shown}{' ...' if item['cut'] else ''}\n")
