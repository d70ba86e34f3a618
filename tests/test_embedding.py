"""A project as a block of a program: entered when it is ready, drained when it is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowkit
from flowkit.errors import ProjectFailed, TopologyError
from flowkit.protocol.project import Status
from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Eventually
from tests.e2e.harness import Place, link, node

pytestmark = pytest.mark.e2e

KINDS = pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)
    yield place
    place.close()


def chain(place: Place, **read: Any) -> Path:
    return place.topology(
        {
            "read": node("Numbers", settings={"count": 1000, **read}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> tally.numbers")],
    )


def test_it_is_the_name_that_users_import() -> None:
    assert flowkit.Supervisor is Supervisor


@KINDS
def test_entered_when_ready_and_drained_when_left(
    place: Place, eventually: Eventually, in_process: bool
) -> None:
    async def application() -> None:
        topology = chain(place, until=place.file("never"))
        async with asyncio.timeout(60):
            async with Supervisor(topology, in_process=in_process, watcher=Silent()) as project:
                assert project.status().ready
                await eventually.on_loop(lambda: project.progress()[0] > 100)
            report = project.report()
            assert (report.status, report.exit) == (Status.DRAINED, 0)
            place.check_exact(report.links[0].entry.sent, "tally")
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(application())


def test_a_stream_that_ends_by_itself(place: Place) -> None:
    async def application() -> None:
        async with asyncio.timeout(60), Supervisor(chain(place), in_process=True) as project:
            report = await project.drained()
            assert report.links[0].entry.done == 1000

    asyncio.run(application())


def test_leaving_has_a_limit(place: Place, eventually: Eventually) -> None:
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1000}),
            "gate": node("Gate", settings={"gate": place.file("gate")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> gate.numbers"), link("gate.results -> tally.numbers")],
    )

    async def application() -> None:
        with pytest.raises(ProjectFailed, match="trial: not drained in 0.05 s") as failed:
            supervisor = Supervisor(topology, in_process=True, drain_timeout=0.05)
            async with supervisor as project:
                await eventually.on_loop(lambda: project.report().in_flight > 10)
        assert failed.value.report.status is Status.TIMED_OUT
        assert failed.value.report.in_flight > 10
        assert failed.value.exit_code == 5

    asyncio.run(application())


def test_what_cannot_start_raises(place: Place) -> None:
    nodes = {"read": node("Numbers"), "tally": node("Misconfigured")}
    topology = place.topology(nodes, [link("read.numbers -> tally.numbers")])

    async def application() -> None:
        with pytest.raises(ProjectFailed, match="tally.0 cannot start") as failed:
            async with Supervisor(topology, in_process=True, watcher=Silent()):
                raise AssertionError("entered")
        assert failed.value.exit_code == 2
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(application())


def test_a_failure_meanwhile_is_told_of_once(place: Place, eventually: Eventually) -> None:
    """By whatever was awaited, or else by leaving the block."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1000, "until": place.file("never")}),
            "tally": node(
                "Tally", settings={"path": place.file("tally")}, restart={"policy": "never"}
            ),
        },
        [link("read.numbers -> tally.numbers")],
    )

    async def fails(how: str) -> None:
        supervisor = Supervisor(topology, in_process=True, watcher=Silent(), fresh=True)
        async with supervisor as project:
            project._signal("tally.0#1", signal.SIGKILL)
            if how == "drained":
                with pytest.raises(ProjectFailed, match="tally.0 was given up"):
                    await project.drained()
            elif how == "wait":
                assert (await project.wait()).status is Status.FAILED
            else:
                await eventually.on_loop(project.over.done)

    async def application() -> None:
        async with asyncio.timeout(60):
            await fails("drained")
            await fails("wait")
            with pytest.raises(ProjectFailed, match="tally.0 was given up"):
                await fails("nothing")

    asyncio.run(application())


def test_a_drain_is_ended_by_cancelling(place: Place, eventually: Eventually) -> None:
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1000}),
            "gate": node("Gate", settings={"gate": place.file("gate")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> gate.numbers"), link("gate.results -> tally.numbers")],
    )

    async def application() -> None:
        drains: list[int] = []

        class Watching(Silent):
            def draining(self, in_flight: int) -> None:
                drains.append(in_flight)

        async def run() -> None:
            async with Supervisor(topology, in_process=True, watcher=Watching()) as project:
                await eventually.on_loop(lambda: project.report().in_flight > 10)

        task = asyncio.create_task(run())
        await eventually.on_loop(lambda: drains)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(application())


def test_what_is_cancelled_is_not_said_to_be_restarted(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def application() -> None:
        project = Supervisor(chain(place, until=place.file("never")), in_process=True)
        with pytest.raises(ZeroDivisionError), caplog.at_level("INFO"):
            async with project:
                raise ZeroDivisionError
        assert "restarted" not in caplog.text
        assert project.report().status is Status.KILLED

    asyncio.run(application())


def test_a_supervisor_runs_once(place: Place) -> None:
    async def application() -> None:
        async with asyncio.timeout(60):
            project = Supervisor(chain(place, until=place.file("never")), in_process=True)
            async with project:
                with pytest.raises(RuntimeError, match="started once"):
                    async with project:
                        raise AssertionError("entered")
                assert project.status().ready, "what runs goes on"
            with pytest.raises(RuntimeError, match="started once"):
                await project.start()

    asyncio.run(application())


def test_signals_only_where_they_are_asked_for(place: Place, eventually: Eventually) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def application() -> None:
        topology = chain(place, until=place.file("never"))
        supervisor = Supervisor(topology, in_process=True, signals=True)
        async with asyncio.timeout(60), supervisor as project:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await project.drained()).exit == 0

    asyncio.run(application())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_drains_all_that_asked_for_it(place: Place) -> None:
    def topology(name: str) -> Path:
        return place.topology(
            {
                "read": node("Numbers", settings={"count": 10, "until": place.file("never")}),
                "tally": node("Tally", settings={"path": place.file(name)}),
            },
            [link("read.numbers -> tally.numbers")],
            project=name,
        )

    async def application() -> None:
        one, two = (Supervisor(topology(name), in_process=True, signals=True) for name in "ab")
        async with asyncio.timeout(60), one:
            async with two:
                os.kill(os.getpid(), signal.SIGTERM)
                await two.drained()
                await one.drained()
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "one is here still"

    asyncio.run(application())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_wrong_topology_lists_its_problems(place: Place) -> None:
    with pytest.raises(TopologyError) as wrong:
        flowkit.Supervisor(place.topology({"read": node("Numbrs")}, []))
    assert "did you mean 'Numbers'" in wrong.value.problems[0].hint
