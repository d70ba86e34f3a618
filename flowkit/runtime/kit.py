"""What a process of its own adds to a replica: a way for its log, a guard of its loop, spans."""

from __future__ import annotations

from dataclasses import dataclass

from flowkit.runtime.logs import Courier
from flowkit.runtime.stacks import Guard
from flowkit.runtime.tracing import Tracer


@dataclass(frozen=True, slots=True)
class Kit:
    """Each may be missing; a replica in somebody else's process has none but the last."""

    courier: Courier | None = None
    guard: Guard | None = None
    tracer: Tracer | None = None


BARE = Kit()
