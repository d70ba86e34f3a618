"""What the replicas of a project print: one pipe for each that lives, and its last words."""

from __future__ import annotations

import os
from collections.abc import Callable

from flowkit.protocol.control import Record
from flowkit.runtime.output import Output

Key = tuple[str, int]


class Captures:
    """The pipes of all replicas, by node and number. `on_line` gets each line, and who printed it
    ("split.0"); `on_record` each log record that came this way, and its replica's key."""

    def __init__(
        self, on_line: Callable[[str, bytes], None], on_record: Callable[[Key, Record], None]
    ) -> None:
        self._on_line = on_line
        self._on_record = on_record
        self._outputs: dict[Key, Output] = {}

    def open(self, key: Key) -> tuple[int, int]:
        """A new pipe for a new incarnation: descriptors for its stdout and stderr, to be given
        away. What its predecessor has left in its own is read first."""
        old = self._outputs.pop(key, None)
        if old is not None:
            old.close()
        name = f"{key[0]}.{key[1]}"
        output = self._outputs[key] = Output(
            lambda line: self._on_line(name, line), lambda record: self._on_record(key, record)
        )
        return output.writer, os.dup(output.writer)

    def remember(self, key: Key, record: Record) -> None:
        """A log record, whichever way it came, is one of a replica's last words."""
        output = self._outputs.get(key)
        if output is not None:
            output.remember(record)

    def drain(self, key: Key) -> None:
        """The replica has ended: read what it has left."""
        output = self._outputs.get(key)
        if output is not None:
            output.drain()

    def last_words(self, key: Key) -> str:
        """The last lines that a replica has printed."""
        output = self._outputs.get(key)
        return output.last_lines if output is not None else ""

    def close(self) -> None:
        for output in self._outputs.values():
            output.close()
