"""The journal of a durable link: what it holds after its process, its disk or its bits failed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.errors import OperatorError
from flowkit.journal import (
    Entry,
    Journal,
    JournalDamaged,
    JournalFull,
    has_journaled,
    holds_batches,
)
from flowkit.protocol.lineage import root_id

ROOT = str(Path(__file__).parent.parent)
PAGE = 4096


def lineage(number: int) -> bytes:
    return root_id(7, 1, number)


def payload(number: int, size: int = 200) -> bytes:
    return (b"%d." % number * size)[:size]


def add(journal: Journal, *numbers: int, size: int = 200) -> None:
    for number in numbers:
        journal.append(lineage(number), 4, 2, 0, payload(number, size), b"extras")


def numbers_of(entries: list[Entry]) -> list[int]:
    """The numbers that `add` was called with; what it made of them must be whole."""
    found = []
    for entry in entries:
        number = int.from_bytes(entry.lineage[4:10])
        assert entry.payload == payload(number, len(entry.payload))
        assert (entry.cut, entry.messages, entry.group) == (4, 2, 0)
        assert (entry.lineage, entry.extras) == (lineage(number), b"extras")
        found.append(number)
    return found


def reopened(path: Path, run: str = "run", groups: int = 1, fsync: str = "group") -> list[int]:
    journal = Journal(path, run, groups, fsync)
    try:
        return numbers_of(journal.load())
    finally:
        journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, "run", 1)
    assert journal.load() == []
    yield journal
    journal.close()


def copy(path: Path, to: Path) -> Path:
    """What a crash in this moment would leave on the disk."""
    to.mkdir(exist_ok=True)
    for name in (path.name, f"{path.name}-wal"):
        shutil.copyfile(path.parent / name, to / name)
    (to / f"{path.name}-shm").unlink(missing_ok=True)
    return to / path.name


# ---------------------------------------------------------------------------- as it should be


def test_what_was_committed_is_there_again(journal: Journal, path: Path, tmp_path: Path) -> None:
    add(journal, 1, 2, 3)
    assert journal.dirty
    assert numbers_of(list(journal.commit())) == [1, 2, 3]
    assert not journal.dirty
    add(journal, 4)  # never committed
    assert reopened(copy(path, tmp_path / "copy")) == [1, 2, 3]


def test_sequences_go_on(journal: Journal, path: Path) -> None:
    add(journal, 1, 2)
    entries = journal.commit()
    journal.settle([entry.sequence for entry in entries])
    journal.commit()
    journal.close()
    again = Journal(path, "run", 1)
    assert again.load() == []
    assert again.append(lineage(3), 1, 1, 0, b"", b"").sequence == entries[-1].sequence + 1
    again.close()


def test_settled_batches_are_taken_out(journal: Journal, path: Path) -> None:
    add(journal, 1, 2, 3)
    first, second, third = journal.commit()
    journal.settle([second.sequence])
    add(journal, 4)
    journal.settle([second.sequence, 99])  # twice, and what never was: no harm
    journal.commit()
    journal.close()
    assert reopened(path) == [1, 3, 4]


def test_lineages_are_known_to_their_run_alone(journal: Journal, path: Path) -> None:
    add(journal, 1, 2, 3)
    batches = journal.commit()
    journal.settle([batch.sequence for batch in batches])
    journal.forget(lineage(0)[:4], 2)
    journal.forget(lineage(0)[:4], 1)  # older news
    journal.commit()
    assert journal.lineages() == [lineage(2), lineage(3)]
    journal.close()
    for run, known in (("run", [lineage(2), lineage(3)]), ("other", []), ("run", [])):
        again = Journal(path, run, 1)
        assert again.lineages() == known
        again.close()


def test_another_number_of_consumers(journal: Journal, path: Path) -> None:
    """What is cut for two replicas is of no use to three; an empty journal does not care."""
    add(journal, 1)
    (entry,) = journal.commit()
    journal.close()
    with pytest.raises(OperatorError, match="1 batches for 1 consumer replicas, now there are 3"):
        Journal(path, "run", 3)
    again = Journal(path, "run", 1)
    again.load()
    again.settle([entry.sequence])
    again.commit()
    again.close()
    assert reopened(path, groups=3) == []


@pytest.mark.parametrize("fsync", ["group", "interval:50ms", "never"])
def test_every_way_to_sync_survives_a_kill(tmp_path: Path, fsync: str) -> None:
    path = tmp_path / "a.journal"
    script = (
        "add(journal, 1, 2); journal.commit(); journal.sync(); add(journal, 3); journal.commit();"
        "add(journal, 4); os.kill(os.getpid(), 9)"
    )
    assert run(script, path, fsync).returncode == -signal.SIGKILL
    assert holds_batches(path)
    assert reopened(path, fsync=fsync) == [1, 2, 3]


def test_holds_batches(journal: Journal, path: Path, tmp_path: Path) -> None:
    assert not holds_batches(path)
    add(journal, 1)
    assert not holds_batches(path)
    (entry,) = journal.commit()
    assert holds_batches(path)
    before = {each.name: each.read_bytes() for each in copy(path, tmp_path / "b").parent.iterdir()}
    assert holds_batches(tmp_path / "b" / path.name)
    after = {name: (tmp_path / "b" / name).read_bytes() for name in before}
    assert after == before, "looking has changed it"
    journal.settle([entry.sequence])
    journal.commit()
    assert not holds_batches(path)
    (tmp_path / "empty.journal").touch()  # its maker died before it could write
    assert not holds_batches(tmp_path / "empty.journal")
    (tmp_path / "strange.journal").write_bytes(b"what is this?" * 100)
    assert holds_batches(tmp_path / "strange.journal")
    assert holds_batches(tmp_path / "missing.journal")


def test_names_that_uris_do_not_like(tmp_path: Path) -> None:
    folder = tmp_path / "100%41 ?#x"
    folder.mkdir()
    journal = Journal(folder / "a.journal", "run", 1)
    add(journal, 1)
    journal.commit()
    assert holds_batches(folder / "a.journal")
    journal.close()
    assert reopened(folder / "a.journal") == [1]


def test_what_another_has_journaled(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    assert not has_journaled(path, "run", lineage(1))
    path.touch()
    assert not has_journaled(path, "run", lineage(1))
    journal = Journal(path, "run", 1)
    add(journal, 1, 2)
    assert not has_journaled(path, "run", lineage(1))
    journal.settle(entry.sequence for entry in journal.commit())
    journal.commit()
    assert has_journaled(path, "run", lineage(1)) and not has_journaled(path, "run", lineage(3))
    assert not has_journaled(path, "another", lineage(1))
    journal.close()
    assert has_journaled(path, "run", lineage(2)), "its maker has left"


# ---------------------------------------------------------------------------- a model

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9000)),
        st.tuples(st.just("settle"), st.integers(0, 30)),
        st.just(("commit", 0)),
        st.just(("crash", 0)),
        st.just(("close", 0)),
    ),
    min_size=10,
    max_size=40,
)


@settings(max_examples=40)
@given(OPERATIONS)
def test_any_sequence_of_operations(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]]
) -> None:
    """It always holds exactly what was committed and not settled, in order."""
    base = tmp_path_factory.mktemp("model")
    path = base / "0" / "a.journal"
    path.parent.mkdir()
    journal = Journal(path, "run", 1)
    model: dict[int, int] = {}
    new: dict[int, int] = {}
    gone: list[int] = []
    number = crashes = 0
    for what, value in operations:
        if what == "add":
            number += 1
            entry = journal.append(lineage(number), 4, 2, 0, payload(number, value), b"extras")
            new[entry.sequence] = number
        elif what == "settle" and model:
            sequence = sorted(model)[value % len(model)]
            journal.settle([sequence])
            gone.append(sequence)
        elif what == "commit":
            journal.commit()
            model |= new
            for sequence in gone:
                model.pop(sequence, None)
            new, gone = {}, []
        elif what in ("crash", "close"):
            if what == "crash":
                crashes += 1
                after = copy(path, base / str(crashes))
                journal.close()
                path = after
            else:
                journal.close()
            journal = Journal(path, "run", 1)
            entries = journal.load()
            assert [entry.sequence for entry in entries] == sorted(model)
            assert numbers_of(entries) == [model[sequence] for sequence in sorted(model)]
            new, gone = {}, []
    journal.close()


# ---------------------------------------------------------------------------- torn tails


class History:
    """A journal's log after each of its commits, and what it held then."""

    def __init__(self, path: Path, commits: int) -> None:
        self.path = path
        self.states: list[tuple[int, list[int]]] = [(0, [])]
        journal = Journal(path, "run", 1)
        held: list[Entry] = []
        chance = random.Random(7)
        self.log = Path(f"{path}-wal")
        self.states.append((self.log.stat().st_size, []))
        for number in range(commits):
            add(journal, *range(10 * number, 10 * number + chance.randrange(1, 4)), size=700)
            if len(held) > 3:
                journal.settle([held.pop(chance.randrange(3)).sequence])
            held += journal.commit()
            assert self.log.stat().st_size > self.states[-1][0], "the log was restarted"
            self.states.append((self.log.stat().st_size, numbers_of(held)))
        copy(path, path.parent / "crashed")
        journal.close()
        self.crashed = path.parent / "crashed"

    def torn(self, data: bytes) -> list[int]:
        """What is there after a crash that left this of the log."""
        place = self.path.parent / "torn"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copyfile(self.crashed / self.path.name, place / self.path.name)
        (place / self.log.name).write_bytes(data)
        return reopened(place / self.path.name)

    def held(self, size: int) -> list[int]:
        """What must be there if `size` bytes of the log are."""
        return next(held for length, held in reversed(self.states) if length <= size)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(tmp_path_factory.mktemp("history") / "a.journal", 12)


def test_a_log_cut_at_every_page(history: History) -> None:
    """A prefix of the commits, and every commit whose bytes are there."""
    whole = (history.crashed / history.log.name).read_bytes()
    frame = PAGE + 24
    sizes = range(32, len(whole) + 1, frame)
    assert len(sizes) > 40 and sizes[-1] == len(whole)
    for size in sizes:
        assert history.torn(whole[:size]) == history.held(size), size


def test_a_log_cut_anywhere(history: History) -> None:
    whole = (history.crashed / history.log.name).read_bytes()
    chance = random.Random(1)
    edges = [size for length, _ in history.states for size in (length - 1, length + 1)]
    for size in [*edges, *(chance.randrange(len(whole)) for _ in range(60))]:
        size = min(max(size, 0), len(whole))
        assert history.torn(whole[:size]) == history.held(size), size


@pytest.mark.parametrize("how", ["zeros", "old", "half", "noise"])
def test_a_last_write_that_is_torn(history: History, how: str) -> None:
    """The file has its length, but not all blocks of the last commit came to the disk."""
    whole = (history.crashed / history.log.name).read_bytes()
    chance = random.Random(2)
    for (start, before), (end, after) in zip(history.states, history.states[1:], strict=False):
        if start < 32:
            continue
        for at in range(start, end, 1536):
            stop = min(at + 512, end)
            torn = {
                "zeros": bytes(stop - at),
                "old": whole[at - start : stop - start],
                "half": whole[at : (at + stop) // 2] + bytes(stop - (at + stop) // 2),
                "noise": chance.randbytes(stop - at),
            }[how]
            found = history.torn(whole[:at] + torn + whole[stop:end])
            # Where a block is as it should be by chance, nothing is torn.
            assert found == (after if torn == whole[at:stop] else before)


# ---------------------------------------------------------------------------- rot


def spoil(path: Path, at: int, count: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for place in range(at, at + count):
        data[place] ^= 0x55
    path.write_bytes(data)


def refused(path: Path) -> str:
    """What is said of a damaged journal; also when it is asked again."""
    texts = set()
    for _ in range(2):
        assert holds_batches(path)
        with pytest.raises(JournalDamaged) as caught:
            reopened(path)
        texts.add(str(caught.value))
        assert "--fresh" in caught.value.hint
    (text,) = texts
    assert str(path) in text and "is damaged" in text
    return text


def filled(path: Path, count: int = 40) -> bytes:
    journal = Journal(path, "run", 1)
    for number in range(count):
        add(journal, number, size=500)
        journal.commit()
    journal.close()
    assert not Path(f"{path}-wal").exists()
    return path.read_bytes()


def test_a_batch_that_rots(path: Path) -> None:
    data = filled(path)
    spoil(path, data.index(payload(20, 500)) + 250)
    assert "batch 21 is not what was written" in refused(path)


def test_any_byte_that_rots(path: Path, tmp_path: Path) -> None:
    """Whatever byte it is: the batches come back as they were, or not at all."""
    data = filled(path, 12)
    held = reopened(path)
    chance = random.Random(3)
    outcomes = {"refused": 0, "whole": 0}
    for _ in range(300):
        place = tmp_path / "rotten" / "a.journal"
        shutil.rmtree(place.parent, ignore_errors=True)
        place.parent.mkdir()
        place.write_bytes(data)
        spoil(place, chance.randrange(len(data)))
        try:
            assert reopened(place) == held
            outcomes["whole"] += 1
        except OperatorError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_rows_that_vanish(path: Path) -> None:
    """Each row that is there is whole, but one is not there."""
    filled(path)
    db = sqlite3.connect(path)
    with db:
        db.execute("DELETE FROM batches WHERE sequence = 17")
    db.close()
    assert "other batches" in refused(path)


@pytest.mark.parametrize("content", [b"", b"no database" * 1000, b"SQLite format 3\0" * 300])
def test_a_file_that_is_something_else(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    if content:
        refused(path)
    else:
        assert reopened(path) == []


def test_the_damaged_journal_of_another_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.journal"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(sqlite3.DatabaseError, match=r"other\.journal: .*not a database"):
        has_journaled(path, "run", bytes(16))


def test_rot_in_the_middle_of_the_log(history: History, tmp_path: Path) -> None:
    """SQLite alone would take it for a torn tail, and drop commits that had returned."""
    chance = random.Random(4)
    length = history.states[-3][0]  # at least two commits come after it
    places = [0, 4, 9, 17, 25, *(chance.randrange(length) for _ in range(80))]
    unharmed = 0
    for number, at in enumerate(places):
        place = tmp_path / str(number)
        shutil.copytree(history.crashed, place)
        spoil(place / history.log.name, at)
        try:
            assert reopened(place / history.path.name) == history.states[-1][1]
        except JournalDamaged:
            log = (place / history.log.name).read_bytes()
            refused(place / history.path.name)
            assert (place / history.log.name).read_bytes() == log, "a repair needs it"
        else:
            unharmed += 1
    assert unharmed <= 12, unharmed  # the number of a checkpoint in the header has no meaning


def test_a_log_that_was_begun_again_is_no_rot(path: Path, tmp_path: Path) -> None:
    """What is left of the log's former life lies behind its end."""
    journal = Journal(path, "run", 1)
    held: list[Entry] = []
    restarts = size = 0
    for number in range(600):
        add(journal, number, size=9000)
        if len(held) > 4:
            journal.settle([held.pop(0).sequence])
        held += journal.commit()
        log = Path(f"{path}-wal").read_bytes()[:32]
        restarts += number > 0 and log != size
        size = log
        if number % 20 == 0:
            assert reopened(copy(path, tmp_path / "copy")) == numbers_of(held)
    journal.close()
    assert restarts > 1


# ---------------------------------------------------------------------------- kill -9

LOOP = """
chance = random.Random(int(sys.argv[3]))
held, number = [entry.sequence for entry in entries], int(sys.argv[4])
while True:
    for _ in range(chance.randrange(1, 5)):
        number += 1
        add(journal, number, size=chance.choice((10, 300, 5000)))
    if len(held) > 20:
        journal.settle(held[:15]); del held[:15]
    held += [entry.sequence for entry in journal.commit()]
    os.write(1, b"%d %d\\n" % (held[0], number))
"""


def run(script: str, path: Path, fsync: str = "group", *arguments: str, **more: Any) -> Any:
    """Run `script` in a process of its own; it finds a journal."""
    code = (
        "import os, random, resource, sys\nfrom pathlib import Path\n"
        "from tests.test_journal import *\n"
        "journal = Journal(Path(sys.argv[1]), 'run', 1, sys.argv[2])\nentries = journal.load()\n"
    )
    command = [sys.executable, "-c", code + script, str(path), fsync, *arguments]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(command, cwd=ROOT, env=environment, **more)


@pytest.mark.parametrize("fsync", ["group", "never"])
def test_killed_in_the_middle_of_it(path: Path, fsync: str) -> None:
    """Whatever it was doing: what it had said to be safe is there, and nothing is half there."""
    chance = random.Random(5)
    code = (
        "import os, random, sys\nfrom pathlib import Path\nfrom tests.test_journal import *\n"
        "journal = Journal(Path(sys.argv[1]), 'run', 1, sys.argv[2])\nentries = journal.load()\n"
    )
    number = kills = 0
    for seed in range(4):
        command = [sys.executable, "-c", code + LOOP, str(path), fsync, str(seed), str(number)]
        environment = {**os.environ, "PYTHONPATH": ROOT}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(chance.randrange(5, 150))]
            child.kill()
            lines += child.stdout.readlines()
        kills += child.returncode == -signal.SIGKILL
        low, said = map(int, [line for line in lines if line.endswith(b"\n")][-1].split())
        journal = Journal(path, "run", 1, fsync)
        entries = journal.load()
        journal.close()
        found = numbers_of(entries)
        assert found == list(range(found[0], found[-1] + 1)), "a gap"
        # One commit more may be there than was said: it may have taken fifteen out, four in.
        assert said <= found[-1] <= said + 4
        assert low <= entries[0].sequence <= low + 15
        number = found[-1]
    assert kills == 4


# ---------------------------------------------------------------------------- the disk


def test_a_full_database(journal: Journal, path: Path) -> None:
    """Nothing is half in; what is acknowledged makes room, and then all goes on."""
    add(journal, *range(20), size=3000)
    entries = list(journal.commit())
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    add(journal, *range(20, 40), size=3000)
    for _ in range(3):
        with pytest.raises(JournalFull):
            journal.commit()
        assert journal.dirty
    journal.settle([entry.sequence for entry in entries[:15]])
    with pytest.raises(JournalFull):
        journal.commit()
    assert journal._db.execute("SELECT count(*) FROM batches").fetchone() == (5,)
    journal.settle([entry.sequence for entry in entries[15:]])
    assert numbers_of(list(journal.commit())) == list(range(20, 40))
    journal.close()
    assert reopened(path) == list(range(20, 40))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(small: Path, tmp_path: Path) -> None:
    """It takes nothing in, keeps what it has, and goes on when somebody has made room."""
    path = small / "a.journal"
    (small / "ballast").write_bytes(bytes(1 << 19))
    journal = Journal(path, "run", 1)
    journal.load()
    safe: list[Entry] = []
    number = 0
    with pytest.raises(JournalFull):
        while number < 400:
            add(journal, number, size=8000)
            number += 1
            safe += journal.commit()
    assert len(safe) == number - 1 > 10
    with pytest.raises(JournalFull):
        journal.commit()
    assert journal.dirty
    assert os.statvfs(small).f_bavail * os.statvfs(small).f_frsize > 1 << 19
    assert reopened(copy(path, tmp_path / "copy")) == numbers_of(safe)
    journal.settle([entry.sequence for entry in safe[:5]])
    (small / "ballast").unlink()
    assert numbers_of(list(journal.commit())) == [number - 1]
    journal.close()
    assert reopened(path) == list(range(5, number))


def test_a_journal_that_fills_the_disk_by_itself(small: Path) -> None:
    """What is acknowledged makes room, always."""
    journal = Journal(small / "a.journal", "run", 1)
    journal.load()
    safe: list[Entry] = []
    fulls = 0
    for number in range(600):
        add(journal, number, size=20_000)
        try:
            safe += journal.commit()
        except JournalFull:
            fulls += 1
            assert len(safe) > 10
            journal.settle([entry.sequence for entry in safe])
            safe = list(journal.commit())
    assert fulls > 2
    journal.close()
    assert reopened(small / "a.journal") == numbers_of(safe)


def test_a_disk_that_is_full_from_the_beginning(small: Path) -> None:
    with open(small / "ballast", "wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    with pytest.raises(OperatorError, match="no room on the disk|cannot be used") as caught:
        reopened(small / "a.journal")
    assert not isinstance(caught.value, JournalDamaged), "nothing is damaged, nothing to be dropped"
    (small / "ballast").unlink()
    assert reopened(small / "a.journal") == []


def test_a_write_that_fails(path: Path) -> None:
    """An I/O error is told, and leaves what was committed."""
    script = """
add(journal, 1, 2, size=3000); journal.commit()
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(f"{path}-wal") + 2 * 4096,) * 2)
add(journal, *range(3, 30), size=3000)
try:
    journal.commit()
except JournalFull:
    sys.exit("that is not what happened")
except sqlite3.OperationalError as error:
    assert journal.dirty
    print(error, flush=True)
    os._exit(7)
""".replace("{path}", str(path))
    done = run(script, path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 7
    assert "I/O error" in done.stdout
    assert reopened(path) == [1, 2]


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "a.journal", tmp_path):
        with pytest.raises(OperatorError, match="cannot be used") as caught:
            Journal(path, "run", 1)
        assert not isinstance(caught.value, JournalDamaged)
