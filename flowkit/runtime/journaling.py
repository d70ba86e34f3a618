"""Drives the journal of one durable output link: what the engine asks for, once a turn."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path

from flowkit.claims import Busy, Claims
from flowkit.journal import Entry, Journal, JournalFull, has_journaled
from flowkit.protocol import events
from flowkit.protocol.engine import Engine
from flowkit.protocol.lineage import Work
from flowkit.protocol.sender import OutBatch
from flowkit.runtime.spec import ReplicaSpec
from flowkit.topology.plan import LinkPlan
from flowkit.units import duration

log = logging.getLogger("flowkit.replica")

RETRY = 1.0
"""Seconds until a full disk is tried again."""

TIDY = 0.2
"""Seconds that acknowledged batches may stay in the journal: taking them out earlier would cost an
fsync of its own, and staying costs nothing but a copy that is recognised."""

CLAIMED = 0.02
"""Seconds until a batch is looked at again that another replica has claimed and not yet written."""


def journal_path(directory: Path, link: LinkPlan, replica: int) -> Path:
    """The journal of a producer replica of `link`; the name is the link's, for people."""
    return directory / f"{_name(link)}.{replica}.journal"


def _name(link: LinkPlan) -> str:
    return f"{link.source}.{link.out}-{link.target}.{link.into}"


class JournalDriver:
    """The journal of `link` for the replica of `spec`. Gives the engine what it held.

    With ``fsync: interval`` it asks for the disk once in an interval, and batches do not wait for
    that: the death of every process loses nothing, that of the machine the last interval.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        link: LinkPlan,
        engine: Engine,
        wake: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._link = link
        self._engine = engine
        self._wake = wake
        self._fail = fail
        kind, _, interval = link.fsync.partition(":")
        self._interval = duration(interval) if kind == "interval" else None
        groups = link.consumers if link.route != "balance" else 1
        path = journal_path(Path(spec.journals), link, spec.replica)
        self._journal = Journal(path, spec.run, groups, link.fsync)
        self._spec = spec
        self._asked: deque[OutBatch] = deque()
        self._waiting: list[tuple[OutBatch, Entry]] = []
        self._erasing: list[int] = []
        self._full = False
        self._held_up = False
        """Whether the first that was asked for has to wait for another replica."""
        self._timer: asyncio.TimerHandle | None = None
        self._syncing: asyncio.TimerHandle | None = None
        try:
            entries = self._journal.load()
        except BaseException:
            self._journal.close()
            raise
        self._sender = sender = engine.senders[link.index]
        lineages = self._journal.lineages()
        claims = Path(spec.run_directory) / f"{_name(link)}.claims"
        self._claims = Claims(claims, spec.replica, lineages)
        sender.made(lineages)
        sender.restore([_batch(entry) for entry in entries], [one.sequence for one in entries])

    def take(self, action: events.Persist | events.Erase) -> None:
        """Collect what the engine asks for; `flush` writes it."""
        if isinstance(action, events.Erase):
            self._journal.settle([action.sequence])
            self._erasing.append(action.sequence)
            return
        self._asked += action.batches

    def flush(self) -> None:
        """Once a turn: write what something waits for; the rest has time."""
        due = self._asked or self._waiting or self._claims.inherited
        if due and not self._full and not self._held_up:
            self.write()
        elif self._journal.dirty and self._timer is None:
            delay = RETRY if self._full else TIDY
            self._timer = asyncio.get_running_loop().call_later(delay, self._later)

    def write(self) -> None:
        """Write everything that was collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not (self._journal.dirty or self._asked or self._claims.inherited):
            return
        try:
            try:
                self._admit()
            finally:
                # Also if there is no room for claims, which may be on another disk.
                if self._journal.dirty:
                    self._journal.commit()
        except JournalFull as error:
            if not self._full:
                log.error(
                    "no room on the disk for the journal %s: %s waits until there is",
                    error,
                    self._link.name,
                )
            self._full = True
            self._timer = asyncio.get_running_loop().call_later(RETRY, self._later)
            return
        except (sqlite3.Error, OSError) as error:
            # What is on the disk is not known any more: only a new start can tell.
            self._fail(error)
            return
        if self._full:
            self._full = False
            log.warning("there is room for the journal of %s again", self._link.name)
        if self._held_up:
            self._timer = asyncio.get_running_loop().call_later(CLAIMED, self._later)
        if self._interval is not None and self._syncing is None:
            loop = asyncio.get_running_loop()
            self._syncing = loop.call_later(self._interval, self._sync)
        self._safe()

    def close(self) -> None:
        for timer in (self._timer, self._syncing):
            if timer is not None:
                timer.cancel()
        self._journal.close()
        self._claims.close()

    def _admit(self) -> None:
        """Append to the journal what was asked for, in order, up to a batch that another replica
        has claimed and not written."""
        self._held_up = False
        if self._sender.terms.producers == 1 and not self._claims.inherited:
            while self._asked:
                self._append(self._asked.popleft())
        elif self._asked or self._claims.inherited:
            try:
                with self._claims.transaction():
                    decided = self._claim()
            except Busy:
                self._held_up = True
                return
            superseded: list[OutBatch] = []
            for mine in decided:
                batch = self._asked.popleft()
                if mine:
                    self._append(batch)
                else:
                    superseded.append(batch)
            if superseded:
                self._sender.superseded(superseded)
                self._wake()

    def _claim(self) -> list[bool]:
        """Of the first that were asked for, whether they are written here and not elsewhere."""
        decided = []
        mine = self._spec.replica
        for batch in self._asked:
            # Nobody else makes what begins here.
            owner = mine if batch.own else self._claims.owner(batch.id, batch.span)
            if not (owner is None or owner == mine or self._is_journaled(owner, batch)):
                self._held_up = True
                break
            decided.append(owner == mine)
        return decided

    def _is_journaled(self, owner: int, batch: OutBatch) -> bool:
        path = journal_path(Path(self._spec.journals), self._link, owner)
        return has_journaled(path, self._spec.run, batch.id)

    def _append(self, batch: OutBatch) -> None:
        entry = self._journal.append(
            batch.id, batch.cut, batch.count, batch.group, bytes(batch.payload), batch.extras
        )
        self._journal.forget(batch.id[:4], int.from_bytes(batch.id[4:10]) - batch.span)
        self._waiting.append((batch, entry))

    def _sync(self) -> None:
        self._syncing = None
        try:
            self._journal.sync()
        except OSError as error:
            self._fail(error)

    def _later(self) -> None:
        self._timer = None
        self.write()

    def _safe(self) -> None:
        """What waited is in the journal: its producer's input may be acknowledged. What was to be
        taken out is not there any more."""
        erased, self._erasing = self._erasing, []
        if erased:
            self._engine.erased(self._link.index, erased)
            self._wake()
        waiting, self._waiting = self._waiting, []
        if waiting:
            batches = [batch for batch, _ in waiting]
            self._engine.persisted(
                self._link.index, batches, [entry.sequence for _, entry in waiting]
            )
            self._wake()


def _batch(entry: Entry) -> OutBatch:
    """A batch as the journal has it."""
    work = Work(entry.lineage, 0, entry.cut, lambda: None)
    return OutBatch(
        work, entry.lineage, entry.messages, entry.payload, entry.extras, entry.group, own=False
    )
