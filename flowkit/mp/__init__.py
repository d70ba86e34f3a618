"""x"""

from __future__ import annotations

from flowkit.mp.connection import Connection, Pipe
from flowkit.mp.queues import JoinableQueue, Queue, SimpleQueue

__all__ = ["Connection", "JoinableQueue", "Pipe", "Queue", "SimpleQueue"]
