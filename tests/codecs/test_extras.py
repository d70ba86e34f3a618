"""Keys and headers beside a batch."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.codecs import decode_extras, encode_extras
from flowkit.errors import DecodeError, EncodeError
from flowkit.message import Key

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
headers = st.none() | st.dictionaries(st.text(), st.text(), max_size=3)
rows = st.lists(st.tuples(keys, headers), max_size=10)


@given(rows, st.booleans(), st.booleans())
def test_keys_and_headers_survive(
    rows: list[tuple[Key, dict[str, str] | None]], with_keys: bool, with_headers: bool
) -> None:
    some_keys = [key for key, _ in rows] if with_keys else None
    some_headers = [header for _, header in rows] if with_headers else None
    data = encode_extras(some_keys, some_headers)
    found = decode_extras(data, len(rows))
    assert found == (some_keys, some_headers)
    assert repr(found) == repr((some_keys, some_headers))  # 1, 1.0 and True are told apart


def test_what_is_not_used_costs_nothing() -> None:
    assert encode_extras(None, None) == b""
    assert decode_extras(b"", 5) == (None, None)


def test_any_mapping_will_do_for_headers() -> None:
    data = encode_extras(None, (MappingProxyType({"a": "b"}), None))
    assert decode_extras(data, 2) == (None, [{"a": "b"}, None])


@pytest.mark.parametrize(
    ("some_keys", "some_headers"),
    [
        ([[]], None),
        ([(1, {2})], None),
        ([2**64], None),
        (["\ud800"], None),
        ([range(2)], None),
        (None, [{"a": 1}]),
        (None, [{1: "a"}]),
        (None, ["a"]),
        (None, [{"a": "\ud800"}]),
    ],
    ids=ascii,
)
def test_what_cannot_be_sent_is_refused(
    some_keys: Sequence[Any] | None, some_headers: Sequence[Any] | None
) -> None:
    with pytest.raises(EncodeError, match="cannot be sent"):
        encode_extras(some_keys, some_headers)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc0",
        b"\x90",
        b"\x91\xc0",
        b"\x93\xc0\xc0\xc0",
        b"\x92\xc0\xc0\xc0",
        b"\x92\x91\x80\xc0",  # a map as key
        b"\x92\x91\xd6\xff\x00\x00\x00\x00\xc0",  # a point in time as key
        b"\x92\x91\x91\x80\xc0",
        b"\x92\x91\xa1\xff\xc0",
        b"\x92\x90\xc0",  # no key for one message
        b"\x92\xc0\x92\xc0\xc0",  # two headers for one message
        b"\x92\xc0\x91\x81\x01\x01",
        b"\x92\xdd\xff\xff\xff\xff",
        b"\x92\x91" + b"\x91" * 100_000 + b"\xc0\xc0",
        b"\x92\xc0\x91" + b"\x81\xa0" * 100_000,
    ],
    ids=lambda data: data[:8].hex(),
)
def test_what_is_not_extras_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_extras(data, 1)


@given(st.binary(max_size=60), st.integers(0, 4))
def test_arbitrary_bytes(data: bytes, count: int) -> None:
    try:
        some_keys, some_headers = decode_extras(data, count)
    except DecodeError:
        return
    assert some_keys is None or len(some_keys) == count
    assert some_headers is None or len(some_headers) == count


@given(rows, st.data())
def test_damaged_bytes(rows: list[tuple[Key, dict[str, str] | None]], data: st.DataObject) -> None:
    whole = encode_extras([key for key, _ in rows], [header for _, header in rows])
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for bytes_ in (bytes(damaged), whole[: data.draw(st.integers(1, len(whole)))]):
        try:
            decode_extras(bytes_, len(rows))
        except DecodeError:
            continue


def test_the_layout_is_part_of_what_peers_agree_on() -> None:
    data = encode_extras(["a", (1, b"b")], [None, {"h": "v"}])
    assert msgspec.msgpack.decode(data) == [["a", [1, b"b"]], [None, {"h": "v"}]]
