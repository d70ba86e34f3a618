"""Which producer replica of a durable link writes a batch: they claim it, before they do.

Several replicas may be at the same work: one was killed before it could acknowledge it, or the
work came by two ways because somebody before them was killed. What they make of it has the same
lineage, but each journal gives its batches ids of its own, by which consumers tell copies from
news. So a batch must get into one journal only, whatever dies and when.

All of them share one database, in the run directory. Who claims a batch first is its owner, and
writes it. Whoever else makes it leaves it out if the owner's journal has it. If that does not have
it (yet), they wait: the owner is writing, or it was killed in between. Then only its successor can
tell whether the journal holds the batch, since what a killed writer leaves in SQLite's log may be
found by the next one who recovers it, or be overwritten. A successor opens its journal, which
settles that, and then gives up the claims that came to nothing.

Nobody waits for a claim with a claim of its own in hand that is not being written, so nobody waits
for ever. Claims are of one run and need not survive the machine.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowkit.journal import JournalFull

_SCHEMA = """
CREATE TABLE IF NOT EXISTS claims (
    span BLOB NOT NULL, root INTEGER NOT NULL, lineage BLOB NOT NULL, owner INTEGER NOT NULL,
    PRIMARY KEY (span, root, lineage)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lows (span BLOB PRIMARY KEY, low INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lives (replica INTEGER PRIMARY KEY, lives INTEGER NOT NULL);
"""

PATIENCE = 0.1
"""Seconds to wait for another replica's transaction: they take less than a millisecond."""


class Busy(Exception):
    """Another replica has the database, and does not let go of it at once: try again later."""


class Claims:
    """The claims on the batches of one link, at `path`, for producer `replica`.

    The first transaction gives up the claims of earlier incarnations of the replica on batches that
    are not in `journaled`. All raise `Busy`, `JournalFull`, and sqlite3.Error if the disk fails.
    """

    def __init__(self, path: Path, replica: int, journaled: Iterable[bytes]) -> None:
        self._path = path
        self._replica = replica
        self._journaled: set[bytes] | None = set(journaled)
        self._db: sqlite3.Connection | None = None
        self.inherited = path.exists()
        """Whether there may be claims of an earlier incarnation that others wait for."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep all others from claiming; what is claimed within it counts when it is left."""
        try:
            if self._db is None:
                self._db = self._open()
            if self._journaled is not None:
                self._settle(self._db, self._journaled)
                self._journaled = None
                self.inherited = False
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                yield
        except sqlite3.OperationalError as error:
            code = int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Busy(str(self._path)) from error
            if code == sqlite3.SQLITE_FULL:
                raise JournalFull(str(self._path)) from error
            raise

    def owner(self, lineage: bytes, span: int) -> int | None:
        """Claim a batch, in a transaction; the replica whose it is now, or was before.

        `span` is how far its root is above the lowest that can come again. None: the root is below
        that, so that all that was made of it is in journals, and what comes now is a late copy.
        """
        assert self._db is not None
        key, root = lineage[:4], int.from_bytes(lineage[4:10])
        row = self._db.execute("SELECT low FROM lows WHERE span = ?", (key,)).fetchone()
        low = int(row[0]) if row else 0
        if root - span > low:
            low = root - span
            self._db.execute("INSERT OR REPLACE INTO lows VALUES (?, ?)", (key, low))
            self._db.execute("DELETE FROM claims WHERE span = ? AND root < ?", (key, low))
        if root < low:
            return None
        place = (key, root, lineage)
        claim = "INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?)"
        if self._db.execute(claim, (*place, self._replica)).rowcount:
            return self._replica
        query = "SELECT owner FROM claims WHERE span = ? AND root = ? AND lineage = ?"
        return int(self._db.execute(query, place).fetchone()[0])

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=PATIENCE)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(_SCHEMA)
        except BaseException:
            db.close()
            raise
        return db

    def _settle(self, db: sqlite3.Connection, journaled: set[bytes]) -> None:
        db.execute("BEGIN IMMEDIATE")
        with db:
            query = "SELECT span, root, lineage FROM claims WHERE owner = ?"
            rows = db.execute(query, (self._replica,)).fetchall()
            db.executemany(
                "DELETE FROM claims WHERE span = ? AND root = ? AND lineage = ?",
                [row for row in rows if row[2] not in journaled],
            )
            # Always something, so that no claim which the incarnation before had half written
            # comes to light afterwards.
            db.execute(
                "INSERT INTO lives VALUES (?, 1) "
                "ON CONFLICT (replica) DO UPDATE SET lives = lives + 1",
                (self._replica,),
            )
