"""When a turn is taken: at once by a replica at rest, with the next turn of the loop by others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from flowkit import In, Node, Out
from flowkit.runtime import turns
from flowkit.runtime.turns import RESTED, Turns
from tests.runtime.stage import collect

where: ContextVar[str] = ContextVar("where", default="elsewhere")


class Scene:
    """Turns on a clock of the test's own; `then` is done within each."""

    def __init__(self) -> None:
        self.now = 100.0
        self.taken: list[str] = []
        self.then: Callable[[], None] = lambda: None
        context = copy_context()
        context.run(where.set, "here")
        self.turns = Turns(self._take, context, lambda: self.now)

    def _take(self) -> None:
        self.turns.begin()
        self.taken.append(where.get())
        self.then()
        self.turns.end()


def test_a_replica_at_rest_takes_its_turn_at_once(on_loop: Any) -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.turns.now()
        assert scene.taken == ["here"]
        scene.now += RESTED / 2
        scene.turns.now()
        scene.turns.now()
        assert not scene.turns.at_once()
        assert scene.taken == ["here"], "it was not at rest"
        await asyncio.sleep(0)
        assert scene.taken == ["here"] * 2, "one turn for both"
        scene.now += RESTED
        assert scene.turns.at_once()
        assert scene.taken == ["here"] * 3

    on_loop(scenario())


def test_one_that_was_asked_for_is_waited_for(on_loop: Any) -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.turns.soon()
        assert not scene.turns.at_once() and not scene.taken
        await asyncio.sleep(0)
        assert scene.taken == ["here"]

    on_loop(scenario())


def test_no_turn_is_taken_within_another(on_loop: Any) -> None:
    async def scenario() -> None:
        scene = Scene()

        def then() -> None:
            scene.now += 10 * RESTED
            scene.then = lambda: None
            assert not scene.turns.at_once()
            scene.turns.now()

        scene.then = then
        scene.turns.now()
        assert len(scene.taken) == 1
        await asyncio.sleep(0)
        assert len(scene.taken) == 2

    on_loop(scenario())


def test_who_sends_while_others_are_made_loses_none(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the messages of `send_many` sends on another output, whose first one leaves at
    once, and with it what there is: the rest is not appended to what has left."""
    monkeypatch.setattr(turns, "RESTED", 0.0)
    good: list[int] = []
    bad: list[int] = []

    class Runs(Node):
        out = Out(int)
        errors = Out(int)

        async def run(self) -> None:
            for start in range(0, 3000, 100):
                self.out.send_many(self.sort_out(range(start, start + 100)))
                while len(good) + len(bad) < start + 100:
                    await asyncio.sleep(0)

        def sort_out(self, numbers: range) -> Any:
            for number in numbers:
                if number % 10 == 5:
                    self.errors.send(number)
                else:
                    yield number

    parts = {"a": Runs, "b": collect(good), "c": collect(bad)}
    play(parts, ["a.out -> b.x", "a.errors -> c.x"])
    assert good == [number for number in range(3000) if number % 10 != 5]
    assert bad == list(range(5, 3000, 10))


def test_an_iterator_that_raises_has_sent_what_came_before(play: Any) -> None:
    got: list[int] = []

    def numbers() -> Any:
        yield from range(5)
        raise OSError("gone")

    class Runs(Node):
        out = Out(int)

        async def run(self) -> None:
            with pytest.raises(OSError, match="gone"):
                self.out.send_many(numbers())

    play({"a": Runs, "b": collect(got)}, ["a.out -> b.x"])
    assert got == list(range(5))


def test_what_is_sent_at_rest_is_handled_without_a_turn_of_the_senders_loop(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "RESTED", 0.0)
    left: list[int] = []

    class Runs(Node):
        out = Out(int)

        async def run(self) -> None:
            await self.out.deliver(0)  # the sessions are open
            for number in range(1, 4):
                self.out.send(number)
                left.append(len(self.out.sent))
                await self.out.deliver(-number)

    class Takes(Node):
        x = In(int)

        def on_x(self, message: int) -> None: ...

    play({"a": Runs, "b": Takes}, ["a.out -> b.x"])
    assert left == [0, 0, 0]
