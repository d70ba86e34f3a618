"""The log of a project that runs in the command's own process: shown as that of processes is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flowkit.cli.show import SUPERVISOR, Screen
from flowkit.runtime.logs import current_replica, record_of


class _Relay(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = record_of(record)
            place = current_replica.get()
            name = SUPERVISOR if place is None else f"{place[0]}.{place[1]}"
            said.text = said.text.removeprefix(f"{name}: ")
            self._screen.record(name, said)
        except Exception:
            self.handleError(record)


@contextmanager
def relayed(screen: Screen) -> Iterator[None]:
    """Meanwhile `screen` shows what is logged in this process, from INFO on."""
    root = logging.getLogger()
    relay, level = _Relay(screen), root.level
    root.addHandler(relay)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(relay)
        root.setLevel(level)
