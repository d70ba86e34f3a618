"""Ids, what is settled, what may be forgotten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from, tuples

from flowkit.protocol import lineage
from flowkit.protocol.lineage import (
    DONE,
    ID_SIZE,
    Roots,
    Seen,
    Settled,
    Work,
    derive,
    nothing,
    root_id,
)
from flowkit.protocol.receiver import InBatch
from flowkit.wire import Data


def test_ids_tell_their_root() -> None:
    root = root_id(3, 4, 5)
    assert root == bytes([0, 3, 0, 4, 0, 0, 0, 0, 0, 5]) + bytes(6)
    derived = derive(derive(root, b"a", 0, 0), b"b", 1, 2)
    assert len(derived) == ID_SIZE
    assert derived[:10] == root[:10]
    assert derived[10:] != bytes(6)


def test_an_incarnation_beyond_the_field_wraps() -> None:
    assert root_id(1, (1 << 16) + 2, 1) == root_id(1, 2, 1)


def test_ids_are_the_same_in_every_process() -> None:
    assert derive(root_id(1, 1, 1), b"out", 0, 0).hex() == "000100010000000000014fb6d5b83075"


def test_a_batch_that_has_come_in_is_a_work_with_all_its_parts() -> None:
    frame = Data(1, 2, root_id(1, 1, 1), 3, 4, 1, 0, b"\x91\x00", born=5)
    batch = InBatch(cast(Any, SimpleNamespace(terms=None)), frame, nothing)
    work = Work(frame.id, frame.span, frame.cut, nothing, frame.born)
    for part in Work.__slots__:
        assert getattr(batch, part) == getattr(work, part)


@given(
    lists(
        tuples(
            sampled_from([root_id(1, 1, 1), root_id(1, 2, 1), root_id(2, 1, 1), root_id(1, 1, 2)]),
            sampled_from([b"a>out", b"b>out", b"out"]),
            integers(0, 3),
            integers(0, 3),
        ),
        unique=True,
    )
)
def test_different_ways_give_different_ids(ways: list[tuple[bytes, bytes, int, int]]) -> None:
    assert len({derive(*way) for way in ways}) == len(ways)


# ---------------------------------------------------------------------------- work


def test_work_is_settled_when_handled_and_all_it_made_is() -> None:
    settled = []
    work = Work(b"", 0, 1, lambda: settled.append(1))
    work.pending += 2
    work.release()
    work.finish()
    assert not settled
    work.release()
    assert settled == [1]


def test_work_is_not_settled_before_its_handlers_return() -> None:
    settled = []
    work = Work(b"", 0, 1, lambda: settled.append(1))
    work.pending += 1
    work.release()
    assert not settled, "its handlers may send more"
    work.finish()
    assert settled == [1]


def test_work_that_made_nothing_is_settled_at_once() -> None:
    settled = []
    Work(b"", 0, 1, lambda: settled.append(1)).finish()
    assert settled == [1]


# ---------------------------------------------------------------------------- roots


def test_the_commit_is_below_everything_that_is_open() -> None:
    commits = []
    roots = Roots(1, 1)
    roots.on_commit = lambda: commits.append(roots.committed)
    first, second, third = (roots.open(position) for position in (10, 20, 30))
    second.finish()
    assert not commits
    first.finish()
    assert commits == [20]
    assert not roots.idle
    third.finish()
    assert commits == [20, 30]
    assert roots.idle


def test_a_root_without_a_position_moves_no_commit() -> None:
    roots = Roots(1, 1)
    roots.on_commit = lambda: pytest.fail("committed")
    roots.open().finish()
    assert roots.committed is None
    assert roots.idle


def test_the_span_is_the_distance_to_the_lowest_open_root() -> None:
    roots = Roots(1, 1)
    first = roots.open()
    spans = [roots.open().span for _ in range(3)]
    assert (first.span, spans) == (0, [1, 2, 3])
    first.finish()
    assert roots.open().span == 3


def test_a_full_span_stops_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "MAX_SPAN", 3)
    roots = Roots(1, 1)
    opened = [roots.open() for _ in range(3)]
    assert roots.full
    opened[1].finish()
    assert roots.full, "it is the lowest that counts"
    opened[0].finish()
    assert not roots.full
    opened[2].finish()
    assert not roots.full and roots.idle


def test_parents_are_held_until_their_root_is_settled() -> None:
    settled = []
    parents = tuple(Work(b"", 0, 1, lambda name=name: settled.append(name)) for name in "ab")
    roots = Roots(1, 1)
    root = roots.open(parents=parents)
    for parent in parents:
        parent.finish()
    assert not settled
    root.finish()
    assert settled == ["a", "b"]


def test_a_root_is_as_old_as_the_oldest_that_it_was_made_of() -> None:
    roots = Roots(1, 1)
    assert roots.open(born=7).born == 7
    assert roots.open().born == 0, "not known"
    old, young, unknown = (Work(b"", 0, 1, lambda: None, born) for born in (5, 6, 0))
    assert roots.open(parents=(young, old, unknown), born=9).born == 5
    assert roots.open(parents=(unknown,), born=9).born == 9
    assert roots.finish(8).born == 8


def test_the_root_of_finish_is_the_same_in_every_incarnation() -> None:
    first, second = Roots(7, 1), Roots(7, 2)
    root = first.finish()
    assert root.id == second.finish().id != first.open().id
    assert not first.idle
    root.finish()
    assert not first.idle, "another root is open"


def test_the_root_of_finish_is_never_forgotten() -> None:
    seen = Seen()
    root = Roots(7, 1).finish()
    ids = [derive(root.id, b"out", number, 0) for number in range(50)]
    for id in ids:
        assert seen.look(id, root.span) is None
        seen.begin(id, id)
        seen.done(id)
    assert all(seen.look(id, root.span) is DONE for id in ids)


# ---------------------------------------------------------------------------- what was seen


def id_of(sequence: int, path: int = 0, incarnation: int = 1, origin: int = 1) -> bytes:
    return derive(root_id(origin, incarnation, sequence), b"out", path, 0)


def test_news_then_in_progress_then_done() -> None:
    seen = Seen()
    assert seen.look(id_of(5), 0) is None
    seen.begin(id_of(5), "work")
    assert seen.look(id_of(5), 0) == "work"
    assert seen.look(id_of(5, path=1), 0) is None
    seen.done(id_of(5))
    assert seen.look(id_of(5), 0) is DONE
    assert len(seen) == 1


def test_a_copy_hears_what_was_given_up() -> None:
    seen = Seen()
    seen.look(id_of(5), 0)
    seen.begin(id_of(5), "work")
    seen.done(id_of(5), Settled(2, 3))
    assert seen.look(id_of(5), 0) == Settled(dead_lettered=2, dropped=3)
    assert DONE == Settled(0, 0)


def test_what_lies_below_the_span_is_done_and_forgotten() -> None:
    seen = Seen()
    for sequence in range(1, 11):
        assert seen.look(id_of(sequence), 3 if sequence > 3 else sequence - 1) is None
        seen.begin(id_of(sequence), "work")
        seen.done(id_of(sequence))
        assert len(seen) <= 4
    assert seen.look(id_of(6), 3) is DONE
    assert seen.look(id_of(6, path=9), 3) is DONE, "a root below the span is settled as a whole"
    assert seen.look(id_of(7, path=9), 3) is None


def test_a_frame_from_before_does_not_lower_the_span() -> None:
    seen = Seen()
    seen.look(id_of(100), 2)
    assert seen.look(id_of(50), 10) is DONE
    assert seen.look(id_of(99), 50) is None


def test_a_jump_forgets_all_at_once() -> None:
    seen = Seen()
    for sequence in range(1, 20):
        seen.look(id_of(sequence), 50)
        seen.begin(id_of(sequence), "work")
    seen.look(id_of(1 << 40), 0)
    assert len(seen) == 0


def test_incarnations_and_origins_have_their_own_spans() -> None:
    seen = Seen()
    seen.look(id_of(5), 0)
    seen.begin(id_of(5), "work")
    assert seen.look(id_of(5, incarnation=2), 0) is None
    assert seen.look(id_of(5, origin=2), 0) is None
    seen.look(id_of(9, incarnation=2), 0)
    assert seen.look(id_of(5), 0) == "work"


def test_settling_what_is_forgotten_is_harmless() -> None:
    seen = Seen()
    seen.look(id_of(5), 0)
    seen.begin(id_of(5), "work")
    seen.look(id_of(9), 0)
    seen.done(id_of(5))
    seen.done(id_of(5, origin=9))
    assert len(seen) == 0


def test_old_incarnations_are_forgotten() -> None:
    seen = Seen()
    for incarnation in range(1, 2000):
        id = id_of(1, incarnation=incarnation)
        seen.look(id, 0)
        seen.begin(id, "work")
    assert len(seen) == lineage.DEAD_SPANS
    assert seen.look(id_of(1, incarnation=1999), 0) == "work"


@given(lists(tuples(integers(1, 40), integers(0, 2)), max_size=80), integers(1, 8))
def test_forgetting_is_exact(order: list[tuple[int, int]], size: int) -> None:
    """Against a set that forgets nothing: an id is news once, whatever comes again."""
    seen = Seen()
    ever: set[bytes] = set()
    highest = 0
    for sequence, path in order:
        # What the maker allows: nothing more than `size` below its newest is unsettled.
        highest = max(highest, sequence)
        low = max(0, highest - size)
        id = id_of(sequence, path)
        answer = seen.look(id, min(sequence, sequence - low) if sequence >= low else 0)
        if sequence < low:
            assert answer is DONE or id not in ever
        if answer is None:
            assert id not in ever
            ever.add(id)
            seen.begin(id, "work")
            seen.done(id)
    assert len(seen) <= (size + 1) * 3
