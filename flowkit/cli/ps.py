"""`flowkit ps`: how the replicas of a running project are."""

from __future__ import annotations

import sys

import click

from flowkit.cli import terminal, view
from flowkit.cli.projects import connect, format_option, one_project, with_project


@click.command("ps", short_help="Show how the replicas of a running project are.")
@with_project
@format_option
def command(named: str | None, project: str | None, format_: str) -> None:
    """Show how every replica of a running project is: what it does, what it uses, what waits, and
    what limits the flow. Rates, shares and percentiles are of the last five seconds.

    Exits with 6 if the project does not run.
    """
    with connect(one_project(named, project)) as client:
        status = client.status()
    colour = terminal.use_colour(sys.stdout)
    if format_ == "json":
        lines = list(view.json_lines(status))
    else:
        lines = view.ps_lines(status, terminal.width_of(sys.stdout), colour)
    for line in lines:
        print(line)
