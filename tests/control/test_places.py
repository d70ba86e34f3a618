"""Which project is meant, which runs, and that nobody else is harmed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from flowkit.cli import main
from flowkit.control.places import (
    choose,
    kill_holder,
    leave_contact,
    look_at,
    places,
    read_contact,
)
from flowkit.control.records import RunRecord
from flowkit.errors import NoSuchProject, NotRunning, OperatorError
from flowkit.rundir import RunDirectory

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from flowkit.rundir import RunDirectory
run = RunDirectory(sys.argv[1], sys.argv[2])
run.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_RUN_DIR", str(tmp_path / "r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.chdir(tmp_path)


def has_run(project: str, file: str, state: str = "drained", pid: int = 1) -> RunDirectory:
    """A project that has left its record."""
    path = os.path.abspath(file)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).touch()
    directory = RunDirectory(project, path)
    directory.state.mkdir(parents=True, exist_ok=True)
    record = RunRecord(project, path, os.path.dirname(path), pid, "r", 1.0, state, nodes=["a"])
    (directory.state / "run.json").write_bytes(msgspec.json.encode(record))
    return directory


@contextmanager
def running(project: str, file: str, state: str = "running") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a project."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, project, os.path.abspath(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        has_run(project, file, state, holder.pid)
        try:
            yield holder
        finally:
            if holder.poll() is None:
                holder.kill()


def test_nothing_at_all() -> None:
    assert places() == []
    with pytest.raises(NotRunning, match="no project of this directory") as none:
        choose(None)
    assert "-p PROJECT" in none.value.hint and none.value.exit_code == 6
    with pytest.raises(NotRunning, match="not running: 'clicks'"):
        choose("clicks")
    with pytest.raises(NoSuchProject, match="there is no file ./x.yaml"):
        choose("./x.yaml")
    with pytest.raises(NoSuchProject, match="'clicks' has never run"):
        choose("clicks", running=False)
    for odd in ("", "*", "a[b", "x?"):
        with pytest.raises(NotRunning):
            choose(odd)


def test_by_name_by_file_and_by_directory() -> None:
    with running("clicks", "clicks.yaml") as holder, running("words", "other/words.yaml"):
        for named in ("clicks", "clicks.yaml", "./clicks.yaml", os.path.abspath("clicks.yaml")):
            assert choose(named).pid == holder.pid
        assert choose(None).project == "clicks", "the other is of another directory"
        assert choose(None, directory="other").project == "words"
        assert choose("words").state == "running"
        with pytest.raises(NotRunning, match="did you mean 'clicks'"):
            choose("click")
        assert [place.project for place in places()] == ["clicks", "words"]
    with pytest.raises(NotRunning, match="not running: 'clicks'"):
        choose("clicks")
    assert choose("clicks", running=False).state == "died"
    assert choose(None, running=False).project == "clicks"


def test_one_that_could_be_several() -> None:
    with running("clicks", "one/clicks.yaml"), running("clicks", "two/clicks.yaml"):
        with pytest.raises(OperatorError, match="2 projects 'clicks'") as several:
            choose("clicks")
        assert "one/clicks.yaml" in str(several.value) and "-p" in several.value.hint
        assert choose("two/clicks.yaml").file.endswith("two/clicks.yaml")
    has_run("a", "a.yaml")
    has_run("b", "b.yaml")
    with pytest.raises(OperatorError, match="2 projects have run in this directory: a, b"):
        choose(None, running=False)
    with running("b", "b.yaml") as holder:
        assert choose(None, running=False).pid == holder.pid, "the one that runs is meant"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"project": 1}', "\x00"])
def test_a_record_that_is_damaged(text: str) -> None:
    directory = has_run("clicks", "clicks.yaml")
    (directory.state / "run.json").write_text(text)
    place = look_at(directory)
    assert (place.record, place.pid, place.state) == (None, None, "unknown")
    assert choose("clicks", running=False).project == "clicks"


def test_a_contact_that_is_damaged(tmp_path: Path) -> None:
    assert read_contact(tmp_path) is None
    leave_contact(tmp_path, "ipc://x", "token")
    contact = read_contact(tmp_path)
    assert contact is not None and (contact.address, contact.token) == ("ipc://x", "token")
    path = tmp_path / "contact.json"
    assert path.stat().st_mode & 0o777 == 0o600
    for text in ("", "{", "[]", json.dumps({"address": 1, "token": ""})):
        path.write_text(text)
        assert read_contact(tmp_path) is None


# ---------------------------------------------------------------------------- strangers


@contextmanager
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with anything."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        yield process
        assert process.poll() is None, "it was killed"
        process.kill()


def test_a_pid_that_is_stale() -> None:
    """A supervisor was killed; its number belongs to somebody else now."""
    with stranger() as other:
        directory = has_run("clicks", "clicks.yaml", "running", other.pid)
        directory.path.mkdir(parents=True, mode=0o700)
        directory.lock_path.write_text(f"{other.pid}\n")
        leave_contact(directory.path, "ipc://nowhere", "token")
        place = look_at(directory)
        assert (place.pid, place.state) == (None, "died")
        with pytest.raises(NotRunning):
            choose("clicks")
        assert kill_holder(place) is False


def test_a_pid_that_is_not_the_holders() -> None:
    """Somebody holds the lock, but the file names another process: nobody is killed."""
    with stranger() as other:
        directory = has_run("clicks", "clicks.yaml", "running", other.pid)
        directory.path.mkdir(parents=True, mode=0o700)
        directory.lock_path.write_text(f"{other.pid}\n")
        with open(directory.lock_path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            place = look_at(directory)
            assert place.pid == other.pid, "that is what it says"
            with pytest.raises(OperatorError, match="does not hold that file"):
                kill_holder(place)


def test_the_holder_is_killed() -> None:
    with running("clicks", "clicks.yaml") as holder:
        place = choose("clicks")
        assert kill_holder(place) is True
        assert holder.wait(10) == -9
        assert kill_holder(place) is False


def test_what_has_never_run_is_listed_if_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    has_run("clicks", "clicks.yaml")
    has_run("refused", "refused.yaml").state.joinpath("run.json").unlink()
    assert main(["ls"]) == 0
    listed = capsys.readouterr().out
    assert "clicks" in listed and "refused" not in listed
    assert main(["ls", "--all"]) == 0
    assert "refused" in capsys.readouterr().out
