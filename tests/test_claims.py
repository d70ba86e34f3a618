"""Producers of a durable link that make the same batch: one of them writes it, whoever dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowkit.claims import Busy, Claims
from flowkit.journal import Journal, JournalFull, _open_to_read, has_journaled
from flowkit.protocol.lineage import root_id
from tests.ptrace import Unavailable, run_until
from tests.test_journal import add, lineage

SPAN = 100


def claim(claims: Claims, *numbers: int, span: int = SPAN) -> list[int | None]:
    with claims.transaction():
        return [claims.owner(lineage(number), span) for number in numbers]


def opened(path: Path, replica: int, journaled: Iterable[int] = ()) -> Claims:
    return Claims(path, replica, map(lineage, journaled))


def test_the_first_has_it(tmp_path: Path) -> None:
    first, second = (opened(tmp_path / "a.claims", replica) for replica in (0, 1))
    assert claim(first, 1, 2) == [0, 0]
    assert claim(second, 2, 3) == [0, 1]
    assert claim(first, 1, 3) == [0, 1], "who has claimed it may ask again"
    first.close()
    second.close()


def test_what_cannot_come_again_is_nobodys(tmp_path: Path) -> None:
    """A late copy of work that is done, also if all that was known of it is forgotten."""
    first, second = (opened(tmp_path / "a.claims", replica) for replica in (0, 1))
    assert claim(first, 1, 2, 3) == [0, 0, 0]
    assert claim(first, 9, span=6) == [0]
    assert claim(second, 2, 3) == [None, 0], "all below 3 is settled"
    with second.transaction():
        assert second.owner(root_id(8, 1, 1), 0) == 1, "another root's span"
        assert second._db is not None
        assert second._db.execute("SELECT count(*) FROM claims").fetchone()[0] == 3
    first.close()
    second.close()


def test_a_successor_gives_up_what_came_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.claims"
    first, second = (opened(path, replica) for replica in (0, 1))
    assert not first.inherited
    assert claim(first, 1, 2) == [0, 0]
    assert claim(second, 3) == [1]
    first.close()
    successor = opened(path, 0, [1])
    assert successor.inherited
    assert claim(second, 1, 2) == [0, 0], "nobody but the successor can tell"
    assert claim(successor) == []
    assert not successor.inherited
    assert claim(second, 1, 2) == [0, 1]
    assert claim(successor, 3) == [1]
    successor.close()
    second.close()


def test_an_error_takes_claims_back(tmp_path: Path) -> None:
    first, second = (opened(tmp_path / "a.claims", replica) for replica in (0, 1))
    with pytest.raises(ZeroDivisionError), first.transaction():
        first.owner(lineage(1), SPAN)
        raise ZeroDivisionError
    assert claim(second, 1) == [1]
    first.close()
    second.close()


def test_a_full_disk(tmp_path: Path) -> None:
    claims = opened(tmp_path / "a.claims", 0)
    assert claim(claims, 1) == [0]
    assert claims._db is not None
    pages = claims._db.execute("PRAGMA page_count").fetchone()[0]
    claims._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalFull):
        claim(claims, *range(2, 2000), span=9999)
    claims._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert claim(claims, *range(1, 2000), span=9999) == [0] * 1999
    claims.close()


def test_one_at_a_time(tmp_path: Path) -> None:
    first, second = (opened(tmp_path / "a.claims", replica) for replica in (0, 1))
    with first.transaction():
        with pytest.raises(Busy):
            claim(second, 1)
        first.owner(lineage(1), SPAN)
    assert claim(second, 1) == [0]
    first.close()
    second.close()


class Producers:
    """The producers of a link, whose journals and claims are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def journal(self, replica: int) -> Path:
        return self.folder / f"{replica}.journal"

    @contextmanager
    def live(self, replica: int) -> Iterator[Callable[[int], bool | None]]:
        """A replica starts: its journal is opened, and then what that has not is given up. The
        value makes a batch, and says whether it was written here; None if it has to wait."""
        journal = Journal(self.journal(replica), "run", 1)
        journal.load()
        claims = Claims(self.folder / "a.claims", replica, journal.lineages())

        def make(number: int) -> bool | None:
            (owner,) = claim(claims, number)
            assert owner is not None
            if owner != replica:
                return (
                    None
                    if not has_journaled(self.journal(owner), "run", lineage(number))
                    else False
                )
            add(journal, number)
            journal.commit()
            return True

        try:
            claim(claims)
            yield make
        finally:
            claims.close()
            journal.close()

    def holders(self, number: int) -> int:
        paths = [self.journal(replica) for replica in (0, 1)]
        return sum(has_journaled(path, "run", lineage(number)) for path in paths)


@pytest.mark.parametrize("reads", ["nobody", "meanwhile", "longer"])
def test_a_producer_killed_at_each_write(tmp_path: Path, reads: str) -> None:
    """One makes a batch and is killed on the way, the other makes it as well: it is in one journal.

    What the first had half written comes to light if nobody reads its journal when that is opened
    again. While somebody does, it is not seen, and then overwritten: so nobody may conclude from
    what he sees that it is not there.
    """
    outcomes = set()
    write, killed = 0, True
    while killed:
        for each in tmp_path.iterdir():
            each.unlink()
        both = Producers(tmp_path)
        with both.live(0) as make, both.live(1):
            make(1)
        reader = _open_to_read(both.journal(0))
        if reads != "nobody":
            reader.execute("SELECT count(*) FROM lineages").fetchall()

        def work(pipe: int, both: Producers = both, write: int = write) -> None:
            with both.live(0) as make:
                if write:
                    make(2)
                os._exit(0)  # nothing is closed

        try:
            _, writes, killed = run_until(write, work)
            if write == 0:  # how many it takes to start
                write, killed = writes + 1, True
                continue
            write += 1
        except Unavailable as error:
            pytest.skip(str(error))
        with both.live(1) as make:
            made = make(2)
            if reads != "longer":
                reader.close()
            with both.live(0):
                outcomes.add(f"at once: {made}")
                if made is None:
                    made = make(2)
                    outcomes.add(f"later: {made}")
                assert made is not None, "whose it is, is known when the first is there again"
                assert both.holders(2) == 1
        reader.close()
    assert outcomes >= {"at once: True", "at once: False", "later: True"}
    assert ("later: False" in outcomes) == (reads == "meanwhile")
