"""The report of a run: the books of every link, the fate of every replica, the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowkit.metrics import IDLE, Verdict, verdict
from flowkit.protocol.ledger import Entry
from flowkit.protocol.project import Phase, Project, Replica, Status, Wanted
from flowkit.runtime import shared
from flowkit.runtime.books import ReplicaBooks
from flowkit.shares import situation, whole
from flowkit.topology.plan import LinkPlan, Plan, foreign_links

OK, FAILED, USAGE, DEAD_LETTERS, UNACCOUNTED = 0, 3, 2, 4, 5
KILLED = 130


@dataclass(frozen=True, slots=True)
class LinkReport:
    """One link. Figures are messages."""

    source: str
    target: str
    entry: Entry
    lossy: bool = False

    @property
    def name(self) -> str:
        return f"{self.source} -> {self.target}"


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica over all its incarnations. `busy` is its share of time in handlers."""

    node: str
    replica: int
    restarts: int
    state: str
    lost_state: bool
    busy: float
    handled: int
    planned: int = 0
    """How often it was restarted because the operator asked for it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a run."""

    project: str
    status: Status
    reason: str
    seconds: float
    links: Sequence[LinkReport]
    nodes: Sequence[ReplicaReport]
    verdict: Verdict
    traceback: str = field(default="")
    """The last lines of the replica that was given up."""
    interrupted: bool = False
    """Whether the sources were told to stop before their streams had ended."""

    @property
    def in_flight(self) -> int:
        return sum(link.entry.in_flight for link in self.links)

    @property
    def dead_lettered(self) -> int:
        return sum(link.entry.dead_lettered for link in self.links)

    @property
    def dropped(self) -> int:
        return sum(sum(link.entry.dropped.values()) for link in self.links)

    @property
    def lost(self) -> int:
        """Messages dropped on links that are to drop nothing, by the death of a producer whose
        input nobody delivers again. What a lossy link or an error policy drops was asked for."""
        return sum(
            link.entry.dropped.get("producer died", 0) for link in self.links if not link.lossy
        )

    @property
    def balanced(self) -> bool:
        return all(link.entry.balanced for link in self.links)

    @property
    def exit(self) -> int:
        """The exit code of `up`."""
        if self.status is Status.KILLED:
            return KILLED
        if self.status is Status.MISCONFIGURED:
            return USAGE
        if self.status in (Status.FAILED, Status.STOPPED):
            return FAILED
        given_up = self.in_flight or self.lost or not self.balanced
        if self.status is Status.TIMED_OUT or given_up:
            return UNACCOUNTED
        return DEAD_LETTERS if self.dead_lettered else OK

    def as_dict(self) -> dict[str, Any]:
        """As JSON-able data; the format of `up --report`."""
        return {
            "project": self.project,
            "status": self.status.value,
            "reason": self.reason,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "exit": self.exit,
            "links": [
                {
                    "from": link.source,
                    "to": link.target,
                    "sent": link.entry.sent,
                    "delivered": link.entry.delivered,
                    "done": link.entry.done,
                    "redelivered": link.entry.redelivered,
                    "dropped": link.entry.dropped,
                    "dead_lettered": link.entry.dead_lettered,
                    "superseded": link.entry.superseded,
                    "in_flight": link.entry.in_flight,
                }
                for link in self.links
            ],
            "nodes": [
                {
                    "node": node.node,
                    "replica": node.replica,
                    "restarts": node.restarts,
                    "planned": node.planned,
                    "state": node.state,
                    "lost_state": node.lost_state,
                    "busy": round(node.busy, 4),
                    "handled": node.handled,
                }
                for node in self.nodes
            ],
            "verdict": {
                "bottleneck": self.verdict.bottleneck,
                "busy": self.verdict.busy,
                "advice": self.verdict.advice,
                "kind": self.verdict.kind,
                "waits": self.verdict.waits,
                "waiting": self.verdict.waiting,
            },
        }


def compile_report(
    plan: Plan,
    project: Project,
    books: Mapping[tuple[str, int], ReplicaBooks],
    replayed: Mapping[str, Entry],
    now: float,
    seconds: float,
    last_words: str,
    former: Sequence[LinkPlan] = (),
    began: float | None = None,
) -> Report:
    """The report of a run as it stands at `now`, from the books of its replicas by node and number.

    `replayed` is what dead letters that were replayed add to the books of links, by name;
    `last_words` what the replica that was given up printed last; `former` the links that were
    taken out while the project ran; `began` when its sources did.
    """
    links: list[LinkReport] = []
    for link in [*plan.links, *foreign_links(plan.nodes), *former]:
        entry = Entry()
        for book in books.values():
            entry.add(book.entries().get(link.index, Entry()))
        if link not in former:
            entry.add(replayed.get(link.name, Entry()))
        source, target = link.ends
        lossy = link.delivery == "at-most-once"
        # A link whose terms were changed is another one, with the same ends: people know one.
        same = [one for one in links if (one.source, one.target) == (source, target)]
        if link in former and same and same[0].lossy == lossy:
            same[0].entry.add(entry)
        else:
            links.append(LinkReport(source, target, entry, lossy))
    replicas = []
    for key, replica in project.replicas.items():
        gauges = books[key].now()
        replicas.append(
            ReplicaReport(
                replica.node,
                replica.number,
                replica.restarts,
                _state(replica),
                replica.lost_state,
                gauges[shared.BUSY_NS] / 1e9 / (books[key].seconds(now) or 1.0),
                gauges[shared.HANDLED],
                replica.planned,
            )
        )
    said = IDLE
    if project.started:
        said = verdict(situation(plan, books, whole(books, now, began), books))
    return Report(
        plan.project,
        project.status,
        project.reason,
        seconds,
        links,
        replicas,
        said,
        last_words,
        project.draining,
    )


def _state(replica: Replica) -> str:
    if replica.phase is Phase.ENDED:
        return "stopped" if replica.wanted is Wanted.DOWN else "done"
    return str(replica.phase.value)


def progress(
    project: Project, books: Mapping[tuple[str, int], ReplicaBooks]
) -> tuple[int, int | None]:
    """How many messages of the sources are done downstream, and how many there will be: None unless
    every source knows."""
    done = 0
    length: int | None = 0
    for key, replica in project.replicas.items():
        if replica.source:
            entries = list(books[key].entries().values())
            # With several links a message is done when the slowest of them is.
            done += min((entry.done for entry in entries), default=0)
            mine = books[key].now()[shared.LENGTH]
            length = length + mine if mine and length is not None else None
    return done, length
