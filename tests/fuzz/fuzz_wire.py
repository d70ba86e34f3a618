"""Fuzz target: bytes from a peer, through the frame decoder and every codec that is safe to feed.

With atheris installed it is guided by coverage::

    python tests/fuzz/fuzz_wire.py CORPUS_DIRECTORY

Without it (or with --runs) mutated frames are made from a seed, which is printed::

    python tests/fuzz/fuzz_wire.py --runs 1000000 --seed 7
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from msgspec.msgpack import encode as pack

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from flowkit.codecs import codec_for, decode_extras, encode_extras  # noqa: E402
from flowkit.errors import DecodeError, WireError  # noqa: E402
from flowkit.wire import (  # noqa: E402
    HEADER,
    Ack,
    Close,
    Credit,
    Data,
    End,
    Heartbeat,
    Hello,
    Reject,
    Reset,
    Welcome,
    decode,
    encode,
)


@dataclass
class Order:
    number: int
    items: list[str]
    price: float | None = None


class Row(TypedDict):
    id: int
    name: str


# Not pickle: it runs what it is fed.
CODECS = [
    codec_for(bytes),
    *(codec_for(kind, name) for name in ("msgpack", "json") for kind in (Any, str, Order, Row)),
]


def check(data: bytes) -> None:
    """Feed `data`, a header and a body in one, to everything that reads what a peer sent."""
    try:
        frame = decode([data[: HEADER.size], data[HEADER.size :]])
    except WireError:
        return
    again = decode(encode(frame))
    assert again == frame, (frame, again)
    if isinstance(frame, Data):
        check_messages(frame)


def check_messages(frame: Data) -> None:
    """The messages of `frame` decode or raise DecodeError; batch and single agree."""
    try:
        decode_extras(frame.extras, frame.count)
    except DecodeError:
        pass
    for codec in CODECS:
        try:
            messages = codec.decode(frame.payload, frame.count)
        except DecodeError:
            messages = None
        try:
            raws = codec.split(frame.payload, frame.count)
        except DecodeError:
            assert messages is None, (codec.name, frame.payload)
            continue
        assert len(raws) == frame.count
        singles = []
        for raw in raws:
            try:
                singles.append(codec.decode_one(raw))
            except DecodeError:
                pass
        if messages is not None:
            # Encoded: a float that is no number is not equal to itself.
            assert pack(singles) == pack(messages), (codec.name, frame.payload)


def repair(data: bytes) -> bytes:
    """`data` with the magic and the lengths that its body has, so that it is looked into."""
    if len(data) < HEADER.size:
        return data
    fields = list(HEADER.unpack(data[: HEADER.size]))
    fields[0], fields[1], fields[11] = b"fk", 1, 0
    fields[13] = len(data) - HEADER.size
    if fields[2] == 4:
        fields[12] = min(fields[12], fields[13])
        fields[9] = min(fields[9], 8)
    return HEADER.pack(*fields) + data[HEADER.size :]


def seeds() -> list[bytes]:
    """A frame of each type, and batches in each codec."""
    frames = [
        Hello(1, 1, "run", "token", "a.b -> c.d", "c", 0, 1, 1, 8, 65536, 1, 512),
        Welcome(1, 1),
        Reject("fenced", "an older incarnation"),
        Credit(1, 8, 65536, 64, 512),
        Ack(1, 7, 0, 1, 8, 65536, 64, 512),
        End(1, 9),
        Close(1),
        Reset(1, "unknown session"),
        Heartbeat(1, 9),
    ]
    extras = encode_extras(["key", ("a", 1)], [None, {"header": "value"}])
    batches: list[tuple[Any, list[Any]]] = [
        (bytes, [b"abc", b""]),
        (str, ["word", "wörter"]),
        (Order, [Order(1, ["a", "b"], 1.5), Order(2, [])]),
        (Any, [{"a": [1, -1, 2**40, None, True]}, [[[1.5]], b"\0" * 300]]),
    ]
    for kind, messages in batches:
        for name in ("raw",) if kind is bytes else ("msgpack", "json"):
            payload = codec_for(kind, name).encode(messages)
            for more in (b"", extras):
                frames.append(Data(1, 2, bytes(range(16)), 1, 0, 2, 0, payload, more, 12345))
    return [b"".join(encode(frame)) for frame in frames]


# Lengths at their limits, tags that nest, tags that claim, text that is none.
TOKENS = [b"\x00", b"\xff" * 4, b"\xff\xff", b"\x91" * 2000, b"\x81\xa0" * 2000, b"[" * 3000]
TOKENS += [b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc1"]
TOKENS += [b"\xa1\xff", b"\xc7\x05\x01", b"\xd6\xff" + b"\xff" * 4, b'"', b"\\u", b"{", b"]", b","]


def mutate(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """`data` after one to six accidents."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(result) + 1)
        match chance.randrange(6):
            case 0 if at < len(result):
                result[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(result):
                result[at] = chance.randrange(256)
            case 2:
                result[at:at] = chance.choice(TOKENS)
            case 3:
                del result[at : at + chance.randint(1, 20)]
            case 4:
                other = chance.choice(others)
                result[at:] = other[chance.randrange(len(other)) :]
            case _:
                result[at : at + 4] = chance.randbytes(chance.randint(1, 8))
    return bytes(result)


def run(runs: int, seed: int) -> None:
    chance = random.Random(seed)
    corpus = seeds()
    for number in range(runs):
        data = mutate(chance.choice(corpus), corpus, chance)
        if chance.random() < 0.9:
            data = repair(data)
        try:
            check(data)
        except BaseException:
            print(f"run {number} of --seed {seed} failed with {data!r}", file=sys.stderr)
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, help="mutate so often, without atheris")
    parser.add_argument("--seed", type=int, help="where the mutations start (default: random)")
    options, rest = parser.parse_known_args()
    if options.runs is None and importlib.util.find_spec("atheris"):
        import atheris

        atheris.Setup([sys.argv[0], *rest], lambda data: check(repair(data)))
        atheris.Fuzz()
        return
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    runs = 100_000 if options.runs is None else options.runs
    run(runs, seed)
    print(f"{runs} runs from seed {seed}: nothing found")


if __name__ == "__main__":
    main()
