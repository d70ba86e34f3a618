"""A clock that stands still, for the modules of the bench that ask for the time."""

from __future__ import annotations

import pytest

from flowkit.bench import latencies
from flowkit.clock import FakeClock


def at(start: float, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Stop the clock of `flowkit.bench.latencies`."""
    clock = FakeClock(start)
    monkeypatch.setattr(latencies, "monotonic", clock)
    return clock
