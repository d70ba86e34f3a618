"""raw: bytes travel as they are."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flowkit.codecs.failures import batch_encode_error, check_count, decode_error, name_of
from flowkit.errors import DeclarationError, EncodeError

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


class Raw:
    """A payload is a msgpack array of binaries. The raw of a message is the message."""

    name = "raw"

    def __init__(self, type_: object = bytes) -> None:
        if type_ is not bytes:
            raise DeclarationError(
                f"raw carries bytes, not {name_of(type_)}",
                "leave the codec out, or make the channel's type bytes",
            )

    def encode(self, messages: Sequence[bytes]) -> bytes:
        # msgpack would take any type, and the receiver only would notice: 20 ns a message.
        if not _BYTES.issuperset(map(type, messages)):
            error = TypeError("raw carries bytes")
            raise batch_encode_error(error, bytes, messages, self.encode_one)
        return _encode(messages if type(messages) is list else list(messages))

    def decode(self, payload: bytes | memoryview, count: int) -> list[bytes]:
        try:
            messages = _decode(payload)
        except (ValueError, RecursionError) as error:
            raise decode_error(error, bytes) from error
        check_count(len(messages), count)
        return messages

    split = decode

    def decode_one(self, raw: bytes) -> bytes:
        return raw

    def encode_one(self, message: bytes) -> bytes:
        if type(message) is not bytes:
            raise EncodeError(f"{type(message).__qualname__} cannot be sent as bytes")
        return message


_BYTES = frozenset({bytes})
