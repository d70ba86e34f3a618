"""Makes a `Status` of what the supervisor knows: the plan, the books, the processes."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from flowkit.metrics import Verdict
from flowkit.processes import Processes
from flowkit.protocol import project as core
from flowkit.protocol.ledger import Entry
from flowkit.protocol.project import Phase, Project, Replica
from flowkit.report import Report
from flowkit.runtime import shared
from flowkit.runtime.books import ReplicaBooks
from flowkit.sampling import Window
from flowkit.status import LinkStatus, ReplicaStatus, Status
from flowkit.topology.plan import Plan

Key = tuple[str, int]
"""A replica: node and number."""

BUSY, WAITING, HANDLED, SENT, CPU = range(5)
"""Places in what is sampled of a replica: nanoseconds, nanoseconds, messages, messages, seconds."""

LIVELY = 0.9
"""Share of the time above which a replica is shown as busy."""


class Scene(NamedTuple):
    """What there is to look at; of the supervisor, as it is at the moment."""

    plan: Plan
    project: Project
    books: Mapping[Key, ReplicaBooks]
    pids: Mapping[Key, int]
    in_process: bool


class Figures:
    """Samples the counters of a project and tells what they say."""

    def __init__(self) -> None:
        self._window = Window()
        self._processes = Processes()

    def sample(self, scene: Scene, now: float) -> None:
        """Look at the counters, if it is time to."""
        if not self._window.due(now):
            return
        self._processes.keep(scene.pids.values())
        counters: dict[Hashable, Sequence[float]] = {}
        for key, books in scene.books.items():
            gauges = books.now()
            counters[key] = (
                gauges[shared.BUSY_NS],
                gauges[shared.WAITING_NS],
                gauges[shared.HANDLED],
                sum(entry.sent for entry in books.entries().values()),
                self._cpu(scene, key),
            )
        self._window.add(now, counters)

    def _cpu(self, scene: Scene, key: Key) -> float:
        pid = scene.pids.get(key)
        if pid is None or scene.in_process:
            return 0.0
        return self._processes.cpu_seconds(pid) or 0.0

    def status(
        self, scene: Scene, report: Report, now: float, *, run: str, version: str, over: bool
    ) -> Status:
        """The project as it is `now`. `report` is what the books say of the whole run."""
        self.sample(scene, now)
        project = scene.project
        return Status(
            project=scene.plan.project,
            file=scene.plan.path,
            run=run,
            pid=os.getpid(),
            version=version,
            state=_state(project),
            uptime=report.seconds,
            exit=report.exit if over else None,
            reason=project.reason,
            ready=project.started
            and all(
                replica.phase not in (Phase.WAITING, Phase.STARTING)
                for replica in project.replicas.values()
            ),
            window=self._window.covered,
            replicas=[self._replica(scene, key, now) for key in project.replicas],
            links=[
                _link(link.route, link.delivery, link.window, one.source, one.target, one.entry)
                for link, one in zip(scene.plan.links, report.links, strict=True)
            ],
            verdict=Verdict(report.verdict.bottleneck, report.verdict.busy, report.verdict.advice),
        )

    def _replica(self, scene: Scene, key: Key, now: float) -> ReplicaStatus:
        replica = scene.project.replicas[key]
        books = scene.books[key]
        pid = scene.pids.get(key)
        change = self._window.change(key)
        seconds = change.seconds
        busy = min(1.0, change.rate(BUSY) / 1e9) if seconds else 0.0
        waiting = min(1.0, change.rate(WAITING) / 1e9) if seconds else 0.0
        process = pid is not None and not scene.in_process
        memory, kind = self._processes.memory(pid, now) if process and pid else (None, "")
        return ReplicaStatus(
            node=replica.node,
            replica=replica.number,
            state=_replica_state(replica, busy, waiting),
            phase=replica.phase.value,
            pid=pid,
            incarnation=replica.incarnation,
            uptime=now - books.since if books.rows is not None else 0.0,
            cpu=change.rate(CPU) if process and seconds else None,
            memory=memory,
            memory_kind=kind,
            in_rate=None if replica.source else change.rate(HANDLED) if seconds else 0.0,
            out_rate=(change.rate(SENT) if seconds else 0.0) if books.links else None,
            busy=busy,
            waiting=waiting,
            handled=books.now()[shared.HANDLED],
            sent=sum(entry.sent for entry in books.entries().values()),
            restarts=replica.restarts,
            lost_state=replica.lost_state,
            source=replica.source,
        )


def _state(project: Project) -> str:
    if project.status is not core.Status.RUNNING:
        return str(project.status.value)
    if project.draining:
        return "draining"
    return "running" if project.started else "starting"


def _replica_state(replica: Replica, busy: float, waiting: float) -> str:
    if replica.phase is Phase.READY:
        if waiting >= LIVELY / 2 and waiting > busy:
            return "waiting"
        return "busy" if busy >= LIVELY else "running"
    words = {Phase.WAITING: "pending", Phase.ENDED: "done", Phase.DONE: "stopping"}
    return words.get(replica.phase, str(replica.phase.value))


def _link(
    route: str, delivery: str, window: int, source: str, target: str, entry: Entry
) -> LinkStatus:
    return LinkStatus(
        from_=source,
        to=target,
        route=route,
        delivery=delivery,
        sent=entry.sent,
        delivered=entry.delivered,
        done=entry.done,
        redelivered=entry.redelivered,
        dropped=dict(entry.dropped),
        dead_lettered=entry.dead_lettered,
        superseded=entry.superseded,
        in_flight=entry.in_flight,
        window=window,
    )
