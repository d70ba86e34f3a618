"""Messages that travel alone, as foreign peers send and expect them: no array around them.

A payload is pieces, one for each message. A message of type ``list[bytes]`` is a multipart message
of ZeroMQ, frame for frame; every other is one frame, encoded by the codec of its channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from flowkit.codecs import codec_for
from flowkit.errors import DecodeError, EncodeError
from flowkit.message import Payload, Pieces

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[bytes]).decode


class Several(bytes):
    """The frames, as msgpack, of a message that should have had one."""

    __slots__ = ()


class Single:
    """The codec of a channel whose messages travel alone."""

    def __init__(self, type_: Any, name: str | None = None) -> None:
        self.multipart = type_ == list[bytes] and name is None
        self._inner = codec_for(type_, name)
        self.name = self._inner.name

    def encode(self, messages: Sequence[Any]) -> Pieces:
        return Pieces([self.encode_one(message) for message in messages])

    def decode(self, payload: Payload | memoryview, count: int) -> list[Any]:
        raws = self.split(payload, count)
        if Several in set(map(type, raws)):
            raise DecodeError("a message of several frames among them")
        if self.name == "raw":
            return raws
        return list(map(self._inner.decode_one, raws))

    def split(self, payload: Payload | memoryview, count: int) -> list[bytes]:
        parts = payload.parts if isinstance(payload, Pieces) else (bytes(payload),)
        if len(parts) != count:
            raise DecodeError(f"{len(parts)} messages where {count} are announced")
        return list(parts)

    def decode_one(self, raw: bytes) -> Any:
        if type(raw) is Several:
            raise DecodeError(
                f"a message of {len(_unpack(raw))} frames; for such the channel's type is "
                "list[bytes]"
            )
        return self._inner.decode_one(raw)

    def encode_one(self, message: Any) -> bytes:
        if self.multipart and not message:
            raise EncodeError("a message of no frames: ZeroMQ has none of less than one")
        return self._inner.encode_one(message)

    # -- frames --------------------------------------------------------------------------------

    def raw_of(self, frames: Sequence[bytes]) -> bytes:
        """The raw of a message that came as `frames`, whether it will decode or not."""
        if self.multipart:
            return _pack(frames)
        return frames[0] if len(frames) == 1 else Several(_pack(frames))

    def frames_of(self, raw: bytes) -> list[bytes]:
        """The frames of a message."""
        return _unpack(raw) if self.multipart else [raw]
