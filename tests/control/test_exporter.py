"""`/metrics`: what a scraper gets, and whether it would take it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import msgspec
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from flowkit.control.exporter import Histograms, export
from flowkit.histogram import CELLS, record
from flowkit.metrics import IDLE
from flowkit.status import Status
from tests.figures import replica, status


def histogram(*values: float) -> list[int]:
    cells = [0] * CELLS
    for value in values:
        record(cells, 0, value)
    return cells


HISTOGRAMS = {
    ("read", 0): Histograms(histogram(), histogram()),
    ("parse", 0): Histograms(histogram(0.0004, 0.0004, 0.002, 5000.0), histogram()),
    ("store", 0): Histograms(histogram(0.08), histogram(0.3, 1.1)),
}


def scraped(of: Status) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and what its labels say."""
    text, kind = export(of, HISTOGRAMS)
    assert kind.startswith("text/plain")
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found, "a sample stands there once"
            found[key] = sample.value
    return found


SAMPLES = scraped(status())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("flowkit_project_info", "clicks", "a1b2", "0.1.0"), 1),
        (("flowkit_project_ready", "clicks"), 1),
        (("flowkit_project_uptime_seconds", "clicks"), 131),
        (("flowkit_bottleneck_ratio", "store", "sink", "clicks"), 0.97),
        (("flowkit_replica_up", "parse", "clicks", "0"), 1),
        (("flowkit_replica_restarts_total", "parse", "clicks", "0"), 1),
        (("flowkit_replica_handled_messages_total", "store", "clicks", "0"), 52991),
        (("flowkit_replica_sent_messages_total", "read", "clicks", "0"), 61204),
        (("flowkit_replica_queue_messages", "store", "clicks", "0"), 8112),
        (("flowkit_replica_busy_ratio", "store", "clicks", "0"), 0.97),
        (("flowkit_replica_backpressure_ratio", "parse", "clicks", "0"), 0.61),
        (("flowkit_replica_busy_seconds_total", "read", "clicks", "0"), 20),
        (("flowkit_replica_memory_bytes", "read", "clicks", "0"), 38 << 20),
        (("flowkit_link_sent_messages_total", "read.lines -> parse.lines", "clicks"), 61204),
        (("flowkit_link_sent_bytes_total", "read.lines -> parse.lines", "clicks"), 8 << 20),
        (("flowkit_link_redelivered_messages_total", "read.lines -> parse.lines", "clicks"), 256),
        (("flowkit_link_dead_lettered_messages_total", "read.lines -> parse.lines", "clicks"), 1),
        (("flowkit_link_in_flight_messages", "parse.events -> store.rows", "clicks"), 8110),
        (("flowkit_link_credit_batches", "parse.events -> store.rows", "clicks"), 3),
        (("flowkit_link_backpressure_seconds_total", "parse.events -> store.rows", "clicks"), 80),
        (
            (
                "flowkit_link_dropped_messages_total",
                "parse.events -> store.rows",
                "clicks",
                "no room: oldest",
            ),
            100,
        ),
    ],
)
def test_a_sample(key: tuple[str, ...], value: float) -> None:
    assert SAMPLES[key] == value


@pytest.mark.parametrize(
    "key",
    [
        ("flowkit_replica_handled_messages_total", "read", "clicks", "0"),
        ("flowkit_replica_queue_messages", "read", "clicks", "0"),
        ("flowkit_replica_sent_messages_total", "store", "clicks", "0"),
        ("flowkit_handler_duration_seconds_count", "read", "clicks", "0"),
        ("flowkit_message_age_seconds_count", "parse", "clicks", "0"),
    ],
)
def test_what_makes_no_sense_is_absent(key: tuple[str, ...]) -> None:
    assert key not in SAMPLES


def test_counters_of_what_was_removed_stay_and_its_gauges_go() -> None:
    now = status()
    *replicas, gone = now.replicas
    *links, gone_link = now.links
    after = scraped(
        msgspec.structs.replace(
            now, replicas=replicas, removed=[gone], links=links, removed_links=[gone_link]
        )
    )
    lost = SAMPLES.keys() - after.keys()
    assert all(after[key] == SAMPLES[key] for key in after)
    assert ("flowkit_replica_up", "store", "clicks", "0") in lost
    assert ("flowkit_link_in_flight_messages", gone_link.name, "clicks") in lost
    assert not [key for key in lost if key[0].endswith(("_total", "_bucket", "_sum", "_count"))]


def test_histograms_are_cumulative_and_end_with_everything() -> None:
    name = "flowkit_handler_duration_seconds_bucket"
    buckets = {
        key[1]: value for key, value in SAMPLES.items() if key[:1] + key[2:3] == (name, "parse")
    }
    assert len(buckets) == 29
    counts = [buckets[bound] for bound in sorted(buckets, key=float)]
    assert counts == sorted(counts)
    assert (buckets["0.0002"], buckets["0.0005"], buckets["0.002"]) == (0, 2, 3)
    assert (buckets["1000.0"], buckets["+Inf"]) == (3, 4)
    where = ("parse", "clicks", "0")
    assert SAMPLES[("flowkit_handler_duration_seconds_count", *where)] == 4
    total = SAMPLES[("flowkit_handler_duration_seconds_sum", *where)]
    assert total == pytest.approx(5000.0028)
    assert SAMPLES[("flowkit_message_age_seconds_sum", "store", "clicks", "0")] == pytest.approx(
        1.4
    )


def test_who_asks_for_openmetrics_gets_it() -> None:
    text, kind = export(status(), HISTOGRAMS, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    families = {family.name for family in openmetrics.text_string_to_metric_families(text.decode())}
    assert "flowkit_link_sent_messages" in families


def test_nothing_limits() -> None:
    found = scraped(status(verdict=IDLE))
    assert not any(key[0] == "flowkit_bottleneck_ratio" for key in found)


def test_names_are_escaped() -> None:
    odd = scraped(status(project='a "b"\\c\n', replicas=[replica("n")], links=[]))
    assert ("flowkit_project_ready", 'a "b"\\c\n') in odd


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("facts", [{}, {"verdict": IDLE}, {"replicas": [], "links": []}])
def test_promtool_has_nothing_to_complain_about(facts: dict[str, Any]) -> None:
    text, _ = export(msgspec.structs.replace(status(), **facts), HISTOGRAMS)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
