"""`flowkit ps`: how the replicas of a running project are."""

from __future__ import annotations

import click
import msgspec

from flowkit.cli.projects import connect, format_option, one_project, with_project
from flowkit.cli.show import table
from flowkit.status import Status
from flowkit.units import human_bytes, human_count, human_seconds


@click.command("ps", short_help="Show how the replicas of a running project are.")
@with_project
@format_option
def command(named: str | None, project: str | None, format_: str) -> None:
    """Show how every replica of a running project is: what it does, what it uses, what waits.

    Exits with 6 if the project does not run.
    """
    with connect(one_project(named, project)) as client:
        status = client.status()
    if format_ == "json":
        for replica in status.replicas:
            click.echo(msgspec.json.encode(replica).decode())
        return
    for line in _rows(status):
        click.echo(line.rstrip())


def _rows(status: Status) -> list[str]:
    rows = [["NAME", "STATE", "UPTIME", "CPU", "MEM", "IN/S", "OUT/S", "QUEUE", "P99", "RESTARTS"]]
    for one in status.replicas:
        rows.append(
            [
                one.name,
                one.state,
                human_seconds(one.uptime),
                "-" if one.cpu is None else f"{100 * one.cpu:.0f}%",
                "-" if one.memory is None else human_bytes(one.memory),
                "-" if one.in_rate is None else human_count(one.in_rate),
                "-" if one.out_rate is None else human_count(one.out_rate),
                "-" if one.queue is None else human_count(one.queue),
                "-" if one.p99 is None else human_seconds(one.p99),
                str(one.restarts),
            ]
        )
    return table(rows, left=(0, 1))
