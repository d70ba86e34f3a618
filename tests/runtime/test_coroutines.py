"""Coroutine handlers: how many run, in which order, and what leaves in which order."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from flowkit import In, Many, Node, Out, Source, every
from flowkit.protocol import batching
from tests.runtime.stage import Part, books, collect, link, numbers


class Gate:
    """Holds coroutines back until so many wait; counts how many were inside at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.inside = 0
        self.most = 0
        self.open = asyncio.Event()

    async def pass_through(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside == self.size:
            self.open.set()
        await self.open.wait()
        await asyncio.sleep(0)
        self.inside -= 1


@pytest.mark.parametrize("concurrency", [1, 2, 50])
def test_as_many_run_at_once_as_are_allowed(play: Any, concurrency: int) -> None:
    gate = Gate(concurrency)

    class Fetch(Node):
        x = In(int, concurrency=concurrency)

        async def on_x(self, message: int) -> None:
            await gate.pass_through()

    report, _ = play({"a": numbers(300), "b": Fetch}, ["a.out -> b.x"])
    assert gate.most == concurrency
    assert books(report, "a.out -> b.x").entry.done == 300


@pytest.fixture(autouse=True)
def on_a_fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches grow, however long the machine takes for them: a burst is one batch."""
    monkeypatch.setattr(batching, "FAST", 60.0)
    monkeypatch.setattr(batching, "SLOW", 60.0)


def burst(count: int, ahead: int = 300) -> type[Source]:
    """A source whose first `ahead` messages let the batches grow; then `count` in one batch, the
    last of which is negative."""

    class Burst(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            for number in range(ahead):
                yield number, number + 1
            for _ in range(100):
                await asyncio.sleep(0)
            yield Many([-number for number in range(1, count + 1)]), ahead + 1

    return Burst


def test_what_is_sent_leaves_in_the_order_of_the_messages(play: Any) -> None:
    """Not in the order in which their handlers return: the later ones return first here."""
    returned: list[int] = []
    got: list[int] = []
    turns = {number: asyncio.Event() for number in range(-21, 0)}
    turns[-20].set()

    class Slow(Node):
        x = In(int, concurrency=20)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            self.out.send(message)
            if message < 0:
                await turns[message].wait()
            returned.append(message)
            self.out.send(message)
            if message < 0 and message + 1 in turns:
                turns[message + 1].set()

    play({"a": burst(20), "b": Slow, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"])
    ours = [one for one in returned if one < 0]
    assert ours == list(range(-20, 0))
    batches = [one for one in got if one < 0]
    expected = [number for number in range(-1, -21, -1) for _ in range(2)]
    assert batches == expected


class Label(Node):
    x = In(tuple[str, int])
    out = Out(tuple[str, int])

    def on_x(self, message: tuple[str, int]) -> None:
        self.out.send(message, key=message[0])


@pytest.mark.parametrize("concurrency", [2, 20])
def test_messages_of_one_key_come_one_after_the_other(play: Any, concurrency: int) -> None:
    inside: Counter[str] = Counter()
    order: dict[str, list[int]] = {}
    most = 0

    class Serial(Node):
        x = In(tuple[str, int], concurrency=concurrency)

        async def on_x(self, message: tuple[str, int]) -> None:
            nonlocal most
            key, number = message
            inside[key] += 1
            assert inside[key] == 1
            most = max(most, inside.total())
            order.setdefault(key, []).append(number)
            for _ in range(number % 4):
                await asyncio.sleep(0)
            inside[key] -= 1

    class Pairs(Source):
        out = Out(tuple[str, int])

        def read(self, position: int | None) -> Any:
            for number in range(position or 0, 500):
                yield (f"k{number % 6}", number), number + 1

    report, stage = play(
        {"a": Pairs, "b": Label, "c": Part(Serial, replicas=2)},
        ["a.out -> b.x", link("b.out -> c.x", route="key")],
    )
    assert stage.dead_letters == []
    assert order == {f"k{key}": list(range(key, 500, 6)) for key in range(6)}
    assert most > 1, "different keys do run together"


def test_what_is_sent_for_one_key_keeps_its_order_over_batches(play: Any) -> None:
    """The first message of a key waits in its batch for a slow one of another key; the second,
    in a later batch, has returned by then."""
    got: list[tuple[str, int]] = []
    second = asyncio.Event()

    class Slow(Node):
        x = In(tuple[str, int], concurrency=10)
        out = Out(tuple[str, int])

        async def on_x(self, message: tuple[str, int]) -> None:
            if message[0] == "slow":
                # Returns only when the other key's second message has been handled.
                await second.wait()
                for _ in range(20):
                    await asyncio.sleep(0)
            if message == ("fast", 2):
                second.set()
            self.out.send(message)

    class Collect(Node):
        x = In(tuple[str, int])

        def on_x(self, message: tuple[str, int]) -> None:
            got.append(message)

    class Pairs(Source):
        out = Out(dict[str, Any])

        async def read(self, position: int | None) -> Any:
            for number in range(300):
                yield {"k": "warm", "n": number}, number + 1
            for _ in range(100):
                await asyncio.sleep(0)
            yield Many([{"k": "fast", "n": 1}, {"k": "slow", "n": 1}]), 301
            yield Many([{"k": "fast", "n": 2}, {"k": "other", "n": 1}]), 302

    class SlowRows(Slow):
        x = In(dict[str, Any], concurrency=10)

        async def on_x(self, message: dict[str, Any]) -> None:  # type: ignore[override]
            await Slow.on_x(self, (message["k"], message["n"]))

    play(
        {"a": Pairs, "b": SlowRows, "c": Collect},
        [link("a.out -> b.x", route="key", by="k"), "b.out -> c.x"],
    )
    assert [number for key, number in got if key == "fast"] == [1, 2]


@pytest.mark.parametrize("key", ["", 0, None, False, ("a", 1), b"x"])
def test_any_key_will_do(play: Any, key: Any) -> None:
    class Tag(Node):
        x = In(int)
        out = Out(dict[str, int])

        def on_x(self, message: int) -> None:
            self.out.send({"n": message}, key=key if message % 2 else "other")

    got: list[int] = []

    class Takes(Node):
        x = In(dict[str, int], concurrency=4)

        async def on_x(self, message: dict[str, int]) -> None:
            await asyncio.sleep(0)
            got.append(message["n"])

    report, stage = play(
        {"a": numbers(40), "b": Tag, "c": Takes},
        ["a.out -> b.x", link("b.out -> c.x", route="key")],
    )
    # A message that is sent with no key at all is a key of its own only if it is a scalar.
    lost = sorted(one.error for one in stage.dead_letters)
    assert len(got) + len(lost) == 40
    assert len(lost) in ((0,) if key is not None else (0, 20))
    assert [node.restarts for node in report.nodes] == [0, 0, 0]


def test_the_key_that_the_output_declares_is_known_to_concurrent_handlers(play: Any) -> None:
    class Rows(Source):
        out = Out(dict[str, Any], key="user.id")

        def read(self, position: int | None) -> Any:
            for number in range(position or 0, 200):
                yield {"user": {"id": number % 5}, "n": number}, number + 1

    inside: Counter[int] = Counter()
    got: list[int] = []

    class Takes(Node):
        x = In(dict[str, Any], concurrency=8)

        async def on_x(self, message: dict[str, Any]) -> None:
            key = message["user"]["id"]
            inside[key] += 1
            assert inside[key] == 1
            await asyncio.sleep(0)
            inside[key] -= 1
            got.append(message["n"])

    report, stage = play(
        {"a": Rows, "b": Part(Takes, replicas=2)}, [link("a.out -> b.x", route="key")]
    )
    assert stage.dead_letters == [] and sorted(got) == list(range(200))
    assert [node.restarts for node in report.nodes] == [0, 0, 0]


@pytest.mark.parametrize("concurrency", [1, 5])
def test_a_handler_that_is_cancelled_from_within_has_failed(play: Any, concurrency: int) -> None:
    """An awaitable that somebody cancelled must not make the message wait for ever."""
    got: list[int] = []

    class Cancels(Node):
        x = In(int, concurrency=concurrency)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            self.out.send(message)
            if message % 10 == 5:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                future.cancel()
                await future

    report, stage = play(
        {"a": numbers(50), "b": Cancels, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"]
    )
    assert sorted(got) == [number for number in range(50) if number % 10 != 5]
    assert len(stage.dead_letters) == 5
    assert all("CancelledError" in one.error for one in stage.dead_letters)


def test_handlers_that_run_are_cancelled_when_the_replica_dies(stage: Any, on_loop: Any) -> None:
    began: list[int] = []
    cancelled: list[int] = []
    go = asyncio.Event()

    class Waits(Node):
        x = In(int, concurrency=4)

        async def on_x(self, message: int) -> None:
            began.append(message)
            try:
                await go.wait()
            except asyncio.CancelledError:
                cancelled.append(message)
                raise

    async def run() -> Any:
        async with stage({"a": numbers(10), "b": Waits}, ["a.out -> b.x"]) as built:
            while len(began) < 4:
                await asyncio.sleep(0)
            built.crash("b.0")
            while not built.deaths:
                await asyncio.sleep(0)
            go.set()
            return await built.wait(), built

    report, built = on_loop(run())
    assert len(cancelled) == 4 and built.dead_letters == []
    assert books(report, "a.out -> b.x").entry.done == 10
    assert set(began) == set(range(10))


def test_plain_and_coroutine_handlers_and_timers_in_one_node(play: Any) -> None:
    got: list[str] = []
    ticked = asyncio.Event()

    class Mixed(Node):
        stateful = True
        plain = In(int)
        slow = In(int, concurrency=3)
        lists = In(int, batch=10)
        out = Out(str)

        def on_plain(self, message: int) -> None:
            self.out.send(f"plain {message}")

        async def on_slow(self, message: int) -> None:
            await ticked.wait()
            self.out.send(f"slow {message}")

        def on_lists(self, messages: list[int]) -> None:
            self.out.send_many(f"lists {message}" for message in messages)

        @every(0.001)
        def tick(self) -> None:
            self.out.send("tick")

        @every(0.001)
        async def tock(self) -> None:
            await asyncio.sleep(0)
            self.out.send("tock")
            ticked.set()

        async def finish(self) -> None:
            await asyncio.sleep(0)
            self.out.send("finish")

    play(
        {"a": numbers(100), "b": Mixed, "c": collect(got, str)},
        ["a.out -> b.plain", "a.out -> b.slow", "a.out -> b.lists", "b.out -> c.x"],
    )
    counts = Counter(text.split()[0] for text in got)
    assert (counts["plain"], counts["slow"], counts["lists"]) == (100, 100, 100)
    assert counts["finish"] == 1 and got[-1] == "finish" and counts["tock"] >= 1
    for kind in ("plain", "lists"):
        mine = [int(text.split()[1]) for text in got if text.startswith(kind)]
        assert mine == list(range(100))
