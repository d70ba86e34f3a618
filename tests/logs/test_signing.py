"""Which records a collector takes, and which it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowkit.errors import OperatorError
from flowkit.logs import keys
from flowkit.logs.signing import BAD, BROKEN, OLD, REPEATED, WINDOW, Entry, Verifier, sign
from flowkit.protocol.control import Record

KEY = b"a key of some length"
NOW = 1e9


def entry(number: int, sent: float = NOW, stream: bytes = b"s") -> Entry:
    record = Record(sent, 20, "app", f"text {number}")
    return Entry(stream, number, sent, "host", "main", 7, record)


def taken(verifier: Verifier, number: int, now: float = NOW, **more: object) -> bool:
    found = verifier.check(sign(entry(number, **more), KEY), now)  # type: ignore[arg-type]
    return isinstance(found, Entry)


def test_what_is_signed_is_taken_as_it_was() -> None:
    assert Verifier(KEY).check(sign(entry(1), KEY), NOW) == entry(1)


def test_a_byte_that_is_changed_anywhere_is_noticed() -> None:
    verifier = Verifier(KEY)
    frames = sign(entry(1), KEY)
    for part in (0, 1):
        for at in range(len(frames[part])):
            changed = bytearray(frames[part])
            changed[at] ^= 1
            forged = [*frames[:part], bytes(changed), *frames[part + 1 :]]
            assert verifier.check(forged, NOW) == BAD
    assert verifier.check(sign(entry(1), b"another key, as long"), NOW) == BAD
    assert verifier.refused == {BAD: sum(map(len, frames)) + 1}
    assert verifier.check(frames, NOW) == entry(1), "nothing of it was remembered"


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91" * 100_000, b"\x90", b"\x80"])
def test_what_is_signed_and_no_record_is_malformed(body: bytes) -> None:
    import hmac

    verifier = Verifier(KEY)
    assert verifier.check([body, hmac.digest(KEY, body, "sha256")], NOW) == BROKEN
    assert verifier.check([body], NOW) == verifier.check([], NOW) == BROKEN
    assert verifier.check([b"", b"", b""], NOW) == BROKEN


def test_nothing_is_taken_twice() -> None:
    verifier = Verifier(KEY)
    assert taken(verifier, 1) and taken(verifier, 2)
    for number in (1, 2, 2):
        assert verifier.check(sign(entry(number), KEY), NOW) == REPEATED
    assert taken(verifier, 3)
    assert taken(verifier, 1, stream=b"another")
    assert verifier.missing == 0


def test_numbers_that_are_left_out_are_counted() -> None:
    verifier = Verifier(KEY)
    assert all(taken(verifier, number) for number in (5, 6, 9))
    assert verifier.missing == 2, "what was before the first is another's"


def test_a_stream_begins_with_a_young_record_and_may_be_held_up_later() -> None:
    verifier = Verifier(KEY)
    for sent in (NOW - WINDOW - 1, NOW + WINDOW + 1):
        assert verifier.check(sign(entry(1, sent), KEY), NOW) == OLD
    assert taken(verifier, 1, NOW, sent=NOW - WINDOW)
    assert taken(verifier, 2, NOW + WINDOW, sent=NOW - 1)


def test_a_stream_is_forgotten_when_nothing_of_it_can_be_repeated() -> None:
    verifier = Verifier(KEY)
    now = NOW
    for number in range(1000):
        now += WINDOW / 100
        assert taken(verifier, 1, now, sent=now, stream=b"%d" % number)
        for old in range(max(0, number - 5), number):  # and long after, as is seen below
            repeated = sign(entry(1, NOW + (old + 1) * WINDOW / 100, b"%d" % old), KEY)
            assert verifier.check(repeated, now) == REPEATED
    assert len(verifier._streams) <= 201
    first = sign(entry(1, NOW + WINDOW / 100, b"0"), KEY)
    assert verifier.check(first, now) == OLD


# ---------------------------------------------------------------------------- keys


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"  0123456789abcdef\n")
    file.chmod(0o600)
    assert keys.find(file, {}) == b"0123456789abcdef"
    assert keys.find(None, {keys.FILE_VARIABLE: str(file)}) == b"0123456789abcdef"
    assert keys.find(None, {keys.VARIABLE: "x" * 16}) == b"x" * 16


def test_keys_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"0123456789abcdef")
    for mode in (0o640, 0o604):
        file.chmod(mode)
        with pytest.raises(OperatorError, match="others than its owner"):
            keys.find(file, {})
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(OperatorError, match="has 5 bytes, and needs 16"):
        keys.find(file, {})
    with pytest.raises(OperatorError, match="No such file"):
        keys.find(tmp_path / "none", {})
    with pytest.raises(OperatorError, match="there is no key") as caught:
        keys.find(None, {})
    assert "openssl" in caught.value.hint
