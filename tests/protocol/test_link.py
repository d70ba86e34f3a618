"""Two ends of a link under every order of events: schedules over a wire that loses and restarts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis.strategies import lists, sampled_from

from flowkit.protocol import receiver
from flowkit.protocol.engine import Phase
from flowkit.protocol.receiver import State
from tests.protocol.link import TERMS, Pair
from tests.protocol.sim import replaced

OPERATIONS: dict[str, Callable[[Pair], object]] = {
    "send one": lambda pair: pair.send(1),
    "send some": lambda pair: pair.send(7),
    "take": Pair.take,
    "finish the oldest": Pair.finish,
    "finish the newest": lambda pair: pair.finish(oldest=False),
    "turn of the producer": Pair.turn_producer,
    "turn of the consumer": Pair.turn_consumer,
    "deliver up": Pair.deliver_up,
    "deliver down": Pair.deliver_down,
    "tick": Pair.tick,
    "break": Pair.break_,
    "kill": Pair.kill,
    "announce": Pair.announce,
    "garbage up": lambda pair: pair.producer.garbage_from_consumer(0, pair.peer, "garbage"),
    "garbage down": lambda pair: pair.alive and pair.consumer.garbage_from_producer(0, 0, "no"),
}
# What goes well happens more often than what does not, or nothing would ever get through.
COMMON = [
    "send one",
    "send some",
    "take",
    "finish the oldest",
    "turn of the producer",
    "turn of the consumer",
    "deliver up",
    "deliver down",
]
CHOICE = [*OPERATIONS, *COMMON * 3]
WITHOUT_KILLS = [name for name in CHOICE if name not in ("kill", "announce")]


def play(schedule: Sequence[str], window: int = 1 << 16) -> Pair:
    pair = Pair(replace(TERMS, window=window))
    for name in schedule:
        OPERATIONS[name](pair)
    pair.settle()
    return pair


@settings(max_examples=150)
@given(lists(sampled_from(CHOICE), min_size=60, max_size=300))
def test_nothing_is_lost(schedule: list[str]) -> None:
    play(schedule)


@settings(max_examples=150)
@given(lists(sampled_from(WITHOUT_KILLS), min_size=60, max_size=300), sampled_from([1, 2, 10]))
def test_nothing_is_doubled_by_breaks(schedule: list[str], window: int) -> None:
    play(schedule, window)


@settings(max_examples=50)
@given(lists(sampled_from(CHOICE), min_size=60, max_size=200))
def test_a_byte_window_admits_one_batch(schedule: list[str]) -> None:
    with replaced(receiver, AHEAD_BYTES=1):
        pair = play(schedule)
    assert pair.producer.phase is Phase.CLOSED


def many(seeds: range, size: int) -> Counter[str]:
    stats: Counter[str] = Counter()
    for seed in seeds:
        stats += play(random.Random(seed).choices(CHOICE, k=size)).stats
    return stats


def test_the_schedules_do_something() -> None:
    stats = many(range(60), 300)
    for what in ("redelivered", "resets", "duplicates", "breaks", "kills"):
        assert stats[what] > 5, what


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_in_many_schedules() -> None:
    many(range(1000, 6000), 400)


# ---------------------------------------------------------------------------- single rules


def settle_all(pair: Pair) -> None:
    """Everything that is under way arrives; nothing is handled."""
    for _ in range(20):
        pair.turn_producer()
        pair.turn_consumer()
        pair.deliver_up()
        pair.deliver_down()


def test_an_idle_link_carries_heartbeats_and_stays_up() -> None:
    pair = Pair()
    settle_all(pair)
    session = pair.receiver._session
    for _ in range(50):
        pair.tick()
        settle_all(pair)
    assert pair.receiver.state is State.LIVE
    assert pair.receiver._session == session
    assert not pair.stats["resets"]


def test_a_lost_tail_is_noticed() -> None:
    """A batch that is lost without another one behind it."""
    pair = Pair()
    settle_all(pair)
    pair.send(1)
    pair.turn_producer()
    pair.break_()
    for _ in range(3):
        pair.tick()
        settle_all(pair)
    assert [one.count for one in pair.receiver.queue] == [1]
    pair.settle()


def test_credit_is_not_acknowledgement() -> None:
    pair = Pair()
    settle_all(pair)
    pair.send(1)
    settle_all(pair)
    before = pair.sender.sessions[0].limit
    pair.take()
    settle_all(pair)
    assert pair.sender.sessions[0].limit == before + 1, "taking a batch returns its credit"
    assert pair.sender.messages == 1, "but does not acknowledge it"
    pair.finish()
    settle_all(pair)
    assert pair.sender.messages == 0


def test_a_new_session_returns_what_is_unacknowledged_to_the_head() -> None:
    pair = Pair()
    settle_all(pair)
    for _ in range(3):
        pair.send(1)
    settle_all(pair)
    pair.kill()
    pair.announce()
    settle_all(pair)
    for _ in range(8):
        pair.take()
        pair.finish()
        settle_all(pair)
    assert [message for _, message in pair.handled] == [0, 1, 2]
    pair.settle()


def test_a_hello_without_answer_is_repeated_more_and_more_slowly() -> None:
    pair = Pair()
    heard = []
    for second in range(80):
        pair.turn_consumer()
        heard += [second] * len(pair.up)
        pair.up.clear()
        pair.tick()
    assert [late - early for early, late in zip(heard, heard[1:], strict=False)] == [
        2, 4, 8, 16, 16, 16, 16,
    ]  # fmt: skip
    pair.settle()


def test_a_suspect_gets_nothing_new_and_is_not_redelivered() -> None:
    pair = Pair(replace(TERMS, consumers=1))
    settle_all(pair)
    pair.send(1)
    settle_all(pair)
    for _ in range(10):
        pair.producer.tick()
        pair.turn_producer()
    pair.down.clear()
    pair.send(1)
    pair.turn_producer()
    assert not pair.down, "nothing new for a session that is silent"
    assert len(pair.sender.sessions) == 1
    pair.tick()
    settle_all(pair)
    pair.tick()
    settle_all(pair)
    assert pair.receiver.held == 2, "it speaks again: it gets what waited"
    pair.settle()


def exchanged(pair: Pair) -> None:
    """Everything that is said has arrived."""
    for _ in range(4):
        pair.turn_producer()
        pair.turn_consumer()
        while pair.up or pair.down:
            pair.deliver_up()
            pair.deliver_down()


def test_a_batch_carries_when_its_root_began() -> None:
    pair = Pair()
    exchanged(pair)
    root = pair.producer.begin(born=1234)
    pair.producer.release(root, "out", [1, 2, 3])
    root.finish()
    exchanged(pair)
    taken = pair.consumer.take("in")
    assert taken is not None and taken[0].born == 1234
    # What is made of it is as old.
    assert pair.consumer.begin(parents=(taken[1],), born=9999).born == 1234


def test_what_waits_is_counted_at_both_ends() -> None:
    pair = Pair()
    pair.send(3)
    pair.send(4)
    assert (pair.sender.queued, pair.consumer.waiting, pair.sender.credit) == (7, 0, 0)
    exchanged(pair)
    came = pair.consumer.waiting
    assert came > 0 and pair.sender.queued == 7 - came, "as much as it has credit for"
    assert pair.sender.credit == 0
    pair.take()
    assert pair.consumer.waiting == came, "until its handlers have returned"
    pair.finish()
    assert pair.consumer.waiting < came
    pair.settle()
    assert pair.sender.credit > 0
