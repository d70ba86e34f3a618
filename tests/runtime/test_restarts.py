"""What is started again and what is not, after which end, and after how long."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flowkit import In, Node, Out, Source, every
from flowkit.control import slowness
from flowkit.errors import DirtyStop
from flowkit.operations import ChangeError
from flowkit.store import Store
from flowkit.topology.plan import RestartPlan
from tests.runtime.stage import Part, Stage, books, check, collect

ALWAYS = RestartPlan(policy="always", max=1, window=60.0, backoff=0.0)
LINK = "read.out -> sink.x"


class Parcels(Source):
    """Three numbers for each incarnation; the position counts."""

    out = Out(int)
    ends: list[str]

    async def read(self, position: int | None) -> AsyncIterator[tuple[int, int]]:
        start = position or 0
        for number in range(start, start + 3):
            yield number, number + 1

    def finish(self) -> None:
        self.ends.append("finish")

    def teardown(self) -> None:
        self.ends.append("teardown")


class Run(Node):
    """The same without positions: where it begins is kept outside."""

    out = Out(int)
    ends: list[str]
    next = 0

    async def run(self) -> None:
        for _ in range(3):
            self.out.send(Run.next)
            Run.next += 1
            await asyncio.sleep(0)

    def finish(self) -> None:
        self.ends.append("finish")

    def teardown(self) -> None:
        self.ends.append("teardown")


@pytest.mark.parametrize("kind", [Parcels, Run])
def test_always_begins_again_where_the_stream_has_ended(
    stage: Any, on_loop: Any, eventually: Any, kind: Any
) -> None:
    """Beyond `max`, since the end of a stream is no failure; and until it is told to stop."""
    seen: list[int] = []
    kind.ends, Run.next = [], 0

    async def whole() -> Stage:
        parts = {"read": Part(kind, restart=ALWAYS), "sink": collect(seen)}
        async with stage(parts, [LINK]) as built:
            await eventually.on_loop(lambda: len(seen) >= 12)
            built.drain()
            report = check(await built.wait())
        assert books(report, LINK).entry.done == len(seen)
        assert report.exit == 0
        (read,) = (one for one in report.nodes if one.node == "read")
        assert (read.restarts, read.state) == (len(kind.ends) - 2, "done")
        return built

    built = on_loop(whole())
    assert seen == list(range(len(seen)))
    assert [(death.number, death.reason) for death in built.deaths[:3]] == [(0, "")] * 3
    assert len(built.deaths) >= 3
    # It finishes once, at the end of all.
    assert kind.ends == ["teardown"] * (len(kind.ends) - 2) + ["finish", "teardown"]


def test_a_drain_does_not_wait_for_the_back_off(stage: Any, on_loop: Any, eventually: Any) -> None:
    seen: list[int] = []
    Parcels.ends = []
    slow = RestartPlan(policy="always", backoff=60.0, backoff_max=60.0)

    async def whole() -> Stage:
        parts = {"read": Part(Parcels, restart=slow), "sink": collect(seen)}
        async with stage(parts, [LINK]) as built:
            await eventually.on_loop(lambda: built.deaths)
            built.drain()
            check(await built.wait())
        return built

    built = on_loop(whole())
    assert [death.delay for death in built.deaths] == [60.0]
    assert seen == list(range(len(seen))) and len(seen) >= 3


def test_a_change_does_not_wait_for_the_back_off(stage: Any, on_loop: Any, eventually: Any) -> None:
    """A source that begins again in a while comes for the change, and rests."""
    seen: list[int] = []
    Parcels.ends = []
    slow = RestartPlan(policy="always", backoff=60.0, backoff_max=60.0)

    async def whole() -> Stage:
        parts = {"read": Part(Parcels, restart=slow), "sink": collect(seen)}
        async with stage(parts, [LINK]) as built:
            await eventually.on_loop(lambda: built.deaths)
            scaling = built.supervisor.scale({"sink": 2})
            assert "1 -> 2 replicas" in str(await asyncio.wait_for(scaling, 10))
            reception = built.supervisor._reception
            assert reception is not None and reception.recorder.run.replicas == 3
            built.drain()
            check(await built.wait())
        return built

    on_loop(whole())
    assert sorted(seen) == list(range(len(seen)))


def test_a_drain_while_the_last_messages_are_under_way(
    stage: Any, on_loop: Any, eventually: Any
) -> None:
    """It ends as any source does, and does not begin again."""
    seen: list[int] = []
    gate = asyncio.Event()
    Parcels.ends = []

    class Slow(Node):
        x = In(int, concurrency=4)

        async def on_x(self, number: int) -> None:
            seen.append(number)
            await gate.wait()

    async def whole() -> Stage:
        async with stage({"read": Part(Parcels, restart=ALWAYS), "sink": Slow}, [LINK]) as built:
            await eventually.on_loop(lambda: len(seen) == 3)
            built.drain()
            await asyncio.sleep(0)
            gate.set()
            check(await built.wait())
        return built

    assert on_loop(whole()).deaths == []
    assert (seen, Parcels.ends) == ([0, 1, 2], ["finish", "teardown"])


def test_a_restart_while_the_last_messages_are_under_way(
    stage: Any, on_loop: Any, eventually: Any
) -> None:
    """It is no drain: the next incarnation goes on, and again after the end of its stream."""
    seen: list[int] = []
    gate = asyncio.Event()
    Parcels.ends = []

    class Slow(Node):
        x = In(int, concurrency=4)

        async def on_x(self, number: int) -> None:
            seen.append(number)
            await gate.wait()

    async def whole() -> Stage:
        async with stage({"read": Part(Parcels, restart=ALWAYS), "sink": Slow}, [LINK]) as built:
            await eventually.on_loop(lambda: len(seen) == 3)
            restarting = asyncio.ensure_future(built.supervisor.restart("read"))
            await eventually.on_loop(lambda: built.supervisor._project.operation is not None)
            for _ in range(20):  # turns in which the replica is told
                await asyncio.sleep(0)
            gate.set()
            assert "restarted read" in str(await restarting)
            await eventually.on_loop(lambda: len(seen) >= 9)
            built.drain()
            check(await built.wait())
        return built

    on_loop(whole())
    assert seen == list(range(len(seen)))
    assert Parcels.ends.count("finish") == 1


def test_a_death_is_a_death_also_with_always(play: Any) -> None:
    class Broken(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            yield 1, 1
            raise LookupError("the file is gone")

    report, built = play(
        {"read": Part(Broken, restart=ALWAYS), "sink": collect([])}, [LINK], "failed"
    )
    assert report.exit == 3
    assert [death.number for death in built.deaths] == [1, 1]
    assert built.deaths[-1].reason == "died 2 times in 60 s, 1 restart is allowed"


def test_timers_have_ended_before_it_begins_again(
    stage: Any, on_loop: Any, eventually: Any
) -> None:
    """What they have sent is done, and belongs to the incarnation that ends."""
    seen: list[int] = []

    class Ticking(Node):
        out = Out(int)
        count = 0

        async def run(self) -> None:
            await asyncio.sleep(0.03)

        @every("5ms")
        async def tick(self) -> None:
            self.out.send(Ticking.count)
            Ticking.count += 1
            await asyncio.sleep(0.002)

    async def whole() -> Stage:
        parts = {"read": Part(Ticking, restart=ALWAYS), "sink": collect(seen)}
        async with stage(parts, [LINK]) as built:
            await eventually.on_loop(lambda: len(built.deaths) > 2)
            built.drain()
            report = check(await built.wait())
        assert report.exit == 0 and books(report, LINK).entry.dropped == {}
        return built

    on_loop(whole())
    assert seen == list(range(Ticking.count))


def test_with_other_policies_the_end_of_the_stream_is_the_end(play: Any) -> None:
    seen: list[int] = []
    Parcels.ends = []
    _, built = play({"read": Parcels, "sink": collect(seen)}, [LINK])
    assert (seen, built.deaths) == ([0, 1, 2], [])


# ---------------------------------------------------------------------------- a store that fails


def test_nothing_is_read_if_the_beginning_cannot_be_noted(play: Any, monkeypatch: Any) -> None:
    """The positions of the run before would still be there."""
    seen: list[int] = []
    Parcels.ends = []

    def full(store: Store, run: str) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "begin_run", full)
    report, built = play({"read": Parcels, "sink": collect(seen)}, [LINK], "misconfigured")
    assert (seen, report.exit) == ([], 2)
    assert report.reason == "cannot keep its state: database or disk is full"
    assert not built.all_ready.is_set()


def test_an_end_that_cannot_be_noted_is_told(stage: Any, on_loop: Any, monkeypatch: Any) -> None:
    """The run is over and well; the directories are let go."""
    seen: list[int] = []
    notes: list[str] = []
    Parcels.ends = []
    end_run = Store.end_run

    def full(store: Store, run: str, clean: bool) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def whole() -> None:
        monkeypatch.setattr(Store, "end_run", full)
        async with stage({"read": Parcels, "sink": collect(seen)}, [LINK]) as built:
            built.note = notes.append
            report = check(await built.wait())
        assert report.exit == 0 and seen == [0, 1, 2]
        monkeypatch.setattr(Store, "end_run", end_run)
        # It looks as if it had been killed.
        with pytest.raises(DirtyStop):
            await stage({"read": Parcels, "sink": collect(seen)}, [LINK]).__aenter__()

    on_loop(whole())
    assert notes == ["how the run has ended cannot be kept: database or disk is full"]


# ---------------------------------------------------------------------------- while it runs


class Fragile(Node):
    """Cannot be built a second time before `mended` is set; every failure is counted."""

    x = In(int)
    y = Out(int)
    built = 0
    mended_at = 3

    def __init__(self) -> None:
        Fragile.built += 1
        if 1 < Fragile.built < self.mended_at:
            raise LookupError("the table is locked")

    def on_x(self, number: int) -> None:
        self.y.send(number)


class Endless(Source):
    out = Out(int)
    enough = False

    async def read(self, position: int | None) -> AsyncIterator[tuple[int, int]]:
        number = position or 0
        while not Endless.enough:
            yield number, number + 1
            number += 1
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("mended_at", "code"), [(4, 0), (100, 3)])
def test_what_cannot_be_built_again_is_tried_again(
    stage: Any, on_loop: Any, eventually: Any, mended_at: int, code: int
) -> None:
    """Before the stream flows it is the topology that is wrong. Now it is a death like any other,
    and what is under way is not given up for it at once."""
    seen: list[int] = []
    Fragile.built, Fragile.mended_at, Endless.enough = 0, mended_at, False

    async def whole() -> Stage:
        parts = {"read": Endless, "work": Fragile, "sink": collect(seen)}
        async with stage(parts, ["read.out -> work.x", "work.y -> sink.x"]) as built:
            await eventually.on_loop(lambda: len(seen) > 10)
            built.crash("work.0")
            if code == 0:
                before = len(seen) + 10
                await eventually.on_loop(lambda: len(seen) > before)
                Endless.enough = True
            report = await built.wait()
        assert report.exit == code, report.reason
        if code == 0:
            check(report)
        else:
            assert report.status.value == "failed"
            assert "5 restarts are allowed" in report.reason
        return built

    built = on_loop(whole())
    assert len(built.deaths) == (3 if code == 0 else 6)
    if code == 0:
        assert seen == list(range(len(seen)))


def test_a_restart_that_hangs_is_told(
    stage: Any, on_loop: Any, eventually: Any, monkeypatch: Any
) -> None:
    seen: list[int] = []
    notes: list[str] = []
    gate = asyncio.Event()
    Endless.enough = False

    class Late(Fragile):
        starts = 0

        async def setup(self) -> None:
            Late.starts += 1
            if Late.starts > 1:
                await gate.wait()

    async def whole() -> None:
        Fragile.built, Fragile.mended_at = 0, 0
        parts = {"read": Endless, "work": Late, "sink": collect(seen)}
        async with stage(parts, ["read.out -> work.x", "work.y -> sink.x"]) as built:
            await eventually.on_loop(lambda: len(seen) > 10)
            monkeypatch.setattr(slowness, "SLOW_START", 0.05)
            built.note = notes.append
            built.crash("work.0")
            await eventually.on_loop(lambda: len(notes) >= 2)
            gate.set()
            before = len(seen) + 10
            await eventually.on_loop(lambda: len(seen) > before)
            Endless.enough = True
            check(await built.wait())

    on_loop(whole())
    assert set(notes) == {"waiting for work.0 to be ready again"}
    assert seen == list(range(len(seen)))


def test_nodes_that_follow_each_other_are_scaled_at_once(
    stage: Any, on_loop: Any, eventually: Any
) -> None:
    """A replica that is new has sent nothing yet: what follows it can rest."""
    seen: list[int] = []
    Parcels.ends = []

    class Passes(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, number: int) -> None:
            self.out.send(number)

    async def whole() -> None:
        parts = {"read": Part(Parcels, restart=ALWAYS), "pass": Passes, "sink": collect(seen)}
        links = ["read.out -> pass.x", "pass.out -> sink.x"]
        async with stage(parts, links) as built:
            await eventually.on_loop(lambda: seen)
            for count in (3, 1):
                scaling = built.supervisor.scale({"pass": count, "sink": count})
                assert f"-> {count} replica" in str(await asyncio.wait_for(scaling, 10))
            built.drain()
            check(await built.wait())

    on_loop(whole())
    assert sorted(seen) == list(range(len(seen)))


def test_code_that_cannot_start_is_taken_back_in_time(
    stage: Any, on_loop: Any, eventually: Any
) -> None:
    """The replica that did not come up is started first. Those before it, which have the new code
    already, could not come to rest without it, and would be killed in the end."""
    seen: list[int] = []
    broken: list[str] = []

    class Steady(Source):
        out = Out(int)

        async def read(self, position: int | None) -> AsyncIterator[tuple[int, int]]:
            number = position or 0
            while True:
                yield number, number + 1
                number += 1
                await asyncio.sleep(0)

    class Fragile(Node):
        x = In(int)

        def __init__(self) -> None:
            if broken:
                raise ValueError(broken.pop())

        def on_x(self, number: int) -> None:
            seen.append(number)

    async def whole() -> Stage:
        async with stage({"read": Steady, "sink": Fragile}, [LINK]) as built:
            await eventually.on_loop(lambda: len(seen) > 10)
            broken.append("this code is no good")
            operations = built.supervisor._operations
            with pytest.raises(ChangeError, match="the code of before runs on"):
                await asyncio.wait_for(operations.take_in(built.plan, ["read", "sink"], False), 10)
            assert built.supervisor.stopped == []
            count = len(seen)
            await eventually.on_loop(lambda: len(seen) > count)
            built.drain()
            report = await built.wait()
            check(report)
            assert books(report, LINK).entry.redelivered == 0
        return built

    built = on_loop(whole())
    assert len(built.deaths) == 1
    assert seen == list(range(len(seen)))


def test_what_is_stopped_is_not_restarted(stage: Any, on_loop: Any, eventually: Any) -> None:
    """It says how to start it, and that nothing was looked at."""
    seen: list[int] = []

    async def whole() -> None:
        parts = {"read": Part(Parcels, restart=ALWAYS), "sink": Part(collect(seen), replicas=2)}
        Parcels.ends = []
        async with stage(parts, [LINK]) as built:
            await eventually.on_loop(lambda: len(seen) >= 6 and len(built.deaths) >= 1)
            await built.supervisor.stop_node("sink")
            for number in (None, 1):
                with pytest.raises(ChangeError) as caught:
                    await built.supervisor.restart("sink", number)
                assert str(caught.value) == "sink is stopped"
                assert caught.value.hint == "flowkit start sink"
            await built.supervisor.start_node("sink")
            built.drain()
            await built.wait()

    on_loop(whole())
