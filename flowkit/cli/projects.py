"""What verbs share that talk to a running project: how it is named, how a change is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime

import click

from flowkit.cli import terminal
from flowkit.clock import wall
from flowkit.control.client import Client
from flowkit.control.places import choose
from flowkit.control.records import Changed
from flowkit.units import duration

PROJECT_HELP = (
    "The project, by its name or its topology FILE. Default: the one that runs in this directory."
)

project_option = click.option("-p", "--project", metavar="NAME|FILE", help=PROJECT_HELP)

format_option = click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: JSON Lines.",
)


def with_project(function: Callable[..., object]) -> Callable[..., object]:
    """The project as an argument or with -p, as the first parameter of the verb."""
    named = click.argument("named", metavar="[PROJECT]", required=False)
    return named(project_option(function))


def one_project(named: str | None, project: str | None) -> str | None:
    """The project that was named in one of the two ways."""
    if named is not None and project is not None and named != project:
        raise click.UsageError("name the project once: as PROJECT or with -p")
    return named if named is not None else project


def connect(project: str | None) -> Client:
    """A client of the project that is meant. It never outlives the reader of what is printed."""
    client = Client(choose(project))
    client.before_waiting = flush
    return client


def flush() -> None:
    """Show what was printed; raises BrokenPipeError if nobody reads it any more."""
    if sys.stdout is None:
        return
    sys.stdout.flush()
    if not sys.stdout.isatty() and terminal.reader_has_gone():
        raise BrokenPipeError


def progress(text: str) -> None:
    """How far a change has come: for people who watch, beside what is printed for programs."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.secho(f"  {text}", fg="bright_black", err=True, color=terminal.use_colour(sys.stderr))


def confirm(done: Changed) -> None:
    """Say what is true now."""
    click.echo(done.text)


def split_replica(name: str) -> tuple[str, int | None]:
    """``split`` is a node, ``split.2`` one of its replicas."""
    node, dot, number = name.rpartition(".")
    if not dot:
        return name, None
    if not node or not number.isdecimal():
        raise click.UsageError(
            f"'{name}' is no replica: those are NODE.N, like {node or 'split'}.0"
        )
    return node, int(number)


def short_path(path: str) -> str:
    """A path as people would type it here."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


class Since(click.ParamType[float]):
    """A time, in seconds since the epoch: how long ago (``10m``), or when (``12:30``, ISO 8601)."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        try:
            return wall() - duration(text)
        except ValueError:
            pass
        try:
            if len(text) <= 8 and ":" in text:  # today
                today = datetime.fromtimestamp(wall()).date().isoformat()
                text = f"{today}T{text}"
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            self.fail(
                f"'{value}' is no time: how long ago, like 10m or 2h, or when, like 12:30 or "
                "2026-01-31T12:30",
                param,
                ctx,
            )


class Duration(click.ParamType[float]):
    """A duration, in seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return duration(value)  # type: ignore[arg-type]
        except ValueError as error:
            self.fail(str(error), param, ctx)
