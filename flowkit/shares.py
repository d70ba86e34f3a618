"""From counters to the situation that a verdict is passed on, of the whole run or of a while."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from flowkit.metrics import LinkShare, NodeShare, Situation
from flowkit.protocol.ledger import Entry
from flowkit.runtime import shared
from flowkit.runtime.books import ReplicaBooks
from flowkit.sampling import Change
from flowkit.topology.plan import LinkPlan, NodePlan, Plan

Key = tuple[str, int]
"""A replica: node and number."""

SENT = shared.COUNTERS
"""Place in `counters` of the messages sent on all links; those of single links follow."""

_LINKS = SENT + 1
FULL_NS, WINDOW_NS, NO_ROOM, DONE = range(4)
"""Places in what follows for each output link: see `ledger.Flow`; messages dropped for want of
room, and done."""
_EACH = 4


def counters(books: ReplicaBooks, now: float) -> list[float]:
    """Everything about a replica that only grows: the counters of `shared`, then what it sent, then
    four for each output link."""
    gauges = books.now()
    since = gauges[shared.SINCE_NS]
    result: list[float] = list(gauges[: shared.COUNTERS])
    if since:
        # A handler that has not returned: its time is not booked yet.
        result[shared.BUSY_NS] += max(0.0, now * 1e9 - since)
    entries, flows = books.entries(), books.flows()
    result.append(sum(entry.sent for entry in entries.values()))
    for link in books.links:
        entry, flow = entries[link], flows[link]
        result += [flow.full_ns, flow.window_ns, no_room(entry), entry.done]
    return result


def no_room(entry: Entry) -> int:
    """Messages that were dropped because a link was full."""
    return sum(count for why, count in entry.dropped.items() if why.startswith("no room"))


def whole(books: Mapping[Key, ReplicaBooks], now: float) -> dict[Key, Change]:
    """The counters of all replicas over the whole run."""
    return {
        key: Change(mine.seconds(now), counters(mine, now)) if mine.seconds(now) > 0 else NOTHING
        for key, mine in books.items()
    }


NOTHING = Change(0.0, ())
"""Of a replica of which nothing is known yet."""


def share(change: Change, *places: int) -> float:
    """The part of the time that counters of nanoseconds have grown by."""
    if change.seconds <= 0:
        return 0.0
    spent = sum(change.counters[place] for place in places) / 1e9
    return min(1.0, spent / change.seconds)


def busy(change: Change) -> float:
    """The share of the time in handlers, or reading, or making things durable."""
    return share(change, shared.BUSY_NS, shared.COMMIT_NS)


def waiting(change: Change) -> float:
    """The share of the time without room downstream."""
    return share(change, shared.WAITING_NS)


def cores(change: Change) -> float | None:
    """Cores used; None if that is not known."""
    if change.seconds <= 0 or not change.counters[shared.CPU_NS]:
        return None
    return change.rate(shared.CPU_NS) / 1e9


def of_link(change: Change, books: ReplicaBooks, link: int, what: int) -> float:
    """How much the counter `what` of an output link has grown."""
    if change.seconds <= 0:
        return 0.0
    return change.counters[_LINKS + _EACH * list(books.links).index(link) + what]


def situation(
    plan: Plan, books: Mapping[Key, ReplicaBooks], changes: Mapping[Key, Change]
) -> Situation:
    """How the nodes and links of `plan` were while `changes` happened."""
    return Situation(
        [_node(node, books, changes) for node in plan.nodes],
        [_link(link, books, changes) for link in plan.links],
        processors(),
    )


def processors() -> int:
    """Cores that this process, and so its children, may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _node(
    node: NodePlan, books: Mapping[Key, ReplicaBooks], changes: Mapping[Key, Change]
) -> NodeShare:
    keys = sorted(key for key in changes if key[0] == node.name)
    mine = [changes[key] for key in keys]
    gauges = [books[key].now() for key in keys]
    return NodeShare(
        node.name,
        busy=[busy(one) for one in mine],
        waiting=[waiting(one) for one in mine],
        rate=[one.rate(shared.HANDLED) for one in mine],
        cpu=[cores(one) for one in mine],
        starved=[share(one, shared.STARVED_NS) for one in mine],
        source=node.source,
        stateful=node.stateful,
        concurrency=max((one[shared.CONCURRENCY] for one in gauges), default=0),
        lists=max((one[shared.LISTS] for one in gauges), default=0),
        committing=sum(share(one, shared.COMMIT_NS) for one in mine) / (len(mine) or 1),
    )


def _link(
    link: LinkPlan, books: Mapping[Key, ReplicaBooks], changes: Mapping[Key, Change]
) -> LinkShare:
    mine = [
        (change, books[key])
        for key, change in changes.items()
        if key[0] == link.source and change.seconds > 0
    ]

    def part(what: int) -> list[float]:
        return [of_link(change, book, link.index, what) / change.seconds for change, book in mine]

    # Of several producers the one counts that is held up most.
    full: Sequence[float] = [one / 1e9 for one in part(FULL_NS)]
    most = max(range(len(full)), key=lambda number: full[number], default=None)
    return LinkShare(
        source=link.source,
        target=link.target,
        name=link.name,
        route=link.route,
        full=0.0 if most is None else min(1.0, full[most]),
        by_window=0.0 if most is None else min(1.0, part(WINDOW_NS)[most] / 1e9),
        window=link.window,
        dropping=sum(part(NO_ROOM)),
    )
