"""`flowkit stop`: stop one node of a running project, and leave it so."""

from __future__ import annotations

import click

from flowkit.cli.projects import confirm, connect, progress, project_option


@click.command("stop", short_help="Stop a node of a running project (the project: down).")
@click.argument("node", metavar="NODE")
@project_option
def command(node: str, project: str | None) -> None:
    """Stop all replicas of a node, and leave it so until `flowkit start NODE`.

    What is sent to it waits, and what sends to it in the end waits too. Waits until it is true.
    Exits with 6 if the project does not run, with 7 and the reason if it cannot be done.
    """
    with connect(project) as client:
        confirm(client.stop(node, tell=progress))
