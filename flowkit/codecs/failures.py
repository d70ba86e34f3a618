"""Errors that codecs share: each says which message, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flowkit.errors import DecodeError, EncodeError


def encode_error(error: Exception, type_: object, message: object) -> EncodeError:
    """What to raise when `error` stopped `message` from being encoded as `type_`."""
    text = f"{type(message).__qualname__} cannot be sent as {name_of(type_)}: {error}"
    return EncodeError(text)


def batch_encode_error(
    error: Exception,
    type_: object,
    messages: Iterable[object],
    encode_one: Callable[[Any], bytes],
) -> EncodeError:
    """As `encode_error`, for a batch that failed with `error`: finds the culprit in it."""
    for message in messages:
        try:
            encode_one(message)
        except EncodeError as found:
            return found
    return EncodeError(f"cannot be sent as {name_of(type_)}: {error}")


def decode_error(error: Exception, type_: object) -> DecodeError:
    """What to raise when `error` stopped bytes from being decoded as `type_`."""
    return DecodeError(f"not {name_of(type_)}: {error}")


def check_count(found: int, count: int) -> None:
    """Raise DecodeError unless a payload holds as many messages as its frame says."""
    if found != count:
        raise DecodeError(f"the frame says {count} messages, its payload holds {found}")


def name_of(type_: object) -> str:
    """How people write `type_`: ``str``, ``dict[str, int]``, ``Order``."""
    return type_.__qualname__ if isinstance(type_, type) else str(type_)
