"""Launchers with a record of what they report, and the pipes of their children."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowkit.launchers.process import ProcessLauncher

CHILDREN = Path(__file__).parent / "children"


class Family:
    """A launcher, what it has reported, and what its children have written."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("entry", "launched:main")
        options.setdefault("path", [str(CHILDREN)])
        self.launcher = ProcessLauncher(self._on_started, self._on_exit, **options)
        self.story: list[tuple[str, str]] = []
        self.pids: dict[str, int] = {}
        self.exits: dict[str, tuple[int, str | None]] = {}
        self.out: dict[str, bytearray] = {}
        self.err: dict[str, bytearray] = {}
        self._open: set[int] = set()
        self._changed = asyncio.Event()

    def _on_started(self, name: str, pid: int) -> None:
        self.story.append(("started", name))
        self.pids[name] = pid
        self._changed.set()

    def _on_exit(self, name: str, exitcode: int, error: str | None) -> None:
        self.story.append(("exit", name))
        self.exits[name] = (exitcode, error)
        self._changed.set()

    def launch(self, name: str, spec: str, *, title: str = "a child", **env: str) -> None:
        """Launch a child whose two streams are collected in `out` and `err`."""
        stdout, stderr = self._pipe(self.out, name), self._pipe(self.err, name)
        self.launcher.launch(
            name, spec.encode(), title=title, env=env, stdout=stdout, stderr=stderr
        )

    def _pipe(self, where: dict[str, bytearray], name: str) -> int:
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        data = where[name] = bytearray()
        self._open.add(reader)

        def readable() -> None:
            part = os.read(reader, 1 << 16)
            data.extend(part)
            if not part:
                self._drop(reader)
            self._changed.set()

        loop.add_reader(reader, readable)
        return writer

    def _drop(self, reader: int) -> None:
        self._open.discard(reader)
        asyncio.get_running_loop().remove_reader(reader)
        os.close(reader)

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Return once `condition` holds; it is looked at after every report and every byte."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def speaking(self, *names: str) -> None:
        """Return once these children have started and said a word, in whatever order that came."""
        await self.until(lambda: all(name in self.pids and self.out[name] for name in names))

    async def ended(self, *names: str) -> None:
        """Return once the children of these names are gone and their pipes are empty."""
        await self.until(lambda: all(name in self.exits for name in names) and not self._open)

    async def close(self) -> None:
        await self.launcher.close()
        for reader in list(self._open):
            self._drop(reader)


@asynccontextmanager
async def _family(**options: Any) -> AsyncIterator[Family]:
    family = Family(**options)
    try:
        await family.launcher.start()
        yield family
    finally:
        await family.close()


@pytest.fixture
def family() -> Callable[..., Any]:
    """`async with family(**options of ProcessLauncher) as family:` starts one, and closes it."""
    return _family


@pytest.fixture
def children() -> Path:
    """The directory with the modules that the children import."""
    return CHILDREN
