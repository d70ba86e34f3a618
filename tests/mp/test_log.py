"""What the broker keeps of a queue, and whom it tells of what."""

from __future__ import annotations

from flowkit.mp import log
from flowkit.mp.log import Log


def filled(*pages: tuple[int, bytes]) -> Log:
    kept = Log()
    for count, page in pages:
        kept.put(count, page)
    return kept


def test_an_answer_begins_with_the_page_that_holds_the_item() -> None:
    kept = filled((3, b"a"), (2, b"b"), (4, b"c"))
    assert kept.total == 9
    assert kept.ask(b"x", 0, False) == (0, [b"a", b"b", b"c"])
    assert kept.ask(b"x", 2, False) == (0, [b"a", b"b", b"c"])
    assert kept.ask(b"x", 3, False) == (3, [b"b", b"c"])
    assert kept.ask(b"x", 8, False) == (5, [b"c"])
    assert kept.ask(b"x", 9, False) is None


def test_an_answer_is_limited_but_never_empty() -> None:
    large = bytes(log.COPIES + 1)
    kept = filled((1, large), (1, b"b"), (1, large))
    assert kept.ask(b"x", 0, False) == (0, [large])
    assert kept.ask(b"x", 1, False) == (1, [b"b"])
    many = filled(*[(1, b".")] * (log.PAGES + 5))
    assert len(many.ask(b"x", 0, False)[1]) == log.PAGES  # type: ignore[index]


def test_a_page_is_forgotten_when_its_last_item_is_taken() -> None:
    kept = filled((3, b"a"), (2, b"b"))
    kept.forget(2)
    assert kept.first == 0
    kept.forget(3)
    assert kept.first == 3 and not kept.idle
    kept.forget(5)
    assert kept.first == kept.total == 5 and kept.idle
    kept.put(1, b"c")
    assert kept.ask(b"x", 5, False) == (5, [b"c"])


def test_as_many_are_told_as_there_are_items_and_in_the_order_in_which_they_came() -> None:
    kept = Log()
    for consumer in (b"x", b"y", b"z"):
        assert kept.ask(consumer, 0, True) is None
    kept.put(2, b"ab")
    assert [consumer for consumer, _ in kept.awaken(0, 2)] == [b"x", b"y"]
    assert kept.pending(0) and not kept.pending(2)
    # Neither of them has taken one, after a while: so the third is told.
    assert list(kept.awaken(0, 1)) == [(b"z", (0, [b"ab"]))]
    assert not kept.pending(0)


def test_nobody_is_told_of_what_is_taken_or_when_he_has_left() -> None:
    kept = Log()
    kept.ask(b"x", 0, True)
    kept.ask(b"y", 0, True)
    kept.leave(b"x")
    kept.put(1, b"a")
    assert list(kept.awaken(1, 5)) == []
    kept.put(1, b"b")
    assert list(kept.awaken(1, 5)) == [(b"y", (1, [b"b"]))]


def test_whoever_asks_again_waits_once() -> None:
    kept = Log()
    kept.ask(b"x", 0, True)
    kept.ask(b"x", 0, True)
    kept.put(2, b"ab")
    assert len(list(kept.awaken(0, 2))) == 1
    assert kept.idle is False and kept.pending(0) is False
