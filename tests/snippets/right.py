"""What a type checker must have nothing to say about. Every class here is also created."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, assert_type

import msgspec

from flowkit import Call, In, Many, Meta, Node, Out, OutPort, Serve, Sink, Source, every
from flowkit.testing import NodeHarness, run_topology


class Row(msgspec.Struct):
    user: str
    size: int


@dataclass
class Point:
    x: float
    y: float


class Line(TypedDict):
    text: str


class Shapes(Node):
    """A channel's type is what `type()` of its messages would be, whatever that is made of."""

    rows = In(Row)
    points = In(Point, concurrency=4)
    lines = In(Line, batch=50, within="1s")
    users = Out(str, key="user")
    totals = Out(dict[str, int])
    pairs = Out(tuple[str, int])
    raw = Out(bytes, codec="raw")

    def on_rows(self, row: Row, meta: Meta) -> None:
        assert_type(Shapes.rows, In[Row])
        assert_type(Shapes.users, Out[str])
        assert_type(self.users, OutPort[str])
        assert_type(self.users.sent, list[str])
        self.users.send(row.user, key=meta.key, headers=meta.headers)
        self.users.send(row.user, key=("a", 1, None))
        self.totals.send({row.user: row.size})
        self.pairs.send((row.user, row.size))

    async def on_points(self, point: Point) -> None:
        await self.users.room()
        self.totals.send({"x": int(point.x)})

    def on_lines(self, lines: list[Line], metas: Sequence[Meta]) -> None:
        self.users.send_many(line["text"] for line in lines)

    @every("5s")
    def tick(self) -> None:
        self.raw.send(b"")

    def setup(self) -> None:
        assert_type(self.replica, int)
        self.tick()


class Annotated(Node):
    """A union, or Any, is no class to infer the type of a channel from: an annotation says it.

    Without one such a channel is unchecked.
    """

    numbers: In[int | str] = In(int | str)
    halves: Out[float | None] = Out(float | None)
    anything: Out[Any] = Out(Any)
    unknown = Out(int | str)

    def on_numbers(self, number: int | str) -> None:
        assert_type(self.halves, OutPort[float | None])
        assert_type(self.unknown, OutPort[Any])
        self.halves.send(None)
        self.halves.send(int(number) / 2)
        self.anything.send(object())
        self.unknown.send(number)


class Numbers(Source):
    numbers = Out(int)

    def read(self, position: int | None) -> Iterator[tuple[int | Many[int], int]]:
        yield 1, 1
        yield Many([2, 3]), 3

    async def commit(self, position: int) -> None:
        assert position >= 0


class Later(Source):
    numbers = Out(int)

    async def read(self, position: int | None) -> AsyncIterator[tuple[int, int]]:
        yield 1, 1


class Store(Sink):
    numbers = In(int, batch=100)

    def on_numbers(self, numbers: list[int]) -> None:
        sum(numbers)

    async def commit(self) -> None: ...


class Asks(Node):
    rows = In(Row, concurrency=10)
    sizes = Call(str, Row, timeout="2s")
    users = Out(Row)

    async def on_rows(self, row: Row) -> None:
        answer = await self.sizes.ask(row.user, timeout=1.0, retries=1)
        assert_type(answer, Row)
        self.users.send(answer)


class Answers(Node):
    sizes = Serve(str, Row)

    def on_sizes(self, user: str) -> Row:
        return Row(user, 1)


def test_a_node() -> None:
    harness = NodeHarness(Shapes(), on_error={"retry": 1})
    assert_type(harness.node, Shapes)
    assert_type(harness.feed(Shapes.rows, Row("a", 1), Row("b", 2), key="k"), NodeHarness[Shapes])
    assert_type(harness.sent(Shapes.users), list[str])
    assert_type(harness.take("users"), list[Any])
    harness.feed("rows", Row("a", 1)).advance("1s").finish()


async def test_a_coroutine() -> None:
    async with NodeHarness(Shapes()) as harness:
        assert_type(await harness.feed(Shapes.points, Point(1, 2)), NodeHarness[Shapes])


def test_a_topology() -> None:
    run = run_topology("words.yaml", inputs={"read.lines": ["a"]}, channels=["split.words"])
    assert_type(run.metas("split.words"), list[Meta])
    run_topology("words.yaml", until=lambda run: len(run.sent("split.words")) > 5)
