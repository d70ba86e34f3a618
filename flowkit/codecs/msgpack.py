"""msgpack: the default codec."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from flowkit.codecs.structured import Structured

T = TypeVar("T")


class Msgpack(Structured[T]):
    """A payload is a msgpack array. 7 ns to encode, 26 ns to decode a short str in a batch."""

    name = "msgpack"

    def __init__(self, type_: Any) -> None:
        super().__init__(type_, msgspec.msgpack, scan)


# What follows the tags of the msgpack specification from 0xc0 on; 0xc1 is never used.
_FIXED = {  # so many bytes: nil, false, true; floats; uints; ints; fixexts
    tag: size
    for first, sizes in {
        0xC0: (0,),
        0xC2: (0, 0),
        0xCA: (4, 8),
        0xCC: (1, 2, 4, 8),
        0xD0: (1, 2, 4, 8),
        0xD4: (2, 3, 5, 9, 17),
    }.items()
    for tag, size in enumerate(sizes, first)
}
_SIZED = {  # a length of so many bytes, then that many bytes and so many more: bin, ext, str
    tag + power: (1 << power, more)
    for tag, more in ((0xC4, 0), (0xC7, 1), (0xD9, 0))
    for power in range(3)
}
_NESTED = {  # a length of so many bytes, then so many values for each of it: array, map
    0xDC: (2, 1),
    0xDD: (4, 1),
    0xDE: (2, 2),
    0xDF: (4, 2),
}


def scan(data: bytes) -> list[bytes]:
    """The values of the msgpack array `data`, each as its bytes, nested as deeply as may be.

    Raises ValueError if `data` is not exactly one array. Values are not validated further.
    """
    try:
        tag = data[0]
        if 0x90 <= tag <= 0x9F:
            count, at = tag & 0x0F, 1
        elif tag in (0xDC, 0xDD):
            at = 1 + _NESTED[tag][0]
            count = int.from_bytes(data[1:at])
        else:
            raise ValueError("not an array")
        values = []
        for _ in range(count):
            start, at = at, _end_of_value(data, at)
            values.append(data[start:at])
    except (IndexError, KeyError):
        raise ValueError("malformed msgpack") from None
    if at != len(data):
        raise ValueError("malformed msgpack")
    return values


def _end_of_value(data: bytes, at: int) -> int:
    """Where the value that starts at `at` ends; IndexError or KeyError if it does not."""
    values = 1
    while values:
        values -= 1
        tag = data[at]
        at += 1
        if tag < 0x80 or tag >= 0xE0:  # fixint
            continue
        if tag < 0x90:  # fixmap
            values += 2 * (tag & 0x0F)
        elif tag < 0xA0:  # fixarray
            values += tag & 0x0F
        elif tag < 0xC0:  # fixstr
            at += tag & 0x1F
        elif tag in _NESTED:
            width, factor = _NESTED[tag]
            values += factor * int.from_bytes(data[at : at + width])
            at += width
        elif tag in _SIZED:
            width, more = _SIZED[tag]
            at += width + more + int.from_bytes(data[at : at + width])
        else:
            at += _FIXED[tag]
    if at > len(data):
        raise IndexError
    return at
