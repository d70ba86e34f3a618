"""What the replicas say in their logs, and from which level on: the supervisor's side.

Each record is passed on once, in order: as it comes over the control connection, and, of an
incarnation that is dead, from its black box.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from flowkit.clock import Clock, wall
from flowkit.errors import OperatorError, UnknownName, WireError
from flowkit.importing import did_you_mean
from flowkit.protocol import control
from flowkit.protocol.control import Record
from flowkit.runtime.blackbox import BlackBox
from flowkit.runtime.logs import OWN, level_of
from flowkit.topology.plan import Plan

Key = tuple[str, int]
"""Node and number of a replica."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _Ear:
    """How far the records of one incarnation have come."""

    def __init__(self, incarnation: int, path: Path, box: BlackBox) -> None:
        self.incarnation = incarnation
        self.path = path
        self.box = box
        self.heard = 0
        self.answered = 0


class Words:
    """`on_record` gets a replica's key and its record; `tell` sends a message to a replica."""

    def __init__(
        self,
        on_record: Callable[[Key, Record], None],
        tell: Callable[[Key, control.FromSupervisor], None],
        in_process: bool = False,
        clock: Clock = wall,
    ) -> None:
        self._on_record = on_record
        self._tell = tell
        self._in_process = in_process
        self._clock = clock
        self._ears: dict[Key, _Ear] = {}
        self._due: set[Key] = set()
        self._of_node: dict[str, dict[str, int]] = {}
        self._of_replica: dict[Key, dict[str, int]] = {}

    # -- records -------------------------------------------------------------------------------

    def expect(self, key: Key, incarnation: int, path: Path) -> None:
        """That incarnation is about to start: make its black box at `path`."""
        self.gone(key)
        self._ears[key] = _Ear(incarnation, path, BlackBox(path, create=True))

    def said(self, key: Key, message: control.Said) -> None:
        """A record has come. Answered once for all that come in one turn of the loop."""
        ear = self._ears.get(key)
        if ear is None or ear.incarnation != message.incarnation:
            return  # it was dead, and its box has been read
        self._take(key, ear, message)
        if not self._due:
            asyncio.get_running_loop().call_soon(self._answer)
        self._due.add(key)

    def gone(self, key: Key) -> None:
        """The incarnation is dead, or its last word is said: pass on what has not come."""
        ear = self._ears.pop(key, None)
        if ear is None:
            return
        left = []
        for data in ear.box.read():
            try:
                message = control.from_replica([data])
            except WireError:
                continue
            if isinstance(message, control.Said):
                left.append(message)
        for message in sorted(left, key=lambda message: message.sequence):
            self._take(key, ear, message)
        ear.box.close()
        ear.path.unlink(missing_ok=True)

    def close(self) -> None:
        for key in list(self._ears):
            self.gone(key)

    def _take(self, key: Key, ear: _Ear, message: control.Said) -> None:
        if message.sequence <= ear.heard:
            return
        lost = message.sequence - ear.heard - 1
        if lost:
            what = "1 log record was" if lost == 1 else f"{lost:,} log records were"
            text = f"{what} lost with the process"
            self._on_record(key, Record(self._clock(), logging.WARNING, OWN, text))
        ear.heard = message.sequence
        self._on_record(key, message.record)

    def _answer(self) -> None:
        for key in self._due:
            ear = self._ears.get(key)
            if ear is not None and ear.heard > ear.answered:
                ear.answered = ear.heard
                self._tell(key, control.Heard(ear.heard))
        self._due.clear()

    # -- levels --------------------------------------------------------------------------------

    def set_level(
        self, plan: Plan, node: str, replica: int | None, level: int | str, logger: str
    ) -> None:
        """Let a replica, or all of a node (None), log what `logger` says from `level` on.

        It holds for later incarnations too. `level` is a number or a name, the empty logger the
        root. Raises UnknownName for a node or replica that does not exist, OperatorError for a
        level.
        """
        if self._in_process:
            raise OperatorError(
                "the replicas run in this process, whose logging is its own",
                hint="set the level with logging.getLogger(...).setLevel(...)",
            )
        names = {one.name: one for one in plan.nodes}
        if node not in names:
            raise UnknownName(f"there is no node '{node}'", hint=did_you_mean(node, names))
        count = names[node].replicas
        if replica is not None and not 0 <= replica < count:
            last = f"{node}.0" if count == 1 else f"{node}.0 to {node}.{count - 1}"
            raise UnknownName(f"there is no replica {node}.{replica}", hint=f"there is {last}")
        try:
            number = level_of(level)
        except ValueError as error:
            hint = did_you_mean(str(level).upper(), LEVELS)
            raise OperatorError(str(error), hint=hint) from None
        if replica is None:
            self._of_node.setdefault(node, {})[logger] = number
            for key, levels in self._of_replica.items():
                if key[0] == node:
                    levels.pop(logger, None)
        else:
            self._of_replica.setdefault((node, replica), {})[logger] = number
        for one in range(count) if replica is None else (replica,):
            self._tell((node, one), control.SetLevel(logger, number))

    def ready(self, key: Key) -> None:
        """A replica can be reached: it learns what was set since it was launched."""
        for logger, level in self.levels(key).items():
            self._tell(key, control.SetLevel(logger, level))

    def levels(self, key: Key) -> dict[str, int]:
        """The levels that a replica which is started now begins with."""
        return {**self._of_node.get(key[0], {}), **self._of_replica.get(key, {})}
