"""`flowkit restart`: restart the replicas of a node one after the other, or one of them."""

from __future__ import annotations

import click

from flowkit.cli.projects import confirm, connect, progress, project_option, split_replica


@click.command("restart", short_help="Restart the replicas of a node, one after the other.")
@click.argument("name", metavar="NODE[.N]")
@project_option
def command(name: str, project: str | None) -> None:
    """Restart the replicas of a node one after the other, or replica N of it, and lose nothing.

    Waits until the new ones are ready. Exits with 6 if the project does not run, with 7 and the
    reason if it cannot be done.
    """
    node, replica = split_replica(name)
    with connect(project) as client:
        confirm(client.restart(node, replica, tell=progress))
