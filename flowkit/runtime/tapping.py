"""The replica's side of taps: copies of messages for whoever looks at a channel.

Nothing waits for a tap, and nobody pays for one that is not there: the inlets and the engine have
an attribute that is None then. What is copied is bounded in messages and bytes a second, and in
bytes that the supervisor has not taken yet; of a batch that is more than that, messages at even
distances are copied, and the others are counted.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from flowkit.clock import Clock
from flowkit.message import message_id
from flowkit.protocol import control
from flowkit.protocol.engine import Engine, Released
from flowkit.protocol.receiver import InBatch
from flowkit.runtime.handling import extras_of
from flowkit.runtime.inlet import Shop

RATE = 500
"""Messages a second of one channel that are copied at most: more than anybody reads."""

BYTES = 1 << 20
"""Bytes a second of one channel that are copied at most."""

WINDOW = 256 << 10
"""Bytes of one channel that the supervisor may not have taken yet."""

VALUE = 8 << 10
"""Bytes of JSON of a message; what is longer is cut."""

HEADERS = 4 << 10
"""Bytes of headers; a message with more is shown without."""

TOGETHER = 128 << 10
"""Bytes of copies in one control message."""

_to_json = msgspec.json.Encoder().encode
_whole: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class _Channel:
    """What may be copied of a channel now: a bucket of messages and one of bytes, which fill with
    time, and a window that the supervisor opens again."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._messages = float(RATE)
        self._bytes = float(BYTES)
        self.window = WINDOW
        self.skipped = 0

    def room(self, now: float) -> int:
        """How many messages may be copied."""
        passed = max(0.0, now - self._since)
        self._since = now
        self._messages = min(float(RATE), self._messages + passed * RATE)
        self._bytes = min(float(BYTES), self._bytes + passed * BYTES)
        return int(self._messages) if self._bytes > 0 and self.window > 0 else 0

    def take(self, size: int) -> bool:
        """A message of `size` bytes is copied. False if none should follow."""
        self._messages -= 1
        self._bytes -= size
        self.window -= size
        return self._bytes > 0 and self.window > 0


class Tapping:
    """The taps of one replica. `say` sends to the supervisor."""

    def __init__(
        self,
        shop: Shop,
        engine: Engine,
        say: Callable[[control.FromReplica], None],
        clock: Clock,
    ) -> None:
        self._shop = shop
        self._engine = engine
        self._say = say
        self._clock = clock
        self._channels: dict[str, _Channel] = {}

    def hear(self, message: control.Tap | control.Untap | control.TapHeard) -> None:
        """The supervisor says who looks, or that it has taken what was copied."""
        name = message.channel
        if isinstance(message, control.TapHeard):
            if name in self._channels:
                channel = self._channels[name]
                channel.window = min(WINDOW, channel.window + message.size)
            return
        if isinstance(message, control.Tap):
            self._channels.setdefault(name, _Channel(self._clock()))
        else:
            self._channels.pop(name, None)
        info = self._shop.node.__flowkit__
        inputs = any(name in info.inputs for name in self._channels)
        outputs = any(name in info.outputs or name in info.calls for name in self._channels)
        self._shop.tap = self.taken if inputs else None
        self._engine.on_release = self.released if outputs else None

    def tick(self) -> None:
        """Once a second: say what was skipped since the last copy, if none follows."""
        for name, channel in self._channels.items():
            if channel.skipped:
                self._say(control.Tapped(name, channel.skipped, 0, []))
                channel.skipped = 0

    def taken(
        self, name: str, batch: InBatch, messages: Sequence[Any], places: Sequence[int] | None
    ) -> None:
        """A batch of input `name` is about to be handled."""
        channel = self._channels.get(name)
        if channel is None:
            return
        chosen = self._choose(channel, len(messages))
        keys, headers = extras_of(batch) if chosen and batch.extras else (None, None)

        def look(number: int) -> tuple[str, Any, Any, Any]:
            place = number if places is None else places[number]
            return (
                message_id(batch.id, batch.first + place),
                keys[place] if keys else None,
                headers[place] if headers else None,
                messages[number],
            )

        self._copy(name, channel, len(messages), chosen, look)

    def released(self, name: str, batch: Released) -> None:
        """What a handler has sent on output `name` is on its way."""
        channel = self._channels.get(name)
        if channel is None:
            return
        messages, keys, headers = batch.messages, batch.keys, batch.headers

        def look(number: int) -> tuple[str, Any, Any, Any]:
            return (
                batch.id(number),
                keys[number] if keys else None,
                headers[number] if headers else None,
                messages[number],
            )

        chosen = self._choose(channel, len(messages))
        self._copy(name, channel, len(messages), chosen, look)

    def _choose(self, channel: _Channel, count: int) -> Sequence[int]:
        """Which of `count` messages are copied: as many as there is room for, evenly."""
        room = channel.room(self._clock())
        if count <= room:
            return range(count)
        return range(0, count, math.ceil(count / room)) if room else ()

    def _copy(
        self,
        name: str,
        channel: _Channel,
        count: int,
        chosen: Sequence[int],
        look: Callable[[int], tuple[str, Any, Any, Any]],
    ) -> None:
        found: list[control.Glimpse] = []
        size = copied = 0
        for number in chosen:
            seen = glimpse(*look(number))
            weight = _weight(seen)
            found.append(seen)
            size += weight
            copied += 1
            more = channel.take(weight)
            if size >= TOGETHER:
                self._send(name, channel, size, found)
                found, size = [], 0
            if not more:
                break
        if found:
            self._send(name, channel, size, found)
        channel.skipped += count - copied

    def _send(self, name: str, channel: _Channel, size: int, found: list[control.Glimpse]) -> None:
        self._say(control.Tapped(name, channel.skipped, size, found))
        channel.skipped = 0


def glimpse(id: str, key: Any, headers: Any, message: Any) -> control.Glimpse:
    """One message as a tap shows it, whatever it is."""
    value, binary = _json_of(message)
    cut = len(value) > VALUE
    if cut:
        value = value[:VALUE]
    shown: dict[str, str] = {}
    if headers and sum(len(name) + len(text) for name, text in headers.items()) <= HEADERS:
        shown = dict(headers)
    name = "" if key is None else _json_of(key)[0].decode("utf-8", "replace")
    if len(name) > HEADERS:
        name = json.dumps(name[: HEADERS // 2])
    return control.Glimpse(id, name, shown, value, cut, binary)


def _weight(seen: control.Glimpse) -> int:
    headers = sum(len(name) + len(text) for name, text in seen.headers.items())
    return 64 + len(seen.id) + len(seen.key) + headers + len(seen.value)


def _json_of(message: Any) -> tuple[bytes, bool]:
    """`message` in JSON; the base64 of bytes that are no text, and True."""
    if isinstance(message, bytes | bytearray | memoryview):
        raw = bytes(message[: 2 * VALUE])
        try:
            return _to_json(raw.decode()), False
        except UnicodeDecodeError as error:
            if len(raw) < len(message) and error.start > len(raw) - 4:  # cut within a character
                return _to_json(raw[: error.start].decode()), False
            return b64encode(raw), True
    if isinstance(message, str):
        message = message[: 2 * VALUE]
    try:
        return _to_json(message), False
    except Exception:  # no JSON, or code of the message's own type that fails
        pass
    try:
        return _to_json(msgspec.to_builtins(message, str_keys=True, enc_hook=_shown)), False
    except Exception:
        return _to_json(_shown(message)), False


def _shown(message: Any) -> str:
    """Something that JSON has no form for, as Python shows it."""
    try:
        text = repr(message)
    except Exception:
        text = f"a {type(message).__qualname__} that cannot be shown"
    return text[: 2 * VALUE].encode("utf-8", "backslashreplace").decode()
