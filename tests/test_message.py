"""Keys, slots, ids."""

from __future__ import annotations

import enum
import os
import pickle
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import message
from flowkit.message import SLOTS, Key, Many, Meta, check_key, message_id, slot_of

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8)


@given(keys)
def test_a_slot_is_in_range_and_does_not_depend_on_what_was_asked_before(key: Key) -> None:
    slot = slot_of(key)
    assert 0 <= slot < SLOTS
    message._known.clear()
    assert slot_of(key) == slot


KNOWN: list[Key] = [
    "",
    "word",
    "x" * 1000,
    "ü",
    b"word",
    0,
    1,
    -1,
    1.0,
    True,
    None,
    ("a", (1, b"b")),
]


def test_slots_are_the_same_in_every_process() -> None:
    code = (
        "import pickle, sys; from flowkit.message import slot_of;"
        "print([slot_of(key) for key in pickle.load(sys.stdin.buffer)])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(KNOWN),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert answers == {f"{[slot_of(key) for key in KNOWN]}\n".encode()}


def test_slots_are_part_of_what_peers_agree_on() -> None:
    """Changing these sends keys to other replicas than a peer or a saved state expects."""
    assert [slot_of(key) for key in KNOWN] == GOLDEN


GOLDEN = [3173, 1094, 1841, 2870, 460, 3981, 3867, 0, 563, 3207, 3389, 1148]


def test_keys_that_python_calls_equal_keep_slots_of_their_own() -> None:
    def slots() -> list[int]:
        return [slot_of(1), slot_of(1.0), slot_of(True)]

    assert len(set(slots())) == 3
    assert slots() == slots()


def test_slots_spread_evenly() -> None:
    counts = [0] * 16
    for number in range(16_000):
        counts[slot_of(f"user-{number}") % 16] += 1
    assert max(counts) < 1.2 * min(counts)


class Colour(enum.StrEnum):
    RED = "red"


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "key",
    [[], {}, set(), frozenset({"a"}), object(), (1, [2]), (frozenset({"a"}),), bytearray(b"x")]
    + [Colour.RED, Text("x"), 1j, range(3), msgspec.Raw(b"\x01")],
    ids=lambda key: f"{type(key).__name__}{len(key) if hasattr(key, '__len__') else ''}",
)
def test_what_is_no_key_has_no_slot(key: object) -> None:
    with pytest.raises(TypeError, match="a key cannot be"):
        slot_of(key)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a key cannot be"):
        check_key(key)


@pytest.mark.parametrize("key", [2**64, -(2**63) - 1, "\ud800", ("\ud800",)], ids=ascii)
def test_a_key_that_msgpack_cannot_hold_has_no_slot(key: Key) -> None:
    with pytest.raises(TypeError, match="must fit msgpack"):
        slot_of(key)


def test_the_memory_of_slots_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(number) for number in range(100)]
    slots = [slot_of(word) for word in words]
    known: dict[str, int] = {}
    monkeypatch.setattr(message, "_known", known)
    monkeypatch.setattr(message, "_KNOWN_LIMIT", 10)
    slot_of("x" * 65)
    assert not known
    for _ in range(2):
        assert [slot_of(word) for word in words] == slots
        assert len(known) == 10


def test_message_id_tells_batches_and_messages_apart() -> None:
    assert message_id(bytes(range(16)), 7) == "000102030405060708090a0b0c0d0e0f-7"


def test_meta_is_a_value_with_quiet_defaults() -> None:
    meta = Meta(id="ab-1")
    assert (meta.key, meta.headers, meta.attempts) == (None, {}, 0)
    assert meta == Meta("ab-1", None, {}, 0)
    with pytest.raises(AttributeError):
        meta.attempts = 1  # type: ignore[misc]


def test_many_holds_its_messages() -> None:
    many = Many(["a", "b"])
    assert many.messages == ["a", "b"]
    assert repr(many) == "Many(2 messages)"
    assert not hasattr(many, "__dict__")
