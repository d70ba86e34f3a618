"""Frames as bytes: what one link peer says to the other, encoded, decoded and checked.

A frame is two parts, header and body, or more if the body comes in pieces. The header has a fixed
layout, big-endian, 64 bytes::

    magic   version  type  session  sequence  id   born  span  cut  count  attempts  flags
    b"fk"   1        u8    u64      u64       16s  u64   u16   u16  u32    u16       u16
    payload  body
    u32      u32

`payload` and `body` are lengths in bytes. The body of DATA is the payload, an array of messages
in the codec of the link, followed by the extras (keys and headers), which may be absent. The body
of any other frame is a msgpack array of the fields the header does not hold; it is absent when
there are none. What a frame does not use of the header is zero.

Bytes come from a peer, so nothing here believes them: every length is compared with what has
arrived before anything is made of it, and `decode` raises `WireError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import GenericAlias
from typing import Annotated, NoReturn, TypeAlias, get_type_hints

import msgspec

from flowkit.errors import LocalProtocolError, WireError
from flowkit.message import Payload, Pieces

MAGIC = b"fk"
VERSION = 1
HEADER = struct.Struct("!2sBBQQ16sQHHIHHII")

MAX_BODY = 1 << 30
"""The largest body of DATA that is accepted unless the caller says otherwise."""

MAX_PARTS = 2 + 2 * 256
"""Parts of a frame at most: header, extras, and two for each large message."""

MAX_CONTROL_BODY = 1 << 16
"""The largest body of any other frame: those hold a few numbers and short texts."""

Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Hello(msgspec.Struct):
    """Consumer to producer, first on every connection: who I am, and my first credit.

    `low` and `high` are the protocol versions it speaks; `counter` numbers the sessions of this
    replica; the credit is as in `Credit`.
    """

    low: Natural
    high: Natural
    run: str
    token: str
    link: str
    node: str
    replica: Natural
    incarnation: Natural
    counter: Natural
    limit: Natural
    limit_bytes: Natural
    max_count: Natural
    cut: Natural


class Welcome(msgspec.Struct):
    """Producer to consumer: the session exists; `version` is the protocol to speak."""

    session: Natural
    version: Natural


class Reject(msgspec.Struct):
    """Producer to consumer: no session, and why. `code` is stable, `text` is for people."""

    code: str
    text: str


class Data(msgspec.Struct, gc=False):
    """Producer to consumer: a batch of `count` messages under the lineage id `id` (16 bytes).

    `born` is when its root began, in nanoseconds of the clock that the processes of a host share;
    0 if that is not known.
    """

    session: Natural
    sequence: Natural
    id: bytes
    span: Natural
    cut: Natural
    count: Natural
    attempts: Natural
    payload: Payload
    extras: bytes = b""
    born: Natural = 0


class Credit(msgspec.Struct):
    """Consumer to producer: how far it may go. Absolute, so that a lost CREDIT is harmless.

    `limit` is the highest sequence allowed, `limit_bytes` the sum of all bodies in the session.
    """

    session: Natural
    limit: Natural
    limit_bytes: Natural
    max_count: Natural
    cut: Natural


class Ack(msgspec.Struct):
    """Consumer to producer: everything up to `sequence` is done; and the current credit.

    `dead_lettered` and `dropped` count messages, over the whole session up to `sequence`.
    `failed` and `lost` count batches in the same way: those of which a message was dead-lettered or
    dropped, here or anywhere downstream, be it one that was made of it. An ACK that raises either
    of them means every batch that it acknowledges, so these are acknowledged one by one.
    """

    session: Natural
    sequence: Natural
    dead_lettered: Natural
    dropped: Natural
    limit: Natural
    limit_bytes: Natural
    max_count: Natural
    cut: Natural
    failed: Natural = 0
    lost: Natural = 0


class End(msgspec.Struct):
    """Producer to consumer: nothing new follows after `sequence`."""

    session: Natural
    sequence: Natural


class Close(msgspec.Struct):
    """Producer to consumer: everything is acknowledged, the consumer may leave."""

    session: Natural


class Reset(msgspec.Struct):
    """Both ways: this session is over, start a new one."""

    session: Natural
    reason: str


class Heartbeat(msgspec.Struct):
    """Both ways, when idle. `sequence` is the last one sent; 0 from a consumer."""

    session: Natural
    sequence: Natural


Frame: TypeAlias = Hello | Welcome | Reject | Data | Credit | Ack | End | Close | Reset | Heartbeat

_DATA = 4
_TYPES: dict[int, type[msgspec.Struct]] = {
    1: Hello,
    2: Welcome,
    3: Reject,
    _DATA: Data,
    5: Credit,
    6: Ack,
    7: End,
    8: Close,
    9: Reset,
    10: Heartbeat,
    # 11 is reserved for BARRIER.
}


class _Shape:
    """Where the fields of a control frame live: the first `heads` in the header, the rest not."""

    def __init__(self, code: int, frame: type[msgspec.Struct]) -> None:
        names = frame.__struct_fields__
        hints = get_type_hints(frame, include_extras=True)
        body = tuple(hints[name] for name in names if name not in _IN_HEADER)
        self.code = code
        self.frame: type[msgspec.Struct] = frame
        self.heads = len(names) - len(body)
        self.decode = msgspec.msgpack.Decoder(GenericAlias(tuple, body)).decode if body else None


_IN_HEADER = ("session", "sequence")
_SHAPES = {code: _Shape(code, frame) for code, frame in _TYPES.items() if frame is not Data}
_SHAPE_OF = {shape.frame: shape for shape in _SHAPES.values()}

_NO_ID = bytes(16)
_UNUSED = (_NO_ID, 0, 0, 0, 0, 0, 0)

_pack = HEADER.pack
_unpack = HEADER.unpack
_encode_body = msgspec.msgpack.Encoder().encode
_fields = msgspec.structs.astuple


def encode(frame: Frame) -> list[bytes]:
    """The parts of `frame`: the header, and the body in one part or more.

    Raises LocalProtocolError for a frame that does not fit the layout: a number too large, an id
    that is not 16 bytes, a text too long for a control frame. The payload of DATA is not copied
    when there are no extras.
    """
    if type(frame) is not Data:
        return _encode_control(frame)
    payload, extras = frame.payload, frame.extras
    if len(frame.id) != 16:
        raise LocalProtocolError(f"a lineage id is 16 bytes, not {len(frame.id)}")
    try:
        header = _pack(
            MAGIC,
            VERSION,
            _DATA,
            frame.session,
            frame.sequence,
            frame.id,
            frame.born,
            frame.span,
            frame.cut,
            frame.count,
            frame.attempts,
            0,
            len(payload),
            len(payload) + len(extras),
        )
    except struct.error as error:
        raise LocalProtocolError(f"DATA cannot be encoded: {error}") from error
    if type(payload) is Pieces:
        return [header, *payload.parts, extras] if extras else [header, *payload.parts]
    return [header, payload + extras if extras else payload]  # type: ignore[operator, list-item]


def _encode_control(frame: Frame) -> list[bytes]:
    shape = _SHAPE_OF[type(frame)]
    values = _fields(frame)
    session, sequence = (*values[: shape.heads], 0, 0)[:2]
    try:
        body = _encode_body(values[shape.heads :]) if shape.decode else b""
        header = _pack(
            MAGIC, VERSION, shape.code, session, sequence, *_UNUSED[:-1], 0, 0, len(body)
        )
    except (struct.error, TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{frame!r} cannot be encoded: {error}") from error
    if len(body) > MAX_CONTROL_BODY:
        raise LocalProtocolError(
            f"{type(frame).__name__} has a body of {len(body)} bytes: "
            f"the limit is {MAX_CONTROL_BODY}"
        )
    return [header, body]


def decode(parts: Sequence[bytes | memoryview], *, max_body: int = MAX_BODY) -> Frame:
    """The frame in `parts`, checked; only the messages of DATA are left undecoded.

    Raises WireError and nothing else; drop the parts, count `code`, and answer with RESET::

        parts    no body, or too many parts  type    an unknown frame type
        header   not 64 bytes                length  lengths that are not those of the body
        magic    not a flowkit frame         size    a body above `max_body`, or the control limit
        version  of another layout           count   more messages than the payload has room for
        flags    bits that must be zero      body    a control frame whose fields do not decode

    `payload` of DATA is the body itself, uncopied, if that is bytes and there are no extras, and
    `Pieces` of it if it came in several.
    """
    if not 2 <= len(parts) <= MAX_PARTS:
        raise WireError("parts", f"a frame has 2 parts, or a few more, this has {len(parts)}")
    header, body = parts[:2]
    if len(header) != HEADER.size:
        raise WireError("header", f"a header has {HEADER.size} bytes, this has {len(header)}")
    (
        magic,
        version,
        code,
        session,
        sequence,
        id,
        born,
        span,
        cut,
        count,
        attempts,
        flags,
        payload_length,
        length,
    ) = _unpack(header)
    if magic != MAGIC:
        raise WireError("magic", f"starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise WireError("version", f"layout {version}, this is {VERSION}")
    if flags:
        raise WireError("flags", f"unknown flags {flags:#06x}")
    arrived = len(body) if len(parts) == 2 else sum(map(len, parts)) - len(header)
    if length != arrived:
        raise WireError("length", f"the header says {length} bytes, the body has {arrived}")
    if code != _DATA:
        if len(parts) > 2:
            raise WireError("parts", f"{len(parts)} parts, where there must be 2")
        unused = (id, born, span, cut, count, attempts, payload_length)
        return _decode_control(code, session, sequence, unused, body)
    if length > max_body:
        raise WireError("size", f"a body of {length} bytes: the limit is {max_body}")
    if payload_length > length:
        raise WireError("length", f"a payload of {payload_length} bytes in a body of {length}")
    if count >= payload_length:
        # In every codec a message takes at least one byte, and the array around them another.
        raise WireError("count", f"{count} messages in a payload of {payload_length} bytes")
    payload: Payload
    if len(parts) > 2:
        payload, extras = _pieces(parts[1:], payload_length)
    elif payload_length == length:
        payload, extras = bytes(body), b""  # bytes() of bytes is the same object
    else:
        payload, extras = bytes(body[:payload_length]), bytes(body[payload_length:])
    return Data(session, sequence, id, span, cut, count, attempts, payload, extras, born)


def _pieces(parts: Sequence[bytes | memoryview], length: int) -> tuple[Payload, bytes]:
    """The payload of `length` bytes, and the extras behind it, of a body in several parts."""
    rest, number = length, 0
    while rest > 0:
        rest -= len(parts[number])
        number += 1
    if rest < 0:
        body = b"".join(parts)
        return body[:length], body[length:]
    return Pieces([bytes(part) for part in parts[:number]]), b"".join(parts[number:])


def _decode_control(
    code: int,
    session: int,
    sequence: int,
    unused: tuple[bytes, int, int, int, int, int, int],
    body: bytes | memoryview,
) -> Frame:
    shape = _SHAPES.get(code)
    if shape is None:
        raise WireError("type", f"unknown frame type {code}")
    if len(body) > MAX_CONTROL_BODY:
        raise WireError("size", f"a body of {len(body)} bytes: the limit is {MAX_CONTROL_BODY}")
    heads = (session, sequence)
    if unused != _UNUSED or any(heads[shape.heads :]):
        _refuse(shape, "a header field that must be zero is not")
    if shape.decode is None:
        if len(body):
            _refuse(shape, "a body where there is none")
        return shape.frame(*heads[: shape.heads])  # type: ignore[return-value]
    try:
        rest = shape.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError("body", f"{shape.frame.__name__}: {error}") from error
    return shape.frame(*heads[: shape.heads], *rest)  # type: ignore[return-value]


def _refuse(shape: _Shape, text: str) -> NoReturn:
    raise WireError("body", f"{shape.frame.__name__}: {text}")
