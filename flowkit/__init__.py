"""flowkit: stream processing on the Tornado event loop, over ZeroMQ, that loses nothing silently.

Subclass `Node` (or `Source`, `Sink`), declare `In` and `Out` channels, write one handler for each
input, wire the classes in a YAML file, and run it with ``flowkit up FILE``.
"""

from __future__ import annotations

from flowkit.channels import In, Out, OutPort
from flowkit.errors import FlowkitError
from flowkit.message import Many, Meta
from flowkit.node import Node, Sink, Source, every

__version__ = "0.1.0"

__all__ = [
    "FlowkitError",
    "In",
    "Many",
    "Meta",
    "Node",
    "Out",
    "OutPort",
    "Sink",
    "Source",
    "every",
]
