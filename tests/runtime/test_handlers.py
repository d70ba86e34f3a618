"""A handler is a transaction; what becomes of a message whose handler raises; what meta says."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import msgspec
import pytest

from flowkit import In, Many, Meta, Node, Out, Source, every
from flowkit.errors import SendError
from flowkit.runtime import inlet
from tests.runtime.stage import Part, books, collect, link, numbers, texts


def shaky(fails: Any, how: str) -> type[Node]:
    """A node that sends, and then raises for messages of which `fails(message)` is true.

    `how` is the way in which it takes its messages; it sends on two outputs.
    """

    class Plain(Node):
        x = In(int)
        out = Out(int)
        other = Out(int)

        def handle(self, message: int) -> None:
            self.out.send(message, headers={"n": str(message)})
            self.other.send_many([message, message])
            if fails(message):
                raise ValueError(f"no {message}")

        def on_x(self, message: int) -> None:
            self.handle(message)

    class WithMeta(Plain):
        def on_x(self, message: int, meta: Meta) -> None:  # type: ignore[override]
            self.handle(message)

    class Later(Plain):
        async def on_x(self, message: int) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            self.handle(message)

    class AtOnce(Later):
        x = In(int, concurrency=20)

    class Listed(Plain):
        x = In(int, batch=1)

        def on_x(self, messages: list[int]) -> None:  # type: ignore[override]
            self.handle(messages[0])

    class Grouped(Listed):
        x = In(int, batch=1, within=0.001)

    class ListedLater(Plain):
        x = In(int, batch=1, concurrency=3)

        async def on_x(self, messages: list[int], metas: list[Meta]) -> None:  # type: ignore
            await asyncio.sleep(0)
            self.handle(messages[0])

    return {
        "plain": Plain,
        "sliced": Plain,
        "meta": WithMeta,
        "coroutine": Later,
        "concurrent": AtOnce,
        "list": Listed,
        "group": Grouped,
        "concurrent list": ListedLater,
    }[how]


WAYS = ["plain", "sliced", "meta", "coroutine", "concurrent", "list", "group", "concurrent list"]
LINKS = ["a.out -> b.x", "b.out -> c.x", "b.other -> d.x"]


@pytest.fixture(autouse=True)
def in_slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One or two messages, and the loop turns, in a test of what is "sliced"."""
    if "sliced" in request.node.name:
        monkeypatch.setattr(inlet, "SLICE", 0.0)
        monkeypatch.setattr(inlet, "STRIDE", 2)


@pytest.mark.parametrize("how", WAYS)
def test_a_handler_that_raises_has_sent_nothing(play: Any, how: str) -> None:
    out: list[int] = []
    other: list[int] = []
    report, stage = play(
        {
            "a": numbers(300),
            "b": shaky(lambda one: one % 7 == 3, how),
            "c": collect(out),
            "d": collect(other),
        },
        LINKS,
    )
    good = [number for number in range(300) if number % 7 != 3]
    bad = [number for number in range(300) if number % 7 == 3]
    assert sorted(out) == good
    assert sorted(other) == sorted(2 * good)
    if "concurrent" not in how:
        assert out == good
    entry = books(report, "a.out -> b.x").entry
    assert (entry.done, entry.dead_lettered) == (len(good), len(bad))
    assert report.exit == 4 and report.dead_lettered == len(bad)
    letters = stage.dead_letters
    assert sorted(msgspec.msgpack.decode(one.raw) for one in letters) == bad
    assert len({one.message for one in letters}) == len(bad)


@pytest.mark.parametrize("how", WAYS)
def test_it_is_tried_again_as_often_as_the_policy_says(play: Any, how: str) -> None:
    tries: Counter[int] = Counter()

    def fails(message: int) -> bool:
        tries[message] += 1
        return tries[message] <= message % 4

    out: list[int] = []
    report, stage = play(
        {
            "a": numbers(40),
            "b": Part(shaky(fails, how), retry=2),
            "c": collect(out),
            "d": collect([]),
        },
        LINKS,
    )
    assert sorted(out) == [number for number in range(40) if number % 4 != 3]
    assert tries == {number: min(number % 4, 2) + 1 for number in range(40)}
    assert [one.attempts for one in stage.dead_letters] == [3] * 10
    assert report.dead_lettered == 10


@pytest.mark.parametrize("how", WAYS)
def test_a_message_may_be_dropped_instead(play: Any, how: str) -> None:
    out: list[int] = []
    report, stage = play(
        {
            "a": numbers(100),
            "b": Part(shaky(lambda one: one < 10, how), then="drop"),
            "c": collect(out),
            "d": collect([]),
        },
        LINKS,
    )
    assert sorted(out) == list(range(10, 100))
    entry = books(report, "a.out -> b.x").entry
    assert (entry.done, entry.dropped) == (90, {"handler failed": 10})
    assert stage.dead_letters == [] and report.exit == 0


@pytest.mark.parametrize("how", WAYS)
def test_or_the_whole_project_is_stopped(play: Any, how: str, caplog: Any) -> None:
    out: list[int] = []
    seen: list[int] = []

    def fails(message: int) -> bool:
        seen.append(message)
        return message == 50

    report, stage = play(
        {
            "a": numbers(100_000),
            "b": Part(shaky(fails, how), then="stop", retry=1),
            "c": collect(out),
            "d": collect([]),
        },
        LINKS,
        ends="stopped",
    )
    assert report.exit == 3 and report.balanced
    assert "b.0: x: ValueError: no 50" in report.reason
    assert "no 50" in caplog.text and "Traceback" in caplog.text
    assert stage.dead_letters == [] and 50 not in out
    assert seen.count(50) == 2
    if "concurrent" not in how:
        assert seen[-1] == 50, "it handles nothing more"


def test_what_a_dead_letter_says(play: Any) -> None:
    class Sends(Node):
        x = In(int)
        out = Out(dict[str, int])

        def on_x(self, message: int) -> None:
            self.out.send({"n": message}, key=f"k{message}", headers={"h": "ü"})

    class Fails(Node):
        x = In(dict[str, int])

        def on_x(self, message: dict[str, int]) -> None:
            if message["n"] == 5:
                raise KeyError("missing")

    report, stage = play(
        {"a": numbers(10), "b": Sends, "c": Part(Fails, retry=1)}, ["a.out -> b.x", "b.out -> c.x"]
    )
    (letter,) = stage.dead_letters
    assert (letter.link, letter.node, letter.replica) == ("b.out -> c.x", "c", 0)
    assert msgspec.msgpack.decode(letter.raw) == {"n": 5}
    assert (letter.key, letter.headers) == ("k5", {"h": "ü"})
    assert letter.error == "KeyError: 'missing'" and letter.attempts == 2
    assert 'raise KeyError("missing")' in letter.traceback
    assert report.exit == 4


def test_an_error_without_text_and_a_message_that_is_long(play: Any, caplog: Any) -> None:
    class Fails(Node):
        x = In(str)

        def on_x(self, message: str) -> None:
            raise RuntimeError

    _, stage = play({"a": texts("x" * 10_000), "b": Fails}, ["a.out -> b.x"])
    assert stage.dead_letters[0].error == "RuntimeError"
    assert "dead-lettered after 1 try" in caplog.text and "xxx..." in caplog.text
    assert len(caplog.text) < 5000


# -- bytes that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "meta", "coroutine", "list", "group"])
def test_a_message_that_does_not_decode_is_a_dead_letter_at_once(play: Any, way: str) -> None:
    class Mixed(Source):
        out = Out(Any)

        def read(self, position: int | None) -> Any:
            for number in range(position or 0, 60):
                yield ("text" if number % 10 == 4 else number), number + 1

    out: list[int] = []
    report, stage = play(
        {
            "a": Mixed,
            "b": Part(shaky(lambda one: False, way), retry=5),
            "c": collect(out),
            "d": collect([]),
        },
        LINKS,
    )
    assert out == [number for number in range(60) if number % 10 != 4]
    letters = stage.dead_letters
    assert [msgspec.msgpack.decode(one.raw) for one in letters] == ["text"] * 6
    assert all("DecodeError" in one.error and one.attempts == 1 for one in letters)
    assert report.dead_lettered == 6


def test_a_whole_stream_that_does_not_decode(play: Any) -> None:
    """Also when not even the array of messages can be understood."""

    class Raw(Source):
        out = Out(bytes, codec="raw")

        def read(self, position: int | None) -> Any:
            if position is None:
                yield Many([b"\xc1", b"{", b"\xff" * 20]), 1

    got: list[Any] = []
    for codec in ("json", "msgpack"):

        class Reads(Node):
            x = In(int, codec=codec)

            def on_x(self, message: int) -> None:
                got.append(message)

        report, stage = play({"a": Raw, "b": Reads}, ["a.out -> b.x"])
        assert got == [] and report.dead_lettered == 3
        assert len(stage.dead_letters) == 3 * (1 if codec == "json" else 2)


def test_a_message_that_cannot_be_encoded_is_a_dead_letter(play: Any) -> None:
    class Sends(Node):
        x = In(int)
        out = Out(Any)

        def on_x(self, message: int) -> None:
            self.out.send(message)
            if message % 10 == 7:
                self.out.send({"n": object()})
            self.out.send(-message)

    got: list[Any] = []
    report, stage = play(
        {"a": numbers(50), "b": Sends, "c": collect(got, Any)}, ["a.out -> b.x", "b.out -> c.x"]
    )
    assert got == [one for number in range(50) for one in (number, -number)]
    entry = books(report, "b.out -> c.x").entry
    assert (entry.sent, entry.done, entry.dead_lettered) == (105, 100, 5)
    letters = stage.dead_letters
    assert len({one.message for one in letters}) == 5
    assert all("EncodeError" in one.error and b"object" in one.raw for one in letters)
    assert report.exit == 4


def test_a_source_and_a_timer_may_fail_to_encode_too(play: Any) -> None:
    class Bad(Source):
        out = Out(Any)

        def read(self, position: int | None) -> Any:
            for number in range(position or 0, 20):
                yield (object() if number % 5 == 2 else number), number + 1

    got: list[Any] = []
    report, stage = play({"a": Bad, "b": collect(got, Any)}, ["a.out -> b.x"])
    assert got == [number for number in range(20) if number % 5 != 2]
    assert len(stage.dead_letters) == 4 and report.dead_lettered == 4
    assert stage.position("a") == 20


def test_a_message_without_a_key_is_a_dead_letter_on_a_keyed_link(play: Any) -> None:
    class Rows(Source):
        out = Out(dict[str, Any])

        def read(self, position: int | None) -> Any:
            for number in range(position or 0, 40):
                row = {} if number % 8 == 0 else {"user": number if number % 2 else [number]}
                yield row, number + 1

    got: list[Any] = []
    report, stage = play(
        {"a": Rows, "b": Part(collect(got, dict), replicas=2)},
        [link("a.out -> b.x", route="key", by="user")],
    )
    assert sorted(one["user"] for one in got) == list(range(1, 40, 2))
    assert len(stage.dead_letters) == 20 == report.dead_lettered


# -- meta ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "coroutine", "list", "group"])
def test_meta_says_id_key_headers_and_attempts(play: Any, way: str) -> None:
    class Sends(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            key = message if message % 2 else None
            headers = {"n": str(message)} if message % 3 == 0 else None
            self.out.send(message, key=key, headers=headers)

    got: list[tuple[int, Meta]] = []

    class Plain(Node):
        x = In(int)

        def on_x(self, message: int, meta: Meta) -> None:
            got.append((message, meta))

    class Later(Node):
        x = In(int)

        async def on_x(self, message: int, meta: Meta) -> None:
            got.append((message, meta))

    class Listed(Node):
        x = In(int, batch=7)

        def on_x(self, messages: list[int], metas: list[Meta]) -> None:
            got.extend(zip(messages, metas, strict=True))

    class Grouped(Listed):
        x = In(int, batch=7, within=0.001)

    takes = {"plain": Plain, "coroutine": Later, "list": Listed, "group": Grouped}[way]
    play({"a": numbers(100), "b": Sends, "c": takes}, ["a.out -> b.x", "b.out -> c.x"])
    assert [message for message, _ in got] == list(range(100))
    assert len({meta.id for _, meta in got}) == 100
    for message, meta in got:
        assert meta.key == (message if message % 2 else None)
        assert meta.headers == ({"n": str(message)} if message % 3 == 0 else {})
        assert meta.attempts == 0


def test_the_id_of_a_message_is_the_same_when_it_comes_again(stage: Any, on_loop: Any) -> None:
    """Also that of a message made from it, at the node behind."""
    got: dict[str, list[tuple[int, str, int]]] = {"b": [], "c": []}
    held = asyncio.Event()

    class Pass(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, message: int, meta: Meta) -> None:
            got[self.node].append((message, meta.id, meta.attempts))
            self.out.send(message)
            if self.node == "c" and not held.is_set():
                await held.wait()

    async def run() -> None:
        async with stage(
            {"a": numbers(5), "b": Pass, "c": Pass}, ["a.out -> b.x", "b.out -> c.x"]
        ) as built:
            while not got["c"]:
                await asyncio.sleep(0)
            built.crash("b.0")
            built.crash("c.0")
            held.set()
            report = await built.wait()
        assert report.status.value == "drained"
        assert sum(link.entry.redelivered for link in report.links) >= 1

    on_loop(run())
    for node in got:
        ids = {(message, identity) for message, identity, _ in got[node]}
        assert len(ids) == 5 < len(got[node]), node
    # c's first message came again under its id, and says that it had been tried.
    assert [attempts for message, _, attempts in got["c"] if message == 0][0] == 0


def test_ids_differ_between_runs(play: Any) -> None:
    """Else whoever remembers the ids it has seen would take a new message for an old one."""
    seen: set[str] = set()

    class Remembers(Node):
        x = In(int)

        def on_x(self, message: int, meta: Meta) -> None:
            seen.add(meta.id)

    for run in range(1, 3):
        play({"a": numbers(10), "b": Remembers}, ["a.out -> b.x"])
        assert len(seen) == 10 * run


def test_attempts_count_the_deliveries_before(stage: Any, on_loop: Any) -> None:
    attempts: list[int] = []
    stuck = asyncio.Event()

    class Stuck(Node):
        x = In(int)

        async def on_x(self, message: int, meta: Meta) -> None:
            attempts.append(meta.attempts)
            if len(attempts) < 4:
                await stuck.wait()

    async def run() -> Any:
        async with stage({"a": numbers(1), "b": Stuck}, ["a.out -> b.x"]) as built:
            for deaths in range(1, 4):
                while len(attempts) < deaths:
                    await asyncio.sleep(0)
                built.crash("b.0")
            return await built.wait(), built

    report, built = on_loop(run())
    assert attempts == [0, 1, 2, 3]
    assert books(report, "a.out -> b.x").entry.redelivered == 3
    assert [death.replica.name for death in built.deaths] == ["b.0"] * 3
    assert {node.node: node.restarts for node in report.nodes} == {"a": 0, "b": 3}


# -- who may send --------------------------------------------------------------------------------


def test_sends_outside_a_handler_raise(play: Any) -> None:
    errors: dict[str, BaseException] = {}

    def attempt(where: str, send: Any) -> None:
        try:
            send()
        except SendError as error:
            errors[where] = error

    class Sends(Node):
        x = In(int)
        out = Out(int)

        def setup(self) -> None:
            attempt("setup", lambda: self.out.send(1))

        def on_x(self, message: int) -> None:
            thread = threading.Thread(
                target=lambda: attempt("thread", lambda: self.out.send(message))
            )
            thread.start()
            thread.join()
            asyncio.get_running_loop().call_soon(
                lambda: attempt("callback", lambda: self.out.send_many([message]))
            )
            self.late = asyncio.ensure_future(self.later())

        async def later(self) -> None:
            attempt("task", lambda: self.out.send(1, key="k"))

        def teardown(self) -> None:
            attempt("teardown", lambda: self.out.send(1))

    got: list[int] = []
    report, _ = play(
        {"a": numbers(1), "b": Sends, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"]
    )
    assert got == [] and report.exit == 0
    assert set(errors) == {"setup", "thread", "callback", "task", "teardown"}


def test_a_send_error_in_a_handler_fails_its_message(play: Any) -> None:
    class Sends(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            await asyncio.get_running_loop().run_in_executor(None, self.out.send, message)

    _, stage = play(
        {"a": numbers(1), "b": Sends, "c": collect([])}, ["a.out -> b.x", "b.out -> c.x"]
    )
    assert "SendError" in stage.dead_letters[0].error


@pytest.mark.parametrize("place", ["plain", "list", "coroutine", "timer", "slow timer", "finish"])
def test_a_task_that_was_left_behind_may_not_send(play: Any, place: str) -> None:
    """In a node with coroutine handlers, too, where the task inherits the handler's context."""
    outcome: list[str] = []
    tasks: list[Any] = []
    ticked = asyncio.Event()

    class Leaves(Node):
        stateful = True
        x = In(int)
        y = In(int, batch=4)
        z = In(int)
        out = Out(int)

        def leave(self, here: str) -> None:
            if here == place and not tasks:
                tasks.append(asyncio.ensure_future(self.later()))

        async def later(self) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            try:
                self.out.send(99)
            except SendError:
                outcome.append("refused")
            else:
                outcome.append("sent")

        def on_x(self, message: int) -> None:
            self.leave("plain")

        def on_y(self, messages: list[int]) -> None:
            self.leave("list")

        async def on_z(self, message: int) -> None:
            self.leave("coroutine")
            if "timer" in place:
                await ticked.wait()

        def tick(self) -> None:
            self.leave("timer")
            ticked.set()

        async def slow(self) -> None:
            self.leave("slow timer")
            ticked.set()

        async def finish(self) -> None:
            self.leave("finish")

    timer = {"timer": "tick", "slow timer": "slow"}.get(place)
    body = {timer: every(0.001)(Leaves.__dict__[timer])} if timer else {}
    node = type("Leaving", (Leaves,), {"__module__": __name__, **body})
    got: list[int] = []
    play(
        {"a": numbers(1), "b": node, "c": collect(got)},
        ["a.out -> b.x", "a.out -> b.y", "a.out -> b.z", "b.out -> c.x"],
    )
    assert outcome == ["refused"] and got == []


def test_a_handler_may_send_after_it_has_waited(play: Any) -> None:
    got: list[int] = []

    class Waits(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            self.out.send(message)
            await asyncio.sleep(0)
            await self.part(message)

        async def part(self, message: int) -> None:
            await self.out.room()
            self.out.send(-message)
            await asyncio.gather(self.child(message), self.child(message))

        async def child(self, message: int) -> None:
            await asyncio.sleep(0)
            self.out.send(100 + message)

    play(
        {"a": numbers(3, first=1), "b": Waits, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"]
    )
    assert got == [1, -1, 101, 101, 2, -2, 102, 102, 3, -3, 103, 103]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


@pytest.mark.parametrize("error", [ValueError("\udc80"), ValueError("a\0b"), Unprintable()])
def test_an_error_that_is_hard_to_tell_is_told_all_the_same(play: Any, error: Exception) -> None:
    class Fails(Node):
        x = In(int)

        def on_x(self, message: int) -> None:
            if message == 3:
                raise error

    report, stage = play({"a": numbers(5), "b": Fails}, ["a.out -> b.x"])
    assert report.dead_lettered == 1 and stage.deaths == []
    assert type(error).__name__ in stage.dead_letters[0].error


def test_tuples_are_keys_like_any_other(play: Any) -> None:
    keys: list[Any] = []

    class Sends(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message, key=("a", (message, None)))

    class Fails(Node):
        x = In(int)

        def on_x(self, message: int, meta: Meta) -> None:
            keys.append(meta.key)
            raise ValueError

    _, stage = play({"a": numbers(3), "b": Sends, "c": Fails}, ["a.out -> b.x", "b.out -> c.x"])
    expected = [("a", (number, None)) for number in range(3)]
    assert keys == expected
    assert [one.key for one in stage.dead_letters] == expected
