"""A whole topology in one process, from beginning to end: for debugging, and for tests."""

from __future__ import annotations

import asyncio

from flowkit.errors import OperatorError
from flowkit.operations import Given
from flowkit.report import Report
from flowkit.supervisor import Supervisor


def run_in_process(topology: Given, *, resume: bool = False, fresh: bool = False) -> Report:
    """Run a topology to its end, as ``flowkit up --in-process`` does, and return its report.

    Every replica runs in this process and thread, with memory between them in place of sockets:
    ``breakpoint()``, coverage, profilers and tracebacks work as in any program. Its sources must
    end by themselves. For `resume` and `fresh` see `Supervisor`. What replicas log is logged by
    their loggers, what they print is printed; nothing is set up.

    Raises `TopologyError` for a topology that cannot be run, `OperatorError` for one with external
    nodes, which would wait for ever to be attached; `ProjectFailed` if it was not drained;
    RuntimeError where a loop runs already: there it is a `Supervisor` with ``in_process=True``.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "run_in_process() has a loop of its own; on one that runs: "
            "async with flowkit.Supervisor(topology, in_process=True) as project: "
            "await project.drained()"
        )

    async def run() -> Report:
        supervisor = Supervisor(topology, in_process=True, resume=resume, fresh=fresh)
        external = [node.name for node in supervisor.plan.nodes if node.external]
        if external:
            raise OperatorError(
                f"nobody can attach {', '.join(external)} while run_in_process() has the program",
                "async with flowkit.Supervisor(topology, in_process=True), and attach in the block",
            )
        async with supervisor as project:
            return await project.drained()

    return asyncio.run(run())
