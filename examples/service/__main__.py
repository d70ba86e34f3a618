"""The service: ``python -m examples.service``, as a service manager starts it.

It goes on where it was stopped, drains when it is told to end, and its exit code says how it was:
0 all is done, 4 there are orders that could not be priced, others as those of ``flowkit up``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import flowkit
from flowkit.errors import ProjectFailed, TopologyError

TOPOLOGY = Path(__file__).with_name("orders.yaml")

log = logging.getLogger("orders")


async def serve() -> int:
    try:
        # SIGTERM and Ctrl-C drain it. Positions of a run that was killed are gone on from.
        async with flowkit.Supervisor(TOPOLOGY, signals=True, resume=True) as project:
            report = await project.drained()
    except ProjectFailed as error:
        log.error("%s", error)
        return error.exit_code
    log.info("%d invoices, %d dead letters", report.links[-1].entry.done, report.dead_lettered)
    return report.exit


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        return asyncio.run(serve())
    except TopologyError as error:
        for problem in error.problems:
            log.error("%s:%d: %s; %s", problem.path, problem.line, problem.message, problem.hint)
    except flowkit.FlowkitError as error:
        log.error("%s", error)
    return 2


if __name__ == "__main__":
    sys.exit(main())
