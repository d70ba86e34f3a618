"""The public suites pass for what is right, and fail for what is wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit import In, Many, Meta, Out, Sink, Source
from flowkit.launchers.base import Launcher, OnExit, OnStarted
from flowkit.launchers.inprocess import InProcessLauncher
from flowkit.launchers.process import ProcessLauncher
from flowkit.testing.launchers import LauncherConformance
from flowkit.testing.sinks import SinkConformance
from flowkit.testing.sources import SourceConformance
from flowkit.transport.memory import MemoryHub
from tests.testing.words import Endless, Read

# ---------------------------------------------------------------------------- sources


class TestLines(SourceConformance):
    @pytest.fixture(autouse=True)
    def _text(self, tmp_path: Path) -> None:
        self.path = tmp_path / "text"
        self.path.write_text("".join(f"line {number}\n" for number in range(20)))

    def source(self) -> Source:
        return Read(str(self.path))


class Pairs(Source):
    """Positions that are tuples, messages by twos, an async generator, and a known length."""

    out = Out(int)

    async def read(self, position: Any) -> AsyncIterator[tuple[Many[int], tuple[int, str]]]:
        for number in range(position[0] if position else 0, 10):
            await asyncio.sleep(0)
            yield Many([2 * number, 2 * number + 1]), (number + 1, "x")

    def length(self) -> int:
        return 20


class TestPairs(SourceConformance):
    def source(self) -> Source:
        return Pairs()


class TestEndless(SourceConformance):
    limit = 50

    def source(self) -> Source:
        return Endless()


class Before(Source):
    """Yields the position before each message: one comes twice."""

    out = Out(int)

    def read(self, position: int | None) -> Iterator[tuple[int, int]]:
        for number in range(position or 0, 5):
            yield number, number


class Beginning(Source):
    """Begins at the beginning whatever it is told."""

    out = Out(int)

    def read(self, position: int | None) -> Iterator[tuple[int, int]]:
        yield from ((number, number + 1) for number in range(5))


class Never(Source):
    """Other messages each time."""

    out = Out(int)
    made = 0

    def read(self, position: int | None) -> Iterator[tuple[int, int]]:
        Never.made += 1
        yield Never.made, 1


class Boasts(Beginning):
    """Says that it has more messages than it has."""

    def length(self) -> int:
        return 6


@pytest.mark.parametrize(
    ("source", "test"),
    [
        (Before, "it_goes_on_after_any_position"),
        (Beginning, "it_goes_on_after_any_position"),
        (Never, "it_reads_the_same_each_time"),
        (Boasts, "it_knows_its_length"),
    ],
)
def test_a_wrong_source_fails(source: type[Source], test: str) -> None:
    suite = SourceConformance()
    suite.source = source  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        getattr(suite, f"test_{test}")()


# ---------------------------------------------------------------------------- sinks


class Table(Sink):
    """Rows in SQLite, once for each id."""

    rows = In(str, batch=10)
    insert = "INSERT OR IGNORE INTO rows VALUES (?, ?)"

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self) -> None:
        self.db = sqlite3.connect(self.path)
        self.db.execute("CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, row TEXT)")

    def on_rows(self, rows: list[str], metas: list[Meta]) -> None:
        pairs = [(meta.id, row) for row, meta in zip(rows, metas, strict=True)]
        self.db.executemany(self.insert, pairs)

    async def commit(self) -> None:
        self.db.commit()

    def teardown(self) -> None:
        self.db.close()


class Eager(Table):
    """Does not wait for commit(): right too, since it is idempotent."""

    def on_rows(self, rows: list[str], metas: list[Meta]) -> None:
        super().on_rows(rows, metas)
        self.db.commit()


class Forgets(Table):
    """Commits the wrong way round."""

    async def commit(self) -> None:
        self.db.rollback()


class Doubles(Table):
    """Takes what comes again for something new."""

    insert = "INSERT INTO rows VALUES (? || hex(randomblob(8)), ?)"


class SqliteSuite(SinkConformance):
    messages = ["a", "b", "c"]
    cls: type[Table] = Table
    path: Path

    def sink(self) -> Sink:
        return self.cls(self.path)

    def stored(self) -> list[Any]:
        db = sqlite3.connect(self.path)
        rows = [row for (row,) in db.execute("SELECT row FROM rows")]
        db.close()
        return rows


class TestTable(SqliteSuite):
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "rows.db"


class TestEager(TestTable):
    cls = Eager


class TestDoubles(TestTable):
    cls = Doubles
    idempotent = False


@pytest.mark.parametrize(
    ("cls", "test"),
    [
        (Forgets, "what_is_acknowledged_is_stored"),
        (Forgets, "what_has_ended_is_stored"),
        (Doubles, "what_it_had_committed_when_it_died_may_come_again"),
    ],
)
def test_a_wrong_sink_fails(cls: type[Table], test: str, tmp_path: Path) -> None:
    suite = SqliteSuite()
    suite.cls, suite.path = cls, tmp_path / "rows.db"
    with pytest.raises(AssertionError):
        getattr(suite, f"test_{test}")()


# ---------------------------------------------------------------------------- launchers


class TestInProcess(LauncherConformance):
    def launcher(self, on_started: OnStarted, on_exit: OnExit) -> Launcher:
        return InProcessLauncher(on_started, on_exit, MemoryHub())


@pytest.mark.e2e
class TestProcesses(LauncherConformance):
    control = "ipc:///nowhere/control"

    def launcher(self, on_started: OnStarted, on_exit: OnExit) -> Launcher:
        return ProcessLauncher(on_started, on_exit, preload=["flowkit.testing.launchers"])
