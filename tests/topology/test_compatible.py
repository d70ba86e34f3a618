"""When a message surely cannot be decoded, compared with what msgspec really does."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict, TypeVar

import msgspec
import pytest

from flowkit.topology.compatible import field_path, mismatch, scalar, type_name


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Event(msgspec.Struct):
    user: str
    count: int = 0


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    user: str


class Renamed(msgspec.Struct, rename="camel"):
    user_name: str


class Snake(msgspec.Struct):
    user_name: str


class Compact(msgspec.Struct, array_like=True):
    user: str


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class Tree(msgspec.Struct):
    children: list[Tree]


class Bush(msgspec.Struct):
    children: list[Bush]


@dataclass
class User:
    user: str


@dataclass
class Stranger:
    user: int


class Given(TypedDict):
    user: str
    count: NotRequired[int]


UserId = NewType("UserId", str)
T = TypeVar("T")

FITS = [
    (str, str),
    (str, Any),
    (Any, str),
    (str, object),
    (str, T),
    (bool, bool),
    (int, float),
    (int, int | None),
    (int | None, int),
    (str | int, int | bytes),
    (list[int], list[float]),
    (list[int], Sequence[int]),
    (set[int], list[int]),
    (list[int], tuple[int, ...]),
    (list, list[int]),
    (tuple[int, str], tuple[float, str]),
    (dict[str, int], Mapping[str, float]),
    (dict, dict[str, int]),
    (UserId, str),
    (str, UserId),
    (Annotated[str, "text"], str),
    (Optional[str], str),  # noqa: UP045
    (Event, Event),
    (Event, User),
    (User, Event),
    (Given, Event),
    (Event, Given),
    (Event, dict[str, Any]),
    (Event, dict[str, str | int]),
    (dict[str, Any], Event),
    (dict[str, str], User),
    (Tree, Bush),
    (str, Colour),
    (Colour, str),
    (Level, int),
    (str, datetime.datetime),
    (datetime.datetime, str),
    (datetime.datetime, datetime.datetime),
    (int, decimal.Decimal),
    (uuid.UUID, str),
    (bytes, uuid.UUID),
    (Literal["a", "b"], str),
    (Literal["a"], Literal["a", "b"]),
    (bytes, bytearray),
    (Compact, list[str]),
    (User, Closed),
    (None, str | None),
    (range, str),  # nobody knows what that is
]

FAILS = [
    (str, int),
    (int, str),
    (float, int),
    (bool, int),
    (int, bool),
    (str, bytes),
    (bytes, str),
    (None, str),
    (str, list[str]),
    (list[str], str),
    (list[str], list[int]),
    (list[str], dict[str, str]),
    (tuple[int, str], tuple[int, str, int]),
    (tuple[int, str], list[int]),
    (dict[str, int], dict[str, str]),
    (dict[int, str], dict[str, str]),
    (str | int, bytes),
    (Event, str),
    (User, Stranger),
    (Given, Stranger),
    (dict[str, int], User),
    (dict[int, str], User),
    (Event, dict[str, str]),
    (Event, dict[int, Any]),
    (User, Renamed),
    (Renamed, Snake),
    (Cat, Dog),
    (Compact, User),
    (User, Compact),
    (Event, Closed),
    (int, Colour),
    (Colour, int),
    (Level, str),
    (int, uuid.UUID),
    (datetime.datetime, int),
    (Literal["a"], Literal["b"]),
    (Literal["a"], int),
    (list[Event], list[Renamed]),
]


@pytest.mark.parametrize(("produced", "consumed"), FITS, ids=str)
def test_may_fit(produced: Any, consumed: Any) -> None:
    assert mismatch(produced, consumed) is None


@pytest.mark.parametrize(("produced", "consumed"), FAILS, ids=str)
def test_surely_fails(produced: Any, consumed: Any) -> None:
    assert mismatch(produced, consumed)


SAMPLES: list[tuple[Any, Any]] = [
    (str, "a"),
    (int, 1),
    (float, 1.5),
    (bool, True),
    (bytes, b"a"),
    (list[str], ["a"]),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {1: "a"}),
    (Event, Event("a", 1)),
    (User, User("a")),
    (Stranger, Stranger(1)),
    (Renamed, Renamed("a")),
    (Compact, Compact("a")),
    (Cat, Cat("a")),
    (Dog, Dog("a")),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (datetime.datetime, datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)),
    (uuid.UUID, uuid.UUID(int=1)),
    (decimal.Decimal, decimal.Decimal("1.5")),
    (None, None),
]


@pytest.mark.parametrize(("produced", "value"), SAMPLES, ids=lambda one: str(one)[:30])
def test_what_is_refused_does_not_decode(produced: Any, value: Any) -> None:
    """Conservative: nothing that msgspec would decode is refused."""
    data = msgspec.msgpack.encode(value)
    for consumed, _ in SAMPLES:
        try:
            msgspec.msgpack.decode(data, type=consumed)
        except msgspec.ValidationError:
            continue
        assert mismatch(produced, consumed) is None, (produced, consumed)


def test_reasons() -> None:
    assert mismatch(User, Stranger) == "field 'user': str cannot be read as int"
    assert mismatch(Snake, Event) == "Event needs 'user', which Snake has not"
    assert mismatch(list[str], list[int]) == "items: str cannot be read as int"
    assert mismatch(dict[str, int], dict[str, str]) == "values: int cannot be read as str"


def test_json_carries_less() -> None:
    assert mismatch(bytes, str) and mismatch(bytes, str, json=True) is None
    assert mismatch(dict[int, str], dict[str, str], json=True) is None
    assert mismatch(str, int, json=True)


@pytest.mark.parametrize(
    ("kind", "is_key"),
    [(str, True), (int | None, True), (Event, False), (list[int], False), (Any, None)],
)
def test_what_can_be_a_key(kind: Any, is_key: bool | None) -> None:
    assert scalar(kind) is is_key


@pytest.mark.parametrize(
    ("kind", "path", "step"),
    [
        (Event, "user", None),
        (Event, "usr", "usr"),
        (Event, "user.name", "name"),
        (Renamed, "user_name", None),
        (dict[str, Event], "anything.user", None),
        (dict[str, Event], "anything.usr", "usr"),
        (Given, "user", None),
        (str, "length", "length"),
        (Any, "whatever", None),
        (Event | None, "whatever", None),
    ],
)
def test_paths_to_keys(kind: Any, path: str, step: str | None) -> None:
    found = field_path(kind, path)
    assert (found and found[0]) == step


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (dict[str, list[int]], "dict[str, list[int]]"),
        (int | None, "int | None"),
        (Event, "Event"),
        (Literal["a", 1], "Literal['a', 1]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Any, "Any"),
    ],
)
def test_names(kind: Any, name: str) -> None:
    assert type_name(kind) == name
