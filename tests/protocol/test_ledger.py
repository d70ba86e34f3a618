"""The books: always sent = done + dropped + dead-lettered + superseded + in flight."""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis.strategies import booleans, integers, lists, sampled_from, tuples

from flowkit import wire
from flowkit.protocol.ledger import QUEUED, REASONS, ROW, Books, Entry, Flow, total
from tests.protocol.link import HELLO, TERMS, Pair, Producer, changed, producer_engine


def books(row: MutableSequence[int] | None = None) -> Books:
    return Books([0] * ROW if row is None else row)


def test_a_row_has_its_size() -> None:
    with pytest.raises(ValueError, match=str(ROW)):
        Books([0] * (ROW - 1))
    assert len(REASONS) <= QUEUED - 8, "a reason for each place that is left"


def test_a_row_may_be_shared_memory() -> None:
    memory = bytearray(8 * ROW)
    books(memoryview(memory).cast("q")).sent(5, own=True)
    books(array("q", [0] * ROW)).sent(5, own=True)
    assert Books(memoryview(memory).cast("q")).read().sent == 5, "another view sees it"


def test_what_is_held_back_is_sent_already() -> None:
    """And lost with the process, unless somebody reads it again."""
    mine = books()
    mine.sent(3, own=True)
    mine.held(5)
    entry = mine.read()
    assert (entry.sent, entry.in_flight, entry.own_unsettled) == (8, 8, 8) and entry.balanced
    entry.bury(replayed=False)
    assert entry.dropped == {"producer died": 8} and entry.superseded == 0
    mine.sent(5, own=True)
    mine.held(0)
    assert mine.read().sent == 8


def test_every_movement_is_booked() -> None:
    mine = books()
    mine.sent(100, own=True)
    mine.delivered(60, again=False)
    mine.delivered(20, again=True)
    mine.settled(30, dead_lettered=2, dropped=3, own=True)
    mine.dropped(10, "stopped", own=False)
    mine.dropped(5, "consumer died", own=True)
    mine.dead_lettered(4, own=True)
    entry = mine.read()
    assert entry == Entry(
        sent=100,
        delivered=80,
        done=25,
        redelivered=20,
        dead_lettered=6,
        dropped={"handler failed": 3, "stopped": 10, "consumer died": 5},
        own_unsettled=61,
    )
    assert entry.in_flight == 51
    assert entry.balanced


def test_an_unknown_reason_is_a_bug() -> None:
    with pytest.raises(ValueError):
        books().dropped(1, "bad luck", own=False)


def test_too_much_done_is_noticed() -> None:
    mine = books()
    mine.settled(1, 0, 0, own=False)
    assert not mine.read().balanced


@pytest.mark.parametrize(
    ("replayed", "lost", "superseded"), [(True, 0, 60), (False, 40, 20)], ids=["replayed", "not"]
)
def test_what_a_dead_producer_leaves(replayed: bool, lost: int, superseded: int) -> None:
    mine = books()
    mine.sent(50, own=True)
    mine.sent(50, own=False)
    mine.settled(10, 0, 0, own=True)
    mine.settled(30, 0, 0, own=False)
    entry = mine.read()
    entry.bury(replayed)
    assert entry.in_flight == 0
    assert entry.superseded == superseded
    assert entry.dropped == ({"producer died": lost} if lost else {})
    again = replace(entry, dropped=dict(entry.dropped))
    again.bury(replayed)
    assert again == entry, "once is enough"


MOVES = lists(
    tuples(
        sampled_from(["sent", "settled", "dropped", "dead"]),
        integers(0, 50),
        integers(0, 50),
        booleans(),
    )
)


@given(MOVES, booleans())
def test_the_books_balance(moves: list[tuple[str, int, int, bool]], replayed: bool) -> None:
    mine = books()
    out = {True: 0, False: 0}
    for what, count, part, own in moves:
        if what == "sent":
            mine.sent(count, own)
            out[own] += count
            continue
        count = min(count, out[own])
        part = min(part, count)
        out[own] -= count
        if what == "settled":
            mine.settled(count, part // 2, part - part // 2, own)
        elif what == "dropped":
            mine.dropped(count, REASONS[part % len(REASONS)], own)
        else:
            mine.dead_lettered(count, own)
        assert mine.read().balanced
    entry = mine.read()
    assert entry.in_flight == out[True] + out[False]
    assert entry.own_unsettled == out[True]
    entry.bury(replayed)
    assert entry.in_flight == 0


def test_sums_leave_their_parts_alone() -> None:
    first = Entry(sent=1, dropped={"stopped": 1})
    second = Entry(sent=3, done=1, dropped={"stopped": 1, "consumer died": 1}, superseded=0)
    both = total([first, second])
    assert both.sent == 4 and both.dropped == {"stopped": 2, "consumer died": 1}
    assert first.dropped == {"stopped": 1}
    assert total([]) == Entry()


# ---------------------------------------------------------------------------- kept by a sender


def test_what_an_ack_gives_up_is_no_more_than_it_covers() -> None:
    producer = Producer()
    producer.hear(producer.ack(1, dead_lettered=1))
    assert producer.sender.books.read().dead_lettered == 1
    producer.hear(producer.ack(2, dead_lettered=1, dropped=1))
    entry = producer.sender.books.read()
    assert (entry.done, entry.dead_lettered, entry.dropped) == (0, 1, {"handler failed": 1})
    assert entry.in_flight == 0


def test_an_ack_that_claims_too_much_unbalances_nothing() -> None:
    producer = Producer()
    producer.hear(producer.ack(2, dead_lettered=99, dropped=99))
    entry = producer.sender.books.read()
    assert entry.balanced and entry.in_flight == 0 and entry.done == 0


def test_redelivery_is_counted() -> None:
    pair = Pair()
    pair.send(2)
    for _ in range(4):
        pair.turn_producer()
        pair.turn_consumer()
        pair.deliver_up()
        pair.deliver_down()
    pair.kill()
    pair.announce()
    pair.settle()
    entry = pair.sender.books.read()
    assert (entry.sent, entry.delivered, entry.redelivered, entry.done) == (2, 4, 2, 2)


def lossy(when_full: str, **changes: int) -> Producer:
    producer = Producer.__new__(Producer)
    terms = replace(TERMS, lossy=True, when_full=when_full, **changes)
    producer.engine = producer_engine(terms)
    return producer


def emit(producer: Producer, messages: int) -> None:
    for message in range(messages):
        root = producer.engine.begin()
        producer.engine.release(root, "out", [message])
        root.finish()


@pytest.mark.parametrize(
    ("when_full", "kept"), [("drop-oldest", [7, 8, 9]), ("drop-newest", [0, 1, 2])]
)
def test_a_lossy_link_without_room_counts_what_it_drops(when_full: str, kept: list[int]) -> None:
    producer = lossy(when_full, window=3)
    emit(producer, 10)
    assert producer.engine.room, "it never makes its source wait"
    entry = producer.sender.books.read()
    assert entry.dropped == {f"no room: {when_full[5:]}": 7}
    assert entry.in_flight == 3
    producer.hear(changed(HELLO, limit=9))
    producer.engine.flush()
    sent = [action.frame for action in producer.engine.actions]  # type: ignore[union-attr]
    payloads = [frame.payload for frame in sent if isinstance(frame, wire.Data)]
    assert payloads == [bytes([0x91, message]) for message in kept]


def test_a_lossy_link_may_make_its_source_wait() -> None:
    producer = lossy("block", window=3)
    emit(producer, 3)
    assert not producer.engine.room
    assert not producer.sender.books.read().dropped


def test_drop_oldest_keeps_to_the_bytes() -> None:
    producer = lossy("drop-oldest", window_bytes=6)
    emit(producer, 10)
    assert producer.sender.bytes <= 6
    assert producer.sender.books.read().dropped == {"no room: oldest": 7}


def test_what_a_lossy_link_loses_with_its_consumer_is_counted() -> None:
    producer = lossy("block")
    emit(producer, 3)
    producer.hear(HELLO)
    producer.engine.flush()
    producer.engine.peer_gone("t", 0, 2, False)
    entry = producer.sender.books.read()
    assert entry.dropped == {"consumer died": 3}
    assert entry.in_flight == producer.sender.messages == 0


def test_how_a_link_flows_stands_beside_the_books() -> None:
    row = [0] * ROW
    book = Books(row)
    book.sent(5, own=True, size=100)
    book.sent(2, own=False, size=11)
    book.flows(queued=3, credit=2)
    book.held_up(0.5, window=True)
    book.held_up(0.25, window=False)
    assert book.flow() == Flow(111, 750_000_000, 500_000_000, 3, 2)
    book.flows(queued=0, credit=9)
    assert (book.flow().queued, book.flow().credit) == (0, 9)
    assert book.read() == Entry(sent=7, own_unsettled=5), "and changes nothing in them"
