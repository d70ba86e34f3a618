"""`flowkit dead-letters`: look at what was given up, try it again, or forget it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import click

from flowkit.cli.show import lines_of, table
from flowkit.codecs.preview import preview
from flowkit.errors import OperatorError
from flowkit.protocol.control import Record, Replayed
from flowkit.rundir import RunDirectory
from flowkit.store import DeadLetter, Store
from flowkit.topology.names import valid
from flowkit.units import human_bytes

STILL_DEAD = 4
"""Exit code when a letter that was replayed is dead again, as that of `up` with dead letters."""

PROJECT = click.argument("project", metavar="PROJECT")
NUMBERS = click.argument("numbers", metavar="[NUMBER]...", type=int, nargs=-1)
ALL = click.option("--all", "all_", is_flag=True, help="All dead letters of the project.")
FORMAT = click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)


@click.group("dead-letters", short_help="List, show, replay or drop messages that were given up.")
def command() -> None:
    """Look at messages that were given up, try them again, or forget them.

    PROJECT is a topology file or the name of a project. Works while it runs and when it does not.
    """


@command.command("ls")
@PROJECT
@FORMAT
def ls(project: str, format_: str) -> None:
    """List the dead letters of a project, oldest first."""
    with _open(project) as (_, store):
        letters = store.dead_letters()
    if format_ == "json":
        for letter in letters:
            click.echo(json.dumps(_as_dict(letter)))
        return
    if not letters:
        click.echo("no dead letters")
        return
    rows = [["NUMBER", "WHEN", "LINK", "REPLICA", "TRIES", "SIZE", "ERROR"]]
    for letter in letters:
        rows.append(
            [
                str(letter.number),
                _when(letter),
                letter.link,
                f"{letter.node}.{letter.replica}",
                str(letter.attempts),
                human_bytes(len(letter.raw)),
                letter.error.partition("\n")[0][:80],
            ]
        )
    for line in table(rows, left=(1, 2, 3, 6)):
        click.echo(line.rstrip())


@command.command("show")
@PROJECT
@NUMBERS
@FORMAT
def show(project: str, numbers: tuple[int, ...], format_: str) -> None:
    """Show dead letters whole: content, headers, traceback. Without NUMBER: all."""
    with _open(project) as (_, store):
        letters = _chosen(store, numbers, all_=not numbers)
    for letter in letters:
        if format_ == "json":
            click.echo(json.dumps({**_as_dict(letter), "traceback": letter.traceback}))
            continue
        tries = "try" if letter.attempts == 1 else "tries"
        click.echo(f"dead letter {letter.number}: {letter.error}")
        click.echo(f"  when      {_when(letter)}, after {letter.attempts} {tries}")
        click.echo(f"  link      {letter.link}")
        click.echo(f"  replica   {letter.node}.{letter.replica}")
        click.echo(f"  message   {letter.message}")
        if letter.key is not None:
            click.echo(f"  key       {letter.key!r}")
        for name, value in letter.headers.items():
            click.echo(f"  header    {name}: {value}")
        click.echo(f"  content   {_content(letter)}")
        for line in letter.traceback.rstrip().splitlines():
            click.echo(f"  | {line}")


@command.command("drop")
@PROJECT
@NUMBERS
@ALL
def drop(project: str, numbers: tuple[int, ...], all_: bool) -> None:
    """Forget dead letters for good."""
    with _open(project) as (_, store):
        letters = _chosen(store, numbers, all_)
        count = store.drop_dead_letters([letter.number for letter in letters])
    click.echo(f"dropped {_letters(count)}")


@command.command("replay")
@PROJECT
@NUMBERS
@ALL
def replay(project: str, numbers: tuple[int, ...], all_: bool) -> int:
    """Send dead letters through the link they came from, and say what becomes of each.

    If the project does not run, it is started for this alone: its sources read nothing. Exits with
    4 if a letter is dead again.
    """
    with _open(project) as (place, store):
        chosen = [letter.number for letter in _chosen(store, numbers, all_)]
        topology = store.fact("topology")
    if not chosen:
        click.echo("no dead letters")
        return 0
    failed = 0
    for answer in _replay(place, topology, chosen):
        failed += bool(answer.error)
        click.echo(f"{answer.number}: {answer.error or 'done'}")
    click.echo(f"replayed {_letters(len(chosen))}: {len(chosen) - failed} done, {failed} dead")
    return STILL_DEAD if failed else 0


def _replay(place: RunDirectory, topology: str | None, numbers: list[int]) -> Iterator[Replayed]:
    from flowkit.control.client import Client
    from flowkit.control.places import look_at

    if place.holder() is not None:
        with Client(look_at(place)) as client:
            yield from client.replay(numbers)
        return
    if topology is None or not Path(topology).exists():
        raise OperatorError(
            "the project is not running, and its topology is not where it was",
            hint="start it with flowkit up, then replay",
        )
    yield from asyncio.run(_replay_alone(topology, numbers))


async def _replay_alone(topology: str, numbers: list[int]) -> list[Replayed]:
    """Run the project without its sources until every letter has been tried."""
    from flowkit.protocol.project import Died
    from flowkit.supervisor import Silent, Supervisor

    answers: list[Replayed] = []

    class Started(Silent):
        def ready(self, seconds: float) -> None:
            project.replay(numbers, answered)

        def output(self, replica: str, line: bytes) -> None:
            click.echo(f"{replica} | {line.decode('utf-8', 'backslashreplace')}", err=True)

        def record(self, replica: str, record: Record) -> None:
            for line in lines_of(record):
                click.echo(f"{replica} | {line}", err=True)

        def died(self, event: Died, budget: int | None) -> None:
            click.echo(f"{event.replica.name} died: {event.error or event.code}", err=True)

    def answered(answer: Replayed) -> None:
        answers.append(answer)
        if len(answers) == len(numbers):
            project.drain()

    project = Supervisor(topology, sources=False, watcher=Started())
    try:
        await project.start()
        report = await project.wait()
    finally:
        await project.close()
    told = {answer.number for answer in answers}
    answers += [
        Replayed(number, f"not tried: {report.reason}") for number in numbers if number not in told
    ]
    return answers


@contextmanager
def _open(project: str) -> Iterator[tuple[RunDirectory, Store]]:
    place = _place(project)
    path = place.state / "flowkit.db"
    if not path.exists():
        raise OperatorError(f"{project} has never run here", hint="flowkit up keeps dead letters")
    try:
        with closing(Store(str(path))) as store:
            yield place, store
    except sqlite3.Error as error:
        raise OperatorError(f"{path} cannot be used: {error}") from error


def _place(project: str) -> RunDirectory:
    if os.path.isfile(project):
        from flowkit.topology.loader import load

        topology, problems = load(project, os.environ)
        if topology is None:
            from flowkit.errors import TopologyError

            raise TopologyError(problems)
        return RunDirectory(topology.project, topology.path)
    found = RunDirectory.find(project) if valid(project) else []
    if not found:
        raise OperatorError(
            f"there is no project '{project}', and no file of that name",
            hint="name a topology file, or a project that has run on this machine",
        )
    if len(found) > 1:
        raise OperatorError(
            f"there are {len(found)} projects '{project}'", hint="name the topology file instead"
        )
    return found[0]


def _chosen(store: Store, numbers: Sequence[int], all_: bool) -> list[DeadLetter]:
    if bool(numbers) == all_:
        raise click.UsageError("say which: one NUMBER or more, or --all")
    letters = store.dead_letters(None if all_ else list(numbers))
    missing = set(numbers) - {letter.number for letter in letters}
    if missing:
        names = ", ".join(map(str, sorted(missing)))
        raise OperatorError(f"there is no dead letter {names}", hint="flowkit dead-letters ls")
    return letters


def _as_dict(letter: DeadLetter) -> dict[str, object]:
    return {
        "number": letter.number,
        "time": letter.time,
        "message": letter.message,
        "link": letter.link,
        "node": letter.node,
        "replica": letter.replica,
        "key": letter.key if isinstance(letter.key, str | int | float | None) else repr(letter.key),
        "headers": letter.headers,
        "error": letter.error,
        "attempts": letter.attempts,
        "size": len(letter.raw),
        "raw": letter.raw.hex(),
    }


def _content(letter: DeadLetter) -> str:
    """The message as people read it: decoded where it is msgpack or text, else its bytes."""
    shown = preview(letter.raw, 400)
    return f"{shown} ({human_bytes(len(letter.raw))})" if shown.endswith("...") else shown


def _when(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.time).strftime("%Y-%m-%d %H:%M:%S")


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"
