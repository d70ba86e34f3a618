"""`deliver`: who sends a message and waits until it is done, with all that was made of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flowkit import In, Node, Out
from flowkit.errors import DeadLettered, Dropped, SendError
from tests.runtime.stage import Part, books, collect, link, numbers


def asks(run: Any, kind: Any = int) -> type[Node]:
    """A node whose `run` is `run(self)`."""

    class Asks(Node):
        out = Out(kind)

        async def run(self) -> None:
            await run(self)

    return Asks


class Doubles(Node):
    x = In(int)
    out = Out(int)

    def on_x(self, message: int) -> None:
        self.out.send_many([message, message])


def test_it_returns_when_everything_that_was_made_of_the_message_is_done(play: Any) -> None:
    got: list[int] = []
    seen: list[list[int]] = []

    async def run(self: Any) -> None:
        for number in (1, 2):
            await self.out.deliver(number)
            seen.append(list(got))

    play(
        {"a": asks(run), "b": Part(Doubles, replicas=2), "c": collect(got)},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    assert seen == [[1, 1], [1, 1, 2, 2]]


def test_many_may_wait_at_once_and_room_is_waited_for(play: Any) -> None:
    got: list[int] = []

    async def run(self: Any) -> None:
        await asyncio.gather(*(self.out.confirm(number) for number in range(100)))

    report, _ = play({"a": asks(run), "b": collect(got)}, [link("a.out -> b.x", window=3)])
    assert sorted(got) == list(range(100))
    assert books(report, "a.out -> b.x").entry.done == 100


class Fails(Node):
    x = In(int)

    def on_x(self, message: int) -> None:
        if message % 2:
            raise ValueError(message)


@pytest.mark.parametrize(
    ("then", "error"), [("dead-letter", DeadLettered), ("drop", Dropped)], ids=["dead", "dropped"]
)
@pytest.mark.parametrize("between", [False, True], ids=["next", "further"])
def test_what_is_given_up_anywhere_downstream_is_told_to_whom_it_belongs(
    play: Any, then: str, error: type[Exception], between: bool
) -> None:
    told: dict[int, Any] = {}

    async def run(self: Any) -> None:
        numbers = list(range(20))
        results = await asyncio.gather(
            *(self.out.deliver(number) for number in numbers), return_exceptions=True
        )
        told.update(zip(numbers, results, strict=True))

    parts = {"a": asks(run), "b": Doubles, "c": Part(Fails, then=then)}
    links = ["a.out -> b.x", "b.out -> c.x"] if between else ["a.out -> c.x"]
    if not between:
        del parts["b"]
    play(parts, links)
    assert {number for number, result in told.items() if result is None} == set(range(0, 20, 2))
    assert {type(result) for number, result in told.items() if number % 2} == {error}


def test_what_cannot_be_sent_is_told_as_well(play: Any) -> None:
    told: list[BaseException] = []

    async def run(self: Any) -> None:
        for message in (object(), 1):
            try:
                await self.out.deliver(message)
            except DeadLettered as error:
                told.append(error)

    got: list[int] = []
    play({"a": asks(run), "b": collect(got)}, ["a.out -> b.x"])
    assert len(told) == 1 and got == [1]


def test_a_group_tells_all_whose_messages_it_holds(play: Any) -> None:
    told: list[Any] = []

    class Lists(Node):
        x = In(int, batch=3, within=5.0)

        def on_x(self, messages: list[int]) -> None:
            raise ValueError(messages)

    async def run(self: Any) -> None:
        told.extend(
            await asyncio.gather(*(self.out.deliver(n) for n in range(3)), return_exceptions=True)
        )

    play({"a": asks(run), "b": Lists}, ["a.out -> b.x"])
    assert [type(one) for one in told] == [DeadLettered] * 3


def test_a_link_that_forgets_is_refused_wherever_it_is(play: Any) -> None:
    told: list[str] = []

    async def run(self: Any) -> None:
        try:
            await self.out.deliver(1)
        except SendError as error:
            told.append(str(error))

    play(
        {"a": asks(run), "b": Doubles, "c": collect([])},
        ["a.out -> b.x", link("b.out -> c.x", delivery="at-most-once")],
    )
    assert told == [
        "out.deliver(): nobody learns what becomes of a message on b.out -> c.x, which is "
        "at-most-once; use send(), in a handler or run(), or make that link at-least-once"
    ]


def test_a_handler_is_refused(play: Any) -> None:
    class Tries(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            with pytest.raises(SendError, match="in a handler"):
                await self.out.deliver(message)
            self.out.send(message)

    got: list[int] = []
    play({"a": numbers(3), "b": Tries, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"])
    assert got == [0, 1, 2]


def test_a_server_in_a_node_with_inputs_delivers_until_their_streams_have_ended(
    play: Any,
) -> None:
    """The task is not the handler's: it stands for a web server that the node has set up."""
    told: list[Any] = []
    got: list[int] = []

    class Serves(Node):
        x = In(int)
        out = Out(int)

        def setup(self) -> None:
            self.wanted = asyncio.Event()
            self.task = asyncio.create_task(self.serve())

        async def serve(self) -> None:
            await self.wanted.wait()
            await self.out.deliver(100)
            told.append(None)

        async def on_x(self, message: int) -> None:
            self.wanted.set()
            while not told:
                await asyncio.sleep(0)

        async def teardown(self) -> None:
            try:
                await self.out.deliver(101)
            except SendError as error:
                told.append(str(error))

    play({"a": numbers(1), "b": Serves, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"])
    assert told == [None, "out.deliver(): the stream of this replica has ended"]
    assert got == [100]


def test_a_replica_that_ends_tells_those_who_wait(stage: Any, on_loop: Any) -> None:
    told: list[BaseException] = []

    class Never(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            await asyncio.Event().wait()

    async def whole() -> None:
        sent = asyncio.Event()
        nodes: list[Any] = []

        async def run(self: Any) -> None:
            nodes.append(self)
            sent.set()
            await asyncio.Event().wait()

        async with stage({"a": asks(run), "b": Never}, ["a.out -> b.x"]) as one:
            await asyncio.wait_for(sent.wait(), 10)
            waiting = asyncio.ensure_future(nodes[0].out.deliver(1))
            await asyncio.sleep(0)
            one.supervisor.kill()
            try:
                await asyncio.wait_for(waiting, 10)
            except Dropped as error:
                told.append(error)
            await one.wait()

    on_loop(whole())
    assert "ended before the message was done" in str(told[0])


def test_a_node_that_nobody_runs_collects_what_it_delivers() -> None:
    node = Doubles()
    asyncio.run(node.out.deliver(1, key="k"))
    assert node.out.sent == [1]
