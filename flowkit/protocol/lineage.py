"""Where a batch comes from: ids that survive redelivery, and what may be forgotten of them.

An id is 16 bytes: origin (2), incarnation (2), sequence (6), path (6). The first ten are the
*root*: which batch of which source it stems from. `path` is 0 for the root itself, which no frame
carries, and a hash of the way for everything made of it, so that a handler which runs again over a
redelivered batch gives its output the ids it had the first time, and consumers can tell a copy from
news.

`origin` numbers the replicas of a project; (origin, incarnation) is one *span*: a range of
sequences of which the maker knows the lowest that is not settled. Every frame carries how far its
root is above that; what lies below can never come again and is forgotten.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

ID_SIZE = 16
PATH_SIZE = 6
JOURNAL = 0xFFFF
"""Stands for the incarnation in the ids of batches of a journal, whose sequences go on for ever."""

FINISH = 0
"""Stands for the incarnation in the ids of what `finish()` sends. Real ones count from 1."""

MAX_SPAN = 4096
"""How many root batches of one replica may be unsettled: bounds what consumers remember. The
field on the wire holds 65,535."""

DEAD_SPANS = 8
"""How many spans a consumer keeps of one origin: that of the replica that lives, and of those that
died. Copies of their batches can only come while older deliveries are still being settled."""


_ROOT = struct.Struct("!HHHI6x").pack
_PLACE = struct.Struct("!II").pack


def root_id(origin: int, incarnation: int, sequence: int) -> bytes:
    """The id of root batch `sequence` of a replica."""
    return _ROOT(origin, incarnation & 0xFFFF, sequence >> 32, sequence & 0xFFFFFFFF)


def derive(parent: bytes, way: bytes, chunk: int, slot: int) -> bytes:
    """The id of output `chunk` for `slot` of a batch with id `parent`.

    `way` names the link that the parent came on and the output channel. Without the link in it the
    two arms of a diamond would share ids; the slot is 0 where any replica may take the batch.
    """
    path = b"%b%b%b" % (parent, way, _PLACE(chunk, slot))
    return parent[: ID_SIZE - PATH_SIZE] + blake2b(path, digest_size=PATH_SIZE).digest()


FAILED = 1
"""Taint: something was dead-lettered, of a batch or of what was made of it, here or downstream."""
LOST = 2
"""Taint: something was dropped."""


def nothing() -> None:
    """What a work that is settled calls. What it called before refers to it: a cycle that would
    keep its bytes until the garbage collector comes, which counts objects and not bytes."""


class Work:
    """A batch whose handling is not yet settled.

    It is settled when its handlers have returned (`handled`) and every batch made of what they
    sent is acknowledged (`pending` is 0); then `settled` is called, once.
    """

    __slots__ = ("id", "span", "cut", "born", "pending", "handled", "settled", "taint")

    def __init__(
        self, id: bytes, span: int, cut: int, settled: Callable[[], None], born: int = 0
    ) -> None:
        self.id = id
        self.span = span
        self.cut = cut
        self.born = born
        """When its root began; see `wire.Data`."""
        self.pending = 0
        self.handled = False
        self.settled = settled
        self.taint = 0
        """`FAILED` and `LOST`, so far; complete when it is settled."""

    def finish(self) -> None:
        """The handlers have returned and everything they sent has been counted in `pending`."""
        self.handled = True
        if self.pending == 0:
            self.settled()

    def release(self) -> None:
        """One batch made of this one is acknowledged."""
        self.pending -= 1
        if self.pending == 0 and self.handled:
            self.settled()


class Root(Work):
    """A batch whose stream begins in this replica. `position` is a source's, after the batch."""

    __slots__ = ("sequence", "position", "parents", "open")

    def __init__(self, id: bytes, sequence: int, span: int, position: Any) -> None:
        self.sequence = sequence
        self.position = position
        self.parents: tuple[Work, ...] = ()
        self.open = True
        super().__init__(id, span, 1, lambda: None)


class Roots:
    """The root batches of one replica: hands out ids, knows the low watermark.

    `committed` is the position of the highest root below which everything is settled.
    """

    def __init__(self, origin: int, incarnation: int, life: int = 1) -> None:
        self._origin = origin
        self._incarnation = incarnation
        self._life = life
        self._next = 1
        self._open: deque[Root] = deque()
        self._finish: Root | None = None
        self.committed: Any = None
        self.on_commit: Callable[[], None] = lambda: None

    @property
    def full(self) -> bool:
        """Whether the span is used up: nothing new may begin until the lowest root is settled."""
        return bool(self._open) and self._next - self._open[0].sequence >= MAX_SPAN

    @property
    def idle(self) -> bool:
        """Whether everything that was opened is settled."""
        return not self._open and (self._finish is None or not self._finish.open)

    def open(self, position: Any = None, parents: tuple[Work, ...] = (), born: int = 0) -> Root:
        """Begin a root, `born` now. `parents`: input batches that are held until this root is
        settled; it is as old as the oldest of them."""
        sequence = self._next
        self._next += 1
        low = self._open[0].sequence if self._open else sequence
        identity = root_id(self._origin, self._incarnation, sequence)
        root = Root(identity, sequence, sequence - low, position)
        root.born = born
        if parents:
            root.parents = parents
            root.born = min((parent.born for parent in parents if parent.born), default=born)
            for parent in parents:
                parent.pending += 1
        root.settled = lambda: self._settle(root)
        self._open.append(root)
        return root

    def finish(self, born: int = 0) -> Root:
        """The one root of what `finish()` sends: the same id in every incarnation, so that a
        replica that dies after it and runs it again sends copies, and never forgotten. A replica
        that was ended and is there again, later, has another life and says other things."""
        identity = root_id(self._origin, FINISH, self._life)
        root = self._finish = Root(identity, self._life, 1, None)
        root.born = born
        root.settled = lambda: self._settle(root)
        return root

    def renewed(self, work: Work) -> bool:
        """Whether `work` is a root with a new id each time: any but that of `finish()`, which a
        later incarnation makes again under the same id."""
        return isinstance(work, Root) and work is not self._finish

    def _settle(self, root: Root) -> None:
        root.open = False
        root.settled = nothing
        moved = False
        while self._open and not self._open[0].open:
            first = self._open.popleft()
            if first.position is not None:
                self.committed = first.position
                moved = True
        for parent in root.parents:
            parent.taint |= root.taint
            parent.release()
        if moved:
            self.on_commit()


class _Span:
    __slots__ = ("low", "roots")

    def __init__(self) -> None:
        self.low = 0
        self.roots: dict[int, dict[bytes, Any]] = {}

    def raise_low(self, low: int) -> None:
        if low <= self.low:
            return
        if low - self.low <= len(self.roots):
            for sequence in range(self.low, low):
                self.roots.pop(sequence, None)
        else:
            self.roots = {root: paths for root, paths in self.roots.items() if root >= low}
        self.low = low


class Settled(NamedTuple):
    """What `Seen.look` says of an id that is settled: how many of its messages were given up, and
    its taint, so that a copy is acknowledged with the same figures."""

    dead_lettered: int
    dropped: int
    taint: int = 0


DONE = Settled(0, 0)
"""Settled, and nothing was given up."""


class Seen:
    """The ids of one input link that are in progress or settled.

    Memory: the batches of all roots between the low watermark of their span and the newest.
    """

    def __init__(self) -> None:
        self._spans: dict[bytes, _Span] = {}
        self._of_origin: dict[bytes, deque[bytes]] = {}

    def look(self, id: bytes, span: int) -> Any:
        """A `Settled`, the object noted with `begin` while in progress, or None if `id` is news."""
        mine = self._spans.get(id[:4])
        if mine is None:
            mine = self._add(id[:4])
        sequence = int.from_bytes(id[4:10])
        mine.raise_low(sequence - span)
        if sequence < mine.low:
            return DONE
        paths = mine.roots.get(sequence)
        return None if paths is None else paths.get(id[10:])

    def begin(self, id: bytes, work: Any) -> None:
        """Note that `id` is in progress as `work`."""
        roots = self._spans[id[:4]].roots
        roots.setdefault(int.from_bytes(id[4:10]), {})[id[10:]] = work

    def done(self, id: bytes, how: Settled = DONE) -> None:
        """Note that `id` is settled, and how."""
        span = self._spans.get(id[:4])
        if span is not None:
            paths = span.roots.get(int.from_bytes(id[4:10]))
            if paths is not None:
                paths[id[10:]] = how

    def __len__(self) -> int:
        return sum(len(paths) for span in self._spans.values() for paths in span.roots.values())

    def _add(self, key: bytes) -> _Span:
        mine = self._spans[key] = _Span()
        order = self._of_origin.setdefault(key[:2], deque())
        order.append(key)
        if len(order) > DEAD_SPANS:
            del self._spans[order.popleft()]
        return mine
