"""The launcher with real processes: ends, streams, surroundings."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowkit.errors import LocalProtocolError

pytestmark = pytest.mark.e2e

Families = Callable[..., Any]
METHODS = ["fork", "spawn"]


def gone(pid: int) -> bool:
    """Whether the process is no more, or only waits for an init that takes its time."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def title(pid: int) -> str:
    """What `ps` shows: a title fills the rest of its room with NULs."""
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")


@pytest.mark.parametrize("method", METHODS)
def test_ends_are_reported_exactly(family: Families, method: str) -> None:
    expected = {
        "code 0": 0,
        "code 3": 3,
        "leave 0": 0,
        "leave 4": 4,
        "vanish 0": 0,
        "vanish 7": 7,
        "fail so it is": 1,
        "own_signal SIGKILL": -9,
        "own_signal SIGTERM": -15,
        "own_signal SIGABRT": -6,
        "segfault": -11,
    }

    async def run() -> None:
        async with family(method=method) as them:
            for spec in expected:
                them.launch(spec, spec)
            await them.ended(*expected)
            assert them.exits == {spec: (code, None) for spec, code in expected.items()}
            assert sorted(them.story) == sorted(
                (what, spec) for spec in expected for what in ("started", "exit")
            )
            assert all(
                them.story.index(("started", spec)) < them.story.index(("exit", spec))
                for spec in expected
            )
            trace = them.err["fail so it is"].decode()
            assert trace.startswith("Traceback (most recent call last):\n")
            assert trace.endswith("ValueError: so it is\n")
            assert all(not them.err[spec] for spec in expected if not spec.startswith("fail"))

    asyncio.run(run())


@pytest.mark.parametrize("method", METHODS)
def test_streams_are_complete_to_the_last_byte(family: Families, method: str) -> None:
    async def run() -> None:
        async with family(method=method) as them:
            them.launch("a", "talk 300000")
            await them.ended("a")
            assert them.out["a"] == b"talk\n" + b"o" * 300_000 + b"out!"
            assert them.err["a"] == b"e" * 300_000 + b"err!"

    asyncio.run(run())


def test_a_line_arrives_when_it_is_written(
    family: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)

    async def run() -> None:
        async with family() as them:
            them.launch("a", "linewise")
            await them.until(lambda: them.out["a"] == b"linewise\na line\n")

    asyncio.run(run())


@pytest.mark.parametrize("method", METHODS)
def test_surroundings(
    family: Families, children: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "from the supervisor")
    monkeypatch.setenv("REPLACED", "old")

    async def run() -> None:
        async with family(method=method, title="flowkit: demo") as them:
            them.launch("a", "facts INHERITED REPLACED ADDED", REPLACED="new", ADDED="too")
            await them.ended("a")
            facts = json.loads(them.out["a"].splitlines()[1])
            nursery = them.launcher.pid
        assert facts["env"] == {
            "INHERITED": "from the supervisor",
            "REPLACED": "new",
            "ADDED": "too",
        }
        assert facts["interrupt"] and facts["terminate"] and facts["blocked"] == []
        assert facts["stdin"] == "/dev/null"
        assert facts["threads"] == 1
        assert facts["main"] is None
        assert facts["path"] == str(children)
        assert facts["parent"] == nursery

    asyncio.run(run())


def test_titles(family: Families) -> None:
    async def run() -> None:
        async with family(title="flowkit: demo") as them:
            them.launch("a", "rest", title="flowkit: demo/split.0")
            await them.speaking("a")
            assert title(them.launcher.pid) == "flowkit: demo"
            assert title(them.pids["a"]) == "flowkit: demo/split.0"

    asyncio.run(run())


def test_sigint_and_sigterm_for_the_whole_group(family: Families) -> None:
    async def run() -> None:
        async with family() as them:
            them.launch("a", "rest")
            await them.speaking("a")
            os.kill(them.pids["a"], signal.SIGINT)
            os.kill(them.launcher.pid, signal.SIGINT)
            os.kill(them.launcher.pid, signal.SIGTERM)
            # Both are still there to do what they are told.
            them.launcher.kill("a", signal.SIGTERM)
            await them.ended("a")
            assert them.exits["a"] == (-signal.SIGTERM, None)

    asyncio.run(run())


def test_a_child_holds_nothing_of_its_siblings(family: Families) -> None:
    async def run() -> None:
        async with family() as them:
            them.launch("first", "facts")
            await them.ended("first")
            for number in range(10):
                them.launch(f"sibling.{number}", "rest")
            them.launch("last", "facts")
            await them.until(lambda: "last" in them.exits and them.out["last"].endswith(b"}\n"))
            first, last = (json.loads(them.out[n].splitlines()[1]) for n in ("first", "last"))
            assert len(last["descriptors"]) == len(first["descriptors"])
            assert not any("socket" in held for held in last["descriptors"])
            assert last["descriptors"].count(last["stdout"]) == 1

    asyncio.run(run())


def test_a_child_is_gone_when_it_is_gone_whatever_it_has_forked(family: Families) -> None:
    async def run() -> None:
        async with family() as them:
            them.launch("a", "orphan")
            await them.until(lambda: "a" in them.exits and them.out["a"].count(b"\n") == 2)
            grandchild = int(them.out["a"].split()[1])
            try:
                assert them.exits["a"] == (0, None)
                assert not gone(grandchild)
            finally:
                os.kill(grandchild, signal.SIGKILL)
            await them.ended("a")

    asyncio.run(run())


def test_kill_of_what_is_not_there(family: Families) -> None:
    async def run() -> None:
        async with family() as them:
            them.launcher.kill("nobody")
            them.launch("a", "code 0")
            await them.ended("a")
            them.launcher.kill("a")
            them.launch("a", "code 5")  # the name is free again
            await them.until(lambda: them.exits["a"] == (5, None))
            await them.ended("a")

    asyncio.run(run())


def test_names_are_unique_among_the_living_and_descriptors_are_given_away(
    family: Families,
) -> None:
    async def run() -> None:
        async with family() as them:
            them.launch("a", "rest")
            reader, writer = os.pipe()
            with pytest.raises(ValueError, match="still alive"):
                them.launcher.launch("a", b"rest", title="", env={}, stdout=writer, stderr=None)
            assert os.read(reader, 1) == b""
            os.close(reader)
        assert them.exits == {"a": (-signal.SIGKILL, None)}
        reader, writer = os.pipe()
        with pytest.raises(LocalProtocolError):
            them.launcher.launch("b", b"rest", title="", env={}, stdout=writer, stderr=None)
        assert os.read(reader, 1) == b""
        os.close(reader)

    asyncio.run(run())


def test_large_specs_and_many_commands_before_the_nursery_reads(family: Families) -> None:
    async def run() -> None:
        async with family() as them:
            big = "fail " + "x" * 2_000_000
            for number in range(5):
                them.launch(f"a.{number}", big)
            them.launcher.kill("a.4")  # comes after its launch, however long that takes
            await them.ended(*(f"a.{number}" for number in range(5)))
            assert [them.exits[f"a.{number}"] for number in range(4)] == [(1, None)] * 4
            assert them.err["a.0"].endswith(b"x" * 1000 + b"\n")

    asyncio.run(run())


def test_preload_is_shared_and_its_failures_are_left_to_the_children(family: Families) -> None:
    async def run() -> None:
        preload = ["missing_import", "broken", "no_such_module", "heavy"]
        async with family(preload=preload) as them:
            them.launch("a", "facts")
            await them.ended("a")
            facts = json.loads(them.out["a"].splitlines()[1])
            assert facts["seen"] == facts["parent"] == them.launcher.pid
            assert them.err["a"] == b""

    asyncio.run(run())


@pytest.mark.parametrize("entry", ["missing_import:main", "launched:nothing"])
def test_an_entry_that_cannot_be_had(family: Families, entry: str) -> None:
    async def run() -> None:
        async with family(entry=entry) as them:
            them.launch("a", "code 0")
            await them.ended("a")
            assert them.exits["a"] == (1, None)
            assert b"Traceback" in them.err["a"]

    asyncio.run(run())


def test_a_callback_that_raises_does_not_stop_the_reports(family: Families) -> None:
    async def run() -> None:
        raised: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, info: raised.append(info))
        async with family() as them:
            proper = them.launcher.on_started

            def on_started(name: str, pid: int) -> None:
                proper(name, pid)
                raise RuntimeError(name)

            them.launcher.on_started = on_started
            them.launch("a", "code 0")
            them.launch("b", "code 0")
            await them.ended("a", "b")
        assert [str(info["exception"]) for info in raised] == ["a", "b"]

    asyncio.run(run())


def test_no_more_descriptors_in_the_nursery(family: Families) -> None:
    async def run() -> None:
        async with family() as them:
            them.launch("a", "rest")
            await them.speaking("a")
            pid = them.launcher.pid
            usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, usual[1]))
            them.launch("b", "code 0")
            await them.until(lambda: "b" in them.exits)
            code, error = them.exits["b"]
            assert code == 1 and error is not None and error.startswith("cannot start: ")
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
            them.launch("c", "code 0")
            await them.until(lambda: "c" in them.exits)
            assert them.exits["c"] == (0, None)
            assert "a" not in them.exits

    asyncio.run(run())


def test_two_launchers_in_one_process(family: Families) -> None:
    async def run() -> None:
        async with family() as one, family() as other:
            one.launch("a", "rest")
            other.launch("a", "rest")
            await one.speaking("a")
            await other.speaking("a")
            os.kill(one.launcher.pid, signal.SIGKILL)
            await one.ended("a")
            other.launch("b", "code 3")
            await other.until(lambda: "b" in other.exits)
            assert other.exits == {"b": (3, None)}
            await one.close()
            other.launch("c", "code 4")
            await other.until(lambda: "c" in other.exits)

    asyncio.run(run())


def test_close_kills_and_waits_for_all(family: Families) -> None:
    async def run() -> None:
        async with family() as them:
            for spec in ("rest", "spin", "hold_gil"):
                them.launch(spec, spec)
            await them.speaking("rest", "spin", "hold_gil")
            os.kill(them.pids["rest"], signal.SIGSTOP)
            nursery = them.launcher.pid
            await asyncio.gather(them.launcher.close(), them.launcher.close())
            assert them.exits == dict.fromkeys(("rest", "spin", "hold_gil"), (-9, None))
            assert all(gone(pid) for pid in (nursery, *them.pids.values()))
            assert them.launcher.pid is None

    asyncio.run(run())


def test_a_launcher_that_was_never_started_can_be_closed(family: Families) -> None:
    async def run() -> None:
        async with family() as them:
            with pytest.raises(LocalProtocolError):
                await them.launcher.start()
        unused = type(them.launcher)(print, print)
        await unused.close()
        with pytest.raises(LocalProtocolError):
            await unused.start()

    asyncio.run(run())


def test_fifty_children_at_once(family: Families, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> float:
        async with family() as them:
            names = [f"child.{number}" for number in range(50)]
            begin = time.perf_counter()
            for name in names:
                them.launch(name, "rest")
            await them.speaking(*names)
            return time.perf_counter() - begin

    seconds = asyncio.run(run())
    with capsys.disabled():
        print(f" [50 children ran after {seconds:.3f} s]", end="")
