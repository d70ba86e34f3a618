"""`flowkit scale`: give nodes of a running project another number of replicas."""

from __future__ import annotations

import click

from flowkit.cli.projects import confirm, connect, progress, project_option


@click.command("scale", short_help="Give nodes of a running project more replicas, or fewer.")
@click.argument("wanted", metavar="NODE=N...", nargs=-1, required=True)
@project_option
@click.option("--lose-state", is_flag=True, help="Also if that leaves state in memory behind.")
def command(wanted: tuple[str, ...], project: str | None, lose_state: bool) -> None:
    """Give nodes of a running project another number of replicas, and lose nothing.

    Waits until it is true. Exits with 6 if the project does not run, with 7 and the reason if it
    cannot be done.
    """
    counts: dict[str, int] = {}
    for text in wanted:
        node, equals, number = text.partition("=")
        if not equals or not node or not number.isdecimal():
            raise click.UsageError(f"'{text}' is not NODE=N, like split=4")
        if node in counts:
            raise click.UsageError(f"'{node}' is named twice")
        counts[node] = int(number)
    with connect(project) as client:
        confirm(client.scale(counts, lose_state=lose_state, tell=progress))
