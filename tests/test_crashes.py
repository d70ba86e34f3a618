"""What is kept on disk when its process is killed before each of its writes, one after the other.

What was said to be safe is there, nothing is half there, and it goes on from there. For what the
disk itself may lose beyond that, `test_journal` cuts and tears the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowkit.journal import Entry, Journal, has_journaled, holds_batches
from flowkit.store import DeadLetter, Store
from tests.ptrace import Unavailable, run_until
from tests.test_journal import add, numbers_of, reopened

EVERY = pytest.param(1, id="every write", marks=[pytest.mark.slow, pytest.mark.timeout(600)])
STEPS = pytest.mark.parametrize("step", [pytest.param(7, id="every 7th write"), EVERY])


def each_write(
    function: Callable[[int], None], fresh: Callable[[], None], step: int
) -> Iterator[int]:
    """Let `function` run to its end, then begin `fresh` and kill it at each `step`th of its writes:
    yields how often it had reported when it was killed."""
    try:
        _, writes, killed = run_until(0, function)
    except Unavailable as error:
        pytest.skip(str(error))
    assert not killed
    assert writes > 20
    for write in range(1, writes + 1, step):
        fresh()
        lines, begun, killed = run_until(write, function)
        assert killed and begun == write
        yield len(lines)


class Story:
    """What is done to the journal at `path`, and what it holds after each commit."""

    def __init__(self, path: Path, fsync: str) -> None:
        self.path = path
        self.fsync = fsync
        self.states: list[list[int]] = [[]]

    def tell(self, pipe: int) -> None:
        journal = Journal(self.path, "run", 1, self.fsync)
        assert journal.load() == []
        held: list[Entry] = []
        for number in range(5):
            add(journal, 10 * number, 10 * number + 1, size=3000 if number % 2 else 200)
            if len(held) > 3:
                journal.settle([held.pop(number % 3).sequence])
            held += journal.commit()
            self.states.append(numbers_of(held))
            os.write(pipe, b"safe\n")
            if number == 2:
                journal._make_room()  # the log goes into the database, and begins anew
        journal.close()

    def fresh(self) -> None:
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()


@STEPS
@pytest.mark.parametrize("fsync", ["group", "never"])
def test_a_journal_killed_at_each_write(tmp_path: Path, fsync: str, step: int) -> None:
    path = tmp_path / "a.journal"
    story = Story(path, fsync)
    with open(os.devnull, "wb") as nowhere:
        story.tell(nowhere.fileno())  # here, to know the states
    story.fresh()
    assert len(story.states) == 6
    outcomes = {"as said": 0, "one more": 0}
    for said in each_write(story.tell, story.fresh, step):
        held = holds_batches(path) if path.exists() else False
        found = reopened(path, fsync=fsync)
        allowed = story.states[said : said + 2]
        assert found in allowed, f"{said} commits were said to be safe"
        assert held == bool(found)
        outcomes["as said" if found == allowed[0] else "one more"] += 1
        journal = Journal(path, "run", 1, fsync)
        sequences = [entry.sequence for entry in journal.load()]
        add(journal, 999)
        (added,) = journal.commit()
        assert added.sequence > max(sequences, default=0)
        journal.close()
        assert reopened(path, fsync=fsync) == [*found, 999]
    print(outcomes)
    assert outcomes["as said"] > 0
    if step == 1:
        # Killed between the last write of a commit and the fsync, where there is one.
        assert bool(outcomes["one more"]) == (fsync == "group")


def test_a_journal_killed_while_it_is_made(tmp_path: Path) -> None:
    """Before it has a log, SQLite has a rollback journal, and who only reads cannot roll back."""
    path = tmp_path / "a.journal"
    rolled_back = 0
    for write in range(1, 16):
        for each in tmp_path.iterdir():
            each.unlink()
        try:
            run_until(write, lambda _: Journal(path, "run", 1).close())
        except Unavailable as error:
            pytest.skip(str(error))
        rolled_back += Path(f"{path}-journal").exists()
        assert not has_journaled(path, "run", bytes(16))
        assert not path.exists() or not holds_batches(path)
        assert reopened(path) == []
    assert rolled_back > 2


def letter(number: int) -> DeadLetter:
    return DeadLetter(
        f"m-{number}", "a.x -> b.y", "b", 0, b"raw" * 500, None, {}, "ValueError: no", "", 1
    )


@STEPS
@pytest.mark.parametrize("durable", [False, True])
def test_a_store_killed_at_each_write(tmp_path: Path, durable: bool, step: int) -> None:
    """Positions and dead letters are there as soon as the call has returned, in their order."""
    path = tmp_path / "flowkit.db"

    def tell(pipe: int) -> None:
        store = Store(str(path), durable)
        for number in range(1, 9):
            if number % 2:
                store.add_dead_letters([letter(number), letter(-number)])
            else:
                store.set_position("read", 0, number)
            os.write(pipe, b"safe\n")
            if number == 5:
                store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        store.close()

    def fresh() -> None:
        for each in tmp_path.glob("flowkit.db*"):
            each.unlink()

    def state(count: int) -> tuple[list[str], int | None]:
        letters = [f"m-{n}" for number in range(1, count + 1, 2) for n in (number, -number)]
        return letters, count // 2 * 2 or None

    seen = set()
    for said in each_write(tell, fresh, step):
        store = Store(str(path))
        found = [one.message for one in store.dead_letters()], store.position("read", 0)
        store.set_position("read", 0, 100)
        assert store.position("read", 0) == 100
        store.close()
        assert found in (state(said), state(said + 1)), said
        seen.add((said, found == state(said)))
    if step == 1:
        assert {said for said, _ in seen} == set(range(9))
        assert ({exact for _, exact in seen} == {True, False}) == durable
