"""What real runs are said to be limited by: live, in the report, and to those who ask.

With FLOWKIT_RECORD=DIRECTORY the situations are written there, for `tests/test_metrics.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowkit.metrics import Situation
from flowkit.report import Report
from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Eventually
from tests.e2e.harness import PATIENCE, Place, link

pytestmark = pytest.mark.e2e

NODES = "tests.e2e.paced_nodes:"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)
    yield place
    place.close()


def node(use: str, replicas: int = 1, **settings: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"use": NODES + use, "replicas": replicas}
    return {**facts, "with": settings} if settings else facts


SLOW_NODE = (
    {"read": node("Endless"), "parse": node("Paced", seconds=0.05), "show": node("Ends")},
    [link("read.numbers -> parse.numbers"), link("parse.results -> show.numbers")],
)
SLOW_STATEFUL = (
    {"read": node("Endless"), "count": node("Counts", seconds=0.05)},
    [link("read.numbers -> count.numbers")],
)
SKEWED_KEY = (
    {"read": node("Endless"), "mark": node("Keyed"), "count": node("Counts", 3, seconds=0.03)},
    [link("read.numbers -> mark.numbers"), link("mark.results -> count.numbers", route="key")],
)
SLOW_SINK = (
    {"read": node("Endless"), "parse": node("Paced", 2), "store": node("Ends", seconds=0.05)},
    [link("read.numbers -> parse.numbers"), link("parse.results -> store.numbers")],
)
SLOW_COMMIT = (
    {"read": node("Endless"), "store": node("Commits")},
    [link("read.numbers -> store.numbers", window=64)],
)
SLOW_FETCH = (
    {"read": node("Endless"), "fetch": node("Fetches", seconds=0.5)},
    [link("read.numbers -> fetch.numbers")],
)
SMALL_WINDOW = (
    {"read": node("Endless"), "fetch": node("Fetches")},
    [link("read.numbers -> fetch.numbers", window=8)],
)
IDLE_SOURCE = (
    {"read": node("Trickle"), "parse": node("Paced"), "show": node("Ends")},
    [link("read.numbers -> parse.numbers"), link("parse.results -> show.numbers")],
)
LOSSY = (
    {"read": node("Endless"), "show": node("Ends", seconds=0.05)},
    [
        link(
            "read.numbers -> show.numbers",
            delivery="at-most-once",
            when_full="drop-oldest",
            window=64,
        )
    ],
)


@pytest.mark.parametrize(
    ("name", "topology", "kinds", "bottleneck", "advice"),
    [
        ("slow_node", SLOW_NODE, {"handler"}, "parse", "scale parse"),
        ("slow_stateful", SLOW_STATEFUL, {"sink"}, "count", "route: key"),
        ("skewed_key", SKEWED_KEY, {"skew"}, "count", "more replicas would not change that"),
        ("slow_sink", SLOW_SINK, {"sink"}, "store", "scale store"),
        ("slow_commit", SLOW_COMMIT, {"sink"}, "store", "raise the window of read.numbers"),
        ("slow_fetch", SLOW_FETCH, {"sink"}, "fetch", "raise concurrency= of its input (100)"),
        ("small_window", SMALL_WINDOW, {"window"}, "read.numbers -> fetch.numbers", "window (8)"),
        ("idle_source", IDLE_SOURCE, {"input"}, None, "read waits for its input"),
        ("lossy", LOSSY, {"sink"}, "show", "drops"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_limits_is_said(
    place: Place,
    eventually: Eventually,
    name: str,
    topology: tuple[dict[str, Any], list[Any]],
    kinds: set[str],
    bottleneck: str | None,
    advice: str,
) -> None:
    async def main() -> Report:
        async with Supervisor(place.topology(*topology), watcher=Silent()) as project:

            def right() -> bool:
                said = project.status().verdict
                return (
                    said.kind in kinds and said.bottleneck == bottleneck and advice in said.advice
                )

            try:
                await eventually.on_loop(right, PATIENCE)
            except pytest.fail.Exception:
                pytest.fail(f"{project.status().verdict.text}\n{situation(project)}")
            if kinds == {"input"}:
                assert project.status().replicas[0].busy < 0.5, "who sleeps is not busy"
            if directory := os.environ.get("FLOWKIT_RECORD"):
                data = msgspec.json.format(msgspec.json.encode(situation(project)))
                Path(directory, f"{name}.json").write_bytes(data + b"\n")
            # What it was so all the time is said at the end as well.
            await eventually.on_loop(
                lambda: project.report().verdict.bottleneck == bottleneck, PATIENCE
            )
            project.kill()
            return await project.wait()

    report = asyncio.run(main())
    assert report.verdict.bottleneck == bottleneck, report.verdict


def test_a_node_that_was_stopped_is_named(place: Place, eventually: Eventually) -> None:
    nodes = {"read": node("Endless"), "parse": node("Paced"), "show": node("Ends")}
    links = [link("read.numbers -> parse.numbers"), link("parse.results -> show.numbers")]

    async def main() -> None:
        async with Supervisor(place.topology(nodes, links), watcher=Silent()) as project:
            await eventually.on_loop(lambda: project.status().ready, PATIENCE)
            await project.stop_node("parse")
            await eventually.on_loop(lambda: project.status().verdict.kind == "stopped", PATIENCE)
            status = project.status()
            assert status.verdict.advice == "flowkit start parse"
            assert [one.state for one in status.replicas if one.node == "parse"] == ["stopped"]
            await project.start_node("parse")
            await eventually.on_loop(
                lambda: project.status().verdict.kind not in ("stopped", "early"), PATIENCE
            )
            project.kill()
            await project.wait()

    asyncio.run(main())


def test_figures_go_on_over_scaling(place: Place, eventually: Eventually) -> None:
    nodes = {"read": node("Endless"), "parse": node("Paced", 2), "show": node("Ends")}
    links = [
        link("read.numbers -> parse.numbers", window=500),
        link("parse.results -> show.numbers", window=500),
    ]

    async def main() -> None:
        async with Supervisor(place.topology(nodes, links), watcher=Silent()) as project:

            def flows() -> bool:
                status = project.status()
                return status.ready and all((one.rate or 0) > 0 for one in status.links)

            await eventually.on_loop(flows, PATIENCE)
            before = project.status().links
            for count in (3, 1):
                await project.scale({"parse": count})
                status = project.status()
                names = [one.name for one in status.replicas]
                assert names == ["read.0", *(f"parse.{n}" for n in range(count)), "show.0"]
                await eventually.on_loop(flows, PATIENCE)
                after = project.status().links
                for old, new in zip(before, after, strict=True):
                    assert new.sent >= old.sent and new.done >= old.done
                    assert new.sent_bytes >= old.sent_bytes
                    assert new.full_seconds >= old.full_seconds
                before = after
            project.kill()
            await project.wait()

    asyncio.run(main())


def situation(project: Supervisor) -> Situation:
    return project._figures.situation(project._scene())
