"""What travels beside a message: its key, its id, its headers; and what a batch of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Generic, TypeAlias, TypeVar
from zlib import crc32

import msgspec

Key: TypeAlias = str | bytes | int | float | bool | None | tuple[Any, ...]
"""What a message may be grouped by: a scalar, or a tuple of keys."""

SLOTS = 4096
"""Keys are spread over this many slots, slots over replicas. Part of what peers agree on."""

_SCALARS = frozenset({str, bytes, int, float, bool, NoneType})

_encode = msgspec.msgpack.Encoder().encode


class Meta(msgspec.Struct, frozen=True):
    """What a handler learns about its message when it takes a second argument.

    `id` is the same at every redelivery, so that an effect can be made idempotent by it.
    `attempts` counts the earlier deliveries that failed: 0 the first time. `missed` says, on a
    link with ``pattern: pubsub``, how many messages were dropped for this replica just before.
    """

    id: str
    key: Key = None
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    attempts: int = 0
    missed: int = 0


T = TypeVar("T")


class Many(Generic[T]):
    """Several messages with one position: ``yield Many(messages), position`` in a source."""

    __slots__ = ("messages",)

    def __init__(self, messages: Sequence[T]) -> None:
        self.messages = messages

    def __repr__(self) -> str:
        return f"Many({len(self.messages)} messages)"


class Pieces:
    """A payload in pieces: joined they are the payload. So large messages need not be copied to
    stand beside each other."""

    __slots__ = ("parts", "_size")

    def __init__(self, parts: Sequence[bytes]) -> None:
        self.parts = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


Payload: TypeAlias = bytes | Pieces
"""The messages of a batch, encoded."""


def whole(payload: Payload | memoryview) -> bytes | memoryview:
    """`payload` in one piece."""
    return bytes(payload) if type(payload) is Pieces else payload  # type: ignore[return-value]


def message_id(batch_id: bytes, index: int) -> str:
    """The id of the message at `index` of the batch with lineage id `batch_id` (16 bytes)."""
    return f"{batch_id.hex()}-{index}"


def check_key(key: object) -> None:
    """Raise TypeError unless `key` is a `Key`.

    The types are meant exactly: an enum member, say, would arrive as its bare value. Containers
    other than tuples are refused because the order of a set differs between processes.
    """
    if type(key) is tuple:
        for part in key:
            check_key(part)
    elif type(key) not in _SCALARS:
        raise TypeError(
            f"a key cannot be {type(key).__qualname__}: it must be str, bytes, int, float, bool,"
            " None or a tuple of these"
        )


def are_scalars(keys: Sequence[object]) -> bool:
    """Whether every one of `keys` is a valid key and none is a tuple, found at C speed."""
    return _SCALARS.issuperset(map(type, keys))


# Slots of the first strings seen, which tend to be the frequent ones. 80 ns for a known string,
# 120 ns if there were no cache. It stops learning when it is full: an unknown string then costs
# 220 ns; replacing entries instead, 400 ns. Strings only: 1, 1.0 and True are one dict key, but
# three different msgpack keys.
_known: dict[str, int] = {}
_KNOWN_LIMIT = 65_536  # entries; with the length, this bounds the memory to about 10 MB
_KNOWN_LENGTH = 64


def slot_of(key: Key) -> int:
    """The slot of `key`, 0 <= slot < SLOTS; the same in every process and on every machine.

    Raises TypeError for what is no `Key`. Keys of different types have slots of their own,
    also where Python calls them equal (1, 1.0 and True).
    """
    if type(key) is str:
        if key in _known:
            return _known[key]
        slot = _slot(key)
        if len(_known) < _KNOWN_LIMIT and len(key) <= _KNOWN_LENGTH:
            _known[key] = slot
        return slot
    check_key(key)
    return _slot(key)


def _slot(key: Key) -> int:
    try:
        return crc32(_encode(key)) % SLOTS
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise TypeError(f"a key must fit msgpack: {error}") from error
