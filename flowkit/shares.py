"""From counters to the situation that a verdict is passed on, of the whole run or of a while."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

from flowkit.metrics import LinkShare, NodeShare, Situation
from flowkit.protocol.ledger import Entry
from flowkit.runtime import shared
from flowkit.runtime.books import ReplicaBooks
from flowkit.sampling import Change
from flowkit.topology.plan import LinkPlan, NodePlan, Plan

Key = tuple[str, int]
"""A replica: node and number."""

Changes = Mapping[Hashable, Change]
"""What counters did: of replicas, by `Key`, and of their output links, by node, number and link."""

SENT = shared.COUNTERS
"""Place in the counters of a replica, after those of `shared`: messages sent, on all links."""

FULL_NS, WINDOW_NS, NO_ROOM, DONE = range(4)
"""Places in the counters of a link: see `ledger.Flow`; messages dropped for want of room, and
done."""


def counters(books: ReplicaBooks, now: float) -> list[float]:
    """Everything about a replica that only grows."""
    gauges = books.now()
    since = gauges[shared.SINCE_NS]
    result: list[float] = list(gauges[: shared.COUNTERS])
    if since:
        # A handler that has not returned: its time is not booked yet.
        result[shared.BUSY_NS] += max(0.0, now * 1e9 - since)
    result.append(books.sent)
    return result


def link_counters(books: ReplicaBooks) -> dict[int, list[float]]:
    """The same of each of its output links."""
    entries = books.entries()
    return {
        link: [flow.full_ns, flow.window_ns, no_room(entries[link]), entries[link].done]
        for link, flow in books.flows().items()
        if link in entries
    }


def no_room(entry: Entry) -> int:
    """Messages that were dropped because a link was full."""
    return sum(count for why, count in entry.dropped.items() if why.startswith(("no room", "gap")))


def whole(books: Mapping[Key, ReplicaBooks], now: float, began: float | None = None) -> Changes:
    """What all counters did in the whole run, whose sources have `began` then."""
    result: dict[Hashable, Change] = {}
    for key, mine in books.items():
        seconds = mine.seconds(now)
        if began is not None:
            seconds = min(seconds, now - began)
        if seconds > 0:
            result[key] = Change(seconds, counters(mine, now))
            for link, counted in link_counters(mine).items():
                result[(*key, link)] = Change(seconds, counted)
    return result


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


def of_link(changes: Changes, link: LinkPlan, what: int) -> list[float]:
    """How much the counter `what` of a link grew per second, at each of its producers."""
    return [
        change.rate(what)
        for key, change in changes.items()
        if isinstance(key, tuple) and len(key) == 3 and key[0] == link.keeper
        and key[2] == link.index and change.seconds > 0
    ]  # fmt: skip


def situation(
    plan: Plan,
    books: Mapping[Key, ReplicaBooks],
    changes: Changes,
    replicas: Iterable[Key],
    stopped: Collection[str] = (),
    recent: Collection[str] = (),
) -> Situation:
    """How the nodes and links of `plan` were while `changes` happened, as far as `replicas` had a
    part in it. The nodes `stopped` are so because the operator wants it, or wait for an
    application; of those that are `recent` a replica was started meanwhile."""
    wanted = sorted(key for key in replicas if key in changes)
    return Situation(
        [
            _node(node, books, changes, [key for key in wanted if key[0] == node.name],
                  node.name in stopped, node.name in recent)
            for node in plan.nodes
        ],
        [_link(link, changes) for link in plan.links],
        processors(),
    )  # fmt: skip


def processors() -> int:
    """Cores that this process, and so its children, may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _node(
    node: NodePlan,
    books: Mapping[Key, ReplicaBooks],
    changes: Changes,
    keys: Sequence[Key],
    stopped: bool,
    recent: bool,
) -> NodeShare:
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
        stopped=stopped,
        recent=recent,
        external=node.external,
        awaiting=sum(share(one, shared.INPUT_NS) for one in mine) / (len(mine) or 1),
    )


def _link(link: LinkPlan, changes: Changes) -> LinkShare:
    # Of several producers the one counts that is held up most.
    full = of_link(changes, link, FULL_NS)
    most = max(range(len(full)), key=lambda number: full[number], default=None)
    by_window = of_link(changes, link, WINDOW_NS)
    return LinkShare(
        source=link.source,
        target=link.target,
        name=link.name,
        route=link.route,
        full=0.0 if most is None else min(1.0, full[most] / 1e9),
        by_window=0.0 if most is None else min(1.0, by_window[most] / 1e9),
        window=link.window,
        dropping=sum(of_link(changes, link, NO_ROOM)),
        asks=link.pattern == "request",
    )
