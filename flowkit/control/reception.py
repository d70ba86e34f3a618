"""Where a supervisor receives its clients: what they can find, read and ask."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flowkit.clock import Clock, wall
from flowkit.control.commands import Operated
from flowkit.control.places import leave_contact
from flowkit.control.recorder import Recorder
from flowkit.control.records import RunRecord
from flowkit.control.server import ControlServer
from flowkit.control.watcher import vacancy
from flowkit.protocol.project import Replica, Vacated
from flowkit.rundir import RunDirectory
from flowkit.topology.plan import Plan


class Reception:
    """The recorder and the server of one supervisor, from its start to its end.

    `address` is where it listens; who shows `token` there is answered with `send`. `directory` is
    where it was started.
    """

    def __init__(
        self,
        project: Operated,
        place: RunDirectory,
        run: str,
        directory: str,
        clock: Clock,
        address: str,
        token: str,
        send: Callable[[bytes, list[bytes]], bool],
    ) -> None:
        plan = project.plan
        record = RunRecord(
            project=plan.project,
            file=plan.path,
            directory=directory,
            pid=os.getpid(),
            run=run,
            started=wall(),
            state="starting",
            replicas=plan.processes,
            nodes=[node.name for node in plan.nodes],
        )
        self.recorder = Recorder(place.state, record, lambda index: _name_of(project, index))
        self._server = ControlServer(project, self.recorder, token, clock, send)
        leave_contact(place.path, address, token)

    def received(self, peer: bytes, parts: list[bytes]) -> bool:
        """Take a message that has come on the control socket; False if it is not a client's."""
        if not self._server.is_from_client(parts):
            return False
        self._server.received(peer, parts[1])
        return True

    def launched(self, replica: Replica, pid: int) -> None:
        """The process of a replica has started."""
        self.recorder.launched(replica, pid)

    def replanned(self, plan: Plan) -> None:
        """The project has other nodes, or other numbers of replicas."""
        self.recorder.resized(plan.processes, [node.name for node in plan.nodes])

    def vacated(self, event: Vacated, note: Callable[[str], None]) -> None:
        """An application has gone; the operator is to `note` it unless that was in order."""
        if event.orderly:
            self.recorder.detached(event)
        else:
            note(vacancy(event))

    def ended(self, report: dict[str, Any]) -> None:
        """The project has ended; `report` as `up --report` writes it."""
        self._server.ended(report)

    async def close(self) -> bool:
        """Whether there are clients to whom last words are under way."""
        listened_to = await self._server.close()
        self.recorder.close()
        return listened_to


def _name_of(project: Operated, link: int) -> str:
    return next((each.name for each in project.plan.links if each.index == link), f"link {link}")
