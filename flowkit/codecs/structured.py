"""What msgpack and json share: msgspec does the work, a whole batch in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Generic, TypeVar

import msgspec

from flowkit.codecs.failures import (
    batch_encode_error,
    check_count,
    decode_error,
    encode_error,
    name_of,
)
from flowkit.errors import DeclarationError
from flowkit.message import Payload, whole

T = TypeVar("T")


class Structured(Generic[T]):
    """A codec of messages that msgspec knows: builtins, Struct, dataclass, TypedDict, Any.

    `form` is ``msgspec.msgpack`` or ``msgspec.json``. Messages are validated against the type
    where they arrive. `scan` splits an array that is
    nested too deeply for msgspec; it must not recurse, and may raise ValueError.
    """

    name: str

    def __init__(self, type_: Any, form: ModuleType, scan: Callable[[bytes], list[bytes]]) -> None:
        try:
            supported = not isinstance(msgspec.inspect.type_info(type_), msgspec.inspect.CustomType)
            self._decode_all = form.Decoder(list[type_]).decode
            self._decode_one = form.Decoder(type_).decode
        except Exception as error:  # an annotation may fail in any way
            raise DeclarationError(f"{self.name} cannot carry {name_of(type_)}: {error}") from error
        if not supported:
            raise DeclarationError(
                f"{self.name} cannot carry {name_of(type_)}",
                "make it a msgspec.Struct or a dataclass, or choose codec='pickle'",
            )
        self._type = type_
        self._encode = form.Encoder().encode
        self._split = form.Decoder(list[msgspec.Raw]).decode
        self._scan = scan

    # User types run code of their own in here (__post_init__, properties), which may raise
    # anything: hence `except Exception` throughout.

    def encode(self, messages: Sequence[T]) -> bytes:
        try:
            return self._encode(messages if isinstance(messages, list) else list(messages))  # type: ignore[no-any-return]
        except Exception as error:
            raise batch_encode_error(error, self._type, messages, self.encode_one) from error

    def decode(self, payload: Payload | memoryview, count: int) -> list[T]:
        try:
            messages: list[T] = self._decode_all(whole(payload))
        except Exception as error:
            raise decode_error(error, self._type) from error
        check_count(len(messages), count)
        return messages

    def split(self, payload: Payload | memoryview, count: int) -> list[bytes]:
        try:
            try:
                raws = list(map(bytes, self._split(whole(payload))))
            except RecursionError:
                raws = self._scan(bytes(payload))
        except ValueError as error:
            raise decode_error(error, self._type) from error
        check_count(len(raws), count)
        return raws

    def decode_one(self, raw: bytes) -> T:
        try:
            return self._decode_one(raw)  # type: ignore[no-any-return]
        except Exception as error:
            raise decode_error(error, self._type) from error

    def encode_one(self, message: T) -> bytes:
        try:
            return self._encode(message)  # type: ignore[no-any-return]
        except Exception as error:
            raise encode_error(error, self._type, message) from error
