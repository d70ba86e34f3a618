"""`flowkit init` gives a project that is in order, runs, and passes its own test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from flowkit import cli
from flowkit.cli.init import SCHEMA, TEMPLATES
from flowkit.topology.loader import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    directory = tmp_path / "demo"
    assert cli.main(["init", str(directory)]) == 0
    capsys.readouterr()
    return directory


def in_project(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TEXT": "nodes.py"}
    for name in ("RUN", "STATE"):
        environment[f"FLOWKIT_{name}_DIR"] = str(directory.parent / name.lower())
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_it_says_what_it_wrote_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "my demo"
    assert cli.main(["init", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [f"created {directory / name}" for name in (*TEMPLATES, SCHEMA)]
    assert lines[5:] == [
        "next:",
        f"  cd '{directory}'",
        "  flowkit check topology.yaml  # find mistakes before anything starts",
        "  flowkit up topology.yaml     # run it",
        "  python -m pytest             # test the nodes, without flowkit running",
    ]
    assert sorted(os.listdir(directory)) == sorted((*TEMPLATES, SCHEMA))


def test_the_current_directory_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 0
    out = capsys.readouterr().out
    assert "created topology.yaml" in out and "  cd " not in out


@pytest.mark.parametrize(
    ("directory", "project"),
    [("demo", "demo"), ("2. my demo!", "my-demo"), ("日本", "words"), ("a" * 90, "a" * 64)],
)
def test_the_project_is_named_after_the_directory(
    directory: str, project: str, tmp_path: Path
) -> None:
    assert cli.main(["init", str(tmp_path / directory)]) == 0
    topology, problems = load(str(tmp_path / directory / "topology.yaml"), {})
    assert problems == [] and topology is not None
    assert topology.project == project


@pytest.mark.parametrize("name", [*TEMPLATES, SCHEMA])
def test_nothing_is_overwritten(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    assert cli.main(["init", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"error: {tmp_path / name} already exists; nothing was written",
        "hint: name another directory: flowkit init DIR",
    ]
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_place_that_cannot_be_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["init", str(tmp_path / "file" / "demo")]) == 2
    assert "error: cannot create a project in" in capsys.readouterr().err


def test_the_editor_finds_a_schema_that_accepts_the_file(demo: Path) -> None:
    text = (demo / "topology.yaml").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA}"
    schema = json.loads((demo / SCHEMA).read_text(encoding="utf-8"))
    content = yaml.safe_load(text)
    jsonschema.validate(content, schema)
    content["nodes"]["split"]["replcas"] = 3
    with pytest.raises(jsonschema.ValidationError, match="replcas"):
        jsonschema.validate(content, schema)


def test_it_has_no_problems(demo: Path) -> None:
    done = in_project(demo, "flowkit", "check", "topology.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_mistake_is_found(demo: Path) -> None:
    file = demo / "topology.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("top: 5", "topp: 5"), "utf-8")
    done = in_project(demo, "flowkit", "check", "topology.yaml")
    assert done.returncode == 2
    assert "topology.yaml:19:" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_it_passes_its_own_test(demo: Path) -> None:
    # A directory for temporary files of its own: pytest tidies up the shared one when it ends.
    options = ["-W", "error", "-p", "no:cacheprovider", "--basetemp", str(demo.parent / "pytest")]
    done = in_project(demo, "pytest", "-q", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


@pytest.mark.e2e
def test_it_runs(demo: Path) -> None:
    (demo / "text").write_text("to be or not to be\n" * 1000)
    environment = {**os.environ, "TEXT": "text", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    for name in ("RUN", "STATE"):
        environment[f"FLOWKIT_{name}_DIR"] = str(demo.parent / name.lower())
    done = subprocess.run(
        [sys.executable, "-m", "flowkit", "up", "topology.yaml", "--report", "report.json"],
        cwd=demo,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("2000 to", "2000 be", "1000 or", "1000 not"):
        assert line in done.stdout + done.stderr
    report = json.loads((demo / "report.json").read_text())
    assert {link["from"]: link["done"] for link in report["links"]} == {
        "read.lines": 1000,
        "split.words": 6000,
    }
