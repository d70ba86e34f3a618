"""For tests of what is built on flowkit: nodes alone, whole topologies, and suites for its parts.

`NodeHarness` runs one node in a test, without processes and sockets; its time is the test's.
`run_topology` runs a whole topology in memory and keeps what was sent; a `TopologyHarness` does so
in a coroutine, which may do harm meanwhile. The pytest plugin has them as the fixtures
`node_harness` and `topology`.

The suites that every source, sink, launcher and transport must pass are in modules of their own:
`sources`, `sinks`, `launchers` and `conformance`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowkit.testing.harness import NodeHarness
    from flowkit.testing.topology import TopologyHarness, run_topology

__all__ = ["NodeHarness", "TopologyHarness", "run_topology"]

# Imported when they are used: pytest loads the plugin in this package everywhere.
_LATER = {
    "NodeHarness": "flowkit.testing.harness",
    "TopologyHarness": "flowkit.testing.topology",
    "run_topology": "flowkit.testing.topology",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'flowkit.testing' has no attribute '{name}'")
