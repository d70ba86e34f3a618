"""Handlers that take lists: how long, how soon, and when their messages are acknowledged."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from flowkit import In, Meta, Node, Out, Source
from flowkit.codecs import codec_for
from flowkit.protocol.batching import LARGE_WHOLE, Pace
from flowkit.protocol.lineage import root_id
from flowkit.runtime.handling import Ports, Undertaker
from flowkit.runtime.inlet import Shop
from flowkit.runtime.jobs import JobInlet
from flowkit.runtime.shared import GAUGES
from flowkit.topology.plan import ErrorPolicy
from flowkit.wire import VERSION, Ack, Data, Welcome
from tests.protocol.link import ADDRESS, TERMS, consumer_engine, frames, said
from tests.runtime.stage import books, collect, link, numbers


def lists(got: list[list[int]], **options: Any) -> type[Node]:
    class Lists(Node):
        x = In(int, **options)
        out = Out(int)

        def on_x(self, messages: list[int]) -> None:
            got.append(messages)
            self.out.send(sum(messages))

    return Lists


def flat(got: list[list[int]]) -> list[int]:
    return [message for messages in got for message in messages]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 2000])
@pytest.mark.parametrize("within", [None, 0.002])
def test_lists_hold_at_most_as_many_as_asked_for(
    play: Any, count: int, within: float | None
) -> None:
    got: list[list[int]] = []
    sums: list[int] = []
    report, _ = play(
        {"a": numbers(count), "b": lists(got, batch=10, within=within), "c": collect(sums)},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    assert flat(got) == list(range(count))
    assert all(1 <= len(messages) <= 10 for messages in got)
    assert sums == [sum(messages) for messages in got]
    assert books(report, "a.out -> b.x").entry.done == count


def test_a_list_waits_for_more_messages_over_batches(play: Any) -> None:
    """With a time to wait, lists are full although the messages come one by one."""
    got: list[list[int]] = []
    play({"a": numbers(60), "b": lists(got, batch=20, within="10s")}, ["a.out -> b.x"])
    assert [len(messages) for messages in got] == [20, 20, 20]


def test_without_a_time_a_list_never_waits(play: Any) -> None:
    """A source that waits for the answer to its first message gets it."""
    got: list[list[int]] = []
    answered = asyncio.Event()

    class Asks(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            yield 1, 1
            await answered.wait()
            yield 2, 2

    class Lists(Node):
        x = In(int, batch=100)

        def on_x(self, messages: list[int]) -> None:
            got.append(messages)
            answered.set()

    play({"a": Asks, "b": Lists}, ["a.out -> b.x"])
    assert got == [[1], [2]]


def test_a_list_that_is_not_full_is_handed_over_in_time(play: Any) -> None:
    got: list[list[int]] = []
    answered = asyncio.Event()

    class Asks(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            for number in range(3):
                yield number, number + 1
            await answered.wait()
            yield 3, 4

    class Lists(Node):
        x = In(int, batch=100, within=0.02)

        def on_x(self, messages: list[int]) -> None:
            got.append(messages)
            answered.set()

    play({"a": Asks, "b": Lists}, ["a.out -> b.x"])
    assert got == [[0, 1, 2], [3]]


def test_coroutines_that_take_lists(play: Any) -> None:
    got: list[list[int]] = []
    inside = most = 0

    class Lists(Node):
        x = In(int, batch=5, within=0.001, concurrency=3)
        out = Out(int)

        async def on_x(self, messages: list[int], metas: list[Meta]) -> None:
            nonlocal inside, most
            assert len(messages) == len(metas)
            inside += 1
            most = max(most, inside)
            for _ in range(5):
                await asyncio.sleep(0)
            inside -= 1
            got.append(messages)
            self.out.send_many(messages)

    out: list[int] = []
    play({"a": numbers(500), "b": Lists, "c": collect(out)}, ["a.out -> b.x", "b.out -> c.x"])
    assert sorted(flat(got)) == sorted(out) == list(range(500))
    assert 2 <= most <= 3


def test_nothing_of_a_group_is_acknowledged_before_it_is_handled(stage: Any, on_loop: Any) -> None:
    """A replica that dies with half a list in memory gets all of it again."""
    got: list[list[int]] = []
    go = asyncio.Event()

    class Ends(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            for number in range(position or 0, 7):
                yield number, number + 1
            await go.wait()
            for number in range(7, 12):
                yield number, number + 1

    async def run() -> Any:
        async with stage(
            {"a": Ends, "b": lists(got, batch=5, within="1h")}, ["a.out -> b.x"]
        ) as built:
            while not got:
                await asyncio.sleep(0)
            for _ in range(50):  # the acknowledgements of the first list are on their way
                await asyncio.sleep(0)
            entry = books(built.supervisor.report(), "a.out -> b.x").entry
            assert (entry.done, entry.in_flight) == (5, 2)
            built.crash("b.0")
            go.set()
            return await built.wait()

    report = on_loop(run())
    assert flat(got) == list(range(12)) and got[0] == [0, 1, 2, 3, 4]
    assert books(report, "a.out -> b.x").entry.redelivered >= 2


def test_a_list_that_fails_gives_up_all_its_messages(play: Any) -> None:
    class Fails(Node):
        x = In(int, batch=10, within=0.001)
        out = Out(int)

        def on_x(self, messages: list[int]) -> None:
            self.out.send_many(messages)
            if 15 in messages:
                raise ValueError

    got: list[int] = []
    report, stage = play(
        {"a": numbers(30), "b": Fails, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"]
    )
    letters = stage.dead_letters
    assert len(got) + len(letters) == 30 and 15 not in got
    assert books(report, "a.out -> b.x").entry.dead_lettered == len(letters) >= 1


def test_lists_of_a_lossy_link(play: Any) -> None:
    got: list[list[int]] = []
    sums: list[int] = []
    play(
        {"a": numbers(100), "b": lists(got, batch=7, within=0.001), "c": collect(sums)},
        [link("a.out -> b.x", delivery="at-most-once"), "b.out -> c.x"],
    )
    assert flat(got) == list(range(100)) and sum(sums) == sum(range(100))


def test_groups_of_several_inputs_do_not_mix(play: Any) -> None:
    got: dict[str, list[int]] = {"x": [], "y": []}

    class Two(Node):
        x = In(int, batch=6, within=0.001)
        y = In(int, batch=4)

        def on_x(self, messages: list[int]) -> None:
            got["x"] += messages

        def on_y(self, messages: list[int]) -> None:
            got["y"] += messages

    play(
        {"a": numbers(50), "b": numbers(50, first=100), "c": Two}, ["a.out -> c.x", "b.out -> c.y"]
    )
    assert got == {"x": list(range(50)), "y": list(range(100, 150))}


# -- the inlet alone: what is hard to bring about with processes ----------------------------------


class Counter:
    """A replica with one input, of lists of `batch`, and nothing around it; `got` is what its
    handler was given."""

    def __init__(self, batch: int) -> None:
        got: list[list[bytes]] = []
        self.got = got

        class Lists(Node):
            x = In(bytes, batch=batch, within="1h")

            def on_x(self, messages: list[bytes]) -> None:
                got.append(messages)

        node = Lists()
        self.engine = consumer_engine(replace(TERMS, into="x"))
        self.engine.producer_at(0, 0, 1, ADDRESS)
        self.engine.from_producer(0, 0, Welcome(1, VERSION))
        self.codec = codec_for(bytes)
        self.sequence = 0
        shop = Shop(
            node,
            self.engine,
            Ports(node),
            Undertaker(("b", 0), ErrorPolicy(0, "drop"), "run", lambda letters: None),
            {0: self.codec},
            lambda work, boxes, count: work.finish(),
            lambda: 0.0,
            lambda: None,
            pytest.fail,
            [0] * GAUGES,
        )
        self.inlet = JobInlet(shop, node.__flowkit__.inputs["x"], 1, [])

    @property
    def pace(self) -> Pace:
        return self.engine.inboxes["x"].pace

    def take(self, messages: list[bytes], attempts: int = 0) -> int:
        """A batch of `messages` comes in, and is looked at; how many batches are acknowledged."""
        self.sequence += 1
        payload = self.codec.encode(messages)
        batch_id = root_id(2, 1, self.sequence)
        frame = Data(1, self.sequence, batch_id, 1, 1, len(messages), attempts, payload)
        self.engine.from_producer(0, 0, frame)
        while self.inlet.step():
            pass
        acks = [frame.sequence for frame in frames(said(self.engine)) if isinstance(frame, Ack)]
        return acks[-1] if acks else 0


def test_what_waits_for_a_list_goes_before_what_is_handled_with_care() -> None:
    """A line breaks: what had arrived stays, and what had not comes again, for the second time.
    The order of both is that of their sending."""
    counter = Counter(batch=100)
    assert counter.take([b"1", b"2"]) == 0 and counter.got == []
    assert counter.take([b"3", b"4"], attempts=1) == 2
    assert counter.got == [[b"1", b"2"], [b"3"], [b"4"]]
    assert counter.take([b"5"]) == 0 and not counter.inlet.idle


@pytest.mark.parametrize("count", [5, 1])
def test_lists_of_large_messages_ask_for_small_batches(count: int) -> None:
    """A list is judged by its bytes as a batch is, however many batches it is made of."""
    counter = Counter(batch=10)
    for _ in range(200):
        counter.take([bytes(1 << 20)] * count)
    assert sum(map(len, counter.got)) == 200 * count
    assert 1 < counter.pace.max_count <= LARGE_WHOLE >> 20
