"""The same client on an event loop: for Tornado and asyncio applications.

::

    async with AsyncClient("clicks") as project:
        await project.scale(split=4)
        async for status in project.watch():
            print(status.verdict.advice)

It uses the loop that runs, no thread, and holds up nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from flowkit.clock import monotonic
from flowkit.control import arguments
from flowkit.control.correspondence import LOOK, PATIENCE, Correspondence, OnTold, Skipped
from flowkit.control.places import Place, Presence
from flowkit.control.records import Changed, Ended, Event, LogLine, RunRecord
from flowkit.errors import OperatorError, RequestFailed
from flowkit.protocol import requests
from flowkit.protocol.caller import Refusal, Word
from flowkit.protocol.control import Replayed
from flowkit.protocol.requests import MARK, Answered, Failed
from flowkit.status import Status
from flowkit.transport.zmq import ZmqTransport

GOODBYE = 0.1
"""Seconds that the last word may take."""

T = TypeVar("T")


class AsyncClient(Correspondence):
    """A connection to the project `project`, as `Client`; made in a running event loop. Requests
    may be under way at the same time, of several tasks."""

    def __init__(
        self, project: str | os.PathLike[str] | Place | None = None, *, patience: float = PATIENCE
    ) -> None:
        super().__init__(project, patience)
        self._loop = asyncio.get_running_loop()
        self._words: dict[int, asyncio.Queue[Word]] = {}
        self._refused: RequestFailed | None = None
        self._silence = 0.0
        self._transport = ZmqTransport(self.place.directory.path)
        self._connection = self._transport.connect(self._address, self._heard)
        self._looking: asyncio.TimerHandle | None = None

    # -- looking -------------------------------------------------------------------------------

    async def info(self) -> RunRecord:
        """Which run this is."""
        return await self._ask("info", arguments.Nothing(), RunRecord)

    async def status(self) -> Status:
        """How every replica and every link is; what `flowkit ps` shows."""
        return await self._ask("status", arguments.Nothing(), Status)

    async def wait_until_ready(self) -> RunRecord:
        """Wait until all replicas are ready."""
        return await self._ask("ready", arguments.Nothing(), RunRecord)

    async def watch(self, every: float = 1.0) -> AsyncIterator[Status]:
        """How things are every `every` seconds, until the project ends."""
        async for item in self.stream("watch", arguments.Watch(every), Status):
            if isinstance(item, Status):
                yield item

    def logs(self, *names: str, depth: int = 1000) -> AsyncIterator[LogLine | Skipped]:
        """Lines that are printed from now on, of these nodes or replicas if any are named, until
        the project ends."""
        return self.stream("logs", arguments.Stream(depth, list(names)), LogLine)

    def events(self, depth: int = 1000) -> AsyncIterator[Event | Skipped]:
        """What happens from now on, until the project ends."""
        return self.stream("events", arguments.Stream(depth), Event)

    def tap(self, node: str, channel: str, depth: int = 100) -> AsyncIterator[Any]:
        """Messages that pass a channel, decoded, until the project ends."""
        return self.stream("tap", arguments.Tap(node, channel, depth), Any)

    # -- changing ------------------------------------------------------------------------------

    async def scale(
        self,
        replicas: dict[str, int] | None = None,
        *,
        lose_state: bool = False,
        tell: OnTold | None = None,
        **more: int,
    ) -> Changed:
        """Give nodes another number of replicas: ``scale(split=4)``, ``scale({"split": 4})``."""
        wanted = arguments.Scale({**(replicas or {}), **more}, lose_state)
        return await self._ask("scale", wanted, Changed, tell)

    async def restart(
        self, node: str, replica: int | None = None, *, tell: OnTold | None = None
    ) -> Changed:
        """Restart the replicas of a node one after the other, or one of them."""
        return await self._ask("restart", arguments.Restart(node, replica), Changed, tell)

    async def stop(self, node: str, *, tell: OnTold | None = None) -> Changed:
        """Stop a node, and leave it so."""
        return await self._ask("stop", arguments.OfNode(node), Changed, tell)

    async def start(self, node: str, *, tell: OnTold | None = None) -> Changed:
        """Start a node that was stopped."""
        return await self._ask("start", arguments.OfNode(node), Changed, tell)

    async def reload(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        dry: bool = False,
        lose_state: bool = False,
        tell: OnTold | None = None,
    ) -> Changed:
        """Make the running project what its file, or `file`, says now; with `dry` only say how."""
        wanted = arguments.Reload(self._file(file), dry, lose_state)
        return await self._ask("reload", wanted, Changed, tell)

    async def set_level(self, node: str, level: str, replica: int | None = None) -> Changed:
        """Set the level of a node's log, or of one replica's: "DEBUG", "WARNING" ..."""
        return await self._ask("level", arguments.Level(node, level, replica), Changed)

    async def replay(self, numbers: Sequence[int]) -> AsyncIterator[Replayed]:
        """Try dead letters again; yields what became of each, as it is known."""
        async for item in self.stream("replay", arguments.Replay(list(numbers)), Replayed):
            if isinstance(item, Replayed):
                yield item

    async def down(
        self, timeout: float = 60.0, *, kill: bool = False, tell: OnTold | None = None
    ) -> dict[str, Any]:
        """Drain the project, for at most `timeout` seconds, or end it at once; returns the report
        of the run once its process has gone, if that is another one."""
        process = Presence(self.place)
        report = (await self._ask("down", arguments.Down(timeout, kill), Ended, tell)).report
        until = self._loop.time() + self._patience
        while process and self._loop.time() < until:
            await asyncio.sleep(0.02)  # nothing tells when somebody else's process ends
        return report

    # -- attaching: see `flowkit.attaching` -----------------------------------------------------

    def attach(self, wanted: arguments.Attach) -> AsyncGenerator[bytes | Skipped, None]:
        """Ask for a place: yields the spec of the replica, and ends when it is to leave."""
        return self.stream("attach", wanted, bytes)

    async def detach(self, wanted: arguments.Detach) -> bool:
        """Let a replica leave that was attached; see `Guests.detach`."""
        return await self._ask("detach", wanted, bool)

    # -- life ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the session. Twice is fine."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._caller.leave(monotonic())
        self._send()
        # The last word takes no time, unless the supervisor is stopped.
        self._transport.close(GOODBYE)
        self._transport.join()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # -- what all commands share ---------------------------------------------------------------

    async def stream(
        self, verb: str, wanted: msgspec.Struct, kind: type[T]
    ) -> AsyncGenerator[T | Skipped, None]:
        """What a command yields, and where something was left out."""
        id, words = self._begin(verb, wanted)
        try:
            while True:
                word = await words.get()
                for item in self._items(word, kind):
                    yield item
                if isinstance(word, Answered):
                    return
        finally:
            self._forget(id)

    async def _ask(
        self, verb: str, wanted: msgspec.Struct, kind: type[T], tell: OnTold | None = None
    ) -> T:
        id, words = self._begin(verb, wanted)
        try:
            while True:
                word = await words.get()
                if isinstance(word, Answered):
                    return requests.unpack(word.result, kind)
                self._hear(word, tell)
        finally:
            self._forget(id)

    def _begin(self, verb: str, wanted: msgspec.Struct) -> tuple[int, asyncio.Queue[Word]]:
        if self._refused is not None:
            raise self._refused
        id = self._caller.ask(verb, wanted, monotonic())
        self._send()
        if self._looking is None:
            self._silence = 0.0
            self._looking = self._loop.call_later(LOOK, self._look)
        # Not bounded: what is in it was sent under the window of the session, and a word is only
        # taken from the socket while the loop turns, which is when it is taken from here too.
        self._words[id] = asyncio.Queue()
        return id, self._words[id]

    def _forget(self, id: int) -> None:
        self._words.pop(id, None)
        self._caller.cancel(id, monotonic())
        self._send()

    def _heard(self, parts: list[bytes]) -> None:
        self._silence = 0.0
        for word in self._caller.received(parts[0], monotonic()):
            if isinstance(word, Refusal):
                self._refused = self._refusal(word)
                self._keep(self._caller.lost(word.code, str(self._refused)))
            else:
                self._keep([word])
        self._send()

    def _look(self) -> None:
        """While something is under way: keep the session alive, and see whether somebody is."""
        self._looking = None
        if not self._words:
            return
        self._looking = self._loop.call_later(LOOK, self._look)
        self._silence += LOOK
        if not self._is_there():
            self._keep(self._caller.lost(requests.ENDED, str(self._gone())))
        elif self._silence >= self._patience:
            self._keep(self._caller.lost(requests.SILENT, str(self._silent(self._silence))))
        self._caller.tick(monotonic())
        self._send()

    def _keep(self, words: Sequence[Word]) -> None:
        for word in words:
            if word.id in self._words:
                self._words[word.id].put_nowait(word)

    def _send(self) -> None:
        while self._caller.outgoing:
            self._connection.send([MARK, self._caller.outgoing.popleft()])

    def _failure(self, word: Failed) -> OperatorError:
        if word.code == requests.SILENT:
            return self._silent(self._silence)
        return super()._failure(word)
