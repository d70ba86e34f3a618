"""Who wants to be told what happens to a project."""

from __future__ import annotations

from typing import Protocol

from flowkit.protocol import project as core


class Watcher(Protocol):
    """Who wants to be told what happens; every method is called on the loop."""

    def output(self, replica: str, line: bytes) -> None:
        """A replica has printed a line."""

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

    def ready(self, seconds: float) -> None: ...

    def died(self, event: core.Died, budget: int | None) -> None: ...

    def note(self, text: str) -> None: ...

    def poisoned(self, event: core.Poisoned) -> None: ...

    def draining(self, in_flight: int) -> None: ...
