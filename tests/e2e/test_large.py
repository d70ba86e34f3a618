"""Large messages: what arrives is what was sent, to the last byte, whatever way it takes and
whoever is killed on it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.blobs import ROUND, SIZES, blob, line_of
from tests.e2e.harness import Place, alive, environment, eventually, link, node

OWN = "tests.e2e.blobs:"
RESTART = {"max": "unlimited", "backoff": "20ms", "backoff_max": "50ms"}
TO_WORK = "read.blobs -> work.blobs"
TO_SEEN = "read.blobs -> seen.blobs"


def own(use: str, **facts: Any) -> dict[str, Any]:
    return {**node("", **facts), "use": OWN + use}


def chain(place: Place, count: int, use: str = "Pass", at: int = -1, **facts: Any) -> Path:
    """Blobs, two workers that pass them on, one of whom is killed at number `at`, and one that
    looks at them; `facts` are those of both links."""
    work = {"at": at, "marker": place.file("marker")}
    return place.topology(
        {
            "read": own("Blobs", settings={"count": count}),
            "work": own(use, replicas=2, restart=RESTART, settings=work),
            "seen": own("Digests", settings={"path": place.file("seen")}),
        },
        [link(TO_WORK, **facts), link("work.passed -> seen.blobs", **facts)],
    )


def seen(place: Place, replica: int = 0) -> Counter[str]:
    return Counter((place.path / f"seen.{replica}").read_text().splitlines())


def sent(count: int) -> Counter[str]:
    """What must be seen: each blob once, as it was made."""
    return Counter(line_of(blob(number)) for number in range(count))


@pytest.mark.parametrize("use", ["Pass", "PassLists"])
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_every_size_arrives_whole(place: Place, transport: str, use: str) -> None:
    count = 3 * ROUND
    place.up(chain(place, count, use, transport=transport)).wait().check_drained()
    assert seen(place) == sent(count)


@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
def test_all_replicas_get_every_size(place: Place, delivery: str) -> None:
    topology = place.topology(
        {
            "read": own("Blobs", settings={"count": 2 * ROUND}),
            "seen": own("Digests", replicas=2, settings={"path": place.file("seen")}),
        },
        [link(TO_SEEN, route="broadcast", delivery=delivery)],
    )
    place.up(topology).wait().check_drained()
    assert seen(place, 0) == seen(place, 1) == sent(2 * ROUND)


@pytest.mark.parametrize(
    ("transport", "durable", "use"),
    [
        ("ipc", False, "Pass"),
        ("tcp", False, "Pass"),
        ("ipc", True, "Pass"),
        pytest.param("tcp", True, "Pass", marks=pytest.mark.slow),
        ("ipc", False, "PassLists"),
        pytest.param("ipc", True, "PassLists", marks=pytest.mark.slow),
    ],
)
def test_a_worker_is_killed_with_large_messages_in_hand(
    place: Place, transport: str, durable: bool, use: str
) -> None:
    """What it had comes again, as it was."""
    count = 3 * ROUND
    at = ROUND + SIZES.index(max(SIZES))
    run = place.up(chain(place, count, use, at, transport=transport, durable=durable))
    result = run.wait()
    result.check_drained()
    assert result.restarts("work") == 1 and result.link(TO_WORK)["redelivered"] > 0
    if use == "Pass":
        assert seen(place) == sent(count)
    else:  # a list is made of several batches, and sent again if one of them is
        assert seen(place).keys() == sent(count).keys()


def test_large_messages_in_a_journal_outlive_everybody(place: Place) -> None:
    """All processes are killed. What the source has read it does not read again."""
    count = 2 * ROUND
    largest = SIZES.index(max(SIZES))
    topology = place.topology(
        {
            "read": own("Blobs", settings={"count": count, "until": place.file("stop")}),
            "seen": own(
                "Digests", settings={"path": place.file("seen"), "gate": place.file("gate")}
            ),
        },
        [link(TO_SEEN, durable=True)],
    )
    run = place.up(topology)
    run.until(lambda: (place.position() or 0) > largest)
    pids = [run.process.pid, run.nursery, *run.replicas().values()]
    assert len(pids) == 4
    run.process.kill()
    run.process.wait()
    eventually(lambda: not any(alive(pid) for pid in pids))
    assert not (place.path / "seen.0").exists()
    place.touch("gate")
    place.touch("stop")
    result = place.up(topology, "--resume").wait()
    result.check_drained()
    found = seen(place)
    assert found.keys() == sent(count).keys()
    assert all(found[line_of(blob(number))] == 1 for number in range(largest + 1))


def test_the_largest_is_a_dead_letter_and_is_tried_again(place: Place) -> None:
    settings = {
        "path": place.file("seen"),
        "refused": SIZES.index(max(SIZES)),
        "mended": place.file("mended"),
    }
    topology = place.topology(
        {
            "read": own("Blobs", settings={"count": ROUND, "until": place.file("stop")}),
            "seen": own("Digests", settings=settings),
        },
        [link(TO_SEEN)],
    )
    run = place.up(topology)

    def letters(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flowkit", "dead-letters", *arguments]
        env = environment(place.path)
        return subprocess.run(command, cwd=place.path, env=env, capture_output=True, text=True)

    def kept() -> list[dict[str, Any]]:
        lines = letters("ls", "trial", "--format", "json").stdout.splitlines()
        return [json.loads(line) for line in lines]

    run.until(lambda: run.handled("seen.0") == ROUND)
    assert len(kept()) == 1
    place.touch("mended")
    done = letters("replay", "trial", "--all")
    assert done.returncode == 0, done.stderr
    assert kept() == []
    place.touch("stop")
    result = run.wait()
    assert result.code == 0, result.text
    assert seen(place) == sent(ROUND)
