"""What the broker keeps of one queue: its pages, in order, until their last item is taken. Pure.

Items are counted from the first that was ever put; an *index* is such a count. Consumers are
told what they ask for and take nothing away by it: what is taken is said by the cursor, a number
that all consumers share (`flowkit.mp.cells`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

COPIES = 128 << 10
"""Bytes that one answer holds at most, unless one page is larger. Several consumers get copies of
the same items, so it should be small; each answer costs a round trip, so it should be large."""

PAGES = 64
"""Pages that one answer holds at most: each is a frame of its own."""

Answer = tuple[int, list[bytes]]
"""The index of the first item, and the pages from there on, without a gap."""


class Log:
    """The pages of one queue; `total` is the index that the next item gets."""

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self._pages: deque[tuple[int, bytes]] = deque()  # the index of the first item, the items
        self._waiting: dict[bytes, int] = {}  # who waits for an item, and its index; in order

    @property
    def first(self) -> int:
        """The index of the first item that is still here."""
        return self._pages[0][0] if self._pages else self.total

    @property
    def idle(self) -> bool:
        """Nothing is kept and nobody waits: this log can be made again from its `total`."""
        return not self._pages and not self._waiting

    def put(self, count: int, page: bytes) -> None:
        """Append `count` items. See `awaken`."""
        self._pages.append((self.total, page))
        self.total += count

    def ask(self, consumer: bytes, index: int, wait: bool) -> Answer | None:
        """What there is from the item `index` on. If there is nothing yet, None, and `consumer` is
        one of those that wait, if it wants to be."""
        self._waiting.pop(consumer, None)
        if index < self.total:
            return self._from(index)
        if wait:
            self._waiting[consumer] = index
        return None

    def leave(self, consumer: bytes) -> None:
        """`consumer` does not wait any longer."""
        self._waiting.pop(consumer, None)

    def awaken(self, taken: int, count: int) -> Iterator[tuple[bytes, Answer]]:
        """Answers for the first `count` of those that wait, as far as there are items that are not
        `taken`. They need not take one, so while `pending` call this again after a while."""
        for _ in range(count):
            if not self.pending(taken):
                return
            consumer, index = next(iter(self._waiting.items()))
            del self._waiting[consumer]
            yield consumer, self._from(max(index, taken))

    def pending(self, taken: int) -> bool:
        """Somebody waits, and there is an item for him."""
        return taken < self.total and bool(self._waiting)

    def forget(self, taken: int) -> None:
        """Let go of the pages whose items have an index below `taken`, every one."""
        while len(self._pages) > 1 and self._pages[1][0] <= taken:
            self._pages.popleft()
        if taken >= self.total:
            self._pages.clear()

    def _from(self, index: int) -> Answer:
        first, pages, size = -1, [], 0
        following = iter(self._pages)
        here = next(following)
        while (after := next(following, None)) is not None and after[0] <= index:
            here = after
        first = here[0]
        while True:
            pages.append(here[1])
            size += len(here[1])
            if after is None or size + len(after[1]) > COPIES or len(pages) == PAGES:
                return first, pages
            here, after = after, next(following, None)
