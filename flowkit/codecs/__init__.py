"""Codecs: the messages of a batch as bytes and back.

Each codec is one module, imported when a channel first asks for it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from flowkit.codecs.extras import decode_extras, encode_extras
from flowkit.errors import DeclarationError
from flowkit.importing import did_you_mean, load_object
from flowkit.message import Payload

__all__ = ["CODECS", "Codec", "codec_for", "decode_extras", "encode_extras"]

T = TypeVar("T")

CODECS = {
    "raw": "flowkit.codecs.raw:Raw",
    "msgpack": "flowkit.codecs.msgpack:Msgpack",
    "json": "flowkit.codecs.json:Json",
    "pickle": "flowkit.codecs.pickle:Pickle",
}
"""Where each codec lives: a class that is called with the type of a channel's messages."""


class Codec(Protocol[T]):
    """Messages of one type as bytes. Stateless: may be shared by any number of channels.

    A payload is the array of the messages of one batch. A *raw* is one of them, undecoded: what a
    dead letter keeps.
    """

    name: str

    def encode(self, messages: Sequence[T]) -> Payload:
        """The payload that holds `messages`. Raises EncodeError, which names the culprit."""

    def decode(self, payload: Payload | memoryview, count: int) -> list[T]:
        """The messages of `payload`, all or none.

        Raises DecodeError, and nothing else, for bytes that are not `count` valid messages; go on
        with `split` and `decode_one` to find the bad ones.
        """

    def split(self, payload: Payload | memoryview, count: int) -> list[bytes]:
        """The raw of each message of `payload`. Raises DecodeError if even the array is broken."""

    def decode_one(self, raw: bytes) -> T:
        """The message in `raw`. Raises DecodeError."""

    def encode_one(self, message: T) -> bytes:
        """The raw of `message`. Raises EncodeError."""


def codec_for(type_: object, name: str | None = None) -> Codec[Any]:
    """The codec called `name` for messages of `type_`; by default raw for bytes, else msgpack.

    Raises DeclarationError for an unknown name, or a type that the codec cannot carry.
    """
    if name is None:
        name = "raw" if type_ is bytes else "msgpack"
    if name not in CODECS:
        raise DeclarationError(f"there is no codec '{name}'", did_you_mean(name, CODECS))
    codec: Codec[Any] = load_object(CODECS[name])(type_)
    return codec
