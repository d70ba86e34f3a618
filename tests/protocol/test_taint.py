"""What an acknowledgement says of batches of which something was given up, here or downstream."""

from __future__ import annotations

from typing import Any

import pytest

from flowkit.protocol.lineage import FAILED, LOST, Root
from tests.protocol.link import Pair, Producer


def sent(producer: Producer) -> list[Any]:
    return [batch.work for batch in producer.sender.sessions[0].unacked]


@pytest.mark.parametrize(("field", "taint"), [("failed", FAILED), ("lost", LOST)])
def test_an_ack_taints_what_it_acknowledges_and_nothing_before_or_after(
    field: str, taint: int
) -> None:
    producer = Producer()
    first, second = sent(producer)
    producer.hear(producer.ack(1))
    producer.hear(producer.ack(2, **{field: 1}))
    assert (first.taint, second.taint) == (0, taint)
    root = producer.engine.begin()
    producer.engine.release(root, "out", [3])
    root.finish()
    producer.engine.flush()
    producer.hear(producer.ack(3, **{field: 1}))
    assert root.taint == 0 and not root.open


def test_what_a_lost_ack_had_to_say_counts_for_all_that_the_next_one_acknowledges() -> None:
    producer = Producer()
    works = sent(producer)
    producer.hear(producer.ack(2, failed=1))
    assert [work.taint for work in works] == [FAILED, FAILED]


def exchange(pair: Pair) -> None:
    """All that the two ends have to say to each other."""
    for _ in range(6):
        pair.turn_producer()
        pair.turn_consumer()
        while pair.up or pair.down:
            pair.deliver_up()
            pair.deliver_down()


@pytest.mark.parametrize("oldest", [True, False])
def test_the_consumer_acknowledges_tainted_batches_one_by_one(oldest: bool) -> None:
    """In whatever order they are settled, each root learns its own fate."""
    pair = Pair()
    roots: list[Root] = []
    for number in range(6):
        root = pair.producer.begin()
        pair.producer.release(root, "out", [number])
        root.finish()
        roots.append(root)
    exchange(pair)
    works = []
    while (taken := pair.consumer.take("in")) is not None:
        works.append(taken[1])
        exchange(pair)
    for number, work in enumerate(works):
        work.taint = (0, FAILED, 0, 0, LOST, FAILED | LOST)[number]
    for work in works if oldest else works[::-1]:
        work.finish()
    exchange(pair)
    assert [root.taint for root in roots] == [0, FAILED, 0, 0, LOST, FAILED | LOST]
    assert not any(root.open for root in roots)
