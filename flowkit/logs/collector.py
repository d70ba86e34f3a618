"""`Collector`: receives signed log records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import zmq

from flowkit.clock import Clock, wall
from flowkit.errors import TransportError
from flowkit.logs.signing import Entry, Verifier
from flowkit.topology.addresses import to_bind

LARGEST = 1 << 20
"""Bytes of a frame; the connection of whoever sends a larger one is cut."""


class Collector:
    """Listens at `address` for records that are signed with `key`.

    `complain(reason)` is called for the first record that is refused for a reason; `verifier`
    counts all of them. `endpoint` is the address as it is to be connected to. Raises
    ValueError if `address` is none, TransportError if it cannot be bound. `close` it.
    """

    def __init__(
        self,
        address: str,
        key: bytes,
        complain: Callable[[str], None] = lambda reason: None,
        clock: Clock = wall,
    ) -> None:
        to_bind(address)  # raises ValueError
        self.verifier = Verifier(key)
        self._complain = complain
        self._clock = clock
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.maxmsgsize = LARGEST
        self._socket.linger = 0
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(f"cannot listen at {address}: {error.strerror}", address) from None
        endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.endpoint = endpoint.rstrip(b"\0").decode()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def entries(self) -> Iterator[Entry]:
        """The records, as they come, without end."""
        while True:
            found = self.verifier.check(self._socket.recv_multipart(), self._clock())
            if isinstance(found, Entry):
                yield found
            elif self.verifier.refused[found] == 1:
                self._complain(found)
