"""Signed log records: how one is made, and how one is told from a forged or repeated one. Pure.

A record is two frames: an `Entry` as msgpack, and the HMAC (RFC 2104) of it with SHA-256. It is
signed and not encrypted: who is on the wire can read it.

A record is taken if its signature is right, and if its number is above all that were taken of the
same stream. A stream is one `Handler` in one process, and has a name of 128 random bits; the first
record of a stream that is not known must also have been sent within `WINDOW`. So what somebody has
recorded on the wire is not taken a second time, and what has waited for a network to come back is
taken. A collector that was started again knows no streams: it may take once more what is not older
than `WINDOW`, and refuses what has waited for it for longer.
"""

from __future__ import annotations

import hmac
from collections import Counter

import msgspec

from flowkit.protocol.control import Record

WINDOW = 300.0
"""Seconds that the first record of a stream may be under way, and that clocks may differ."""

BAD, OLD, REPEATED, BROKEN = "bad signature", "too old, or a wrong clock", "repeated", "malformed"
"""Why a record is refused."""


class Entry(msgspec.Struct):
    """A log record under way. `sent` is seconds since the epoch; `number` counts from 1 in its
    stream; `skipped` is how many records the sender could not send since the one before."""

    stream: bytes
    number: int
    sent: float
    host: str
    process: str
    pid: int
    record: Record
    skipped: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


def sign(entry: Entry, key: bytes) -> list[bytes]:
    """The frames of `entry`."""
    body = _encode(entry)
    return [body, hmac.digest(key, body, "sha256")]


class Verifier:
    """Tells which frames are records of those who have the `key`.

    `refused` counts the others by the reason, `missing` the numbers that streams have left out.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._streams: dict[bytes, tuple[int, float]] = {}  # the last number, and when it came
        self.refused: Counter[str] = Counter()
        self.missing = 0

    def check(self, frames: list[bytes], now: float) -> Entry | str:
        """The record in `frames` at the time `now` (since the epoch), or why it is refused."""
        entry = self._check(frames, now)
        if isinstance(entry, str):
            self.refused[entry] += 1
        return entry

    def _check(self, frames: list[bytes], now: float) -> Entry | str:
        if len(frames) != 2:
            return BROKEN
        body, signature = frames
        if not hmac.compare_digest(hmac.digest(self._key, body, "sha256"), signature):
            return BAD
        try:
            entry = _decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return BROKEN
        known = self._streams.pop(entry.stream, None)
        if known is None:
            if abs(now - entry.sent) > WINDOW:
                return OLD
        elif entry.number <= known[0]:
            self._streams[entry.stream] = known
            return REPEATED
        else:
            self.missing += entry.number - known[0] - 1
        self._streams[entry.stream] = entry.number, max(entry.sent, now)  # behind all others
        self._forget(now)
        return entry

    def _forget(self, now: float) -> None:
        """Forget the streams all of whose records are too old to begin one."""
        streams = self._streams
        while streams:
            stream, (_, heard) = next(iter(streams.items()))
            if heard > now - 2 * WINDOW:
                return
            del streams[stream]
