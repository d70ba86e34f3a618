"""How large a batch should be: as large as is handled in a few milliseconds.

A consumer measures how long its batches take and tells its producers how many messages a batch
should hold and how many batches it wants ahead. Fast handlers get large batches, for throughput;
slow ones get single messages, few ahead, so that all replicas of a pool have work.
"""

from __future__ import annotations

MAX_COUNT = 8192
"""Messages in a batch at most. From 512 on the cost per batch matters little: 8,192 instead of
4,096 saves 7 % for short messages, 16,384 nothing more. They are handled in about a millisecond."""

FAST = 0.005
"""Seconds: a batch that took less may be twice as large."""
SLOW = 0.020
"""Seconds: a batch that took more is halved, so that the loop turns at least that often."""

LARGE = 1 << 20
"""Bytes: batches that would be larger are halved, whatever time they take: beyond this size the
copy costs more than the frame."""

LARGE_EACH = 64 << 10
"""Bytes of a message from which on it is not copied with its batch if it is bytes itself; the batch
may then be larger."""
LARGE_WHOLE = 8 << 20
"""Bytes of a batch of such messages."""

MAX_AHEAD = 64
"""Batches in a session that are not yet taken, at most."""
AHEAD_SECONDS = 0.1
"""How much work, in seconds, a consumer wants waiting; two batches at least."""


class Pace:
    """The pace of one input channel of one replica.

    `max_count`: messages that a batch for this channel should hold at most. It starts at 1 and
    grows, fourfold at most at a time, to what is handled in `FAST`.
    `ahead`: batches each producer may send beyond what was taken.
    """

    __slots__ = ("max_count", "ahead", "_least", "_batch", "_message")

    def __init__(self, concurrency: int = 1) -> None:
        self.max_count = 1
        self._least = max(2, 2 * concurrency)
        self.ahead = self._least
        # Seconds for a batch and for a message, both averaged over about eight batches, so that
        # one hiccup does not close the window.
        self._batch = 0.0
        self._message: float | None = None

    def record(self, count: int, size: int, seconds: float) -> None:
        """A batch or list of `count` messages, `size` bytes in all, was handled in `seconds`."""
        if not count:
            return
        seconds = max(seconds, 1e-9)  # a clock that is too coarse to see it
        each = seconds / count
        self._message = (
            each if self._message is None else self._message + (each - self._message) / 8
        )
        self._batch += (seconds - self._batch) / 8
        large = LARGE if size < count * LARGE_EACH else LARGE_WHOLE
        # Batches are cut in two on their way where they are much too large, and lists are made of
        # several: what counts is how large one would be that holds as many as may be asked for.
        if seconds > SLOW or size * self.max_count > large * count:
            self.max_count = max(1, min(self.max_count, count) // 2)
        else:
            # Judged by the cost of a message, not by whether this batch was full: what arrives now
            # was cut long ago, and waiting for larger ones would take as long as the queue is.
            fast = int(FAST / self._message)
            small = large // 2 * count // max(size, 1)
            wanted = min(4 * self.max_count, MAX_COUNT, fast, small)
            self.max_count = max(self.max_count, wanted)
        ahead = int(AHEAD_SECONDS / self._batch) + 1
        self.ahead = max(self._least, min(MAX_AHEAD, ahead))
