"""Queues and pipes that are closed at the end of a test, and children that are ended with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flowkit import mp
from flowkit.mp import lifeline

FORK: Any = multiprocessing.get_context("fork")


@pytest.fixture(scope="module", autouse=True)
def broker() -> Iterator[None]:
    """One broker for all queues of a module: so that not every test has to wait for its own."""
    ours = lifeline.hold()
    yield
    ours.release()


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """`make(mp.Queue, 3, codec="raw")` or `make(mp.Pipe)`: closed in the end, its ends too."""
    made: list[Any] = []

    def make(kind: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        if kind is not mp.Pipe and kind is not mp.connect:
            settings.setdefault("ctx", FORK)
        one = kind(*arguments, **settings)
        made.extend(one if isinstance(one, tuple) else [one])
        return one

    yield make
    for one in made:
        one.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """`start(function, *arguments)`: a forked child, killed in the end if it has not ended."""
    children: list[Any] = []

    def start(function: Callable[..., Any], *arguments: Any) -> Any:
        child = FORK.Process(target=function, args=arguments)
        child.start()
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.join()
        child.close()
