"""Durable links in a running project: what they ask of the disk, and a disk that fails."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from flowkit import journal
from flowkit.runtime import journaling, runner
from flowkit.store import Store
from tests.runtime.stage import books, collect, link, numbers

LINK = "read.out -> sink.x"


@pytest.mark.parametrize(
    ("facts", "durable"),
    [
        ({"durable": True}, True),
        ({"durable": True, "fsync": "interval:50ms"}, False),
        ({"durable": True, "fsync": "never"}, False),
        ({}, False),
    ],
)
def test_a_dead_letter_is_as_safe_as_the_journal_that_forgets_its_message(
    play: Any, monkeypatch: Any, facts: dict[str, Any], durable: bool
) -> None:
    asked: list[bool] = []

    def store(path: str, durable: bool) -> Store:
        asked.append(durable)
        return Store(path, durable)

    monkeypatch.setattr(runner, "Store", store)
    play({"read": numbers(5), "sink": collect([])}, [link(LINK, **facts)])
    assert asked == [durable, durable]


def test_a_file_system_that_fails_ends_the_process(
    play: Any, monkeypatch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also when it fails while somebody waits for room: not the database alone can fail, and a
    journal that is not written, silently, would hold everything up."""
    seen: list[int] = []
    asked = 0
    statvfs = os.statvfs

    def failing(path: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        found = list(statvfs(path))
        return os.statvfs_result(found[:4] + [0] + found[5:] if asked in (3, 4) else found)

    monkeypatch.setattr(journal.os, "statvfs", failing)
    monkeypatch.setattr(journaling, "RETRY", 0.01)
    report, stage = play({"read": numbers(500), "sink": collect(seen)}, [link(LINK, durable=True)])
    assert asked > 5
    assert len(stage.deaths) == 1
    assert "Input/output error" in capfd.readouterr().err
    assert set(seen) == set(range(500))
    assert report.exit == 0
    assert books(report, LINK).entry.dropped == {}
