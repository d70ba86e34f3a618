"""Projects that run in the test's own process, each with directories of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowkit import Node
from flowkit.report import Report
from flowkit.runtime import inlet
from tests.runtime.stage import Part, Stage, check

Build = Callable[..., Stage]


@pytest.fixture
def on_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """`on_loop(coroutine)` runs it on a loop of its own; errors of callbacks fail the test."""
    wrong: list[dict[str, Any]] = []

    async def guarded(coroutine: Coroutine[Any, Any, Any]) -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        return await coroutine

    yield lambda coroutine: asyncio.run(guarded(coroutine))
    assert not wrong


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlet, "BACKOFF", 0.001)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """`stage(parts, links, **options)` is a `Stage` to be entered."""
    monkeypatch.setenv("FLOWKIT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", str(tmp_path / "state"))

    def build(
        parts: Mapping[str, type[Node] | Part], links: Sequence[Any] = (), **options: Any
    ) -> Stage:
        return Stage(tmp_path, parts, links, **options)

    return build


@pytest.fixture
def play(stage: Build, on_loop: Any) -> Callable[..., tuple[Report, Stage]]:
    """`play(parts, links)` runs a project to its end and returns its report and the stage.

    The project is expected to end drained, with nothing lost, unless the arguments say otherwise.
    """

    def run(
        parts: Mapping[str, type[Node] | Part],
        links: Sequence[Any] = (),
        ends: str = "drained",
        checked: bool = True,
        **options: Any,
    ) -> tuple[Report, Stage]:
        async def whole() -> tuple[Report, Stage]:
            async with stage(parts, links, **options) as built:
                report = await built.wait()
            return report, built

        report, built = on_loop(whole())
        if ends == "drained" and checked:
            check(report)
        assert report.status.value == ends, report.reason
        return report, built

    return run
