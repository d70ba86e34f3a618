"""What replicas count of themselves, and what a status says of it: projects in one process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from flowkit import In, Many, Node, Out, Sink, Source, every
from flowkit.histogram import quantile, total
from flowkit.status import LinkStatus, ReplicaStatus, Status
from tests.runtime.stage import Part, Stage, collect, link, numbers


def times(stage: Stage, node: str, replica: int = 0) -> list[int]:
    return stage.supervisor.histograms()[node, replica][0]


def ages(stage: Stage, node: str, replica: int = 0) -> list[int]:
    return stage.supervisor.histograms()[node, replica][1]


def of(status: Status, node: str) -> ReplicaStatus:
    (found,) = (one for one in status.replicas if one.node == node)
    return found


class Pass(Node):
    """Passes on what comes, after a while."""

    x = In(int)
    out = Out(int)

    def on_x(self, message: int) -> None:
        time.sleep(0.001)
        self.out.send(message)


class PassLater(Node):
    """The same as a coroutine."""

    x = In(int, concurrency=10)
    out = Out(int)

    async def on_x(self, message: int) -> None:
        await asyncio.sleep(0.02)
        self.out.send(message)


class PassLists(Node):
    """The same in lists."""

    x = In(int, batch=7, within=0.01)
    out = Out(int)

    def on_x(self, messages: list[int]) -> None:
        time.sleep(0.005)
        self.out.send_many(messages)


# ---------------------------------------------------------------------------- times and ages


@pytest.mark.parametrize(
    ("middle", "least", "most"),
    [(Pass, 0.001, 0.05), (PassLater, 0.02, 0.5), (PassLists, 0.005 / 7, 0.05)],
)
def test_each_message_counts_once(play: Any, middle: Any, least: float, most: float) -> None:
    got: list[int] = []
    _, stage = play(
        {"a": numbers(100), "b": middle, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"]
    )
    assert len(got) == 100
    assert total(times(stage, "a")) == 0
    assert total(times(stage, "b")) == total(times(stage, "c")) == 100
    median = quantile(times(stage, "b"), 0.5)
    assert median is not None and least * 0.8 <= median <= most
    # Their way ends at c, and nowhere else. They are as old as what was done with them took.
    assert total(ages(stage, "a")) == total(ages(stage, "b")) == 0
    assert total(ages(stage, "c")) == 100
    youngest = quantile(ages(stage, "c"), 0.01)
    assert youngest is not None and youngest >= least * 0.8


def test_an_age_is_that_of_the_whole_way(play: Any) -> None:
    _, stage = play(
        {"a": numbers(1), "b": PassLater, "c": PassLater, "d": PassLater, "e": collect([])},
        ["a.out -> b.x", "b.out -> c.x", "c.out -> d.x", "d.out -> e.x"],
    )
    age = quantile(ages(stage, "e"), 0.5)
    assert age is not None and 0.055 <= age < 5


def test_ages_go_over_links_that_forget(play: Any) -> None:
    lossy = [link(ends, delivery="at-most-once") for ends in ("a.out -> b.x", "b.out -> c.x")]
    _, stage = play({"a": numbers(20), "b": PassLater, "c": collect([])}, lossy)
    age = quantile(ages(stage, "c"), 0.01)
    assert total(ages(stage, "c")) == 20 and age is not None and age >= 0.015


def test_what_begins_with_a_timer_or_at_the_end_has_an_age_too(play: Any) -> None:
    class Sums(Node):
        stateful = True
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            pass

        def finish(self) -> None:
            self.out.send(1)

    class Ticks(Node):
        out = Out(int)

        async def run(self) -> None:
            await asyncio.sleep(0.1)

        @every("10ms")
        def tick(self) -> None:
            self.out.send(1)

    _, stage = play(
        {"a": Ticks, "b": Sums, "c": collect([])},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    assert total(ages(stage, "c")) == 1
    age = quantile(ages(stage, "c"), 0.5)
    assert age is not None and age < 60  # and not since the machine was started


def test_messages_that_fail_count_as_handled(play: Any) -> None:
    class Refuses(Node):
        x = In(int)

        def on_x(self, message: int) -> None:
            raise ValueError(message)

    _, stage = play({"a": numbers(10), "b": Part(Refuses)}, ["a.out -> b.x"], checked=False)
    assert total(times(stage, "b")) == 10


# ---------------------------------------------------------------------------- shares


class Burst(Source):
    """Many numbers at once, again and again."""

    out = Out(int)

    def read(self, position: int | None) -> Any:
        for number in range(40):
            yield Many(range(25)), number


def test_who_is_busy_and_who_waits(play: Any) -> None:
    _, stage = play(
        {"a": Burst, "b": Pass, "c": collect([])}, [link("a.out -> b.x", window=50), "b.out -> c.x"]
    )
    status = stage.supervisor.status()
    source, middle, end = (of(status, name) for name in "abc")
    # On a machine that does something else everything takes longer, in proportion.
    whole = middle.busy_seconds
    assert whole >= 1.0 and end.busy_seconds < 0.5 * whole
    assert source.waiting_seconds > 0.5 * whole > source.busy_seconds
    assert middle.waiting_seconds < 0.3 * whole
    first, second = status.links
    assert first.full_seconds == pytest.approx(source.waiting_seconds, abs=0.01)
    assert second.full_seconds < 0.3 * whole


def test_coroutines_are_busy_by_the_part_of_their_handlers_that_run(play: Any) -> None:
    class Few(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            for number in range(20):
                await asyncio.sleep(0.02)
                yield number, number

    _, stage = play({"a": Few, "b": PassLater, "c": collect([])}, ["a.out -> b.x", "b.out -> c.x"])
    # 20 times 20 ms, one of ten handlers each.
    assert 0.03 <= of(stage.supervisor.status(), "b").busy_seconds <= 0.2


@pytest.mark.parametrize("later", [False, True])
def test_making_things_durable_is_work(play: Any, later: bool) -> None:
    class Stores(Sink):
        x = In(int)

        def on_x(self, message: int) -> None:
            pass

        def commit(self) -> Any:
            if later:
                return asyncio.sleep(0.05)
            return time.sleep(0.05)

    _, stage = play({"a": numbers(3), "b": Stores}, ["a.out -> b.x"])
    busy = of(stage.supervisor.status(), "b").busy_seconds
    assert 0.05 <= busy < 2
    age = quantile(ages(stage, "b"), 0.5)
    assert total(ages(stage, "b")) == 3 and age is not None and age >= 0.045


# ---------------------------------------------------------------------------- a status


def test_the_status_of_a_run_that_has_ended(play: Any) -> None:
    report, stage = play(
        {"a": numbers(100), "b": Part(Pass, replicas=2), "c": collect([])},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    status = stage.supervisor.status()
    assert (status.state, status.exit, status.http) == ("drained", 0, None)
    assert [one.name for one in status.replicas] == ["a.0", "b.0", "b.1", "c.0"]
    assert {one.state for one in status.replicas} == {"done"}
    assert status.verdict == report.verdict
    for link_status, link_report in zip(status.links, report.links, strict=True):
        assert link_status.name == link_report.name
        assert link_status.sent == link_status.done == link_report.entry.sent == 100
        assert link_status.sent_bytes >= 100
        assert link_status.in_flight == link_status.queued == 0
    middle = [one for one in status.replicas if one.node == "b"]
    assert sum(one.handled for one in middle) == sum(one.sent for one in middle) == 100
    assert [one.ends for one in status.replicas] == [False, False, False, True]
    assert [one.source for one in status.replicas] == [True, False, False, False]
    # One process for all: what the system says of it is nobody's own.
    assert {(one.cpu, one.memory) for one in status.replicas} == {(None, None)}


def test_a_status_travels(play: Any) -> None:
    _, stage = play({"a": numbers(5), "b": collect([])}, ["a.out -> b.x"])
    status = stage.supervisor.status()
    for codec in (msgspec.msgpack, msgspec.json):
        assert codec.decode(codec.encode(status), type=Status) == status


def test_the_status_of_a_run_that_goes_on(stage: Any, on_loop: Any, eventually: Any) -> None:
    class Waits(Node):
        x = In(int, concurrency=4)

        async def on_x(self, message: int) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        async with stage({"a": numbers(1000), "b": Waits}, ["a.out -> b.x"]) as built:
            before = built.supervisor.status()
            assert (before.exit, before.verdict.kind, before.window) == (None, "early", 0.0)
            assert before.state in ("starting", "running")

            def stuck() -> tuple[ReplicaStatus, LinkStatus] | None:
                status = built.supervisor.status()
                replica, link_status = of(status, "b"), status.links[0]
                full = replica.queue and link_status.queued and status.window > 1
                return (replica, link_status) if full else None

            replica, link_status = await eventually.on_loop(stuck)
            assert replica.handled == 0 and replica.in_rate == 0.0 and replica.p99 is None
            assert replica.queue + link_status.queued == link_status.in_flight
            assert link_status.in_flight == link_status.sent > 0 and link_status.credit == 0
            assert built.supervisor.status().ready
            await eventually.on_loop(lambda: of(built.supervisor.status(), "b").busy > 0.9)
            built.supervisor.kill()
            await built.wait()
            assert built.supervisor.status().state == "killed"

    on_loop(main())
