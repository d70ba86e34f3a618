"""`flowkit init`: a project that runs and passes its own test."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import os
import re
import shlex
from pathlib import Path

import click

from flowkit.errors import OperatorError
from flowkit.topology import names
from flowkit.topology.schema import schema

SCHEMA = ".flowkit-schema.json"
TEMPLATES = ("topology.yaml", "nodes.py", "test_nodes.py")


@click.command(short_help="Create a project that runs and passes its own test.")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
def command(directory: Path) -> None:
    """Create a project in DIR (default: the current directory).

    It counts the words of a text: a topology file, three nodes and their test. Nothing that
    exists is overwritten.
    """
    files = {name: _template(name, _project(directory)) for name in TEMPLATES}
    files[SCHEMA] = json.dumps(schema(), indent=2) + "\n"
    _write(directory, files)
    for name in files:
        click.echo(f"created {directory / name}")
    click.echo()
    click.echo(_next_steps(directory))


def _project(directory: Path) -> str:
    """A name for the project, as near to the directory's as the rule for names allows."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", directory.resolve().name).lstrip("-_0123456789")
    name = name[: names.MAX_LENGTH].rstrip("-")
    return name if names.valid(name) else "words"


def _template(name: str, project: str) -> str:
    source = importlib.resources.files("flowkit.cli") / "template" / f"{name}.in"
    return source.read_text(encoding="utf-8").replace("@PROJECT@", project)


def _write(directory: Path, files: dict[str, str]) -> None:
    """Write all `files` or, if one of them exists, none. Raises OperatorError."""
    try:
        present = [name for name in files if os.path.lexists(directory / name)]
        if present:
            raise OperatorError(
                f"{', '.join(str(directory / name) for name in present)} already "
                f"exist{'s' if len(present) == 1 else ''}; nothing was written",
                hint="name another directory: flowkit init DIR",
            )
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with open(directory / name, "x", encoding="utf-8", newline="\n") as file:
                file.write(text)
    except OSError as error:
        raise OperatorError(
            f"cannot create a project in {directory}: {error.strerror or error}",
            hint="name a directory that you can write to: flowkit init DIR",
        ) from error


def _next_steps(directory: Path) -> str:
    steps = [
        ("flowkit check topology.yaml", "find mistakes before anything starts"),
        ("flowkit up topology.yaml", "run it"),
        ("python -m pytest", "test the nodes, without flowkit running"),
    ]
    if importlib.util.find_spec("pytest") is None:
        steps.insert(2, ("pip install pytest", "which is not installed here"))
    if directory.resolve() != Path.cwd():
        steps.insert(0, (f"cd {shlex.quote(str(directory))}", ""))
    width = max(len(step) for step, why in steps if why)
    lines = [f"  {step:{width}}  # {why}" if why else f"  {step}" for step, why in steps]
    return "\n".join(["next:", *lines])
