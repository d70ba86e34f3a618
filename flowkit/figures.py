"""Makes a `Status` of what the supervisor knows: the plan, the books, the processes."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from flowkit import shares
from flowkit.histogram import CELLS, quantile
from flowkit.metrics import EARLY, Situation, Verdict, verdict
from flowkit.processes import Processes
from flowkit.protocol import project as core
from flowkit.protocol.ledger import Entry
from flowkit.protocol.project import Phase, Project, Replica
from flowkit.report import Report
from flowkit.runtime import shared
from flowkit.runtime.books import ReplicaBooks
from flowkit.sampling import Window
from flowkit.shares import Key
from flowkit.status import LinkStatus, ReplicaStatus, Status
from flowkit.topology.plan import LinkPlan, Plan, foreign_links

LIVELY = 0.9
"""Share of the time above which a replica is shown as busy."""

HELD_UP = 0.5
"""Share of the time above which a replica is shown as waiting, unless it is busier than that."""

ENOUGH = 1.0
"""Seconds that must have been seen for a verdict."""


class Scene(NamedTuple):
    """What there is to look at; of the supervisor, as it is at the moment."""

    plan: Plan
    project: Project
    books: Mapping[Key, ReplicaBooks]
    pids: Mapping[Key, int]
    in_process: bool
    former: Sequence[LinkPlan] = ()
    """Links that were taken out."""

    def owns(self, key: Key) -> bool:
        """Whether the process of a replica is its own, so that its figures are."""
        return not self.in_process and not self.project.replicas[key].external


class Run(NamedTuple):
    """What a status says of the run itself. `ended` if it has."""

    id: str
    version: str
    ended: bool
    http: str | None = None


class Figures:
    """Samples the counters of a project and tells what they say.

    Call `sample` about once a second; `status` whenever somebody asks.
    """

    def __init__(self) -> None:
        self._window = Window()
        self.began: float | None = None
        """When everybody was ready for the first time. What was before would only dilute what is:
        nobody had anything to do."""
        self._processes = Processes()

    def begin(self, now: float) -> None:
        """The sources begin."""
        self.began = now
        self._window = Window()

    def sample(self, scene: Scene, now: float) -> None:
        """Look at the counters, if it is time to."""
        if not self._window.due(now):
            return
        self._processes.keep(scene.pids.values())
        seen: dict[Hashable, Sequence[float]] = {}
        for key, books in scene.books.items():
            counters = shares.counters(books, now)
            pid = scene.pids.get(key)
            if pid is not None and scene.owns(key):
                # What a replica says of itself may be old: a handler may hold its loop.
                spent = self._processes.cpu_seconds(pid) or 0.0
                before = books.gauges[shared.CPU_NS]
                counters[shared.CPU_NS] = max(counters[shared.CPU_NS], before + spent * 1e9)
            seen[key] = counters
            for link, counted in shares.link_counters(books).items():
                seen[(*key, link)] = counted
        self._window.add(now, seen)

    def status(self, scene: Scene, report: Report, now: float, run: Run) -> Status:
        """The project as it is `now`. `report` is what the books say of the whole run."""
        self.sample(scene, now)
        project = scene.project
        changes = self._window.changes()
        # Those that were added later stand with those of their node.
        order = {node.name: place for place, node in enumerate(scene.plan.nodes)}
        keys = sorted(project.replicas, key=lambda key: (order.get(key[0], len(order)), key))
        removed = [key for key in keys if project.replicas[key].phase is Phase.REMOVED]
        links = _links(scene, report, changes)
        linked = {link.name for link in _all_links(scene.plan)}
        return Status(
            project=scene.plan.project,
            file=scene.plan.path,
            run=run.id,
            pid=os.getpid(),
            version=run.version,
            state=_state(project),
            uptime=report.seconds,
            exit=report.exit if run.ended else None,
            reason=project.reason,
            ready=_ready(project),
            http=run.http,
            window=self._window.covered,
            replicas=[
                self._replica(scene, key, changes, now) for key in keys if key not in removed
            ],
            links=[link for link in links if link.name in linked],
            removed=[self._replica(scene, key, changes, now) for key in removed],
            removed_links=[link for link in links if link.name not in linked],
            verdict=self._verdict(scene, report, run),
        )

    def situation(self, scene: Scene) -> Situation:
        """How the nodes and links were in the last seconds."""
        replicas = scene.project.replicas
        working = [key for key, one in replicas.items() if one.phase is Phase.READY]
        nodes = {node for node, _ in working}
        # Of a node that has none at work, those count that there are.
        others = [key for key, one in replicas.items() if key[0] not in nodes]
        stopped = {
            key[0] for key in others if replicas[key].phase is Phase.STOPPED or replicas[key].absent
        }
        recent = {key[0] for key in working if scene.books[key].since > self._window.since}
        changes = self._window.changes()
        return shares.situation(
            scene.plan, scene.books, changes, [*working, *others], stopped, recent
        )

    def _verdict(self, scene: Scene, report: Report, run: Run) -> Verdict:
        if run.ended:
            return report.verdict
        if not scene.project.started or self._window.covered < ENOUGH:
            return EARLY
        return verdict(self.situation(scene))

    def _replica(
        self, scene: Scene, key: Key, changes: shares.Changes, now: float
    ) -> ReplicaStatus:
        change = changes.get(key, shares.NOTHING)
        replica = scene.project.replicas[key]
        books = scene.books[key]
        pid = scene.pids.get(key)
        lives = books.rows is not None and replica.phase in (Phase.STARTING, Phase.READY)
        gauges = books.now()
        busy, waiting = shares.busy(change), shares.waiting(change)
        memory, kind = None, ""
        if pid is not None and scene.owns(key):
            memory, kind = self._processes.memory(pid, now)

        def rate(place: int) -> float | None:
            return change.rate(place) if change.seconds > 0 else None

        times = change.counters[shared.TIMES : shared.TIMES + CELLS] if change.seconds else ()
        ages = change.counters[shared.LATENCY : shared.LATENCY + CELLS] if change.seconds else ()
        return ReplicaStatus(
            node=replica.node,
            replica=replica.number,
            state=_replica_state(replica, busy, waiting),
            phase=replica.phase.value,
            pid=pid,
            incarnation=replica.incarnation,
            uptime=now - books.since if pid is not None and books.rows is not None else 0.0,
            cpu=shares.cores(change) if pid is not None and not replica.external else None,
            memory=memory,
            memory_kind=kind,
            in_rate=None if replica.source else rate(shared.HANDLED),
            out_rate=None if books.ends else rate(shares.SENT),
            queue=None if replica.source else gauges[shared.QUEUE] if lives else 0,
            p50=quantile(times, 0.5) if times else None,
            p99=quantile(times, 0.99) if times else None,
            age_p50=quantile(ages, 0.5) if ages else None,
            age_p99=quantile(ages, 0.99) if ages else None,
            busy=busy,
            waiting=waiting,
            handled=gauges[shared.HANDLED],
            sent=books.sent,
            restarts=replica.restarts,
            lost_state=replica.lost_state,
            source=replica.source,
            ends=books.ends,
            busy_seconds=(gauges[shared.BUSY_NS] + gauges[shared.COMMIT_NS]) / 1e9,
            waiting_seconds=gauges[shared.WAITING_NS] / 1e9,
            cpu_seconds=gauges[shared.CPU_NS] / 1e9,
        )


def _ready(project: Project) -> bool:
    running = project.status is core.Status.RUNNING and project.started
    return running and not any(
        replica.phase in (Phase.WAITING, Phase.STARTING)
        and not replica.external
        # One that an operator has just asked for is not missed: what was served before is still.
        and not (replica.trying and project.operation is not None)
        for replica in project.replicas.values()
    )


def _state(project: Project) -> str:
    if project.status is not core.Status.RUNNING:
        return str(project.status.value)
    if project.draining:
        return "draining"
    return "running" if project.started else "starting"


def _replica_state(replica: Replica, busy: float, waiting: float) -> str:
    if replica.phase is Phase.READY:
        if waiting >= HELD_UP and waiting > busy:
            return "waiting"
        return "busy" if busy >= LIVELY and not replica.source else "running"
    if replica.absent:
        return "absent"
    words = {Phase.WAITING: "pending", Phase.ENDED: "done", Phase.DONE: "stopping"}
    return words.get(replica.phase, str(replica.phase.value))


def _all_links(plan: Plan) -> list[LinkPlan]:
    return [*plan.links, *foreign_links(plan.nodes)]


def _links(scene: Scene, report: Report, changes: shares.Changes) -> list[LinkStatus]:
    """All links that there are, and those that were taken out. One whose terms were changed is
    another one with the same name: what both have counted is told as one."""
    entries: dict[str, Entry] = {}
    for one in report.links:
        entries.setdefault(f"{one.source} -> {one.target}", Entry()).add(one.entry)
    plans: dict[str, list[LinkPlan]] = {}
    for link in [*_all_links(scene.plan), *scene.former]:
        plans.setdefault(link.name, []).append(link)
    return [_link(same, entries[name], scene.books, changes) for name, same in plans.items()]


def _link(
    same: Sequence[LinkPlan],
    entry: Entry,
    books: Mapping[Key, ReplicaBooks],
    changes: shares.Changes,
) -> LinkStatus:
    """The first of `same`, and what the others have counted before it."""
    link, indexes = same[0], {one.index for one in same}
    flows = [flow for one in books.values() for at, flow in one.flows().items() if at in indexes]
    full = shares.of_link(changes, link, shares.FULL_NS)
    return LinkStatus(
        from_=link.ends[0],
        to=link.ends[1],
        route=link.route,
        delivery=link.delivery,
        sent=entry.sent,
        delivered=entry.delivered,
        done=entry.done,
        redelivered=entry.redelivered,
        dropped=dict(entry.dropped),
        dead_lettered=entry.dead_lettered,
        superseded=entry.superseded,
        in_flight=entry.in_flight,
        sent_bytes=sum(flow.sent_bytes for flow in flows),
        queued=sum(flow.queued for flow in flows),
        credit=sum(flow.credit for flow in flows),
        window=link.window,
        window_bytes=link.window_bytes,
        full=min(1.0, max(full, default=0.0) / 1e9),
        full_seconds=sum(flow.full_ns for flow in flows) / 1e9,
        rate=sum(shares.of_link(changes, link, shares.DONE)),
    )
