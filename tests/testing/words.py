"""Nodes and a topology for the tests of the harness."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator

from flowkit import In, Node, Out, Source, every

TOPOLOGY = """
flowkit: 1
project: words
nodes:
  read: {use: "tests.testing.words:Read", with: {path: "${TEXT:-nothing}"}, restart: {max: 0}}
  split: {use: "tests.testing.words:Split", replicas: 2, restart: {backoff: 1ms}}
  count: {use: "tests.testing.words:Count"}
  show: {use: "tests.testing.words:Show"}
links:
  - {from: read.lines, to: split.lines}
  - {from: split.words, to: count.words, route: key}
  - {from: count.totals, to: show.totals}
"""


class Read(Source):
    lines = Out(str)

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, position: int | None) -> Iterator[tuple[str, int]]:
        with open(self.path, "rb") as file:
            file.seek(position or 0)
            while line := file.readline():
                yield line.decode(), file.tell()


class Split(Node):
    lines = In(str)
    words = Out(str)

    def on_lines(self, line: str) -> None:
        for word in line.split():
            self.words.send(word, headers={"n": str(len(word))})
        if "!" in line:
            raise ValueError(f"no {line}")


class Count(Node):
    stateful = True
    words = In(str)
    totals = Out(dict[str, int])

    def __init__(self, top: int = 2) -> None:
        self.top = top
        self.counts: Counter[str] = Counter()

    def on_words(self, word: str) -> None:
        self.counts[word] += 1

    @every("1h")
    def report(self) -> None:
        self.finish()

    def finish(self) -> None:
        self.totals.send(dict(self.counts.most_common(self.top)))


class Sum(Node):
    numbers = In(int)

    def on_numbers(self, number: int) -> None: ...


class Show(Node):
    totals = In(dict[str, int])

    def on_totals(self, totals: dict[str, int]) -> None: ...


class Endless(Source):
    numbers = Out(int)

    async def read(self, position: int | None) -> AsyncIterator[tuple[int, int]]:
        number = position or 0
        while True:
            number += 1
            yield number, number
