"""The project that README shows running: clicks that never end, some of them odd."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from flowkit import In, Node, Out, Source

log = logging.getLogger("clicks")


class Read(Source):
    lines = Out(str)

    async def read(self, position: int | None) -> AsyncIterator[tuple[str, int]]:
        number = position or 0
        while True:
            number += 1
            yield f"user-{number % 7} click {number}", number
            await asyncio.sleep(0.001)


class Parse(Node):
    lines = In(str)
    clicks = Out(str)

    def on_lines(self, line: str) -> None:
        user, _, click = line.split()
        if int(click) % 100 == 77:
            log.warning("odd line %r", line)
        self.clicks.send(user)


class Store(Node):
    clicks = In(str)

    def on_clicks(self, user: str) -> None: ...
