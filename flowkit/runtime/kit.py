"""What a process of its own adds to a replica: a way for its log, a guard of its loop, spans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import zmq

from flowkit.runtime.logs import Courier
from flowkit.runtime.stacks import Guard
from flowkit.runtime.tracing import Tracer


@dataclass(frozen=True, slots=True)
class Kit:
    """Each may be missing; a replica in somebody else's process has none but the last two."""

    courier: Courier | None = None
    guard: Guard | None = None
    tracer: Tracer | None = None
    context: Callable[[], zmq.Context[zmq.Socket[bytes]]] | None = None
    """The context of foreign links, if several replicas share one: for inproc addresses."""


BARE = Kit()
