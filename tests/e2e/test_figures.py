"""What is measured of real processes: over deaths, over HTTP, and what an embedding app gets."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowkit.status import Status
from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Eventually
from tests.e2e.harness import Place, link

NODES = "tests.e2e.paced_nodes:"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)
    yield place
    place.close()


def chain(place: Place) -> Any:
    quick = {"restart": {"max": "unlimited", "backoff": "10ms", "backoff_max": "20ms"}}
    return place.topology(
        {
            "read": {"use": NODES + "Endless", **quick},
            "parse": {"use": NODES + "Paced", "replicas": 2, **quick},
            "store": {"use": NODES + "Ends", "with": {"seconds": 0.001}, **quick},
        },
        [
            link("read.numbers -> parse.numbers", window=2000),
            link("parse.results -> store.numbers", window=500),
        ],
    )


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        body: bytes = answer.read()
        return body


def counters(text: str) -> dict[tuple[str, ...], float]:
    """Everything that may only grow."""
    return {
        (sample.name, *map(str, sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        if family.type in ("counter", "histogram")
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_counters_only_grow_over_deaths(place: Place, eventually: Eventually) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Supervisor(chain(place), watcher=Silent(), http="0") as project:
            url = project.status().http
            assert url is not None and url.startswith("http://127.0.0.1:")

            async def scrape() -> dict[tuple[str, ...], float]:
                text = await loop.run_in_executor(None, fetched, f"{url}/metrics")
                return counters(text.decode())

            def handled(node: str) -> int:
                return sum(one.handled for one in project.status().replicas if one.node == node)

            await eventually.on_loop(lambda: handled("store") > 100, 30)
            before = await scrape()
            for victim in ("parse.0", "store.0", "parse.1", "read.0", "store.0"):
                at = handled("store")
                restarts = sum(one.restarts for one in project.status().replicas)
                await eventually.on_loop(lambda victim=victim: victim in project.pids, 30)
                os.kill(project.pids[victim], signal.SIGKILL)
                await eventually.on_loop(
                    lambda restarts=restarts: (
                        sum(one.restarts for one in project.status().replicas) > restarts
                    ),
                    30,
                )
                now = await scrape()
                assert before.keys() <= now.keys()
                shrunk = [(key, before[key], now[key]) for key in before if now[key] < before[key]]
                assert not shrunk
                before = now
                await eventually.on_loop(lambda at=at: handled("store") > at + 20, 30)
            last = await scrape()
            restarts = sum(
                value for key, value in last.items() if key[0] == "flowkit_replica_restarts_total"
            )
            assert restarts == 5
            superseded = ("flowkit_link_superseded_messages_total", "parse.results")
            assert any(key[0] == superseded[0] and superseded[1] in key[1] for key in last)
            await _check_with_promtool(await loop.run_in_executor(None, fetched, f"{url}/metrics"))
            project.kill()
            await project.wait()

    asyncio.run(main())


async def _check_with_promtool(text: bytes) -> None:
    if shutil.which("promtool") is None:
        return
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_readiness_and_health_of_a_real_run(place: Place, eventually: Eventually) -> None:
    run = place.up(chain(place))
    run.says(" · metrics http://127.0.0.1:")
    url = run.out.partition(" · metrics ")[2].partition("/metrics")[0]
    run.says("ready in")

    def ready() -> bool:
        try:
            return fetched(f"{url}/readyz") == b"ready\n"
        except OSError:
            return False

    eventually(ready, 30)
    assert fetched(f"{url}/healthz") == b"ok\n"
    status = msgspec.json.decode(fetched(f"{url}/api/v1/status"), type=Status)
    assert status.http == url and status.pid == run.process.pid
    assert {one.pid for one in status.replicas} <= set(run.replicas().values())
    memory = [one.memory or 0 for one in status.replicas]
    assert all(1 << 20 < one < 1 << 30 for one in memory)
    run.interrupt()
    run.wait()
    with pytest.raises(OSError):
        fetched(f"{url}/healthz")


def test_no_port_is_opened_unless_it_is_asked_for(place: Place) -> None:
    def listening() -> set[int]:
        me = psutil.Process()
        return {one.laddr.port for one in me.net_connections("tcp") if one.status == "LISTEN"}

    async def main() -> None:
        before = listening()
        async with Supervisor(chain(place), watcher=Silent()) as project:
            assert project.status().http is None
            assert listening() == before
            project.kill()
            await project.wait()

    asyncio.run(main())
    run = place.up(chain(place), "--no-http", "--fresh")
    run.says("ready in")
    assert "metrics" not in run.out
    run.interrupt()
    run.wait()


def test_a_port_that_is_taken(place: Place) -> None:
    first = place.up(chain(place), "--http", "127.0.0.1:0")
    first.says("metrics http://127.0.0.1:")
    address = first.out.partition("metrics http://")[2].partition("/")[0]
    other = place.topology({"read": {"use": NODES + "Trickle"}, "show": {"use": NODES + "Ends"}},
                           [link("read.numbers -> show.numbers")], project="other")  # fmt: skip
    second = place.up(other, "--http", address).wait()
    assert second.code == 2 and second.out == ""
    assert second.err == (
        f"error: cannot listen on {address} for HTTP: Address already in use\n"
        "hint: port 0 takes any that is free; --no-http does without\n"
    )
    both = place.up(other, "--http", "0", "--no-http").wait()
    assert both.code == 2 and "exclude each other" in both.err
    first.says("ready in")
    first.interrupt()
    first.wait()
