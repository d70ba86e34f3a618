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

from flowkit.errors import TopologyError, UnknownName
from flowkit.operations import ChangeError
from flowkit.protocol.project import Died, Phase
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
        with pytest.raises(ChangeError, match="work is stopped"):
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


def parts(place: Place, **work: Any) -> tuple[dict[str, Any], list[Any]]:
    """The stream as nodes and links, to be changed; `work` are settings of the workers."""
    nodes = {
        "read": node("Stream", {"enough": place.file("enough")}),
        "work": node("Pass", work or None, replicas=2),
        "ledger": node("Ledger", {"path": place.file("ledger")}),
    }
    links = [
        link("read.numbers -> work.numbers", route="key", by="key", window=2000),
        link("work.results -> ledger.results", window=2000),
    ]
    return nodes, links


@on_loop
async def test_reloading_a_setting(place: Place) -> None:
    path = place.topology(*parts(place, factor=1))
    async with Supervisor(path, watcher=Silent()) as project:
        await flowing(project)
        assert "nothing has changed" in str(await project.reload(path))
        before = project.pids
        place.topology(*parts(place, factor=2))
        assert project.changes(path).lines() == ["~ node work: with", "restarted at rest: work"]
        reload = asyncio.create_task(project.reload())
        while not reload.done():
            assert project.status().ready, "it serves meanwhile"
            await asyncio.sleep(0.01)
        await reload
        await flowing(project)
        after = project.pids
        assert before["ledger.0"] == after["ledger.0"] and before["read.0"] == after["read.0"]
        assert before["work.0"] != after["work.0"] and before["work.1"] != after["work.1"]
        report = await end(place, project)
    seen = judge(place, report)
    assert set(seen["factors"]) == {"1", "2"}


@on_loop
async def test_reloading_nodes_and_links(place: Place) -> None:
    nodes, links = parts(place)
    path = place.topology(nodes, links)
    async with Supervisor(path, watcher=Silent()) as project:
        await flowing(project)
        bag = {"bag": node("Bag", {"path": place.file("bag")})}
        place.topology(nodes | bag, [*links, link("work.results -> bag.results")])
        found = project.changes(path)
        assert found.lines() == [
            "+ node bag",
            "+ link work.results -> bag.results",
            "restarted at rest: work",
        ]
        await project.reload()
        await flowing(project, 100)
        assert "bag.0" in project.pids
        await eventually.on_loop(lambda: done(project, "bag") > 500)
        counted = sum(link.sent_bytes for link in project.status().links[:2])
        place.topology(nodes, links)
        await project.reload()
        assert "bag.0" not in project.pids
        status = project.status()
        assert [one.name for one in status.removed] == ["bag.0"]
        assert [one.sent > 500 for one in status.removed_links] == [True]
        assert sum(link.sent_bytes for link in status.links) >= counted
        await flowing(project)
        report = await end(place, project)
    judge(place, report)
    links_of = [(one.source, one.target) for one in report.links]
    assert links_of.count(("work.results", "bag.results")) == 1
    bagged = json.loads(Path(place.file("bag")).read_text())
    assert bagged["most"] == 1
    assert bagged["distinct"] == report.links[-1].entry.done


@on_loop
async def test_a_new_node_that_fails_is_told_of_and_nothing_is_changed(place: Place) -> None:
    """The node is in no plan yet: its deaths are told all the same, and the watchdogs look on."""
    nodes, links = parts(place)
    path = place.topology(nodes, links)
    deaths: list[str] = []

    class Listening(Silent):
        def died(self, event: Died, budget: int | None) -> None:
            deaths.append(f"{event.replica.name} {event.error} {budget}")

    async with Supervisor(path, watcher=Listening()) as project:
        await flowing(project)
        fails = node("Pass", {"fail": "setup"}) | {"restart": {"max": 1, "backoff": "1ms"}}
        ways = [link("read.numbers -> other.numbers"), link("other.results -> ledger.results")]
        place.topology({**nodes, "other": fails}, [*links, *ways])
        with pytest.raises(ChangeError, match="other.0 died 2 times.*nothing was changed"):
            await project.reload()
        assert len(deaths) == 2
        assert all(text.startswith("other.0 ") and text.endswith(" 1") for text in deaths)
        await flowing(project)
        report = await end(place, project)
    judge(place, report)


@on_loop
async def test_what_cannot_be_changed_is_refused(place: Place) -> None:
    nodes, links = parts(place)
    path = place.topology(nodes, links)
    async with Supervisor(path, watcher=Silent()) as project:
        await flowing(project)
        before = project.pids
        for replicas, text in (
            ({"wrok": 2}, "there is no node wrok"),
            ({"work": 0}, "cannot have 0 replicas"),
            ({"read": 2}, "read is a source"),
            ({"read": 2, "wrok": 3}, "read is a source.*; there is no node wrok"),
        ):
            with pytest.raises(ChangeError, match=text):
                await project.scale(replicas)
        with pytest.raises(UnknownName, match="no replica work.7"):
            await project.restart("work", 7)
        place.topology({**nodes, "work": node("Pass", {"factr": 1}, replicas=2)}, links)
        with pytest.raises(TopologyError, match="factr"):
            await project.reload()
        place.topology({**nodes, "read": node("Ticker", {"enough": place.file("enough")})}, links)
        with pytest.raises(ChangeError, match="read is another source"):
            await project.reload()
        assert project.pids == before
        await flowing(project)
        report = await end(place, project)
    judge(place, report)


@on_loop
async def test_a_change_that_cannot_come_to_rest_is_abandoned(place: Place) -> None:
    async with Supervisor(stream(place, "balance", "Stuck"), watcher=Silent()) as project:
        await eventually.on_loop(lambda: project.report().links[0].entry.sent > 0)
        project._operations.limit = 3.0
        before = project.pids
        with pytest.raises(ChangeError, match="read.0.* did not come to rest in 3 s; nothing"):
            await project.scale({"work": 4})
        await eventually.on_loop(lambda: project.pids == before)
        Path(place.file("gate")).touch()
        await flowing(project)  # the source goes on
        project._operations.limit = 30
        await project.scale({"work": 4})
        await flowing(project)
        report = await end(place, project)
    assert report.exit == 0
    assert report.links[0].entry.redelivered == 0


@on_loop
async def test_a_replica_that_does_not_rest_is_killed_and_loses_nothing(place: Place) -> None:
    async with Supervisor(stream(place, "balance", "Stuck"), watcher=Silent()) as project:
        await eventually.on_loop(lambda: project.report().links[0].entry.sent > 0)
        project._operations.limit = 3.0
        outcome = await project.restart("work", 0)
        assert "work.0 did not come to rest and was killed" in str(outcome)
        Path(place.file("gate")).touch()
        await flowing(project)
        report = await end(place, project)
    assert report.exit == 0
    assert report.links[0].entry.redelivered > 0
    assert [one.restarts for one in report.nodes] == [0, 0, 0, 0]


@on_loop
async def test_what_a_removed_replica_says_last_arrives(place: Place) -> None:
    path = place.topology(
        {
            "read": node("Stream", {"enough": place.file("enough")}),
            "count": node("Goodbye"),
            "bag": node("Bag", {"path": place.file("bag")}),
        },
        [link("read.numbers -> count.numbers"), link("count.results -> bag.results")],
    )
    async with Supervisor(path, watcher=Silent()) as project:
        for count in (3, 1, 2, 1):
            await read(project, 300)
            await project.scale({"count": count})
        report = await end(place, project)
    assert report.exit == 0
    total = report.links[0].entry.done
    seen = json.loads(Path(place.file("bag")).read_text())
    assert seen["total"] == total  # two of them may have counted the same
    assert report.links[1].entry.done == 4  # one for each life: 1, 2, 1 again, and 0
    assert not any(one.lost_state for one in report.nodes)


@on_loop
async def test_state_is_not_lost_unasked(place: Place) -> None:
    async with Supervisor(stream(place, work="Stateful"), watcher=Silent()) as project:
        await flowing(project)
        with pytest.raises(ChangeError, match="keeps state by key") as caught:
            await project.scale({"work": 3})
        assert "--lose-state" in caught.value.hint
        await project.scale({"work": 3}, lose_state=True)
        await flowing(project)
        await project.restart("work", 2)
        report = await end(place, project)
    judge(place, report)
    lost = {one.replica: one.lost_state for one in report.nodes if one.node == "work"}
    assert lost == {0: True, 1: True, 2: True}


@on_loop
async def test_a_new_incarnation_that_does_not_start_stops_the_roll(place: Place) -> None:
    path = place.topology(*parts(place))
    async with Supervisor(path, watcher=Silent()) as project:
        await flowing(project)
        before = project.pids
        place.topology(*parts(place, fail="setup"))
        project.plan = project.load(path)  # as if their code were broken now
        project._operations.limit = 1.0
        with pytest.raises(ChangeError, match="work.0 .*; 0 of 2 were restarted, the others go on"):
            await project.restart("work")
        assert project.pids["work.1"] == before["work.1"]
        place.topology(*parts(place))
        project.plan = project.load(path)
        await eventually.on_loop(lambda: bool(project._operations.stopped) or done(project))
        project._operations.limit = 30.0
        await eventually.on_loop(lambda: "work.0" in project.pids or project._operations.stopped)
        if project._operations.stopped:
            await project.start_node("work")
        await flowing(project)
        report = await end(place, project)
    judge(place, report)


@on_loop
async def test_settings_that_do_not_work_are_taken_back(place: Place) -> None:
    path = place.topology(*parts(place))
    async with Supervisor(path, watcher=Silent()) as project:
        await flowing(project)
        before, nursery = project.plan, project.fleet and project.fleet.pid
        place.topology(*parts(place, fail="init"))
        with pytest.raises(ChangeError, match=r"work.\d cannot start; what ran before") as caught:
            await project.reload()
        assert "ValueError: these settings are no good" in caught.value.hint
        assert project.plan is before and not project._operations.stopped
        assert project.fleet is not None and project.fleet.pid == nursery, "nor was the code"
        assert len(pids(project, "work")) == 2
        await flowing(project)
        await project.restart("work", 0)
        report = await end(place, project)
    assert set(judge(place, report)["factors"]) == {"1"}


@on_loop
async def test_what_cannot_be_taken_back_is_told(place: Place) -> None:
    nodes, links = parts(place)
    path = place.topology(nodes, links)
    async with Supervisor(path, watcher=Silent()) as project:
        await flowing(project)
        bag = {"bag": node("Bag", {"path": place.file("bag")})}
        broken = node("Pass", {"fail": "init"}, replicas=2)
        place.topology(
            {**nodes, "work": broken, **bag}, [*links, link("work.results -> bag.results")]
        )
        left = "otherwise the project is now what the file says; work is stopped: flowkit start"
        with pytest.raises(ChangeError, match=rf"work.\d cannot start; .*{left} work"):
            await project.reload()
        assert project._operations.stopped == ["work"] and "bag.0" in project.pids
        place.topology(nodes | bag, [*links, link("work.results -> bag.results")])
        project.plan = project.changes(path).plan  # as if what it needs were there now
        await project.start_node("work")
        await flowing(project)
        report = await end(place, project)
    judge(place, report)


@on_loop
async def test_drained_while_a_node_is_stopped(place: Place) -> None:
    """What waits for it is in flight, and said to be."""
    async with Supervisor(stream(place), watcher=Silent()) as project:
        await flowing(project)
        await project.stop_node("work")
        await eventually.on_loop(lambda: project.report().in_flight > 0)
        project.drain(1.0)
        report = await asyncio.wait_for(project.wait(), 30)
    assert (report.status.value, report.exit) == ("timed out", 5)
    assert report.in_flight == report.links[0].entry.in_flight > 0
    states = {one.node: one.state for one in report.nodes}
    assert states["work"] == "stopped"


@on_loop
async def test_a_stopped_node_that_nothing_waits_for_does_not_hold_the_end_up(
    place: Place,
) -> None:
    async with Supervisor(stream(place), watcher=Silent()) as project:
        await flowing(project)
        await project.stop_node("read")
        await eventually.on_loop(lambda: not project.report().in_flight)
        await project.stop_node("work")
        project.drain(20.0)
        report = await asyncio.wait_for(project.wait(), 30)
    judge(place, report)
    states = {one.node: one.state for one in report.nodes}
    assert states == {"read": "stopped", "work": "stopped", "ledger": "done"}


@on_loop
async def test_deaths_in_the_middle_of_changes(place: Place) -> None:
    """Whoever dies while the project rests, or is scaled, is started again, and it goes on."""
    async with Supervisor(stream(place), watcher=Silent()) as project:
        for count, victims in ((4, ["work.0"]), (1, ["work.2", "work.0"]), (3, ["read.0"])):
            await flowing(project)
            await scaled_with_deaths(project, count, victims)
        await eventually.on_loop(
            lambda: all(one.phase is Phase.READY for one in project._project.replicas_of("work"))
        )
        await flowing(project)
        report = await end(place, project)
    assert report.exit == 0
    assert all(one.entry.balanced and not one.entry.in_flight for one in report.links)


@on_loop
async def test_a_source_without_positions_rests_too(place: Place) -> None:
    path = place.topology(
        {
            "tick": node("Ticker", {"enough": place.file("enough")}),
            "work": node("Pass"),
            "bag": node("Bag", {"path": place.file("bag")}),
        },
        [link("tick.numbers -> work.numbers"), link("work.results -> bag.results")],
    )
    async with Supervisor(path, watcher=Silent()) as project:
        await flowing_to(project, "bag", 50)
        await project.scale({"work": 3})
        await flowing_to(project, "bag", 50)
        await project.scale({"work": 1})
        await flowing_to(project, "bag", 50)
        report = await end(place, project)
    seen = json.loads(Path(place.file("bag")).read_text())
    assert report.exit == 0 and seen["most"] == 1
    assert seen["distinct"] == seen["top"] + 1 == report.links[0].entry.sent


async def read(project: Supervisor, more: int) -> None:
    wanted = project.report().links[0].entry.sent + more
    await eventually.on_loop(lambda: project.report().links[0].entry.sent >= wanted, 30)


async def scaled_with_deaths(project: Supervisor, count: int, victims: list[str]) -> None:
    """Kill `victims` while the project is being scaled to `count` workers."""
    scaling = asyncio.create_task(project.scale({"work": count}))
    core = project._project
    await eventually.on_loop(lambda: core.operation is not None or scaling.done())
    for name in victims:
        if name in project.pids:
            os.kill(project.pids[name], signal.SIGKILL)
    await asyncio.wait_for(scaling, 60)
    assert len(core.replicas_of("work")) == count


async def flowing_to(project: Supervisor, target: str, more: int) -> None:
    wanted = done(project, target) + more
    await eventually.on_loop(lambda: done(project, target) >= wanted, 30)


@on_loop
async def test_groups_do_not_wait_when_the_project_is_to_rest(place: Place) -> None:
    nodes, links = parts(place)
    nodes["read"]["with"]["pause"] = 0.02
    nodes["work"] = node("Grouping")
    async with Supervisor(place.topology(nodes, links), watcher=Silent()) as project:
        project._operations.limit = 15.0
        await read(project, 500)
        assert "killed" not in str(await project.restart("work"))
        await read(project, 500)
        await project.scale({"work": 2})
        await read(project, 500)
        report = await end(place, project)
    judge(place, report)


@pytest.mark.slow
@pytest.mark.timeout(300)
@on_loop
async def test_a_million_keyed_messages(place: Place) -> None:
    """Scaled up and down, restarted, reloaded, while they stream by."""
    nodes, links = parts(place, factor=1)
    nodes["read"]["with"]["count"] = 1_000_000
    path = place.topology(nodes, links)
    async with Supervisor(path, watcher=Silent()) as project:
        await flowing(project, 50_000)
        await project.scale({"work": 5})
        await flowing(project, 100_000)
        await project.scale({"work": 1})
        await flowing(project, 100_000)
        await project.scale({"work": 3})
        await flowing(project, 100_000)
        await project.restart("work")
        await flowing(project, 100_000)
        nodes["work"] = node("Pass", {"factor": 2}, replicas=3)
        place.topology(nodes, links)
        await project.reload()
        await flowing(project, 50_000)
        assert done(project) < 1_000_000, "all went by before the changes were over"
        Path(place.file("enough")).touch()
        report = await asyncio.wait_for(project.wait(), 200)
    seen = judge(place, report)
    assert seen["count"] >= 1_000_000
    assert set(seen["factors"]) == {"1", "2"}
