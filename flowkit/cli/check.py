"""`flowkit check`: every problem of topology files, before any process starts."""

from __future__ import annotations

import os
import sys

import click

from flowkit.cli import terminal


@click.command("check")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="How problems are printed: for people, as JSON Lines, or as GitHub annotations.",
)
def command(files: tuple[str, ...], format_: str) -> int:
    """Find every problem of topology files before anything starts.

    Node classes are imported in a short-lived process of their own; nothing else of them runs.
    Exits with 2 if there is any problem.
    """
    from flowkit.cli.problems import render
    from flowkit.errors import Problem
    from flowkit.runtime.planning import examine
    from flowkit.topology.render import as_github, as_json, count, in_order

    problems: list[Problem] = []
    for file in dict.fromkeys(files):
        topology, _, found = examine(file, os.environ, os.getcwd())
        problems += found
        if not found and topology is not None and format_ == "text":
            replicas = sum(node.replicas for node in topology.nodes.values())
            links = sum(len(link.to) for link in topology.links)
            parts = [
                count(len(topology.nodes), "node"),
                count(replicas, "replica"),
                count(links, "link"),
            ]
            if topology.endpoints:
                parts.append(count(len(topology.endpoints), "endpoint"))
            click.echo(f"{file}: ok ({', '.join(parts)})")
    if not problems:
        return 0
    if format_ == "text":
        click.echo(render(problems, terminal.use_colour(sys.stdout)))
    else:
        show = as_json if format_ == "json" else as_github
        for problem in in_order(problems):
            click.echo(show(problem))
    return 2
