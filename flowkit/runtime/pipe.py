"""One function between two ends: what ``flowkit pipe`` runs.

No topology, no other process. A message is read only while fewer than `inflight` are under way, so
an end that takes nothing stops the reading; it is done when all that the function made of it is
written, in the order in which it was read.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flowkit.errors import OperatorError
from flowkit.runtime.ends import Drain, Tap


class ThroughError(OperatorError):
    """The function raised, or returned what is no message; the cause is kept."""

    exit_code = 3


@dataclass(slots=True)
class Count:
    """What has happened so far; figures are messages."""

    read: int = 0
    written: int = 0
    dropped: int = 0
    failed: int = 0


class Through:
    """A function as the pipe calls it.

    It takes bytes, or text if its parameter is annotated ``str``, and returns a message (bytes or
    text), a list of them, or None. It may be a coroutine function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.coroutine = inspect.iscoroutinefunction(function)
        try:
            hints = typing.get_type_hints(function)
            first = next(iter(inspect.signature(function).parameters), "")
        except (TypeError, ValueError, NameError):  # built-in functions tell nothing
            hints, first = {}, ""
        self._text = hints.get(first) is str

    def call(self, message: bytes) -> Any:
        """What the function returns for `message`: a coroutine if it is one."""
        return self._function(message.decode() if self._text else message)

    @staticmethod
    def messages(result: Any) -> list[bytes]:
        """The messages in what the function returned. Raises TypeError if it is none."""
        if result is None:
            return []
        if not isinstance(result, list | tuple):
            result = [result]
        found = []
        for one in result:
            if isinstance(one, str):
                found.append(one.encode())
            elif isinstance(one, bytes | bytearray | memoryview):
                found.append(bytes(one))
            else:
                raise TypeError(
                    f"returned {type(one).__qualname__}, not bytes, str, a list of them or None"
                )
        return found


class Pipe:
    """Moves messages from `tap` through `through` to `drain`. `on_error`: stop, or drop."""

    def __init__(
        self, tap: Tap, through: Through, drain: Drain, inflight: int, on_error: str = "stop"
    ) -> None:
        self.count = Count()
        self._tap = tap
        self._through = through
        self._drain = drain
        self._inflight = inflight
        self._drop_failed = on_error == "drop"
        self._stopping = asyncio.Event()
        self.on_failure: Callable[[bytes, BaseException], None] = lambda message, error: None

    def stop(self) -> None:
        """Read nothing more; what is under way is finished."""
        self._stopping.set()

    async def run(self) -> None:
        """Until the tap has ended, or was told to."""
        try:
            if self._through.coroutine:
                await self._side_by_side()
            else:
                await self._one_by_one()
        finally:
            await self._drain.flush()
            self._tap.commit()

    async def _one_by_one(self) -> None:
        async for batch in self._batches(lambda: self._inflight, list):
            made: list[bytes] = []
            done = 0
            try:
                for message in batch:
                    made += self._result(message, partial(self._through.call, message))
                    done += 1
            finally:  # also of a batch in which one fails, what comes before that is written
                await self._write(made, done)

    async def _side_by_side(self) -> None:
        """Several calls at once; their results leave in the order of the messages."""
        tasks: deque[tuple[bytes, asyncio.Future[Any]]] = deque()

        async def settle() -> None:
            message, task = tasks[0]
            await asyncio.wait([task])
            tasks.popleft()
            await self._write(self._result(message, task.result), 1)

        try:
            room, first = lambda: self._inflight - len(tasks), lambda: [one for _, one in tasks][:1]
            async for batch in self._batches(room, first):
                for message in batch:
                    tasks.append((message, asyncio.ensure_future(self._through.call(message))))
                await asyncio.sleep(0)
                while tasks and (tasks[0][1].done() or len(tasks) >= self._inflight):
                    await settle()
            while tasks:
                await settle()
        finally:
            for _, task in tasks:
                task.cancel()
            await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)

    async def _batches(
        self, room: Callable[[], int], first: Callable[[], Iterable[asyncio.Future[Any]]]
    ) -> AsyncIterator[list[bytes]]:
        """What the tap has, as much as there is room for; an empty batch when the call whose result
        is to leave `first` is done before there is anything."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        reading: asyncio.Future[list[bytes] | None] | None = None
        try:
            while not self._stopping.is_set():
                if reading is None:
                    reading = asyncio.ensure_future(self._tap.read(room()))
                awaited: list[asyncio.Future[Any]] = [reading, stopping, *first()]
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    if not self._stopping.is_set():
                        yield []
                    continue
                batch = reading.result()
                reading = None
                if batch is None:
                    return
                self.count.read += len(batch)
                yield batch
        finally:
            for task in (stopping, reading):
                if task is not None:
                    task.cancel()
            await asyncio.gather(stopping, *([reading] if reading else []), return_exceptions=True)

    def _result(self, message: bytes, call: Callable[[], Any]) -> list[bytes]:
        try:
            return self._through.messages(call())
        except Exception as error:
            self.count.failed += 1
            self.on_failure(message, error)
            if self._drop_failed:
                return []
            raise ThroughError(
                f"{type(error).__name__}: {error}",
                "to go on without such messages: --on-error drop",
            ) from error

    async def _write(self, made: Iterable[bytes], done: int) -> None:
        written, dropped = await self._drain.write(made)
        self.count.written += written
        self.count.dropped += dropped
        if self._tap.settle(done):
            await self._drain.flush()
            self._tap.commit()
