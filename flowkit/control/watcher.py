"""Who wants to be told what happens to a project."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from typing import Protocol

from flowkit.message import message_id
from flowkit.protocol import project as core
from flowkit.protocol.control import Record
from flowkit.units import human_seconds


class Watcher(Protocol):
    """Who wants to be told what happens; every method is called on the loop."""

    def output(self, replica: str, line: bytes) -> None:
        """A replica has printed a line."""

    def record(self, replica: str, record: Record) -> None:
        """A replica has logged something."""

    def ready(self, seconds: float) -> None:
        """All replicas are ready; sources begin."""

    def died(self, event: core.Died, budget: int | None) -> None:
        """A replica died, or ended and begins again (see `Died`); `budget` is how many restarts its
        policy allows in a window."""

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


class Several:
    """Tells several watchers, one after the other."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def output(self, replica: str, line: bytes) -> None:
        for watcher in self._watchers:
            watcher.output(replica, line)

    def record(self, replica: str, record: Record) -> None:
        for watcher in self._watchers:
            watcher.record(replica, record)

    def ready(self, seconds: float) -> None:
        for watcher in self._watchers:
            watcher.ready(seconds)

    def died(self, event: core.Died, budget: int | None) -> None:
        for watcher in self._watchers:
            watcher.died(event, budget)

    def note(self, text: str) -> None:
        for watcher in self._watchers:
            watcher.note(text)

    def poisoned(self, event: core.Poisoned) -> None:
        for watcher in self._watchers:
            watcher.poisoned(event)

    def draining(self, in_flight: int) -> None:
        for watcher in self._watchers:
            watcher.draining(in_flight)


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
        if event.number == 0:
            how = "has reached the end of its stream"
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


# -- the same in words


def death(event: core.Died, budget: int | None) -> str:
    """How a replica died, and what happens now."""
    replica = event.replica
    text = f"{replica.name} {how_it_ended(event.code, event.error)}"
    if replica.lost_state:
        text += "; what it held in memory is lost"
    if event.delay is None:
        then = "stopping the project" if event.ends else "it is not started again"
        return f"{text}; {event.reason}, {then}"
    if event.number == 0:
        wait = human_seconds(event.delay)
        return f"{replica.name} has reached the end of its stream and begins again in {wait}"
    again = f"restart {event.number}" + (f"/{budget}" if budget is not None else "")
    return f"{text}; {again} in {human_seconds(event.delay)}"


def how_it_ended(code: int, error: str | None) -> str:
    """How a process ended."""
    if error is not None:
        return error
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    if code == 0:
        return "left before its work was done"
    return f"failed with exit code {code}"


def vacancy(event: core.Vacated) -> str:
    """Which application has left, and what becomes of what its replica had."""
    text = f"{event.replica.name}: its application {event.reason}"
    return text if event.orderly else f"{text}; what it had in hand goes to others, or waits"


def poison(event: core.Poisoned, link: str) -> str:
    """Which message is given up, and why."""
    name = message_id(event.message.id, event.message.index)
    return f"message {name} on {link} kills {event.replica.node}: it is given up"


def drain(in_flight: int) -> str:
    return f"draining: {in_flight:,} message{'' if in_flight == 1 else 's'} in flight"
