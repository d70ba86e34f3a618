"""Questions and answers between the nodes of a project: `Call` and `Serve`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from flowkit import Call, In, Meta, Node, Out, Serve
from flowkit.errors import (
    DecodeError,
    EncodeError,
    HandlerFailed,
    RequestError,
    RequestTimeout,
    SendError,
    ServerLost,
)
from tests.runtime.stage import Part, books, collect, link, numbers

ASKS = link("a.square -> s.square", pattern="request")


class Squares(Node):
    square = Serve(int, int)

    def on_square(self, number: int) -> int:
        return number * number


def client(run: Any, **options: Any) -> type[Node]:
    """A node whose `run` is `run(self)`, and asks at `square`."""

    class Client(Node):
        square = Call(int, int, **options)

        async def run(self) -> None:
            await run(self)

    return Client


def test_questions_of_handlers_are_answered_by_all_servers(play: Any) -> None:
    got: list[int] = []
    served: set[int] = set()

    class Asks(Node):
        x = In(int, concurrency=8)
        out = Out(int)
        square = Call(int, int)

        async def on_x(self, number: int) -> None:
            self.out.send(await self.square.ask(number))

    class Serves(Squares):
        def on_square(self, number: int) -> int:
            served.add(self.replica)
            return number * number

    report, _ = play(
        {"n": numbers(200), "a": Part(Asks, replicas=2), "s": Part(Serves, replicas=3),
         "c": collect(got)},
        ["n.out -> a.x", "a.out -> c.x", ASKS],
    )  # fmt: skip
    assert sorted(got) == [number * number for number in range(200)]
    assert served == {0, 1, 2}
    entry = books(report, "a.square -> s.square").entry
    assert (entry.sent, entry.delivered, entry.done, entry.dropped) == (200, 200, 200, {})


class Point(msgspec.Struct):
    x: int
    y: int


def test_coroutine_servers_answer_side_by_side_and_in_any_order(play: Any) -> None:
    order: list[int] = []

    class Serves(Node):
        square = Serve(Point, dict[str, int], concurrency=3)

        def __init__(self) -> None:
            self.waiting: list[asyncio.Event] = []

        async def on_square(self, point: Point, meta: Meta) -> dict[str, int]:
            assert meta.key == "k" and meta.headers == {"h": str(point.x)} and meta.id
            mine = asyncio.Event()
            self.waiting.append(mine)
            if len(self.waiting) == 3:
                self.waiting[2].set()  # the last is first
            await mine.wait()
            self.waiting.pop()
            if self.waiting:
                self.waiting[-1].set()
            return {"x": point.x, "y": point.y}

    class Asks(Node):
        square = Call(Point, dict[str, int])

        async def run(self) -> None:
            async def ask(number: int) -> None:
                answer = await self.square.ask(
                    Point(number, -number), key="k", headers={"h": str(number)}
                )
                assert answer == {"x": number, "y": -number}
                order.append(number)

            await asyncio.gather(*(ask(number) for number in range(3)))

    play({"a": Asks, "s": Serves}, [ASKS])
    assert order == [2, 1, 0]


@pytest.mark.parametrize("later", [False, True], ids=["plain", "coroutine"])
def test_a_handler_that_raises_is_told_to_the_asker_and_has_sent_nothing(
    play: Any, later: bool, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[BaseException] = []
    got: list[int] = []

    class Serves(Node):
        square = Serve(int, int)
        out = Out(int)

        def on_square(self, number: int) -> int:
            self.out.send(number)
            if number % 2:
                raise ValueError(f"{number} is odd")
            return number

    class Later(Serves):
        async def on_square(self, number: int) -> int:  # type: ignore[override]
            await asyncio.sleep(0)
            return Serves.on_square(self, number)

    async def run(self: Any) -> None:
        for number in range(4):
            try:
                assert await self.square.ask(number) == number
            except HandlerFailed as error:
                told.append(error)

    report, stage = play(
        {"a": client(run), "s": Later if later else Serves, "c": collect(got)},
        [ASKS, "s.out -> c.x"],
    )
    assert [str(error) for error in told] == [
        "s.0: ValueError: 1 is odd",
        "s.0: ValueError: 3 is odd",
    ]
    assert got == [0, 2] and not stage.dead_letters
    entry = books(report, "a.square -> s.square").entry
    assert (entry.sent, entry.done, entry.dropped) == (4, 2, {"request failed": 2})
    assert report.exit == 0
    assert "the asker is told" in caplog.text


def test_an_answer_leaves_when_what_its_handler_has_sent_is_done(play: Any) -> None:
    got: list[int] = []
    seen: list[list[int]] = []

    class Serves(Node):
        square = Serve(int, int)
        out = Out(int)

        def on_square(self, number: int) -> int:
            self.out.send(number)
            return number

    async def run(self: Any) -> None:
        for number in range(3):
            await self.square.ask(number)
            seen.append(list(got))

    play({"a": client(run), "s": Serves, "c": collect(got)}, [ASKS, "s.out -> c.x"])
    assert seen == [[0], [0, 1], [0, 1, 2]]


def test_what_does_not_fit_is_told_to_whom_it_concerns(play: Any) -> None:
    told: list[BaseException] = []

    class Serves(Node):
        square = Serve(Any, Any)

        def on_square(self, what: Any) -> Any:
            return object() if what == 1 else "no number"

    class Asks(Node):
        square = Call(Any, int)

        async def run(self) -> None:
            for what in (object(), 1, 2):
                try:
                    await self.square.ask(what)
                except Exception as error:
                    told.append(error)

    play({"a": Asks, "s": Serves}, [ASKS])
    assert [type(error) for error in told] == [EncodeError, HandlerFailed, DecodeError]


def test_a_timeout_counts_while_nobody_is_free_and_while_a_server_works(play: Any) -> None:
    told: list[str] = []
    given_up = asyncio.Event()

    class Slow(Node):
        square = Serve(int, int)

        async def on_square(self, number: int) -> int:
            if number == 1:
                await given_up.wait()
            return number

        def teardown(self) -> None:
            told.append("torn down")

    async def run(self: Any) -> None:
        results = await asyncio.gather(
            self.square.ask(1, timeout=0.05), self.square.ask(1, timeout="0.05s"),
            return_exceptions=True,
        )  # fmt: skip
        given_up.set()
        told.extend(str(one) for one in results)
        assert all(isinstance(one, RequestTimeout) and isinstance(one, TimeoutError)
                   for one in results)  # fmt: skip
        assert await self.square.ask(2, timeout=10) == 2

    report, _ = play({"a": client(run), "s": Slow}, [ASKS])
    assert told == [
        "no answer within 0.05 s: s.0 has it in hand",
        "no answer within 0.05 s: no replica of s was free",
        "torn down",
    ]
    entry = books(report, "a.square -> s.square").entry
    assert (entry.sent, entry.done, entry.dropped) == (3, 1, {"timed out": 2})
    assert report.exit == 0


@pytest.mark.parametrize("retries", [0, 1])
def test_a_server_that_dies_with_a_question_in_hand(stage: Any, on_loop: Any, retries: int) -> None:
    """It is a named error, or, if the asker allows it, the answer of another."""
    told: list[Any] = []
    hands: list[tuple[int, str]] = []

    async def whole() -> None:
        in_hand = asyncio.Event()

        class Serves(Node):
            square = Serve(int, int)

            async def on_square(self, number: int, meta: Meta) -> int:
                hands.append((self.replica, meta.id))
                if len(hands) == 1:
                    in_hand.set()
                    await asyncio.Event().wait()
                return number * number

        async def run(self: Any) -> None:
            try:
                told.append(await self.square.ask(7, retries=retries))
            except ServerLost as error:
                told.append(error)

        parts = {"a": client(run), "s": Part(Serves, replicas=2)}
        async with stage(parts, [ASKS]) as one:
            await asyncio.wait_for(in_hand.wait(), 10)
            one.crash(f"s.{hands[0][0]}")
            report = await one.wait()
            entry = books(report, "a.square -> s.square").entry
            assert report.exit == 0 and report.balanced and entry.in_flight == 0
            if retries:
                assert (entry.done, entry.redelivered, entry.dropped) == (1, 1, {})
            else:
                assert (entry.done, entry.dropped) == (0, {"server lost": 1})

    on_loop(whole())
    if retries:
        assert told == [49]
        (first, id), (second, again) = hands
        assert first != second and id == again
    else:
        assert str(told[0]) == f"s.{hands[0][0]} died with the question in hand"
        assert told[0].server == f"s.{hands[0][0]}" and len(hands) == 1


def test_a_question_waits_for_a_server_that_is_started_again(stage: Any, on_loop: Any) -> None:
    told: list[int] = []

    async def whole() -> None:
        asked = asyncio.Event()

        async def run(self: Any) -> None:
            told.append(await self.square.ask(2))
            asked.set()
            while not gone:
                await asyncio.sleep(0.001)
            told.append(await self.square.ask(3))

        gone: list[bool] = []
        async with stage({"a": client(run), "s": Squares}, [ASKS]) as one:
            await asyncio.wait_for(asked.wait(), 10)
            one.crash("s.0")
            gone.append(True)
            report = await one.wait()
            assert report.exit == 0

    on_loop(whole())
    assert told == [4, 9]


def test_servers_may_ask_others_and_leave_after_their_clients(play: Any) -> None:
    story: list[str] = []

    class Broker(Node):
        square = Serve(int, int, concurrency=4)
        work = Call(int, int)

        async def on_square(self, number: int) -> int:
            return await self.work.ask(number)

        def finish(self) -> None:
            story.append("broker")

    class Last(Node):
        work = Serve(int, int)

        def on_work(self, number: int) -> int:
            return -number

        def finish(self) -> None:
            story.append("worker")

    async def run(self: Any) -> None:
        answers = await asyncio.gather(*(self.square.ask(number) for number in range(50)))
        story.append(f"client {answers == [-number for number in range(50)]}")

    play(
        {"a": client(run), "s": Broker, "w": Part(Last, replicas=2)},
        [ASKS, link("s.work -> w.work", pattern="request")],
    )
    assert story == ["client True", "broker", "worker", "worker"]


def test_an_ask_that_is_cancelled_is_booked(play: Any) -> None:
    in_hand, given_up = asyncio.Event(), asyncio.Event()

    class Slow(Node):
        square = Serve(int, int)

        async def on_square(self, number: int) -> int:
            in_hand.set()
            await given_up.wait()
            return number

    async def run(self: Any) -> None:
        task = asyncio.create_task(self.square.ask(1))
        await in_hand.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        given_up.set()

    report, _ = play({"a": client(run), "s": Slow}, [ASKS])
    entry = books(report, "a.square -> s.square").entry
    assert (entry.sent, entry.done, entry.dropped) == (1, 0, {"cancelled": 1})


def test_who_asks_when_the_stream_has_ended_is_refused(play: Any) -> None:
    told: list[str] = []

    class Late(Node):
        square = Call(int, int)

        async def run(self) -> None:
            assert await self.square.ask(2) == 4

        async def finish(self) -> None:
            assert await self.square.ask(3) == 9

        async def teardown(self) -> None:
            try:
                await self.square.ask(1)
            except SendError as error:
                told.append(str(error))

    play({"a": Late, "s": Squares}, [ASKS])
    assert told == ["square.ask(): the stream of this replica has ended"]


def test_a_replica_that_ends_tells_its_askers(stage: Any, on_loop: Any) -> None:
    told: list[BaseException] = []

    async def whole() -> None:
        nodes: list[Any] = []
        ready = asyncio.Event()

        async def run(self: Any) -> None:
            nodes.append(self)
            ready.set()
            await asyncio.Event().wait()

        class Never(Node):
            square = Serve(int, int)

            async def on_square(self, number: int) -> int:
                await asyncio.Event().wait()
                return 0

        async with stage({"a": client(run), "s": Never}, [ASKS]) as one:
            await asyncio.wait_for(ready.wait(), 10)
            asking = asyncio.ensure_future(nodes[0].square.ask(1))
            await asyncio.sleep(0)
            one.supervisor.kill()
            try:
                await asyncio.wait_for(asking, 10)
            except RequestError as error:
                told.append(error)
            await one.wait()

    on_loop(whole())
    assert str(told[0]) == "the replica that asked has ended before the answer came"


def test_a_node_that_nobody_runs_is_told_who_answers() -> None:
    async def later(number: int) -> int:
        return -number

    async def whole() -> None:
        node = client(None)()
        with pytest.raises(SendError, match="answer_with"):
            await node.square.ask(1)  # type: ignore[attr-defined]
        node.square.answer_with(lambda number: number + 1)  # type: ignore[attr-defined]
        assert await node.square.ask(1) == 2  # type: ignore[attr-defined]
        node.square.answer_with(later)  # type: ignore[attr-defined]
        assert await node.square.ask(1) == -1  # type: ignore[attr-defined]

    asyncio.run(whole())


def test_servers_are_scaled_and_restarted_while_they_are_asked(stage: Any, on_loop: Any) -> None:
    """Nobody who asks notices: neither a handler nor a `run()`."""
    served: set[int] = set()
    answers: list[int] = []

    async def whole() -> None:
        over = asyncio.Event()

        class Serves(Node):
            square = Serve(int, int, concurrency=2)

            async def on_square(self, number: int) -> int:
                served.add(self.replica)
                await asyncio.sleep(0)
                return number * number

        class Asks(Node):
            x = In(int, concurrency=4)
            square = Call(int, int)

            async def on_x(self, number: int) -> None:
                answers.append(await self.square.ask(number))

        class Runs(Node):
            out = Out(int)
            square = Call(int, int)

            async def run(self) -> None:
                number = 0
                while not over.is_set():
                    assert await self.square.ask(number) == number * number
                    self.out.send(number)
                    await self.out.room()
                    number += 1

        links = [link("r.square -> s.square", pattern="request"), ASKS, "r.out -> a.x"]
        async with stage({"r": Runs, "a": Asks, "s": Serves}, links) as one:
            await asyncio.wait_for(one.all_ready.wait(), 10)
            for step in (
                one.supervisor.scale({"s": 3}),
                one.supervisor.restart("s"),
                one.supervisor.scale({"s": 1, "a": 2}),
                one.supervisor.restart("a"),
            ):
                await asyncio.wait_for(step, 10)
                before = len(answers)
                while len(answers) < before + 20:
                    await asyncio.sleep(0)
            over.set()
            report = await one.wait()
        assert report.exit == 0 and report.balanced
        for name in ("r.square -> s.square", "a.square -> s.square"):
            entry = books(report, name).entry
            assert entry.sent == entry.done == entry.delivered > 20 and not entry.dropped

    on_loop(whole())
    assert sorted(answers) == [number * number for number in range(len(answers))]
    assert served == {0, 1, 2}


@pytest.mark.parametrize("later", [False, True], ids=["plain", "coroutine"])
def test_a_trace_goes_on_through_a_question_to_what_its_server_sends(
    play: Any, later: bool
) -> None:
    traces = [f"00-{number:032x}-{1:016x}-01" for number in range(1, 4)]
    got: list[tuple[int, str]] = []

    class Begins(Node):
        out = Out(int)

        async def run(self) -> None:
            for number, trace in enumerate(traces):
                self.out.send(number, headers={"traceparent": trace})

    class Asks(Node):
        x = In(int, concurrency=3)
        square = Call(int, int)

        async def on_x(self, number: int) -> None:
            await self.square.ask(number, headers={"mine": "too"})

    class Serves(Node):
        square = Serve(int, int)
        out = Out(int)

        def on_square(self, number: int, meta: Meta) -> int:
            assert meta.headers["mine"] == "too"
            self.out.send(number)
            return number

    class Later(Serves):
        async def on_square(self, number: int, meta: Meta) -> int:  # type: ignore[override]
            return Serves.on_square(self, number, meta)

    class Ends(Node):
        x = In(int)

        def on_x(self, number: int, meta: Meta) -> None:
            got.append((number, meta.headers["traceparent"]))

    play(
        {"b": Begins, "a": Asks, "s": Later if later else Serves, "e": Ends},
        ["b.out -> a.x", ASKS, "s.out -> e.x"],
    )
    assert sorted(got) == list(enumerate(traces))


@pytest.mark.parametrize("what", ["ask", "deliver"])
def test_nobody_is_there_before_setup_has_returned(play: Any, what: str) -> None:
    told: list[str] = []

    class Early(Node):
        square = Call(int, int)
        out = Out(int)

        async def setup(self) -> None:
            try:
                await (self.square.ask(1) if what == "ask" else self.out.deliver(1))
            except SendError as error:
                told.append(str(error))

        async def run(self) -> None:
            assert await self.square.ask(2) == 4
            await self.out.deliver(1)

    play({"a": Early, "s": Squares, "c": collect([])}, [ASKS, "a.out -> c.x"])
    assert len(told) == 1 and "in setup()" in told[0]
