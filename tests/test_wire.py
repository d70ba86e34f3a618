"""Frames: they survive the wire, and bytes that are no frame hurt nobody."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import LocalProtocolError, WireError
from flowkit.message import Pieces
from flowkit.wire import (
    HEADER,
    MAX_CONTROL_BODY,
    Ack,
    Close,
    Credit,
    Data,
    End,
    Frame,
    Heartbeat,
    Hello,
    Reject,
    Reset,
    Welcome,
    decode,
    encode,
)

ROOT = Path(__file__).parents[1]

u16 = st.integers(0, 2**16 - 1)
u64 = st.integers(0, 2**64 - 1)
ids = st.binary(min_size=16, max_size=16)


def _frames(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any frame of `kind`, which is not Data."""
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, *(st.text() if field.type is str else u64 for field in fields))


@st.composite
def data_frames(draw: st.DrawFn) -> Data:
    payload = draw(st.binary(min_size=1, max_size=200))
    return Data(
        draw(u64),
        draw(u64),
        draw(ids),
        draw(u16),
        draw(u16),
        draw(st.integers(0, len(payload) - 1)),
        draw(u16),
        payload,
        draw(st.just(b"") | st.binary(max_size=50)),
        draw(u64),
    )


CONTROL = (Hello, Welcome, Reject, Credit, Ack, End, Close, Reset, Heartbeat)
control_frames = st.one_of([_frames(kind) for kind in CONTROL])
frames = control_frames | data_frames()

BATCH = Data(7, 3, bytes(range(16)), 2, 1, 3, 1, b"\x93\xa1a\xa1b\xa1c", b"extras", 9)


def repack(parts: list[bytes], **fields: int | bytes) -> list[bytes]:
    """`parts` with other values in their header."""
    names = (
        "magic version type session sequence id born span cut count attempts flags payload body"
    ).split()
    values = dict(zip(names, HEADER.unpack(parts[0]), strict=True))
    return [HEADER.pack(*(values | fields).values()), *parts[1:]]


def code_of(parts: list[Any], **options: int) -> str:
    with pytest.raises(WireError) as caught:
        decode(parts, **options)
    assert caught.value.text
    return caught.value.code


# ---------------------------------------------------------------------------- round trips


@given(frames)
def test_every_frame_survives_the_wire(frame: Frame) -> None:
    parts = encode(frame)
    assert [type(part) for part in parts] == [bytes, bytes]
    assert len(parts[0]) == HEADER.size == 64
    assert decode(parts) == frame
    views = decode([memoryview(part) for part in parts])
    assert views == frame
    assert type(views) is type(frame)


def test_the_layout_of_data_is_part_of_what_peers_agree_on() -> None:
    header, body = encode(BATCH)
    assert header == (
        b"fk\x01\x04"
        + (7).to_bytes(8)
        + (3).to_bytes(8)
        + bytes(range(16))
        + (9).to_bytes(8)
        + (2).to_bytes(2)
        + (1).to_bytes(2)
        + (3).to_bytes(4)
        + (1).to_bytes(2)
        + bytes(2)
        + (7).to_bytes(4)
        + (13).to_bytes(4)
    )
    assert body == b"\x93\xa1a\xa1b\xa1cextras"


@pytest.mark.parametrize(
    ("frame", "code", "body"),
    [
        (
            Hello(1, 1, "r", "t", "l", "n", 0, 1, 2, 3, 4, 5, 6),
            1,
            [1, 1, *"rtln", 0, 1, 2, 3, 4, 5, 6],
        ),
        (Welcome(9, 1), 2, [1]),
        (Reject("fenced", "why"), 3, ["fenced", "why"]),
        (Credit(9, 1, 2, 3, 4), 5, [1, 2, 3, 4]),
        (Ack(9, 8, 1, 2, 3, 4, 5, 6, 7, 8), 6, [1, 2, 3, 4, 5, 6, 7, 8]),
        (End(9, 8), 7, None),
        (Close(9), 8, None),
        (Reset(9, "why"), 9, ["why"]),
        (Heartbeat(9, 8), 10, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_layout_of_control_frames_is_part_of_what_peers_agree_on(
    frame: Frame, code: int, body: list[Any] | None
) -> None:
    header, packed = encode(frame)
    assert header[:4] == b"fk\x01" + bytes([code])
    assert int.from_bytes(header[4:12]) == getattr(frame, "session", 0)
    assert int.from_bytes(header[12:20]) == getattr(frame, "sequence", 0)
    assert not any(header[20:60])
    assert packed == (b"" if body is None else msgspec.msgpack.encode(body))


def test_a_payload_without_extras_is_not_copied() -> None:
    payload = b"\x91" + bytes(100)
    frame = Data(1, 1, bytes(16), 0, 0, 1, 0, payload)
    parts = encode(frame)
    assert parts[1] is payload
    decoded = decode(parts)
    assert isinstance(decoded, Data)
    assert decoded.payload is payload


@pytest.mark.parametrize(
    "frame",
    [
        msgspec.structs.replace(BATCH, id=b"short"),
        msgspec.structs.replace(BATCH, id=bytes(17)),
        msgspec.structs.replace(BATCH, session=2**64),
        msgspec.structs.replace(BATCH, attempts=-1),
        msgspec.structs.replace(BATCH, span=2**16),
        msgspec.structs.replace(BATCH, count=2**32),
        msgspec.structs.replace(BATCH, born=2**64),
        End(2**64, 0),
        Heartbeat(0, -1),
        Welcome(0, 2**64),
        Reset(0, "\ud800"),
        Reject("x", "x" * MAX_CONTROL_BODY),
        Reset(0, object()),  # type: ignore[arg-type]
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_frame_that_does_not_fit_is_our_own_fault(frame: Frame) -> None:
    with pytest.raises(LocalProtocolError):
        encode(frame)


# ---------------------------------------------------------------------------- bad frames


GOOD = encode(BATCH)
WELCOME = encode(Welcome(9, 1))
CLOSE = encode(Close(9))

BAD: list[tuple[str, list[bytes]]] = [
    ("parts", []),
    ("parts", GOOD[:1]),
    ("parts", [GOOD[0]] * 1000),
    ("parts", [*WELCOME, b""]),
    ("length", [*GOOD, b"x"]),
    ("length", [GOOD[0], GOOD[1][:-1], b""]),
    ("header", [b"", b""]),
    ("header", [GOOD[0][:-1], GOOD[1]]),
    ("header", [GOOD[0] + b"\0", GOOD[1]]),
    ("header", [b"GET / HTTP/1.1\r\n\r\n", b""]),
    ("magic", repack(GOOD, magic=b"kf")),
    ("magic", [b"x" * 64, b""]),
    ("version", repack(GOOD, version=0)),
    ("version", repack(GOOD, version=2)),
    ("version", repack(GOOD, version=255)),
    ("type", repack(GOOD, type=0)),
    ("type", repack(GOOD, type=11)),
    ("type", repack(GOOD, type=255)),
    ("flags", repack(GOOD, flags=1)),
    ("flags", repack(CLOSE, flags=0x8000)),
    ("length", repack(GOOD, body=0)),
    ("length", repack(GOOD, body=12)),
    ("length", repack(GOOD, body=14)),
    ("length", repack(GOOD, body=2**32 - 1)),
    ("length", repack(GOOD, payload=14)),
    ("length", repack(GOOD, payload=2**32 - 1)),
    ("length", repack(WELCOME, body=2**32 - 1)),
    ("length", [GOOD[0], b""]),
    ("count", repack(GOOD, count=7)),
    ("count", repack(GOOD, count=2**32 - 1)),
    ("count", repack(GOOD, payload=0)),
    ("body", repack(CLOSE, sequence=1)),
    ("body", repack(CLOSE, id=bytes(range(16)))),
    ("body", repack(CLOSE, count=1)),
    ("body", repack(CLOSE, span=1)),
    ("body", repack(WELCOME, payload=1)),
    ("body", repack(encode(Reject("a", "b")), session=1)),
    ("body", repack([CLOSE[0], b"\xc0"], body=1)),
]


@pytest.mark.parametrize("extras", [b"", b"extras"])
def test_a_body_may_come_in_pieces(extras: bytes) -> None:
    pieces = Pieces([b"\xdc\x00\x02", b"one", b"", b"two"])
    frame = Data(1, 2, bytes(16), 0, 1, 2, 0, pieces, extras)
    parts = encode(frame)
    assert len(parts) == (6 if extras else 5)
    assert parts[2] is pieces.parts[1], "not copied"
    for arrived in (parts, [memoryview(part) for part in parts], [*parts[:-1], parts[-1], b""]):
        found = decode(arrived)
        assert isinstance(found, Data) and isinstance(found.payload, Pieces)
        assert (bytes(found.payload), found.extras) == (bytes(pieces), extras)
    body = b"".join(parts[1:])
    for cut in range(1, len(body)):  # wherever it is cut, it is the same frame
        found = decode([parts[0], body[:cut], body[cut:]])
        assert isinstance(found, Data)
        assert (bytes(found.payload), found.extras) == (bytes(pieces), extras)


@pytest.mark.parametrize(
    ("code", "parts"), BAD, ids=lambda value: value if type(value) is str else ""
)
def test_a_bad_frame_is_refused_by_its_name(code: str, parts: list[bytes]) -> None:
    assert code_of(parts) == code
    assert code_of([memoryview(part) for part in parts]) == code


def control(code: int, body: bytes) -> list[bytes]:
    header = struct.pack("!2sBB56xI", b"fk", 1, code, len(body))
    return [header, body]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x91\xc0",
        b"\x91\x01\x01",  # something after the array
        b"\x92\x01\x01",  # a field too many
        b"\x91\xff",  # negative
        b"\x91\xa1\xff",
        b"\x91\xcb" + bytes(8),
        b"\x81\x01\x01",
        b"\xdd\xff\xff\xff\xff\x01",
        b"\x91" * 50_000,
        b"\x81" * 50_000,
    ],
    ids=lambda body: body[:8].hex(),
)
def test_a_control_frame_with_another_body_is_refused(body: bytes) -> None:
    assert code_of(control(2, body)) == "body"


@pytest.mark.parametrize(
    "text",
    [b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xdb\xff\xff\xff\xffabc", b"\xc4\x01a", b"\x01", b"\xc0"],
    ids=bytes.hex,
)
def test_a_text_that_is_none_is_refused(text: bytes) -> None:
    assert code_of(control(9, b"\x91" + text)) == "body"


def test_a_large_body_is_refused() -> None:
    big = b"\x91\xc6" + (MAX_CONTROL_BODY).to_bytes(4) + bytes(MAX_CONTROL_BODY)
    assert code_of(control(9, big)) == "size"
    assert code_of(GOOD, max_body=12) == "size"
    assert decode(GOOD, max_body=13) == BATCH


def test_a_text_that_just_fits_is_not_refused() -> None:
    frame = Reset(1, "x" * (MAX_CONTROL_BODY - 4))
    assert decode(encode(frame)) == frame


@given(st.lists(st.binary(max_size=100), max_size=4))
def test_arbitrary_parts_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(parts)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_arbitrary_bodies_are_refused_or_make_a_frame(code: int, body: bytes) -> None:
    try:
        frame = decode(control(code, body))
    except WireError:
        return
    assert decode(encode(frame)) == frame


@given(frames, st.data())
def test_a_damaged_frame_is_refused_or_is_another_frame(frame: Frame, data: st.DataObject) -> None:
    parts = [bytearray(part) for part in encode(frame)]
    for _ in range(data.draw(st.integers(1, 4))):
        part = parts[data.draw(st.integers(0, 1))]
        if part:
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    damaged = [bytes(part) for part in parts]
    try:
        found = decode(damaged)
    except WireError:
        return
    assert encode(found)[0][:52] == damaged[0][:52]
    assert decode(encode(found)) == found


@given(frames, st.data())
def test_a_shortened_frame_is_refused(frame: Frame, data: st.DataObject) -> None:
    header, body = encode(frame)
    cut = data.draw(st.integers(0, len(header) + len(body) - 1))
    shorter = [header[:cut], body[: max(0, cut - len(header))]]
    with pytest.raises(WireError):
        decode(shorter)


CLAIMS = [
    *(repack(GOOD, count=count) for count in (2**16, 2**24, 2**32 - 1)),
    *(repack(GOOD, payload=size) for size in (2**24, 2**32 - 1)),
    *(repack(GOOD, body=size) for size in (2**24, 2**32 - 1)),
    *(
        control(code, head + tag + size.to_bytes(4))
        for code in (1, 2, 3, 6, 9)
        for head in (b"", b"\x91", b"\x92")
        for tag in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")
        for size in (2**20, 2**27, 2**32 - 1)
    ),
]


def test_nothing_is_allocated_for_what_is_only_claimed() -> None:
    tracemalloc.start()
    try:
        for parts in CLAIMS:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            code_of(parts)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 50_000
    finally:
        tracemalloc.stop()


def test_the_decoder_does_not_mind_what_it_has_been_fed() -> None:
    noise = random.Random(1)
    for _ in range(200):
        with pytest.raises(WireError):
            decode([noise.randbytes(64), noise.randbytes(noise.randrange(100))])
    assert decode(GOOD) == BATCH


def test_a_short_run_of_the_fuzz_target_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "tests/fuzz/fuzz_wire.py", "--runs", "3000", "--seed", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3000 runs" in done.stdout
