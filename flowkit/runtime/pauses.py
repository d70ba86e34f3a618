"""How long a coroutine waits for others, rather than works: seen at the futures it waits for."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

from flowkit.clock import Clock

T = TypeVar("T")


class Pauses:
    """Adds up the pauses of what it drives, in seconds by `clock`.

    A turn of the loop that is given away (``sleep(0)``) is no pause. Neither is what the coroutine
    does in tasks of its own seen; it waits for them.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ended = 0.0
        self._since: float | None = None

    def seconds(self, now: float) -> float:
        """All pauses up to `now`, that included which lasts."""
        return self._ended + (now - self._since if self._since is not None else 0.0)

    async def drive(self, work: Awaitable[T]) -> T:
        """Await `work`."""
        return await self._steps(work)

    @types.coroutine
    def _steps(self, work: Awaitable[T]) -> Generator[Any, Any, T]:
        steps = work.__await__()
        step, given = steps.send, None
        while True:
            try:
                awaited = step(given)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if awaited is not None:
                self._since = self._clock()
            try:
                given = yield awaited
                step = steps.send
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:
                step, given = steps.throw, error
            finally:
                if self._since is not None:
                    self._ended += self._clock() - self._since
                    self._since = None
