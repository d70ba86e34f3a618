"""Items as bytes and back: a *page* is the body of a frame that holds many items.

The first byte of a page says what follows it, a msgpack array of

* ``v``: the items themselves, each of which is immutable.
* ``m``: the items themselves, each decoded when it is taken, and by nobody else.
* ``p``: one pickle for each item, undone when that item is taken: so one that does not unpickle
  takes no other with it.

With the codec pickle, too, items go as ``v`` or ``m`` if that gives back the same: what msgpack has
one meaning for, and nothing in it that could be there twice. It is several times as fast.
"""

from __future__ import annotations

import copyreg
import threading
from collections import ChainMap
from collections.abc import Callable, Sequence
from itertools import chain
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import msgspec

Decode = Callable[[Any], Any] | None
"""What an item of a page has to go through when it is taken, if anything."""

_PLAIN = frozenset({bytes, str, int, float, bool, type(None)})
_TEXT = frozenset({str})

_encode = msgspec.msgpack.Encoder().encode
_values = msgspec.msgpack.Decoder().decode
_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_pickles = msgspec.msgpack.Decoder(list[bytes]).decode

REFUSED = (OverflowError, UnicodeEncodeError, ValueError, RuntimeError)
"""What msgpack does not take of what is plain: an int beyond 64 bits, half a surrogate pair; or a
dictionary that somebody changes just now."""


def _are_flat(items: Sequence[Any]) -> bool:
    """Whether all `items` are flat; faster than to ask for each if all are dictionaries."""
    if set(map(type, items)) != {dict}:
        return all(map(is_flat, items))
    values = chain.from_iterable(map(dict.values, items))
    keys = chain.from_iterable(items)
    return _PLAIN.issuperset(map(type, values)) and _TEXT.issuperset(map(type, keys))


def is_flat(item: Any) -> bool:
    """A list or a dictionary (or neither) that holds nothing but plain values."""
    kind = type(item)
    if kind is dict:
        return _TEXT.issuperset(map(type, item)) and _PLAIN.issuperset(map(type, item.values()))
    return _PLAIN.issuperset(map(type, item)) if kind is list else kind in _PLAIN


class Codec(Protocol):
    """How the items of one queue become pages."""

    name: str

    def page(self, items: Sequence[Any]) -> bytes:
        """All of `items`. Raises whatever encoding one of them raises."""

    def open(self, page: bytes | memoryview) -> tuple[list[Any], Decode]:
        """The items of a page."""

    def encode_one(self, item: Any) -> bytes:
        """An item as bytes, for a peer that gets it alone."""

    def decode_one(self, raw: bytes) -> Any:
        """The item that such a peer has sent."""


class _Written:
    """The file of a pickler: it writes once, or in a few large chunks."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.write = self.chunks.append


class Pickle:
    """Any object, as `multiprocessing` pickles it: also locks, connections, queues."""

    name = "pickle"

    def __init__(self) -> None:
        self._written = _Written()
        self._pickler = ForkingPickler(self._written, 5)
        # Not the copy that it has made: a type may be registered later.
        registered: Any = (ForkingPickler._extra_reducers, copyreg.dispatch_table)  # type: ignore[attr-defined]
        self._pickler.dispatch_table = ChainMap(*registered)  # type: ignore[assignment]
        self._busy = threading.Lock()

    def page(self, items: Sequence[Any]) -> bytes:
        try:
            if _PLAIN.issuperset(map(type, items)):
                return b"v" + _encode(items)
            if _are_flat(items):
                return b"m" + _encode(items)
        except REFUSED:
            pass
        return b"p" + _encode([self.encode_one(item) for item in items])

    def open(self, page: bytes | memoryview) -> tuple[list[Any], Decode]:
        body, kind = memoryview(page)[1:], page[:1]
        if kind == b"v":
            return _values(body), None
        if kind == b"m":
            return _raws(body), _values
        return _pickles(body), ForkingPickler.loads

    def encode_one(self, item: Any) -> bytes:
        # One pickler for all: making one costs five times what it does with a small object. Unless
        # it is in use: by another thread, or by this one, if to pickle an item sends another.
        if not self._busy.acquire(False):
            return bytes(ForkingPickler.dumps(item, 5))
        chunks = self._written.chunks
        try:
            self._pickler.dump(item)
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            self._pickler.clear_memo()
            chunks.clear()
            self._busy.release()

    def decode_one(self, raw: bytes) -> Any:
        return ForkingPickler.loads(raw)


class Msgpack:
    """What msgspec encodes as msgpack; it comes out as builtins. For other languages."""

    name = "msgpack"

    def page(self, items: Sequence[Any]) -> bytes:
        return b"m" + _encode(items)

    def open(self, page: bytes | memoryview) -> tuple[list[Any], Decode]:
        return _raws(memoryview(page)[1:]), _values

    def encode_one(self, item: Any) -> bytes:
        return _encode(item)

    def decode_one(self, raw: bytes) -> Any:
        return _values(raw)


class Raw:
    """Bytes, and nothing else."""

    name = "raw"

    def page(self, items: Sequence[Any]) -> bytes:
        for item in items:
            if not isinstance(item, bytes | bytearray | memoryview):
                raise TypeError(f"codec 'raw' carries bytes, not {type(item).__name__}")
        return b"v" + _encode(items)

    def open(self, page: bytes | memoryview) -> tuple[list[Any], Decode]:
        return _values(memoryview(page)[1:]), None

    def encode_one(self, item: Any) -> bytes:
        return bytes(item)

    def decode_one(self, raw: bytes) -> Any:
        return raw


CODECS: dict[str, Callable[[], Codec]] = {"pickle": Pickle, "msgpack": Msgpack, "raw": Raw}


def codec(name: str) -> Codec:
    """A codec of that name. Raises ValueError."""
    if name not in CODECS:
        raise ValueError(f"there is no codec {name!r}, only {', '.join(CODECS)}")
    return CODECS[name]()
