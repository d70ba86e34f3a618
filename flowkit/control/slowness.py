"""Says who is waited for: a slow start must not look like a hang."""

from __future__ import annotations

from collections.abc import Callable

from flowkit.protocol.project import Phase, Project, Replica

SLOW_START = 5.0
"""Seconds after which the operator is told who is not ready yet; then every half minute."""

Later = Callable[..., None]
"""`later(seconds, function, *arguments)`."""


class Slowness:
    """Watches the starts of a project's replicas. `note` tells the operator."""

    def __init__(self, project: Project, note: Callable[[str], None], later: Later) -> None:
        self._project = project
        self._note = note
        self._later = later

    def begin(self) -> None:
        """The project starts."""
        self._later(SLOW_START, self._still_starting)

    def launched(self, replica: Replica) -> None:
        """A replica is started again, while its peers wait for it."""
        if self._project.started:
            self._later(SLOW_START, self._not_back, replica, replica.incarnation)

    def _still_starting(self) -> None:
        names = [
            replica.name
            for replica in self._project.replicas.values()
            if replica.phase in (Phase.WAITING, Phase.STARTING) and not replica.absent
        ]
        if names and not self._project.started:
            self._note(f"waiting for {', '.join(names)} to be ready")
            self._later(6 * SLOW_START, self._still_starting)

    def _not_back(self, replica: Replica, incarnation: int) -> None:
        starting = replica.phase is Phase.STARTING and not replica.absent
        if starting and replica.incarnation == incarnation:
            self._note(f"waiting for {replica.name} to be ready again")
            self._later(6 * SLOW_START, self._not_back, replica, incarnation)
