"""`flowkit check`: what it prints, in each format, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from flowkit import cli

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "topology" / "cases"


@pytest.fixture(autouse=True)
def in_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for name in ("NO_COLOR", "FORCE_COLOR", "CORPUS", "LIMIT", "LOUD", "REPLICAS", "STAGE"):
        monkeypatch.delenv(name, raising=False)


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["check", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_good_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, "good.yaml") == (0, "good.yaml: ok (5 nodes, 9 replicas, 4 links)\n", "")


def test_a_bad_file(capsys: pytest.CaptureFixture[str]) -> None:
    expected = (CASES / "y4.txt").read_text(encoding="utf-8")
    assert check(capsys, "y4.yaml") == (2, expected, "")


def test_several_files(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, "good.yaml", "y3.yaml", "y4.yaml", "y4.yaml")
    assert code == 2
    assert out.startswith("good.yaml: ok (")
    assert out.endswith("\n11 errors in 2 files\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, "--format", "json", "good.yaml", "y4.yaml")
    assert code == 2
    assert json.loads(out.splitlines()[1]) == {
        "path": "y4.yaml",
        "line": 6,
        "column": 5,
        "length": 7,
        "severity": "error",
        "code": "E102",
        "message": "unknown key 'replcas' in node 'read'",
        "hint": "did you mean 'replicas'?",
    }
    assert check(capsys, "--format", "json", "good.yaml") == (0, "", "")


def test_github(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, "--format", "github", "y4.yaml")
    assert code == 2
    assert out.splitlines()[1] == (
        "::error file=y4.yaml,line=6,col=5,endColumn=12,title=E102::unknown key 'replcas' in node "
        "'read' (did you mean 'replicas'?)"
    )


def test_github_escapes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a,b%.yaml"
    path.write_text('flowkit: 1\nproject: p\nnodes: {"a\\nb%": {use: parts:End}}\n')
    out = check(capsys, "--format", "github", str(path))[1].splitlines()[0]
    assert "a%2Cb%25.yaml,line=3" in out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys)
    assert code == 2 and out == "" and "FILE" in err
    code, out, err = check(capsys, "--format", "xml", "good.yaml")
    assert code == 2 and "xml" in err


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys, "none.yaml")
    assert code == 2 and err == "" and out.startswith("none.yaml: error[E100]: cannot read")


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour_on_a_terminal(variables: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), **variables}
        command = [sys.executable, "-m", "flowkit", "check", "y3.yaml"]
        done = subprocess.run(command, stdout=theirs, env=environment, timeout=60)
        text = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert ("\x1b[31m" in text) is coloured


def test_colour_when_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in check(capsys, "y3.yaml")[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31m" in check(capsys, "y3.yaml")[1]
