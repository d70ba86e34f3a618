"""The journal of a durable link: batches on disk until they are acknowledged.

One SQLite database for each producer replica of a durable link, written by that replica alone. A
batch is in it before its producer's input is acknowledged, so that it survives even if every
process is killed; it is taken out when its consumer has acknowledged it.

A torn tail is cut off by SQLite's write-ahead log: whose `commit` has not returned, may be missing.
Rot is another matter, and SQLite notices little of it: every row carries a checksum, each
transaction notes how many rows there are and the sum of their checksums, and a log whose middle
does not read, which SQLite would take for a torn tail, is told from one by what comes after.

`append` and `settle` collect; `commit` writes them as one transaction: the group that shares one
fsync. Once it has returned, they survive the death of every process. `fsync` says what survives
that of the machine: with ``group`` the same; with ``interval`` what was there at the last `sync`;
with ``never`` what the system had written by itself.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal, NamedTuple
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

RESERVE = 1 << 20
"""Bytes that a journal leaves free on the disk. Without them it could fill the disk by itself, and
then not even take out what is acknowledged, since that has to be written, too."""

_ROW = 300
"""Bytes that a batch needs beside its content, at most."""

_LOG_SIZE = 16 << 20
"""More than the log usually holds before it goes into the database."""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOG_HEADER, _FRAME_HEADER = 32, 24
_SYNCHRONOUS = {"group": "FULL", "interval": "NORMAL", "never": "OFF"}


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
    make batches again. Raises `JournalDamaged`, and OperatorError where the disk fails.
    """

    def __init__(self, path: Path, run: str, groups: int, fsync: str = "group") -> None:
        self._path = path
        self._run = run
        self._pending: list[Entry] = []
        self._settled: list[int] = []
        self._forget: dict[bytes, int] = {}
        self._held: dict[int, int] = {}
        """The checksum of each batch in the database."""
        self._total = 0
        """The sum of them."""
        kind = fsync.partition(":")[0]
        try:
            if kind == "group" and path.exists() and _log_is_broken(path):
                raise self._damaged("its log is broken in the middle")
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                # Else all that is taken out is first written again, as zeros.
                self._db.execute("PRAGMA secure_delete = OFF")
                self._db.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[kind]}")
                self._db.executescript(_SCHEMA)
                self._check_groups(groups)
                self._db.execute("DELETE FROM lineages WHERE run != ?", (run,))
                row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batches'")
                self._last = int((row.fetchone() or (0,))[0])
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def load(self) -> list[Entry]:
        """The batches that are not acknowledged, oldest first. All that can be checked is.

        Call it before anything is written.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                entries = self._read()
                # Always something: what a killed maker had half written is either among them, or
                # is overwritten now and never comes to light.
                self._db.execute(
                    "INSERT INTO facts VALUES ('opened', '1') "
                    "ON CONFLICT (name) DO UPDATE SET value = value + 1"
                )
        except (sqlite3.Error, TypeError, AttributeError) as error:  # a column of another type
            raise self._unusable(error) from error
        self._last = max(self._last, entries[-1].sequence if entries else 0)
        return entries

    def _read(self) -> list[Entry]:
        entries = []
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._damaged(str(found).replace("\n", " "))
        rows = self._db.execute(
            "SELECT sequence, lineage, cut, count, slot, payload, extras, crc FROM batches "
            "ORDER BY sequence"
        )
        for *fields, crc in rows:
            entry = Entry(*fields)
            if entry.checksum() != crc:
                raise self._damaged(f"batch {entry.sequence} is not what was written")
            entries.append(entry)
            self._held[entry.sequence] = crc
        noted = self._db.execute("SELECT value FROM facts WHERE name = 'held'").fetchone()
        self._total = sum(self._held.values())
        if (noted or ("0 0",))[0] != f"{len(entries)} {self._total}":
            raise self._damaged("there are other batches in it than were written")
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

        Raises `JournalFull` if there is no room, and sqlite3.Error if the disk fails; then no batch
        was taken in, and everything that was not written is still collected.
        """
        pending = self._pending
        if pending and not self._has_room(pending):
            self._make_room()
            if not self._has_room(pending):
                raise JournalFull(str(self._path))
        try:
            self._transact(pending)
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_FULL:
                raise
            self._make_room()
            raise JournalFull(str(self._path)) from error
        self._pending = []
        return pending

    def _has_room(self, pending: list[Entry]) -> bool:
        """Whether `RESERVE` stays free after these are written."""
        disk = os.statvfs(self._path)
        free = disk.f_bavail * disk.f_frsize - RESERVE
        need = sum(len(one.payload) + len(one.extras) + _ROW for one in pending)
        if free > 2 * need + _LOG_SIZE:
            return True
        page, pages, unused = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
        # The log has to hold them, then the database; which owes the log something already.
        owed = max(0, pages * page - self._path.stat().st_size)
        return bool(free >= owed + need + max(0, need - unused * page))

    def _make_room(self) -> None:
        """Take out what is acknowledged, and empty the log."""
        with suppress(sqlite3.OperationalError):
            if self._settled:
                self._transact([])
        with suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def sync(self) -> None:
        """With ``fsync: interval``: what was committed survives the machine, from now on.

        Raises OSError.
        """
        log = f"{self._path}-wal"
        with open(log if os.path.exists(log) else self._path, "rb+") as file:
            os.fsync(file.fileno())

    def _transact(self, pending: list[Entry]) -> None:
        """Write `pending` and what is to be taken out, or nothing."""
        out = self._held.keys() & set(self._settled)
        new = {entry.sequence: entry.checksum() for entry in pending}
        count = len(self._held) - len(out) + len(new)
        total = self._total - sum(self._held[sequence] for sequence in out) + sum(new.values())
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._write(pending, self._settled, self._forget)
            held = f"{count} {total}"
            self._db.execute("INSERT OR REPLACE INTO facts VALUES ('held', ?)", (held,))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        for sequence in out:
            del self._held[sequence]
        self._held |= new
        self._total = total
        self._settled, self._forget = [], {}

    def _write(self, pending: list[Entry], settled: list[int], forget: dict[bytes, int]) -> None:
        # First what makes room.
        self._db.executemany(
            "DELETE FROM batches WHERE sequence = ?", [(sequence,) for sequence in settled]
        )
        self._db.executemany(
            "DELETE FROM lineages WHERE run = ? AND span = ? AND root < ?",
            [(self._run, span, low) for span, low in forget.items()],
        )
        self._db.executemany(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*entry, entry.checksum()) for entry in pending],
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO lineages VALUES (?, ?, ?, ?)",
            [
                (self._run, one.lineage[:4], int.from_bytes(one.lineage[4:10]), one.lineage)
                for one in pending
            ],
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

    def _unusable(self, error: Exception) -> OperatorError:
        if not isinstance(error, sqlite3.Error) or _code(error) in _DAMAGE:
            return self._damaged(str(error))
        if _code(error) == sqlite3.SQLITE_FULL:
            return OperatorError(f"no room on the disk for the journal {self._path}")
        return OperatorError(f"the journal {self._path} cannot be used: {error}")


def has_journaled(path: Path, run: str, lineage: bytes) -> bool:
    """Whether the journal at `path`, of another replica, has taken in that batch in this run.

    False is not for ever if its maker died while it was writing: what it left is found, or is gone,
    when its successor has opened the journal.
    """
    if not path.exists():
        return False
    query = "SELECT 1 FROM lineages WHERE run = ? AND span = ? AND root = ? AND lineage = ?"
    place = (run, lineage[:4], int.from_bytes(lineage[4:10]), lineage)
    try:
        with closing(_open_to_read(path, timeout=0.0)) as db:
            return bool(db.execute(query, place).fetchall())
    except sqlite3.Error as error:
        # Its maker has not made the table, or it died and somebody who may write has to open it.
        waits = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY)
        if _code(error) in (*waits, sqlite3.SQLITE_CANTOPEN):
            return False
        raise sqlite3.DatabaseError(f"{path}: {error}") from error


def holds_batches(path: Path) -> bool:
    """Whether the journal at `path` has batches that were never acknowledged, or is damaged."""
    if _was_being_made(path):
        return False
    try:
        with closing(_open_to_read(path)) as db:
            # Without the table its maker died at once.
            made = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'batches'").fetchone()
            held = made and db.execute("SELECT 1 FROM batches LIMIT 1").fetchone()
        return held is not None or _log_is_broken(path)
    except sqlite3.Error:
        return True


def _was_being_made(path: Path) -> bool:
    """Whether its maker died before the database had a write-ahead log, and so any table. What it
    had begun then is undone by whoever opens it to write, which one that reads cannot."""
    return Path(f"{path}-journal").exists() and not Path(f"{path}-wal").exists()


def _open_to_read(path: Path, timeout: float = 5.0) -> sqlite3.Connection:
    """A connection that changes nothing, and leaves the log where it is when it is closed."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout)


def _log_is_broken(path: Path) -> bool:
    """Whether the write-ahead log of the database at `path` holds commits beyond one that does not
    read. SQLite ends there, as it must if the tail is torn; but a commit begins only when the one
    before is on the disk, so behind a torn one there is no other.

    What SQLite has read stands in its shared index, at the place that its documentation of the
    format names; the frames beyond that are of the log if they bear its salt.
    """
    log = Path(f"{path}-wal")
    if not log.exists():
        return False
    with closing(_open_to_read(path)) as db:
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with open(f"{path}-shm", "rb") as index:
                read = int.from_bytes(index.read(20)[16:], sys.byteorder)
            size = log.stat().st_size
        except FileNotFoundError:
            return False  # no log
    with open(log, "rb") as file:
        header = file.read(_LOG_HEADER)
        if not read and size > _LOG_HEADER and not _is_whole(header):
            return True
        frame = _FRAME_HEADER + int.from_bytes(header[8:12])
        commits = 0
        for place in range(_LOG_HEADER + read * frame, size - _FRAME_HEADER + 1, frame):
            file.seek(place)
            head = file.read(_FRAME_HEADER)
            commits += head[8:16] == header[16:24] and head[4:8] != bytes(4)
    return commits > 1


def _is_whole(header: bytes) -> bool:
    """Whether the header of a log is as it was written; it has a checksum of its own."""
    magic, *words = (int.from_bytes(header[at : at + 4]) for at in range(0, _LOG_HEADER, 4))
    order: Literal["big", "little"] = "big" if magic & 1 else "little"
    first = second = 0
    for at in range(0, 24, 8):
        first = first + int.from_bytes(header[at : at + 4], order) + second & 0xFFFFFFFF
        second = second + int.from_bytes(header[at + 4 : at + 8], order) + first & 0xFFFFFFFF
    return magic >> 1 == 0x377F0682 >> 1 and [first, second] == words[-2:]


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary error code; 0 if it is none of SQLite's errors."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
