"""Which replica gets what: pure, in order, every message once (or once for each replica)."""

from __future__ import annotations

import tracemalloc
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, none, one_of, sampled_from, text, tuples

from flowkit.codecs import codec_for, decode_extras
from flowkit.errors import EncodeError
from flowkit.message import SLOTS, slot_of
from flowkit.protocol import engine
from flowkit.protocol.batching import MAX_COUNT
from flowkit.protocol.events import ToConsumer
from flowkit.protocol.ledger import ROW, Books
from flowkit.protocol.routing import ANY, Cut, Router, extractor
from flowkit.wire import Data
from tests.protocol.link import CODEC, HELLO, TERMS, changed, identity, producer_engine, said

KEYS = one_of(text(max_size=3), integers(-5, 5), none(), tuples(text(max_size=1), integers(0, 2)))
ROUTES = sampled_from(["balance", "key", "broadcast"])


@given(ROUTES, integers(1, 5), lists(KEYS, min_size=1, max_size=60), integers(1, 20))
def test_everything_goes_somewhere_in_order(
    route: str, groups: int, keys: list[Any], size: int
) -> None:
    router = Router(route, groups, by=lambda message: "none")
    messages = list(range(len(keys)))
    headers = [{"n": str(number)} for number in messages]
    cuts = router.cut(messages, keys, headers, size)
    assert cuts == Router(route, groups, by=lambda message: "none").cut(
        messages, keys, headers, size
    ), "a pure function of its input"
    assert len({(cut.slot, number) for number, cut in enumerate(cuts)}) == len(cuts)
    by_group: dict[int, list[int]] = defaultdict(list)
    for cut in cuts:
        assert 1 <= len(cut.messages) <= size
        assert cut.keys == [keys[message] for message in cut.messages]
        assert cut.headers == [headers[message] for message in cut.messages]
        by_group[cut.group] += cut.messages
    for sent in by_group.values():
        assert sent == sorted(sent), "in order"
    times = Counter(message for sent in by_group.values() for message in sent)
    assert times == Counter(dict.fromkeys(messages, router.copies))
    if route == "broadcast":
        assert sorted(by_group) == list(range(groups))
    if route == "balance":
        assert list(by_group) == [ANY]


@given(lists(text(max_size=3), min_size=1, max_size=60), integers(2, 5))
def test_a_key_has_one_replica(keys: list[str], groups: int) -> None:
    router = Router("key", groups)
    for cut in router.cut(list(keys), None, None, 10):
        assert {slot_of(key) % groups for key in cut.messages} == {cut.group}
        assert {router.group_of(key) for key in cut.messages} == {cut.group}


def test_slots_tell_replicas_and_maps_apart() -> None:
    def slots(route: str, version: int = 0) -> list[int]:
        router = Router(route, 3, version=version)
        return sorted({cut.slot for cut in router.cut(list(range(100)), None, None, 1000)})

    assert slots("balance") == [0], "any replica may take it: its number is not in the id"
    assert slots("broadcast") == [0, 1, 2]
    assert slots("key") == [0, 1, 2]
    assert slots("key", version=1) == [1 << 16, 1 << 16 | 1, 1 << 16 | 2]


def test_a_single_keyed_consumer_needs_no_keys() -> None:
    router = Router("key", 1, by=extractor("nothing"))
    assert router.cut(["a"], None, None, 5) == [Cut(0, 0, 0, ["a"], None, None)]


def test_chunks_are_numbered_by_slot() -> None:
    cuts = Router("broadcast", 2).cut(list("abcde"), None, None, 2)
    assert [(cut.slot, cut.chunk, "".join(cut.messages)) for cut in cuts] == [
        (0, 0, "ab"),
        (0, 1, "cd"),
        (0, 2, "e"),
        (1, 0, "ab"),
        (1, 1, "cd"),
        (1, 2, "e"),
    ]


@pytest.mark.parametrize("size", [3, 10])
def test_what_all_replicas_get_is_encoded_once(size: int) -> None:
    """And kept once until they have acknowledged it; each gets its own, whole and in order."""
    producer = producer_engine(replace(TERMS, consumers=3, route="broadcast"))
    for replica in range(3):
        peer = b"%d" % replica
        producer.from_consumer(0, peer, changed(HELLO, replica=replica, max_count=size))
    producer.release(producer.begin(), "out", list(range(10)), [*range(10)], None)
    sent: dict[bytes, list[Data]] = defaultdict(list)
    for action in said(producer):
        if isinstance(action, ToConsumer) and isinstance(action.frame, Data):
            sent[action.peer].append(action.frame)
    assert sent.keys() == {b"0", b"1", b"2"}
    for frames in sent.values():
        got = [CODEC.decode(frame.payload, frame.count) for frame in frames]
        keys = [decode_extras(frame.extras, frame.count)[0] for frame in frames]
        assert got == keys == [list(range(10)[at : at + size]) for at in range(0, 10, size)]
    ids = [frame.id for frames in sent.values() for frame in frames]
    assert len(set(ids)) == len(ids)
    for same in zip(*sent.values(), strict=True):
        assert len({id(frame.payload) for frame in same}) == 1


def released(messages: list[bytes]) -> list[tuple[bytes, list[bytes]]]:
    """The batches that become of `messages`: their ids, and what is in them."""
    codec = codec_for(bytes)
    output = (TERMS, Router("balance", 1), codec, Books([0] * ROW))
    producer = engine.Engine(identity("s"), [], [output])
    # Room for everything: what is looked at is how it is cut.
    room = {"limit": 1 << 20, "limit_bytes": 1 << 30, "max_count": MAX_COUNT}
    producer.from_consumer(0, b"p", changed(HELLO, **room))
    producer.release(producer.begin(), "out", messages)
    frames = [one.frame for one in said(producer) if isinstance(one, ToConsumer)]
    return [
        (frame.id, codec.decode(frame.payload, frame.count))
        for frame in frames
        if isinstance(frame, Data)
    ]


@given(lists(sampled_from([0, 1, 20, 70, 100, 101, 200, 800]), min_size=1, max_size=40))
def test_what_is_too_large_for_one_batch_is_cut_the_same_way_each_time(sizes: list[int]) -> None:
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "BATCH_BYTES", 120)
        batches = released(messages)
        assert batches == released(messages)
    assert [message for _, batch in batches for message in batch] == messages
    for _, batch in batches:
        assert len(batch) == 1 or len(codec_for(bytes).encode(batch)) <= 120
    # And not into crumbs: what is cut in two, seven times at most, has something large in it, or
    # is too large although nothing in it is (with the two bytes that stand before each message).
    large = sum(size > 60 for size in sizes)
    others = sum(size + 2 for size in sizes if size <= 60)
    assert len(batches) <= 1 + 7 * (large + others // 118)


def test_a_batch_that_is_cut_is_not_encoded_many_times_over_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream whose messages become large: they were to be one batch, with the small ones."""
    monkeypatch.setattr(engine, "BATCH_BYTES", 1 << 18)
    messages = [b"small", *(bytes(1 << 16) for _ in range(512))]
    released(messages[:10])
    tracemalloc.start()
    try:
        batches = released(messages)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(batches) > 100
    # What is made of them, decoded here, and once all together before it is cut.
    assert most < 2.5 * 512 * (1 << 16)


def test_an_explicit_key_stands_above_the_field() -> None:
    router = Router("key", 5, by=extractor("user"))
    cuts = router.cut([{"user": "a"}, {"user": "a"}], ["b", None], None, 9)
    assert {cut.group: cut.keys for cut in cuts} == {
        router.group_of("b"): ["b"],
        router.group_of("a"): [None],
    }


@dataclass
class User:
    id: str


@dataclass
class Event:
    user: User


@pytest.mark.parametrize(
    "message", [Event(User("x")), {"user": {"id": "x"}}, {"user": User("x")}], ids=repr
)
def test_a_field_is_read_from_attributes_and_mappings(message: object) -> None:
    assert extractor("user.id")(message) == "x"


@pytest.mark.parametrize("message", [Event(None), {}, {"user": {}}, 5, None], ids=repr)  # type: ignore[arg-type]
def test_a_message_without_its_key_is_named(message: object) -> None:
    router = Router("key", 2, by=extractor("user.id"))
    with pytest.raises(EncodeError, match=type(message).__name__):
        router.cut([message], None, None, 9)


@pytest.mark.parametrize("key", [[1], {"a": 1}, {1}, object(), 1j])
def test_nonsense_is_no_key(key: Any) -> None:
    with pytest.raises(EncodeError, match="cannot be a key"):
        Router("key", 2).cut([key], None, None, 9)


def test_equal_keys_of_other_types_are_not_confused() -> None:
    router = Router("key", SLOTS)
    for key in ("1", 1, 1.0, True, b"1"):
        for _ in range(2):
            assert router.cut([key], None, None, 9)[0].group == slot_of(key)  # type: ignore[arg-type]


def test_the_cache_of_texts_is_bounded() -> None:
    router = Router("key", 7)
    for start in range(0, 200_000, 50_000):
        router.cut([f"k{n}" for n in range(start, start + 50_000)], None, None, 1 << 20)
        assert len(router._of_text) <= 1 << 16
    assert router.cut(["k3"], None, None, 9)[0].group == slot_of("k3") % 7
