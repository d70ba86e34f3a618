"""Commits the positions of a source: to the store, and to the node if it wants to know."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from flowkit.node import Node, Source
from flowkit.runtime.spec import ReplicaSpec
from flowkit.store import Store

PAUSE = 0.1
"""Seconds between two commits: each covers all before it, so more would gain nothing."""


class Positions:
    """The positions below which everything is done, one commit after the other.

    `spawn` runs a coroutine of the replica; if it raises, the replica fails.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        node: Node,
        store: Store,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._key = (spec.node.name, spec.replica)
        self._node = node
        self._store = store
        self._spawn = spawn
        self._latest: Any = None
        self._stored: Any = None
        self._committing: asyncio.Task[None] | None = None

    def commit(self, position: Any) -> None:
        """Everything below `position` is done: commit it soon."""
        self._latest = position
        if self._committing is None:
            self._committing = self._spawn(self._commit_soon())

    async def finish(self) -> None:
        """Return when the last position is committed."""
        if self._committing is not None:
            await self._committing
        await self._write()

    async def _commit_soon(self) -> None:
        await asyncio.sleep(PAUSE)
        await self._write()
        self._committing = None
        if self._latest != self._stored:
            self.commit(self._latest)

    async def _write(self) -> None:
        position = self._latest
        if position is None or position == self._stored:
            return
        self._store.set_position(*self._key, position)
        assert isinstance(self._node, Source)
        await call(self._node.commit, position)
        self._stored = position


async def call(function: Any, *arguments: Any) -> None:
    """Call a hook that may be plain or a coroutine."""
    result = function(*arguments)
    if inspect.isawaitable(result):
        await result
