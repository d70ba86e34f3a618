"""How many file descriptors a project takes, known before it starts.

A process that runs out of them while a peer connects is aborted by libzmq, without a word. So a
project for which the limit is too low is refused at the start.
"""

from __future__ import annotations

from flowkit.errors import OperatorError
from flowkit.topology.plan import Plan
from flowkit.transport.zmq import SPARE_FILES

BASE = 32
"""Descriptors of a process with no links: standard streams, the loop, contexts, the database, and
what a node opens for itself; about 23 without the last."""

CHILD = 4
"""Descriptors per replica in the supervisor, or in the nursery: its output, its control line, and
those that are given to it while it starts; or its two pipes and its pidfd."""

FOREIGN = 8
"""Descriptors for an endpoint: its socket, and some peers. How many come nobody knows."""


def needed(plan: Plan) -> tuple[int, str]:
    """The most descriptors that a process of the project takes, and which process that is."""
    replicas = sum(node.replicas for node in plan.nodes)
    most = (BASE + CHILD * replicas, "the supervisor")
    for node in plan.nodes:
        # A socket has one of its own besides those of its lines.
        inputs = sum(2 * link.producers for link in plan.links if link.target == node.name)
        outputs = sum(3 + link.consumers for link in plan.links if link.source == node.name)
        foreign = FOREIGN * len(node.endpoints)
        most = max(most, (BASE + inputs + outputs + foreign, f"a replica of {node.name}"))
    return most


def check(plan: Plan, limit: int) -> None:
    """Raise OperatorError unless processes that may open `limit` files can run `plan`."""
    count, who = needed(plan)
    if count + SPARE_FILES > limit:
        raise OperatorError(
            f"too few file descriptors: {who} of {plan.project} needs {count + SPARE_FILES}, "
            f"and may open {limit} files",
            hint="raise the limit (ulimit -n), or run fewer replicas",
        )
