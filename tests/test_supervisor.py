"""The supervisor inside an application: it shares the loop, and leaves the process as it was."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from flowkit.errors import AlreadyRunning, DirtyStop, RunDirectoryError, TopologyError
from flowkit.protocol.project import Died, Status
from flowkit.report import Report
from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Eventually
from tests.e2e.harness import Place, alive, children_of, link, node, title_of

pytestmark = pytest.mark.e2e


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)
    yield place
    place.close()


@pytest.fixture(autouse=True)
def nothing_installed() -> Iterator[None]:
    """Signal handlers, logging and the environment are the application's."""
    before = _installed()
    yield
    assert _installed() == before


def _installed() -> Any:
    # The alarm is what ends a test that hangs.
    numbers = signal.valid_signals() - {signal.SIGALRM}
    handlers = {number: signal.getsignal(number) for number in numbers}
    loggers = [logging.getLogger(), logging.getLogger("flowkit"), logging.getLogger("tornado")]
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    return handlers, [list(logger.handlers) for logger in loggers], environment, os.getcwd()


def chain(place: Place, count: int = 1000, until: str = "", project: str = "trial") -> Path:
    until = place.file(until) if until else ""
    return place.topology(
        {
            "read": node("Numbers", settings={"count": count, "until": until, "known": True}),
            "work": node("Work", replicas=2, restart={"backoff": "10ms"}),
            "tally": node("Tally", settings={"path": place.file(f"tally-{project}")}),
        },
        [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")],
        project=project,
    )


def blocked(place: Place) -> Path:
    """Nothing ever gets through."""
    return place.topology(
        {
            "read": node("Numbers", settings={"count": 1000}),
            "gate": node("Gate", settings={"gate": place.file("gate")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> gate.numbers"), link("gate.results -> tally.numbers")],
    )


class Notes(Silent):
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.starts: list[float] = []
        self.deaths: list[tuple[str, int, int | None]] = []
        self.drains: list[int] = []

    def output(self, replica: str, line: bytes) -> None:
        self.lines.append((replica, line))

    def ready(self, seconds: float) -> None:
        self.starts.append(seconds)

    def died(self, event: Died, budget: int | None) -> None:
        self.deaths.append((event.replica.name, event.code, budget))

    def draining(self, in_flight: int) -> None:
        self.drains.append(in_flight)


async def run(topology: Path, **options: Any) -> Report:
    async with asyncio.timeout(60), Supervisor(topology, **options) as project:
        return await project.wait()


def check(report: Report, count: int) -> None:
    assert (report.status, report.exit) == (Status.DRAINED, 0)
    for entry in report.links:
        assert (entry.entry.sent, entry.entry.done) == (count, count)


# ---------------------------------------------------------------------------- as part of a program


def test_on_a_loop_that_runs_already(place: Place) -> None:
    notes = Notes()

    async def application() -> Report:
        return await run(chain(place), watcher=notes)

    check(asyncio.run(application()), 1000)
    place.check_exact(1000, "tally-trial")
    assert len(notes.starts) == 1 and notes.starts[0] > 0
    assert ("read.0", b"has read all") in notes.lines
    assert not notes.deaths and not notes.drains


def test_on_the_loop_of_tornado(place: Place) -> None:
    async def application() -> Report:
        assert IOLoop.current().asyncio_loop is asyncio.get_running_loop()  # type: ignore[attr-defined]
        return await run(chain(place))

    loop = IOLoop(make_current=False)
    try:
        check(loop.run_sync(application), 1000)
    finally:
        loop.close()


def test_two_at_once_on_one_loop(place: Place) -> None:
    async def application() -> list[Report]:
        names = ("one", "two")
        return await asyncio.gather(*(run(chain(place, project=name)) for name in names))

    for report in asyncio.run(application()):
        check(report, 1000)
    for name in ("one", "two"):
        place.check_exact(1000, f"tally-{name}")


def test_two_at_once_on_loops_of_their_own(place: Place) -> None:
    """Also off the main thread, where no signal handler could be installed."""
    reports: dict[str, Report] = {}

    def application(name: str) -> None:
        reports[name] = asyncio.run(run(chain(place, project=name)))

    threads = [threading.Thread(target=application, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name in ("one", "two"):
        check(reports[name], 1000)
        place.check_exact(1000, f"tally-{name}")


def test_the_same_project_twice(place: Place) -> None:
    """The second one is refused, and does the first no harm."""
    topology = chain(place, until="stop")

    async def application() -> Report:
        async with Supervisor(topology) as first:
            with pytest.raises(AlreadyRunning) as refused:
                async with Supervisor(topology):
                    raise AssertionError("started")
            assert refused.value.pid == os.getpid()
            place.touch("stop")
            return await first.wait()

    assert asyncio.run(application()).exit == 0


def test_one_after_the_other_on_one_loop(place: Place) -> None:
    async def application() -> None:
        for _ in range(2):
            check(await run(chain(place)), 1000)

    asyncio.run(application())


# ---------------------------------------------------------------------------- ways to run


def test_spawned_processes(place: Place) -> None:
    check(asyncio.run(run(chain(place), method="spawn")), 1000)
    place.check_exact(1000, "tally-trial")


def test_in_process(place: Place) -> None:
    async def application() -> Report:
        async with Supervisor(chain(place, until="stop"), in_process=True) as project:
            assert set(project.pids.values()) == {os.getpid()}
            assert not children_of(os.getpid())
            place.touch("stop")
            return await project.wait()

    report = asyncio.run(application())
    assert report.exit == 0
    place.check_exact(report.links[0].entry.sent, "tally-trial")


def test_a_plan_instead_of_a_path(place: Place) -> None:
    plan = Supervisor(chain(place)).plan
    assert [entry.name for entry in plan.nodes] == ["read", "work", "tally"]

    async def application() -> Report:
        async with Supervisor(plan) as project:
            return await project.wait()

    check(asyncio.run(application()), 1000)


# ---------------------------------------------------------------------------- while it runs


def test_what_can_be_seen(place: Place, eventually: Eventually) -> None:
    async def application() -> None:
        notes = Notes()
        async with Supervisor(chain(place, until="stop"), watcher=notes) as project:
            await eventually.on_loop(lambda: notes.starts)
            assert set(project.pids) == {"read.0", "work.0", "work.1", "tally.0"}
            for name, pid in project.pids.items():
                assert title_of(pid) == f"flowkit: trial/{name}"
            await eventually.on_loop(lambda: project.progress()[0] > 1000)
            assert project.progress()[1] == 1000
            live = project.report()
            assert live.status is Status.RUNNING and live.balanced
            assert live.links[0].entry.sent > 1000

            killed = project.pids["work.1"]
            os.kill(killed, signal.SIGKILL)
            await eventually.on_loop(lambda: project.pids.get("work.1", killed) != killed)
            assert notes.deaths == [("work.1", -signal.SIGKILL, 5)]

            project.drain()
            project.drain()  # nothing more
            report = await project.wait()
            assert len(notes.drains) == 1
            assert (report.status, report.exit) == (Status.DRAINED, 0)
            place.check_exact(report.links[0].entry.sent, "tally-trial")
            project.drain()
            project.kill()  # too late, for both
            assert (await project.wait()).exit == 0

    asyncio.run(application())


def test_killing(place: Place, eventually: Eventually) -> None:
    async def application() -> Report:
        async with Supervisor(blocked(place)) as project:
            await eventually.on_loop(lambda: project.report().in_flight > 10)
            project.kill()
            return await project.wait()

    report = asyncio.run(application())
    assert (report.status, report.exit) == (Status.KILLED, 130)
    assert report.in_flight > 10


def test_a_drain_has_a_limit(place: Place, eventually: Eventually) -> None:
    async def application() -> Report:
        async with Supervisor(blocked(place)) as project:
            await eventually.on_loop(lambda: project.report().in_flight > 10)
            project.drain(0.05)
            return await project.wait()

    report = asyncio.run(application())
    assert (report.status, report.exit) == (Status.TIMED_OUT, 5)
    assert report.in_flight > 10


# ---------------------------------------------------------------------------- leaving early


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
def test_leaving_the_block_ends_everything(
    place: Place, eventually: Eventually, in_process: bool
) -> None:
    async def application() -> None:
        pids: list[int] = []
        with pytest.raises(KeyError, match="mine"):
            async with Supervisor(chain(place, until="stop"), in_process=in_process) as project:
                await eventually.on_loop(lambda: project.progress()[0] > 100)
                pids.extend(project.pids.values())
                raise KeyError("mine")
        assert len(pids) == 4
        if not in_process:
            assert not any(alive(pid) for pid in pids)
        await project.close()  # once more is fine

    asyncio.run(application())


def test_cancelling(place: Place, eventually: Eventually) -> None:
    async def application() -> None:
        notes = Notes()
        task = asyncio.create_task(run(chain(place, until="stop"), watcher=notes))
        await eventually.on_loop(lambda: notes.starts)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(application())


def test_cancelling_while_it_starts(place: Place) -> None:
    async def application() -> None:
        topology = chain(place)
        supervisor = Supervisor(topology)
        starting = asyncio.create_task(supervisor.start())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await supervisor.close()
        check(await run(topology), 1000)

    asyncio.run(application())


def test_one_that_is_never_started(place: Place) -> None:
    async def application() -> None:
        await Supervisor(chain(place)).close()

    asyncio.run(application())


# ---------------------------------------------------------------------------- what may be wrong


def test_a_wrong_topology(place: Place) -> None:
    topology = place.topology({"read": node("Nobody")}, [])
    with pytest.raises(TopologyError) as raised:
        Supervisor(topology)
    assert "Nobody" in str(raised.value)


def test_a_run_directory_that_is_not_private(place: Place) -> None:
    topology = chain(place)
    (place.path / "r").mkdir(mode=0o777)
    (place.path / "r").chmod(0o777)
    with pytest.raises(RunDirectoryError, match="open to others"):
        asyncio.run(run(topology))
    (place.path / "r").chmod(0o700)
    check(asyncio.run(run(topology)), 1000)


def test_positions_that_were_left(place: Place, eventually: Eventually) -> None:
    """They are neither used nor thrown away without a word."""
    topology = place.topology(
        {
            "read": node("Held", settings={"count": 2000, "until": place.file("stop")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> tally.numbers")],
    )

    async def left() -> int:
        async with Supervisor(topology) as project:
            await eventually.on_loop(place.position)
            project.kill()
            await project.wait()
            return int(place.position())

    position = asyncio.run(left())
    for _ in range(2):
        with pytest.raises(DirtyStop) as raised:
            asyncio.run(run(topology))
        assert "--resume" in raised.value.hint and "--fresh" in raised.value.hint
    place.touch("stop")
    notes = Notes()
    report = asyncio.run(run(topology, resume=True, watcher=notes))
    assert report.exit == 0
    starts = [line for name, line in notes.lines if line.startswith(b"reads from")]
    assert starts == [b"reads from %d" % position]
    assert report.links[0].entry.sent == 2000 - position


def test_a_replica_that_speaks_nonsense_to_the_supervisor(place: Place) -> None:
    """Bytes on the control socket that are no message have no effect."""
    import zmq

    async def application() -> Report:
        async with Supervisor(chain(place, until="stop")) as project:
            (control,) = (place.path / "r").glob("*/control*")
            context = zmq.Context()
            socket = context.socket(zmq.DEALER)
            socket.linger = 1000
            socket.connect(f"ipc://{control}")
            for parts in ([b""], [b"GET / HTTP/1.1"], [b"\xc1" * 100], [b"a", b"b", b"c"]):
                socket.send_multipart(parts)
            await asyncio.to_thread(socket.close)
            await asyncio.to_thread(context.term)  # when all is sent
            place.touch("stop")
            return await project.wait()

    assert asyncio.run(application()).exit == 0
