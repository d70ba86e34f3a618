"""Durable links: what was answered is not lost, whatever is killed and however full the disk is."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.journal import Journal, holds_batches
from tests.e2e.harness import Place, Run, alive, complaint, environment, eventually, link, node

OWN = "tests.e2e.durable_nodes:"
RESTART = {"max": "unlimited", "backoff": "20ms", "backoff_max": "50ms"}
LINK = "work.results -> tally.numbers"


def own(use: str, **facts: Any) -> dict[str, Any]:
    return {**node("", **facts), "use": OWN + use}


def journals(place: Place) -> list[Path]:
    return sorted((place.path / "s").glob("*/journals/*.journal"))


def pushed(place: Place, sinks: int = 1, into: str = "slow", **facts: Any) -> Path:
    """A source that answers to the outside, and sinks that wait for the file `gate`."""
    settings = {name: place.file(name) for name in ("answers", "pushed", "until")}
    sink = {"path": place.file("seen"), "gate": place.file("gate")}
    route = {"route": "key"} if sinks > 1 else {}
    return place.topology(
        {
            "push": own("Push", settings=settings),
            into: own("Slow", replicas=sinks, settings=sink),
        },
        [link(f"push.numbers -> {into}.numbers", durable=True, **route, **facts)],
    )


def answered(place: Place) -> int:
    """The number up to which everything was answered."""
    path = place.path / "answers"
    lines = path.read_text().splitlines() if path.exists() else []
    return max(map(int, lines), default=-1)


def kill_all(run: Run) -> None:
    """The supervisor by us; the others by the system."""
    pids = [run.process.pid, run.nursery, *run.replicas().values()]
    assert len(pids) > 3
    run.process.kill()
    assert run.process.wait() == -signal.SIGKILL
    eventually(lambda: not any(alive(pid) for pid in pids))


def crashed(place: Place, **facts: Any) -> int:
    """A project that was killed with answered messages in its journal; how many at least."""
    run = place.up(pushed(place, **facts))
    run.until(lambda: answered(place) > 10)
    kill_all(run)
    assert any(holds_batches(path) for path in journals(place))
    return answered(place) + 1


# ---------------------------------------------------------------------------- everything dies


@pytest.mark.parametrize(
    ("fsync", "sinks"), [("group", 1), ("group", 2), ("interval:50ms", 1), ("never", 1)]
)
def test_the_whole_project_is_killed(place: Place, fsync: str, sinks: int) -> None:
    """Nobody will push again what was answered, and nothing of it is lost, or there twice."""
    count = crashed(place, sinks=sinks, fsync=fsync)
    topology = pushed(place, sinks=sinks, fsync=fsync)
    assert not (place.path / "seen").exists()

    text = complaint(place.up(topology).wait())
    assert "left messages in journals behind" in text
    assert "--resume" in text and "--fresh" in text

    place.touch("until")
    place.touch("gate")
    result = place.up(topology, "--resume").wait()
    result.check_drained()
    counts, _ = place.journal("seen")
    assert set(counts) >= set(range(count)), "lost"
    assert set(counts.values()) == {1}
    assert result.link("push.numbers -> slow.numbers")["sent"] == len(counts) >= count

    # Now it is over: nothing is asked, nothing comes again.
    place.up(topology).wait().check_drained()
    assert place.journal("seen")[0] == counts


def test_killed_again_and_again(place: Place) -> None:
    """Runs that never come to an end, and let nothing through."""
    first = crashed(place)
    for _ in range(2):
        run = place.up(pushed(place), "--resume")
        run.says("slow.0 ready")
        run.until(lambda run=run: run.sent("push.0") > 0)
        kill_all(run)
    place.touch("until")
    place.touch("gate")
    place.up(pushed(place), "--resume").wait().check_drained()
    counts, _ = place.journal("seen")
    assert answered(place) >= first - 1
    assert set(counts) >= set(range(answered(place) + 1)), "lost"
    assert set(counts.values()) == {1}


def test_begun_anew(place: Place) -> None:
    """With --fresh what was left is dropped, since that is what was asked for."""
    crashed(place)
    place.touch("until")
    result = place.up(pushed(place), "--fresh").wait()
    result.check_drained()
    assert result.total("sent") == 0
    assert not any(holds_batches(path) for path in journals(place))


# ---------------------------------------------------------------------------- what fits no more


def test_another_number_of_keyed_consumers(place: Place) -> None:
    crashed(place, sinks=2)
    place.touch("until")
    place.touch("gate")
    result = place.up(pushed(place, sinks=3), "--resume").wait()
    assert result.code == 2, result.text
    assert "for 2 consumer replicas, now there are 3" in result.out + result.err
    assert "Traceback" not in result.out + result.err, result.text
    assert result.out.count("now there are 3") + result.err.count("now there are 3") == 1
    place.up(pushed(place, sinks=2), "--resume").wait().check_drained()
    # Once it is empty, any number will do.
    place.up(pushed(place, sinks=3)).wait().check_drained()


def test_a_journal_that_belongs_to_no_link(place: Place) -> None:
    count = crashed(place)
    renamed = pushed(place, into="other")
    for options in ((), ("--resume",)):
        text = complaint(place.up(renamed, *options).wait())
        assert "push.numbers-slow.numbers.0.journal holds messages" in text
        assert "belongs to no link of trial as it is now" in text
        assert "--fresh" in text
    place.touch("until")
    place.touch("gate")
    place.up(pushed(place), "--resume").wait().check_drained()
    assert set(place.journal("seen")[0]) >= set(range(count))


def test_a_journal_that_rots(place: Place) -> None:
    """It is refused, once and clearly, and kept as it is."""
    crashed(place)
    (path,) = journals(place)
    journal = Journal(path, "other", 1)
    journal.close()  # takes the log into the database
    db = sqlite3.connect(path)
    (payload,) = db.execute("SELECT payload FROM batches ORDER BY sequence DESC").fetchone()
    db.close()
    data = bytearray(path.read_bytes())
    data[data.index(payload)] ^= 0xFF
    path.write_bytes(data)
    place.touch("until")
    result = place.up(pushed(place), "--resume").wait()
    assert result.code == 2, result.text
    assert (result.out + result.err).count("is damaged") == 1, result.text
    assert "Traceback" not in result.out + result.err, result.text
    assert "--fresh" in result.out + result.err
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("fsync", "words"),
    [("interval:50ms", "the last 50ms"), ("never", "fsync never"), ("group", "")],
)
def test_the_loss_window_is_printed(place: Place, fsync: str, words: str) -> None:
    place.touch("until")
    result = place.up(pushed(place, fsync=fsync)).wait()
    result.check_drained()
    lines = [line for line in result.out.splitlines() if "may lose" in line]
    assert len(lines) == bool(words)
    for line in lines:
        assert "push.numbers -> slow.numbers" in line and words in line


# ---------------------------------------------------------------------------- workers die


def pool(place: Place, tallies: int = 1, use: str = "Work", **settings: Any) -> Path:
    """A source, two workers, a durable link, and counters."""
    route = {"route": "key"} if tallies > 1 else {}
    worker = own(use) if use == "Dying" else node(use)
    return place.topology(
        {
            "read": node("Numbers", settings={"count": 3000, "until": place.file("stop")}),
            "work": {**worker, "replicas": 2, "restart": RESTART, "with": settings},
            "tally": node("Tally", replicas=tallies, settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> work.numbers"), link(LINK, durable=True, **route)],
    )


@pytest.mark.parametrize("tallies", [1, 2], ids=["single", "keyed"])
def test_a_worker_dies_many_times(place: Place, tallies: int) -> None:
    run = place.up(pool(place, tallies, busy=5))
    pid = 0
    for _ in range(5):
        pid = run.pid("work.0", other_than=pid)
        run.until(lambda: run.handled("work.0") > 300)
        os.kill(pid, signal.SIGKILL)
    run.pid("work.0", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["done"])
    assert result.restarts("work") == 5
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0
    assert not any(holds_batches(path) for path in journals(place))


@pytest.mark.parametrize("tallies", [1, 2], ids=["single", "keyed"])
def test_a_worker_dies_with_its_batch_in_the_journal(place: Place, tallies: int) -> None:
    """Its input is not acknowledged and goes to the other worker, which makes the batch again."""
    place.touch("stop")
    topology = pool(place, tallies, "Dying", at=1500, marker=place.file("died"))
    result = place.up(topology).wait()
    assert (place.path / "died").exists()
    result.check_drained()
    place.check_exact(3000)
    assert result.restarts("work") == 1
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0


def test_consumers_die(place: Place) -> None:
    """The batches in the journal go to the next incarnation; a sink knows them by their ids."""
    sink = {"path": place.file("journal"), "die_in": "commit", "marker": place.file("died")}
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 3000}),
            "sink": node("Journal", restart=RESTART, settings=sink),
        },
        [link("read.numbers -> sink.numbers", durable=True)],
    )
    result = place.up(topology).wait()
    assert (place.path / "died").exists()
    result.check_drained()
    counts, ids = place.journal()
    assert sorted(counts) == list(range(3000))
    assert len(ids) == 3000, "a number under two ids"
    assert result.restarts("sink") == 1
    assert result.total("redelivered") > 0


# ---------------------------------------------------------------------------- the disk


@pytest.fixture
def small(place: Place) -> Iterator[Path]:
    """The state directory, on a file system of six megabytes."""
    state = place.path / "s"
    state.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", str(state)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a file system")
    yield state
    subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_a_full_disk(place: Place, small: Path) -> None:
    """An alarm, the source waits, and all goes on when there is room."""
    topology = place.topology(
        {
            "read": node("Held", settings={"count": 400, "until": place.file("stop")}),
            "bulk": own("Bulk", settings={"size": 4_000}),
            "sink": own(
                "BulkSink", settings={"path": place.file("seen"), "gate": place.file("gate")}
            ),
        },
        [
            link("read.numbers -> bulk.numbers"),
            link("bulk.results -> sink.numbers", durable=True),
        ],
    )
    (small / "ballast").write_bytes(bytes(9 << 19))
    run = place.up(topology)
    run.ready()
    place.touch("gate")
    run.says("no room on the disk for the journal")
    assert run.handled("sink.0") < 400
    (small / "ballast").unlink()
    run.says("there is room for the journal of bulk.results -> sink.numbers again")
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    assert (place.path / "seen").read_text().split() == [str(number) for number in range(400)]
    assert result.restarts("bulk") == 0
    assert result.out.count("no room on the disk") < 20, "an alarm for every try"


def test_a_disk_that_fails(place: Place) -> None:
    """An I/O error ends the process: only a new start can tell what is on the disk."""
    topology = pool(place, busy=5)
    run = place.up(topology)
    run.until(lambda: run.handled("tally.0") > 500)
    victim = run.pid("work.0")
    size = max(path.stat().st_size for path in (place.path / "s").glob("*/journals/*-wal"))
    prlimit = ["prlimit", f"--pid={victim}", f"--fsize={size + 4096}"]
    if subprocess.run(prlimit, capture_output=True).returncode != 0:
        place.touch("stop")
        run.wait()
        pytest.skip("cannot limit the files of another process")
    run.pid("work.0", other_than=victim)
    place.touch("stop")
    result = run.wait()
    assert (result.code, result.report["status"]) == (0, "drained"), result.text
    assert "disk I/O error" in result.out
    place.check_exact(result.link("read.numbers -> work.numbers")["done"])
    assert result.restarts("work") == 1


def test_a_project_in_a_process_of_its_own(place: Place) -> None:
    """`--in-process` keeps journals as well."""
    place.touch("until")
    place.touch("gate")
    result = place.up(pushed(place), "--in-process").wait()
    result.check_drained()
    assert len(journals(place)) == 1
    assert environment(place.path)["FLOWKIT_STATE_DIR"] in str(journals(place)[0])
