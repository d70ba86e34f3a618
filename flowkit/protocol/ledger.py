"""The books of a link: what was sent and what became of it.

The counters of one output link of one incarnation are a row of 64-bit integers in memory that the
supervisor can read after the process is dead, so that a death forgets nothing. The producer keeps
them: `done` counts when the acknowledgement comes, less what it says was given up.

Always: sent = done + dropped + dead lettered + superseded + in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass, field
from typing import NamedTuple

REASONS = (
    "handler failed",
    "consumer died",
    "producer died",
    "no room: oldest",
    "no room: newest",
    "stopped",
    "link broken",
    "request failed",
    "timed out",
    "server lost",
    "cancelled",
    "gap",
    "no peer",
)
"""Why messages are dropped; their order is their place in the row."""

SENT, DELIVERED, DONE, REDELIVERED, DEAD_LETTERED, OWN_SENT, OWN_SETTLED, SENT_BYTES = range(8)
_REASON = 8
_REST = _REASON + len(REASONS)
QUEUED, CREDIT, FULL_NS, WINDOW_NS = range(_REST, _REST + 4)
"""Beside the books: messages that wait for credit, batches that consumers would take at once,
nanoseconds that this link has held its producer up, and those of them because its window was used
up rather than because the consumers took no more."""
HELD = _REST + 4
"""Messages that `run()` has sent, and that wait for room to be made batches of: sent as well."""
ROW = _REST + 5
"""Integers in the row of a link."""


class Flow(NamedTuple):
    """How a link flows; see `QUEUED`. The first three only grow."""

    sent_bytes: int = 0
    full_ns: int = 0
    window_ns: int = 0
    queued: int = 0
    credit: int = 0


class Books:
    """The row of one output link in one incarnation of its producer.

    `row` is anything that holds `ROW` integers: a list, or a view of shared memory. `own` messages
    are those whose stream began in this replica (a source's, a timer's): nobody redelivers them.
    """

    __slots__ = ("_row",)

    def __init__(self, row: MutableSequence[int] | memoryview[int]) -> None:
        if len(row) != ROW:
            raise ValueError(f"a row of {ROW} integers, not {len(row)}")
        self._row = row

    def sent(self, count: int, own: bool, size: int = 0) -> None:
        self._row[SENT] += count
        self._row[SENT_BYTES] += size
        if own:
            self._row[OWN_SENT] += count

    def held(self, count: int) -> None:
        """So many `own` messages are sent, and not yet told with `sent`."""
        self._row[HELD] = count

    def safe(self, count: int) -> None:
        """`count` of the `own` messages are in a journal: a later incarnation sends them again."""
        self._row[OWN_SETTLED] += count

    def delivered(self, count: int, again: bool) -> None:
        self._row[DELIVERED] += count
        if again:
            self._row[REDELIVERED] += count

    def settled(self, count: int, dead_lettered: int, dropped: int, own: bool) -> None:
        """`count` messages were acknowledged, of which some were given up by the consumer."""
        row = self._row
        row[DONE] += count - dead_lettered - dropped
        row[DEAD_LETTERED] += dead_lettered
        row[_REASON] += dropped
        if own:
            row[OWN_SETTLED] += count

    def dropped(self, count: int, reason: str, own: bool) -> None:
        self._row[_REASON + REASONS.index(reason)] += count
        if own:
            self._row[OWN_SETTLED] += count

    def dead_lettered(self, count: int, own: bool) -> None:
        """Given up before they left: they could not be encoded."""
        self._row[DEAD_LETTERED] += count
        if own:
            self._row[OWN_SETTLED] += count

    def flows(self, queued: int, credit: int) -> None:
        """Note how the link stands; see `QUEUED`."""
        self._row[QUEUED] = queued
        self._row[CREDIT] = credit

    def held_up(self, seconds: float, window: bool) -> None:
        """The link has held its producer up, by its window or for want of credit."""
        self._row[FULL_NS] += int(seconds * 1e9)
        if window:
            self._row[WINDOW_NS] += int(seconds * 1e9)

    def flow(self) -> Flow:
        row = self._row
        places = (SENT_BYTES, FULL_NS, WINDOW_NS, QUEUED, CREDIT)
        return Flow(*(int(row[place]) for place in places))

    def close(self) -> None:
        """Let go of the memory; the books must not be used afterwards."""
        if isinstance(self._row, memoryview):
            self._row.release()

    def read(self) -> Entry:
        """What the row says now."""
        row = self._row
        held = int(row[HELD])
        dropped = {
            reason: int(row[_REASON + place])
            for place, reason in enumerate(REASONS)
            if row[_REASON + place]
        }
        return Entry(
            sent=int(row[SENT]) + held,
            delivered=int(row[DELIVERED]),
            done=int(row[DONE]),
            redelivered=int(row[REDELIVERED]),
            dead_lettered=int(row[DEAD_LETTERED]),
            dropped=dropped,
            own_unsettled=int(row[OWN_SENT] - row[OWN_SETTLED]) + held,
        )


@dataclass(slots=True)
class Entry:
    """The books of a link, summed over producers and incarnations; all figures are messages."""

    sent: int = 0
    delivered: int = 0
    done: int = 0
    redelivered: int = 0
    dead_lettered: int = 0
    superseded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    own_unsettled: int = 0

    @property
    def in_flight(self) -> int:
        """Sent, and neither done nor given up. Negative would be a bug: see `balanced`."""
        return (
            self.sent
            - self.done
            - self.dead_lettered
            - self.superseded
            - sum(self.dropped.values())
        )

    @property
    def balanced(self) -> bool:
        return self.in_flight >= 0 and self.delivered - self.redelivered <= self.sent

    def add(self, other: Entry) -> None:
        self.sent += other.sent
        self.delivered += other.delivered
        self.done += other.done
        self.redelivered += other.redelivered
        self.dead_lettered += other.dead_lettered
        self.superseded += other.superseded
        self.own_unsettled += other.own_unsettled
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def bury(self, replayed: bool, lossy: bool = False, reason: str = "producer died") -> None:
        """Who keeps these books, the producer as a rule, is dead: what it had not settled will not
        be settled by it.

        What it made of its input is superseded, since that input is delivered again. What began in
        it is superseded only if it is `replayed` (a source with positions), else it is lost, and so
        is everything on a `lossy` link, where nobody waits to deliver again.
        """
        rest = self.in_flight
        lost = rest if lossy else 0 if replayed else min(rest, self.own_unsettled)
        if lost:
            self.dropped[reason] = self.dropped.get(reason, 0) + lost
        self.superseded += rest - lost
        self.own_unsettled = 0


def total(entries: Iterable[Entry]) -> Entry:
    """The sum of `entries`."""
    result = Entry()
    for entry in entries:
        result.add(entry)
    return result
