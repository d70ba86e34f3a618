"""`flowkit graph`: a picture of a topology."""

from __future__ import annotations

import os

import click


@click.command("graph")
@click.argument("file", metavar="FILE", type=click.Path())
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "mermaid", "dot"]),
    default="text",
    show_default=True,
    help="Text for a terminal, a Mermaid flowchart, or a Graphviz graph.",
)
def command(file: str, format_: str) -> int:
    """Draw a topology.

    Reads the file and what it includes, and imports none of its classes: a file can be drawn
    before its code is written.
    """
    from flowkit.errors import TopologyError
    from flowkit.topology import draw
    from flowkit.topology.check import check
    from flowkit.topology.facts import Inspection
    from flowkit.topology.loader import load

    topology, problems = load(file, os.environ)
    if topology is not None:
        problems += check(topology, Inspection())
    if topology is None or problems:
        raise TopologyError(problems)
    drawing = {"text": draw.as_text, "mermaid": draw.as_mermaid, "dot": draw.as_dot}[format_]
    click.echo(drawing(topology))
    return 0
