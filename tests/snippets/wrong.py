"""What a type checker must complain about: the lines that say so, with mypy's code, and no other.

What type checkers cannot see is refused when the class is created: `tests/test_node.py`.
"""

from flowkit import Call, In, Meta, Node, Out, OutPort, every
from flowkit.testing import NodeHarness


class Wrong(Node):
    lines = In(str)
    rows = In(int, batch=10)
    words = Out(str)
    totals = Out(dict[str, int])
    halves: Out[float | None] = Out(float | None)
    size = In(str, batch="10")  # wrong: call-overload
    misspelt = Out(str, keys="user")  # wrong: call-overload

    def on_lines(self, line: str, meta: Meta) -> None:
        self.words.send(1)  # wrong: arg-type
        self.words.send(None)  # wrong: arg-type
        self.words.send(line.encode())  # wrong: arg-type
        self.words.send(line, key={"a"})  # wrong: arg-type
        self.words.send(line, headers={"count": 1})  # wrong: dict-item
        self.words.send(line, header={})  # wrong: call-arg
        self.words.send()  # wrong: call-arg
        self.word.send(line)  # wrong: attr-defined
        self.lines.send(line)  # wrong: attr-defined
        self.totals.send({1: line})  # wrong: dict-item
        self.halves.send(line)  # wrong: arg-type
        line.send()  # wrong: attr-defined
        print(meta.identity)  # wrong: attr-defined

    def on_rows(self, rows: list[int]) -> None:
        self.words.send_many(rows)  # wrong: arg-type
        self.totals.send(rows)  # wrong: arg-type
        words: OutPort[bytes] = self.words  # wrong: assignment
        first: int = self.words.sent[0]  # wrong: assignment
        print(words, first)

    @every(None)  # wrong: arg-type
    def tick(self) -> None: ...


class Asks(Node):
    lines = In(str)
    sizes = Call(str, int)
    words = Out(str)

    async def on_lines(self, line: str) -> None:
        await self.sizes.ask(5)  # wrong: arg-type
        await self.sizes.ask(line, timeout=None, retries="no")  # wrong: arg-type
        size: str = await self.sizes.ask(line)  # wrong: assignment
        self.words.send(await self.sizes.ask(line))  # wrong: arg-type
        self.sizes.send(size)  # wrong: attr-defined


def test_a_node() -> None:
    harness = NodeHarness(Wrong())
    harness.feed(Wrong.lines, 5)  # wrong: misc
    harness.feed(Wrong.words, "a")  # wrong: call-overload
    numbers: list[int] = harness.sent(Wrong.words)  # wrong: arg-type
    harness.advance(None)  # wrong: arg-type
    print(numbers, harness.node.missing)  # wrong: attr-defined
    NodeHarness(Wrong)  # wrong: type-var
