"""The hooks of a node, in order; timers; sinks; and replicas that fail."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from flowkit import In, Many, Node, Out, Sink, Source, every
from flowkit.topology.plan import RestartPlan
from tests.runtime.stage import Part, books, collect, numbers


@pytest.mark.parametrize("later", [False, True])
def test_the_hooks_come_in_order(play: Any, later: bool) -> None:
    story: list[str] = []

    class Plain(Node):
        stateful = True
        x = In(int)
        out = Out(str)

        def __init__(self, name: str = "n", *, size: int = 0) -> None:
            story.append(f"init {name} {size} {self.node!r}")

        def setup(self) -> None:
            story.append(f"setup {self.node} {self.replica}/{self.replicas}")

        def on_x(self, message: int) -> None:
            story.append(f"message {message}")

        def finish(self) -> None:
            story.append("finish")
            self.out.send("last words")

        def teardown(self) -> None:
            story.append("teardown")

    class Later(Plain):
        async def setup(self) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            Plain.setup(self)

        async def on_x(self, message: int) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            Plain.on_x(self, message)

        async def finish(self) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            Plain.finish(self)

        async def teardown(self) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            Plain.teardown(self)

    got: list[str] = []
    part = Part(Later if later else Plain, settings={"name": "N", "size": 3})
    play({"a": numbers(2), "b": part, "c": collect(got, str)}, ["a.out -> b.x", "b.out -> c.x"])
    assert story == [
        "init N 3 ''",
        "setup b 0/1",
        "message 0",
        "message 1",
        "finish",
        "teardown",
    ]
    assert got == ["last words"]


def test_no_message_comes_before_setup_has_returned(play: Any) -> None:
    ready: list[str] = []

    class Slow(Node):
        x = In(int)

        async def setup(self) -> None:
            for _ in range(100):
                await asyncio.sleep(0)
            ready.append(self.node)

        def on_x(self, message: int) -> None:
            assert self.node in ready

    class Reads(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            assert sorted(ready) == ["b", "c"], "a source begins when all are ready"
            yield 1, 1

    report, stage = play({"a": Reads, "b": Slow, "c": Slow}, ["a.out -> b.x", "a.out -> c.x"])
    assert stage.dead_letters == [] and report.exit == 0 and stage.deaths == []


@pytest.mark.parametrize("later", [False, True])
def test_a_setup_that_fails_is_tried_again_and_then_given_up(play: Any, later: bool) -> None:
    story: list[str] = []

    class Fails(Node):
        x = In(int)

        def setup(self) -> Any:
            story.append("setup")
            if later:
                return self.later()
            raise OSError("no database")

        async def later(self) -> None:
            raise OSError("no database")

        def on_x(self, message: int) -> None: ...

        def teardown(self) -> None:
            story.append("teardown")

    report, stage = play(
        {"a": numbers(5), "b": Part(Fails, restart=RestartPlan(max=2, backoff=0.0))},
        ["a.out -> b.x"],
        ends="failed",
    )
    assert story == ["setup", "teardown"] * 3
    assert report.exit == 3 and "b.0 was given up: died 3 times" in report.reason
    assert [death.delay for death in stage.deaths] == [0.0, 0.0, None]
    assert {node.node: node.state for node in report.nodes} == {"a": "lost", "b": "lost"}


def test_a_setup_that_succeeds_the_second_time(play: Any) -> None:
    tries: list[int] = []
    got: list[int] = []

    class Flaky(Node):
        x = In(int)

        def setup(self) -> None:
            tries.append(1)
            if len(tries) < 3:
                raise OSError

        def on_x(self, message: int) -> None:
            got.append(message)

    report, _ = play({"a": numbers(5), "b": Flaky}, ["a.out -> b.x"])
    assert got == list(range(5))
    assert {node.node: node.restarts for node in report.nodes} == {"a": 0, "b": 2}


def test_a_constructor_that_fails_is_a_matter_of_configuration(play: Any) -> None:
    class Fails(Node):
        x = In(int)

        def __init__(self, path: str) -> None:
            raise FileNotFoundError(path)

        def on_x(self, message: int) -> None: ...

    report, stage = play(
        {"a": numbers(5), "b": Part(Fails, settings={"path": "/nowhere"})},
        ["a.out -> b.x"],
        ends="misconfigured",
    )
    assert report.exit == 2 and report.reason == "b.0 cannot start" and len(stage.deaths) == 1


def test_settings_that_do_not_fit_are_a_matter_of_configuration(play: Any) -> None:
    class Takes(Node):
        x = In(int)

        def __init__(self, top: int) -> None: ...

        def on_x(self, message: int) -> None: ...

    for settings in ({}, {"top": "many"}, {"top": 1, "bottom": 2}):
        report, _ = play(
            {"a": numbers(5), "b": Part(Takes, settings=settings)},
            ["a.out -> b.x"],
            ends="misconfigured",
        )
        assert report.exit == 2


def test_an_error_in_a_function_called_build_is_no_matter_of_configuration(play: Any) -> None:
    tries: list[int] = []

    class Builds(Node):
        x = In(int)

        def build(self) -> None:
            tries.append(1)
            if len(tries) < 2:
                raise OSError

        def setup(self) -> None:
            self.build()

        def on_x(self, message: int) -> None: ...

    report, _ = play({"a": numbers(5), "b": Builds}, ["a.out -> b.x"])
    assert len(tries) == 2 and report.exit == 0


@pytest.mark.parametrize("later", [False, True])
def test_a_finish_that_fails_is_run_again(play: Any, later: bool) -> None:
    """By the next incarnation; what it sends then comes once."""
    tries: list[int] = []
    got: list[int] = []

    class Fails(Node):
        stateful = True
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message)

        def finish(self) -> Any:
            self.out.send(-1)
            tries.append(1)
            if len(tries) < 3:
                if later:
                    return self.later()
                raise OSError
            return None

        async def later(self) -> None:
            await asyncio.sleep(0)
            raise OSError

    report, stage = play(
        {"a": numbers(5), "b": Fails, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"]
    )
    assert len(tries) == 3 and got == [0, 1, 2, 3, 4, -1]
    replica = next(node for node in report.nodes if node.node == "b")
    assert (replica.restarts, replica.lost_state) == (2, True)


def test_teardown_comes_even_after_an_error_and_may_fail_itself(play: Any) -> None:
    story: list[str] = []

    class Fails(Sink):
        x = In(int)

        def on_x(self, message: int) -> None: ...

        def commit(self) -> None:
            if len(story) < 2:
                raise OSError("disk full")

        def teardown(self) -> None:
            story.append("teardown")
            if len(story) == 1:
                raise ValueError("cannot even close")

    report, _ = play({"a": numbers(5), "b": Fails}, ["a.out -> b.x"])
    assert story == ["teardown"] * 3 and report.exit == 0


def test_a_killed_project_tears_down_every_node(stage: Any, on_loop: Any) -> None:
    ended: list[str] = []

    class Waits(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            await asyncio.Event().wait()

        def teardown(self) -> None:
            ended.append(self.node)

    class Reads(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            yield 1, 1
            await asyncio.Event().wait()

        def teardown(self) -> None:
            ended.append(self.node)

    async def run() -> Any:
        async with stage({"a": Reads, "b": Waits}, ["a.out -> b.x"]) as built:
            await built.all_ready.wait()
            built.supervisor.kill()
            return await built.wait()

    report = on_loop(run())
    assert sorted(ended) == ["a", "b"] and report.exit == 130


# -- timers --------------------------------------------------------------------------------------


def test_timers_of_a_stateful_node_send(play: Any) -> None:
    got: list[int] = []
    ticks = asyncio.Event()

    class Counts(Node):
        stateful = True
        x = In(int)
        out = Out(int)

        def __init__(self) -> None:
            self.count = 0

        async def on_x(self, message: int) -> None:
            self.count += 1
            await ticks.wait()

        @every("1ms")
        def report(self) -> None:
            self.out.send(self.count)
            if self.count:
                ticks.set()

        def finish(self) -> None:
            self.out.send(self.count)

    play({"a": numbers(10), "b": Counts, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"])
    assert got == sorted(got) and got[-1] == 10 and 1 in got


def test_a_timer_may_do_anything_but_send_in_a_node_that_is_not_stateful(play: Any) -> None:
    ticks = asyncio.Event()

    class Flushes(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            await ticks.wait()

        @every(0.001)
        def flush(self) -> None:
            ticks.set()

    report, stage = play(
        {"a": numbers(2), "b": Flushes, "c": collect([])}, ["a.out -> b.x", "b.out -> c.x"]
    )
    assert stage.deaths == [] and report.exit == 0


@pytest.mark.parametrize("where", ["timer", "slow timer", "finish", "slow finish"])
def test_a_node_that_sends_from_memory_must_say_so(
    play: Any, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    class Base(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            if "timer" in where:
                await asyncio.Event().wait()

        def sends(self) -> None:
            self.out.send(1)

        async def sends_later(self) -> None:
            self.out.send(1)

    function = Base.sends_later if where.startswith("slow") else Base.sends
    body = {"finish": function} if "finish" in where else {"tick": every(0.001)(function)}
    node = type("Secret", (Base,), {"__module__": __name__, **body})
    got: list[int] = []
    report, _ = play(
        {
            "a": numbers(2),
            "b": Part(node, restart=RestartPlan(max=1, backoff=0.0)),
            "c": collect(got),
        },
        ["a.out -> b.x", "b.out -> c.x"],
        ends="failed",
    )
    assert got == [] and report.exit == 3
    assert "declare it: stateful = True" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["tick", "tock"])
def test_a_timer_that_fails_restarts_the_replica(play: Any, name: str) -> None:
    ticks: list[int] = []
    passed = asyncio.Event()

    class Fails(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            await passed.wait()

        def tick(self) -> Any:
            ticks.append(1)
            if len(ticks) == 1:
                raise OSError
            passed.set()

        async def tock(self) -> None:
            self.tick()

    body = {name: every(0.001)(Fails.__dict__[name])}
    node = type("Ticks", (Fails,), {"__module__": __name__, **body})
    report, stage = play({"a": numbers(3), "b": node}, ["a.out -> b.x"])
    assert len(stage.deaths) == 1 and report.exit == 0


def test_a_slow_timer_skips_ticks_and_ends_before_finish(play: Any) -> None:
    story: list[str] = []
    got: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()
    inside = 0

    class Ticks(Node):
        stateful = True
        x = In(int)
        out = Out(str)

        async def on_x(self, message: int) -> None:
            await begun.wait()
            # The timer is let go only when the stream has long ended.
            asyncio.get_running_loop().call_later(0.05, go.set)

        @every(0.001)
        async def tick(self) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            begun.set()
            await go.wait()
            self.out.send("tick")
            story.append("tick")
            inside -= 1

        def finish(self) -> None:
            story.append("finish")
            self.out.send("finish")

    play({"a": numbers(1), "b": Ticks, "c": collect(got, str)}, ["a.out -> b.x", "b.out -> c.x"])
    assert story[-1] == "finish" and "tick" in story[:-1]
    assert got == story


def test_a_node_of_timers_alone_runs_until_it_is_drained(stage: Any, on_loop: Any) -> None:
    got: list[int] = []

    class Clock(Node):
        out = Out(int)
        count = 0

        @every(0.001)
        def tick(self) -> None:
            self.count += 1
            self.out.send(self.count)

        def finish(self) -> None:
            self.out.send(-1)

    async def run() -> Any:
        async with stage({"a": Clock, "b": collect(got)}, ["a.out -> b.x"]) as built:
            while len(got) < 5:
                await asyncio.sleep(0)
            built.drain()
            return await built.wait()

    report = on_loop(run())
    assert report.exit == 0 and got == [*range(1, len(got)), -1]


# -- sinks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
def test_a_sink_commits_before_its_input_is_acknowledged(
    stage: Any, on_loop: Any, later: bool
) -> None:
    written: list[int] = []
    durable: list[int] = []
    worst = 0

    class Writes(Sink):
        x = In(int)

        def on_x(self, message: int) -> None:
            written.append(message)

        def commit(self) -> Any:
            nonlocal worst
            done = books(built.supervisor.report(), "a.out -> b.x").entry.done
            worst = max(worst, done - len(durable))
            if later:
                return self.later(list(written))
            durable[:] = written
            return None

        async def later(self, what: list[int]) -> None:
            for _ in range(10):
                await asyncio.sleep(0)
            durable[:] = what

    async def run() -> Any:
        nonlocal built
        built = stage({"a": numbers(3000), "b": Writes}, ["a.out -> b.x"])
        async with built:
            return await built.wait()

    built: Any = None
    report = on_loop(run())
    assert worst == 0 and durable == written == list(range(3000)) and report.exit == 0


@pytest.mark.parametrize("later", [False, True])
def test_what_a_sink_had_not_committed_comes_again(play: Any, later: bool) -> None:
    """It dies between handling and committing, twice."""
    written: list[int] = []
    durable: list[int] = []
    deaths: list[int] = []

    class Writes(Sink):
        x = In(int)

        def setup(self) -> None:
            self.mine: list[int] = []

        def on_x(self, message: int) -> None:
            written.append(message)
            self.mine.append(message)

        def commit(self) -> Any:
            return self.later() if later else self.now()

        async def later(self) -> None:
            await asyncio.sleep(0)
            self.now()

        def now(self) -> None:
            if len(deaths) < 2 and len(durable) >= 100 * len(deaths):
                deaths.append(len(self.mine))
                raise OSError("no space")
            durable.extend(self.mine)
            self.mine.clear()

    report, stage = play({"a": numbers(1000), "b": Writes}, ["a.out -> b.x"])
    assert len(deaths) == 2 == len(stage.deaths)
    # Nothing is lost; what was durable when the acknowledgement was lost with the replica may come
    # again.
    assert set(durable) == set(range(1000))
    assert len(written) > 1000
    entry = books(report, "a.out -> b.x").entry
    assert (entry.sent, entry.done) == (1000, 1000) and entry.redelivered > 0


def test_a_sink_without_commit_is_a_node(play: Any) -> None:
    got: list[int] = []

    class Writes(Sink):
        x = In(int)

        def on_x(self, message: int) -> None:
            got.append(message)

        def finish(self) -> None:
            got.append(-1)

    play({"a": numbers(10), "b": Writes}, ["a.out -> b.x"])
    assert got == [*range(10), -1]


def test_a_sink_commits_what_finish_did(play: Any) -> None:
    story: list[str] = []

    class Writes(Sink):
        x = In(int)

        def on_x(self, message: int) -> None: ...

        def finish(self) -> None:
            story.append("finish")

        def commit(self) -> None:
            story.append("commit")

    play({"a": numbers(10), "b": Writes}, ["a.out -> b.x"])
    assert story[-2:] == ["finish", "commit"]


# -- restarts ------------------------------------------------------------------------------------


def test_state_that_was_lost_is_told(stage: Any, on_loop: Any) -> None:
    seen: list[int] = []

    class Counts(Node):
        stateful = True
        x = In(int)

        def on_x(self, message: int) -> None:
            seen.append(message)

    async def run() -> Any:
        async with stage(
            {"a": numbers(5000), "b": Part(Counts, replicas=2)}, ["a.out -> b.x"]
        ) as built:
            while len(seen) < 100:
                await asyncio.sleep(0)
            built.crash("b.1")
            return await built.wait()

    report = on_loop(run())
    lost = {(node.node, node.replica): node.lost_state for node in report.nodes}
    assert lost == {("a", 0): False, ("b", 0): False, ("b", 1): True}
    assert set(seen) == set(range(5000)) and report.exit == 0


@pytest.mark.parametrize("victims", [["b.0"], ["b.0", "b.1"], ["c.0"], ["b.1", "c.0", "b.1"]])
def test_workers_that_are_killed_lose_and_double_nothing(
    stage: Any, on_loop: Any, victims: list[str]
) -> None:
    """Pool to single consumer; what a dead consumer had in its own memory is not the question."""

    class Pass(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            await asyncio.sleep(0)
            self.out.send(message)

    async def run() -> Any:
        async with stage(
            {"a": numbers(4000), "b": Part(Pass, replicas=2), "c": Pass, "d": collect(got)},
            ["a.out -> b.x", "b.out -> c.x", "c.out -> d.x"],
        ) as built:
            for number, victim in enumerate(victims, 1):
                while len(got) < 500 * number:
                    await asyncio.sleep(0)
                built.crash(victim)
                while len(built.deaths) < number:
                    await asyncio.sleep(0)
            return await built.wait()

    got: list[int] = []
    report = on_loop(run())
    assert sorted(got) == list(range(4000))
    assert report.exit == 0 and report.balanced and report.in_flight == 0


def test_a_replica_that_keeps_dying_is_given_up(play: Any) -> None:
    class Dies(Sink):
        x = In(int)

        def on_x(self, message: int) -> None: ...

        def commit(self) -> None:
            raise OSError("for ever")

    report, stage = play(
        {"a": numbers(5), "b": Part(Dies, restart=RestartPlan(max=3, backoff=0.0))},
        ["a.out -> b.x"],
        ends="failed",
    )
    assert report.exit == 3 and len(stage.deaths) == 4
    assert report.in_flight + report.dropped >= 0 and report.balanced


def test_a_policy_of_never_restarting(play: Any) -> None:
    class Dies(Sink):
        x = In(int)

        def on_x(self, message: int) -> None: ...

        def commit(self) -> None:
            raise OSError

    report, _ = play(
        {"a": numbers(5), "b": Part(Dies, restart=RestartPlan(policy="never"))},
        ["a.out -> b.x"],
        ends="failed",
    )
    assert "restart policy is never" in report.reason


def test_the_busiest_node_is_named(play: Any) -> None:
    class Works(Node):
        x = In(int)

        def on_x(self, message: int) -> None:
            sum(range(20_000))

    class Reads(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            yield Many(range(1500)), 1

    report, _ = play({"a": Reads, "b": Works}, ["a.out -> b.x"])
    assert report.verdict.bottleneck == "b" and report.verdict.advice == "scale b"
    assert max(report.nodes, key=lambda node: node.busy).node == "b"


def test_nothing_is_logged_about_a_run_in_order(play: Any, caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, logger="flowkit"):
        play(
            {"a": numbers(500), "b": Part(collect([]), replicas=2)},
            ["a.out -> b.x"],
        )
    assert [record.message for record in caplog.records if record.name.startswith("flowkit")] == []
