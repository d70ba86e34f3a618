"""How a project starts, restarts, is given up and is cleaned up after, with real processes."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from flowkit.protocol.ledger import DELIVERED, DONE
from flowkit.runtime.shared import SharedRows
from tests.conftest import Eventually
from tests.e2e.harness import Place, alive, complaint, link, node

LINKS = [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")]


def chain(place: Place, count: int = 2000, until: str = "", **facts: Any) -> Path:
    """A source, a worker (`facts` are its own) and a counter."""
    settings = {"count": count, "until": place.file(until) if until else ""}
    return place.topology(
        {
            "read": node("Numbers", settings=settings),
            "work": node("Work", **facts),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        LINKS,
    )


# ---------------------------------------------------------------------------- restarts


def test_the_restart_limit(place: Place) -> None:
    """Every incarnation dies of the same message: given up, with the reason."""
    restart = {"max": 2, "backoff": "10ms"}
    run = place.up(chain(place, restart=restart, settings={"at": 7}))
    result = run.wait()
    assert result.code == 3, result.text
    assert (result.report["status"], result.report["exit"]) == ("failed", 3)
    assert result.restarts("work") == 2
    assert result.replica("work.0")["state"] == "lost"
    assert "restart 1/2 in 10ms" in result.out and "restart 2/2 in 20ms" in result.out
    assert "died 3 times in 60 s, 2 restarts are allowed" in result.out


def test_the_last_traceback_is_shown(place: Place) -> None:
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1}),
            "sink": node("Broken", restart={"max": 1, "backoff": "10ms"}),
        },
        [link("read.numbers -> sink.numbers")],
    )
    result = place.up(topology).wait()
    assert result.code == 3, result.text
    assert result.out.count("LookupError: the disk is gone") >= 2
    assert "Traceback" in "\n".join(result.printed("sink.0"))
    assert "sink.0 failed with exit code 1" in result.out
    assert result.restarts("sink") == 1


def killed_until_given_up(place: Place, every: float, allowed: int, window: str) -> None:
    """Kill the worker every so many seconds: there is progress between the deaths, up to one more
    than are allowed."""
    restart = {"max": allowed, "window": window, "backoff": "10ms", "backoff_max": "100ms"}
    run = place.up(chain(place, until="stop", restart=restart, settings={"busy": 5}))
    pid, began = 0, time.monotonic()
    for number in range(allowed + 1):
        pid = run.pid("work.0", other_than=pid)
        run.until(lambda: run.handled("work.0") > 100)
        run.until(lambda number=number: time.monotonic() >= began + number * every)
        os.kill(pid, signal.SIGKILL)
    result = run.wait()
    assert (result.code, result.report["status"]) == (3, "failed"), result.text
    assert result.restarts("work") == allowed
    for number in range(allowed):
        delay = min(10 * 2**number, 100)
        assert f"restart {number + 1}/{allowed} in {delay}ms" in result.out
    assert f"died {allowed + 1} times in" in result.report["reason"]
    assert result.link("read.numbers -> work.numbers")["done"] > 100 * allowed
    assert result.out.count("work.0 was killed by SIGKILL") == allowed + 1


def test_a_worker_is_killed_until_it_is_given_up(place: Place) -> None:
    killed_until_given_up(place, 0.0, 4, "60s")


@pytest.mark.slow
def test_a_worker_is_killed_every_two_seconds(place: Place) -> None:
    killed_until_given_up(place, 2.0, 10, "60s")


def test_deaths_that_are_long_ago_are_forgotten(place: Place) -> None:
    """It was healthy for the whole of a window: the next death counts as the first."""
    restart = {"max": 1, "window": "1s", "backoff": "10ms"}
    run = place.up(chain(place, until="stop", restart=restart, settings={"busy": 5}))
    pid = 0
    for _ in range(3):
        pid = run.pid("work.0", other_than=pid)
        run.until(lambda: run.handled("work.0") > 100)
        since = time.monotonic()
        run.until(lambda since=since: time.monotonic() > since + 1.1)
        os.kill(pid, signal.SIGKILL)
    run.pid("work.0", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    assert result.restarts("work") == 3
    assert result.out.count("restart 1/1 in 10ms") == 3


def test_the_policy_always(place: Place) -> None:
    """A source begins again when its stream has ended, from its position, until it is told."""
    topology = place.topology(
        {
            "read": node(
                "Parcels", settings={"count": 50}, restart={"policy": "always", "backoff": "1ms"}
            ),
            "work": node("Work", replicas=2),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        LINKS,
    )
    run = place.up(topology)
    run.says("read.0 has reached the end of its stream and begins again in", times=7)
    run.terminate()
    result = run.wait()
    result.check_drained()
    count = result.link("read.numbers -> work.numbers")["sent"]
    assert count >= 7 * 50 and count % 50 == 0
    place.check_exact(count)
    assert result.restarts("read") >= 7 and result.restarts("work") == 0
    assert result.total("redelivered") == 0


# ---------------------------------------------------------------------------- the books


@pytest.mark.parametrize(("cell", "amount"), [(DONE, 7), (DONE, -7), (DELIVERED, 7)])
def test_books_that_do_not_balance(place: Place, cell: int, amount: int) -> None:
    """Somebody has counted wrongly: however well all went, that is not well."""
    topology = place.topology(
        {
            "read": node("Held", settings={"count": 500, "until": place.file("stop")}),
            "work": node("Work"),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        LINKS,
    )
    run = place.up(topology)
    run.until(lambda: run.handled("tally.0") == 500)
    (path,) = (run.directory or Path()).glob("work.0#1.rows")
    rows = SharedRows(path)
    try:
        run.until(lambda: rows.books[0].read().done == 500)  # from now on nobody counts
        rows.books[0]._row[cell] += amount
    finally:
        rows.close()
    place.touch("stop")
    result = run.wait(books=False)
    assert (result.code, result.report["exit"]) == (5, 5), result.text
    assert "nothing lost" not in result.out
    said = "7 messages in flight, unaccounted for"
    if amount > 0:
        said = "the books of work.results -> tally.numbers do not balance"
    assert said in result.out
    assert "in flight, unaccounted for" not in result.out or amount < 0
    place.check_exact(500)


def test_the_policy_never(place: Place) -> None:
    run = place.up(chain(place, restart={"policy": "never"}, settings={"at": 7}))
    result = run.wait()
    assert result.code == 3, result.text
    assert result.restarts("work") == 0
    assert "its restart policy is never" in result.out


def test_a_node_that_cannot_be_built(place: Place) -> None:
    """It would fail the same way again, so it is not started again."""
    topology = place.topology(
        {"read": node("Numbers", settings={"count": 1}), "sink": node("Misconfigured")},
        [link("read.numbers -> sink.numbers")],
    )
    result = place.up(topology).wait()
    assert result.code == 2, result.text
    assert result.report["status"] == "misconfigured"
    assert result.restarts("sink") == 0
    said = [line for line in result.printed("sink.0") if line.startswith("sink.0 (")]
    assert len(said) == 1 and "LookupError: there is no such table" in said[0]


def test_what_is_wrong_with_the_file_is_said_before_anything_starts(place: Place) -> None:
    topology = place.topology(
        {"read": node("Numbers", replcas=2), "sink": node("Nobody")},
        [link("read.numbers -> snik.numbers")],
    )
    result = place.up(topology).wait()
    assert result.code == 2, result.text
    assert result.out == "" and "Traceback" not in result.err
    for word in ("replcas", "Nobody", "snik"):
        assert word in result.err
    assert not (place.path / "r").exists()


# ---------------------------------------------------------------------------- the supervisor dies


def test_the_supervisor_is_killed(place: Place, eventually: Eventually) -> None:
    """Its children follow within two seconds, and the next run starts cleanly."""
    topology = chain(place, until="stop", replicas=2, settings={"busy": 5})
    run = place.up(topology)
    run.until(lambda: run.handled("work.0") > 1000)
    run.until(place.position)
    pids = [run.nursery, *run.replicas().values()]
    assert len(pids) == 5
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    eventually(lambda: not any(alive(pid) for pid in pids), 2.0)
    assert any(name.endswith("lock") for name in place.leftovers())
    assert len(place.leftovers()) > 4  # sockets, counters

    refused = complaint(place.up(topology).wait())
    assert "was not drained" in refused
    assert "--resume" in refused and "--fresh" in refused

    place.touch("stop")
    again = place.up(topology, "--fresh")
    result = again.wait()
    result.check_drained()
    place.check_exact(2000)
    assert "reads from 0" in result.printed("read.0")


def test_resuming(place: Place) -> None:
    """The next run goes on from the position that is stored: nothing is lost over both."""
    topology = place.topology(
        {
            "read": node("Held", settings={"count": 5000, "until": place.file("stop")}),
            "sink": node("Journal", settings={"path": place.file("journal")}),
        },
        [link("read.numbers -> sink.numbers")],
    )
    run = place.up(topology)
    position = run.until(place.position)
    run.process.kill()
    run.process.wait()
    place.touch("stop")
    result = place.up(topology, "--resume").wait()
    result.check_drained()
    (start,) = (int(line.split()[-1]) for line in result.printed("read.0") if "from" in line)
    assert start >= position > 0
    counts, _ = place.journal()
    assert set(counts) == set(range(5000))
    # Drained now: a third run begins at the beginning, and asks nobody.
    result = place.up(topology).wait()
    result.check_drained()
    assert "reads from 0" in result.printed("read.0")


def test_a_run_that_never_began_changes_nothing(place: Place) -> None:
    """It does not turn a stop that was not clean into a clean one."""
    topology = place.topology(
        {
            "read": node("Held", settings={"count": 500, "until": place.file("stop")}),
            "slow": node("SlowStart", settings={"gate": place.file("gate")}),
        },
        [link("read.numbers -> slow.numbers")],
    )
    place.touch("gate")
    run = place.up(topology)
    position = run.until(place.position)
    run.process.kill()
    run.process.wait()
    (place.path / "gate").unlink()
    run = place.up(topology, "--resume")
    run.says("sets up")
    run.terminate()
    assert run.wait().code == 0
    assert "was not drained" in complaint(place.up(topology).wait())
    assert place.position() >= position


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_no_child_outlives_a_killed_supervisor(
    place: Place, eventually: Eventually, stopped: bool
) -> None:
    """Not even one that holds the interpreter's lock for long, or that is stopped."""
    run = place.up(chain(place, until="stop", settings={"busy": 30_000_000}))
    pid = run.pid("work.0")
    run.ready()
    pids = [run.nursery, *run.replicas().values()]
    if stopped:
        for each in pids:
            os.kill(each, signal.SIGSTOP)
    run.process.kill()
    run.process.wait()
    assert pid in pids
    eventually(lambda: not any(alive(each) for each in pids), 2.0)
    assert place.leftovers()
    for path in (place.path / "r").glob("*/*"):
        path.unlink()


def test_a_second_run_is_refused(place: Place) -> None:
    topology = chain(place, until="stop")
    run = place.up(topology)
    run.ready()
    said = complaint(place.up(topology).wait())
    assert f"process {run.process.pid} " in said
    place.touch("stop")
    run.wait().check_drained()
    place.check_exact(len(place.tally()))


def test_a_second_run_with_another_run_directory_is_refused(place: Place) -> None:
    """They would share positions and journals. The first goes on undisturbed."""
    topology = chain(place, until="stop")
    run = place.up(topology)
    run.ready()
    elsewhere = place.file("elsewhere")
    said = complaint(place.up(topology, env={"FLOWKIT_RUN_DIR": elsewhere}).wait())
    assert f"process {run.process.pid} " in said
    assert not os.listdir(elsewhere)
    place.touch("stop")
    run.wait().check_drained()
    place.check_exact(len(place.tally()))


# ---------------------------------------------------------------------------- side by side


def test_two_projects_and_two_checkouts_at_the_same_time(place: Place) -> None:
    """Same run directory; each checkout imports its own module of the same name."""
    runs = []
    for folder, factor in (("one", 1), ("two", 2)):
        names = ["alpha", "beta"] if factor == 1 else ["alpha"]
        for project in names:
            topology = place.topology(
                {
                    "read": node("Numbers", settings={"until": place.file("stop")}),
                    "work": {"use": "mine:Times"},
                    "tally": node("Tally", settings={"path": place.file(f"{folder}-{project}")}),
                },
                LINKS,
                project=project,
                folder=folder,
            )
            (place.path / folder / "mine.py").write_text(
                "from flowkit import In, Node, Out\n"
                "class Times(Node):\n"
                "    numbers = In(int)\n"
                "    results = Out(int)\n"
                f"    def on_numbers(self, number: int) -> None:\n"
                f"        self.results.send({factor} * number)\n"
            )
            run = place.up(topology, cwd=place.path / folder)
            runs.append((run, f"{folder}-{project}", factor))
    for run, _, _ in runs:
        run.until(lambda run=run: run.handled("tally.0"))
    assert len({path.parent for path in (place.path / "r").glob("*/lock")}) == 3
    place.touch("stop")
    for run, name, factor in runs:
        result = run.wait()
        result.check_drained()
        sent = result.link("read.numbers -> work.numbers")["sent"]
        assert sent > 0
        assert [n for n, times in enumerate(place.tally(name)) if times] == list(
            range(0, factor * sent, factor)
        )


# ---------------------------------------------------------------------------- what one can see


def test_titles_and_the_place_of_a_replica(place: Place) -> None:
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1, "until": place.file("stop")}),
            "work": node("Work", replicas=2),
            "look": node(
                "Environment",
                settings={"path": place.file("facts")},
                env={"FLOWKIT_TEST_VALUE": "yes"},
            ),
        },
        [link("read.numbers -> work.numbers"), link("work.results -> look.numbers")],
        project="titles",
    )
    run = place.up(topology)
    run.ready()
    assert set(run.replicas()) == {"read.0", "work.0", "work.1", "look.0"}
    place.touch("stop")
    run.wait().check_drained()
    facts = (place.path / "facts").read_text()
    assert re.search(r'"node": "look", "replica": 0, "replicas": 1', facts)
    assert f'"cwd": "{place.path}"' in facts and '"stdin": "/dev/null"' in facts
    assert '"sigint": true' in facts and '"env": "yes"' in facts


@pytest.mark.parametrize("fault", ["the state directory", "the run directory"])
def test_a_place_that_cannot_be_used(place: Place, fault: str) -> None:
    path = place.path / ("s" if fault == "the state directory" else "r")
    path.write_text("a file")
    said = complaint(place.up(chain(place)).wait())
    assert str(path) in said
    path.unlink()


def test_a_run_directory_with_too_long_a_path(place: Place) -> None:
    deep = str(place.path / ("d" * 90))
    said = complaint(place.up(chain(place), env={"FLOWKIT_RUN_DIR": deep}).wait())
    assert "107" in said and "FLOWKIT_RUN_DIR" in said and deep in said
