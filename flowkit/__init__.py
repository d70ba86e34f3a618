"""flowkit: stream processing on the Tornado event loop, over ZeroMQ, that loses nothing silently.

Subclass `Node` (or `Source`, `Sink`), declare `In` and `Out` channels, write one handler for each
input, wire the classes in a YAML file, and run it with ``flowkit up FILE``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flowkit.calls import Call, Serve
from flowkit.channels import In, Out, OutPort
from flowkit.errors import FlowkitError
from flowkit.message import Many, Meta
from flowkit.node import Node, Sink, Source, every

if TYPE_CHECKING:
    from flowkit.attaching import attach
    from flowkit.control.aclient import AsyncClient
    from flowkit.control.client import Client
    from flowkit.inprocess import run_in_process
    from flowkit.runtime.planning import check
    from flowkit.sliding import SlidingCounter
    from flowkit.supervisor import Supervisor
    from flowkit.topology.code import Template, Topology

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Call",
    "Client",
    "FlowkitError",
    "In",
    "Many",
    "Meta",
    "Node",
    "Out",
    "OutPort",
    "Serve",
    "Sink",
    "SlidingCounter",
    "Source",
    "Supervisor",
    "Template",
    "Topology",
    "attach",
    "check",
    "every",
    "run_in_process",
]

# Imported when they are used: a node needs neither a socket nor what finds projects.
_LATER = {
    "AsyncClient": "flowkit.control.aclient",
    "Client": "flowkit.control.client",
    "SlidingCounter": "flowkit.sliding",
    "Supervisor": "flowkit.supervisor",
    "Template": "flowkit.topology.code",
    "Topology": "flowkit.topology.code",
    "attach": "flowkit.attaching",
    "check": "flowkit.runtime.planning",
    "run_in_process": "flowkit.inprocess",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'flowkit' has no attribute '{name}'")
