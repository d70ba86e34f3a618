"""raw: bytes travel as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from flowkit.codecs.failures import batch_encode_error, check_count, decode_error, name_of
from flowkit.errors import DeclarationError, DecodeError, EncodeError
from flowkit.message import Payload, Pieces, whole

LARGE = 64 << 10
"""Bytes from which on a message is not copied into the array with its neighbours but stands in it
as a piece of its own. A piece costs two frames, 5 us; to copy 64 KiB into new memory takes 10."""

MOST = 256
"""Messages in pieces at most: a batch of large messages holds a few."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_any = msgspec.msgpack.Decoder(list[Any]).decode


class Raw:
    """A payload is a msgpack array of binaries. The raw of a message is the message."""

    name = "raw"

    def __init__(self, type_: object = bytes) -> None:
        if type_ is not bytes:
            raise DeclarationError(
                f"raw carries bytes, not {name_of(type_)}",
                "leave the codec out, or make the channel's type bytes",
            )

    def encode(self, messages: Sequence[bytes]) -> Payload:
        # msgpack would take any type. The first and the last are looked at, which finds a node that
        # sends the wrong thing; the odd one between them is found where it arrives, as with other
        # codecs. To look at all took 20 ns a message, twice as long as to encode it.
        if messages and (type(messages[0]) is not bytes or type(messages[-1]) is not bytes):
            error = TypeError("raw carries bytes")
            raise batch_encode_error(error, bytes, messages, self.encode_one)
        if messages and len(messages[0]) >= LARGE and len(messages) <= MOST:
            pieces = _pieces(messages)
            if pieces is not None:
                return pieces
        try:
            return _encode(messages if isinstance(messages, list) else list(messages))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise batch_encode_error(error, bytes, messages, self.encode_one) from error

    def decode(self, payload: Payload | memoryview, count: int) -> list[bytes]:
        if type(payload) is Pieces:
            messages = list(payload.parts[1::2])
            pieces = _pieces(messages)
            if pieces is not None and pieces.parts == payload.parts:
                check_count(len(messages), count)
                return messages
        try:
            messages = _decode(whole(payload))  # pieces may be cut by somebody else's rules
        except (ValueError, RecursionError) as error:
            raise decode_error(error, bytes) from error
        check_count(len(messages), count)
        return messages

    def split(self, payload: Payload | memoryview, count: int) -> list[bytes]:
        try:
            values = _decode_any(whole(payload))
        except (ValueError, RecursionError) as error:
            raise decode_error(error, bytes) from error
        check_count(len(values), count)
        return [value if type(value) is bytes else _Odd(_encode(value)) for value in values]

    def decode_one(self, raw: bytes) -> bytes:
        if type(raw) is _Odd:
            raise DecodeError(f"not bytes: {name_of(type(_odd(raw)))}")
        return raw

    def encode_one(self, message: bytes) -> bytes:
        if type(message) is not bytes:
            raise EncodeError(f"{type(message).__qualname__} cannot be sent as bytes")
        return message


class _Odd(bytes):
    """The msgpack of something in an array of binaries that is none."""

    __slots__ = ()


_odd = msgspec.msgpack.Decoder().decode


def _pieces(messages: Sequence[bytes]) -> Pieces | None:
    """`messages` in an array of binaries of 32-bit lengths; None if that is not for all of them."""
    count = len(messages)
    head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2)
    parts: list[bytes] = []
    for message in messages:
        if type(message) is not bytes or len(message) < LARGE:
            return None
        parts.append(b"%b\xc6%b" % (head, len(message).to_bytes(4)))
        parts.append(message)
        head = b""
    return Pieces(parts)
