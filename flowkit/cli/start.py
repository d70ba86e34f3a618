"""`flowkit start`: start a node of a running project that was stopped."""

from __future__ import annotations

import click

from flowkit.cli.projects import confirm, connect, progress, project_option


@click.command("start", short_help="Start a node that was stopped (a project: up).")
@click.argument("node", metavar="NODE")
@project_option
def command(node: str, project: str | None) -> None:
    """Start a node again that `flowkit stop` has stopped.

    Waits until its replicas are ready. Exits with 6 if the project does not run, with 7 and the
    reason if it cannot be done.
    """
    with connect(project) as client:
        confirm(client.start(node, tell=progress))
