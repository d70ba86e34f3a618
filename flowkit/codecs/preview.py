"""Messages for people: as they read them, in one line."""

from __future__ import annotations

import msgspec


def preview(raw: bytes, limit: int) -> str:
    """What `raw`, a message as it travels, holds: decoded if it is msgpack, else its bytes; cut at
    `limit` characters."""
    try:
        shown = repr(msgspec.msgpack.decode(raw))
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        shown = repr(raw[: 2 * limit])
    return shown if len(shown) <= limit else f"{shown[:limit]}..."
