"""Type checkers see what is sent where: they accept right snippets and refuse the wrong lines."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPETS = ROOT / "tests" / "snippets"
FILES = sorted(SNIPPETS.glob("*.py"))
MARK = re.compile(r"# wrong: ([\w-]+)$")


def marks() -> dict[tuple[str, int], str]:
    """Where the snippets are wrong, with mypy's code of it."""
    return {
        (path.name, number): found[1]
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (found := MARK.search(line))
    }


def test_some_lines_are_wrong() -> None:
    assert len(marks()) > 15


@pytest.mark.parametrize("name", ["right"])
def test_what_is_right_is_right_at_run_time(name: str) -> None:
    spec = importlib.util.spec_from_file_location(f"snippet_{name}", SNIPPETS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_mypy_finds_what_is_wrong_and_nothing_else() -> None:
    pytest.importorskip("mypy", reason="needs mypy: pip install mypy")
    command = [sys.executable, "-m", "mypy", "--output", "json", *map(str, FILES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert not done.stderr, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {
        (Path(line["file"]).name, line["line"]): line["code"]
        for line in lines
        if line["severity"] == "error"
    }
    assert found == marks()


@pytest.mark.slow
def test_pyright_finds_what_is_wrong_and_nothing_else() -> None:
    if shutil.which("pyright", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("needs pyright: pip install 'pyright[nodejs]'")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, *map(str, FILES)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    result = json.loads(done.stdout)
    found = {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1): one["rule"]
        for one in result["generalDiagnostics"]
        if one["severity"] == "error"
    }
    assert set(found) == set(marks()), found
