"""Links over tcp while the network breaks, stalls, slices and delays: nothing is lost or doubled.

Every link of a project in this process leads through a proxy; see `tests.e2e.proxy`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from flowkit import In, Many, Node, Out, Source
from flowkit.report import Report
from flowkit.runtime import runner
from tests.conftest import Eventually
from tests.e2e.proxy import Far
from tests.runtime.stage import Part, books, check, collect, link

pytestmark = pytest.mark.slow

LINKS = ["read.numbers -> work.numbers", "work.results -> sink.x"]

Harm = Callable[[Far, list[int]], Coroutine[Any, Any, None]]
"""What is done to the network while the numbers arrive in the list."""


class Read(Source):
    """0, 1, 2, ... until `enough` is set."""

    numbers = Out(int)
    enough: asyncio.Event

    async def read(self, position: Any) -> Any:
        number = position or 0
        while not self.enough.is_set():
            yield Many(range(number, number + 16)), number + 16
            number += 16
            await asyncio.sleep(0.001)


class Work(Node):
    numbers = In(int)
    results = Out(int)

    def on_numbers(self, number: int) -> None:
        self.results.send(number)


@pytest.fixture
def suffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> Any:
    """`suffer(harm)` runs a project while `harm` is done to it, then lets it end; its report and
    its stage. Each number must have arrived once."""
    monkeypatch.setenv("FLOWKIT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", str(tmp_path / "state"))

    async def whole(harm: Harm) -> tuple[Report, Far]:
        wrong: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        seen: list[int] = []
        Read.enough = asyncio.Event()
        parts: dict[str, Any] = {
            "read": Read,
            "work": Part(Work, replicas=2),
            "sink": collect(seen),
        }
        links = [link(ends, transport="tcp") for ends in LINKS]
        async with Far(tmp_path, parts, links) as far:
            await eventually.on_loop(lambda: len(seen) > 100)
            assert far.weather.lines == 4  # the proxies are on the way
            await harm(far, seen)
            Read.enough.set()
            report = await far.wait()
        assert not wrong
        assert sorted(seen) == list(range(books(report, LINKS[0]).entry.sent))
        assert not far.deaths
        return check(report), far

    return lambda harm: asyncio.run(whole(harm))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats come four times as often, so that a broken line is noticed sooner."""
    monkeypatch.setattr(runner, "TICK", 0.25)


async def more(seen: list[int], count: int = 200) -> None:
    """Wait until so many more numbers have arrived."""
    goal = len(seen) + count
    await Eventually().on_loop(lambda: len(seen) >= goal, 20)


def test_lines_are_reset(suffer: Any, soon: None) -> None:
    """New sessions; what was under way is delivered again."""

    async def harm(far: Far, seen: list[int]) -> None:
        for _ in range(3):
            before = far.weather.lines
            far.weather.reset()
            await Eventually().on_loop(lambda before=before: far.weather.lines >= before + 4)
            await more(seen)

    report, far = suffer(harm)
    assert far.weather.broken >= 3 * 8
    assert sum(books(report, ends).entry.redelivered for ends in LINKS) > 0


def test_lines_are_reset_all_the_time_until_the_end(suffer: Any, soon: None) -> None:
    """Also END and CLOSE may be lost."""

    async def harm(far: Far, seen: list[int]) -> None:
        loop = asyncio.get_running_loop()
        left = 12

        def strike() -> None:
            nonlocal left
            if left and far.weather.proxies:
                left -= 1
                far.weather.reset()
                loop.call_later(far.weather.chance.uniform(0.05, 0.4), strike)

        strike()
        await Eventually().on_loop(lambda: far.weather.broken > 8)

    _, far = suffer(harm)
    assert far.weather.broken > 8


def test_a_stall(suffer: Any) -> None:
    """For a second nothing comes through: no session ends, nothing is delivered again."""

    async def harm(far: Far, seen: list[int]) -> None:
        far.weather.stall()
        await asyncio.sleep(1.0)
        stopped = len(seen)
        await asyncio.sleep(0.2)
        assert len(seen) == stopped
        far.weather.resume()
        await more(seen)

    report, far = suffer(harm)
    assert far.weather.lines == 4
    assert sum(books(report, ends).entry.redelivered for ends in LINKS) == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_long_stall_of_one_way(suffer: Any, way: str) -> None:
    """For eight seconds consumers, or producers, hear nothing: suspect, and nothing more."""

    async def harm(far: Far, seen: list[int]) -> None:
        getattr(far.weather, way).clear()
        await asyncio.sleep(8.0)
        far.weather.resume()
        await more(seen)

    report, far = suffer(harm)
    assert far.weather.lines == 4
    assert sum(books(report, ends).entry.redelivered for ends in LINKS) == 0


@pytest.mark.parametrize("way", ["up", pytest.param("down", marks=pytest.mark.slow)])
def test_a_partition_of_one_way_that_ends_with_a_reset(suffer: Any, soon: None, way: str) -> None:
    """What was said meanwhile is lost: acknowledgements, or batches."""

    async def harm(far: Far, seen: list[int]) -> None:
        getattr(far.weather, way).clear()
        await asyncio.sleep(0.5)
        far.weather.reset()
        far.weather.resume()
        await more(seen)

    report, far = suffer(harm)
    assert far.weather.lines >= 8
    assert sum(books(report, ends).entry.redelivered for ends in LINKS) > 0


def test_bytes_come_in_slices(suffer: Any) -> None:
    async def harm(far: Far, seen: list[int]) -> None:
        far.weather.slices = 7
        pieces = far.weather.pieces
        await more(seen, 1000)
        assert far.weather.pieces > pieces + 500

    report, far = suffer(harm)
    assert far.weather.lines == 4
    assert sum(books(report, ends).entry.redelivered for ends in LINKS) == 0


def test_a_delay_of_200_ms_each_way(suffer: Any) -> None:
    async def harm(far: Far, seen: list[int]) -> None:
        far.weather.delay = 0.2
        await more(seen, 1000)

    report, far = suffer(harm)
    assert far.weather.lines == 4
    assert sum(books(report, ends).entry.redelivered for ends in LINKS) == 0


@pytest.mark.slow
def test_slices_delays_and_resets_together(suffer: Any) -> None:
    """With the heartbeats of every day."""

    async def harm(far: Far, seen: list[int]) -> None:
        far.weather.slices, far.weather.delay = 50, 0.05
        await more(seen)
        far.weather.reset()
        await more(seen)

    report, far = suffer(harm)
    assert far.weather.lines >= 8
    assert sum(books(report, ends).entry.redelivered for ends in LINKS) > 0
