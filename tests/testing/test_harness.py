"""A node alone in a test: it behaves as it does in a project, and time is the test's."""

from __future__ import annotations

import asyncio
import gc
import re
import traceback
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from flowkit import Call, In, Many, Meta, Node, Out, Serve, Sink, Source, every
from flowkit.errors import (
    DecodeError,
    EncodeError,
    HandlerFailed,
    HarnessError,
    ReplicaError,
    SendError,
)
from flowkit.testing import NodeHarness


class Row(msgspec.Struct):
    user: str
    size: int = 0


class Split(Node):
    lines = In(str)
    words = Out(str)
    counts = Out(int)

    def on_lines(self, line: str) -> None:
        for word in line.split():
            self.words.send(word, key=word[0], headers={"n": str(len(word))})
        if "!" in line:
            raise ValueError(f"no {line}")
        self.counts.send(len(line.split()))


# ---------------------------------------------------------------------------- what goes through


def test_what_is_fed_comes_out() -> None:
    assert NodeHarness(Split()).feed("lines", "a b").sent("words") == ["a", "b"]


def test_channels_may_be_named_by_themselves() -> None:
    harness = NodeHarness(Split()).feed(Split.lines, "a b", "c")
    assert harness.sent(Split.words) == ["a", "b", "c"]
    assert harness.take(Split.counts) == [2, 1]
    assert harness.feed("lines", "d").take("counts") == [1]
    assert harness.sent("counts") == []
    assert harness.idle and not harness.ended


def test_keys_headers_and_ids_come_along() -> None:
    def one() -> list[Meta]:
        return NodeHarness(Split()).feed("lines", "one two").metas("words")

    first, second = one()
    assert (first.key, first.headers) == ("o", {"n": "3"})
    assert first.id != second.id
    assert one() == [first, second], "ids are the same each time"


def test_a_handler_learns_what_was_fed_beside_the_message() -> None:
    seen: list[Meta] = []

    class Looks(Node):
        rows = In(Row)

        def on_rows(self, row: Row, meta: Meta) -> None:
            seen.append(meta)

    NodeHarness(Looks()).feed("rows", Row("a"), key=("k", 1), headers={"trace": "1"})
    assert (seen[0].key, seen[0].headers, seen[0].attempts) == (("k", 1), {"trace": "1"}, 0)


def test_a_handler_that_raises_has_sent_nothing_and_the_test_sees_why() -> None:
    harness = NodeHarness(Split())
    with pytest.raises(ValueError, match="no b !") as caught:
        harness.feed("lines", "a", "b !", "c", "d !")
    assert caught.value.__notes__ == ["and 1 more: ValueError('no d !')"]
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "on_lines" and "_many" not in frames
    assert harness.sent("words") == ["a", "c"]
    assert harness.feed("lines", "e").take("words") == ["a", "c", "e"]


def test_messages_are_validated_as_on_a_link() -> None:
    harness = NodeHarness(Split())
    with pytest.raises(DecodeError, match="not str") as caught:
        harness.feed("lines", 5, "good")
    assert caught.value.__notes__ == ["it was fed to 'lines' of Split"]
    assert harness.take("words") == ["good"]


def test_what_is_sent_must_be_what_the_output_carries() -> None:
    class Wrong(Node):
        x = In(int)
        rows = Out(Row)

        def on_x(self, number: int) -> None:
            self.rows.send({"user": number} if number else object())  # type: ignore[arg-type]

    harness = NodeHarness(Wrong())
    with pytest.raises(DecodeError) as caught:
        harness.feed("x", 1)
    assert caught.value.__notes__ == ["Wrong has sent it on 'rows'"]
    with pytest.raises(EncodeError) as unsendable:
        harness.feed("x", 0)
    assert "object object" in unsendable.value.__notes__[0]


def test_codecs_are_the_channels_own() -> None:
    class Turn(Node):
        raw = In(bytes)
        rows = Out(Row, codec="json")
        things = Out(dict, codec="pickle")

        def on_raw(self, data: bytes) -> None:
            self.rows.send(Row(data.decode()))
            self.things.send({"set": {1, 2}})

    harness = NodeHarness(Turn()).feed("raw", b"x")
    assert harness.sent("rows") == [Row("x")]
    assert harness.sent("things") == [{"set": {1, 2}}]


def test_many_messages_keep_their_order() -> None:
    lines = [str(number) for number in range(20_000)]
    assert NodeHarness(Split()).feed("lines", *lines).sent("words") == lines


def test_what_is_fed_together_comes_together() -> None:
    class Sizes(Node):
        x = In(int, batch=100)
        out = Out(int)

        def on_x(self, numbers: list[int]) -> None:
            self.out.send(len(numbers))

    harness = NodeHarness(Sizes()).feed("x", 1, 2, 3).feed("x", 4).feed("x", *range(250))
    assert harness.sent("out") == [3, 1, 100, 100, 50]


# ---------------------------------------------------------------------------- time


class Lists(Node):
    x = In(int, batch=3, within="2s")
    sums = Out(int)

    def on_x(self, numbers: list[int]) -> None:
        self.sums.send(sum(numbers))


def test_lists_fill_and_wait_for_company() -> None:
    harness = NodeHarness(Lists()).feed("x", 1, 2, 3, 4)
    assert harness.take("sums") == [6]
    assert not harness.idle
    assert harness.advance("1.9s").sent("sums") == []
    assert harness.advance(0.2).sent("sums") == [4]
    assert harness.idle


def test_lists_do_not_wait_for_what_cannot_come() -> None:
    assert NodeHarness(Lists()).feed("x", 1).finish().sent("sums") == [1]


def test_coroutines_wait_for_the_time_of_the_test() -> None:
    class Waits(Node):
        x = In(float, concurrency=2)
        out = Out(float)

        async def on_x(self, seconds: float) -> None:
            await asyncio.sleep(seconds)
            self.out.send(seconds)

    harness = NodeHarness(Waits()).feed("x", 3.0, 1.0, 1.0)
    assert harness.sent("out") == [] and not harness.idle
    assert harness.advance(0.9).sent("out") == []
    assert harness.advance(0.2).sent("out") == [1.0]
    assert harness.advance(2).sent("out") == [1.0, 1.0, 3.0]
    assert harness.feed("x", 500.0).finish().sent("out")[-1] == 500.0


def test_what_a_handler_does_in_a_thread_is_waited_for() -> None:
    class Threads(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, number: int) -> None:
            self.out.send(await asyncio.to_thread(pow, number, 2))

    with NodeHarness(Threads()) as harness:
        assert harness.feed("x", 3, 4).sent("out") == [9, 16]


def test_timers_tick_when_time_passes() -> None:
    class Clock(Node):
        stateful = True
        x = In(int)
        out = Out(int)

        def __init__(self) -> None:
            self.sum = 0

        def on_x(self, number: int) -> None:
            self.sum += number

        @every("5s")
        def report(self) -> None:
            self.out.send(self.sum)

        @every(1.9)
        async def more(self) -> None:
            self.sum += 100

    harness = NodeHarness(Clock()).feed("x", 1)
    assert harness.advance("4.9s").sent("out") == []
    assert harness.advance("0.1s").take("out") == [201]
    assert harness.advance("10s").sent("out") == [501, 701]
    assert harness.node.sum == 701


def test_a_timer_alone_is_a_node() -> None:
    class Ticks(Node):
        out = Out(str)

        @every("1m")
        def tick(self) -> None:
            self.out.send("tick")

    assert NodeHarness(Ticks()).advance("1h").finish().sent("out") == ["tick"] * 60


# ---------------------------------------------------------------------------- the error policy


class Flaky(Node):
    x = In(int)
    out = Out(int)

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def on_x(self, number: int) -> None:
        self.out.send(number)
        self.failures -= 1
        if self.failures >= 0:
            raise ValueError("not yet")


def test_tries_are_made_after_their_back_off() -> None:
    harness = NodeHarness(Flaky(2), on_error={"retry": 3}).feed("x", 1)
    assert harness.sent("out") == [] and harness.node.failures == 1
    assert harness.advance("100ms").sent("out") == [] and harness.node.failures == 0
    assert harness.advance("200ms").sent("out") == [1]
    assert harness.dead_letters == []


def test_without_a_policy_nothing_is_tried_again() -> None:
    with pytest.raises(ValueError, match="not yet"):
        NodeHarness(Flaky(1)).feed("x", 1)


def test_dead_letters_are_kept() -> None:
    harness = NodeHarness(Flaky(1), on_error={"then": "dead-letter"})
    harness.feed("x", 7, key="k").finish()
    (letter,) = harness.dead_letters
    assert (letter.number, letter.raw, letter.key, letter.attempts) == (1, b"\x07", "k", 1)
    assert letter.error == "ValueError: not yet" and "on_x" in letter.traceback


def test_what_is_dropped_is_gone() -> None:
    harness = NodeHarness(Flaky(1), on_error={"then": "drop"}).feed("x", 1, 2)
    assert harness.sent("out") == [2] and harness.dead_letters == []


def test_a_policy_may_stop_the_node() -> None:
    harness = NodeHarness(Flaky(1), on_error={"then": "stop"}).feed("x", 1, 2)
    assert harness.ended and harness.sent("out") == []
    with pytest.raises(HarnessError, match=r"Flaky has ended .*flaky\.0: x: ValueError: not yet"):
        harness.feed("x", 3)


# ---------------------------------------------------------------------------- hooks


def test_the_hooks_come_in_order() -> None:
    story: list[str] = []

    class Whole(Node):
        stateful = True
        x = In(int)
        out = Out(str)

        async def setup(self) -> None:
            await asyncio.sleep(0)
            story.append(f"setup {self.replica}/{self.replicas}")

        def on_x(self, number: int) -> None:
            story.append(f"message {number}")

        def finish(self) -> None:
            self.out.send("last words")
            story.append("finish")

        def teardown(self) -> None:
            story.append("teardown")

    harness = NodeHarness(Whole(), replica=1, replicas=3).feed("x", 5)
    assert story == ["setup 1/3", "message 5"]
    assert harness.finish().sent("out") == ["last words"]
    assert story[2:] == ["finish", "teardown"] and harness.ended
    harness.close()
    assert len(story) == 4


@pytest.mark.parametrize("dropped", [True, False])
def test_teardown_runs_also_when_the_test_just_ends(dropped: bool) -> None:
    story: list[str] = []

    class Ends(Node):
        x = In(int)

        async def on_x(self, number: int) -> None:
            await asyncio.sleep(number)

        async def teardown(self) -> None:
            await asyncio.sleep(1)
            story.append("teardown")

    harness = NodeHarness(Ends()).feed("x", 100)
    if dropped:
        del harness
        gc.collect()
    else:
        with harness:
            pass
        harness.close()
        with pytest.raises(HarnessError, match="Ends has ended and takes no more"):
            harness.feed("x", 1)
    assert story == ["teardown"]


@pytest.mark.parametrize("hook", ["setup", "finish", "teardown", "tick"])
def test_a_hook_that_raises_is_seen(hook: str) -> None:
    def wrong(self: Node) -> None:
        raise OSError(f"{hook} failed")

    body = {"x": In(int), "on_x": lambda self, x: None, hook: wrong}
    if hook == "tick":
        body["tick"] = every("1s")(wrong)
    node = type("Wrong", (Node,), body)()
    with pytest.raises(OSError, match=f"{hook} failed"):
        NodeHarness(node).feed("x", 1).advance("1s").finish()


def test_a_node_that_forgets_to_say_that_it_is_stateful_is_told() -> None:
    class Forgets(Split):
        def finish(self) -> None:
            self.words.send("last")

    with pytest.raises(ReplicaError, match="declare it: stateful = True"):
        NodeHarness(Forgets()).finish()


def test_what_is_left_behind_may_not_send() -> None:
    caught: list[Exception] = []

    class Leaves(Node):
        x = In(int)
        out = Out(int)

        async def on_x(self, number: int) -> None:
            self.task = asyncio.create_task(self.later(number))

        async def later(self, number: int) -> None:
            await asyncio.sleep(1)
            try:
                self.out.send(number)
            except SendError as error:
                caught.append(error)

    assert NodeHarness(Leaves()).feed("x", 1).advance(2).sent("out") == []
    assert len(caught) == 1


# ---------------------------------------------------------------------------- sinks and sources


class Keep(Sink):
    x = In(int, batch=10)

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.kept: list[int] = []

    def on_x(self, numbers: list[int]) -> None:
        self.rows += numbers

    async def commit(self) -> None:
        await asyncio.sleep(1)
        self.kept = list(self.rows)


def test_a_sink_is_done_when_it_has_committed() -> None:
    harness = NodeHarness(Keep()).feed("x", 1, 2)
    assert harness.node.kept == [] and not harness.idle
    harness.advance(1)
    assert harness.node.kept == [1, 2] and harness.idle


def test_a_commit_that_fails_is_seen() -> None:
    class Full(Sink):
        x = In(int)

        def on_x(self, number: int) -> None: ...

        def commit(self) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        NodeHarness(Full()).feed("x", 1)


class Count(Source):
    numbers = Out(int)

    def __init__(self, stop: int | None = 10) -> None:
        self.stop = stop
        self.committed: list[int] = []

    def read(self, position: int | None) -> Iterator[tuple[int | Many[int], int]]:
        number = position or 0
        while number != self.stop:
            number += 1
            yield number, number

    async def commit(self, position: int) -> None:
        self.committed.append(position)


def test_a_source_reads_to_its_end() -> None:
    harness = NodeHarness(Count()).read()
    assert harness.sent("numbers") == list(range(1, 11))
    assert harness.ended and harness.position == 10
    assert harness.node.committed[-1] == 10


def test_a_source_goes_on_from_a_position() -> None:
    assert NodeHarness(Count()).read(7).sent(Count.numbers) == [8, 9, 10]


def test_a_source_without_an_end_is_ended() -> None:
    harness = NodeHarness(Count(None)).read(until=100)
    sent = harness.sent("numbers")
    assert 100 <= len(sent) <= 5000 and sent == list(range(1, len(sent) + 1))
    assert harness.ended and harness.position == len(sent)


def test_a_source_waits_for_the_time_of_the_test() -> None:
    class Slow(Source):
        out = Out(int)

        async def read(self, position: int | None) -> AsyncIterator[tuple[int, int]]:
            for number in range(position or 0, 5):
                await asyncio.sleep(1)
                yield number, number + 1

    harness = NodeHarness(Slow()).read()
    assert harness.advance("2s").sent("out") == [0, 1]
    assert harness.position == 2 and not harness.ended
    assert harness.finish().sent("out") == [0, 1]


def test_a_stream_without_positions() -> None:
    class Streams(Node):
        out = Out(int)

        async def run(self) -> None:
            for number in range(3):
                await self.out.room()
                self.out.send(number)

    harness = NodeHarness(Streams()).read()
    assert harness.sent("out") == [0, 1, 2] and harness.ended and harness.position is None


# ---------------------------------------------------------------------------- a death


def test_what_was_in_hand_at_a_death_is_delivered_again_under_its_id() -> None:
    seen: list[tuple[int, str, int]] = []

    class Holds(Node):
        x = In(int)
        out = Out(int)

        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        async def on_x(self, number: int, meta: Meta) -> None:
            seen.append((number, meta.id, meta.attempts))
            self.out.send(number)
            await asyncio.sleep(self.seconds)

    harness = NodeHarness(Holds(0)).feed("x", 1).advance(1)
    assert harness.sent("out") == [1]
    harness = NodeHarness(Holds(5)).feed("x", 2)
    assert harness.sent("out") == []
    first = harness.node
    assert harness.crash(Holds(0)).advance(0).sent("out") == [2]
    assert harness.node is not first
    (_, once, again) = seen
    assert once[:2] == again[:2] and (once[2], again[2]) == (0, 1)
    assert harness.feed("x", 3).finish().sent("out") == [2, 3]
    with pytest.raises(HarnessError, match="cannot crash any more"):
        harness.crash(Holds(0))


# ---------------------------------------------------------------------------- questions


class Lookup(Node):
    users = Serve(str, Row)
    asked = Out(str)

    async def on_users(self, name: str, meta: Meta) -> Row:
        await asyncio.sleep(1)
        if name == "nobody":
            raise KeyError(name)
        self.asked.send(name, headers=meta.headers)
        return Row(name, len(name))


class Greet(Node):
    names = In(str, concurrency=2)
    users = Call(str, Row, timeout="5s")
    greetings = Out(str)

    async def on_names(self, name: str) -> None:
        user = await self.users.ask(name)
        self.greetings.send(f"{user.user} of {user.size}")


def test_a_node_that_serves_is_asked() -> None:
    with NodeHarness(Lookup()) as harness:
        assert harness.ask("users", "bob", headers={"n": "1"}) == Row("bob", 3)
        assert harness.ask(Lookup.users, "ann") == Row("ann", 3)
        assert harness.sent("asked") == ["bob", "ann"]
        assert harness.metas("asked")[0].headers == {"n": "1"}
        with pytest.raises(HandlerFailed, match="KeyError"):
            harness.ask("users", "nobody")
        with pytest.raises(HarnessError, match=r"'users' of Lookup serves; ask\('users', question"):
            harness.feed("users", "bob")


def test_a_node_that_asks_is_answered() -> None:
    async def later(name: str) -> Row:
        await asyncio.sleep(2)
        return Row(name, 7)

    harness = NodeHarness(Greet(), answers={"users": lambda name: Row(name, 5)})
    assert harness.feed("names", "bob", "ann").sent("greetings") == ["bob of 5", "ann of 5"]
    harness = NodeHarness(Greet(), answers={"users": later}).feed("names", "bob")
    assert harness.sent("greetings") == []
    assert harness.advance("2s").sent("greetings") == ["bob of 7"]
    with pytest.raises(HandlerFailed, match="nobody answers: NodeHarness"):
        NodeHarness(Greet()).feed("names", "bob")
    with pytest.raises(HarnessError, match="Greet has no call 'user'; did you mean 'users'"):
        NodeHarness(Greet(), answers={"user": later})


def test_questions_in_a_coroutine() -> None:
    async def test() -> None:
        async with NodeHarness(Lookup()) as harness:
            assert await harness.ask("users", "bob") == Row("bob", 3)

    asyncio.run(test())


# ---------------------------------------------------------------------------- the loop of a test


def test_in_a_coroutine_it_is_awaited() -> None:
    class Asks(Node):
        x = In(int, concurrency=5)
        out = Out(int)

        async def on_x(self, number: int) -> None:
            ready = asyncio.Event()
            asyncio.get_running_loop().call_later(0.01, ready.set)
            await ready.wait()
            if number < 0:
                raise ValueError("negative")
            self.out.send(number)

    async def test() -> None:
        async with NodeHarness(Asks()) as harness:
            assert (await harness.feed("x", 1, 2, 3)).sent("out") == [1, 2, 3]
            harness.feed("x", 4)
            with pytest.raises(HarnessError, match="await what was fed"):
                harness.sent("out")
            await harness
            assert harness.take("out") == [1, 2, 3, 4]
            with pytest.raises(ValueError, match="negative"):
                await harness.feed("x", -1)
            with pytest.raises(HarnessError, match="time is not the test's"):
                harness.advance(1)
            with pytest.raises(HarnessError, match="await aclose"):
                harness.close()
            await harness.finish()
            assert harness.ended
        read = await NodeHarness(Count()).read()
        assert read.sent("numbers") == list(range(1, 11))
        endless = await NodeHarness(Count(None)).read(until=20)
        assert len(endless.sent("numbers")) >= 20
        # Dropped in the middle: it ends with the loop.
        NodeHarness(Split()).feed("lines", "a")
        await asyncio.sleep(0)

    asyncio.run(test())


def test_what_never_ends_is_named() -> None:
    class Hangs(Node):
        x = In(int)

        async def on_x(self, number: int) -> None:
            await asyncio.Event().wait()

    with pytest.raises(HarnessError, match="Hangs has not finished in 600 s") as c:
        NodeHarness(Hangs()).feed("x", 1).finish()
    assert re.search(r"1 batch in hand\n .*on_x\n +await asyncio", str(c.value))


def test_a_harness_may_be_dropped_while_another_loop_runs() -> None:
    ended: list[str] = []

    class Ends(Split):
        def teardown(self) -> None:
            ended.append("teardown")

    harness = NodeHarness(Ends()).feed("lines", "a")

    async def test() -> None:
        nonlocal harness
        with pytest.raises(HarnessError, match="an event loop is running here already"):
            harness.feed("lines", "b")
        del harness
        gc.collect()
        assert ended == ["teardown"]
        await asyncio.sleep(0)

    asyncio.run(test())


def test_io_needs_another_loop() -> None:
    class Connects(Node):
        x = In(int)

        async def on_x(self, port: int) -> None:
            await asyncio.open_connection("127.0.0.1", port)

    with pytest.raises(HarnessError, match=r"sock_connect\(\) needs an event loop that does I/O"):
        NodeHarness(Connects()).feed("x", 1)


# ---------------------------------------------------------------------------- what cannot be


@dataclass
class Odd(Exception):
    """An exception that has no hash."""

    text: str


def test_an_exception_is_raised_whatever_it_is() -> None:
    class Fails(Node):
        x = In(int)

        def on_x(self, number: int) -> None:
            raise Odd(str(number))

    with pytest.raises(Odd):
        NodeHarness(Fails()).feed("x", 1, 1)


WRONG: dict[str, tuple[Any, str]] = {
    "input": (
        lambda h: h.feed("line", "a"),
        "Split has no input 'line'; did you mean 'lines'?",
    ),
    "output": (lambda h: h.sent("word"), "Split has no output 'word'; did you mean 'words'?"),
    "an output is no input": (
        lambda h: h.feed(Split.words, "a"),
        "Split has no input 'words'; there is 'lines'",
    ),
    "no source": (lambda h: h.read(), "Split has inputs; feed() it"),
    "after its end": (
        lambda h: h.finish().feed("lines", "a"),
        "Split has ended and takes no more; build another harness",
    ),
    "class": (lambda h: NodeHarness(Split), "a harness takes an object: NodeHarness(Split(...))"),
    "other object": (lambda h: NodeHarness("x"), "a harness takes an object: NodeHarness(a node)"),
    "policy": (
        lambda h: NodeHarness(Split(), on_error={"retries": 1}),
        "on_error has no 'retries'; there is 'retry' and 'then'",
    ),
    "fate": (
        lambda h: NodeHarness(Split(), on_error={"then": "ignore"}),
        "on_error: then: 'ignore' is none of dead-letter, drop, stop",
    ),
    "link": (
        lambda h: NodeHarness(Split(), links={"line": {}}),
        "Split has no input 'line'; did you mean 'lines'?",
    ),
    "field of a link": (
        lambda h: NodeHarness(Split(), links={"lines": {"to": "x"}}),
        "a link has no 'to' here; there is route, by, codec, delivery, when_full, window",
    ),
    "source that reads": (
        lambda h: NodeHarness(Count()).read().read(),
        "Count has begun to read already; build another harness",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said_in_one_line(name: str) -> None:
    ask, text = WRONG[name]
    with pytest.raises(HarnessError) as caught:
        ask(NodeHarness(Split()))
    assert str(caught.value) == text


def test_links_are_as_a_topology_would_have_them() -> None:
    order: list[str] = []

    class Keyed(Node):
        rows = In(Row, concurrency=10)

        async def on_rows(self, row: Row) -> None:
            await asyncio.sleep(row.size)
            order.append(f"{row.user}{row.size}")

    rows = [Row("a", 3), Row("a", 1), Row("b", 2)]
    links = {"rows": {"route": "key", "by": "user"}}
    NodeHarness(Keyed(), links=links).feed("rows", *rows).advance(10)
    assert order == ["b2", "a3", "a1"]
