"""What every `Source` must do, as tests: subclass `SourceConformance` under pytest.

::

    class TestLines(SourceConformance):
        def source(self) -> Source:
            return Lines(self.path)

`source` makes a source each time it is called, over the same data. One that has no end, or a long
way to it, says how much of it is enough with `limit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import msgspec

from flowkit.message import Many
from flowkit.node import Source
from flowkit.testing.harness import NodeHarness


class SourceConformance:
    """Positions are those of messages, survive storage, and lead to what follows them."""

    limit: int | None = None
    """Messages that are enough; None: all there are."""

    positions = 5
    """How many of the positions are gone on from."""

    def source(self) -> Source:
        """To be overridden: make a source over the data of this test."""
        raise NotImplementedError

    # -- the tests -----------------------------------------------------------------------------

    def test_it_reads_the_same_each_time(self) -> None:
        """Without that, what is read again after a death would be something else."""
        first, again = self._run(self._sent()), self._run(self._sent())
        assert first, "no messages: a source with nothing to read shows nothing"
        assert _start_alike(first, again), "two readings from the beginning differ"

    def test_every_position_is_storable(self) -> None:
        """Positions are kept as msgpack; a tuple comes back as a list."""
        for _, position in self._run(self._pairs()):
            assert position is not None, "None is the beginning, and no position after a message"
            encoded = msgspec.msgpack.encode(position)
            assert msgspec.msgpack.encode(msgspec.msgpack.decode(encoded)) == encoded

    def test_it_goes_on_after_any_position(self) -> None:
        """From the position after a message the next one follows: none is missing, none twice."""
        pairs = self._run(self._pairs())
        step = max(1, len(pairs) // self.positions)
        for at in [*range(0, len(pairs), step), len(pairs) - 1]:
            stored = msgspec.msgpack.decode(msgspec.msgpack.encode(pairs[at][1]))
            rest = [message for messages, _ in pairs[at + 1 :] for message in messages]
            if not rest and self.limit is not None:
                continue  # what follows has not been read
            sent = self._run(self._sent(stored, len(rest)))
            assert _start_alike(sent, rest), f"another stream after position {stored!r}"

    def test_it_knows_its_length(self) -> None:
        """`length` counts what `read` yields from the beginning, or is None."""
        length = self.source().length()
        if length is not None and self.limit is None:
            assert length == len(self._run(self._sent()))

    def test_a_position_may_be_committed_twice(self) -> None:
        """After a restart flowkit may commit a position that it has committed before."""

        async def test() -> None:
            for source in (self.source(), self.source()):
                harness = await NodeHarness(source).read(until=self.limit)
                if harness.position is not None:
                    await source.commit(harness.position)
                await harness.aclose()

        self._run(test())

    def test_it_can_be_ended_in_the_middle(self) -> None:
        """A drain may come at any time; what was sent by then is done."""

        async def test() -> None:
            async with NodeHarness(self.source()) as harness:
                await harness.read(until=1)
                await harness.finish()
                assert harness.ended

        self._run(test())

    # -- helpers -------------------------------------------------------------------------------

    def _run(self, test: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(test)

    async def _sent(self, position: Any = None, enough: int | None = None) -> list[Any]:
        """What arrives of a stream, through its codec."""
        until = self.limit if enough is None else enough
        async with NodeHarness(self.source()) as harness:
            await harness.read(position, until=until if self.limit is not None else None)
            (name,) = type(harness.node).__flowkit__.outputs
            sent: list[Any] = harness.sent(name)
            return sent

    async def _pairs(self) -> list[tuple[list[Any], Any]]:
        """What `read` yields: messages, and the position after them."""
        source = self.source()
        items = source.read(None)
        pairs: list[tuple[list[Any], Any]] = []
        count = 0
        try:
            setup: Any = source.setup()
            if asyncio.iscoroutine(setup):
                await setup
            async for message, position in _each(items):
                messages = list(message.messages) if isinstance(message, Many) else [message]
                pairs.append((messages, position))
                count += len(messages)
                if self.limit is not None and count >= self.limit:
                    break
        finally:
            if isinstance(items, AsyncIterator) and hasattr(items, "aclose"):
                await items.aclose()
            teardown: Any = source.teardown()
            if asyncio.iscoroutine(teardown):
                await teardown
        return pairs


async def _each(items: Any) -> AsyncIterator[tuple[Any, Any]]:
    if isinstance(items, AsyncIterator):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _start_alike(one: list[Any], other: list[Any]) -> bool:
    """Whether they are the same as far as both go: one without an end is read ahead of a bit."""
    count = min(len(one), len(other))
    return bool(one[:count] == other[:count]) and (count > 0 or not (one or other))
