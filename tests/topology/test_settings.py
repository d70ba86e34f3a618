"""Settings against a constructor's signature."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from flowkit.channels import In
from flowkit.errors import SettingsError
from flowkit.node import Node, describe
from flowkit.runtime.settings import examine, fit


class Mode(enum.Enum):
    FAST = "fast"


class Limits(msgspec.Struct):
    low: int
    high: int = 9


class Opaque:
    pass


class Typed(Node):
    given = In(str)

    def __init__(
        self,
        path: Path,
        count: int = 1,
        ratio: float = 0.5,
        mode: Mode = Mode.FAST,
        limits: Limits | None = None,
        tags: set[str] = frozenset(),  # type: ignore[assignment]
        kind: Literal["a", "b"] = "a",
        anything: Any = None,
        untyped=None,  # type: ignore[no-untyped-def]
        opaque: Opaque | None = None,
    ) -> None:
        pass

    def on_given(self, text: str) -> None:
        pass


class Open(Node):
    given = In(str)

    def __init__(self, size: int = 1, **more: Any) -> None:
        pass

    def on_given(self, text: str) -> None:
        pass


class Plain(Node):
    given = In(str)

    def on_given(self, text: str) -> None:
        pass


def test_values_get_their_types() -> None:
    given = {
        "path": "a/b",
        "ratio": 2,
        "mode": "fast",
        "limits": {"low": 1},
        "tags": ["x"],
        "kind": "b",
        "anything": [1],
        "untyped": "text",
    }
    assert fit(describe(Typed), given) == {
        "path": Path("a/b"),
        "ratio": 2.0,
        "mode": Mode.FAST,
        "limits": Limits(1),
        "tags": {"x"},
        "kind": "b",
        "anything": [1],
        "untyped": "text",
    }


@pytest.mark.parametrize(
    ("given", "text", "hint"),
    [
        ({}, "Typed needs the setting 'path'", "add it under 'with:' (path: Path)"),
        ({"path": 5}, "setting 'path' is Path, not 5", ""),
        ({"path": "a", "count": "5"}, "'count' is int, not the text \"5\"", "remove the quotes"),
        ({"path": "a", "count": True}, "setting 'count' is int, not true", ""),
        ({"path": "a", "count": 1.5}, "setting 'count' is int, not 1.5", ""),
        ({"path": "a", "mode": "slow"}, "setting 'mode' is Mode, not the text \"slow\"", ""),
        ({"path": "a", "kind": "c"}, "setting 'kind' is Literal['a', 'b']", ""),
        ({"path": "a", "limits": {"low": "x"}}, "Limits | None: Expected int, got str at low", ""),
        ({"path": "a", "cuont": 1}, "Typed has no setting 'cuont'", "did you mean 'count'?"),
    ],
)
def test_what_does_not_fit(given: dict[str, Any], text: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        fit(describe(Typed), given)
    assert text in str(caught.value) and hint in caught.value.hint


def test_all_problems_at_once() -> None:
    problems, fitted = examine(describe(Typed), {"count": "x", "mode": "fast", "more": 1})
    assert [problem.setting for problem in problems] == ["count", "more", None]
    assert fitted == {"mode": Mode.FAST}


def test_open_settings_take_any_name() -> None:
    assert fit(describe(Open), {"size": 2, "other": "x"}) == {"size": 2, "other": "x"}


def test_no_settings() -> None:
    with pytest.raises(SettingsError) as caught:
        fit(describe(Plain), {"a": 1})
    assert caught.value.hint == "Plain takes no settings"
