"""Streams of every length over every kind of link, and what replicas print."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.e2e.harness import Place, link, node

LINKS = [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers", route="key")]


def stream(place: Place, count: int, until: str = "", **facts: object) -> Path:
    """A source, two workers and two keyed counters; `facts` are for each link."""
    settings = {"count": count, "until": place.file(until) if until else ""}
    return place.topology(
        {
            "read": node("Numbers", settings=settings),
            "work": node("Work", replicas=2),
            "tally": node("Tally", replicas=2, settings={"path": place.file("tally")}),
        },
        [{**each, **facts} for each in LINKS],
    )


@pytest.mark.parametrize(
    ("count", "option"), [(0, ""), (1, ""), (4096, ""), (0, "--in-process"), (4096, "--in-process")]
)
def test_streams_of_any_length(place: Place, count: int, option: str) -> None:
    """Nothing, one message, and as many as fill a batch."""
    result = place.up(stream(place, count), *filter(None, [option])).wait()
    result.check_drained()
    place.check_exact(count)
    assert [entry["sent"] for entry in result.report["links"]] == [count, count]
    assert [entry["delivered"] for entry in result.report["links"]] == [count, count]
    assert result.out.count("has read all") == 1
    assert "nothing lost" in result.out


def test_a_stream_of_timers_ends_when_told(place: Place) -> None:
    topology = place.topology(
        {
            "beacon": node("Beacon"),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("beacon.numbers -> tally.numbers")],
    )
    run = place.up(topology)
    run.until(lambda: run.handled("tally.0") > 2)
    run.terminate()
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("beacon.numbers -> tally.numbers")["sent"])


def test_tcp(place: Place) -> None:
    run = place.up(stream(place, 2000, until="stop", transport="tcp"))
    run.ready()
    sockets = psutil.Process(run.pid("work.0")).net_connections("tcp")
    listening = [socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN]
    assert listening and {address.ip for address in listening} == {"127.0.0.1"}
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])


def test_a_killed_worker_on_tcp(place: Place) -> None:
    run = place.up(stream(place, 2000, until="stop", transport="tcp"))
    run.until(lambda: run.handled("work.0") > 500)
    (pid,) = run.kill("work.0")
    run.pid("work.0", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.restarts("work") == 1


def test_fan_out_and_broadcast(place: Place) -> None:
    """One output to two nodes; one of them gets everything in every replica."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 3000}),
            "one": node("Tally", settings={"path": place.file("one")}),
            "all": node("Tally", replicas=3, settings={"path": place.file("all")}),
        },
        [
            link("read.numbers -> one.numbers"),
            link("read.numbers -> all.numbers", route="broadcast"),
        ],
    )
    result = place.up(topology).wait()
    result.check_drained()
    place.check_exact(3000, "one")
    assert place.tally("all") == [3] * 3000
    assert result.link("read.numbers -> all.numbers")["sent"] == 9000


def test_dead_letters(place: Place) -> None:
    """Each message in 256 is refused: the others are done, and what they sent counts."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 2048}),
            "picky": node("Picky", replicas=2, settings={"modulus": 256}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> picky.numbers"), link("picky.results -> tally.numbers")],
    )
    result = place.up(topology).wait()
    assert result.code == 4, result.text
    assert (result.report["status"], result.report["exit"]) == ("drained", 4)
    entry = result.link("read.numbers -> picky.numbers")
    assert (entry["sent"], entry["done"], entry["dead_lettered"]) == (2048, 2040, 8)
    assert result.link("picky.results -> tally.numbers")["sent"] == 2040
    assert [n for n, times in enumerate(place.tally()) if times != 1] == [
        *range(255, 2047, 256)
    ]  # the last one is not in the list because it would have been the last
    assert "ValueError: no 511 here" in result.out and "dead-lettered after 1 try" in result.out
    assert "8 dead letters" in result.out


@pytest.mark.parametrize("then", ["stop", "drop"])
def test_other_error_policies(place: Place, then: str) -> None:
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 512}),
            "picky": node("Picky", settings={"modulus": 256}, on_error={"retry": 2, "then": then}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> picky.numbers"), link("picky.results -> tally.numbers")],
    )
    result = place.up(topology).wait()
    if then == "stop":
        assert (result.code, result.report["status"]) == (3, "stopped"), result.text
        assert "ValueError: no 255 here" in result.report["reason"]
        return
    assert (result.code, result.report["status"]) == (0, "drained"), result.text
    entry = result.link("read.numbers -> picky.numbers")
    assert entry["dropped"] == {"handler failed": 2}
    assert "dropped after 3 tries" in result.out


def test_output_to_the_last_byte(place: Place) -> None:
    """More than a pipe holds, written right before the end, and a last line without an end."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 3}),
            "talk": node("Talker", settings={"lines": 5000}),
        },
        [link("read.numbers -> talk.numbers")],
    )
    result = place.up(topology).wait()
    result.check_drained()
    lines = result.printed("talk.0")
    assert lines[:3] == [f"got {number} ünïcode" for number in range(3)]
    assert [line.split(" -")[0] for line in lines[3:-1]] == [f"line {n}" for n in range(5000)]
    assert lines[-1] == "the last word"
    assert result.err == ""
