"""When a replica that died is started again, and when it is given up.

Pure: deaths and the time go in, decisions come out. A replica gets `max` restarts in any `window`
seconds; the delay before each doubles from `backoff` up to `backoff_max`, and starts over once the
replica has gone a whole window without a death.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

Policy: TypeAlias = Literal["on-failure", "always", "never"]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What the topology author asked for. Times are in seconds; `max` None means no limit.

    "on-failure" restarts after a crash, "always" after a clean end as well, "never" not at all. A
    clean end is no failure: it waits for the back-off, and does not count towards `max`.
    Raises ValueError on numbers that make no sense.
    """

    policy: Policy = "on-failure"
    max: int | None = 5
    window: float = 60.0
    backoff: float = 0.1
    backoff_max: float = 10.0

    def __post_init__(self) -> None:
        if self.policy not in ("on-failure", "always", "never"):
            raise ValueError(f"policy must be on-failure, always or never, not {self.policy!r}")
        if self.max is not None and self.max < 0:
            raise ValueError(f"max must not be negative, it is {self.max}")
        if not self.window > 0:
            raise ValueError(f"window must be positive, it is {self.window}")
        if not 0 <= self.backoff <= self.backoff_max:
            raise ValueError(
                f"backoff must be between 0 and backoff_max ({self.backoff_max}),"
                f" it is {self.backoff}"
            )


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again in `after` seconds. `number` counts the deaths of the current window: from 1,
    or from 0 after a clean end."""

    after: float
    number: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start it again. `reason` is for people; `failed` is False after a clean end."""

    reason: str
    failed: bool = True


class RestartState:
    """The deaths of one replica. Tell it of each; do what it says, unless the run is ending."""

    def __init__(self, policy: RestartPolicy) -> None:
        self.policy = policy
        self.total = 0
        """Restarts decided on so far, for reports."""
        self._deaths: deque[float] = deque()  # within the window, oldest first
        self._streak = 0  # restarts since the replica last was healthy for a window
        self._last: float | None = None
        self._started = 0.0  # when it was to start again after the last one

    def died(self, now: float, clean: bool) -> Restart | GiveUp:
        """The replica's process has ended at `now`; `clean` if it had been told that it may.

        `now` is in seconds and does not go back; one that does counts as the last one.
        """
        policy = self.policy
        if clean and policy.policy != "always":
            return GiveUp("ended cleanly", failed=False)
        if policy.policy == "never":
            return GiveUp("died, and its restart policy is never")
        if self._last is not None:
            now = max(now, self._last)
            # The back-off is no time of health: else one that is longer than the window would
            # never grow beyond it.
            if now - self._started >= policy.window:
                self._streak = 0
        self._last = now
        while self._deaths and now - self._deaths[0] >= policy.window:
            self._deaths.popleft()
        if not clean:
            if policy.max is not None and len(self._deaths) >= policy.max:
                return GiveUp(
                    f"died {len(self._deaths) + 1} times in {policy.window:g} s,"
                    f" {policy.max} restart{' is' if policy.max == 1 else 's are'} allowed"
                )
            self._deaths.append(now)
        # Beyond 2**63 any back-off is at its maximum; the exponent must not overflow a float.
        after = min(policy.backoff * 2.0 ** min(self._streak, 63), policy.backoff_max)
        self._streak += 1
        self._started = now + after
        self.total += 1
        return Restart(after, len(self._deaths))
