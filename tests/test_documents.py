"""Every document of the repository is well formed, and what it shows is tried.

README.rst is a story that is followed in its order: `tests/test_readme.py`. The rest is tried block
by block:

* Python with the name of a file in its first line is that file, or is written down and imported;
  without one it is a piece of code: it is run, with flowkit's names and whatever types it mentions.
* YAML that says ``flowkit: 1`` is checked as a topology; other YAML must be a part of one.
* A console session is run, in a directory with the files that the document shows (that of the
  repository, for a document which lies beside what it shows).
* What stands behind ``::`` is a drawing or a sample and holds no command.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import flowkit
from flowkit.topology.schema import schema
from tests.documents import Block, Desk, blocks, documents, plain
from tests.e2e.harness import ROOT

DOCUMENTS = documents()
OTHERS = [path for path in DOCUMENTS if path != ROOT / "README.rst"]
BESIDE = ROOT / "topologies"

each = pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.relative_to(ROOT).as_posix())


def of(path: Path, *languages: str) -> list[Block]:
    return [block for block in blocks(path) if block.language in languages]


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if "docs" not in path.parts],  # Sphinx reads those
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_docutils_has_nothing_to_complain_about(path: Path) -> None:
    core = pytest.importorskip("docutils.core", reason="needs docutils: pip install docutils")
    settings = {"report_level": 1, "halt_level": 1, "syntax_highlight": "none"}
    core.publish_doctree(path.read_text(encoding="utf-8"), settings_overrides=settings)


def names_for(text: str) -> dict[str, Any]:
    """The names that a piece of code may use: flowkit's, and any type by an ``UpperCase`` name."""
    names: dict[str, Any] = {name: getattr(flowkit, name) for name in flowkit.__all__}
    names |= {"asyncio": asyncio, "__name__": "piece"}
    tree = list(ast.walk(ast.parse(text)))
    made = {one.name for one in tree if isinstance(one, ast.ClassDef)}
    used = {one.id for one in tree if isinstance(one, ast.Name)}
    for name in used - made - names.keys() - vars(builtins).keys():
        if re.fullmatch(r"[A-Z][a-z]\w*", name):
            names[name] = msgspec.defstruct(name, [("name", str)])
    return names


@each
def test_pieces_of_code_run(path: Path) -> None:
    for block in of(path, "python"):
        code = compile(block.text, block.where, "exec")
        if not block.file:
            exec(code, names_for(block.text))
        elif (ROOT / block.file).exists():
            assert block.text.partition("\n")[2] in (ROOT / block.file).read_text(), block.where


@each
def test_topologies_are_right_as_far_as_they_are_shown(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    whole = schema()
    part = {key: value for key, value in whole.items() if key != "required"}
    for block in of(path, "yaml"):
        content = yaml.safe_load(block.text)
        if isinstance(content, list):
            content = {"links" if "from" in content[0] else "endpoints": content}
        try:
            jsonschema.validate(content, whole if "flowkit" in content else part)
        except jsonschema.ValidationError as error:
            pytest.fail(f"{block.where}: {error.message}")


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


@pytest.mark.e2e
@each
def test_files_and_sessions_are_true(path: Path, desk: Desk) -> None:
    beside = path.is_relative_to(BESIDE)
    written = [block for block in of(path, "python", "yaml") if block.file]
    if not beside:
        for block in written:
            desk.write(block.file, block.text)
    tests = [block.file for block in written if block.file.startswith("test_")]
    if tests:
        code, output = desk.sh(f"python -m pytest -q {' '.join(tests)}")
        assert code == 0, output
    whole = [one.file for one in written if one.language == "yaml" and "flowkit: 1" in one.text]
    if whole and not beside:
        code, output = desk.sh(f"flowkit check {' '.join(whole)}")
        assert code == 0, output
    for block in of(path, "console"):
        for command, expected in block.sessions():
            _, output = desk.sh(command, ROOT if beside else None)
            assert plain(output) == plain(expected), f"{block.where}: {command}"


@each
def test_commands_stand_in_sessions(path: Path) -> None:
    for block in of(path, ""):
        assert not re.search(r"^\$ ", block.text, re.MULTILINE), f"{block.where}: make it a console"
