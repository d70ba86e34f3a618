"""`flowkit up` in the hands of a user: Ctrl-C, exit codes, pipes, terminals, languages."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowkit import cli
from tests.conftest import Deadline
from tests.e2e.harness import Place, Run, complaint, environment, link, node

pytestmark = pytest.mark.e2e


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def endless(place: Place) -> Path:
    """Runs until it is stopped; its last node lets nothing through without the file `gate`."""
    return place.topology(
        {
            "read": node("Numbers", settings={"until": place.file("stop")}),
            "gate": node("Gate", replicas=2, settings={"gate": place.file("gate")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> gate.numbers"), link("gate.results -> tally.numbers")],
    )


def short(place: Place, count: int = 10, known: bool = False) -> Path:
    return place.topology(
        {
            "read": node("Numbers", settings={"count": count, "known": known}),
            "talk": node("Talker"),
        },
        [link("read.numbers -> talk.numbers")],
    )


# ---------------------------------------------------------------------------- signals


@pytest.mark.parametrize("how", ["interrupt", "terminate"])
def test_the_first_signal_drains(place: Place, how: str) -> None:
    place.touch("gate")
    run = place.up(endless(place))
    run.until(lambda: run.handled("tally.0") > 500)
    getattr(run, how)()
    result = run.wait()
    result.check_drained()
    assert "draining: " in result.out and "(Ctrl-C again to kill)" in result.out
    place.check_exact(result.link("read.numbers -> gate.numbers")["sent"])


def in_flight(place: Place, *options: str) -> Run:
    """A project that cannot drain."""
    run = place.up(endless(place), *options)
    run.until(lambda: run.sent("read.0") > 10)
    return run


def test_the_second_signal_kills(place: Place) -> None:
    run = in_flight(place)
    run.interrupt()
    run.says("draining: ")
    run.interrupt()
    result = run.wait()
    assert result.code == 130, result.text
    assert (result.report["status"], result.report["exit"]) == ("killed", 130)
    assert result.total("in_flight") > 0
    assert "in flight given up" in result.out
    assert "Traceback" not in result.out + result.err


def test_a_drain_that_takes_too_long(place: Place) -> None:
    run = in_flight(place, "--drain-timeout", "300ms")
    run.terminate()
    result = run.wait()
    assert result.code == 5, result.text
    assert (result.report["status"], result.report["exit"]) == ("timed out", 5)
    assert result.report["reason"] == "not drained in 0.3 s"
    assert result.total("in_flight") > 0
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize("how", ["interrupt", "terminate"])
def test_a_signal_while_starting(place: Place, how: str) -> None:
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 10}),
            "slow": node("SlowStart", settings={"gate": place.file("gate")}),
        },
        [link("read.numbers -> slow.numbers")],
    )
    run = place.up(topology)
    run.says("sets up")
    getattr(run, how)()
    result = run.wait()
    assert result.code == 0, result.text
    assert "ready in" not in result.out
    assert result.total("sent") == 0
    assert "Traceback" not in result.out + result.err


def test_a_signal_before_anything_has_started(place: Place) -> None:
    """While the file is checked, or even earlier: it ends soon and leaves nothing behind."""
    run = place.up(endless(place))
    run.until(lambda: run.process.pid)
    run.terminate()
    run.process.wait(30)
    assert "Traceback" not in run.err


# ---------------------------------------------------------------------------- the report


def test_the_report(place: Place) -> None:
    result = place.up(short(place)).wait()
    result.check_drained()
    report = result.report
    assert list(report) == [
        "project",
        "status",
        "reason",
        "interrupted",
        "seconds",
        "exit",
        "links",
        "nodes",
        "verdict",
    ]
    assert (report["project"], report["status"], report["exit"]) == ("trial", "drained", 0)
    assert 0 < report["seconds"] < 60
    (entry,) = report["links"]
    assert (entry["from"], entry["to"]) == ("read.numbers", "talk.numbers")
    assert (entry["sent"], entry["delivered"], entry["done"]) == (10, 10, 10)
    assert result.replica("talk.0")["handled"] == 10
    assert "read.numbers -> talk.numbers    10    10            0" in result.out


def test_a_report_that_cannot_be_written(place: Place) -> None:
    topology = short(place)
    run = place.up(topology, "--report", place.file("missing/report.json"))
    said = complaint(run.wait())
    assert "missing/report.json" in said and "writable" in said
    assert run.out == ""


def test_options_that_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "x.yaml", "--resume", "--fresh"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_drain_timeout_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "x.yaml", "--drain-timeout", "soon"]) == 2
    assert "soon" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(place: Place, name: str) -> None:
    result = place.up(place.path / name).wait()
    assert result.code == 2 and result.out == ""
    assert "Traceback" not in result.err and "cannot" in result.err


# ---------------------------------------------------------------------------- pipes


def test_the_reader_goes_away(place: Place) -> None:
    """`flowkit up ... | head -1`: the project drains, quietly."""
    place.touch("gate")
    reader, writer = os.pipe()
    run = place.up(endless(place), stdout=writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as lines:
        assert lines.readline().startswith("flowkit ")
    code = run.process.wait(60)
    assert run.err == ""
    assert code in (0, 141), code


def test_closed_streams(place: Place) -> None:
    report = place.path / "report.json"
    command = f"exec {sys.executable} -m flowkit up {short(place)} --report {report} >&- 2>&- <&-"
    env = environment(place.path)
    done = subprocess.run(["sh", "-c", command], cwd=place.path, env=env, timeout=60)
    assert done.returncode == 0
    assert json.loads(report.read_text())["links"][0]["done"] == 10


# ---------------------------------------------------------------------------- terminals


def on_terminal(place: Place, topology: Path, **env: str) -> str:
    """What `up` writes to a terminal."""
    master, slave = pty.openpty()
    run = place.up(topology, stdout=slave, env={"TERM": "xterm-256color", **env})
    os.close(slave)
    chunks = []
    deadline = Deadline(60)
    with contextlib.suppress(OSError):  # EIO: the last writer is gone
        while not deadline.passed and (chunk := os.read(master, 1 << 16)):
            chunks.append(chunk)
            if b"%" in chunk:
                place.touch("seen")
    os.close(master)
    assert run.wait().code == 0
    return b"".join(chunks).decode()


def test_colours_and_progress_on_a_terminal(place: Place) -> None:
    settings = {"count": 10, "until": place.file("seen"), "known": True}
    held = place.topology(
        {"read": node("Held", settings=settings), "talk": node("Talker")},
        [link("read.numbers -> talk.numbers")],
    )
    text = on_terminal(place, held)
    assert "\x1b[" in text and "%" in text
    assert "got 7 ünïcode" in text and "drained in" in text


def test_no_colour_if_unwanted(place: Place) -> None:
    text = on_terminal(place, short(place, known=True), NO_COLOR="1")
    assert "\x1b" not in text
    assert "got 7 ünïcode" in text and "drained in" in text


def test_plain_ascii_where_the_locale_is_c(place: Place) -> None:
    run = place.up(short(place), env={"LANG": "C", "LC_ALL": "C"})
    result = run.wait()
    result.check_drained()
    first = result.out.partition("\n")[0]
    assert first.startswith("flowkit 0.1.0 - trial - 2 replicas - metrics http://127.0.0.1:")
    assert "got 7 " in result.out
    ours = [line for line in result.out.splitlines() if not line.startswith("talk.0")]
    assert "\n".join(ours).isascii()


def test_no_colour_without_a_terminal(place: Place) -> None:
    result = place.up(short(place, known=True)).wait()
    assert "\x1b" not in result.out
    assert result.err == ""
