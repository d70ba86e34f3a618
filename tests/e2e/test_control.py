"""Clients of a running project: many at once, some that fail, some that should not be there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from flowkit import AsyncClient, Client
from flowkit.control import arguments
from flowkit.control.places import CONTACT
from flowkit.control.records import Event, LogLine
from flowkit.errors import NotRunning, OperatorError, RequestFailed
from flowkit.protocol import requests, session
from flowkit.protocol.requests import MARK
from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Deadline, Eventually
from tests.e2e.harness import Place, Run, environment, link, node

OWN = "tests.e2e.operated_nodes:"
eventually = Eventually()


@pytest.fixture(autouse=True)
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)


def chatty(place: Place, project: str = "trial", folder: str = "", **settings: Any) -> Path:
    facts = {"until": place.file("stop"), "burst": 1, **settings}
    return place.topology(
        {
            "talk": {**node("", settings=facts), "use": OWN + "Chatter"},
            "judge": {**node(""), "use": OWN + "Critic"},
        },
        [link("talk.numbers -> judge.numbers")],
        project=project,
        folder=folder,
    )


def up(place: Place, **settings: Any) -> Run:
    run = place.up(chatty(place, **settings), "--no-http")
    run.ready()
    return run


def end(place: Place, run: Run) -> None:
    place.touch("stop")
    run.wait().check_drained()


def command(place: Place, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "flowkit", *arguments]


def flowkit(place: Place, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(place, *arguments),
        cwd=place.path,
        env=environment(place.path, **env),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    return done


# ---------------------------------------------------------------------------- asking


def test_what_a_client_can_ask(place: Place) -> None:
    run = up(place)
    with Client("trial") as project:
        info = project.info()
        assert (info.project, info.state, info.pid) == ("trial", "running", run.process.pid)
        status = project.status()
        assert [each.name for each in status.replicas] == ["talk.0", "judge.0"]
        assert project.wait_until_ready().state == "running"
        figures = project.watch(every=0.1)
        assert next(figures).project == next(figures).project == "trial"
        figures.close()  # type: ignore[attr-defined]
        lines = project.logs("talk")
        first, second = next(lines), next(lines)
        assert isinstance(first, LogLine) and isinstance(second, LogLine)
        assert first.replica == "talk.0" and first.text.startswith("line ")
        assert int(second.text.split()[1]) == int(first.text.split()[1]) + 1
    end(place, run)


def test_what_cannot_be_asked(place: Place) -> None:
    run = up(place)
    with Client("trial") as project:
        for verb, wanted, code in [
            ("scail", arguments.Nothing(), requests.UNKNOWN_VERB),
            ("scale", arguments.OfNode("talk"), requests.BAD_ARGUMENTS),
            ("stop", arguments.OfNode("tolk"), requests.NO_SUCH),
            ("tap", arguments.Tap("tolk", "numbers"), requests.NO_SUCH),
        ]:
            with pytest.raises(RequestFailed) as failed:
                project._ask(verb, wanted, object)
            assert failed.value.code == code, failed.value
            assert failed.value.exit_code == (2 if code == requests.NO_SUCH else 7)
        assert "did you mean 'talk'?" in failed.value.hint
        assert project.status().project == "trial", "nothing is the worse for it"
    end(place, run)


def test_by_name_file_and_directory(place: Place) -> None:
    one, two = chatty(place, folder="one"), chatty(place, folder="two")
    runs = [place.up(file, "--no-http") for file in (one, two)]
    for run in runs:
        run.ready()
    with pytest.raises(OperatorError, match="2 projects 'trial'.*one/trial.yaml.*two/trial.yaml"):
        Client("trial")
    with pytest.raises(OperatorError, match="2 projects run in this directory"):
        Client()
    for file, run in zip((one, two), runs, strict=True):
        with Client(file) as project:
            assert project.info().pid == run.process.pid
    os.chdir(one.parent)
    with Client() as project:
        assert project.info().file == str(one)
    file.write_text("it need not be right any more")
    with Client("../two/trial.yaml") as project:
        assert project.info().file == str(two)
    place.touch("stop")
    for run in runs:
        assert run.wait().code == 0


def test_the_token_is_needed(place: Place) -> None:
    run = up(place)
    assert run.directory is not None
    contact = run.directory / CONTACT
    assert contact.stat().st_mode & 0o777 == 0o600
    assert run.directory.stat().st_mode & 0o777 == 0o700
    facts = json.loads(contact.read_text())
    right = facts["token"]
    facts["token"] = "0" * len(right)
    contact.write_text(json.dumps(facts))
    with Client("trial") as project, pytest.raises(RequestFailed) as refused:
        project.down()
    assert refused.value.code == requests.UNAUTHORISED
    facts["token"] = right
    contact.write_text(json.dumps(facts))
    with Client("trial") as project:
        assert project.info().state == "running"
    end(place, run)


def test_garbage_on_the_socket(place: Place) -> None:
    run = up(place)
    assert run.directory is not None
    address = json.loads((run.directory / CONTACT).read_text())["address"]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    for parts in (
        [b""],
        [MARK],
        [MARK, b""],
        [MARK, b"\xc1" * 100],
        [MARK, b"x", b"y"],
        [b"GET / HTTP/1.1\r\n"],
        [MARK, msgspec.msgpack.encode({"type": "Hello", "token": 1})],
        [MARK, b"\x00" * (requests.LIMIT + 1)],
    ):
        socket.send_multipart(parts)
    socket.send_multipart([MARK, requests.encode(requests.Ask(1, "down"))])
    assert socket.poll(10_000)
    refused = requests.to_client(socket.recv())
    assert isinstance(refused, requests.Refused) and refused.code == requests.NO_SESSION
    # A part that is larger than anything sensible costs the sender its line, and nobody memory.
    before = psutil.Process(run.process.pid).memory_info().rss
    socket.send_multipart([MARK, bytes(200 << 20)])
    with Client("trial") as project:
        assert project.info().state == "running"
    assert psutil.Process(run.process.pid).memory_info().rss - before < 50 << 20
    socket.close(0)
    context.term()
    end(place, run)


# ---------------------------------------------------------------------------- many


class Follower:
    """A `flowkit logs -f` whose output goes into a file."""

    def __init__(self, place: Place, *options: str) -> None:
        self.path = place.path / "followed"
        with open(self.path, "wb") as out:
            self.process = subprocess.Popen(
                command(place, "logs", "-f", *options),
                cwd=place.path,
                env=environment(place.path),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def follow(place: Place) -> Iterator[Callable[..., Follower]]:
    followers: list[Follower] = []

    def follow(*options: str) -> Follower:
        followers.append(Follower(place, *options))
        return followers[-1]

    yield follow
    for follower in followers:
        follower.end()


def test_fifty_clients_and_one_that_is_stopped(
    place: Place, follow: Callable[..., Follower]
) -> None:
    """It holds up nobody, costs the supervisor no memory, and is told what it has missed."""
    run = up(place, burst=100, padding=200)  # some two megabytes a second
    follower = follow("talk")
    eventually(lambda: len(follower.lines) > 1000, 60)
    os.killpg(follower.process.pid, signal.SIGSTOP)
    supervisor = psutil.Process(run.process.pid)

    async def ask(number: int) -> float:
        loop = asyncio.get_running_loop()
        longest = 0.0
        async with AsyncClient("trial") as project:
            for _ in range(5):
                began = loop.time()
                status = await project.status()
                assert status.project == "trial"
                longest = max(longest, loop.time() - began)
        return longest

    async def all_ask() -> list[float]:
        async with asyncio.timeout(60):
            return await asyncio.gather(*(ask(number) for number in range(49)))

    longest = asyncio.run(all_ask())
    assert len(longest) == 49
    # As long as they need on a busy machine, and not what a client that waits for another needs.
    assert max(longest) < 20
    # By now the window of the stopped one is full: from here on nothing may grow.
    before = supervisor.memory_info().rss
    with Client("trial") as project:
        printed = sum(1 for _, line in zip(range(10_000), project.logs("talk"), strict=False))
    assert printed == 10_000
    grown = supervisor.memory_info().rss - before
    assert grown < 4 * session.QUEUE_BYTES, f"{grown:,} bytes"
    os.killpg(follower.process.pid, signal.SIGCONT)
    eventually(lambda: any("were skipped" in line for line in follower.lines), 60)
    place.touch("stop")
    run.wait().check_drained()
    # The supervisor does not wait long for one that is behind; it says so then.
    assert follower.process.wait(60) in (0, 6)
    numbers = []
    skipped = 0
    for line in follower.lines:
        if " lines were skipped" in line:
            skipped += int(line.split()[1].replace(",", ""))
        else:
            numbers.append(int(line.split()[3].rstrip(".")))
    assert numbers == sorted(set(numbers))
    assert len(numbers) + skipped == numbers[-1] + 1, "it knows how many it has missed"


def test_two_that_wait_for_different_things(place: Place) -> None:
    """A long request holds up neither others, nor others of the same client."""
    run = up(place)

    async def both() -> None:
        async with asyncio.timeout(60), AsyncClient("trial") as one, AsyncClient("trial") as two:
            events = one.events()
            waiting = asyncio.ensure_future(anext(events))
            for client in (one, two):
                for _ in range(10):
                    assert (await client.info()).state == "running"
            assert not waiting.done()
            down = asyncio.ensure_future(two.down(30))
            event = await waiting
            assert isinstance(event, Event) and event.event == "draining"
            names = [event.event async for event in events if isinstance(event, Event)]
            assert names[-1] == "ended"
            report = await down
            assert (report["status"], report["exit"]) == ("drained", 0)

    asyncio.run(both())
    assert run.wait().code == 0


def test_a_client_learns_that_the_project_has_gone(place: Place) -> None:
    run = up(place, hush=place.file("hush"))
    place.touch("hush")
    with Client("trial") as project:
        lines = project.logs("judge")
        # It begins to wait, and the project is killed without a word.
        project.before_waiting = run.process.kill
        with pytest.raises(NotRunning):
            next(lines)
    run.process.wait()
    with pytest.raises(NotRunning, match="not running: 'trial'"):
        Client("trial")
    fresh = place.up(chatty(place), "--no-http", "--fresh")
    fresh.ready()
    end(place, fresh)


def test_a_project_that_is_stopped(place: Place) -> None:
    """No sign of life is told as what it is."""
    run = up(place)
    os.kill(run.process.pid, signal.SIGSTOP)
    with Client("trial", patience=1.0) as project, pytest.raises(OperatorError) as silent:
        project.status()
    assert "no sign of life" in str(silent.value)
    os.kill(run.process.pid, signal.SIGCONT)
    with Client("trial") as project:
        assert project.status().project == "trial"
    end(place, run)


# ---------------------------------------------------------------------------- in one's own process


def test_the_supervisor_in_an_application(place: Place) -> None:
    """Also with all replicas in one process, which have no sockets of their own."""

    async def application(in_process: bool) -> None:
        async with asyncio.timeout(60):
            supervisor = Supervisor(chatty(place), in_process=in_process, watcher=Silent())
            async with supervisor:
                async with AsyncClient("trial") as project:
                    await project.wait_until_ready()
                    assert (await project.info()).pid == os.getpid()
                    down = asyncio.ensure_future(project.down(30))
                    report = await supervisor.wait()
                    assert report.exit == 0
                    # Closing tells it to those who wait for it.
                    await supervisor.close()
                    assert (await down)["exit"] == 0

    for in_process in (False, True):
        asyncio.run(application(in_process))


def test_sessions_end_with_the_supervisor(place: Place) -> None:
    """Who waits for something else is told that the project has ended."""

    async def application() -> None:
        async with asyncio.timeout(60):
            async with Supervisor(chatty(place), watcher=Silent()) as supervisor:
                async with AsyncClient("trial") as project:
                    await project.wait_until_ready()
                    lines = project.logs("nobody")
                    waiting = asyncio.ensure_future(anext(lines))
                    await project.info()
                    supervisor.kill()
                    await supervisor.wait()
                    await supervisor.close()
                    with pytest.raises(StopAsyncIteration):
                        await waiting

    asyncio.run(application())


def test_a_stopped_client_does_not_hold_up_the_end(
    place: Place, follow: Callable[..., Follower]
) -> None:
    run = up(place, burst=100, padding=200)
    follower = follow("talk")
    eventually(lambda: len(follower.lines) > 100, 60)
    os.killpg(follower.process.pid, signal.SIGSTOP)
    run.until(lambda: run.out.count("line ") > 50_000 // 2)
    deadline = Deadline(20)
    done = flowkit(place, "down", "trial")
    assert done.returncode == 0 and "nothing lost" in done.stdout, done.stderr
    assert not deadline.passed
    assert run.wait().code == 0
