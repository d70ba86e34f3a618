"""A `Status` to show, for the tests of those who show one."""

from __future__ import annotations

from typing import Any

from flowkit.metrics import Verdict
from flowkit.status import LinkStatus, ReplicaStatus, Status

VERDICT = Verdict("store", 0.97, "scale store", "sink", "parse", 0.61)


def replica(node: str, number: int = 0, **facts: Any) -> ReplicaStatus:
    usual: dict[str, Any] = {"state": "running", "phase": "ready", "pid": 4711 + number}
    return ReplicaStatus(node=node, replica=number, **{**usual, **facts})


def status(**facts: Any) -> Status:
    """The one of the documentation."""
    replicas = [
        replica(
            "read",
            state="waiting",
            uptime=131.0,
            cpu=0.12,
            memory=38 << 20,
            memory_kind="pss",
            out_rate=5012.3,
            waiting=0.8,
            sent=61204,
            source=True,
            busy_seconds=20.0,
        ),
        replica(
            "parse",
            uptime=131.0,
            cpu=0.61,
            memory=44 << 20,
            memory_kind="pss",
            in_rate=1312.0,
            out_rate=1312.0,
            queue=12,
            p50=0.0005,
            p99=0.0021,
            busy=0.39,
            waiting=0.61,
            handled=61203,
            sent=61203,
            restarts=1,
        ),
        replica(
            "store",
            state="busy",
            uptime=131.0,
            cpu=0.97,
            memory=61 << 20,
            memory_kind="rss",
            in_rate=4912.0,
            queue=8112,
            p99=0.084,
            busy=0.97,
            handled=52991,
            ends=True,
        ),
    ]
    links = [
        LinkStatus(
            from_="read.lines",
            to="parse.lines",
            sent=61204,
            delivered=61459,
            done=61000,
            redelivered=256,
            dead_lettered=1,
            in_flight=203,
            sent_bytes=8 << 20,
            window=65536,
            full=0.8,
        ),
        LinkStatus(
            from_="parse.events",
            to="store.rows",
            delivery="at-most-once",
            sent=61203,
            delivered=61203,
            done=52991,
            dropped={"no room: oldest": 100, "stopped": 2},
            in_flight=8110,
            queued=41,
            credit=3,
            window=8192,
            full=0.61,
            full_seconds=80.0,
            rate=4912.0,
        ),
    ]
    usual: dict[str, Any] = {
        "project": "clicks",
        "file": "clicks.yaml",
        "run": "a1b2",
        "pid": 4000,
        "version": "0.1.0",
        "state": "running",
        "uptime": 131.0,
        "ready": True,
        "http": "http://127.0.0.1:8787",
        "window": 5.0,
        "replicas": replicas,
        "links": links,
        "verdict": VERDICT,
    }
    return Status(**{**usual, **facts})
