"""Links with ``pattern: pubsub``: topics, slow and absent subscribers, late joiners; and pairs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flowkit import In, Meta, Node, Out
from flowkit.operations import ChangeError
from tests.runtime.stage import Part, books, collect, link


def publisher(run: Any, **options: Any) -> type[Node]:
    class Publishes(Node):
        news = Out(str, **options)

        async def run(self) -> None:
            await run(self)

    return Publishes


def subscription(to: str, **options: Any) -> dict[str, Any]:
    return link(f"p.news -> {to}.x", pattern="pubsub", **options)


@pytest.mark.parametrize("keyed", [False, True], ids=["the message", "a key"])
def test_each_subscriber_gets_what_it_has_subscribed_to(play: Any, keyed: bool) -> None:
    words = [f"{topic}.{number}" for number in range(50) for topic in ("a.b", "a.c", "d")]

    async def run(self: Any) -> None:
        for word in words:
            if keyed:
                self.news.send("!" + word, key=word if len(word) % 2 else word.encode())
            else:
                self.news.send(word)
            await self.news.room()

    got: dict[str, list[str]] = {name: [] for name in "abce"}
    report, _ = play(
        {"p": publisher(run), "s": collect(got["a"], str), "t": collect(got["b"], str),
         "u": Part(collect(got["c"], str), replicas=2), "v": collect(got["e"], str)},
        [subscription("s", topics=["a."]), subscription("t", topics=["a.c", "d"]),
         subscription("u"), subscription("v", topics=["nothing"])],
    )  # fmt: skip
    plain = {name: [word.lstrip("!") for word in found] for name, found in got.items()}
    assert plain["a"] == [word for word in words if word.startswith("a.")]
    assert plain["b"] == [word for word in words if word.startswith(("a.c", "d"))]
    assert sorted(plain["c"]) == sorted(2 * words) and plain["e"] == []
    assert books(report, "p.news -> u.x").entry.sent == 2 * len(words)
    assert books(report, "p.news -> v.x").entry.sent == 0


def test_what_has_no_topic_is_a_dead_letter(play: Any) -> None:
    async def run(self: Any) -> None:
        self.news.send("a", key=1)
        self.news.send("b", key="t")

    got: list[str] = []
    _, stage = play(
        {"p": publisher(run), "s": collect(got, str)}, [subscription("s", topics=["t"])]
    )
    assert got == ["b"]
    (letter,) = stage.dead_letters
    assert "1 is no topic" in letter.error


@pytest.mark.parametrize("policy", ["drop-newest", "drop-oldest"])
def test_a_publisher_waits_for_nobody_and_what_is_missed_is_counted(
    play: Any, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    go = asyncio.Event()
    got: list[str] = []
    fast: list[str] = []

    class Slow(Node):
        x = In(str)

        async def on_x(self, word: str, meta: Meta) -> None:
            await go.wait()
            before = int(got[-1]) if got else -1
            assert meta.missed == int(word) - before - 1
            got.append(word)

    async def run(self: Any) -> None:
        for number in range(1000):
            self.news.send(str(number))
            await asyncio.sleep(0)
        while len(fast) < 1000:
            await asyncio.sleep(0)
        go.set()

    report, _ = play(
        {"p": publisher(run), "s": Slow, "f": collect(fast, str)},
        [subscription("s", window=10, when_full=policy), subscription("f")],
    )
    entry = books(report, "p.news -> s.x").entry
    assert entry.sent == 1000 and entry.done == len(got) < 1000
    assert entry.dropped == {"gap": 1000 - len(got)}
    assert ("999" in got) == (policy == "drop-oldest") and got[0] == "0"
    assert report.exit == 0
    complaints = [one.message for one in caplog.records if "counts as gap" in one.message]
    assert len(complaints) == 1 and "s.0 is slow, and its window is full" in complaints[0]


def test_a_subscriber_that_is_away_misses_what_is_published_meanwhile(
    stage: Any, on_loop: Any
) -> None:
    got: list[str] = []
    other: list[str] = []

    async def whole() -> None:
        step = asyncio.Event()
        reached = asyncio.Event()
        up: list[bool] = []

        class Subscribes(Node):
            x = In(str)

            async def setup(self) -> None:
                up.append(True)
                if len(up) == 2:
                    await step.wait()

            def on_x(self, word: str) -> None:
                got.append(word)

        async def until(condition: Any) -> None:
            while not condition():
                await asyncio.sleep(0)

        async def run(self: Any) -> None:
            self.news.send("before")
            await until(lambda: got == ["before"] and other == ["before"])
            reached.set()
            await until(lambda: len(up) == 2)
            self.news.send("meanwhile")
            await until(lambda: other[-1] == "meanwhile")
            step.set()
            while "after" not in got:
                self.news.send("after")
                await asyncio.sleep(0)

        parts = {"p": publisher(run), "s": Subscribes, "t": collect(other, str)}
        async with stage(parts, [subscription("s"), subscription("t")]) as one:
            await asyncio.wait_for(reached.wait(), 10)
            one.crash("s.0")
            report = await one.wait()
        assert got[0] == "before" and "meanwhile" not in got and "after" in got
        entry = books(report, "p.news -> s.x").entry
        assert entry.dropped["gap"] >= 1 and entry.in_flight == 0 and report.balanced
        assert entry.sent == entry.done + sum(entry.dropped.values())
        assert books(report, "p.news -> t.x").entry.dropped == {}
        assert report.exit == 0

    on_loop(whole())


def test_one_that_joins_late_gets_what_is_published_from_then_on(stage: Any, on_loop: Any) -> None:
    got: dict[int, list[str]] = {0: [], 1: []}

    async def whole() -> None:
        joined = asyncio.Event()

        class Subscribes(Node):
            x = In(str)

            def on_x(self, word: str) -> None:
                got[self.replica].append(word)

        first = asyncio.Event()

        async def run(self: Any) -> None:
            self.news.send("early")
            while not got[0]:
                await asyncio.sleep(0)
            first.set()
            await joined.wait()
            self.news.send("late")

        async with stage({"p": publisher(run), "s": Subscribes}, [subscription("s")]) as one:
            await asyncio.wait_for(first.wait(), 10)
            await one.supervisor.scale({"s": 2})
            joined.set()
            report = await one.wait()
        entry = books(report, "p.news -> s.x").entry
        assert (entry.sent, entry.done, entry.dropped) == (3, 3, {})

    on_loop(whole())
    assert got == {0: ["early", "late"], 1: ["late"]}


def test_a_pair_is_a_pipeline_that_is_not_scaled(stage: Any, on_loop: Any) -> None:
    got: list[str] = []

    async def whole() -> None:
        over = asyncio.Event()

        async def run(self: Any) -> None:
            for number in range(100):
                self.news.send(str(number))
            await over.wait()

        parts = {"p": publisher(run), "s": collect(got, str)}
        async with stage(parts, [link("p.news -> s.x", pattern="pair")]) as one:
            await asyncio.wait_for(one.all_ready.wait(), 10)
            with pytest.raises(ChangeError, match="p.news -> s.x is a pair: s has one replica"):
                await one.supervisor.scale({"s": 2})
            over.set()
            report = await one.wait()
        assert books(report, "p.news -> s.x").entry.done == 100

    on_loop(whole())
    assert got == [str(number) for number in range(100)]
