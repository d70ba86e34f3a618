"""Every codec: batches survive, single messages agree with batches, bad bytes are DecodeErrors."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections import deque
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.codecs import CODECS, Codec, codec_for
from flowkit.codecs.json import scan as scan_json
from flowkit.codecs.msgpack import scan as scan_msgpack
from flowkit.codecs.raw import LARGE
from flowkit.errors import DeclarationError, DecodeError, EncodeError
from flowkit.message import Pieces


@dataclass
class Order:
    number: int
    items: list[str]
    price: float | None = None


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Row(TypedDict):
    id: int
    name: str


class Plain:
    """A class that only pickle can carry."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


class Sulky(msgspec.Struct):
    """Decodes its fields, and then has something against them."""

    number: int

    def __post_init__(self) -> None:
        if self.number == 13:
            raise KeyError("thirteen")


class Unpicklable:
    def __reduce__(self) -> str:
        raise RuntimeError("no")


integers = st.integers(-(2**63), 2**64 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
trees = st.recursive(
    st.none() | st.booleans() | integers | finite | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
SHAPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "str": (str, st.text()),
    "int": (int, integers),
    "float": (float, finite),
    "bool": (bool, st.booleans()),
    "dict": (dict[str, int], st.dictionaries(st.text(), integers)),
    "tuple": (tuple[int, str], st.tuples(integers, st.text())),
    "Any": (Any, trees),
    "bytes": (bytes, st.binary()),
    "dataclass": (Order, st.builds(Order, integers, st.lists(st.text()), st.none() | finite)),
    "Struct": (Point, st.builds(Point, integers, integers)),
    "TypedDict": (Row, st.fixed_dictionaries({"id": integers, "name": st.text()})),
}
CASES = [(name, shape) for name in CODECS for shape in SHAPES if name != "raw" or shape == "bytes"]


@pytest.mark.parametrize(("name", "shape"), CASES)
@given(data=st.data())
def test_a_batch_survives(name: str, shape: str, data: st.DataObject) -> None:
    type_, values = SHAPES[shape]
    codec = codec_for(type_, name)
    messages = data.draw(st.lists(values, max_size=20))
    payload = codec.encode(messages)
    assert type(payload) is bytes
    assert codec.decode(payload, len(messages)) == messages
    assert codec.decode(memoryview(payload), len(messages)) == messages
    raws = codec.split(payload, len(messages))
    assert codec.split(memoryview(payload), len(messages)) == raws
    assert all(type(raw) is bytes for raw in raws)
    assert [codec.decode_one(raw) for raw in raws] == messages
    assert [codec.encode_one(message) for message in messages] == raws
    assert codec.encode(tuple(messages)) == payload
    assert codec.encode(deque(messages)) == payload


FED: list[Codec[Any]] = [  # not pickle: it runs what it is fed
    codec_for(bytes),
    *(codec_for(SHAPES[shape][0], name) for name, shape in CASES if name in ("msgpack", "json")),
]


def check_bytes(codec: Codec[Any], payload: bytes, count: int) -> None:
    """Nothing but DecodeError, and the batch as a whole agrees with its messages one by one."""
    try:
        messages = codec.decode(payload, count)
    except DecodeError:
        messages = None
    try:
        raws = codec.split(payload, count)
    except DecodeError:
        assert messages is None
        return
    assert len(raws) == count
    singles = []
    for raw in raws:
        try:
            singles.append(codec.decode_one(raw))
        except DecodeError:
            pass
    if messages is None:
        assert len(singles) < count
    else:
        # Encoded: a float that is no number is not equal to itself.
        assert msgspec.msgpack.encode(singles) == msgspec.msgpack.encode(messages)


@given(st.sampled_from(FED), st.binary(max_size=60), st.integers(0, 5))
def test_arbitrary_bytes(codec: Codec[Any], payload: bytes, count: int) -> None:
    check_bytes(codec, payload, count)


@given(st.sampled_from(FED), st.lists(st.binary(max_size=12), max_size=4), st.booleans())
def test_arbitrary_bytes_in_an_array(codec: Codec[Any], values: list[bytes], json: bool) -> None:
    count = len(values)
    payload = b"[" + b",".join(values) + b"]" if json else bytes([0x90 + count]) + b"".join(values)
    check_bytes(codec, payload, count)


@given(st.data())
def test_damaged_payloads(data: st.DataObject) -> None:
    name, shape = data.draw(st.sampled_from([case for case in CASES if case[0] != "pickle"]))
    type_, values = SHAPES[shape]
    codec = codec_for(type_, name)
    messages = data.draw(st.lists(values, min_size=1, max_size=5))
    payload = bytearray(codec.encode(messages))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    check_bytes(codec, bytes(payload), len(messages))
    check_bytes(codec, bytes(payload[:cut]), len(messages))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", [0, 1, 3, 2**32 - 1])
def test_a_wrong_count_is_refused(name: str, count: int) -> None:
    codec = codec_for(bytes, name)
    payload = codec.encode([b"a", b"b"])
    for read in (codec.decode, codec.split):
        with pytest.raises(DecodeError, match=f"says {count} messages, its payload holds 2"):
            read(payload, count)


# ---------------------------------------------------------------------------- nesting bombs

DEEP = 100_000
BOMBS = {
    "msgpack": [
        b"\x91" * DEEP + b"\xc0",
        b"\x81\xa0" * DEEP + b"\xc0",
        b"\xdc\x00\x01" * DEEP + b"\x00",
    ],
    "json": [b"[" * DEEP + b"]" * DEEP, b'{"":' * DEEP + b"0" + b"}" * DEEP],
}


@pytest.mark.parametrize(("name", "bomb"), [(name, bomb) for name in BOMBS for bomb in BOMBS[name]])
@pytest.mark.parametrize("type_", [Any, list[Any], str, Order])
def test_a_nesting_bomb_takes_no_other_message_with_it(name: str, bomb: bytes, type_: Any) -> None:
    codec = codec_for(type_, name)
    payload = b"\x93\x01" + bomb + b"\x02" if name == "msgpack" else b'[1, %s ,"]\\"["]' % bomb
    last = b"\x02" if name == "msgpack" else b'"]\\"["'
    with pytest.raises(DecodeError):
        codec.decode(payload, 3)
    raws = codec.split(payload, 3)
    assert raws == [b"\x01" if name == "msgpack" else b"1", bomb, last]
    with pytest.raises(DecodeError):
        codec.decode_one(bomb)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91" * DEEP,  # without an end
        b"\x92" * DEEP + b"\xc0",
        b"\x91" * DEEP + b"\xc1",
        b"\x91" * DEEP + b"\xc0\xc0",
        b"\x91" * DEEP + b"\xdd\xff\xff\xff\xff",
        b"\x91" * DEEP + b"\xdb\xff\xff\xff\xff",
        b"\x91" * DEEP + b"\xc6\xff",
        b"\x81" * DEEP,
    ],
    ids=lambda payload: f"{payload[:2].hex()}..{payload[-5:].hex()}",
)
def test_a_broken_nesting_bomb_is_refused(payload: bytes) -> None:
    codec = codec_for(Any)
    for read in (codec.decode, codec.split):
        with pytest.raises(DecodeError):
            read(payload, 1)


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * DEEP,
        b"[" * DEEP + b"]" * (DEEP + 1),
        b"[" * DEEP + b"}" * (DEEP - 1),
        b"[" * DEEP + b'"',
        b"[" * DEEP + b'"' + b'\\"' * DEEP + b"\\",  # quadratic, if read naively
    ],
)
def test_a_broken_nesting_bomb_in_json_is_refused(payload: bytes) -> None:
    codec = codec_for(Any, "json")
    for read in (codec.decode, codec.split):
        with pytest.raises(DecodeError):
            read(payload, 1)


values_of_msgpack = st.recursive(
    st.none()
    | st.booleans()
    | integers
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(integers, inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(values_of_msgpack, max_size=5))
def test_the_scanner_of_msgpack_splits_as_msgspec_does(messages: list[Any]) -> None:
    payload = msgspec.msgpack.encode(messages)
    assert scan_msgpack(payload) == [msgspec.msgpack.encode(message) for message in messages]


@pytest.mark.parametrize("size", [2**4, 2**5, 2**8, 2**16])
def test_the_scanner_of_msgpack_knows_all_sizes(size: int) -> None:
    for below in (size - 1, size):
        text, data = "x" * below, bytes(below)
        ext = msgspec.msgpack.Ext(5, data)
        for value in ([None] * below, dict.fromkeys(range(below)), text, data, ext):
            raw = msgspec.msgpack.encode(value)
            assert scan_msgpack(b"\x92" + raw + b"\x07") == [raw, b"\x07"]
        payload = msgspec.msgpack.encode([7] * below)
        assert scan_msgpack(payload) == [b"\x07"] * below


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_the_scanner_of_msgpack_knows_the_fixed_extensions(size: int) -> None:
    raw = msgspec.msgpack.encode(msgspec.msgpack.Ext(5, bytes(size)))
    assert scan_msgpack(b"\x92" + raw + b"\x07") == [raw, b"\x07"]


@given(st.lists(trees, max_size=5), st.sampled_from([0, 1]))
def test_the_scanner_of_json_splits_as_msgspec_does(messages: list[Any], indent: int) -> None:
    payload = msgspec.json.format(msgspec.json.encode(messages), indent=indent)
    raws = scan_json(b" " + payload + b"\n")
    assert [msgspec.json.decode(raw) for raw in raws] == messages


@given(st.binary(max_size=40))
def test_the_scanners_refuse_or_split_anything(data: bytes) -> None:
    for scan in (scan_msgpack, scan_json):
        try:
            raws = scan(data)
        except ValueError:
            continue
        assert all(raw in data for raw in raws)


# ---------------------------------------------------------------------------- wrong bytes and types


@pytest.mark.parametrize(
    ("name", "type_", "payload"),
    [
        ("msgpack", str, b"\x91\xa1\xff"),
        ("msgpack", str, b"\x91\xa3\xed\xa0\x80"),
        ("msgpack", str, b"\x91\x01"),
        ("msgpack", int, b"\x91\xa11"),
        ("msgpack", dict[str, int], b"\x91\x81\xa1a\xa1b"),
        ("msgpack", Order, b"\x91\x80"),
        ("msgpack", Row, b"\x91\x81\xa2id\x01"),
        ("msgpack", Any, b"\x91\xd6\xff\xff\xff\xff"),
        ("json", str, b'["\xff"]'),
        ("json", str, b"[1]"),
        ("json", int, b'["1"]'),
        ("json", bytes, b'["?"]'),
        ("json", Point, b"[{}]"),
        ("raw", bytes, b"\x91\xa1a"),
        ("pickle", Any, b"\x91\xc4\x01x"),
        ("pickle", Any, b"\x91\xa1x"),
    ],
)
def test_what_is_not_the_type_is_refused(name: str, type_: Any, payload: bytes) -> None:
    codec = codec_for(type_, name)
    with pytest.raises(DecodeError):
        codec.decode(payload, 1)


def test_a_decode_error_says_which_message_and_why() -> None:
    with pytest.raises(DecodeError, match=r"not int: Expected `int`, got `str` - at `\$\[1\]`"):
        codec_for(int).decode(b"\x92\x01\xa1a", 2)


@pytest.mark.parametrize("name", ["msgpack", "json"])
def test_one_bad_message_is_found_among_the_good(name: str) -> None:
    payload = codec_for(Any, name).encode([1, "two", 3])
    codec = codec_for(int, name)
    with pytest.raises(DecodeError):
        codec.decode(payload, 3)
    first, second, third = codec.split(payload, 3)
    assert (codec.decode_one(first), codec.decode_one(third)) == (1, 3)
    with pytest.raises(DecodeError):
        codec.decode_one(second)


def test_code_of_the_type_may_raise_anything() -> None:
    codec = codec_for(Sulky)
    payload = codec.encode([Sulky(12)]).replace(b"\x0c", b"\x0d")
    with pytest.raises(DecodeError) as caught:
        codec.decode(payload, 1)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(DecodeError):
        codec.decode_one(codec.split(payload, 1)[0])


def _deep() -> list[Any]:
    tree: list[Any] = []
    for _ in range(DEEP):
        tree = [tree]
    return tree


@pytest.mark.parametrize(
    ("name", "type_", "message", "called"),
    [
        ("msgpack", Any, Plain(1), "Plain"),
        ("msgpack", int, 2**64, "int"),
        ("msgpack", str, "\ud800", "str"),
        ("msgpack", dict[str, Any], {"a": Plain(1)}, "dict"),
        ("json", Any, Plain(1), "Plain"),
        ("json", Any, {(1, 2): 3}, "dict"),
        ("raw", bytes, "text", "str"),
        ("raw", bytes, bytearray(b"x"), "bytearray"),
        ("pickle", Any, Unpicklable(), "Unpicklable"),
    ],
)
def test_an_encode_error_names_the_type_of_the_culprit(
    name: str, type_: Any, message: Any, called: str
) -> None:
    codec = codec_for(type_, name)
    good: Any = b"good" if name == "raw" else "good"
    with pytest.raises(EncodeError, match=f"^{called} cannot be sent as "):
        codec.encode([good, good, message] if name == "raw" else [good, message, good])
    with pytest.raises(EncodeError, match=f"^{called} cannot be sent as "):
        codec.encode_one(message)


def test_a_batch_that_cannot_even_be_looked_through_is_an_encode_error() -> None:
    class Once:
        """Empty, when it is looked through for the culprit."""

        looked = False

        def __iter__(self) -> Any:
            yield from [] if self.looked else [Plain(1)]
            self.looked = True

    with pytest.raises(EncodeError, match="^cannot be sent as Any"):
        codec_for(Any).encode(Once())  # type: ignore[arg-type]


def test_what_is_no_bytes_in_the_middle_of_a_batch_is_found_where_it_arrives() -> None:
    codec = codec_for(bytes)
    payload = codec.encode([b"a", "b", {"c": 1}, b"d"])
    with pytest.raises(DecodeError, match="^not bytes"):
        codec.decode(payload, 4)
    raws = codec.split(payload, 4)
    assert [codec.decode_one(raws[0]), codec.decode_one(raws[3])] == [b"a", b"d"]
    for raw, kind in ((raws[1], "str"), (raws[2], "dict")):
        with pytest.raises(DecodeError, match=f"^not bytes: {kind}"):
            codec.decode_one(raw)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 256])
def test_large_messages_stand_in_pieces_that_join_to_what_all_others_are(count: int) -> None:
    codec = codec_for(bytes)
    messages = [bytes([number % 256]) * (LARGE + number) for number in range(count)]
    payload = codec.encode(messages)
    assert isinstance(payload, Pieces)
    assert len(payload) == len(bytes(payload))
    assert bytes(payload) == msgspec.msgpack.encode(messages)
    decoded = codec.decode(payload, count)
    assert all(one is other for one, other in zip(decoded, messages, strict=True)), "not copied"
    assert codec.decode(bytes(payload), count) == codec.split(payload, count) == messages
    with pytest.raises(DecodeError):
        codec.decode(payload, count + 1)


def test_pieces_cut_in_other_places_are_the_same_payload() -> None:
    codec = codec_for(bytes)
    messages = [b"x" * LARGE, b"y" * LARGE]
    whole = bytes(codec.encode(messages))
    for cut in (1, 6, 7, LARGE, LARGE + 6, len(whole) - 1):
        assert codec.decode(Pieces([whole[:cut], whole[cut:]]), 2) == messages
    for other in ("msgpack", "json"):
        text = codec_for(list[int], other).encode([[1], [2, 3]])
        assert codec_for(list[int], other).decode(Pieces([text[:2], text[2:]]), 2) == [[1], [2, 3]]


@pytest.mark.parametrize(
    "messages",
    [
        [b"x" * LARGE, b"small"],
        [b"small", b"x" * LARGE],
        [b"x" * LARGE, bytearray(LARGE), b"x" * LARGE],
        [b"x" * LARGE] * 257,
    ],
    ids=["small", "first", "odd", "many"],
)
def test_other_batches_are_in_one_piece(messages: list[bytes]) -> None:
    payload = codec_for(bytes).encode(messages)
    assert isinstance(payload, bytes)
    assert codec_for(bytes).decode(payload, len(messages)) == [bytes(one) for one in messages]


@pytest.mark.parametrize("name", ["msgpack", "json", "pickle"])
def test_a_message_nested_too_deeply_is_not_encoded(name: str) -> None:
    tree = _deep()
    try:
        with pytest.raises(EncodeError, match="^list cannot be sent as Any"):
            codec_for(Any, name).encode([[], tree])
    finally:
        while tree:  # without recursion
            tree = tree.pop()


def test_pickle_carries_any_object_and_isolates_the_bad() -> None:
    codec = codec_for(Plain, "pickle")
    payload = codec.encode([Plain(1), Plain(2)])
    assert codec.decode(payload, 2) == [Plain(1), Plain(2)]
    raws = codec.split(payload, 2)
    raws[0] = b"garbage"
    broken = codec_for(bytes).encode(raws)
    with pytest.raises(DecodeError, match="not Plain"):
        codec.decode(broken, 2)
    assert codec.decode_one(codec.split(broken, 2)[1]) == Plain(2)


CLAIMS = [
    head + tag + size.to_bytes(4)
    for head in (b"", b"\x91", b"\x91\x91", b"\x91\x81\xa5items")
    for tag in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")
    for size in (2**20, 2**24, 2**27, 2**32 - 1)
]


def test_nothing_is_allocated_for_what_is_only_claimed() -> None:
    codecs = [
        codec_for(kind) for kind in (Any, str, bytes, list[int], dict[str, int], Order, Point)
    ]
    tracemalloc.start()
    try:
        for payload in CLAIMS:
            for codec in codecs:
                for read in (codec.decode, codec.split):
                    tracemalloc.reset_peak()
                    before, _ = tracemalloc.get_traced_memory()
                    with pytest.raises(DecodeError):
                        read(payload, 1)
                    _, peak = tracemalloc.get_traced_memory()
                    assert peak - before < 50_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------- which codec


@pytest.mark.parametrize(
    ("type_", "name", "found"),
    [
        (bytes, None, "raw"),
        (str, None, "msgpack"),
        (Any, None, "msgpack"),
        (list[bytes], None, "msgpack"),
        (Order, None, "msgpack"),
        *((bytes, name, name) for name in CODECS),
    ],
)
def test_the_type_picks_the_codec_unless_it_is_named(
    type_: Any, name: str | None, found: str
) -> None:
    assert codec_for(type_, name).name == found


@pytest.mark.parametrize(
    ("type_", "name", "text"),
    [
        (str, "jsno", "did you mean 'json'"),
        (str, "msgpak", "did you mean 'msgpack'"),
        (str, "protobuf", "there is 'raw', 'msgpack', 'json', 'pickle'"),
        (str, "raw", "raw carries bytes, not str"),
        (Plain, None, "msgpack cannot carry Plain; make it a msgspec.Struct"),
        (Plain, "json", "json cannot carry Plain"),
        ("Undefined", None, "msgpack cannot carry Undefined"),
        (list[int] | tuple[int, ...], None, "msgpack cannot carry"),
    ],
)
def test_a_codec_that_cannot_be_is_a_mistake_in_the_declaration(
    type_: Any, name: str | None, text: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        codec_for(type_, name)
    assert text in str(caught.value)


def test_a_codec_is_imported_when_it_is_asked_for() -> None:
    code = (
        "import sys, flowkit.codecs as codecs;"
        "names = {'raw', 'msgpack', 'json', 'pickle'};"
        "loaded = lambda: sorted(n for n in names if f'flowkit.codecs.{n}' in sys.modules);"
        "before = loaded(); codecs.codec_for(str); print(before, loaded())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "[] ['msgpack']\n"
