"""A project's figures in the formats of Prometheus and OpenMetrics.

Names and units follow Prometheus's conventions: seconds, bytes and ratios; counters end in `_total`
and only grow, also over restarts of replicas. Replicas and links that were taken out keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from flowkit.histogram import BOUNDS, COARSE, SUM, total
from flowkit.status import LinkStatus, ReplicaStatus, Status

T = TypeVar("T")


class Histograms(NamedTuple):
    """Of one replica: seconds that handlers took, and the age of messages that end there. Rows as
    `flowkit.histogram` has them."""

    times: Sequence[int]
    ages: Sequence[int]


ByReplica = Mapping[tuple[str, int], Histograms]
"""By node and number."""


def export(status: Status, histograms: ByReplica, accept: str = "") -> tuple[bytes, str]:
    """The figures as text, and its content type: OpenMetrics if `accept` asks for it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(status, histograms))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Snapshot(Collector):
    def __init__(self, status: Status, histograms: ByReplica) -> None:
        self._status = status
        self._histograms = histograms

    def describe(self) -> Iterable[Metric]:
        return ()  # what there is to collect is known when it is collected

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield from _project(status)
        for name, text, kind, value in REPLICA:
            family = _family(kind, name, text, ("project", "node", "replica"))
            for replica in _those_with(kind, status.replicas, status.removed):
                figure = value(replica)
                if figure is not None:
                    family.add_metric(_labels(status, replica), figure)
            yield family
        for name, text, kind, measure in LINK:
            family = _family(kind, name, text, ("project", "link"))
            for link in _those_with(kind, status.links, status.removed_links):
                family.add_metric((status.project, link.name), measure(link))
            yield family
        yield _dropped(status)
        yield from self._times()

    def _times(self) -> Iterator[Metric]:
        status = self._status
        labels = ("project", "node", "replica")
        times = HistogramMetricFamily(
            "flowkit_handler_duration_seconds",
            "Time that a handler took for one message; all of a batch count with its mean.",
            labels=labels,
        )
        ages = HistogramMetricFamily(
            "flowkit_message_age_seconds",
            "Age of messages where they end, since their stream began at a source or a timer.",
            labels=labels,
        )
        for replica in [*status.replicas, *status.removed]:
            mine = self._histograms.get((replica.node, replica.replica))
            if mine is None:
                continue
            if not replica.source:
                times.add_metric(_labels(status, replica), *_buckets(mine.times))
            if replica.ends and not replica.source:
                ages.add_metric(_labels(status, replica), *_buckets(mine.ages))
        yield times
        yield ages


def _project(status: Status) -> Iterator[Metric]:
    info = InfoMetricFamily("flowkit_project", "The project and what runs it.")
    facts = {"project": status.project, "version": status.version, "run": status.run}
    info.add_metric((), facts)
    yield info
    for name, text, value in (
        ("flowkit_project_uptime_seconds", "Time since the project was started.", status.uptime),
        ("flowkit_project_ready", "Whether every replica is there.", status.ready),
        (
            "flowkit_project_draining",
            "Whether the sources were told to stop.",
            status.state == "draining",
        ),
    ):
        family = GaugeMetricFamily(name, text, labels=("project",))
        family.add_metric((status.project,), float(value))
        yield family
    limit = GaugeMetricFamily(
        "flowkit_bottleneck_ratio",
        "Share of the time that the node or link which limits the flow is busy; absent if none is.",
        labels=("project", "bottleneck", "kind"),
    )
    said = status.verdict
    if said.bottleneck is not None:
        limit.add_metric((status.project, said.bottleneck, said.kind), said.busy)
    yield limit


Kind = type[CounterMetricFamily] | type[GaugeMetricFamily]

REPLICA: list[tuple[str, str, Kind, Callable[[ReplicaStatus], float | None]]] = [
    (
        "flowkit_replica_up",
        "Whether the replica is at work.",
        GaugeMetricFamily,
        lambda one: float(one.phase == "ready"),
    ),
    (
        "flowkit_replica_uptime_seconds",
        "Time since the replica's process was started.",
        GaugeMetricFamily,
        lambda one: one.uptime,
    ),
    (
        "flowkit_replica_restarts_total",
        "Times that the replica died and was started again.",
        CounterMetricFamily,
        lambda one: one.restarts,
    ),
    (
        "flowkit_replica_lost_state",
        "Whether the replica lost what it held in memory.",
        GaugeMetricFamily,
        lambda one: float(one.lost_state),
    ),
    (
        "flowkit_replica_handled_messages_total",
        "Messages whose handlers have returned.",
        CounterMetricFamily,
        lambda one: None if one.source else one.handled,
    ),
    (
        "flowkit_replica_sent_messages_total",
        "Messages sent, over all output links.",
        CounterMetricFamily,
        lambda one: None if one.ends else one.sent,
    ),
    (
        "flowkit_replica_queue_messages",
        "Messages received and not yet handled.",
        GaugeMetricFamily,
        lambda one: one.queue,
    ),
    (
        "flowkit_replica_busy_seconds_total",
        "Time in handlers, or, for a source, reading.",
        CounterMetricFamily,
        lambda one: one.busy_seconds,
    ),
    (
        "flowkit_replica_backpressure_seconds_total",
        "Time held up for want of room downstream.",
        CounterMetricFamily,
        lambda one: one.waiting_seconds,
    ),
    (
        "flowkit_replica_busy_ratio",
        "Share of the last seconds in handlers, or, for a source, reading.",
        GaugeMetricFamily,
        lambda one: one.busy,
    ),
    (
        "flowkit_replica_backpressure_ratio",
        "Share of the last seconds held up for want of room downstream.",
        GaugeMetricFamily,
        lambda one: one.waiting,
    ),
    (
        "flowkit_replica_cpu_seconds_total",
        "Processor time, over all processes of the replica.",
        CounterMetricFamily,
        lambda one: one.cpu_seconds,
    ),
    (
        "flowkit_replica_memory_bytes",
        "Memory of the replica's process, shared parts divided among those who share them.",
        GaugeMetricFamily,
        lambda one: one.memory,
    ),
]

LINK: list[tuple[str, str, Kind, Callable[[LinkStatus], float]]] = [
    (
        "flowkit_link_sent_messages_total",
        "Messages sent on the link.",
        CounterMetricFamily,
        lambda one: one.sent,
    ),
    (
        "flowkit_link_sent_bytes_total",
        "Bytes of the messages sent on the link.",
        CounterMetricFamily,
        lambda one: one.sent_bytes,
    ),
    (
        "flowkit_link_delivered_messages_total",
        "Messages delivered, those delivered again included.",
        CounterMetricFamily,
        lambda one: one.delivered,
    ),
    (
        "flowkit_link_redelivered_messages_total",
        "Messages delivered again.",
        CounterMetricFamily,
        lambda one: one.redelivered,
    ),
    (
        "flowkit_link_done_messages_total",
        "Messages that are done, with everything that came of them.",
        CounterMetricFamily,
        lambda one: one.done,
    ),
    (
        "flowkit_link_dead_lettered_messages_total",
        "Messages kept as dead letters.",
        CounterMetricFamily,
        lambda one: one.dead_lettered,
    ),
    (
        "flowkit_link_superseded_messages_total",
        "Messages of a producer that died, sent again by its successor.",
        CounterMetricFamily,
        lambda one: one.superseded,
    ),
    (
        "flowkit_link_in_flight_messages",
        "Messages sent, and neither done nor given up.",
        GaugeMetricFamily,
        lambda one: one.in_flight,
    ),
    (
        "flowkit_link_queued_messages",
        "Messages at the producers that wait for credit.",
        GaugeMetricFamily,
        lambda one: one.queued,
    ),
    (
        "flowkit_link_credit_batches",
        "Batches that the consumers would take at once.",
        GaugeMetricFamily,
        lambda one: one.credit,
    ),
    (
        "flowkit_link_window_messages",
        "Messages that may be in flight from each producer.",
        GaugeMetricFamily,
        lambda one: one.window,
    ),
    (
        "flowkit_link_backpressure_seconds_total",
        "Time that the link held its producers up.",
        CounterMetricFamily,
        lambda one: one.full_seconds,
    ),
    (
        "flowkit_link_backpressure_ratio",
        "Share of the last seconds that the link held up the producer it held up most.",
        GaugeMetricFamily,
        lambda one: one.full,
    ),
]


def _those_with(kind: Kind, there: Sequence[T], removed: Sequence[T]) -> list[T]:
    """Those that have a figure of that kind: what was taken out has counters alone."""
    return [*there, *removed] if kind is CounterMetricFamily else list(there)


def _family(
    kind: Kind, name: str, text: str, labels: Sequence[str]
) -> CounterMetricFamily | GaugeMetricFamily:
    return kind(name, text, labels=labels)


def _labels(status: Status, replica: ReplicaStatus) -> tuple[str, str, str]:
    return status.project, replica.node, str(replica.replica)


def _dropped(status: Status) -> Metric:
    family = CounterMetricFamily(
        "flowkit_link_dropped_messages_total",
        "Messages dropped, by reason.",
        labels=("project", "link", "reason"),
    )
    for link in [*status.links, *status.removed_links]:
        for reason, count in link.dropped.items():
            family.add_metric((status.project, link.name, reason), count)
    return family


def _buckets(cells: Sequence[int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulated counts at the bounds that are worth a series, and the sum in seconds."""
    result: list[tuple[str, float]] = []
    below, place = 0, 0
    for bound in COARSE:
        below += sum(cells[place : bound + 1])
        place = bound + 1
        result.append((repr(BOUNDS[bound]), float(below)))
    result.append(("+Inf", float(total(cells))))
    return result, cells[SUM] / 1e9
