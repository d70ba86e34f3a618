"""What every `Sink` must do, as tests: subclass `SinkConformance` under pytest.

::

    class TestTable(SinkConformance):
        def sink(self) -> Sink:
            return Table(self.path)

        def stored(self) -> list[Any]:
            return rows_of(self.path)

`sink` makes a sink each time it is called, for the same place outside, and `stored` tells what is
there. `messages` are what the tests feed; each must be told from the others in what is stored.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flowkit.node import Sink
from flowkit.testing.harness import NodeHarness


class SinkConformance:
    """What is acknowledged is stored; what is delivered again is stored, and once if it can be."""

    messages: Sequence[Any] = ()
    """To be overridden: at least two different messages."""

    idempotent = True
    """Whether a message that is delivered again, under the same id, has one effect only."""

    def sink(self) -> Sink:
        """To be overridden: make a sink."""
        raise NotImplementedError

    def stored(self) -> list[Any]:
        """To be overridden: what is stored outside, as messages, in any order."""
        raise NotImplementedError

    # -- the tests -----------------------------------------------------------------------------

    def test_what_is_acknowledged_is_stored(self) -> None:
        async def test() -> None:
            async with NodeHarness(self.sink()) as harness:
                await harness.feed(self._channel(), *self.messages)
                self._check_once()

        asyncio.run(test())

    def test_what_has_ended_is_stored(self) -> None:
        async def test() -> None:
            harness = NodeHarness(self.sink()).feed(self._channel(), *self.messages)
            await harness.finish()
            self._check_once()

        asyncio.run(test())

    def test_nothing_is_lost_if_it_dies_before_it_has_committed(self) -> None:
        """The handlers have run, `commit` has not: another sink is given the same messages."""
        asyncio.run(self._die(effective=False))

    def test_what_it_had_committed_when_it_died_may_come_again(self) -> None:
        """`commit` has made everything durable, and nobody has heard of it: the same ids again."""
        asyncio.run(self._die(effective=True))

    # -- helpers -------------------------------------------------------------------------------

    def _channel(self) -> str:
        (name, *more) = type(self.sink()).__flowkit__.inputs
        assert not more, "override the tests of a sink with several inputs"
        return name

    def _check_once(self) -> None:
        assert _counted(self.stored()) == _counted(self.messages)

    async def _die(self, effective: bool) -> None:
        reached = asyncio.Event()
        sink = self.sink()
        commit = sink.commit

        async def stuck() -> None:
            if effective:
                result = commit()
                if inspect.isawaitable(result):
                    await result
            reached.set()
            await asyncio.Event().wait()

        # On a class of its own: the runtime asks the class whether there is a commit().
        type_of = type(sink)
        sink.__class__ = type(type_of.__name__, (type_of,), {"commit": lambda self: stuck()})
        async with NodeHarness(sink) as harness:
            harness.feed(self._channel(), *self.messages)
            await asyncio.wait_for(reached.wait(), 10.0)
            assert not harness.idle, "acknowledged before it was committed"
            await harness.crash(self.sink())
            if self.idempotent:
                self._check_once()
            else:
                assert not _counted(self.messages) - _counted(self.stored()), "lost"


def _counted(messages: Sequence[Any]) -> Counter[str]:
    return Counter(map(repr, messages))
