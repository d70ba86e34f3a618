"""Log files: what is written is read again, in both directions, over rotations and full disks."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowkit.control import history, logfile
from flowkit.control.logfile import (
    RotatedFile,
    format_line,
    lines_backwards,
    lines_of,
    parse_line,
    timestamp,
)
from flowkit.control.records import LogLine, Marks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "split.0.log"


def write(file: RotatedFile, first: int, count: int, padding: int = 0) -> None:
    for number in range(first, first + count):
        file.add(f"line {number}{'.' * padding}".encode())
    file.flush()


def test_what_is_written_is_read_again(path: Path) -> None:
    file = RotatedFile(path)
    write(file, 0, 100)
    file.add(b"not flushed")
    assert len(list(lines_of(path))) == 100
    file.close()
    assert list(lines_of(path))[-1] == b"not flushed"
    assert path.stat().st_mode & 0o777 == 0o600
    again = RotatedFile(path)
    write(again, 1, 1)
    again.close()
    assert list(lines_of(path))[-2:] == [b"not flushed", b"line 1"]


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_file_that_has_gone_is_made_anew(path: Path, how: str) -> None:
    file = RotatedFile(path)
    write(file, 0, 3)
    if how == "removed":
        path.unlink()
    else:
        path.rename(path.with_suffix(".old"))
    if how == "replaced":
        path.write_bytes(b"theirs\n")
    write(file, 3, 2)
    file.close()
    assert file.lost == 0
    theirs = [b"theirs"] if how == "replaced" else []
    assert list(lines_of(path)) == [*theirs, b"line 3", b"line 4"]
    if how != "removed":
        assert len(path.with_suffix(".old").read_bytes().splitlines()) == 3


def test_files_are_rotated_and_the_oldest_go(path: Path) -> None:
    file = RotatedFile(path, limit=1000, keep=3)
    for number in range(100):
        write(file, 10 * number, 10)
    file.close()
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == ["split.0.log", *(f"split.0.log.{number}" for number in (1, 2, 3))]
    assert all(each.stat().st_size <= 1000 for each in path.parent.iterdir())
    lines = list(lines_of(path))
    first = int(lines[0].split()[1])
    assert 0 < first < 900
    assert lines == [f"line {number}".encode() for number in range(first, 1000)]


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
def test_backwards_is_forwards_reversed(
    path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfile, "BLOCK", block)
    chance = random.Random(block)
    file = RotatedFile(path, limit=2000, keep=4)
    for number in range(120):
        write(file, number, 1, chance.choice([0, 1, 3, 70]))
    mark = file.mark()
    write(file, 120, 80, 5)
    file.close()
    for until in (None, mark):
        forwards = list(lines_of(path, until))
        assert list(lines_backwards(path, until)) == forwards[::-1]
    assert list(lines_of(path, mark))[-1].startswith(b"line 119")


def test_reading_while_it_is_rotated(path: Path) -> None:
    """Nothing is read twice, and what was there at the beginning is there."""
    file = RotatedFile(path, limit=300, keep=4)
    write(file, 0, 30)
    found: list[bytes] = []
    for line in lines_of(path):
        found.append(line)
        write(file, 100 + len(found), 1, 20)
    file.close()
    old = [line for line in found if int(line.split()[1].rstrip(b".")) < 100]
    assert old == [f"line {number}".encode() for number in range(30)]
    assert len(found) == len(set(found))


def test_a_mark_holds_over_rotations(path: Path) -> None:
    file = RotatedFile(path, limit=300, keep=4)
    write(file, 0, 20)
    mark = file.mark()
    write(file, 20, 60)
    file.close()
    lines = list(lines_of(path, mark))
    assert lines[-1] == b"line 19"


def test_a_mark_before_the_first_line(path: Path) -> None:
    file = RotatedFile(path)
    mark = file.mark()
    write(file, 0, 3)
    file.close()
    assert list(lines_of(path, mark)) == []


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond 500 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_costs_lines_and_says_how_many(path: Path, full_disk: None) -> None:
    file = RotatedFile(path)
    write(file, 0, 40)
    assert not list(lines_of(path))[40:]
    for number in range(10):
        write(file, 100 + number, 1, 60)
    assert file.lost > 0
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit[1], limit[1]))
    write(file, 200, 1)
    file.close()
    lines = list(lines_of(path))
    assert lines[-1] == b"line 200", "a torn line does not swallow the next"


def test_a_directory_that_vanishes(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = RotatedFile(folder / "x.log", limit=10)
    write(file, 0, 1)
    (folder / "x.log").unlink()
    folder.rmdir()
    write(file, 1, 5)
    write(file, 6, 5)
    assert file.lost > 0
    file.close()


# ---------------------------------------------------------------------------- lines


@pytest.mark.parametrize("text", ["", "plain", "a  b ", "ünïcode ✓", "\ttab", "- dash", "\udcff"])
@pytest.mark.parametrize("level", ["", "INFO", "ERROR"])
def test_lines(text: str, level: str) -> None:
    shown = text.encode("utf-8", "backslashreplace").decode()
    for more in (False, True):
        line = LogLine(1769860804.120041, "split.0", level, text, more)
        again = parse_line(format_line(line), "split.0")
        assert again == LogLine(1769860804.120041, "split.0", level, shown, more)


def test_the_format_is_stable() -> None:
    line = LogLine(1769860804.5, "split.0", "ERROR", "ValueError: bad date")
    assert format_line(line) == b"2026-01-31T12:00:04.500000Z ERROR ValueError: bad date"
    assert timestamp(0) == "1970-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("line", [b"", b"x", b"2026", b"\xff\xfe", b"no date INFO x", b"1 2 3"])
def test_what_is_no_line(line: bytes) -> None:
    parsed = parse_line(line, "x.0")
    assert parsed is None or line == b"2026"


# ---------------------------------------------------------------------------- all together


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Three replicas that have taken turns to print a hundred lines, one a second."""
    (tmp_path / "logs").mkdir()
    files = {
        name: RotatedFile(tmp_path / "logs" / f"{name}.log", limit=400)
        for name in ("read.0", "work.0", "work.1")
    }
    for number in range(100):
        name = list(files)[number % 3]
        level = "ERROR" if number % 10 == 0 else ""
        files[name].add(format_line(LogLine(1000.0 + number, name, level, f"line {number}")))
        files[name].flush()
    for file in files.values():
        file.close()
    return tmp_path


def numbers(lines: Iterator[LogLine]) -> list[int]:
    return [int(line.text.split()[1]) for line in lines]


def test_lines_of_all_in_order(state: Path) -> None:
    assert numbers(history.lines(state)) == list(range(100))
    assert numbers(history.lines(state, ["work"])) == [n for n in range(100) if n % 3]
    assert numbers(history.lines(state, ["work.1"])) == list(range(2, 100, 3))
    assert numbers(history.lines(state, ["nobody"])) == []


def test_the_last_lines(state: Path) -> None:
    assert numbers(history.lines(state, last=5)) == [95, 96, 97, 98, 99]
    assert numbers(history.lines(state, last=0)) == []
    assert numbers(history.lines(state, last=1000)) == list(range(100))
    errors = history.lines(state, last=2, wanted=lambda line: line.level == "ERROR")
    assert numbers(errors) == [80, 90]


def test_lines_since(state: Path) -> None:
    assert numbers(history.lines(state, since=1090.0)) == list(range(90, 100))
    assert numbers(history.lines(state, since=1090.0, last=1000)) == list(range(90, 100))
    assert numbers(history.lines(state, since=9999.0)) == []


def test_lines_before_marks(state: Path) -> None:
    marks = {}
    for name in ("read.0", "work.0", "work.1"):
        file = RotatedFile(state / "logs" / f"{name}.log", limit=400)
        marks[name] = file.mark()
        file.add(format_line(LogLine(2000.0, name, "", "line 2000")))
        file.close()
    before = Marks(marks, at=0.0)
    assert numbers(history.lines(state, marks=before)) == list(range(100))
    assert numbers(history.lines(state, marks=before, last=1)) == [99]
    before = Marks({}, at=1050.0)
    assert numbers(history.lines(state, marks=before)) == list(range(50))
    assert numbers(history.lines(state, marks=before, last=2)) == [48, 49]
    assert len(numbers(history.lines(state))) == 103


def test_no_logs_at_all(tmp_path: Path) -> None:
    assert list(history.lines(tmp_path)) == []
    assert list(history.lines(tmp_path, last=3)) == []
    assert list(history.events(tmp_path)) == []


def test_torn_events_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = b'{"time":"2026-01-31T12:00:00.000000Z","event":"ready","text":"x"}'
    path.write_bytes(b"\n".join([good, good[:20], b"[]", b"{}", b'{"time":5}', good]) + b"\n")
    assert [each["event"] for each in history.events(tmp_path)] == ["ready", "ready"]
    os.truncate(path, path.stat().st_size - 5)
    assert len(list(history.events(tmp_path))) == 1
