"""What a transport is: it moves opaque multipart messages between peers, and decides nothing.

A *binding* is the end that others connect to; it hears many peers and answers one by one. A
*connection* is the other end; it knows one peer only, the binding. Every transport promises:

* Messages of one peer arrive in the order in which they were sent, each whole or not at all.
* Nothing blocks and nothing waits: `send` hands over or says False. A message that was handed over
  may still be lost when the peer dies or the line breaks; who cannot bear that must number its
  messages and have them acknowledged.
* Every call of `connect` makes a new peer: a binding never takes it for an earlier one. Every call
  of `bind` makes a new address: a connection never ends up at another binding than it was made for.
* Callbacks run on the event loop of the thread that made the transport, never inside `send`,
  `bind` or `connect`. One that raises harms nobody: the exception goes to the loop's exception
  handler, and the messages after it arrive.
* All endpoints of a transport are used on that thread alone.

How much may be under way is bounded by the protocol above, by credit, and not here.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

Heard = Callable[[bytes, list[bytes]], None]
"""What a binding calls with a peer and the parts of its message."""

Answered = Callable[[list[bytes]], None]
"""What a connection calls with the parts of a message of its binding."""


FAILURES = (Exception, asyncio.CancelledError)
"""What a callback may raise without harm. Cancelled: it asked a future that was."""


class Scheduler(Protocol):
    """The part of an asyncio event loop that transports need."""

    def call_soon(self, callback: Callable[..., object], /, *args: object) -> object:
        """Call `callback` in the next turn of the loop, after those that were asked for before."""

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: object) -> object:
        """Call `callback` after `delay` seconds."""

    def call_exception_handler(self, context: dict[str, object], /) -> None:
        """Take note of an exception that nobody is there to catch."""


class Binding(ABC):
    """The end of a line that peers connect to. `address` is what they give to `connect`."""

    address: str

    @abstractmethod
    def send(self, peer: bytes, parts: Sequence[bytes]) -> bool:
        """Hand a message to `peer`, as the callback named it.

        Returns False when the peer cannot be reached, or when this binding is closed; nothing of
        the message arrives then. True promises nothing. Never blocks; raises only for arguments
        that are no message (no parts, or parts that are no bytes).
        """

    @abstractmethod
    def close(self, linger: float = 0.0) -> None:
        """Stop listening. The callback is not called again.

        What was sent before goes on its way for up to `linger` seconds, in the background; without
        linger it may be dropped. Closing twice is fine.
        """


class Connection(ABC):
    """The end of a line that belongs to one peer of a binding. `address` is the binding's."""

    address: str

    @abstractmethod
    def send(self, parts: Sequence[bytes]) -> bool:
        """Hand a message to the binding, as in `Binding.send`.

        A transport need not know that the binding is gone: True may well come back then.
        """

    @abstractmethod
    def close(self, linger: float = 0.0) -> None:
        """Leave, as in `Binding.close`."""


class Transport(ABC):
    """Makes endpoints and owns them. Made inside the running event loop that it is to use."""

    @abstractmethod
    def bind(self, name: str, on_message: Heard) -> Binding:
        """Listen at a new address. `name` is short and serves people: it shows in the address.

        Raises TransportError when that is impossible, with a hint what to do.
        """

    @abstractmethod
    def connect(self, address: str, on_message: Answered) -> Connection:
        """Become a new peer of the binding at `address`, which need not be there.

        The binding hears of it with its first message. Raises TransportError for an address that
        this transport cannot make sense of.
        """

    @abstractmethod
    def close(self, linger: float = 0.0) -> None:
        """Close every endpoint that is still open; waits for nothing. Closing twice is fine.

        Endpoints that were closed before keep the linger they were given.
        """

    @abstractmethod
    def join(self) -> None:
        """Block until what lingers has left or has lingered for its time, and free all resources.

        Call it after `close`, when the loop has nothing left to do: a process that ends without it
        loses what is still under way. Does nothing on a transport that was joined.
        """


def guard(loop: Scheduler, endpoint: object, error: BaseException) -> None:
    """Give an exception of an endpoint's callback to the loop's exception handler."""
    loop.call_exception_handler(
        {
            "message": f"a message callback of {endpoint!r} failed",
            "exception": error,
        }
    )
