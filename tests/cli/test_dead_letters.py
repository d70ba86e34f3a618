"""`flowkit dead-letters` on a project that does not run: list, show, drop, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowkit import cli
from flowkit.rundir import RunDirectory
from flowkit.store import DeadLetter, Store

TOPOLOGY = """
flowkit: 1
project: {project}
nodes:
  read: {{use: "tests.e2e.nodes:Numbers"}}
  talk: {{use: "tests.e2e.nodes:Talker"}}
links:
  - {{from: read.numbers, to: talk.numbers}}
"""
LINK = "read.numbers -> talk.numbers"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_RUN_DIR", str(tmp_path / "r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.chdir(tmp_path)


def letter(number: int, **changes: Any) -> DeadLetter:
    facts: dict[str, Any] = {
        "message": f"{number:032x}-{number}",
        "link": LINK,
        "node": "talk",
        "replica": 0,
        "raw": msgspec.msgpack.encode(number),
        "key": None,
        "headers": {},
        "error": f"ValueError: no {number}",
        "traceback": "Traceback ...\n  in on_numbers\n",
        "attempts": 2,
    }
    return DeadLetter(**{**facts, **changes})


def project(
    tmp_path: Path, letters: list[DeadLetter], name: str = "trial", folder: str = "."
) -> Path:
    """A topology that has run here and left `letters`."""
    path = tmp_path / folder / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(TOPOLOGY.format(project=name))
    state = RunDirectory(name, path).state
    state.mkdir(parents=True, mode=0o700)
    store = Store(str(state / "flowkit.db"))
    store.add_dead_letters(letters)
    store.set_fact("topology", str(path))
    store.close()
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["dead-letters", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback (most" not in out + err
    return code, out, err


def numbers(capsys: pytest.CaptureFixture[str], name: str = "trial") -> list[int]:
    code, out, _ = run(capsys, "ls", name, "--format", "json")
    assert code == 0
    return [json.loads(line)["number"] for line in out.splitlines()]


def test_ls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project(tmp_path, [letter(5), letter(6, error="ValueError: two\nlines")])
    for name in ("trial", str(path), "trial.yaml"):
        code, out, err = run(capsys, "ls", name)
        assert (code, err) == (0, "")
        head, first, second = out.splitlines()
        assert head.split() == ["NUMBER", "WHEN", "LINK", "REPLICA", "TRIES", "SIZE", "ERROR"]
        assert first.split()[0] == "1" and first.endswith("ValueError: no 5")
        assert LINK in first and "talk.0" in first
        assert second.endswith("ValueError: two")


def test_ls_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [])
    assert run(capsys, "ls", "trial") == (0, "no dead letters\n", "")
    assert run(capsys, "ls", "trial", "--format", "json") == (0, "", "")
    assert run(capsys, "show", "trial")[:2] == (0, "")
    assert run(capsys, "drop", "trial", "--all")[:2] == (0, "dropped 0 dead letters\n")
    assert run(capsys, "replay", "trial", "--all")[:2] == (0, "no dead letters\n")


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object in a line, whatever is in the letter."""
    strange = [
        letter(1, key=("a", 1), headers={"name": "wert ü"}, raw=b"\xff\x00"),
        letter(2, key=b"\xff"),
        letter(3, key=1.5, error="bad \ud800 text"),
    ]
    project(tmp_path, strange)
    code, out, _ = run(capsys, "ls", "trial", "--format", "json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [each["number"] for each in found] == [1, 2, 3]
    assert found[0]["headers"] == {"name": "wert ü"} and found[0]["raw"] == "ff00"
    assert (found[0]["link"], found[0]["node"], found[0]["replica"]) == (LINK, "talk", 0)
    assert found[0]["size"] == 2 and found[0]["attempts"] == 2 and found[0]["time"] > 1e9
    code, out, _ = run(capsys, "show", "trial", "2", "--format", "json")
    (shown,) = map(json.loads, out.splitlines())
    assert shown["number"] == 2 and "on_numbers" in shown["traceback"]


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [letter(1), letter(2, key="k", headers={"a": "b"}, raw=b"\xc1" * 2000)])
    code, out, _ = run(capsys, "show", "trial", "2")
    assert code == 0
    for text in ("dead letter 2: ValueError: no 2", LINK, "talk.0", "key       'k'", "a: b"):
        assert text in out
    assert "after 2 tries" in out and "| Traceback ..." in out and len(out) < 1500
    assert "dead letter 1" not in out
    assert run(capsys, "show", "trial")[1].count("dead letter ") == 2


def test_content_that_is_no_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raws = [b"", b"\x91" * 5000, b"\xa2\xff\xfe", b"\x1b[31mred", "späte".encode()]
    project(tmp_path, [letter(number, raw=raw) for number, raw in enumerate(raws)])
    code, out, _ = run(capsys, "show", "trial")
    assert code == 0 and out.count("content") == len(raws)
    assert "\x1b" not in out, "it could do anything to a terminal"


def test_drop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [letter(number) for number in range(5)])
    assert run(capsys, "drop", "trial", "2", "4")[:2] == (0, "dropped 2 dead letters\n")
    assert numbers(capsys) == [1, 3, 5]
    assert run(capsys, "drop", "trial", "1", "1")[:2] == (0, "dropped 1 dead letter\n")
    assert run(capsys, "drop", "trial", "--all")[:2] == (0, "dropped 2 dead letters\n")
    assert numbers(capsys) == []


@pytest.mark.slow
def test_a_great_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More than a statement of SQLite has room for."""
    count = 300_000
    project(tmp_path, [letter(number, traceback="") for number in range(count)])
    assert run(capsys, "drop", "trial", "--all")[:2] == (0, f"dropped {count} dead letters\n")
    assert numbers(capsys) == []


@pytest.mark.parametrize("verb", ["show", "drop", "replay"])
def test_numbers_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """Nothing is done at all if one of them is wrong."""
    project(tmp_path, [letter(1)])
    code, out, err = run(capsys, verb, "trial", "1", "7", "9")
    assert (code, out) == (2, "")
    assert "there is no dead letter 7, 9" in err and "dead-letters ls" in err
    assert numbers(capsys) == [1]
    assert run(capsys, verb, "trial", "99999999999999999999999")[0] == 2
    for wrong in ("one", "-1", "1.5"):
        assert run(capsys, verb, "trial", wrong)[0] == 2


@pytest.mark.parametrize("verb", ["drop", "replay"])
def test_it_must_be_said_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    project(tmp_path, [letter(1)])
    for arguments in ([], ["1", "--all"]):
        code, _, err = run(capsys, verb, "trial", *arguments)
        assert code == 2 and "say which" in err
    assert numbers(capsys) == [1]


def test_projects_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [letter(1)])
    for name in ("nobody", "", "t*", "tria?", "no/body.yaml", "..", "a\nb"):
        code, out, err = run(capsys, "ls", name)
        assert (code, out) == (2, ""), name
        assert "there is no project" in err
    (tmp_path / "new.yaml").write_text(TOPOLOGY.format(project="new"))
    code, _, err = run(capsys, "ls", "new.yaml")
    assert code == 2 and "has never run here" in err
    (tmp_path / "bad.yaml").write_text("flowkit: 1\nproject: [")
    code, _, err = run(capsys, "ls", "bad.yaml")
    assert code == 2 and "bad.yaml:2" in err


def test_two_projects_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = project(tmp_path, [letter(1)], folder="one")
    project(tmp_path, [letter(1), letter(2)], folder="two")
    code, _, err = run(capsys, "ls", "trial")
    assert code == 2 and "there are 2 projects 'trial'" in err and "topology file" in err
    assert len(numbers(capsys, str(first))) == 1


def test_a_name_that_begins_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [letter(1)], "trial")
    project(tmp_path, [letter(1), letter(2)], "trial-deadbeef")
    assert len(numbers(capsys)) == 1
    assert len(numbers(capsys, "trial-deadbeef")) == 2


def test_a_topology_that_has_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [letter(1)]).unlink()
    assert numbers(capsys) == [1]
    code, _, err = run(capsys, "replay", "trial", "1")
    assert code == 2 and "its topology is not where it was" in err


def test_a_store_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project(tmp_path, [letter(1)])
    (RunDirectory("trial", path).state / "flowkit.db").write_bytes(b"no database" * 1000)
    code, _, err = run(capsys, "ls", "trial")
    assert code == 2 and "flowkit.db" in err
