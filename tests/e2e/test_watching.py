"""What changes on the disk is taken in while the project runs; what does not import is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.supervisor import Silent, Supervisor
from tests.conftest import Eventually
from tests.e2e.harness import Place, link

pytestmark = pytest.mark.e2e
eventually = Eventually()

READ = """
import asyncio, os
from flowkit import Out, Source


class Read(Source):
    numbers = Out(int)

    def __init__(self, enough: str) -> None:
        self.enough = enough

    async def read(self, position):
        at = position or 0
        while not os.path.exists(self.enough):
            at += 1
            yield at, at
            await asyncio.sleep(0.002)
"""

WORK = """
from flowkit import In, Node, Out
from helping.words import WORD


class Work(Node):
    numbers = In(int)
    results = Out(str)

    def __init__(self, mark: str = "") -> None:
        self.mark = mark

    def setup(self) -> None:
        if WORD == "broken":
            raise ValueError("this word is no good")

    def on_numbers(self, number: int) -> None:
        self.results.send(f"{WORD}{self.mark}")
"""

KEEP = """
from flowkit import In, Node


class Keep(Node):
    results = In(str)

    def __init__(self, path: str) -> None:
        self.path = path
        self.last = ""

    def on_results(self, result: str) -> None:
        if result != self.last:
            self.last = result
            with open(self.path, "a") as file:
                file.write(result + "\\n")
"""


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)
    for name, text in (("reading", READ), ("working", WORK), ("keeping", KEEP)):
        Path(place.file(f"{name}.py")).write_text(text)
    Path(place.file("helping")).mkdir()
    Path(place.file("helping/__init__.py")).touch()
    word(place, "'one'")
    yield place
    place.close()


def word(place: Place, expression: str) -> None:
    """Change a module that the code of `work` imports."""
    path = Path(place.file("helping/words.py"))
    fresh = path.with_suffix(".new")
    fresh.write_text(f"WORD = {expression}\n")
    fresh.replace(path)


def topology(place: Place, **settings: Any) -> Path:
    return place.topology(
        {
            "read": {"use": "reading:Read", "with": {"enough": place.file("enough")}},
            "work": {"use": "working:Work", "replicas": 2, "with": settings},
            "keep": {"use": "keeping:Keep", "with": {"path": place.file("kept")}},
        },
        [link("read.numbers -> work.numbers"), link("work.results -> keep.results")],
    )


def kept(place: Place) -> list[str]:
    path = Path(place.file("kept"))
    return path.read_text().split() if path.exists() else []


@contextlib.asynccontextmanager
async def watched(path: Path, notes: Notes) -> AsyncIterator[Supervisor]:
    async with Supervisor(path, watcher=notes) as project:
        watching = asyncio.create_task(project.watch())
        try:
            await eventually.on_loop(lambda: len(project.pids) == 4)
            yield project
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def test_code_and_settings_are_taken_in(place: Place) -> None:
    async def scenario() -> None:
        notes = Notes()
        async with watched(topology(place), notes) as project:
            await eventually.on_loop(lambda: kept(place) == ["one"], 20)
            before = project.pids

            word(place, "'two'")
            await eventually.on_loop(lambda: "two" in kept(place), 20)
            await eventually.on_loop(lambda: len(notes.texts) == 1, 20)
            assert "helping/words.py changed: restarted work" in notes.texts[0]
            after = project.pids
            assert {name for name in before if before[name] != after[name]} == {"work.0", "work.1"}

            word(place, "1 / 0")
            await eventually.on_loop(lambda: len(notes.texts) == 2, 20)
            assert "cannot be used; what runs goes on" in notes.texts[1]
            assert "ZeroDivisionError" in notes.texts[1]
            assert 'words.py", line 1, in <module>' in notes.texts[1], "the traceback is shown"
            assert project.pids == after

            word(place, "'three'")
            await eventually.on_loop(lambda: "three" in kept(place), 20)
            await eventually.on_loop(lambda: len(notes.texts) == 3, 20)

            await project.scale({"work": 3})
            word(place, "'broken'")
            await eventually.on_loop(lambda: len(notes.texts) == 4, 30)
            assert "the code of before runs on" in notes.texts[3]
            assert "ValueError: this word is no good" in notes.texts[3]
            await eventually.on_loop(lambda: len(project.pids) == 5, 20)
            word(place, "'four'")
            await eventually.on_loop(lambda: "four" in kept(place), 20)
            await eventually.on_loop(lambda: len(notes.texts) == 5, 20)
            assert len(project.pids) == 5, "it was scaled, and stays so"
            await project.scale({"work": 2})

            topology(place, mark="!")
            await eventually.on_loop(lambda: "four!" in kept(place), 20)
            await eventually.on_loop(lambda: len(notes.texts) == 6, 20)
            assert "changed: restarted work" in notes.texts[5]

            topology(place, marc="!")
            await eventually.on_loop(lambda: len(notes.texts) == 7, 20)
            assert "did you mean 'mark'?" in notes.texts[6]
            now = project.pids
            assert now["read.0"] == before["read.0"] and now["keep.0"] == before["keep.0"]

            Path(place.file("enough")).touch()
            report = await asyncio.wait_for(project.wait(), 30)
        assert report.exit == 0, report.as_dict()
        assert not any(one.entry.redelivered for one in report.links)
        planned = {one.node: one.planned for one in report.nodes if one.replica == 0}
        assert planned["read"] == planned["keep"] == 0 and planned["work"] >= 5

    asyncio.run(scenario())
