"""Replicas that applications run: they come and go, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowkit
from flowkit.errors import NotRunning, RequestFailed, SendError
from flowkit.operations import ChangeError
from flowkit.report import Report
from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Eventually
from tests.e2e.guest_nodes import Fails, Feed, Show
from tests.e2e.harness import Place, environment, link

pytestmark = pytest.mark.e2e

GUESTS = "tests.e2e.guest_nodes:"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(Path(__file__).parents[2])
    yield place
    place.close()


def guest(use: str, **facts: Any) -> dict[str, Any]:
    return {"use": GUESTS + use, "external": True, **facts}


def kept(place: Place, project: str = "trial") -> Path:
    """Feed and Keep, the first of them external."""
    return place.topology(
        {
            "feed": guest("Feed"),
            "double": {"use": GUESTS + "Double", "replicas": 2},
            "keep": {"use": GUESTS + "Keep", "with": {"path": place.file(f"kept-{project}")}},
        },
        [link("feed.events -> double.events"), link("double.results -> keep.results")],
        project=project,
    )


def shown(place: Place, use: str = "Show", count: int = 1000, **facts: Any) -> Path:
    """Numbers from a source, and an external node that sees them. The source goes on until the
    file "never" is there."""
    numbers = {"use": "tests.e2e.nodes:Numbers"}
    return place.topology(
        {
            "read": {**numbers, "with": {"count": count, "until": place.file("never")}},
            "show": guest(use, **facts),
        },
        [link("read.numbers -> show.results", window=200)],
    )


def results(place: Place, project: str = "trial") -> list[int]:
    path = Path(place.file(f"kept-{project}"))
    return [int(line.split()[1]) for line in path.read_text().splitlines()]


def state(project: Supervisor, name: str) -> str:
    return next(one.state for one in project.status().replicas if one.name == name)


def check(report: Report) -> None:
    assert (report.status.value, report.exit) == ("drained", 0), report.reason
    assert report.balanced and not report.in_flight


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
def test_what_is_delivered_has_arrived(place: Place, in_process: bool) -> None:
    async def application() -> None:
        topology = kept(place)
        async with Supervisor(topology, in_process=in_process, watcher=Silent()) as project:
            assert state(project, "feed.0") == "absent"
            assert project.status().ready, "nobody waits for it"
            feed = Feed()
            async with flowkit.attach(feed, project) as attachment:
                assert attachment.attached
                assert state(project, "feed.0") == "running"
                assert project.pids["feed.0"] == os.getpid()
                await asyncio.gather(*(feed.events.deliver(number) for number in range(100)))
                assert sorted(results(place)) == [2 * number for number in range(100)]
            assert not attachment.attached
            assert state(project, "feed.0") == "absent"
            with pytest.raises(NotRunning, match="Feed is not attached: it has left"):
                await feed.events.deliver(1)
            with pytest.raises(SendError):
                feed.events.send(1)
        report = project.report()
        check(report)
        assert report.links[0].entry.done == 100
        assert not report.links[0].entry.redelivered
        (entry,) = (one for one in report.nodes if one.node == "feed")
        assert (entry.restarts, entry.planned) == (0, 1)

    asyncio.run(application())


def test_leaving_waits_for_what_was_sent(place: Place) -> None:
    """What nobody awaits is done all the same when the block has been left."""

    async def application() -> None:
        async with Supervisor(kept(place), watcher=Silent()) as project:
            feed = Feed()
            async with flowkit.attach(feed, project):
                sending = [asyncio.ensure_future(feed.events.deliver(n)) for n in range(50)]
                await asyncio.sleep(0)
            done = await asyncio.gather(*sending, return_exceptions=True)
            # Those that found no room before it left were never sent, and say so.
            taken = [n for n, outcome in enumerate(done) if outcome is None]
            assert all(isinstance(outcome, SendError) for outcome in done if outcome is not None)
            assert taken and sorted(results(place)) == [2 * n for n in taken]
        check(project.report())

    asyncio.run(application())


def test_one_that_comes_and_goes_misses_nothing(place: Place, eventually: Eventually) -> None:
    async def application() -> None:
        seen: list[int] = []
        async with Supervisor(shown(place), watcher=Silent()) as project:
            for _ in range(3):
                show = Show()
                async with flowkit.attach(show, "trial"):
                    await eventually.on_loop(lambda show=show: len(show.seen) > 100)
                seen += show.seen
            place.touch("never")
            show = Show()
            async with flowkit.attach(show, "trial"):
                report = await project.drained()
            seen += show.seen
        check(report)
        assert seen == list(range(len(seen))), "in order, each once"
        assert report.links[0].entry.done == len(seen)
        assert not report.links[0].entry.redelivered

    asyncio.run(application())


def test_an_application_that_is_killed(place: Place, eventually: Eventually) -> None:
    """What it had in hand goes to the next one, at once; the books add up."""
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    async def scenario() -> None:
        async with Supervisor(shown(place), watcher=Notes()) as project:
            process, log = start(place)
            try:
                await eventually.on_loop(lambda: "begun 1" in said(log), 30)
                assert project.pids["show.0"] == process.pid
                flight = project.report().in_flight
                assert flight > 0
                process.kill()
                await eventually.on_loop(lambda: state(project, "show.0") == "absent")
                assert f"has gone: process {process.pid} has ended" in notes[-1]
            finally:
                process.kill()
                process.wait()
            place.touch("never")
            show = Show()
            async with flowkit.attach(show, "trial"):
                report = await project.drained()
        check(report)
        (entry,) = (one for one in report.nodes if one.node == "show")
        assert entry.restarts == 1
        assert show.seen == list(range(len(show.seen)))
        assert report.links[0].entry.done == len(show.seen)

    asyncio.run(scenario())


def test_one_that_stands_still_is_fenced(place: Place, eventually: Eventually) -> None:
    """Its watchdog gives it up; what it says when it goes on counts for nothing, and it comes back
    as another incarnation."""

    async def scenario() -> None:
        topology = shown(place, watchdog="1s")
        async with Supervisor(topology, watcher=Silent()) as project:
            process, log = start(place)
            try:
                await eventually.on_loop(lambda: "begun 1" in said(log), 30)
                os.kill(process.pid, signal.SIGSTOP)
                await eventually.on_loop(lambda: state(project, "show.0") == "absent", 20)
                show = Show()
                async with flowkit.attach(show, "trial"):
                    await eventually.on_loop(lambda: len(show.seen) > 100)
                    place.touch("gate")
                    os.kill(process.pid, signal.SIGCONT)
                    # Its acknowledgement comes too late; it asks for a place again, and waits.
                    await eventually.on_loop(lambda: "seen 1" in said(log), 20)
                    place.touch("never")
                    report = await project.drained()
            finally:
                process.kill()
                process.wait()
        check(report)
        assert show.seen == list(range(len(show.seen)))
        assert report.links[0].entry.done == len(show.seen)

    asyncio.run(scenario())


def start(place: Place) -> tuple[subprocess.Popen[bytes], Path]:
    """An application of its own, which does nothing before the file "gate" is there."""
    log = place.path / "log"
    command = [sys.executable, "-m", "tests.e2e.guest_nodes", place.file("gate"), str(log)]
    return subprocess.Popen(command, env=environment(place.path)), log


def said(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def test_it_comes_back_to_a_project_that_is_started_again(
    place: Place, eventually: Eventually
) -> None:
    topology = kept(place)

    async def application() -> None:
        feed = Feed()
        async with asyncio.timeout(60):
            first = Supervisor(topology, watcher=Silent())
            await first.start()
            async with flowkit.attach(feed, "trial", wait=True) as attachment:
                await feed.events.deliver(1)
                first.kill()
                await first.wait()
                await first.close()
                await eventually.on_loop(lambda: not attachment.attached)
                with pytest.raises(NotRunning):
                    await feed.events.deliver(2)
                async with Supervisor(topology, watcher=Silent()):
                    await attachment.joined()
                    await feed.events.deliver(3)
            assert results(place) == [2, 6]
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(application())


def test_a_project_that_does_not_run(place: Place) -> None:
    async def application() -> None:
        with pytest.raises(NotRunning, match="not running: 'trial'"):
            async with flowkit.attach(Feed(), "trial"):
                raise AssertionError("attached")
        with pytest.raises(NotRunning, match="Feed could not be attached in 0.3 s: not running"):
            async with flowkit.attach(Feed(), "trial", wait=0.3):
                raise AssertionError("attached")
        topology = kept(place)
        waiting = flowkit.attach(feed := Feed(), topology, wait=True)
        entering = asyncio.ensure_future(waiting.__aenter__())
        async with Supervisor(topology, watcher=Silent()):
            await asyncio.wait_for(entering, 30)
            await feed.events.deliver(4)
            await waiting.__aexit__(None, None, None)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(application())


def test_places_that_there_are_not(place: Place) -> None:
    class Other(Feed):
        pass

    async def application() -> None:
        async with Supervisor(kept(place), in_process=True, watcher=Silent()) as project:
            for node, name, text in (
                (Other(), "", "no external node of class .*Other"),
                (Feed(), "fed", "no external node 'fed'.*"),
                (Feed(), "double", "no external node 'double'"),
                (Show(), "feed", "has other channels than Show"),
            ):
                with pytest.raises(RequestFailed, match=text):
                    async with flowkit.attach(node, project, name=name, wait=True):
                        raise AssertionError("attached")
            async with flowkit.attach(Feed(), project):
                with pytest.raises(RequestFailed, match=f"already, by process {os.getpid()}"):
                    async with flowkit.attach(Feed(), project):
                        raise AssertionError("attached")
                waiting = flowkit.attach(Feed(), project, wait=True)
                entering = asyncio.ensure_future(waiting.__aenter__())
                await asyncio.sleep(0)
            await asyncio.wait_for(entering, 20)
            await waiting.__aexit__(None, None, None)

    asyncio.run(application())


def test_patience_says_what_it_waited_for(place: Place) -> None:
    async def application() -> None:
        async with Supervisor(kept(place), in_process=True, watcher=Silent()) as project:
            async with flowkit.attach(Feed(), project, wait=0):
                with pytest.raises(NotRunning, match="in 0.2 s: no place of it is free"):
                    async with flowkit.attach(Feed(), project, wait=0.2):
                        raise AssertionError("attached")

    asyncio.run(application())


def test_a_node_is_attached_once(place: Place) -> None:
    """A second try is refused, and does no harm to the first."""

    async def application() -> None:
        async with Supervisor(kept(place), in_process=True, watcher=Silent()) as project:
            async with flowkit.attach(feed := Feed(), project):
                with pytest.raises(RuntimeError, match="this Feed is attached already"):
                    async with flowkit.attach(feed, project):
                        raise AssertionError("attached")
                await feed.events.deliver(4)
            with pytest.raises(NotRunning):
                await feed.events.deliver(5)
            async with flowkit.attach(feed, project):
                await feed.events.deliver(6)
        check(project.report())

    asyncio.run(application())


def test_a_node_that_fails(place: Place, eventually: Eventually) -> None:
    """At first its error leaves the block; later it is logged, and the replica comes back."""

    async def application() -> None:
        fails = Fails()
        async with Supervisor(shown(place, "Fails"), in_process=True, watcher=Silent()) as project:
            with pytest.raises(LookupError, match="the disk is gone"):
                async with flowkit.attach(fails, project):
                    raise AssertionError("attached")
            fails.broken = False
            async with flowkit.attach(fails, project) as attachment:
                await eventually.on_loop(lambda: fails.seen)
                setups = fails.setups
                replica = project._project.replicas["show", 0]
                project.guests.kill(f"show.0#{replica.incarnation}")
                await eventually.on_loop(lambda: fails.setups > setups, 20)
                await attachment.joined()
                place.touch("never")
                report = await project.drained()
        check(report)

    asyncio.run(application())


def test_operations_reach_it(place: Place, eventually: Eventually) -> None:
    async def application() -> None:
        async with Supervisor(shown(place), in_process=True, watcher=Silent()) as project:
            show = Show()
            async with flowkit.attach(show, project) as attachment:
                await eventually.on_loop(lambda: len(show.seen) > 100)
                await project.restart("show")
                await attachment.joined()
                count = len(show.seen)
                await eventually.on_loop(lambda: len(show.seen) > count)
                await project.stop_node("show")
                await eventually.on_loop(lambda: not attachment.attached)
                await project.start_node("show")
                await attachment.joined()
                place.touch("never")
                report = await project.drained()
        check(report)
        assert show.seen == list(range(len(show.seen)))

    asyncio.run(application())


def test_two_projects_and_a_node_in_one_application(place: Place) -> None:
    """They start, are drained and end, and leave nothing: no task here, and no socket, process or
    descriptor, which every test is looked through for."""

    async def application() -> None:
        feed = Feed()
        one, two = kept(place, "one"), kept(place, "two")
        async with (
            asyncio.timeout(60),
            Supervisor(one, watcher=Silent()) as first,
            Supervisor(two, watcher=Silent()) as second,
            flowkit.attach(feed, project="two"),
        ):
            assert first.status().ready and second.status().ready
            await asyncio.gather(*(feed.events.deliver(number) for number in range(200)))
        check(first.report())
        check(second.report())
        assert second.report().links[1].entry.done == 200
        assert sorted(results(place, "two")) == [2 * number for number in range(200)]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(application())
    assert not list(Path(place.file("r")).glob("*"))


def test_who_is_missed_is_named(place: Place, eventually: Eventually) -> None:
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    async def application() -> None:
        async with Supervisor(
            shown(place), in_process=True, watcher=Noting(), drain_timeout=0.1
        ) as project:
            await eventually.on_loop(lambda: project.status().verdict.kind == "absent", 20)
            verdict = project.status().verdict
            assert (verdict.bottleneck, verdict.advice) == ("show", "start its application")
            for change in (project.restart("show"), project.scale({"show": 2})):
                with pytest.raises(ChangeError, match="show.0 is not attached"):
                    await change
            assert not notes
            project.drain()
            assert notes == ["show is absent: what waits for it needs its application"]
            project.kill()

    asyncio.run(application())
