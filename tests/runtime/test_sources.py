"""Where streams begin: `Source.read` with its positions, and `run()`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, tuples

from flowkit import In, Many, Meta, Node, Out, Source
from flowkit.channels import Outbox, OutPort
from flowkit.errors import DirtyStop
from flowkit.protocol.batching import MAX_COUNT
from flowkit.runtime.shared import GAUGES
from flowkit.runtime.sourcing import LOOK, TURN, Backlog, Outflow, SourceDriver
from tests.runtime.stage import Part, books, collect, link, numbers


def counting(kind: str, count: int, begun: list[Any] | None = None) -> type[Source]:
    """A source of the integers below `count`; `begun` gets the positions it was given."""
    begun = [] if begun is None else begun

    class Later(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            begun.append(position)
            for number in range(position or 0, count):
                if number % 7 == 0:
                    await asyncio.sleep(0)
                yield number, number + 1

    class Plain(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            begun.append(position)
            for number in range(position or 0, count):
                yield number, number + 1

    class ManyAtOnce(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            begun.append(position)
            for start in range(position or 0, count, 10):
                stop = min(start + 10, count)
                yield Many(range(start, stop)), stop

    class ManyLater(ManyAtOnce):
        async def read(self, position: int | None) -> Any:  # type: ignore[override]
            for item in ManyAtOnce.read(self, position):
                yield item

    return {"later": Later, "plain": Plain, "many": ManyAtOnce, "many later": ManyLater}[kind]


KINDS = ["later", "plain", "many", "many later"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 10, 5003])
def test_everything_is_read_once_and_the_last_position_is_kept(
    play: Any, kind: str, count: int
) -> None:
    got: list[int] = []
    begun: list[Any] = []
    _, stage = play({"a": counting(kind, count, begun), "b": collect(got)}, ["a.out -> b.x"])
    assert got == list(range(count)) and begun == [None]
    assert stage.position("a") == (count or None)


def test_a_batch_of_nothing_has_no_effect_but_its_position_may_come_later(play: Any) -> None:
    class Odd(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            yield Many([]), 1
            yield 5, 2
            yield Many([]), 3

    got: list[int] = []
    _, stage = play({"a": Odd, "b": collect(got)}, ["a.out -> b.x"])
    assert got == [5] and stage.position("a") in (2, 3)


def test_a_message_leaves_at_once_when_the_source_waits(play: Any) -> None:
    """No batch waits to be full: the answer to each message lets the next one go."""
    got: list[int] = []
    seen = asyncio.Event()

    class Asks(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            for number in range(300):
                yield number, number + 1
                await seen.wait()
                seen.clear()

    class Answers(Node):
        x = In(int)

        def on_x(self, message: int) -> None:
            got.append(message)
            seen.set()

    play({"a": Asks, "b": Answers}, ["a.out -> b.x"])
    assert got == list(range(300))


class Desk:
    """What a `SourceDriver` needs of a replica whose consumers want large batches; `cost` is what
    an item takes, on a clock that stands still otherwise."""

    room, paused = True, False

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.cost = cost
        self.now = 100.0
        self.read_at: list[float] = []
        self.sent: list[list[int]] = []
        self.turned_at: list[float] = []
        self.names = ["out"]

    def root_count(self, name: str) -> int:
        return MAX_COUNT

    def begin(self, position: Any, born: int) -> Any:
        return None

    def release(self, work: Any, boxes: dict[str, Outbox], count: int = 0) -> None:
        self.sent.append(boxes["out"].take()[0])

    def item(self, number: int) -> tuple[int, int]:
        self.now += self.cost(number)
        self.read_at.append(self.now)
        return number, number + 1

    async def run(self, source: Source) -> None:
        """Drive `source`, and note the time in each turn of the loop."""
        outflow = Outflow(self, self, self.release, lambda: None, lambda: self.now)  # type: ignore[arg-type]
        driver = SourceDriver(source, None, outflow, lambda: None, lambda: self.now, [0] * GAUGES)
        task = asyncio.ensure_future(driver.run())
        while not task.done():
            self.turned_at.append(self.now)
            await asyncio.sleep(0)
        await task
        self.turned_at.append(self.now)


def desk_source(desk: Desk, count: int, later: bool) -> Source:
    class Plain(Source):
        out = Out(int)

        def read(self, position: Any) -> Any:
            yield from map(desk.item, range(count))

    class Later(Source):
        out = Out(int)

        async def read(self, position: Any) -> Any:
            for number in range(count):
                yield desk.item(number)

    return Later() if later else Plain()


@pytest.mark.parametrize("later", [False, True])
def test_a_source_that_gets_slow_lets_the_loop_turn(on_loop: Any, later: bool) -> None:
    """Its batches were large while it was fast; what is read slowly does not wait for as many."""
    fast = 20_000
    desk = Desk(lambda number: 1e-7 if number < fast else 0.004)
    on_loop(desk.run(desk_source(desk, fast + 500, later)))
    assert [number for batch in desk.sent for number in batch] == list(range(fast + 500))
    assert max(map(len, desk.sent)) == MAX_COUNT
    pauses = [after - before for before, after in pairwise(desk.turned_at)]
    # What is under way when it gets slow is looked at after so many messages; then every few.
    assert max(pauses) <= LOOK * 0.004 + TURN
    assert sorted(pauses)[-2] <= TURN + 0.008


@pytest.mark.parametrize("cost", [0.0, 1e-7, 1e-4, 0.004, 1.0])
@pytest.mark.parametrize("later", [False, True])
def test_a_steady_source_holds_the_loop_for_a_turn_or_for_an_item(
    on_loop: Any, later: bool, cost: float
) -> None:
    desk = Desk(lambda number: cost)
    on_loop(desk.run(desk_source(desk, 3000, later)))
    assert [number for batch in desk.sent for number in batch] == list(range(3000))
    pauses = [after - before for before, after in pairwise(desk.turned_at)]
    assert max(pauses) <= 2 * max(TURN, cost) + TURN / 2
    assert len(desk.sent) >= 3000 * cost / (2 * TURN + 2 * cost)


def test_what_comes_at_once_after_a_wait_leaves_together(on_loop: Any) -> None:
    """A source that waits begins a turn with each burst: it is not as old as its last message."""
    desk = Desk(lambda number: 1e-7)

    class Bursts(Source):
        out = Out(int)

        async def read(self, position: Any) -> Any:
            for number in range(100):
                yield desk.item(number)
                if number % 10 == 9:
                    await asyncio.sleep(0)
                    desk.now += 1.0
                    await asyncio.sleep(0)

    on_loop(desk.run(Bursts()))
    assert [len(batch) for batch in desk.sent] == [10] * 10


@pytest.mark.parametrize("position", [5, "five", 1.5, [1, "x"], {"part": {"0": 5}}, b"\0", True])
def test_a_position_is_anything_that_msgpack_holds(play: Any, position: Any) -> None:
    class One(Source):
        out = Out(int)

        def read(self, begin: Any) -> Any:
            yield 1, position

    _, stage = play({"a": One, "b": collect([])}, ["a.out -> b.x"])
    assert stage.position("a") == position


def test_without_positions_none_is_kept(play: Any) -> None:
    class Bare(Source):
        out = Out(int)

        def read(self, position: Any) -> Any:
            yield 1, None

    _, stage = play({"a": Bare, "b": collect([])}, ["a.out -> b.x"])
    assert stage.position("a") is None


def test_each_replica_has_its_share_and_its_position(play: Any) -> None:
    class Shared(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            for number in range(position or self.replica, 100, self.replicas):
                yield number, number + self.replicas

    got: list[int] = []
    _, stage = play({"a": Part(Shared, replicas=3), "b": collect(got)}, ["a.out -> b.x"])
    assert sorted(got) == list(range(100))
    assert [stage.position("a", replica) for replica in range(3)] == [102, 100, 101]


def test_the_length_is_told_before_reading(stage: Any, on_loop: Any) -> None:
    go = asyncio.Event()
    calls: list[str] = []

    class Known(Source):
        out = Out(int)

        def length(self) -> int:
            calls.append("length")
            return 50

        async def read(self, position: int | None) -> Any:
            calls.append("read")
            for number in range(20):
                yield number, number + 1
            await go.wait()
            for number in range(20, 50):
                yield number, number + 1

    got: list[int] = []

    async def run() -> None:
        async with stage({"a": Known, "b": collect(got)}, ["a.out -> b.x"]) as built:
            while len(got) < 20:
                await asyncio.sleep(0)
            while built.supervisor.progress() != (20, 50):
                await asyncio.sleep(0)
            go.set()
            await built.wait()
            assert built.supervisor.progress() == (50, 50)

    on_loop(run())
    assert calls == ["length", "read"]


def test_the_progress_of_a_source_that_does_not_know(play: Any) -> None:
    _, stage = play({"a": numbers(5), "b": collect([])}, ["a.out -> b.x"])
    assert stage.supervisor.progress() == (5, None)


# -- commit and resume ---------------------------------------------------------------------------


def test_positions_that_the_source_keeps_itself(play: Any) -> None:
    commits: list[int] = []
    inside = 0
    done: list[int] = []

    class Keeps(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            for number in range(100):
                yield number, number + 1

        async def commit(self, position: int) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1, "one commit at a time"
            for _ in range(50):
                await asyncio.sleep(0)
            assert position <= len(done), "only what is done"
            commits.append(position)
            inside -= 1

    play({"a": Keeps, "b": collect(done)}, ["a.out -> b.x"])
    assert commits == sorted(commits) and commits[-1] == 100


def test_commits_do_not_overlap_while_the_stream_goes_on(stage: Any, on_loop: Any) -> None:
    """A commit that takes long is not overtaken by the next one."""
    story: list[tuple[str, int]] = []
    first, go = asyncio.Event(), asyncio.Event()
    got: list[int] = []

    class Slow(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            yield 0, 1
            await first.wait()
            for number in range(1, 20):
                yield number, number + 1
            await go.wait()

        async def commit(self, position: int) -> None:
            story.append(("begin", position))
            first.set()
            if position == 1:
                await go.wait()
            story.append(("end", position))

    async def run() -> None:
        async with stage({"a": Slow, "b": collect(got)}, ["a.out -> b.x"]) as built:
            while len(got) < 20:
                await asyncio.sleep(0)
            # More than the time between two commits passes while the first one waits.
            asyncio.get_running_loop().call_later(0.15, go.set)
            await built.wait()

    on_loop(run())
    assert [kind for kind, _ in story] == ["begin", "end"] * (len(story) // 2)
    assert [position for _, position in story] == sorted(position for _, position in story)
    assert story[-1] == ("end", 20)


def test_a_commit_that_fails_restarts_the_source(play: Any) -> None:
    begun: list[Any] = []
    got: list[int] = []

    class Fails(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            begun.append(position)
            for number in range(position or 0, 10):
                yield number, number + 1

        async def commit(self, position: int) -> None:
            if len(begun) < 2:
                raise OSError("no")

    report, _ = play({"a": Fails, "b": collect(got)}, ["a.out -> b.x"])
    assert len(begun) == 2 and set(got) == set(range(10))
    assert {node.node: node.restarts for node in report.nodes}["a"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_was_killed_goes_on_where_it_was(
    stage: Any, on_loop: Any, eventually: Any, kind: str
) -> None:
    got: list[int] = []
    begun: list[Any] = []

    async def run() -> Any:
        parts = {"a": counting(kind, 10**9, begun), "b": collect(got)}
        async with stage(parts, ["a.out -> b.x"]) as built:
            await eventually.on_loop(lambda: built.position("a"))
            built.crash("a.0")
            await eventually.on_loop(lambda: len(begun) == 2)
            seen = max(got)
            await eventually.on_loop(lambda: got[-1] > seen + 1000)
            built.drain()
            return await built.wait(), built

    report, built = on_loop(run())
    assert begun[0] is None and begun[1] > 0
    highest = max(got)
    assert set(got) == set(range(highest + 1))
    again = len(got) - (highest + 1)
    # Only what was not yet acknowledged came twice: the end is one stretch from that position on.
    assert got[begun[1] + again :] == list(range(begun[1], highest + 1))
    assert report.exit == 0 and built.position("a") == highest + 1
    entry = books(report, "a.out -> b.x").entry
    assert entry.sent == entry.done + entry.superseded


def test_a_read_that_fails_is_started_again_from_its_position(play: Any) -> None:
    begun: list[Any] = []
    got: list[int] = []

    class Fails(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            begun.append(position)
            for number in range(position or 0, 50):
                if number == 30 and len(begun) == 1:
                    raise OSError("lost the line")
                yield number, number + 1

    report, stage = play({"a": Fails, "b": collect(got)}, ["a.out -> b.x"])
    assert set(got) == set(range(50)) and len(begun) == 2
    assert stage.deaths[0].replica.name == "a.0" and stage.position("a") == 50


def test_a_run_that_was_killed_asks_what_to_do_next(
    stage: Any, on_loop: Any, eventually: Any
) -> None:
    got: list[int] = []
    begun: list[Any] = []
    go = asyncio.Event()

    class Halts(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            begun.append(position)
            for number in range(position or 0, 100):
                if number == 40 and position is None:
                    await go.wait()
                yield number, number + 1

    parts, links = {"a": Halts, "b": collect(got)}, ["a.out -> b.x"]

    async def killed() -> Any:
        async with stage(parts, links) as built:
            await eventually.on_loop(lambda: built.position("a") == 40)
            built.supervisor.kill()
            return await built.wait()

    async def again(**options: Any) -> Any:
        async with stage(parts, links, **options) as built:
            return await built.wait()

    assert on_loop(killed()).exit == 130
    with pytest.raises(DirtyStop, match="was not drained") as caught:
        on_loop(again())
    assert "--resume" in caught.value.hint and "--fresh" in caught.value.hint
    got.clear()
    assert on_loop(again(resume=True)).exit == 0
    assert got == list(range(40, 100)) and begun == [None, 40]
    # Drained this time: the next run begins anew, and asks nothing.
    go.set()
    on_loop(again())
    assert begun == [None, 40, None]


def test_fresh_forgets_the_positions(stage: Any, on_loop: Any, eventually: Any) -> None:
    got: list[int] = []

    async def killed() -> None:
        async with stage({"a": numbers(10**9), "b": collect(got)}, ["a.out -> b.x"]) as built:
            await eventually.on_loop(lambda: built.position("a"))
            built.supervisor.kill()
            await built.wait()

    async def fresh() -> None:
        async with stage(
            {"a": numbers(20), "b": collect(got)}, ["a.out -> b.x"], fresh=True
        ) as built:
            await built.wait()

    on_loop(killed())
    got.clear()
    on_loop(fresh())
    assert got == list(range(20))


# -- drain ---------------------------------------------------------------------------------------


def endless(kind: str, closed: list[str], read: list[int]) -> type[Node]:
    """A stream without an end; `closed` gets a word when it has been cleaned up."""

    class Later(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            try:
                for number in range(10**9):
                    yield number, number + 1
                    read.append(number)
            finally:
                closed.append("closed")

    class Plain(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            try:
                for number in range(10**9):
                    yield number, number + 1
                    read.append(number)
            finally:
                closed.append("closed")

    class Waits(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            try:
                for number in range(100):
                    yield number, number + 1
                    read.append(number)
                await asyncio.Event().wait()
            finally:
                closed.append("closed")

    class Runs(Node):
        out = Out(int)

        async def run(self) -> None:
            try:
                for number in range(10**9):
                    self.out.send(number)
                    read.append(number)
                    await self.out.room()
                    await asyncio.sleep(0)
            finally:
                closed.append("closed")

    class RunWaits(Node):
        out = Out(int)

        async def run(self) -> None:
            try:
                for number in range(100):
                    self.out.send(number)
                    read.append(number)
                await asyncio.Event().wait()
            finally:
                closed.append("closed")

    return {
        "later": Later,
        "plain": Plain,
        "waits": Waits,
        "run": Runs,
        "run waits": RunWaits,
    }[kind]


@pytest.mark.parametrize("kind", ["later", "plain", "waits", "run", "run waits"])
def test_a_drain_stops_the_source_and_loses_nothing(stage: Any, on_loop: Any, kind: str) -> None:
    got: list[int] = []
    closed: list[str] = []
    read: list[int] = []

    async def run() -> Any:
        async with stage(
            {"a": endless(kind, closed, read), "b": collect(got)}, ["a.out -> b.x"]
        ) as built:
            while len(got) < 100:
                await asyncio.sleep(0)
            built.drain()
            built.drain()
            return await built.wait(), built

    report, built = on_loop(run())
    assert report.exit == 0 and report.status.value == "drained" and closed == ["closed"]
    assert got == list(range(len(got))) and len(read) <= len(got) <= len(read) + 1
    if kind in ("later", "plain", "waits"):
        assert built.position("a") == len(got)


@pytest.mark.parametrize("kind", ["later", "plain", "waits", "run", "run waits"])
def test_a_drain_at_the_very_start(stage: Any, on_loop: Any, kind: str) -> None:
    """The word to stop comes with the word to start."""
    got: list[int] = []

    async def run() -> Any:
        built = stage({"a": endless(kind, [], []), "b": collect(got)}, ["a.out -> b.x"])
        built.on_ready.append(built.drain)
        async with built:
            return await built.wait()

    assert on_loop(run()).exit == 0
    assert got == list(range(len(got)))


@pytest.mark.parametrize("kind", ["later", "run"])
def test_a_source_that_dies_while_draining(stage: Any, on_loop: Any, kind: str) -> None:
    """It is started again for the sake of what it has to close, and reads no more."""
    got: list[int] = []
    hold = asyncio.Event()

    class Holds(Node):
        x = In(int, concurrency=5)

        async def on_x(self, message: int) -> None:
            got.append(message)
            await hold.wait()

    async def run() -> Any:
        async with stage({"a": endless(kind, [], []), "b": Holds}, ["a.out -> b.x"]) as built:
            while len(got) < 5:
                await asyncio.sleep(0)
            built.drain()
            built.crash("a.0")
            while not built.deaths:
                await asyncio.sleep(0)
            hold.set()
            return await built.wait()

    report = on_loop(run())
    assert report.status.value == "drained" and report.balanced and report.in_flight == 0


def test_a_drain_before_all_are_ready_ends_the_project(stage: Any, on_loop: Any) -> None:
    class Slow(Node):
        x = In(int)

        async def setup(self) -> None:
            await asyncio.Event().wait()

        def on_x(self, message: int) -> None: ...

    async def run() -> Any:
        async with stage({"a": numbers(5), "b": Slow}, ["a.out -> b.x"]) as built:
            built.drain()
            return await built.wait()

    report = on_loop(run())
    assert report.exit == 0 and report.reason == "stopped while starting"


def test_a_drain_that_takes_too_long_is_given_up(stage: Any, on_loop: Any) -> None:
    stuck = asyncio.Event()

    class Stuck(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            stuck.set()
            await asyncio.Event().wait()

    async def run() -> Any:
        async with stage({"a": numbers(5), "b": Stuck}, ["a.out -> b.x"]) as built:
            await stuck.wait()
            built.supervisor.drain(0.02)
            return await built.wait()

    report = on_loop(run())
    assert report.exit == 5 and report.status.value == "timed out"
    assert "not drained in 0.02 s" in report.reason


def test_a_drain_when_all_is_over(stage: Any, on_loop: Any) -> None:
    async def run() -> None:
        async with stage({"a": numbers(5), "b": collect([])}, ["a.out -> b.x"]) as built:
            await built.wait()
            built.drain()
            built.supervisor.kill()
            assert (await built.wait()).exit == 0

    on_loop(run())


# -- run() ---------------------------------------------------------------------------------------


def test_run_is_a_stream_without_positions(play: Any) -> None:
    got: list[int] = []

    class Runs(Node):
        out = Out(int)
        other = Out(str)

        async def run(self) -> None:
            for number in range(1000):
                self.out.send(number, headers={"n": "x"})
                if number % 100 == 0:
                    self.other.send_many(["a", "b"])
                    await self.other.room()

    texts: list[str] = []
    play(
        {"a": Runs, "b": collect(got), "c": collect(texts, str)},
        ["a.out -> b.x", "a.other -> c.x"],
    )
    assert got == list(range(1000)) and texts == ["a", "b"] * 10


def test_a_plain_run(play: Any) -> None:
    got: list[int] = []

    class Runs(Node):
        out = Out(int)

        def run(self) -> None:
            self.out.send_many(range(10_000))

        def finish(self) -> None:
            self.out.send(-1)

    play({"a": Runs, "b": collect(got)}, ["a.out -> b.x"])
    assert got == [*range(10_000), -1]


def test_run_may_send_from_tasks_of_its_own(play: Any) -> None:
    got: list[int] = []

    class Runs(Node):
        out = Out(int)

        async def run(self) -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(self.one(number))

        async def one(self, number: int) -> None:
            await asyncio.sleep(0)
            self.out.send(number)

    play({"a": Runs, "b": collect(got)}, ["a.out -> b.x"])
    assert sorted(got) == list(range(20))


def test_what_a_run_sends_at_once_is_cut_as_its_consumers_have_come_to_want_it(play: Any) -> None:
    """Nobody has asked for anything when the first of it leaves; the rest need not be as small."""
    got: list[int] = []
    batches: set[str] = set()

    class Runs(Node):
        out = Out(int)

        async def run(self) -> None:
            self.out.send_many(range(2500))
            self.out.send_many(range(2500, 5000))

    class Takes(Node):
        x = In(int)

        def on_x(self, message: int, meta: Meta) -> None:
            got.append(message)
            batches.add(meta.id.partition("-")[0])

    play({"a": Runs, "b": Takes}, ["a.out -> b.x"])
    assert got == list(range(5000)) and len(batches) < 500


def test_room_waits_while_the_consumers_are_behind(play: Any) -> None:
    sent: list[int] = []
    got: list[int] = []
    slack = 0

    class Runs(Node):
        out = Out(int)

        async def run(self) -> None:
            for number in range(400):
                await self.out.room()
                self.out.send(number)
                sent.append(number)

    class Slow(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            nonlocal slack
            for _ in range(5):
                await asyncio.sleep(0)
            slack = max(slack, len(sent) - len(got))
            got.append(message)

    play({"a": Runs, "b": Slow}, [link("a.out -> b.x", window=10)])
    assert got == list(range(400)) and slack < 100  # far from all


@given(lists(tuples(integers(0, 9), integers(1, 5))))
def test_a_backlog_is_a_queue(steps: list[tuple[int, int]]) -> None:
    """Of messages with their keys and headers."""
    backlog, box = Backlog(), Outbox()
    port: OutPort[int] = OutPort("out")
    port.use(box)
    sent: list[tuple[Any, ...]] = []
    left: list[tuple[Any, ...]] = []
    for count, most in steps:
        for _ in range(count):
            number = len(sent)
            key = f"k{number}" if number % 3 == 0 else None
            headers = {"h": str(number)} if number % 7 == 0 else None
            port.send(number, key=key, headers=headers)
            sent.append((number, key, headers))
        backlog.add(box)
        port.use(box)
        assert len(backlog) == len(sent) - len(left)
        part, keys, headers_of = backlog.part(most).take()
        blank = [None] * len(part)
        left += zip(part, keys or blank, headers_of or blank, strict=True)
        assert len(part) <= most and left == sent[: len(left)]
    left_over = len(backlog)
    assert left_over == len(sent) - len(left)


def test_what_a_run_has_sent_and_nobody_took_is_told_if_it_fails(play: Any) -> None:
    """Also what has never become a batch, for want of room."""
    got: list[int] = []
    runs = 0

    class Fails(Node):
        out = Out(int)

        async def run(self) -> None:
            nonlocal runs
            runs += 1
            if runs > 1:
                return
            self.out.send_many(range(1000))
            while not got:
                await asyncio.sleep(0)
            raise OSError("gone")

    class Waits(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            got.append(message)
            while runs < 2:
                await asyncio.sleep(0.001)

    parts = {"a": Fails, "b": Waits}
    report, _ = play(parts, [link("a.out -> b.x", window=10)], checked=False)
    entry = books(report, "a.out -> b.x").entry
    assert (entry.sent, entry.in_flight, report.exit) == (1000, 0, 5)
    assert entry.dropped == {"producer died": 1000 - entry.done} and entry.done < 20


def test_a_run_that_fails_is_started_again_and_the_loss_is_told(play: Any) -> None:
    runs = 0
    got: list[int] = []

    class Fails(Node):
        out = Out(int)

        async def run(self) -> None:
            nonlocal runs
            runs += 1
            self.out.send(runs)
            await asyncio.sleep(0)
            if runs < 3:
                raise OSError("gone")

    report, stage = play({"a": Fails, "b": collect(got)}, ["a.out -> b.x"], checked=False)
    assert runs == 3 and 3 in got
    entry = books(report, "a.out -> b.x").entry
    assert entry.in_flight == 0 and entry.sent == entry.done + sum(entry.dropped.values())
    assert report.exit == (5 if entry.dropped else 0)
