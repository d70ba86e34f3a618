"""From a source through handlers to a sink: what arrives, in which order, and the books."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from flowkit import In, Many, Node, Out, Source
from tests.runtime.stage import Part, books, collect, link, numbers, texts


class Twice(Node):
    x = In(int)
    out = Out(int)

    def on_x(self, message: int) -> None:
        self.out.send_many([2 * message, 2 * message + 1])


class Split(Node):
    """Even numbers one way, odd ones the other; tens both ways."""

    x = In(int)
    even = Out(int)
    odd = Out(int)

    def on_x(self, message: int) -> None:
        if message % 2 == 0:
            self.even.send(message)
        if message % 2 or message % 10 == 0:
            self.odd.send(message)


@pytest.mark.parametrize("count", [0, 1, 2, 64, 4096, 20_000])
def test_every_message_arrives_once_in_order(play: Any, count: int) -> None:
    got: list[int] = []
    report, _ = play({"a": numbers(count), "b": collect(got)}, ["a.out -> b.x"])
    assert got == list(range(count))
    entry = books(report, "a.out -> b.x").entry
    assert (entry.sent, entry.done, entry.delivered) == (count, count, count)
    assert report.exit == 0
    assert {(node.node, node.state, node.restarts) for node in report.nodes} == {
        ("a", "done", 0),
        ("b", "done", 0),
    }


def test_exactly_one_batch(play: Any) -> None:
    """A stream that is a single root, whatever it is cut into."""

    class One(Source):
        out = Out(int)

        def read(self, position: int | None) -> Any:
            if position is None:
                yield Many(list(range(500))), 1

    got: list[int] = []
    report, stage = play({"a": One, "b": collect(got)}, ["a.out -> b.x"])
    assert got == list(range(500)) and report.exit == 0
    assert stage.position("a") == 1


def test_an_empty_stream_still_finishes_every_node(play: Any) -> None:
    ended: list[str] = []

    class Ends(Node):
        stateful = True
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message)

        def finish(self) -> None:
            ended.append(f"{self.node}.{self.replica}")
            self.out.send(-1)

    got: list[int] = []
    report, _ = play(
        {"a": numbers(0), "b": Part(Ends, replicas=2), "c": Ends, "d": collect(got)},
        ["a.out -> b.x", "b.out -> c.x", "c.out -> d.x"],
    )
    assert sorted(ended) == ["b.0", "b.1", "c.0"]
    assert ended[-1] == "c.0" and got == [-1, -1, -1]
    assert report.exit == 0


def test_a_chain_of_pools(play: Any) -> None:
    got: list[int] = []
    report, _ = play(
        {
            "a": numbers(3000),
            "b": Part(Twice, replicas=3),
            "c": Part(Twice, replicas=2),
            "d": collect(got),
        },
        ["a.out -> b.x", "b.out -> c.x", "c.out -> d.x"],
    )
    assert Counter(got) == Counter(range(12_000))
    assert books(report, "c.out -> d.x").entry.done == 12_000
    assert {node.node: node.handled for node in report.nodes}["d"] == 12_000


def test_a_slow_pool_shares_the_work(play: Any) -> None:
    """No replica takes all: handlers that wait leave the rest to the others."""
    arrived = asyncio.Event()
    by: Counter[int] = Counter()

    class Waits(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            by[self.replica] += 1
            if len(by) == 3:
                arrived.set()
            await arrived.wait()

    play({"a": numbers(60), "b": Part(Waits, replicas=3)}, ["a.out -> b.x"])
    assert sum(by.values()) == 60 and len(by) == 3


def test_several_outputs(play: Any) -> None:
    even: list[int] = []
    odd: list[int] = []
    play(
        {"a": numbers(1000), "b": Split, "c": collect(even), "d": collect(odd)},
        ["a.out -> b.x", "b.even -> c.x", "b.odd -> d.x"],
    )
    assert even == list(range(0, 1000, 2))
    assert odd == [number for number in range(1000) if number % 2 or number % 10 == 0]


def test_one_output_to_two_nodes(play: Any) -> None:
    first: list[int] = []
    second: list[int] = []
    report, _ = play(
        {"a": numbers(1000), "b": collect(first), "c": collect(second)},
        ["a.out -> b.x", "a.out -> c.x"],
    )
    assert first == second == list(range(1000))
    assert [one.entry.sent for one in report.links] == [1000, 1000]


def test_a_diamond_on_two_inputs_of_one_node(play: Any) -> None:
    got: list[tuple[str, int]] = []

    class Join(Node):
        left = In(int)
        right = In(int)

        def on_left(self, message: int) -> None:
            got.append(("left", message))

        def on_right(self, message: int) -> None:
            got.append(("right", message))

    play(
        {"a": numbers(500), "b": Twice, "c": Twice, "d": Join},
        ["a.out -> b.x", "a.out -> c.x", "b.out -> d.left", "c.out -> d.right"],
    )
    for side in ("left", "right"):
        assert [number for name, number in got if name == side] == list(range(1000))


def test_two_sources_into_one_input(play: Any) -> None:
    got: list[int] = []
    play(
        {"a": numbers(700), "b": numbers(300, first=1000), "c": collect(got)},
        ["a.out -> c.x", "b.out -> c.x"],
    )
    assert [one for one in got if one < 1000] == list(range(700))
    assert [one for one in got if one >= 1000] == list(range(1000, 1300))


def test_an_output_that_leads_nowhere(play: Any) -> None:
    got: list[int] = []
    play(
        {"a": numbers(20), "b": Split, "c": collect(got)},
        ["a.out -> b.x", "b.even -> c.x"],
    )
    assert got == list(range(0, 20, 2))


# -- routes --------------------------------------------------------------------------------------


def test_broadcast_reaches_every_replica(play: Any) -> None:
    got: list[tuple[int, int]] = []

    class Each(Node):
        x = In(int)

        def on_x(self, message: int) -> None:
            got.append((self.replica, message))

    report, _ = play(
        {"a": numbers(300), "b": Part(Each, replicas=3)},
        [link("a.out -> b.x", route="broadcast")],
    )
    for replica in range(3):
        assert [one for number, one in got if number == replica] == list(range(300))
    assert books(report, "a.out -> b.x").entry.done == 900


def keyed(got: list[tuple[int, Any]], kind: Any = str) -> type[Node]:
    class Keyed(Node):
        x = In(kind)

        def on_x(self, message: Any) -> None:
            got.append((self.replica, message))

    return Keyed


def places(got: list[tuple[int, Any]], key: Any) -> dict[Any, set[int]]:
    result: dict[Any, set[int]] = {}
    for replica, message in got:
        result.setdefault(key(message), set()).add(replica)
    return result


def test_a_key_always_goes_to_the_same_replica(play: Any) -> None:
    words = [f"w{number % 40}" for number in range(2000)]
    got: list[tuple[int, Any]] = []
    play(
        {"a": texts(*words), "b": Part(keyed(got), replicas=3)},
        [link("a.out -> b.x", route="key")],
    )
    assert Counter(message for _, message in got) == Counter(words)
    assert all(len(replicas) == 1 for replicas in places(got, str).values())
    assert {replica for replica, _ in got} == {0, 1, 2}


class Users(Source):
    """Messages of 50 users."""

    out = Out(dict[str, Any], key="user.id")

    def read(self, position: int | None) -> Any:
        for number in range(position or 0, 600):
            yield {"user": {"id": number % 50}, "n": number % 7}, number + 1


@pytest.mark.parametrize("by", [None, "n"])
def test_the_key_is_a_field_that_the_output_or_the_link_names(play: Any, by: str | None) -> None:
    got: list[tuple[int, Any]] = []
    play(
        {"a": Users, "b": Part(keyed(got, dict), replicas=4)},
        [link("a.out -> b.x", route="key", by=by)],
    )
    field = (lambda one: one["n"]) if by else (lambda one: one["user"]["id"])
    assert len(got) == 600
    assert all(len(replicas) == 1 for replicas in places(got, field).values())


def test_the_key_that_was_sent_stands_above_the_message(play: Any) -> None:
    got: list[tuple[int, Any]] = []

    class Tags(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message, key=("group", message % 5))

    play(
        {"a": numbers(500), "b": Tags, "c": Part(keyed(got, int), replicas=3)},
        ["a.out -> b.x", link("b.out -> c.x", route="key")],
    )
    assert len(got) == 500
    assert all(len(replicas) == 1 for replicas in places(got, lambda one: one % 5).values())


# -- links that may lose -------------------------------------------------------------------------


def stalled(got: list[int], going: asyncio.Event) -> type[Node]:
    """A node whose first message waits until `going` is set."""

    class Stalled(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            await going.wait()
            got.append(message)

    return Stalled


def flood(count: int, going: asyncio.Event) -> type[Node]:
    """A node that sends all at once, and lets the consumer go afterwards."""

    class Flood(Node):
        out = Out(int)

        async def run(self) -> None:
            for number in range(count):
                self.out.send(number)
                await self.out.room()
                await asyncio.sleep(0)
            going.set()

    return Flood


@pytest.mark.parametrize("when", ["drop-oldest", "drop-newest"])
def test_a_lossy_link_drops_and_counts_what_finds_no_room(play: Any, when: str) -> None:
    going, got = asyncio.Event(), list[int]()
    report, _ = play(
        {"a": flood(200, going), "b": stalled(got, going)},
        [link("a.out -> b.x", delivery="at-most-once", when_full=when, window=10)],
        ends="drained",
        checked=False,
    )
    entry = books(report, "a.out -> b.x").entry
    reason = f"no room: {when.removeprefix('drop-')}"
    assert entry.sent == 200 and entry.in_flight == 0
    assert entry.dropped[reason] >= 150
    assert len(got) == entry.done == 200 - entry.dropped[reason]
    assert got == sorted(got)
    assert (199 in got) == (when == "drop-oldest")
    assert report.exit == 0, "it was asked for"


def test_a_lossy_link_is_bounded_by_bytes_too(play: Any) -> None:
    going, got = asyncio.Event(), list[int]()

    class Big(Node):
        out = Out(bytes)

        async def run(self) -> None:
            for number in range(50):
                self.out.send(bytes(1000) + bytes([number]))
                await asyncio.sleep(0)
            going.set()

    class Small(Node):
        x = In(bytes)

        async def on_x(self, message: bytes) -> None:
            await going.wait()
            got.append(message[-1])

    report, _ = play(
        {"a": Big, "b": Small},
        [link("a.out -> b.x", delivery="at-most-once", when_full="drop-oldest", window_bytes=5000)],
        checked=False,
    )
    entry = books(report, "a.out -> b.x").entry
    assert entry.dropped["no room: oldest"] >= 35 and 49 in got


def test_a_lossy_link_that_blocks_loses_nothing_while_all_live(play: Any) -> None:
    got: list[int] = []
    report, _ = play(
        {"a": numbers(5000), "b": collect(got)},
        [link("a.out -> b.x", delivery="at-most-once", window=8)],
    )
    assert got == list(range(5000))
    assert books(report, "a.out -> b.x").entry.dropped == {}


def test_what_a_lossy_link_brought_is_handled_like_any_other(play: Any) -> None:
    """Also its failures: the message is given up, and both links' books say so."""
    got: list[int] = []

    class Picky(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            if message % 10 == 3:
                raise ValueError(message)
            self.out.send(message)

    report, stage = play(
        {"a": numbers(100), "b": Picky, "c": collect(got)},
        [link("a.out -> b.x", delivery="at-most-once"), "b.out -> c.x"],
    )
    assert got == [number for number in range(100) if number % 10 != 3]
    assert books(report, "a.out -> b.x").entry.dead_lettered == 10
    assert len(stage.dead_letters) == 10 and report.exit == 4


@pytest.mark.parametrize("window", [1, 7])
def test_the_smallest_window_does_not_stop_the_stream(play: Any, window: int) -> None:
    got: list[int] = []
    play(
        {"a": numbers(200), "b": Part(Twice, replicas=2), "c": collect(got)},
        [link("a.out -> b.x", window=window), link("b.out -> c.x", window=window)],
    )
    assert Counter(got) == Counter(range(400))


def test_a_small_window_holds_the_source_back(play: Any) -> None:
    got, read = list[int](), list[int]()

    class Reads(Source):
        out = Out(int)

        async def read(self, position: int | None) -> Any:
            for number in range(500):
                read.append(number)
                yield number, number + 1

    class Waits(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            if not got:
                # The loop turns often enough for a source that would not stop.
                for _ in range(200):
                    await asyncio.sleep(0)
                assert len(read) < 100
            got.append(message)

    report, stage = play({"a": Reads, "b": Waits}, [link("a.out -> b.x", window=20)])
    assert got == list(range(500)) and stage.dead_letters == []


def test_the_codec_of_the_link_is_used_at_both_ends(play: Any) -> None:
    for codec in ("json", "pickle", "msgpack"):
        got: list[int] = []
        play({"a": numbers(50), "b": collect(got)}, [link("a.out -> b.x", codec=codec)])
        assert got == list(range(50))


def test_bytes_travel_as_they_are(play: Any) -> None:
    blobs = [b"", b"\xff" * 3, bytes(range(256)) * 500]

    class Blobs(Source):
        out = Out(bytes)

        def read(self, position: int | None) -> Any:
            for place in range(position or 0, len(blobs)):
                yield blobs[place], place + 1

    got: list[Any] = []
    play({"a": Blobs, "b": collect(got, bytes)}, ["a.out -> b.x"])
    assert got == blobs


def test_large_batches_are_cut_and_large_messages_travel_alone(play: Any) -> None:
    class Large(Source):
        out = Out(bytes)

        def read(self, position: int | None) -> Any:
            if position is None:
                yield Many([bytes(3 << 20), b"a", bytes(9 << 20), bytes(6 << 20), b"b"]), 1

    got: list[Any] = []
    play({"a": Large, "b": collect(got, bytes)}, ["a.out -> b.x"])
    assert [len(one) for one in got] == [3 << 20, 1, 9 << 20, 6 << 20, 1]
