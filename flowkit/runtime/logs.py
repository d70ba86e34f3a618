"""Logging of a replica: one line a record on stderr, which the supervisor prefixes and shows."""

from __future__ import annotations

import logging
import sys


def set_up(level: int = logging.INFO) -> None:
    """Send what the root logger gets to stderr; called once in a child process, never elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
