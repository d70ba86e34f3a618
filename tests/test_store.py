"""What a project keeps: positions, dead letters, how the last run ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.store import DeadLetter, Store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "flowkit.db")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def letter(message: str, **changes: Any) -> DeadLetter:
    facts: dict[str, Any] = {
        "message": message,
        "link": "a.out -> b.x",
        "node": "b",
        "replica": 1,
        "raw": b"\x00\xffraw",
        "key": None,
        "headers": {},
        "error": "ValueError: no",
        "traceback": "Traceback ...\n",
        "attempts": 1,
    }
    return DeadLetter(**{**facts, **changes})


@pytest.mark.parametrize("position", [0, 5, "text", b"bytes", [1, "a"], {"a": {"b": 1}}, 1.5, True])
def test_a_position_comes_back_as_it_was(store: Store, path: str, position: Any) -> None:
    assert store.position("read", 0) is None
    store.set_position("read", 0, position)
    other = Store(path)
    assert other.position("read", 0) == position
    other.close()
    assert store.position("read", 1) is None and store.position("other", 0) is None


@pytest.mark.parametrize(("durable", "level"), [(False, 1), (True, 2)])
def test_how_often_the_disk_is_asked(path: str, durable: bool, level: int) -> None:
    store = Store(path, durable)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (level,)  # NORMAL, FULL
    store.close()


def test_the_last_position_counts(store: Store) -> None:
    for position in (1, 2, 1):
        store.set_position("read", 0, position)
    assert store.position("read", 0) == 1
    store.set_position("read", 1, 7)
    store.forget_positions()
    assert store.position("read", 0) is None and store.position("read", 1) is None


def test_what_was_written_survives_a_kill(path: str) -> None:
    code = (
        "import os, signal, sys; from flowkit.store import Store; store = Store(sys.argv[1]);"
        "store.set_position('read', 0, 41); store.set_position('read', 0, 42);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code, path], env=environment, cwd=root)
    assert done.returncode == -signal.SIGKILL
    store = Store(path)
    assert store.position("read", 0) == 42
    store.close()


@pytest.mark.parametrize("key", [None, "k", b"k", 5, 1.5, True, ("a", 1), ("a", (b"b", None))])
def test_a_dead_letter_comes_back_as_it_was(store: Store, key: Any) -> None:
    before = letter("id-0", key=key, headers={"h": "ü"}, attempts=3, run="r")
    store.add_dead_letters([before])
    (after,) = store.dead_letters()
    for name in ("message", "link", "node", "replica", "raw", "key", "headers", "error", "run"):
        assert getattr(after, name) == getattr(before, name), name
    assert (after.traceback, after.attempts) == ("Traceback ...\n", 3)
    assert after.number > 0 and after.time > 0


def test_dead_letters_are_ordered_and_have_numbers_of_their_own(store: Store) -> None:
    store.add_dead_letters([letter(f"id-{number}") for number in range(5)])
    store.add_dead_letters([letter("id-9")])
    found = store.dead_letters()
    assert [one.message for one in found] == [f"id-{number}" for number in (0, 1, 2, 3, 4, 9)]
    numbers = [one.number for one in found]
    assert numbers == sorted(set(numbers))
    assert [one.message for one in store.dead_letters(numbers[1:3])] == ["id-1", "id-2"]
    assert store.dead_letters([]) == [] == store.dead_letters([10**6])


def test_a_message_that_fails_again_is_one_dead_letter(store: Store) -> None:
    store.add_dead_letters([letter("id-0"), letter("id-1")])
    number = store.dead_letters()[0].number
    store.add_dead_letters([letter("id-0", error="KeyError", attempts=2)])
    first, second = store.dead_letters()
    assert (first.error, first.attempts, first.number) == ("KeyError", 2, number)
    # The same message on another link is another one.
    store.add_dead_letters([letter("id-0", link="a.out -> c.x")])
    assert len(store.dead_letters()) == 3


def test_dead_letters_can_be_forgotten(store: Store) -> None:
    store.add_dead_letters([letter(f"id-{number}") for number in range(4)])
    numbers = [one.number for one in store.dead_letters()]
    assert store.drop_dead_letters(numbers[:2] + [10**6]) == 2
    assert [one.message for one in store.dead_letters()] == ["id-2", "id-3"]
    store.drop_dead_letters(numbers)
    store.add_dead_letters([letter("new")])
    assert store.dead_letters()[0].number > numbers[-1], "a number is never used again"


def test_very_many_dead_letters(store: Store) -> None:
    store.add_dead_letters([letter(f"id-{number}") for number in range(40_000)])
    numbers = [one.number for one in store.dead_letters()]
    assert len(store.dead_letters(numbers)) == 40_000
    assert store.drop_dead_letters(numbers) == 40_000


def test_all_letters_of_a_call_are_kept_or_none(store: Store) -> None:
    with pytest.raises(Exception):  # noqa: B017 - whatever the database says to an object
        store.add_dead_letters([letter("good"), letter("bad", replica=object())])
    assert store.dead_letters() == []
    store.add_dead_letters([letter("later")])
    assert len(store.dead_letters()) == 1


def test_text_that_is_no_unicode_is_kept_all_the_same(store: Store) -> None:
    """What a file name or a broken decoder brought into an error must not break its report."""
    store.add_dead_letters([letter("id-0", error="no \udc80 file", traceback="\udcff\0")])
    assert "file" in store.dead_letters()[0].error


def test_several_writers_wait_for_each_other(path: str) -> None:
    def write(name: int) -> None:
        store = Store(path)
        for number in range(20):
            store.add_dead_letters([letter(f"{name}-{number}")])
            store.set_position("read", name, number)
        store.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = Store(path)
    assert len(store.dead_letters()) == 80
    assert [store.position("read", name) for name in range(4)] == [19] * 4
    store.close()


def test_facts(store: Store) -> None:
    assert store.fact("shape") is None
    store.set_fact("shape", "1")
    store.set_fact("shape", "2")
    assert store.fact("shape") == "2"


# -- how the last run ended ----------------------------------------------------------------------


def test_a_new_project_is_clean(store: Store) -> None:
    assert not store.dirty


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("end", ["drained", "given up", "killed"])
def test_a_run_that_was_not_drained_and_left_positions_is_dirty(
    path: str, positions: bool, end: str
) -> None:
    store = Store(path)
    store.begin_run("one")
    if positions:
        store.set_position("read", 0, 5)
    if end != "killed":
        store.end_run("one", clean=end == "drained")
    store.close()
    store = Store(path)
    assert store.dirty == (positions and end != "drained")
    store.begin_run("two")
    store.end_run("two", clean=True)
    assert not store.dirty
    store.close()
