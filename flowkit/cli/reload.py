"""`flowkit reload`: make a running project what its file says now."""

from __future__ import annotations

import os

import click

from flowkit.cli.projects import confirm, connect, progress, project_option
from flowkit.control.places import choose
from flowkit.errors import NoSuchProject, RequestFailed
from flowkit.protocol import requests


@click.command("reload", short_help="Change a running project to fit its file, and lose nothing.")
@click.argument("file", metavar="[FILE]", required=False)
@project_option
@click.option("--lose-state", is_flag=True, help="Also if that leaves state in memory behind.")
@click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing.")
def command(file: str | None, project: str | None, lose_state: bool, dry_run: bool) -> None:
    """Apply the difference between a running project and its topology FILE as it is now.

    FILE may be another one if -p names the project. What is to be changed is shown first. If the
    file has problems they are shown and nothing is changed (exit code 2). Exits with 6 if the
    project does not run, with 7 and the reason if it cannot be done.
    """
    if file is not None and not os.path.isfile(file):
        raise NoSuchProject(f"there is no file {file}")
    named = project if project is not None else None if file is None else os.path.abspath(file)
    place = choose(named)
    with connect(named) as client:
        wanted = file if file is not None else place.file
        planned = client.reload(wanted, dry=True, lose_state=lose_state)
        click.echo(planned.text)
        if planned.facts["refusals"]:
            hint = "; ".join(planned.facts["hints"])
            raise RequestFailed(requests.REFUSED, "; ".join(planned.facts["refusals"]), hint)
        if planned.facts["changed"] and not dry_run:
            confirm(client.reload(wanted, lose_state=lose_state, tell=progress))
