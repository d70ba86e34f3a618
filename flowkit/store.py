"""What a project keeps on disk: the positions of its sources, and its dead letters.

One SQLite database for each project, in its state directory; every replica opens it for itself. In
WAL mode a write that has returned survives `kill -9` of the writer; that of the machine it survives
if the store is opened as `durable`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from flowkit.clock import wall

_SCHEMA = """
CREATE TABLE IF NOT EXISTS positions (
    node TEXT NOT NULL, replica INTEGER NOT NULL, position BLOB NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (node, replica)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead_letters (
    number INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, link TEXT NOT NULL,
    node TEXT NOT NULL, replica INTEGER NOT NULL, raw BLOB NOT NULL, key BLOB NOT NULL,
    headers BLOB NOT NULL, error TEXT NOT NULL, traceback TEXT NOT NULL, attempts INTEGER NOT NULL,
    time REAL NOT NULL, run TEXT NOT NULL, UNIQUE (message, link)
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, status TEXT NOT NULL, time REAL NOT NULL);
"""

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `raw` is its bytes as they came; `attempts` how often tried.

    `number` names it in the store and `time` (seconds since the epoch) is when it came there; both
    are the store's to give. `run` is the run that gave it up.
    """

    message: str
    link: str
    node: str
    replica: int
    raw: bytes
    key: Any
    headers: dict[str, str]
    error: str
    traceback: str
    attempts: int
    run: str = ""
    number: int = 0
    time: float = 0.0


def _key(value: Any) -> Any:
    """A key as it was: msgpack has no tuples, and keys have no lists."""
    return tuple(map(_key, value)) if isinstance(value, list) else value


def _text(text: str) -> str:
    """Without lone surrogates, which SQLite does not take."""
    return text.encode("utf-8", "backslashreplace").decode()


class Store:
    """The database at `path`, made if it is not there. One thread uses one `Store`.

    With `durable` each write is on the disk when it returns. Without it a power cut can take the
    last ones, in their order: a position never stays without the dead letters before it.
    """

    def __init__(self, path: str, durable: bool = False) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.executescript(_SCHEMA)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    # -- positions -----------------------------------------------------------------------------

    def position(self, node: str, replica: int) -> Any:
        """The last position of a source replica; None if it has none."""
        query = "SELECT position FROM positions WHERE node = ? AND replica = ?"
        row = self._db.execute(query, (node, replica)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0])

    def set_position(self, node: str, replica: int, position: Any) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)",
            (node, replica, _encode(position), wall()),
        )

    def forget_positions(self) -> None:
        """The next run begins at the beginning."""
        self._db.execute("DELETE FROM positions")

    # -- dead letters --------------------------------------------------------------------------

    def add_dead_letters(self, letters: list[DeadLetter]) -> None:
        """Keep `letters`; one that is there already (it failed again) keeps its number."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO dead_letters (message, link, node, replica, raw, key, headers, error, "
                "traceback, attempts, time, run) VALUES (?,?,?,?,?,?,?,?,?,?,?,?) "
                "ON CONFLICT (message, link) DO UPDATE SET error = excluded.error, "
                "traceback = excluded.traceback, attempts = excluded.attempts, "
                "time = excluded.time, replica = excluded.replica",
                [
                    (
                        letter.message,
                        letter.link,
                        letter.node,
                        letter.replica,
                        letter.raw,
                        _encode(letter.key),
                        _encode(letter.headers),
                        _text(letter.error),
                        _text(letter.traceback),
                        letter.attempts,
                        wall(),
                        letter.run,
                    )
                    for letter in letters
                ],
            )

    def dead_letters(self, numbers: Sequence[int] | None = None) -> list[DeadLetter]:
        """Dead letters, oldest first: all, or those with `numbers` that are there."""
        query = (
            "SELECT message, link, node, replica, raw, key, headers, error, traceback, attempts, "
            "run, number, time FROM dead_letters"
        )
        decode = msgspec.msgpack.decode
        letters = []
        if numbers is None:
            rows = self._db.execute(query + " ORDER BY number").fetchall()
        else:
            # One by one: a statement has room for so many parameters only.
            rows = []
            for number in sorted(number for number in set(numbers) if 0 < number < 1 << 63):
                rows += self._db.execute(query + " WHERE number = ?", (number,)).fetchall()
        for row in rows:
            message, link, node, replica, raw, key, headers, *rest = row
            letters.append(
                DeadLetter(
                    message, link, node, replica, raw, _key(decode(key)), decode(headers), *rest
                )
            )
        return letters

    def drop_dead_letters(self, numbers: Sequence[int]) -> int:
        """Forget dead letters; returns how many there were."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            return self._db.executemany(
                "DELETE FROM dead_letters WHERE number = ?", [(number,) for number in numbers]
            ).rowcount

    # -- facts ---------------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        """What was noted under `name`; None if nothing was."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # -- runs ----------------------------------------------------------------------------------

    def begin_run(self, run: str) -> None:
        """Note that a run has begun."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM runs")
            self._db.execute("INSERT INTO runs VALUES (?, 'running', ?)", (run, wall()))

    def end_run(self, run: str, clean: bool) -> None:
        """Note that a run was drained (`clean`) or given up."""
        status = "drained" if clean else "given up"
        self._db.execute("UPDATE runs SET status = ? WHERE run = ?", (status, run))

    @property
    def dirty(self) -> bool:
        """Whether the last run was given up, or killed, and left positions to go on from."""
        row = self._db.execute(
            "SELECT 1 FROM runs, positions WHERE status != 'drained' LIMIT 1"
        ).fetchone()
        return row is not None
