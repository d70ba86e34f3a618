"""`flowkit reload`: make a running project what its file says now."""

from __future__ import annotations

import os

import click

from flowkit.cli.projects import confirm, connect, progress, project_option
from flowkit.control.places import choose
from flowkit.errors import NoSuchProject


@click.command("reload", short_help="Change a running project to fit its file, and lose nothing.")
@click.argument("file", metavar="[FILE]", required=False)
@project_option
@click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing.")
def command(file: str | None, project: str | None, dry_run: bool) -> None:
    """Apply the difference between a running project and its topology FILE as it is now.

    FILE may be another one if -p names the project. What is to be changed is shown first. If the
    file has problems nothing is changed. Exits with 6 if the project does not run, with 7 and the
    reason if it cannot be done.
    """
    if file is not None and not os.path.isfile(file):
        raise NoSuchProject(f"there is no file {file}")
    named = project if project is not None else None if file is None else os.path.abspath(file)
    place = choose(named)
    with connect(named) as client:
        wanted = file if file is not None else place.file
        click.echo(client.reload(wanted, dry=True).text)
        if not dry_run:
            confirm(client.reload(wanted, tell=progress))
