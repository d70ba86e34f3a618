"""`flowkit doctor` finds what is wrong with a machine, and says so in a table or in JSON."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import zmq

from flowkit import cli
from flowkit.cli import doctor
from flowkit.rundir import RunDirectory

TOPOLOGY = """\
flowkit: 1
project: trial
nodes:
  read:
    use: nodes:Read
  show:
    use: nodes:Show
    replicas: 3
links:
  - {from: read.lines, to: show.lines}
"""


@pytest.fixture(autouse=True)
def private_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of other checks: starting a process takes a quarter of a second."""

    async def started() -> tuple[float, float]:
        return 0.1, 0.05

    monkeypatch.setattr(doctor, "_start_one", started)


def finding(check: str, file: Path | None = None) -> doctor.Finding:
    return next(found for found in doctor.examine(file) if found.check == check)


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    *table, empty, verdict = out.splitlines()
    assert empty == ""
    assert verdict.startswith("fit to run topologies")
    rows = [line for line in table if not line.startswith(" ")]
    starts = {line.index(status) for line in rows for status in ("ok  ", "warn") if status in line}
    assert len(starts) == 1, "the columns line up"
    processes = next(line for line in rows if line.startswith("processes "))
    assert "helper started in" in processes and "a replica in" in processes


def test_json_lines(no_processes: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--format", "json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["check"] for one in found] == [
        "python",
        "flowkit",
        "pyzmq",
        "libzmq",
        "tornado",
        "ipc",
        "curve",
        "descriptors",
        "processors",
        "run directory",
        "state directory",
        "processes",
    ]
    assert all(set(one) == {"check", "status", "found", "hint"} for one in found)


def test_a_machine_without_sockets_of_its_own(
    no_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq, "has", lambda capability: False)
    for check in ("ipc", "curve"):
        found = finding(check)
        assert found.status == "warn" and found.hint


def test_warnings_do_not_fail(
    no_processes: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zmq, "has", lambda capability: capability != "ipc")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "warn  missing: links use tcp on 127.0.0.1" in out
    assert "1 warning" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("limits", "status", "text"),
    [
        ((1024, 524288), "ok", "1024, raised to 524288 at the start"),
        ((1024, resource.RLIM_INFINITY), "ok", "1024, raised to the maximum at the start"),
        ((8192, 8192), "ok", "8192"),
        ((256, 1024), "warn", "256, raised to 1024 at the start"),
    ],
)
def test_descriptors(
    limits: tuple[int, int],
    status: str,
    text: str,
    no_processes: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    found = finding("descriptors")
    assert (found.status, found.found) == (status, text)
    assert bool(found.hint) == (status != "ok")


def test_a_run_directory_that_is_open_to_others(
    tmp_path: Path, no_processes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("run directory"))
    assert "  fail  " in row and str(tmp_path / "run") in row
    assert out.splitlines()[-1] == "1 of 12 checks failed"


def test_a_run_directory_with_a_long_path(
    tmp_path: Path, no_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWKIT_RUN_DIR", str(tmp_path / ("long" * 25)))
    found = finding("run directory")
    assert found.status == "fail" and "FLOWKIT_RUN_DIR" in found.hint


def test_a_run_directory_in_use(tmp_path: Path, no_processes: None) -> None:
    with RunDirectory("doctor", tmp_path / "topology.yaml"):
        found = finding("run directory")
    assert found.status == "ok" and f"in use by process {os.getpid()}" in found.found


def test_the_run_directory_is_left_as_it_was(tmp_path: Path, no_processes: None) -> None:
    assert finding("run directory").status == "ok"
    assert list((tmp_path / "run").iterdir()) == []


def test_little_room_on_the_disk(no_processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1 << 20))
    found = finding("state directory")
    assert found.status == "warn" and "1.0 MiB free" in found.found


def test_a_state_directory_that_is_a_file(
    tmp_path: Path, no_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWKIT_STATE_DIR", str(tmp_path / "file"))
    found = finding("state directory")
    assert found.status == "fail" and "FLOWKIT_STATE_DIR" in found.hint


def test_processes_that_do_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LAUNCH_TIMEOUT", 0.0)
    assert cli.main(["doctor"]) == 1
    assert "no process started and ended within 0 s" in capsys.readouterr().out


def test_a_replica_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REPLICA", "flowkit.cli.doctor:missing")
    found = doctor._guarded("processes", doctor._processes)
    assert found.status == "fail"


def test_slow_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly() -> tuple[float, float]:
        return 3.0, 1.0

    monkeypatch.setattr(doctor, "_start_one", slowly)
    found = finding("processes")
    assert (found.status, found.found) == ("warn", "helper started in 3.0s, a replica in 1.0s")


def test_no_loop_is_left_behind() -> None:
    assert asyncio.run(doctor._start_one()) > (0.0, 0.0)


def test_a_file_is_examined_for_what_it_needs(tmp_path: Path, no_processes: None) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text(TOPOLOGY)
    assert "4 replicas" in finding("processors", file).found
    assert "/trial-" in finding("run directory", file).found


def test_a_file_with_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "topology.yaml").write_text(TOPOLOGY.replace("replicas", "replcas"))
    assert cli.main(["doctor", "topology.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "topology.yaml:8:5: error[E" in err and err.endswith("1 error in 1 file\n")


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "missing.yaml"]) == 2
    assert "missing.yaml" in capsys.readouterr().err
