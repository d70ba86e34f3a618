"""The journal of a durable link: batches on disk until they are acknowledged.

One SQLite database for each producer replica of a durable link, written by that replica alone. A
batch is in it before its producer's input is acknowledged, so that it survives even if every
process is killed; it is taken out when its consumer has acknowledged it. SQLite's write-ahead log
cuts off a torn tail by itself; every row carries a checksum, because SQLite does not notice rot.

`append` and `settle` collect; `commit` writes them as one transaction: the group that shares one
fsync. `fsync` says how durable that is: ``group`` survives a power cut once `commit` has returned;
``never`` survives the death of every process, but not of the machine.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from flowkit.errors import OperatorError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, lineage BLOB NOT NULL, cut INTEGER NOT NULL,
    count INTEGER NOT NULL, slot INTEGER NOT NULL, payload BLOB NOT NULL, extras BLOB NOT NULL,
    crc INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS lineages (
    run TEXT NOT NULL, span BLOB NOT NULL, root INTEGER NOT NULL, lineage BLOB NOT NULL,
    PRIMARY KEY (run, span, root, lineage)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Entry(NamedTuple):
    """A batch in the journal. `lineage` is the id it was made under, 16 bytes; `group` the consumer
    replica it is for, -1 for any."""

    sequence: int
    lineage: bytes
    cut: int
    messages: int
    group: int
    payload: bytes
    extras: bytes

    def checksum(self) -> int:
        """Of everything but itself."""
        head = f"{self.sequence}:{self.cut}:{self.messages}:{self.group}:".encode()
        return crc32(self.extras, crc32(self.payload, crc32(self.lineage, crc32(head))))


class JournalDamaged(OperatorError):
    """A journal cannot be read: what it holds is not what was written."""


class JournalFull(Exception):
    """There is no room on the disk; nothing was written, and `commit` may be tried again."""


class Journal:
    """The journal at `path`, made if it is not there.

    `groups` is how many consumer replicas batches are cut for; a journal that still holds batches
    for another number is refused. `run` names the run, for lineages of which only this run can
    make batches again. Raises `JournalDamaged`, and sqlite3.Error where the disk fails.
    """

    def __init__(self, path: Path, run: str, groups: int, fsync: str = "group") -> None:
        self._path = path
        self._run = run
        self._pending: list[Entry] = []
        self._settled: list[int] = []
        self._forget: dict[bytes, int] = {}
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'OFF' if fsync == 'never' else 'FULL'}")
            self._db.executescript(_SCHEMA)
            self._check_groups(groups)
            self._db.execute("DELETE FROM lineages WHERE run != ?", (run,))
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batches'")
            self._last = int((row.fetchone() or (0,))[0])
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def load(self) -> list[Entry]:
        """The batches that are not acknowledged, oldest first; each is checked."""
        entries = []
        try:
            rows = self._db.execute(
                "SELECT sequence, lineage, cut, count, slot, payload, extras, crc FROM batches "
                "ORDER BY sequence"
            )
            for *fields, crc in rows:
                entry = Entry(*fields)
                if entry.checksum() != crc:
                    raise self._damaged(f"batch {entry.sequence} is not what was written")
                entries.append(entry)
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error
        return entries

    def lineages(self) -> list[bytes]:
        """The ids of batches that this run has journaled and could make again."""
        rows = self._db.execute(
            "SELECT span, root, lineage FROM lineages WHERE run = ? ORDER BY root", (self._run,)
        )
        return [bytes(lineage) for _, _, lineage in rows]

    def append(
        self, lineage: bytes, cut: int, messages: int, group: int, payload: bytes, extras: bytes
    ) -> Entry:
        """Take a batch in; it is on disk when `commit` has returned."""
        self._last += 1
        entry = Entry(self._last, lineage, cut, messages, group, payload, extras)
        self._pending.append(entry)
        return entry

    def settle(self, sequences: Iterable[int]) -> None:
        """These batches are acknowledged: take them out with the next `commit`."""
        self._settled.extend(sequences)

    def forget(self, span: bytes, low: int) -> None:
        """No batch of a root below `low` of that span can be made again."""
        self._forget[span] = max(low, self._forget.get(span, 0))

    @property
    def dirty(self) -> bool:
        """Whether `commit` has something to write."""
        return bool(self._pending or self._settled)

    def commit(self) -> Sequence[Entry]:
        """Write what was collected, as one transaction; returns the batches that are safe now.

        Raises `JournalFull` if there is no room, and sqlite3.Error if the disk fails; then nothing
        was written and everything is still collected.
        """
        pending, settled, forget = self._pending, self._settled, self._forget
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._write(pending, settled, forget)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise JournalFull(str(self._path)) from error
            raise
        self._pending, self._settled, self._forget = [], [], {}
        return pending

    def _write(self, pending: list[Entry], settled: list[int], forget: dict[bytes, int]) -> None:
        if pending:
            self._db.executemany(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(*entry, entry.checksum()) for entry in pending],
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO lineages VALUES (?, ?, ?, ?)",
                [
                    (
                        self._run,
                        entry.lineage[:4],
                        int.from_bytes(entry.lineage[4:10]),
                        entry.lineage,
                    )
                    for entry in pending
                ],
            )
        self._db.executemany(
            "DELETE FROM batches WHERE sequence = ?", [(sequence,) for sequence in settled]
        )
        self._db.executemany(
            "DELETE FROM lineages WHERE run = ? AND span = ? AND root < ?",
            [(self._run, span, low) for span, low in forget.items()],
        )

    def close(self) -> None:
        self._db.close()

    def _check_groups(self, groups: int) -> None:
        row = self._db.execute("SELECT value FROM facts WHERE name = 'groups'").fetchone()
        held = self._db.execute("SELECT count(*) FROM batches").fetchone()[0]
        if row is not None and int(row[0]) != groups and held:
            raise OperatorError(
                f"the journal {self._path} holds {held} batches for {row[0]} consumer replicas, "
                f"now there are {groups}",
                hint=f"drain it with {row[0]} replicas first, or drop it with --fresh",
            )
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('groups', ?)", (str(groups),))

    def _damaged(self, text: str) -> JournalDamaged:
        return JournalDamaged(
            f"the journal {self._path} is damaged: {text}",
            hint="restore it from a copy, or drop what it holds with --fresh",
        )


def holds_batches(path: Path) -> bool:
    """Whether the journal at `path` has batches that were never acknowledged, or is damaged."""
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
    except sqlite3.Error:
        return True
    try:
        return db.execute("SELECT 1 FROM batches LIMIT 1").fetchone() is not None
    except sqlite3.Error:
        return True
    finally:
        db.close()
