"""Producers of a durable link that are at the same work: what they make of it is sent once."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from flowkit.codecs import codec_for
from flowkit.protocol import events
from flowkit.protocol.engine import Engine
from flowkit.protocol.ledger import ROW, Books
from flowkit.protocol.lineage import Work, root_id
from flowkit.protocol.routing import Router
from flowkit.runtime import spec
from flowkit.runtime.journaling import JournalDriver
from tests.conftest import Eventually
from tests.runtime.test_parts import description


class Producer:
    """Replica `replica` of a pool of two before a durable link that nobody reads."""

    def __init__(self, folder: Path, replica: int, incarnation: int = 1) -> None:
        one = description(folder, replica=replica, incarnation=incarnation)
        link = msgspec.structs.replace(
            one.outputs[0], durable=True, delivery="at-least-once", route="balance", origin=10
        )
        output = (spec.terms_of(link), Router("balance", 1), codec_for(int), Books([0] * ROW))
        self.engine = Engine(one.identity(), [], [output])
        self.sender = self.engine.senders[link.index]
        self.failed: list[BaseException] = []
        self.settled: list[int] = []
        """Input batches that it would acknowledge."""
        self.driver = JournalDriver(one, link, self.engine, lambda: None, self.failed.append)
        self.turn()

    def handle(self, *numbers: int, span: int = 5) -> None:
        """Handle input batches, of one message each."""
        for number in numbers:
            done = functools.partial(self.settled.append, number)
            work = Work(root_id(1, 1, number), span, 64, done)
            self.engine.release(work, "out", [number])
            work.finish()
        self.turn()

    def turn(self) -> bool:
        """A turn of its loop; True for who waits that way."""
        self.engine.flush()
        while self.engine.actions:
            action = self.engine.actions.popleft()
            if isinstance(action, events.Persist | events.Erase):
                self.driver.take(action)
        self.driver.flush()
        return True

    @property
    def sent(self) -> int:
        return self.sender.books.read().sent

    def die_writing(self, *numbers: int) -> None:
        """Be killed before a write to the journal of what is made of `numbers`."""

        def commit() -> None:
            raise sqlite3.OperationalError("killed")

        self.driver._journal.commit = commit  # type: ignore[method-assign,assignment]
        self.handle(*numbers)
        assert self.failed and not set(self.settled) & set(numbers)
        self.driver.close()


def on_loop(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    return run


@on_loop
async def test_work_that_comes_to_both(folder: Path) -> None:
    """They need not die for that: a session may break, or who sent it to one was killed and its
    successor sends it to the other."""
    first, second = Producer(folder, 0), Producer(folder, 1)
    first.handle(1, 2, 3)
    second.handle(3, 4, 2)
    first.handle(4, 5)
    assert (first.settled, first.sent) == ([1, 2, 3, 4, 5], 4)
    assert (sorted(second.settled), second.sent) == ([2, 3, 4], 1)
    assert first.sender.messages + second.sender.messages == 5
    first.handle(20, span=0)
    second.handle(1)
    assert (second.settled[-1], second.sent) == (1, 1), "a late copy of what is done"
    first.driver.close()
    second.driver.close()


@on_loop
async def test_work_of_one_that_is_killed_while_it_writes(folder: Path) -> None:
    """Only its successor can tell that it had not written it. Until then the other waits, with what
    comes after it; what came before is written."""
    first, second = Producer(folder, 0), Producer(folder, 1)
    first.handle(1)
    first.die_writing(2)
    second.handle(1, 3, 2, 4)
    second.turn()
    assert second.settled == [1, 3] and second.sent == 1
    successor = Producer(folder, 0, incarnation=2)
    assert successor.sender.messages == 1
    await Eventually().on_loop(lambda: second.turn() and len(second.settled) == 4)
    assert (second.settled, second.sent) == ([1, 3, 2, 4], 3)
    successor.handle(2)
    assert successor.settled == [2] and successor.sender.messages == 1
    second.driver.close()
    successor.driver.close()


@on_loop
async def test_while_another_holds_the_claims(folder: Path) -> None:
    """A replica that is stopped at the wrong moment holds nobody up for longer than that."""
    first, second = Producer(folder, 0), Producer(folder, 1)
    first.handle(1)
    with first.driver._claims.transaction():
        second.handle(2)
        assert second.settled == [] and not second.failed
    await Eventually().on_loop(lambda: second.turn() and second.settled == [2])
    first.driver.close()
    second.driver.close()
