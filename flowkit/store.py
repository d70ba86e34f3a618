"""What a project keeps on disk: the positions of its sources, and its dead letters.

One SQLite database for each project, in its state directory; every replica opens it for itself. In
WAL mode a write that has returned survives `kill -9` of the writer.
"""

from __future__ import annotations

import sqlite3
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
    number INTEGER PRIMARY KEY, message TEXT NOT NULL, link TEXT NOT NULL, node TEXT NOT NULL,
    replica INTEGER NOT NULL, raw BLOB NOT NULL, key BLOB NOT NULL, headers BLOB NOT NULL,
    error TEXT NOT NULL, traceback TEXT NOT NULL, attempts INTEGER NOT NULL, time REAL NOT NULL,
    UNIQUE (message, link)
);
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, status TEXT NOT NULL, time REAL NOT NULL);
"""

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `raw` is its bytes as they came; `attempts` how often tried."""

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


class Store:
    """The database at `path`, made if it is not there. One thread uses one `Store`."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
        self._db.execute("PRAGMA journal_mode = WAL")
        # Safe against kill -9; only a power cut can take the last commits, not the database.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)

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
        """Keep `letters`; one that is there already (a redelivery failed again) is replaced."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR REPLACE INTO dead_letters (message, link, node, replica, raw, key, "
                "headers, error, traceback, attempts, time) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                [
                    (
                        letter.message,
                        letter.link,
                        letter.node,
                        letter.replica,
                        letter.raw,
                        _encode(letter.key),
                        _encode(letter.headers),
                        letter.error,
                        letter.traceback,
                        letter.attempts,
                        wall(),
                    )
                    for letter in letters
                ],
            )

    def dead_letters(self) -> list[DeadLetter]:
        """All dead letters, oldest first."""
        rows = self._db.execute(
            "SELECT message, link, node, replica, raw, key, headers, error, traceback, attempts "
            "FROM dead_letters ORDER BY number"
        )
        decode = msgspec.msgpack.decode
        return [
            DeadLetter(
                message, link, node, replica, raw, decode(key), decode(headers), error, trace, tries
            )
            for message, link, node, replica, raw, key, headers, error, trace, tries in rows
        ]

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
