"""A project is changed while messages are on their way: scaled, restarted, stopped, started.

All with real processes; the nodes notice what is lost, doubled or out of order.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.operations import ChangeError
from flowkit.protocol.project import Phase
from flowkit.report import Report
from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Eventually
from tests.e2e.harness import Place, link

pytestmark = pytest.mark.e2e
NODES = "tests.e2e.changing_nodes:"
eventually = Eventually()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)
    yield place
    place.close()


def on_loop(test: Callable[[Place], Awaitable[None]]) -> Callable[[Place], None]:
    @functools.wraps(test)
    def run(place: Place) -> None:
        asyncio.run(test(place))  # type: ignore[arg-type]

    return run


def node(use: str, settings: dict[str, Any] | None = None, **facts: Any) -> dict[str, Any]:
    more = {"with": settings} if settings else {}
    return {"use": NODES + use, **more, "restart": {"backoff": "10ms"}, **facts}


def stream(place: Place, route: str = "key", work: str = "Pass", **settings: Any) -> Path:
    """A source, two workers, and a ledger."""
    ways = {"route": "key", "by": "key"} if route == "key" else {"route": route}
    source = {"enough": place.file("enough"), **settings}
    return place.topology(
        {
            "read": node("Stream", source),
            "work": node(
                work, {"gate": place.file("gate")} if work == "Stuck" else None, replicas=2
            ),
            "ledger": node("Ledger", {"path": place.file("ledger")}),
        },
        [
            link("read.numbers -> work.numbers", window=2000, **ways),
            link("work.results -> ledger.results", window=2000),
        ],
    )


def done(project: Supervisor, target: str = "ledger") -> int:
    """How many messages have reached the end."""
    return sum(
        one.entry.done for one in project.report().links if one.target.startswith(f"{target}.")
    )


async def flowing(project: Supervisor, more: int = 500) -> None:
    """Wait until messages come through."""
    wanted = done(project) + more
    await eventually.on_loop(lambda: done(project) >= wanted, 30)


async def end(place: Place, project: Supervisor) -> Report:
    """Let the stream end by itself."""
    Path(place.file("enough")).touch()
    return await asyncio.wait_for(project.wait(), 60)


def judge(place: Place, report: Report, redelivered: bool = False) -> dict[str, Any]:
    assert (report.status.value, report.exit) == ("drained", 0), report.as_dict()
    seen: dict[str, Any] = json.loads(Path(place.file("ledger")).read_text())
    assert not seen["faults"]
    for one in report.links:
        entry = one.entry
        assert entry.balanced
        assert not (entry.in_flight or entry.dropped or entry.dead_lettered)
        if not redelivered:
            assert not (entry.redelivered or entry.superseded)
            assert entry.sent == entry.delivered == entry.done
    assert seen["count"] == report.links[0].entry.done
    return seen


def pids(project: Supervisor, name: str) -> dict[str, int]:
    return {key: pid for key, pid in project.pids.items() if key.startswith(f"{name}.")}


@on_loop
async def test_scaling_a_keyed_stream(place: Place) -> None:
    async with Supervisor(stream(place), watcher=Silent()) as project:
        await flowing(project)
        outcome = await project.scale({"work": 5})
        assert "work 2 -> 5 replicas" in str(outcome)
        assert len(pids(project, "work")) == 5
        await flowing(project)
        await project.scale({"work": 1})
        assert list(pids(project, "work")) == ["work.0"]
        await flowing(project)
        await project.scale({"work": 3})
        await flowing(project)
        report = await end(place, project)
    judge(place, report)
    states = {f"{one.node}.{one.replica}": one.state for one in report.nodes}
    assert states == {f"{name}.0": "done" for name in ("read", "work", "ledger")} | {
        "work.1": "done",
        "work.2": "done",
        "work.3": "removed",
        "work.4": "removed",
    }
    assert all(one.restarts == one.planned == 0 for one in report.nodes)
    assert min(one.handled for one in report.nodes if one.node == "work") > 0


@on_loop
async def test_restarting_loses_and_repeats_nothing(place: Place) -> None:
    async with Supervisor(stream(place), watcher=Silent()) as project:
        await flowing(project)
        before = project.pids
        await project.restart("work")
        await flowing(project)
        await project.restart("read")
        await flowing(project)
        await project.restart("ledger", 0)
        await flowing(project)
        assert not set(before.values()) & set(project.pids.values())
        report = await end(place, project)
    judge(place, report)
    assert {(one.node, one.restarts, one.planned) for one in report.nodes} == {
        ("read", 0, 1),
        ("work", 0, 1),
        ("ledger", 0, 1),
    }


@on_loop
async def test_stop_means_stop(place: Place) -> None:
    async with Supervisor(stream(place), watcher=Silent()) as project:
        await flowing(project)
        await project.stop_node("work")
        assert not pids(project, "work")
        # Nobody takes, so that the source is held up.
        before = -1
        read = project.report().links[0].entry.sent
        while before != read:
            before = read
            await asyncio.sleep(0.3)
            read = project.report().links[0].entry.sent
        assert not pids(project, "work")
        with pytest.raises(ChangeError, match="work is stopped"):
            await project.scale({"work": 3})
        with pytest.raises(ChangeError, match="work.0 is stopped"):
            await project.restart("work")
        await project.start_node("work")
        assert len(pids(project, "work")) == 2
        await flowing(project)
        await project.stop_node("read")
        quiet = done(project)
        assert project.report().in_flight == 0
        assert "not stopped" in str(await project.start_node("work"))
        await project.start_node("read")
        await flowing(project)
        assert done(project) > quiet
        report = await end(place, project)
    judge(place, report)
