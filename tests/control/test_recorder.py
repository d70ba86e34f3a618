"""What a project tells is kept, under names that are stable."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowkit.control import history, recorder
from flowkit.control.recorder import Recorder
from flowkit.control.records import Event, LogLine, RunRecord
from flowkit.errors import RunDirectoryError
from flowkit.protocol import control
from flowkit.protocol.control import Record
from flowkit.protocol.project import Died, Poisoned, Replica
from flowkit.protocol.restart import RestartPolicy, RestartState
from tests.conftest import Eventually


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


def record() -> RunRecord:
    return RunRecord("trial", "/x/trial.yaml", "/x", 123, "run", 1000.0, "starting", replicas=2)


def replica(number: int = 1, incarnation: int = 1) -> Replica:
    restart = RestartState(RestartPolicy("on-failure", 5, 60.0, 0.1, 10.0))
    return Replica("work", number, restart, False, False, incarnation=incarnation)


def keep(state: Path, act: Callable[[Recorder], Awaitable[None] | None]) -> None:
    """Have a recorder told something, on a loop."""

    async def run() -> None:
        times = iter(range(1000, 100_000))
        kept = Recorder(state, record(), ["a -> b"].__getitem__, clock=lambda: float(next(times)))
        done = act(kept)
        if done is not None:
            await done
        kept.close()

    asyncio.run(run())


def events(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state / "events.jsonl").read_text().splitlines()]


def test_events_have_stable_names_and_facts(state: Path) -> None:
    def act(kept: Recorder) -> None:
        kept.launched(replica(), 77)
        kept.ready(1.25)
        kept.died(Died(replica(), -9, None, 0.1, ""), 5)
        kept.launched(replica(incarnation=2), 78)
        kept.died(Died(replica(), 0, None, 0.1, "", 0), 5)
        kept.poisoned(Poisoned(replica(), control.Poison(0, bytes(16), 3)))
        kept.died(Died(replica(), 3, "has had enough", None, "too often"), 5)
        kept.note("odd")
        kept.draining(12)
        kept.event("scaled", "work has 3 replicas", node="work", replicas=3)
        kept.ended({"status": "failed", "reason": "why", "exit": 3, "seconds": 2.0})

    keep(state, act)
    found = events(state)
    assert [each["event"] for each in found] == [
        "starting",
        "started",
        "ready",
        "died",
        "restarted",
        "finished",
        "poisoned",
        "given-up",
        "note",
        "draining",
        "scaled",
        "ended",
    ]
    assert found[0]["time"] == "1970-01-01T00:16:40.000000Z"
    assert (found[1]["node"], found[1]["replica"], found[1]["pid"]) == ("work", 1, 77)
    assert (found[3]["code"], found[3]["delay"]) == (-9, 0.1)
    assert "was killed by SIGKILL" in found[3]["text"] and "restart 1/5" in found[3]["text"]
    assert found[6]["link"] == "a -> b" and found[6]["message"].endswith("-3")
    assert found[7]["delay"] is None
    assert (found[10]["node"], found[10]["replicas"]) == ("work", 3)
    assert (found[11]["status"], found[11]["exit"]) == ("failed", 3)
    # The supervisor's log says the same.
    said = [line.text for line in history.lines(state, ["supervisor"])]
    assert said == [each["text"] for each in found]


def test_every_event_is_documented() -> None:
    """The table in `records` is what programs go by."""
    from flowkit.control import commands, records

    assert records.__doc__ is not None
    table = {line.split()[0] for line in records.__doc__.splitlines() if line[:1].isalpha()}
    source = "".join(Path(str(module.__file__)).read_text() for module in (recorder, commands))
    names = set()
    for call in ("self.event(", "_of_replica(", "_changed(desk, ", "recorder.event("):
        for part in source.split(call)[1:]:
            words = part.lstrip().split('"')
            if len(words) > 1 and not words[0].strip():
                names.add(words[1])
    assert len(names) > 8
    assert names <= table


def test_the_record_of_the_run(state: Path) -> None:
    seen = []

    def act(kept: Recorder) -> None:
        def look() -> None:
            seen.append(json.loads((state / "run.json").read_text())["state"])

        look()
        kept.ready(0.1)
        look()
        kept.draining(0)
        look()
        kept.ended({"status": "drained", "reason": "", "exit": 0, "seconds": 1.0})

    keep(state, act)
    assert seen == ["starting", "running", "draining"]
    found = json.loads((state / "run.json").read_text())
    assert (found["state"], found["exit"], found["pid"]) == ("drained", 0, 123)
    assert found["ended"] > found["started"]


def test_levels_of_what_is_printed(state: Path) -> None:
    lines = [
        ("plain", ""),
        ("  indented", ""),
        ("Traceback (most recent call last):", "ERROR"),
        ('  File "x.py", line 1, in f', "ERROR"),
        ("ValueError: bad", "ERROR"),
        ("", ""),
        ("Traceback (most recent call last):", "ERROR"),
        ("  x", "ERROR"),
        ("Oops", "ERROR"),
        ("plain", ""),
    ]

    def act(kept: Recorder) -> None:
        for text, _ in lines:
            kept.output("work.0", text.encode())

    keep(state, act)
    found = list(history.lines(state, ["work.0"]))
    assert [(line.text, line.level) for line in found] == lines


def test_what_is_logged(state: Path) -> None:
    """With the time and the level that it had, and its traceback line by line."""

    def act(kept: Recorder) -> None:
        kept.record("work.0", Record(500.5, logging.WARNING, "my", "odd"))
        kept.record("work.0", Record(501.0, logging.ERROR, "my", "bad", "Traceback:\n  x\nE: 1\n"))
        for level in (1, 15, 50, 70):
            kept.record("work.0", Record(502.0, level, "my", str(level)))

    keep(state, act)
    found = [(line.time, line.level, line.text) for line in history.lines(state, ["work.0"])]
    assert found == [
        (500.5, "WARNING", "odd"),
        (501.0, "ERROR", "bad"),
        (501.0, "ERROR", "Traceback:"),
        (501.0, "ERROR", "  x"),
        (501.0, "ERROR", "E: 1"),
        (502.0, "DEBUG", "1"),
        (502.0, "DEBUG", "15"),
        (502.0, "CRITICAL", "50"),
        (502.0, "CRITICAL", "70"),
    ]


def test_who_listens_is_told_and_the_marks_fit(state: Path) -> None:
    """What is before the marks is in the files; what comes after is told; nothing is in both."""
    told: list[LogLine] = []
    happened: list[Event] = []

    def act(kept: Recorder) -> None:
        kept.output("work.0", b"before")
        marks, event_marks = kept.line_marks(), kept.event_marks()
        kept.on_line.add(told.append)
        kept.on_event.add(happened.append)
        kept.output("work.0", b"after \xff")
        kept.output("work.1", b"new")
        kept.note("a note")
        kept.on_line.clear()
        kept.output("work.0", b"nobody listens")
        kept.close()
        past = [line.text for line in history.lines(state, marks=marks)]
        assert past[-1] == "before" and "after" not in "".join(past[:-1])
        assert len(list(history.events(state, marks=event_marks))) == 1

    keep(state, act)
    assert [(line.replica, line.text) for line in told] == [
        ("work.0", "after \\xff"),
        ("work.1", "new"),
        ("supervisor", "a note"),
    ]
    assert [event.event for event in happened] == ["note"]


def test_lines_of_one_turn_are_written_together(state: Path, eventually: Eventually) -> None:
    async def act(kept: Recorder) -> None:
        for number in range(1000):
            kept.output("work.0", b"line %d" % number)
        path = state / "logs" / "work.0.log"
        assert not path.exists()
        await eventually.on_loop(path.exists)
        assert len(path.read_text().splitlines()) == 1000

    keep(state, act)


def test_a_place_that_others_can_write_to_is_refused(state: Path) -> None:
    (state / "logs").mkdir(mode=0o777)
    (state / "logs").chmod(0o777)
    with pytest.raises(RunDirectoryError):
        keep(state, lambda kept: None)


def test_several_lines_in_one_are_written_as_lines(state: Path) -> None:
    keep(state, lambda kept: kept.note("one\ntwo"))
    said = [line.text for line in history.lines(state, ["supervisor"])]
    assert said[-2:] == ["one", "two"]
    assert events(state)[-1]["text"] == "one\ntwo"
