"""JSON: for links that people or other languages look into."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from flowkit.codecs.structured import Structured

T = TypeVar("T")


class Json(Structured[T]):
    """A payload is a JSON array. bytes travel as base64, so the type must say where they are."""

    name = "json"

    def __init__(self, type_: Any) -> None:
        super().__init__(type_, msgspec.json, scan)


# A string without an end is a token too: looking for a later start would take quadratic time.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.?)*+"?|[][{},]', re.DOTALL)


def scan(data: bytes) -> list[bytes]:
    """The values of the JSON array `data`, each as its bytes, nested as deeply as may be.

    Raises ValueError if brackets do not pair up into one array. Values are not validated further.
    """
    data = data.strip()
    values = []
    start, depth = 1, 0
    for token in _TOKEN.finditer(data):
        match token[0]:
            case b"[" | b"{":
                depth += 1
            case b"]" | b"}":
                depth -= 1
            case b"," if depth == 1:
                values.append(data[start : token.start()].strip())
                start = token.end()
        if depth <= 0:
            break
    if depth or data[:1] != b"[" or data[-1:] != b"]" or token.end() != len(data):
        raise ValueError("malformed JSON")
    last = data[start:-1].strip()
    return [*values, last] if values or last else []
