"""`flowkit down`: end a running project."""

from __future__ import annotations

import click

from flowkit.cli.projects import Duration, flush, one_project, progress, with_project
from flowkit.control.client import Client
from flowkit.control.places import Place, choose, kill_holder
from flowkit.errors import NotRunning, OperatorError
from flowkit.units import human_seconds

DRAIN_TIMEOUT = 60.0


@click.command("down", short_help="End a running project: drain it, then confirm.")
@with_project
@click.option(
    "--timeout",
    type=Duration(),
    default=DRAIN_TIMEOUT,
    help="How long what is in flight may take; then it is given up (60s).",
)
@click.option("--kill", is_flag=True, help="End everything at once, with what is in flight.")
def command(named: str | None, project: str | None, timeout: float, kill: bool) -> int:
    """Stop the sources of a running project, let what is in flight be done, and end it.

    Waits until its process is gone, and says how it ended. Exit codes: 0 it was drained; 5 it was
    not in time, or messages are unaccounted for; 3 it had failed; 6 it does not run. With --kill 0
    means that it is gone; a project that shows no sign of life is killed too, but never a process
    that is not the project's own.
    """
    place = choose(one_project(named, project))
    try:
        with Client(place, patience=2.0 if kill else 15.0) as client:
            client.before_waiting = flush
            report = client.down(timeout, kill=kill, tell=progress)
    except NotRunning:
        if place.directory.holder() == place.pid:
            return _by_force(place, kill)
        raise
    except OperatorError:
        if not kill or place.directory.holder() != place.pid:
            raise
        return _by_force(place, kill)
    click.echo(_summary(place, report))
    drained = report["status"] == "drained" and report["exit"] in (0, 4)
    return 0 if drained or kill else int(report["exit"])


def _by_force(place: Place, kill: bool) -> int:
    """It is there and does not listen: it has just begun, or is stuck."""
    if not kill:
        raise OperatorError(
            f"{place.project} (process {place.pid}) is there, but does not listen yet",
            "try again in a moment, or end it with --kill",
        )
    if not kill_holder(place):
        raise NotRunning(f"not running: {place.name}")
    click.echo(f"{place.project} is down: process {place.pid} was killed")
    return 0


def _summary(place: Place, report: dict[str, object]) -> str:
    links = report["links"]
    assert isinstance(links, list)
    lost = sum(link["in_flight"] for link in links)
    dead = sum(link["dead_lettered"] for link in links)
    seconds = report["seconds"]
    assert isinstance(seconds, float)
    parts = [f"{report['status']} after {human_seconds(seconds)}"]
    if report["reason"] and report["reason"] not in ("killed", report["status"]):
        parts.append(str(report["reason"]))
    if lost:
        parts.append(f"{lost:,} in flight given up")
    if dead:
        parts.append(f"{dead:,} dead letter{'' if dead == 1 else 's'}")
    if not lost and report["status"] == "drained":
        parts.append("nothing lost" if not dead else "nothing else lost")
    return f"{place.project} is down: {', '.join(parts)}"
