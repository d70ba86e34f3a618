"""What of a coroutine's time is waiting, and what is work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flowkit.runtime.pauses import Pauses


class Time:
    """A clock that goes on when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def wait(self, seconds: float) -> None:
        """Wait for somebody else who needs so long."""
        other: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answer() -> None:
            self.now += seconds
            other.set_result(None)

        asyncio.get_running_loop().call_soon(answer)
        await other


def paused(work: Callable[[Time], Awaitable[Any]]) -> float:
    time = Time()

    async def main() -> float:
        pauses = Pauses(time)
        assert await pauses.drive(work(time)) == "done"
        return pauses.seconds(time.now + 100)

    return asyncio.run(main())


async def _works(time: Time) -> str:
    time.now += 7
    await asyncio.sleep(0)
    time.now += 7
    return "done"


async def _waits(time: Time) -> str:
    time.now += 7
    await time.wait(2)
    time.now += 7
    await time.wait(3)
    return "done"


async def _waits_deep_inside(time: Time) -> str:
    async def numbers() -> Any:
        for seconds in (1, 2):
            await time.wait(seconds)
            yield seconds

    async for _ in numbers():
        time.now += 7
    return "done"


async def _survives_a_failure(time: Time) -> str:
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(failed.set_exception, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await failed
    await time.wait(4)
    return "done"


@pytest.mark.parametrize(
    ("work", "seconds"),
    [(_works, 0), (_waits, 5), (_waits_deep_inside, 3), (_survives_a_failure, 4)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_only_waiting_counts(work: Callable[[Time], Awaitable[Any]], seconds: float) -> None:
    assert paused(work) == seconds


def test_a_pause_counts_while_it_lasts_and_can_be_cancelled() -> None:
    time = Time()
    ended = []

    async def sleeps() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(time.now)

    async def main() -> None:
        pauses = Pauses(time)
        task = asyncio.create_task(pauses.drive(sleeps()))
        await asyncio.sleep(0)
        assert pauses.seconds(5.0) == 5.0
        time.now = 8.0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [8.0] and pauses.seconds(20.0) == 8.0

    asyncio.run(main())
