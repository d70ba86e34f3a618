"""What is heard of real processes: their log, their stacks, what passes through their channels."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from flowkit.control.taps import Tapped
from flowkit.protocol.control import Record
from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Eventually
from tests.e2e.harness import Place, environment, link, node

OWN = "tests.e2e.words_nodes:"
LINKS = [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")]


def project(
    place: Place, use: str, settings: dict[str, Any] | None = None, count: int = 200,
    until: str = "", **facts: Any,
) -> Path:  # fmt: skip
    reader = {"count": count, **({"until": place.file(until)} if until else {})}
    work = {**node("", settings=settings, **facts), "use": OWN + use}
    return place.topology(
        {
            "read": node("Numbers", settings=reader),
            "work": work,
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        LINKS,
    )


def test_a_record_and_its_level_on_their_way_to_the_terminal(place: Place) -> None:
    result = place.up(project(place, "Talk", {"at": 7, "fail": 9})).wait()
    assert result.code == 4, result.text
    lines = result.printed("work.0")
    plain = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines if "File " not in line]
    records = [line for line in lines if re.match(r"\d\d:\d\d:\d\d [A-Z]+ ", line)]
    assert plain[0] == "INFO set up 0" and plain[-1] == "INFO torn down"
    place_of = plain.index("WARNING two")
    assert plain[place_of + 1] == "lines"
    assert "printed" in plain and "not to be seen" not in result.out
    assert "ERROR caught" in plain and "KeyError: 7" in plain
    (failed,) = (line for line in records if "ValueError" in line)
    assert re.match(r"\d\d:\d\d:\d\d ERROR numbers: ValueError: no good", failed), failed
    assert not result.err


def test_json_is_one_object_a_line(place: Place) -> None:
    result = place.up(project(place, "Talk", {"at": 7, "fail": 9}), "--log-format", "json").wait()
    objects = [json.loads(line) for line in result.out.splitlines()]
    assert all(re.fullmatch(r"[-\d]{10}T[:\d]{8}\.\d{3}Z", one["time"]) for one in objects)
    mine = {one["message"]: one for one in objects if one.get("node") == "work"}
    assert all(one["replica"] == 0 for one in mine.values())
    warning = mine["two\nlines"]
    assert (warning["level"], warning["logger"]) == ("WARNING", "trial.nodes")
    assert "traceback" not in warning
    caught = mine["caught"]
    assert caught["level"] == "ERROR" and caught["traceback"].endswith("KeyError: 7")
    assert mine["set up 0"]["level"] == "INFO"
    assert "level" not in mine["printed"]  # what is printed has none
    (failed,) = (one for text, one in mine.items() if "ValueError" in text)
    assert failed["logger"] == "flowkit.node" and "Traceback" in failed["traceback"]
    last = objects[-1]
    assert last["logger"] == "flowkit.supervisor" and last["report"]["exit"] == 4 == result.code
    assert not result.err


@pytest.mark.parametrize("form", ["text", "json"])
def test_in_one_process_it_looks_the_same(place: Place, form: str) -> None:
    topology = project(place, "Talk", {"at": 7, "fail": 9})
    result = place.up(topology, "--in-process", "--log-format", form).wait()
    assert result.code == 4, result.text
    if form == "json":
        objects = [json.loads(line) for line in result.out.splitlines() if line.startswith("{")]
        mine = {one["message"]: one for one in objects if one.get("node") == "work"}
        assert mine["caught"]["traceback"].endswith("KeyError: 7")
        assert mine["set up 0"]["logger"] == "trial.nodes"
    else:
        lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in result.printed("work.0")]
        assert lines[0] == "INFO set up 0" and "ERROR caught" in lines
        assert "not to be seen" not in result.out
    assert not result.err


@pytest.mark.parametrize("how", ["kill", "segfault", "_exit"])
@pytest.mark.parametrize("words", [1, 100])
def test_last_words_are_heard(place: Place, how: str, words: int) -> None:
    """A record that was logged right before a crash is not lost with the process."""
    settings = {"at": 50, "marker": place.file("died"), "how": how, "words": words}
    result = place.up(project(place, "LastWords", settings)).wait()
    result.check_drained()
    place.check_exact(200)
    assert result.restarts("work") == 1
    said = [line.partition("INFO ")[2] for line in result.printed("work.0") if "last word" in line]
    assert said == [f"last word {number}" for number in range(words)]


def test_a_flood_is_bounded_and_counted(place: Place) -> None:
    """More in one handler than may be on the way: the loop is not held up, the gap is told."""
    settings = {"at": 50, "marker": place.file("died"), "how": "kill", "words": 50_000}
    result = place.up(project(place, "LastWords", settings, watchdog="20s")).wait()
    result.check_drained()
    place.check_exact(200)
    lines = result.printed("work.0")
    said = [line for line in lines if "last word" in line]
    gaps = [line for line in lines if "log records were" in line]
    assert said and len(said) < 50_000
    assert said[0].endswith("last word 0")
    assert all("skipped" in line or "lost with the process" in line for line in gaps)


def test_a_fork_of_a_node_is_heard(place: Place) -> None:
    result = place.up(project(place, "Forks")).wait()
    result.check_drained()
    assert [line for line in result.printed("work.0") if line.endswith("ERROR from a fork")]


@pytest.mark.parametrize("kind", ["Holds", "HoldsLater"])
def test_a_held_loop_names_its_handler_while_it_is_held(place: Place, kind: str) -> None:
    run = place.up(project(place, kind, {"at": 7, "gate": place.file("gate")}, blocked="200ms"))
    run.says(f"{kind}.on_numbers() has held the event loop for")
    run.says("time.sleep(0.005)")
    place.touch("gate")
    result = run.wait()
    result.check_drained()
    place.check_exact(200)
    (said,) = (line for line in result.printed("work.0") if "has held the event loop" in line)
    assert re.match(r"\d\d:\d\d:\d\d WARNING work: ", said), said
    assert "flowkit/runtime" not in result.out


def test_the_guard_can_be_switched_off(place: Place) -> None:
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 100}),
            "off": {
                **node("", settings={"at": 7, "gate": place.file("gate")}, blocked=0),
                "use": OWN + "Holds",
            },
            "on": {
                **node("", settings={"at": 7, "gate": place.file("gate")}, blocked="200ms"),
                "use": OWN + "Holds",
            },
            "tally": node("Tally", settings={"path": place.file("tally")}),
            "other": node("Tally", settings={"path": place.file("other")}),
        },
        [
            link("read.numbers -> off.numbers"),
            link("read.numbers -> on.numbers"),
            link("off.results -> tally.numbers"),
            link("on.results -> other.numbers"),
        ],
    )
    run = place.up(topology)
    run.says("on: Holds.on_numbers() has held the event loop")
    place.touch("gate")
    result = run.wait()
    result.check_drained()
    assert not [line for line in result.printed("off.0") if "has held" in line]


def test_sigusr1_shows_threads_and_tasks(place: Place) -> None:
    run = place.up(project(place, "Waits", {"at": 7, "gate": place.file("gate")}))
    run.ready()
    run.until(lambda: run.handled("work.0") or run.sent("read.0"))
    pid = run.pid("work.0")

    def shown() -> bool:
        run.kill("work.0", number=signal.SIGUSR1)
        return "await appeared(self.gate)" in run.out

    run.until(shown)
    run.says("Current thread")
    run.says("Task on_numbers waits (most recent call last):")
    assert run.pid("work.0") == pid
    place.touch("gate")
    result = run.wait()
    result.check_drained()
    place.check_exact(200)


def test_spans_leave_a_child(place: Place) -> None:
    """With the exporter that the environment names; `console` prints."""
    pytest.importorskip("opentelemetry.sdk")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    topology = place.topology(
        {
            "read": {
                **node("", settings={"count": 50, "traceparent": f"00-{trace}-{'1' * 16}-01"}),
                "use": OWN + "Traced",
            },
            "work": {**node(""), "use": OWN + "Chatty"},
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        LINKS,
        env={"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "50"},
    )
    result = place.up(topology).wait()
    result.check_drained()
    place.check_exact(50)
    work, tally = "\n".join(result.printed("work.0")), "\n".join(result.printed("tally.0"))
    assert '"name": "process work.numbers"' in work and f"0x{trace}" in work
    assert '"name": "process tally.numbers"' in tally and f"0x{trace}" in tally
    assert '"service.name": "work"' in work and '"service.namespace": "trial"' in work


# -- with the supervisor in this process ---------------------------------------------------------


class Ears(Silent):
    """What the supervisor is told."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Record]] = []

    def record(self, replica: str, record: Record) -> None:
        self.records.append((replica, record))

    def said(self, replica: str, text: str) -> list[Record]:
        return [one for name, one in self.records if name == replica and text in one.text]


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place whose environment is that of this process."""
    for name, value in environment(place.path).items():
        monkeypatch.setenv(name, value)
    return place


def test_levels_change_while_it_runs_and_for_what_comes_later(
    here: Place, eventually: Eventually
) -> None:
    ears = Ears()
    topology = project(here, "Chatty", until="stop", replicas=2, count=10)

    async def main() -> None:
        async with Supervisor(str(topology), watcher=ears) as supervisor:
            await eventually.on_loop(lambda: len(supervisor.pids) == 4, 60.0)
            supervisor.set_level("work", 0, "DEBUG", "trial.nodes")
            await eventually.on_loop(lambda: ears.said("work.0", "number"), 60.0)
            record = ears.said("work.0", "number")[0]
            assert (record.level, record.logger) == (10, "trial.nodes")
            assert not ears.said("work.1", "number")
            before = supervisor.pids["work.0"]
            os.kill(before, signal.SIGKILL)
            await eventually.on_loop(lambda: supervisor.pids.get("work.0", before) != before, 60.0)
            count = len(ears.said("work.0", "number"))
            await eventually.on_loop(lambda: len(ears.said("work.0", "number")) > count + 10, 60.0)
            supervisor.set_level("work", None, "ERROR", "trial.nodes")
            here.touch("stop")
            report = await asyncio.wait_for(supervisor.wait(), 60.0)
            assert report.exit == 0

    asyncio.run(main())


def test_a_tap_on_a_stream_loses_nothing(here: Place, eventually: Eventually) -> None:
    topology = project(here, "Talk", {"at": -1}, until="stop", count=1000)
    seen: list[Tapped] = []

    async def main() -> int:
        async with Supervisor(str(topology), watcher=Silent()) as supervisor:
            tap = supervisor.tap("work", "results", seen.append)
            await eventually.on_loop(lambda: tap.skipped > 10_000 and tap.shown > 1000, 60.0)
            count = tap.shown
            tap.close()
            here.touch("stop")
            report = await asyncio.wait_for(supervisor.wait(), 60.0)
            assert (report.exit, tap.shown) == (0, count)
            (entry,) = (one.entry for one in report.links if one.source == "read.numbers")
            assert entry.done == entry.sent
            return int(entry.sent)

    here.check_exact(asyncio.run(main()))
    values = [one.value for one in seen]
    assert values == sorted(values) and len({one.id for one in seen}) == len(seen)
