"""The supervisor's view of what one replica counted, over all its incarnations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flowkit.histogram import CELLS
from flowkit.protocol.ledger import Entry, Flow
from flowkit.protocol.project import Replica
from flowkit.runtime import shared
from flowkit.runtime.shared import SharedRows
from flowkit.topology.plan import Plan, foreign_links, kept_by


class ReplicaBooks:
    """The counters of one replica: of the incarnation that runs, and the sums of those before."""

    def __init__(
        self,
        links: Sequence[int],
        lossy: list[int],
        replayed: bool,
        received: Sequence[int] = (),
    ) -> None:
        self.links = links
        self.lossy = lossy
        self.received = list(received)
        """The links that come from foreign peers, for which the consumer keeps the books."""
        self.replayed = replayed
        self.rows: SharedRows | None = None
        self.path: Path | None = None
        self.past = {link: Entry() for link in links}
        self.flowed = dict.fromkeys(links, Flow())
        self.gauges = [0] * shared.GAUGES
        self.since = 0.0
        self.alive = 0.0

    def open(self, path: Path, now: float, links: Sequence[int]) -> None:
        """A new incarnation counts in the file at `path`; its output links are `links`."""
        self.close(now, dead=True)
        self.path = path
        self.links = links
        for link in links:
            self.past.setdefault(link, Entry())
        self.rows = SharedRows(path, len(self.links), create=True)
        self.since = now

    def close(self, now: float, dead: bool) -> None:
        """Add what the incarnation counted to the sums; a `dead` one settles nothing more."""
        if self.rows is None:
            return
        self.gauges = self.now()
        for place in range(shared.COUNTERS, shared.GAUGES):
            if place != shared.LENGTH:
                self.gauges[place] = 0
        self.flowed |= {
            link: flow._replace(queued=0, credit=0) for link, flow in self.flows().items()
        }
        self.alive = self.seconds(now)
        for link, entry in self.entries(live_only=True).items():
            if dead:
                reason = "consumer died" if link in self.received else "producer died"
                entry.bury(self.replayed, link in self.lossy, reason)
            self.past[link].add(entry)
        self.rows.close()
        self.rows = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def entries(self, live_only: bool = False) -> dict[int, Entry]:
        """The books of each output link, in this moment."""
        result = {link: Entry() for link in self.past}
        if not live_only:
            for link, entry in self.past.items():
                result[link].add(entry)
        if self.rows is not None:
            for number, link in enumerate(self.links):
                result[link].add(self.rows.books[number].read())
        return result

    @property
    def sent(self) -> int:
        """Messages sent, over all output links."""
        entries = self.entries().items()
        return sum(entry.sent for link, entry in entries if link not in self.received)

    @property
    def ends(self) -> bool:
        """Whether nothing leads away from the replica."""
        return all(link in self.received for link in self.links)

    def flows(self) -> dict[int, Flow]:
        """How each output link flows."""
        result = dict(self.flowed)
        if self.rows is None:
            return result
        for link, book in zip(self.links, self.rows.books, strict=True):
            past, live = self.flowed.get(link, Flow()), book.flow()
            result[link] = live._replace(
                sent_bytes=past.sent_bytes + live.sent_bytes,
                full_ns=past.full_ns + live.full_ns,
                window_ns=past.window_ns + live.window_ns,
            )
        return result

    def now(self) -> list[int]:
        """The gauges; counters are summed over incarnations, of the rest only the length outlives
        its process."""
        if self.rows is None:
            return list(self.gauges)
        total: list[int] = self.rows.gauges.tolist()
        for place in range(shared.COUNTERS):
            total[place] += self.gauges[place]
        total[shared.LENGTH] = max(total[shared.LENGTH], self.gauges[shared.LENGTH])
        return total

    def histograms(self) -> tuple[list[int], list[int]]:
        """Of the seconds in handlers, and of the ages of messages that end here."""
        gauges = self.now()
        times, ages = shared.TIMES, shared.LATENCY
        return gauges[times : times + CELLS], gauges[ages : ages + CELLS]

    @property
    def turned(self) -> float:
        """When the loop of the process last turned, by the clock; 0 if it never has."""
        return int(self.rows.gauges[shared.TURNED_NS]) / 1e9 if self.rows is not None else 0.0

    @property
    def handler(self) -> int:
        """The number of the input channel whose handler runs, from 1; 0 if none does."""
        return int(self.rows.gauges[shared.HANDLER]) if self.rows is not None else 0

    def in_hand(self) -> shared.InHand | None:
        """The message that was being handled carefully, if there is one."""
        return shared.in_hand(self.rows.gauges) if self.rows is not None else None

    def seconds(self, now: float) -> float:
        """How long its processes have lived, in all."""
        return self.alive + (now - self.since if self.rows is not None else 0.0)


def open_books(
    books: dict[tuple[str, int], ReplicaBooks],
    plan: Plan,
    replicas: Mapping[tuple[str, int], Replica],
) -> None:
    """Add to `books` those of the replicas, by node and number, that have none yet."""
    lossy = [link.index for link in plan.links if link.delivery == "at-most-once"]
    for key, replica in replicas.items():
        node = next((node for node in plan.nodes if node.name == replica.node), None)
        foreign = foreign_links([node] if node is not None else [])
        received = [link.index for link in foreign if link.into]
        here = [*lossy, *(link.index for link in foreign)]
        if key in books:
            books[key].lossy += here
            books[key].received += received
        elif node is not None:
            books[key] = ReplicaBooks(kept_by(plan, node), here, node.positions, received)
