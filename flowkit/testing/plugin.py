"""The pytest plugin: `node_harness` and `topology`. It imports flowkit when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flowkit.testing import NodeHarness, TopologyHarness


@pytest.fixture
def node_harness() -> Iterator[Callable[..., NodeHarness[Any]]]:
    """``node_harness(Split())`` is a `flowkit.testing.NodeHarness`, closed after the test."""
    from flowkit.testing import NodeHarness

    with ExitStack() as stack:

        def build(node: Any, **options: Any) -> NodeHarness[Any]:
            harness = NodeHarness(node, **options)
            if harness.has_own_loop:  # else it ends with the loop of the test
                stack.enter_context(harness)
            return harness

        yield build


@pytest.fixture
def topology() -> Callable[..., TopologyHarness]:
    """``topology("words.yaml", inputs=..., channels=...)`` is `flowkit.testing.run_topology`."""
    from flowkit.testing import run_topology

    return run_topology
