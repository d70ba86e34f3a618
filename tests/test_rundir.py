"""The run directory: one run at a time, private, clean after a kill."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowkit.errors import AlreadyRunning, RunDirectoryError
from flowkit.rundir import RunDirectory, make_private

ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from flowkit.rundir import RunDirectory
run = RunDirectory("demo", sys.argv[1], sys.argv[2])
run.acquire()
(run.path / "l0.sock").touch()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextmanager
def holder(topology: Path, root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run directory of "demo"."""
    command = [sys.executable, "-c", HOLD, str(topology), str(root)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_run_from_begin_to_end(tmp_path: Path, root: Path) -> None:
    run = RunDirectory("demo", tmp_path / "demo.yaml", root)
    assert not root.exists()
    assert run.acquire() == []
    assert run.path.parent == root and run.path.name.startswith("demo-")
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(run.lock_path.stat().st_mode) == 0o600
    assert run.lock_path.read_text() == f"{os.getpid()}\n"
    (run.path / "l0.0").touch()
    run.release()
    assert list(root.iterdir()) == []
    run.release()
    with run:
        assert run.lock_path.exists()
    assert list(root.iterdir()) == []


def test_a_second_run_is_refused_and_names_the_first(tmp_path: Path, root: Path) -> None:
    topology = tmp_path / "demo.yaml"
    with holder(topology, root) as process:
        second = RunDirectory("demo", topology, root)
        with pytest.raises(AlreadyRunning) as caught:
            second.acquire()
        assert caught.value.pid == process.pid
        assert str(process.pid) in str(caught.value)
        second.release()  # has nothing to release, and must not disturb the first
        assert (second.path / "l0.sock").exists()


def test_a_second_run_in_the_same_process_is_refused(tmp_path: Path, root: Path) -> None:
    topology = tmp_path / "demo.yaml"
    with RunDirectory("demo", topology, root) as first:
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            RunDirectory("demo", topology, root).acquire()
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            first.acquire()
        assert first.lock_path.read_text() == f"{os.getpid()}\n"


def test_a_second_run_elsewhere_has_the_same_state(tmp_path: Path) -> None:
    """Positions, dead letters and journals are one run's at a time, wherever its sockets are."""
    environ = {"FLOWKIT_STATE_DIR": str(tmp_path / "state")}
    first, second = (
        RunDirectory("demo", tmp_path / "demo.yaml", tmp_path / name, environ=environ)
        for name in ("a", "b")
    )
    other = RunDirectory("demo", tmp_path / "other.yaml", tmp_path / "b", environ=environ)
    for run in (first, second, other):
        run.acquire()
    first.acquire_state()
    other.acquire_state()
    assert stat.S_IMODE(first.state.stat().st_mode) == 0o700
    with pytest.raises(AlreadyRunning) as caught:
        second.acquire_state()
    assert caught.value.pid == os.getpid()
    assert str(first.state) in str(caught.value)
    first.release()
    second.acquire_state()
    with pytest.raises(AlreadyRunning):
        first.acquire_state()
    for run in (first, second, other):
        run.release()


def test_a_state_directory_that_cannot_be_locked(tmp_path: Path) -> None:
    environ = {"FLOWKIT_STATE_DIR": str(tmp_path / "state")}
    run = RunDirectory("demo", tmp_path / "demo.yaml", tmp_path / "run", environ=environ)
    make_private(run.state)
    (run.state / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="cannot be used"):
        run.acquire_state()
    assert not (tmp_path / "elsewhere").exists()


def test_a_killed_run_is_cleaned_up_by_the_next(tmp_path: Path, root: Path) -> None:
    topology = tmp_path / "demo.yaml"
    with holder(topology, root) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run = RunDirectory("demo", topology, root)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(run.path / "l1.sock"))
    (run.path / "more").mkdir()
    (run.path / "more" / "of it").touch()
    (run.path / "link").symlink_to(tmp_path)
    assert run.acquire() == ["l0.sock", "l1.sock", "link", "more"]
    assert os.listdir(run.path) == ["lock"]
    assert tmp_path.exists()
    run.release()


def test_of_many_at_once_one_gets_it(tmp_path: Path, root: Path) -> None:
    topology = tmp_path / "demo.yaml"
    runs = [RunDirectory("demo", topology, root) for _ in range(8)]

    def attempt(run: RunDirectory) -> bool:
        try:
            run.acquire()
        except AlreadyRunning:
            return False
        return True

    for _ in range(20):
        with ThreadPoolExecutor(len(runs)) as pool:
            assert sum(pool.map(attempt, runs)) == 1
        for run in runs:
            run.release()


def test_a_lock_file_that_is_removed_while_it_is_being_locked_is_not_taken_for_the_lock(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (RunDirectory("demo", tmp_path / "demo.yaml", root) for _ in range(2))
    first.acquire()

    def flock(fd: int, operation: int) -> None:
        monkeypatch.undo()
        first.release()  # the second has opened the file already
        fcntl.flock(fd, operation)

    monkeypatch.setattr("flowkit.rundir.fcntl.flock", flock)
    second.acquire()
    with pytest.raises(AlreadyRunning):
        first.acquire()
    second.release()


def test_projects_and_checkouts_have_their_own(tmp_path: Path, root: Path) -> None:
    one, other = tmp_path / "one" / "demo.yaml", tmp_path / "other" / "demo.yaml"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    first = RunDirectory("demo", one, root)
    different = [RunDirectory("demo", other, root), RunDirectory("demo2", one, root)]
    same = RunDirectory("demo", link / "demo.yaml", root)
    with first, different[0], different[1]:
        assert len({first.path, *(run.path for run in different)}) == 3
        assert same.path == first.path
        (first.path / "socket").touch()
        different[0].release()
        assert different[0].acquire() == []
        assert (first.path / "socket").exists()


def test_a_relative_path_means_the_same_topology(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunDirectory("a", "x.yaml").path.name == RunDirectory("a", tmp_path / "x.yaml").path.name


@pytest.mark.parametrize(
    ("environ", "parent"),
    [
        ({"FLOWKIT_RUN_DIR": "/elsewhere", "XDG_RUNTIME_DIR": "/tmp"}, "/elsewhere"),
        ({"XDG_RUNTIME_DIR": "/tmp"}, "/tmp/flowkit"),
        ({"XDG_RUNTIME_DIR": "/nowhere/at/all"}, f"/tmp/flowkit-{os.geteuid()}"),
        ({"XDG_RUNTIME_DIR": "tmp"}, f"/tmp/flowkit-{os.geteuid()}"),
        ({"FLOWKIT_RUN_DIR": "", "XDG_RUNTIME_DIR": ""}, f"/tmp/flowkit-{os.geteuid()}"),
        ({}, f"/tmp/flowkit-{os.geteuid()}"),
    ],
)
def test_where_runs_are(environ: dict[str, str], parent: str) -> None:
    assert str(RunDirectory("demo", "demo.yaml", environ=environ).path.parent) == parent


@pytest.mark.parametrize(
    ("environ", "parent"),
    [
        ({"FLOWKIT_STATE_DIR": "/elsewhere", "XDG_STATE_HOME": "/tmp"}, "/elsewhere"),
        ({"XDG_STATE_HOME": "/var/state"}, "/var/state/flowkit"),
        ({"XDG_STATE_HOME": "relative"}, os.path.expanduser("~/.local/state/flowkit")),
        ({}, os.path.expanduser("~/.local/state/flowkit")),
    ],
)
def test_where_state_is(environ: dict[str, str], parent: str) -> None:
    run = RunDirectory("demo", "demo.yaml", environ=environ)
    assert str(run.state.parent) == parent
    assert run.state.name == run.path.name


@pytest.mark.parametrize("name", ["", "a/b", "a\0b"])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a project"):
        RunDirectory(name, "demo.yaml")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit differs")
def test_the_limit_of_a_socket_path() -> None:
    run = RunDirectory("demo", "demo.yaml", "/tmp/" + "é" * 10)
    room = 107 - len(os.fsencode(run.path)) - 1
    run.check(room)
    with pytest.raises(RunDirectoryError) as caught:
        run.check(room + 1)
    assert str(run.path) in str(caught.value) and "108 bytes" in str(caught.value)
    assert "FLOWKIT_RUN_DIR" in caught.value.hint


def test_the_longest_allowed_path_can_be_bound(root: Path, tmp_path: Path) -> None:
    run = RunDirectory("demo", "demo.yaml", f"/tmp/flowkit-test-{os.getpid()}")
    try:
        with run, socket.socket(socket.AF_UNIX) as bound:
            room = 107 if sys.platform == "linux" else 103
            name = "s" * (room - len(os.fsencode(run.path)) - 1)
            run.check(len(name))
            bound.bind(str(run.path / name))
    finally:
        run.path.parent.rmdir()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o750, 0o705])
def test_a_run_directory_that_is_open_to_others_is_refused(
    tmp_path: Path, root: Path, mode: int
) -> None:
    run = RunDirectory("demo", tmp_path / "demo.yaml", root)
    run.path.mkdir(parents=True)
    run.path.chmod(mode)
    with pytest.raises(RunDirectoryError, match=f"open to others .mode {mode:04o}") as caught:
        run.acquire()
    assert "chmod 700" in caught.value.hint
    assert os.listdir(run.path) == []


def test_a_root_that_others_can_write_to_is_refused_unless_it_is_sticky(
    tmp_path: Path, root: Path
) -> None:
    root.mkdir()
    run = RunDirectory("demo", tmp_path / "demo.yaml", root)
    for mode in (0o777, 0o775):
        root.chmod(mode)
        with pytest.raises(RunDirectoryError, match="open to others"):
            run.acquire()
    for mode in (0o1777, 0o755):
        root.chmod(mode)
        with run:
            pass


def test_a_link_in_place_of_the_run_directory_is_refused(tmp_path: Path, root: Path) -> None:
    run = RunDirectory("demo", tmp_path / "demo.yaml", root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "precious").touch()
    root.mkdir()
    run.path.symlink_to(elsewhere)
    with pytest.raises(RunDirectoryError, match="symbolic link"):
        run.acquire()
    assert (elsewhere / "precious").exists()


def test_a_root_may_be_the_users_own_link(tmp_path: Path, root: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    with RunDirectory("demo", tmp_path / "demo.yaml", root) as run:
        assert run.lock_path.exists()


def test_a_link_in_place_of_the_lock_file_is_refused(tmp_path: Path, root: Path) -> None:
    run = RunDirectory("demo", tmp_path / "demo.yaml", root)
    make_private(root)
    make_private(run.path)
    (tmp_path / "precious").write_text("precious")
    run.lock_path.symlink_to(tmp_path / "precious")
    with pytest.raises(RunDirectoryError, match="cannot be used"):
        run.acquire()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_in_place_of_the_directory(tmp_path: Path, root: Path) -> None:
    run = RunDirectory("demo", tmp_path / "demo.yaml", root)
    root.mkdir()
    run.path.touch()
    with pytest.raises(RunDirectoryError, match="is not a directory"):
        run.acquire()
    below = RunDirectory("demo", tmp_path / "demo.yaml", run.path / "below")
    with pytest.raises(RunDirectoryError, match="cannot be used: "):
        below.acquire()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, root: Path) -> None:
    run = RunDirectory("demo", tmp_path / "demo.yaml", root)
    run.path.mkdir(parents=True, mode=0o700)
    os.chown(run.path, 12345, -1)
    with pytest.raises(RunDirectoryError, match="belongs to user 12345, not to user 0"):
        run.acquire()
    os.chown(run.path, 0, -1)
    os.chown(root, 12345, -1)
    with pytest.raises(RunDirectoryError, match="belongs to user 12345"):
        run.acquire()
