"""Extras: the keys and headers of a batch, parallel to its messages. Absent when not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flowkit.codecs.failures import check_count
from flowkit.errors import DecodeError, EncodeError
from flowkit.message import Key, are_scalars, check_key

Headers = list[dict[str, str] | None]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[Any] | None, Headers | None]).decode


def encode_extras(
    keys: Sequence[Key] | None, headers: Sequence[Mapping[str, str] | None] | None
) -> bytes:
    """`keys` and `headers` of a batch, one for each message; b"" when there are neither.

    Raises EncodeError for what is no `Key`, and for headers that are not text to text.
    """
    if keys is None and headers is None:
        return b""
    try:
        if keys is not None and not are_scalars(keys):
            for key in keys:
                check_key(key)
        checked = None if headers is None else msgspec.convert(headers, Headers)
        return _encode((keys, checked))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodeError(f"keys or headers cannot be sent: {error}") from error


def decode_extras(
    data: bytes, count: int
) -> tuple[list[Key] | None, list[dict[str, str] | None] | None]:
    """The keys and headers of a batch of `count` messages, each None when not used.

    Raises DecodeError, and nothing else, for bytes that are not that.
    """
    if not data:
        return None, None
    try:
        keys, headers = _decode(data)
        if keys is not None:
            check_count(len(keys), count)
            if not are_scalars(keys):
                keys = [_key(key) for key in keys]
        if headers is not None:
            check_count(len(headers), count)
    except DecodeError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise DecodeError(f"not keys and headers: {error}") from error
    return keys, headers


def _key(value: Any) -> Key:
    """A key as it was sent: msgpack knows no tuples."""
    if type(value) is list:
        return tuple(map(_key, value))
    check_key(value)
    return value  # type: ignore[no-any-return]
