"""pickle: any Python object, between processes that trust each other. The only home of pickle.

Whoever can write to the link can run code in the process that reads it: never offer this codec
to a peer that is not authenticated.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from flowkit.codecs.failures import decode_error, encode_error
from flowkit.codecs.raw import Raw
from flowkit.message import Payload


class Pickle:
    """A payload is a msgpack array of pickles, one for each message.

    Not one pickle of all: so a message that does not unpickle takes no other with it. What
    arrives is not checked against the type.
    """

    name = "pickle"

    def __init__(self, type_: object = Any) -> None:
        self._type = type_
        self._raw = Raw()

    def encode(self, messages: Sequence[Any]) -> Payload:
        return self._raw.encode([self.encode_one(message) for message in messages])

    def decode(self, payload: Payload | memoryview, count: int) -> list[Any]:
        return [self.decode_one(raw) for raw in self.split(payload, count)]

    def split(self, payload: Payload | memoryview, count: int) -> list[bytes]:
        return self._raw.split(payload, count)

    def decode_one(self, raw: bytes) -> Any:
        try:
            return pickle.loads(raw)
        except Exception as error:  # unpickling runs any code, which may raise anything
            raise decode_error(error, self._type) from error

    def encode_one(self, message: Any) -> bytes:
        try:
            return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # __reduce__ and __getstate__ likewise
            raise encode_error(error, self._type, message) from error
