"""`flowkit schema`: the JSON Schema of topology files."""

from __future__ import annotations

import json

import click


@click.command("schema")
def command() -> int:
    """Print the JSON Schema of topology files.

    Save it and name it in the first line of a topology, and editors that use yaml-language-server
    complete and check the file:

    \b
        flowkit schema > flowkit.schema.json
        # yaml-language-server: $schema=flowkit.schema.json
    """
    from flowkit.topology.schema import schema

    click.echo(json.dumps(schema(), indent=2))
    return 0
