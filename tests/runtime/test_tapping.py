"""Taps: what passes through a channel, shown to whoever looks, and to nobody's cost but theirs."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from flowkit import In, Meta, Node, Out, Source
from flowkit.clock import FakeClock
from flowkit.control.taps import Tapped
from flowkit.errors import OperatorError
from flowkit.protocol import control
from flowkit.protocol.engine import Released
from flowkit.runtime import tapping
from flowkit.runtime.tapping import Tapping, glimpse
from tests.runtime.stage import Part, check, collect, numbers

# -- what a message looks like -------------------------------------------------------------------


class Event(msgspec.Struct):
    name: str
    when: datetime.datetime
    raw: bytes


class Odd:
    def __repr__(self) -> str:
        return "an odd one"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


def seen(message: Any) -> Any:
    shown = glimpse("id-0", None, None, message)
    assert not shown.cut
    return shown.value.decode() if shown.binary else msgspec.json.decode(shown.value)


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("text", "text"),
        (None, None),
        ([1, 2.5, {"a": None}], [1, 2.5, {"a": None}]),
        (b"a line\n", "a line\n"),
        (b"\xff\x00", "/wA="),
        (
            Event("e", datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), b"x"),
            {"name": "e", "when": "2026-01-02T00:00:00Z", "raw": "eA=="},
        ),
        ({1: (2, 3)}, {"1": [2, 3]}),
        (10**30, 10**30),
        (float("nan"), None),
        (Odd(), "an odd one"),
        ({"x": Odd()}, {"x": "an odd one"}),
        (Broken(), "a Broken that cannot be shown"),
        ("lone \ud800", "'lone \\ud800'"),
    ],
)
def test_every_message_can_be_shown(message: Any, value: Any) -> None:
    assert seen(message) == value


@pytest.mark.parametrize("message", ["ü" * 100_000, b"y" * 100_000, "€".encode() * 50_000,
                                     b"\xff" * 100_000, ["z" * 100] * 1000])  # fmt: skip
def test_large_messages_are_cut(message: Any) -> None:
    shown = glimpse("id", "k" * 100_000, {"h": "x" * 100_000}, message)
    assert shown.cut and len(shown.value) == tapping.VALUE
    assert shown.binary == (message == b"\xff" * 100_000)
    assert shown.headers == {} and len(msgspec.json.decode(shown.key)) < 5000


# -- the replica's side --------------------------------------------------------------------------


class Bench:
    """A `Tapping` with a clock, and what it says."""

    def __init__(self, node: Node) -> None:
        self.clock = FakeClock()
        self.said: list[control.Tapped] = []
        self.shop: Any = type("Shop", (), {"node": node, "tap": None})()
        self.engine: Any = type("Engine", (), {"on_release": None})()
        self.tapping = Tapping(self.shop, self.engine, self.said.append, self.clock)  # type: ignore[arg-type]

    def release(self, *messages: Any) -> None:
        self.engine.on_release("out", Released(messages, None, None, []))

    @property
    def shown(self) -> int:
        return sum(len(one.messages) for one in self.said)

    @property
    def skipped(self) -> int:
        return sum(one.skipped for one in self.said)


@pytest.fixture
def bench() -> Bench:
    class Both(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None: ...

    return Bench(Both())


def test_nobody_looks_until_somebody_does(bench: Bench) -> None:
    def hooks() -> tuple[bool, bool]:
        return bench.shop.tap is not None, bench.engine.on_release is not None

    assert hooks() == (False, False)
    bench.tapping.hear(control.Tap("out"))
    assert hooks() == (False, True)
    bench.tapping.hear(control.Tap("x"))
    bench.tapping.hear(control.Tap("x"))
    assert hooks() == (True, True)
    bench.tapping.hear(control.Untap("out"))
    assert hooks() == (True, False)
    bench.tapping.hear(control.Untap("x"))
    bench.tapping.hear(control.Untap("x"))
    bench.tapping.hear(control.TapHeard("x", 10))
    assert hooks() == (False, False)


def test_messages_a_second_are_bounded_and_spread(bench: Bench) -> None:
    bench.tapping.hear(control.Tap("out"))
    bench.release(*range(100_000))
    values = [int(one.value) for said in bench.said for one in said.messages]
    assert 0 < len(values) <= tapping.RATE
    assert values == list(range(0, 100_000, values[1])) and values[-1] > 90_000
    bench.release(1)
    bench.tapping.tick()
    assert bench.shown + bench.skipped == 100_001
    bench.said.clear()
    bench.tapping.tick()
    assert not bench.said  # nothing to say
    bench.clock.advance(1.0)
    bench.tapping.hear(control.TapHeard("out", 1 << 30))
    bench.release(*range(10))
    assert (bench.shown, bench.skipped) == (10, 0)


def test_bytes_on_the_way_are_bounded(bench: Bench) -> None:
    bench.tapping.hear(control.Tap("out"))
    for _ in range(100):
        bench.clock.advance(1.0)
        bench.release(*["x" * 5000] * 10)
    size = sum(said.size for said in bench.said)
    assert tapping.WINDOW <= size < tapping.WINDOW + 10_000
    assert all(len(control.encode(said)[0]) < control.LIMIT for said in bench.said)
    bench.tapping.tick()
    assert bench.shown + bench.skipped == 1000
    bench.tapping.hear(control.TapHeard("out", size))
    bench.release("again")
    assert bench.said[-1].messages[0].value == b'"again"'


# -- through the supervisor ----------------------------------------------------------------------


class Letter(msgspec.Struct):
    to: str
    body: int


def letters(count: int) -> type[Source]:
    class Letters(Source):
        out = Out(Letter)

        def read(self, position: Any) -> Iterator[Any]:
            yield from ((Letter("x", n), n + 1) for n in range(position or 0, count))

    return Letters


class Work(Node):
    x = In(Letter)
    out = Out(int)
    spare = Out(str)

    def on_x(self, letter: Letter) -> None:
        self.out.send(letter.body, key=letter.to, headers={"n": str(letter.body)})
        self.spare.send("nobody gets this")


def test_both_sides_of_a_link_and_an_output_to_nowhere(stage: Any, on_loop: Any) -> None:
    shown: dict[str, list[Tapped]] = {"x": [], "out": [], "spare": [], "c": []}
    metas: list[Meta] = []

    class End(Node):
        x = In(int)

        def on_x(self, message: int, meta: Meta) -> None:
            metas.append(meta)

    async def main() -> None:
        parts = {"a": letters(100), "b": Work, "c": End}
        links = ["a.out -> b.x", {"text": "b.out -> c.x", "route": "key"}]
        async with stage(parts, links) as project:
            taps = [
                project.supervisor.tap("b", name, shown[name].append)
                for name in ("x", "out", "spare")
            ]
            taps.append(project.supervisor.tap("c", "x", shown["c"].append))
            check(await project.wait())
            assert [(tap.shown, tap.skipped) for tap in taps] == [(100, 0)] * 4
            for tap in taps:
                tap.close()
                tap.close()

    on_loop(main())
    assert [one.value for one in shown["x"]] == [{"to": "x", "body": n} for n in range(100)]
    assert [one.value for one in shown["out"]] == list(range(100))
    assert [one.value for one in shown["spare"]] == ["nobody gets this"] * 100
    assert {one.id for one in shown["spare"]} == {""}
    first = shown["out"][7]
    assert (first.node, first.replica, first.channel) == ("b", 0, "out")
    assert (first.key, first.headers) == ("x", {"n": "7"})
    # A message has the same id wherever it is looked at.
    assert [one.id for one in shown["out"]] == [one.id for one in shown["c"]]
    assert [one.id for one in shown["c"]] == [meta.id for meta in metas]
    assert [(one.key, one.headers) for one in shown["c"]] == [
        (one.key, one.headers) for one in shown["out"]
    ]


@pytest.mark.parametrize("route", ["balance", "key", "broadcast"])
def test_an_output_to_several_replicas_is_shown_once(route: str, stage: Any, on_loop: Any) -> None:
    shown: list[Tapped] = []
    got: list[int] = []

    async def main() -> None:
        parts = {"a": numbers(300), "b": Part(collect(got), replicas=3)}
        async with stage(parts, [{"text": "a.out -> b.x", "route": route}]) as project:
            project.supervisor.tap("a", "out", shown.append)
            await project.wait()

    on_loop(main())
    assert sorted(one.value for one in shown) == list(range(300))
    assert len({one.id for one in shown}) == 300


def test_coroutines_and_lists_are_shown_too(stage: Any, on_loop: Any) -> None:
    class Later(Node):
        x = In(int, concurrency=3)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            self.out.send(message)

    class Lists(Node):
        x = In(int, batch=7)

        def on_x(self, messages: list[int]) -> None: ...

    shown: list[Tapped] = []

    async def main() -> None:
        parts = {"a": numbers(100), "b": Later, "c": Lists}
        async with stage(parts, ["a.out -> b.x", "b.out -> c.x"]) as project:
            for place in (("b", "x"), ("b", "out"), ("c", "x")):
                project.supervisor.tap(*place, shown.append)
            check(await project.wait())

    on_loop(main())
    for place in (("b", "x"), ("b", "out"), ("c", "x")):
        assert [one.value for one in shown if (one.node, one.channel) == place] == [*range(100)]


class Endless(Source):
    out = Out(int)

    async def read(self, position: int | None) -> Any:
        number = position or 0
        while True:
            yield number, number + 1
            number += 1
            await asyncio.sleep(0)


def test_a_tap_ends_and_costs_nothing_more(stage: Any, on_loop: Any, eventually: Any) -> None:
    async def main() -> None:
        async with stage({"a": Endless, "b": collect([])}, ["a.out -> b.x"]) as project:
            tap_it = project.supervisor.tap
            counted: list[Tapped] = []
            limited = tap_it("b", "x", counted.append, limit=3)
            gone = tap_it("b", "x", lambda message: False)
            failing = tap_it("b", "x", lambda message: 1 / 0)
            seen: list[Tapped] = []
            closed = tap_it("b", "x", seen.append)
            await eventually.on_loop(lambda: limited.closed and gone.closed and failing.closed)
            assert len(counted) == limited.shown == 3
            assert gone.shown == failing.shown == 1
            await eventually.on_loop(lambda: len(seen) > 20)
            (shop,) = [runner._shop for runner in runners if runner.spec.node.name == "b"]
            assert shop.tap is not None
            closed.close()
            count = len(seen)
            await eventually.on_loop(lambda: shop.tap is None)
            assert len(seen) == count
            project.drain()
            check(await project.wait())

    with watched_runners() as runners:
        on_loop(main())


def watched_runners() -> Any:
    """The runners that are made meanwhile."""
    from contextlib import contextmanager

    from flowkit.runtime.runner import Runner

    @contextmanager
    def watch() -> Iterator[list[Runner]]:
        found: list[Runner] = []
        begin = Runner.__init__

        def note(self: Runner, *arguments: Any, **more: Any) -> None:
            begin(self, *arguments, **more)
            found.append(self)

        Runner.__init__ = note  # type: ignore[method-assign]
        try:
            yield found
        finally:
            Runner.__init__ = begin  # type: ignore[method-assign]

    return watch()


def test_a_tap_survives_the_death_of_its_replica(stage: Any, on_loop: Any, eventually: Any) -> None:
    async def main() -> None:
        async with stage({"a": Endless, "b": collect([])}, ["a.out -> b.x"]) as project:
            seen: list[Tapped] = []
            tap = project.supervisor.tap("b", "x", seen.append)
            await eventually.on_loop(lambda: len(seen) > 20)
            project.crash("b.0")
            await eventually.on_loop(lambda: project.deaths)
            count = len(seen)
            await eventually.on_loop(lambda: len(seen) > count + 20)
            tap.close()
            project.drain()
            check(await project.wait())

    on_loop(main())


def test_a_fast_stream_is_sampled_and_the_rest_counted(stage: Any, on_loop: Any) -> None:
    shown: list[Tapped] = []
    got: list[int] = []

    async def main() -> None:
        parts = {"a": numbers(20_000), "b": collect(got)}
        async with stage(parts, ["a.out -> b.x"]) as project:
            tap = project.supervisor.tap("b", "x", shown.append)
            check(await project.wait())
            assert tap.shown == len(shown) < 20_000
            assert sum(one.skipped for one in shown) <= tap.skipped

    on_loop(main())
    assert got == list(range(20_000))
    assert shown[0].value == 0 and any(one.skipped for one in shown)
    values = [one.value for one in shown]
    assert values == sorted(values)
    # Nothing is counted as skipped before it has passed.
    skipped = 0
    for number, one in enumerate(shown):
        skipped += one.skipped
        assert number + skipped <= one.value


def test_a_tap_ends_with_its_channel_and_says_why(stage: Any, on_loop: Any) -> None:
    async def main() -> None:
        parts = {"a": letters(1), "b": Work, "c": collect([])}
        async with stage(parts, ["a.out -> b.x", "b.out -> c.x"]) as project:
            supervisor, ended = project.supervisor, []
            taps = [supervisor.tap(*place, print) for place in (("a", "out"), ("b", "x"))]
            for tap in taps:
                tap.on_end = ended.append
            plan = supervisor.plan
            supervisor._taps.look(plan)
            assert not ended
            less = [node for node in plan.nodes if node.name != "b"]
            supervisor._taps.look(msgspec.structs.replace(plan, nodes=less))
            assert [tap.closed for tap in taps] == [False, True]
            name = f"{plan.project} has no node 'b' any more"
            assert ended == [f"{name}: a reload has removed it"]
            await project.wait()

    on_loop(main())


@pytest.mark.parametrize(
    ("node", "channel", "text"),
    [
        ("bb", "x", "there is no node 'bb'; did you mean 'b'?"),
        ("b", "outt", "node 'b' has no channel 'outt'; did you mean 'out'?"),
        ("c", "nothing", "node 'c' has no channel 'nothing'; there is 'x'"),
    ],
)
def test_a_channel_that_is_not_there(
    node: str, channel: str, text: str, stage: Any, on_loop: Any
) -> None:
    async def main() -> None:
        parts = {"a": letters(1), "b": Work, "c": collect([])}
        async with stage(parts, ["a.out -> b.x", "b.out -> c.x"]) as project:
            with pytest.raises(OperatorError) as caught:
                project.supervisor.tap(node, channel, print)
            assert f"{caught.value}; {caught.value.hint}" == text
            with pytest.raises(OperatorError, match="shows none"):
                project.supervisor.tap("b", "x", print, limit=0)
            await project.wait()

    on_loop(main())
