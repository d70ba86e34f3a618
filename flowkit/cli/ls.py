"""`flowkit ls`: which projects there are, which of them run."""

from __future__ import annotations

import json

import click

from flowkit.cli.projects import format_option, short_path
from flowkit.cli.show import table
from flowkit.clock import wall
from flowkit.control.logfile import timestamp
from flowkit.control.places import Place, places
from flowkit.units import human_seconds


@click.command("ls", short_help="List the projects that run, and those that have run.")
@click.option("-r", "--running", is_flag=True, help="Only those that run.")
@click.option("-a", "--all", "all_", is_flag=True, help="Also what never came so far as to run.")
@format_option
def command(running: bool, all_: bool, format_: str) -> None:
    """List the projects of this user that run, and those that have run.

    STATE is that of the run, or how it ended: drained, failed, killed ...; "died" means that its
    process has gone without a word.
    """
    found = [
        place
        for place in places()
        # A directory without a record is of a run that was refused, or not flowkit's at all.
        if place.pid is not None or (not running and (all_ or place.record is not None))
    ]
    found.sort(key=lambda place: (place.pid is None, place.project, place.file))
    if format_ == "json":
        for place in found:
            click.echo(json.dumps(_as_dict(place)))
        return
    if not found:
        click.echo("no project runs" if running else "no project runs or has run here", err=True)
        return
    now = wall()
    rows = [["NAME", "STATE", "SINCE", "PID", "REPLICAS", "EXIT", "FILE"]]
    rows += [_row(place, now) for place in found]
    for line in table(rows, left=(0, 1, 6)):
        click.echo(line.rstrip())


def _row(place: Place, now: float) -> list[str]:
    record = place.record
    if record is None:
        return [place.project, place.state, "-", str(place.pid or "-"), "-", "-", "-"]
    running = place.pid is not None
    since = record.started if running else record.ended
    code = "-" if record.exit is None else str(record.exit)
    return [
        place.project,
        place.state,
        "-" if since is None else human_seconds(max(0.0, now - since)),
        str(place.pid or "-"),
        str(record.replicas) if running else "-",
        "-" if running else code,
        short_path(record.file),
    ]


def _as_dict(place: Place) -> dict[str, object]:
    record = place.record
    found: dict[str, object] = {
        "project": place.project,
        "state": place.state,
        "running": place.pid is not None,
        "pid": place.pid,
    }
    if record is not None:
        found |= {
            "file": record.file,
            "directory": record.directory,
            "started": timestamp(record.started),
            "ended": None if record.ended is None else timestamp(record.ended),
            "exit": record.exit,
            "reason": record.reason,
            "replicas": record.replicas,
        }
    found["state_directory"] = str(place.directory.state)
    return found
