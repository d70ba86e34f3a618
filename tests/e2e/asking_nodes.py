"""Nodes that ask and serve, for the tests of servers that are killed with a question in hand."""

from __future__ import annotations

import asyncio

from flowkit import Call, Meta, Node, Serve
from flowkit.errors import RequestError
from tests.e2e.nodes import die, first


class Client(Node):
    """Asks `count` questions at once, and prints the answers, or the errors."""

    answer = Call(int, int)

    def __init__(self, count: int, retries: int) -> None:
        self.count = count
        self.retries = retries

    async def run(self) -> None:
        async def ask(number: int) -> str:
            try:
                return str(await self.answer.ask(number, retries=self.retries))
            except RequestError as error:
                return f"{type(error).__name__} of {error.server}: {error}"

        for line in await asyncio.gather(*map(ask, range(self.count))):
            print(line)


class Server(Node):
    """Answers with the number, and its process is killed by the first question `at`."""

    answer = Serve(int, int)

    def __init__(self, at: int, marker: str) -> None:
        self.at = at
        self.marker = marker

    def on_answer(self, number: int, meta: Meta) -> int:
        if number == self.at and first(self.marker):
            die("kill")
        return number
