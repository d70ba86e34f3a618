"""`flowkit logs`: what the replicas of a project print and have printed, also after the run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import cycle

import click

from flowkit.cli import collect, terminal
from flowkit.cli.projects import Since, connect, flush, format_option, project_option, split_replica
from flowkit.cli.show import COLOURS
from flowkit.control import arguments, history
from flowkit.control.client import Client, Skipped
from flowkit.control.logfile import timestamp
from flowkit.control.places import Place, choose
from flowkit.control.records import LEVELS, SUPERVISOR, LogLine, Marks
from flowkit.errors import OperatorError, RequestFailed
from flowkit.importing import suggest
from flowkit.protocol import requests

DEPTH = 5000
"""Lines that wait in the supervisor while this process, or who reads it, is slow."""

SEVERE = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


@click.command("logs", short_help="Show what replicas print and have printed.")
@click.argument("names", metavar="[NODE[.N]]...", nargs=-1)
@project_option
@click.option("-f", "--follow", is_flag=True, help="Go on until the project ends.")
@click.option("--since", type=Since(), help="From then on: 10m (ago), 12:30, 2026-01-31T12:30.")
@click.option("-n", "--tail", type=click.IntRange(0), help="The last so many lines.")
@click.option(
    "--level",
    type=click.Choice(LEVELS, case_sensitive=False),
    help="From this level on. What is printed and not logged counts as INFO.",
)
@click.option("--grep", metavar="REGEX", help="Lines in which this is found.")
@click.option("-t", "--timestamps", is_flag=True, help="Show date and time of every line.")
@click.option(
    "--set-level",
    metavar="NODE[.N]=LEVEL",
    help="Have a node, or a replica, log from that level on; shows nothing.",
)
@click.option(
    "--listen",
    metavar="ADDRESS",
    help="Collect signed records of flowkit.logs.Handler at tcp://HOST:PORT, of no project.",
)
@click.option(
    "--key-file",
    type=click.Path(dir_okay=False),
    help="With --listen: the file with their key; else see FLOWKIT_LOG_KEY_FILE, FLOWKIT_LOG_KEY.",
)
@format_option
def command(
    names: tuple[str, ...],
    project: str | None,
    follow: bool,
    since: float | None,
    tail: int | None,
    level: str | None,
    grep: str | None,
    timestamps: bool,
    set_level: str | None,
    listen: str | None,
    key_file: str | None,
    format_: str,
) -> None:
    """Show what the replicas of a project print, and what becomes of them ("supervisor").

    Also after the run. By default everything since the project was started last; --since reaches
    further back, as far as the log files do (the last 50 MiB of each replica).
    """
    if set_level is not None:
        _set_level(project, set_level)
        return
    if listen is not None:
        if names or project or since is not None or tail is not None or follow:
            raise click.UsageError("--listen goes with --level, --grep, -t and --format only")
        wanted = _filter(level, grep)
        collect.collect(listen, key_file, wanted, None if format_ == "json" else _Text(timestamps))
        return
    if key_file is not None:
        raise click.UsageError("--key-file goes with --listen")
    place = choose(project, running=False)
    _check_names(place, names)
    wanted = _filter(level, grep)
    show = _as_json if format_ == "json" else _Text(timestamps)
    begin = since if since is not None else place.record.started if place.record else 0.0

    def past(marks: Marks | None) -> None:
        state = place.directory.state
        for line in history.lines(state, names, since=begin, last=tail, wanted=wanted, marks=marks):
            show(line)

    if not follow or place.pid is None:
        past(None)
        return
    with Client(place) as client:
        client.before_waiting = flush
        _follow(client, names, wanted, show, past)


def _follow(
    client: Client,
    names: tuple[str, ...],
    wanted: Callable[[LogLine], bool],
    show: Callable[[LogLine | Skipped], None],
    past: Callable[[Marks], None],
) -> None:
    """Show the past up to where the stream begins, then the stream."""
    at = 0.0

    def opened(raw: object) -> None:
        marks = client.marks(raw)
        if not at:
            past(marks)
            return
        # This process was stopped for so long that the project has forgotten it.
        state = client.place.directory.state
        for line in history.lines(state, names, since=at, wanted=wanted, marks=marks):
            if line.time > at:
                show(line)

    wish = arguments.Stream(DEPTH, list(names))
    while True:
        try:
            for item in client.stream("logs", wish, LogLine, opened):
                if isinstance(item, Skipped):
                    show(item)
                    continue
                at = max(at, item.time)
                if wanted(item):
                    show(item)
            return
        except RequestFailed as error:
            if error.code != requests.LOST:
                raise


def _set_level(project: str | None, text: str) -> None:
    name, equals, level = text.partition("=")
    if not equals or level.upper() not in LEVELS:
        raise click.UsageError(f"--set-level takes NODE=LEVEL, with one of {', '.join(LEVELS)}")
    node, replica = split_replica(name)
    with connect(project) as client:
        click.echo(client.set_level(node, level.upper(), replica).text)


def _check_names(place: Place, names: tuple[str, ...]) -> None:
    """A node that was never heard of is more likely a slip than one that is silent."""
    known = history.names_in(place.directory.state)
    nodes = {split_replica(name)[0] for name in known}
    if place.record is not None:
        nodes |= set(place.record.nodes)
    for name in names:
        node, replica = split_replica(name)
        if name in known or node in nodes:
            continue
        guess = suggest(name, nodes)
        raise OperatorError(
            f"{place.project} has no node '{name}'",
            f"did you mean '{guess}'?" if guess else f"its nodes are {', '.join(sorted(nodes))}",
        )


def _filter(level: str | None, grep: str | None) -> Callable[[LogLine], bool]:
    least = LEVELS.index(level.upper()) if level else 0
    try:
        pattern = re.compile(grep) if grep else None
    except re.error as error:
        raise click.UsageError(f"--grep: '{grep}' is no regular expression: {error}") from None

    def wanted(line: LogLine) -> bool:
        known = line.level if line.level in LEVELS else "INFO"
        return LEVELS.index(known) >= least and (pattern is None or bool(pattern.search(line.text)))

    return wanted


def _as_json(item: LogLine | Skipped) -> None:
    if isinstance(item, Skipped):
        sys.stdout.write(json.dumps({"skipped": item.count}) + "\n")
        return
    found = {
        "time": timestamp(item.time),
        "replica": item.replica,
        "level": item.level or None,
        "text": item.text,
        **({"more": True} if item.more else {}),
    }
    sys.stdout.write(json.dumps(found) + "\n")


class _Text:
    """Lines as `up` shows them, and in its colours."""

    def __init__(self, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._colour = terminal.use_colour(sys.stdout)
        self._palette = cycle(COLOURS)
        self._colours: dict[str, str] = {}
        self._width = len(SUPERVISOR)

    def __call__(self, item: LogLine | Skipped) -> None:
        if isinstance(item, Skipped):
            count = "some" if item.count is None else f"{item.count:,}"
            text = f"-- {count} lines were skipped: they came faster than they were read --"
            sys.stdout.write(self._style(text, fg="yellow") + "\n")
            return
        self._width = max(self._width, len(item.replica))
        prefix = f"{item.replica:<{self._width}} | "
        colour = self._colour_of(item.replica)
        text = item.text
        logged = item.level and item.replica != SUPERVISOR and not item.more
        when = datetime.fromtimestamp(item.time)
        if logged:
            text = f"{item.level} {text}"
        if self._timestamps:
            text = f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03} {text}"
        elif logged:
            text = f"{when:%H:%M:%S} {text}"
        fg = SEVERE.get(item.level)
        body = self._style(text, fg=fg) if fg else text
        sys.stdout.write(self._style(prefix, fg=colour, bold=colour is None) + body + "\n")

    def _colour_of(self, replica: str) -> str | None:
        if replica == SUPERVISOR:
            return None
        node = replica.rpartition(".")[0]
        if node not in self._colours:
            self._colours[node] = next(self._palette)
        return self._colours[node]

    def _style(self, text: str, fg: str | None = None, bold: bool = False) -> str:
        return click.style(text, fg=fg, bold=bold or None) if self._colour else text
