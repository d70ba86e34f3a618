"""Who wants to be told what happens to a project."""

from __future__ import annotations

import logging
from typing import Protocol

from flowkit.protocol import project as core
from flowkit.protocol.control import Record


class Watcher(Protocol):
    """Who wants to be told what happens; every method is called on the loop."""

    def output(self, replica: str, line: bytes) -> None:
        """A replica has printed a line."""

    def record(self, replica: str, record: Record) -> None:
        """A replica has logged something."""

    def ready(self, seconds: float) -> None:
        """All replicas are ready; sources begin."""

    def died(self, event: core.Died, budget: int | None) -> None:
        """A replica died; `budget` is how many restarts its policy allows in a window."""

    def note(self, text: str) -> None:
        """Something else that the operator should know."""

    def poisoned(self, event: core.Poisoned) -> None:
        """A message killed its replica again and is given up."""

    def draining(self, in_flight: int) -> None:
        """The sources were told to stop."""


class Silent:
    """A watcher that wants to know nothing."""

    def output(self, replica: str, line: bytes) -> None: ...

    def record(self, replica: str, record: Record) -> None: ...

    def ready(self, seconds: float) -> None: ...

    def died(self, event: core.Died, budget: int | None) -> None: ...

    def note(self, text: str) -> None: ...

    def poisoned(self, event: core.Poisoned) -> None: ...

    def draining(self, in_flight: int) -> None: ...


class Logging:
    """A watcher that logs: what replicas print goes to ``flowkit.output.NODE.REPLICA``, at INFO,
    and what happens to them to ``flowkit.supervisor``. What they log is logged here as it was
    there, by the same logger, with the attributes `node` and `replica`."""

    def __init__(self) -> None:
        self._log = logging.getLogger("flowkit.supervisor")

    def output(self, replica: str, line: bytes) -> None:
        log = logging.getLogger(f"flowkit.output.{replica}")
        log.info("%s", line.decode("utf-8", "backslashreplace"))

    def record(self, replica: str, record: Record) -> None:
        log = logging.getLogger(record.logger)
        if not log.isEnabledFor(record.level):
            return
        node, _, number = replica.rpartition(".")
        entry = log.makeRecord(
            record.logger, record.level, "", 0, record.text, (), None,
            extra={"node": node, "replica": int(number)},
        )  # fmt: skip
        entry.created, entry.msecs = record.time, record.time % 1 * 1000
        entry.exc_text = record.traceback or None
        log.handle(entry)

    def ready(self, seconds: float) -> None:
        self._log.info("all replicas are ready after %.2f s", seconds)

    def died(self, event: core.Died, budget: int | None) -> None:
        how = event.error or f"ended with code {event.code}"
        then = event.reason if event.delay is None else f"restarted in {event.delay:g} s"
        self._log.warning("%s %s; %s", event.replica.name, how, then)

    def note(self, text: str) -> None:
        self._log.warning("%s", text)

    def poisoned(self, event: core.Poisoned) -> None:
        self._log.error(
            "message %d of batch %s kills %s: it is given up",
            event.message.index,
            event.message.id.hex(),
            event.replica.node,
        )

    def draining(self, in_flight: int) -> None:
        self._log.info("draining: %d messages in flight", in_flight)
