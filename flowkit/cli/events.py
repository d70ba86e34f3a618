"""`flowkit events`: what has happened to a project, and what happens."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
import msgspec

from flowkit.cli import terminal
from flowkit.cli.projects import Since, flush, format_option, one_project, with_project
from flowkit.control import arguments, history
from flowkit.control.client import Client, Skipped
from flowkit.control.places import choose
from flowkit.control.recorder import as_dict
from flowkit.control.records import Event, Marks
from flowkit.errors import RequestFailed
from flowkit.protocol import requests

BAD = {"died": "yellow", "given-up": "red", "poisoned": "red", "note": "yellow"}
WIDEST = len("restarted")


@click.command("events", short_help="Show what happens to a project: started, died, scaled ...")
@with_project
@click.option("-f", "--follow", is_flag=True, help="Go on until the project ends.")
@click.option("--since", type=Since(), help="From then on: 10m (ago), 12:30, 2026-01-31T12:30.")
@click.option("-n", "--tail", type=click.IntRange(0), help="The last so many events.")
@click.option("--event", "only", metavar="NAME", multiple=True, help="Events of that name only.")
@format_option
def command(
    named: str | None,
    project: str | None,
    follow: bool,
    since: float | None,
    tail: int | None,
    only: tuple[str, ...],
    format_: str,
) -> None:
    """Show what has happened to a project since it was started last, also after the run.

    Events are starting, ready, draining and ended of the project; started, restarted, died,
    given-up and poisoned of replicas; scaled, rolled, stopped, resumed, reloaded and levelled,
    which were asked for; and note.
    """
    place = choose(one_project(named, project), running=False)
    show = _as_json if format_ == "json" else _as_text
    begin = since if since is not None else place.record.started if place.record else 0.0

    def past(marks: Marks | None) -> None:
        found = history.events(place.directory.state, since=begin, marks=marks)
        # What is kept of those that come before the last ones is nothing.
        for event in deque((one for one in found if not only or one["event"] in only), tail):
            show(event)

    if not follow or place.pid is None:
        past(None)
        return
    with Client(place) as client:
        client.before_waiting = flush
        _follow(client, only, show, past)


def _follow(
    client: Client,
    only: tuple[str, ...],
    show: Callable[[dict[str, Any]], None],
    past: Callable[[Marks], None],
) -> None:
    begun = False

    def opened(raw: object) -> None:
        nonlocal begun
        if not begun:
            past(client.marks(raw))
        begun = True

    while True:
        try:
            for item in client.stream("events", arguments.Stream(), Event, opened):
                if isinstance(item, Skipped):
                    show({"event": "skipped", "text": f"{item.count} events", "count": item.count})
                elif not only or item.event in only:
                    show(as_dict(item))
            return
        except RequestFailed as error:
            if error.code != requests.LOST:
                raise
            # This process was stopped for so long that the project has forgotten it.
            show({"event": "skipped", "text": "some events, while this client was stopped"})


def _as_json(event: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")


def _as_text(event: dict[str, Any]) -> None:
    when = " " * 8
    if "time" in event:
        when = f"{datetime.fromisoformat(event['time']).astimezone():%H:%M:%S}"
    name = f"{event['event']:<{WIDEST}}"
    if terminal.use_colour(sys.stdout):
        name = click.style(name, fg=BAD.get(event["event"], "cyan"))
    first, *more = str(event["text"]).split("\n")
    sys.stdout.write(f"{when}  {name}  {first}\n")
    for line in more:
        sys.stdout.write(f"{'':{8 + 2 + WIDEST + 2}}{line}\n")
