"""Channels: what a node class declares to receive and to send.

`In` and `Out` are class attributes. On an instance, an `Out` gives the `OutPort` that sends.

A port never talks to a socket. It appends to an `Outbox`, and the runtime decides which outbox a
port writes to at any moment: the one of the handler that is running, the one of a source, or, while
nothing may be sent, one that refuses. A node that nobody runs (a plain unit test) has outboxes that
simply collect: read them with `OutPort.sent`.
"""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload
from weakref import WeakSet

from flowkit.errors import DeclarationError, SendError
from flowkit.units import duration

if TYPE_CHECKING:
    from flowkit.message import Key

T = TypeVar("T")

Headers = Mapping[str, str]


class In(Generic[T]):
    """An input channel; messages of type `type` go to the handler ``on_<name>``.

    `batch`: hand over lists of up to this many messages instead of single ones. Without `within` a
    list holds what is there; with it, a list may wait that long (seconds, or a text like
    ``"500ms"``) to fill, and is handed over when the time has passed.
    `concurrency`: how many coroutine handlers of this channel may run at once.
    `codec`: ``raw``, ``json``, ``msgpack`` or ``pickle``; the type decides when it is not given.

    Type checkers know a channel's type from its first argument where that is a class. Of what is
    none, a union say, an annotation tells them: ``x: In[int | str] = In(int | str)``; without one
    they check nothing. That the handler takes what its channel carries they cannot see: that is
    checked when the class is created.
    """

    name: str = ""

    # Two overloads, so that `In(str)` is an `In[str]`, and a type that only exists at run time
    # (`int | str`) makes an `In[Any]`.
    @overload
    def __init__(
        self,
        type: type[T],
        *,
        batch: int | None = ...,
        within: float | str | None = ...,
        concurrency: int = ...,
        codec: str | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: In[Any],
        type: Any,
        *,
        batch: int | None = ...,
        within: float | str | None = ...,
        concurrency: int = ...,
        codec: str | None = ...,
    ) -> None: ...
    def __init__(
        self,
        type: Any,
        *,
        batch: int | None = None,
        within: float | str | None = None,
        concurrency: int = 1,
        codec: str | None = None,
    ) -> None:
        if batch is not None and (isinstance(batch, bool) or batch < 1):
            raise DeclarationError(f"In(batch={batch!r}): a batch holds at least one message")
        if within is not None and batch is None:
            raise DeclarationError(
                "In(within=...) without batch=", hint="say how many messages a list may hold"
            )
        if isinstance(concurrency, bool) or concurrency < 1:
            raise DeclarationError(f"In(concurrency={concurrency!r}): at least one handler runs")
        self.type = type
        self.batch = batch
        self.within = _duration("In(within=...)", within) if within is not None else None
        self.concurrency = concurrency
        self.codec = codec

    def __set_name__(self, owner: object, name: str) -> None:
        self.name = name


class Out(Generic[T]):
    """An output channel; send with ``self.<name>.send(message)``.

    `key`: a field or attribute path (``"user.id"``) that is the message's key on links with
    ``route: key``, unless the link says `by` or `send` is given a key.
    `codec`: as for `In`.
    """

    name: str = ""

    @overload
    def __init__(
        self, type: type[T], *, key: str | None = ..., codec: str | None = ...
    ) -> None: ...
    @overload
    def __init__(
        self: Out[Any], type: Any, *, key: str | None = ..., codec: str | None = ...
    ) -> None: ...
    def __init__(self, type: Any, *, key: str | None = None, codec: str | None = None) -> None:
        self.type = type
        self.key = key
        self.codec = codec

    def __set_name__(self, owner: object, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Out[T]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> OutPort[T]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Out[T] | OutPort[T]:
        if instance is None:
            return self
        # Not a data descriptor: the port in the instance's own dictionary is found first from
        # now on, so that the hot path does not come here again.
        kind: type[OutPort[T]] = TaskPort if type(instance).__flowkit__.tasks else OutPort
        port = instance.__dict__[self.name] = kind(self.name)
        return port


class Messages(list[Any]):
    """What was sent through a port and is not taken yet. Its class says what an append does.

    Here it is the list's own, so that a `send` costs a call and an append. What else a `send` may
    have to do is in classes that take this one's place for as long as it must be done.
    """

    __slots__ = ("thread", "on_first")

    thread: int
    """The thread of the loop."""
    on_first: Callable[[], None]


class _Guarded(Messages):
    """Refuses what another thread sends. Asking which thread this is takes as long as a call and
    an append together."""

    __slots__ = ()

    def append(self, message: Any) -> None:
        self.check()
        list.append(self, message)

    def extend(self, messages: Iterable[Any]) -> None:
        self.check()
        list.extend(self, messages)

    def check(self) -> None:
        if self.thread != get_ident():
            raise SendError("send() from another thread than the event loop's")


class _Waking(_Guarded):
    """Tells of the first message."""

    __slots__ = ()

    def append(self, message: Any) -> None:
        super().append(message)
        self._began()

    def extend(self, messages: Iterable[Any]) -> None:
        super().extend(messages)
        if self:
            self._began()

    def _began(self) -> None:
        self.__class__ = _kind  # type: ignore[assignment]
        self.on_first()


_kind: type[Messages] = _Guarded
"""What outboxes collect messages in."""

_attached: WeakSet[OutPort[Any]] = WeakSet()


def guard_sends(guarded: bool) -> None:
    """Whether each `send` in this process looks at its thread. It does until this says otherwise:
    that is for a process that has one thread, and says so again when there are more."""
    global _kind
    _kind = _Guarded if guarded else Messages
    for port in list(_attached):
        port.guard()


class Outbox:
    """Messages sent by one handler call, one batch or one source, in order.

    `keys` and `headers` are parallel to `messages` and exist only once one was given.
    `on_first` is called when the first message is sent, and when the first is sent after a `take`.
    """

    __slots__ = ("messages", "keys", "headers", "on_first")

    def __init__(self, on_first: Callable[[], None] | None = None) -> None:
        self.keys: list[Key] | None = None
        self.headers: list[Headers | None] | None = None
        self.on_first = on_first
        self.messages = self._fresh()

    def _fresh(self) -> Messages:
        messages = _kind() if self.on_first is None else _Waking()
        messages.thread = get_ident()
        if self.on_first is not None:
            messages.on_first = self.on_first
        return messages

    def annotate(self, key: Key, headers: Headers | None) -> None:
        """Note key and headers of the message that is appended next."""
        if isinstance(self.messages, _Guarded):
            self.messages.check()
        length = len(self.messages)
        if key is not None:
            if self.keys is None:
                self.keys = []
            self.keys.extend([None] * (length - len(self.keys)))
            self.keys.append(key)
        if headers is not None:
            if self.headers is None:
                self.headers = []
            self.headers.extend([None] * (length - len(self.headers)))
            self.headers.append(headers)

    def cut(self, length: int) -> None:
        """Forget everything after the first `length` messages: a handler raised."""
        del self.messages[length:]
        if self.keys is not None:
            del self.keys[length:]
        if self.headers is not None:
            del self.headers[length:]

    def part(self, start: int, count: int) -> Outbox:
        """A copy of the `count` messages from `start` on, in an outbox of their own."""
        place = slice(start, start + count)
        part = Outbox()
        part.messages += self.messages[place]
        part.keys = (self.keys or [])[place] or None
        part.headers = (self.headers or [])[place] or None
        return part

    def skip(self, count: int) -> None:
        """Forget the first `count` messages: they are sent."""
        del self.messages[:count]
        self.keys = (self.keys or [])[count:] or None
        self.headers = (self.headers or [])[count:] or None

    def extend(self, other: Outbox) -> None:
        """Append everything of `other`, in order."""
        length = len(self.messages)
        if other.keys is not None:
            self.keys = [] if self.keys is None else self.keys
            self.keys.extend([None] * (length - len(self.keys)))
            self.keys.extend(other.keys)
        if other.headers is not None:
            self.headers = [] if self.headers is None else self.headers
            self.headers.extend([None] * (length - len(self.headers)))
            self.headers.extend(other.headers)
        self.messages += other.messages

    def take(self) -> tuple[list[Any], list[Key] | None, list[Headers | None] | None]:
        """Remove and return messages, keys and headers; the parallel lists are padded."""
        messages, keys, headers = self.messages, self.keys, self.headers
        # A new list each time: the old one lives on in what was returned.
        self.messages, self.keys, self.headers = self._fresh(), None, None
        if keys is not None:
            keys.extend([None] * (len(messages) - len(keys)))
        if headers is not None:
            headers.extend([None] * (len(messages) - len(headers)))
        return messages, keys, headers


class _Refusing(Messages):
    """Stands where the messages would be while nothing may be sent."""

    __slots__ = ()

    def append(self, message: Any) -> None:
        raise SendError(
            "send() belongs to a running handler, hook or timer of the node, on the event loop's "
            "thread; here none is running (it has returned, or this is another thread or task)"
        )

    def extend(self, messages: Any) -> None:
        self.append(messages)


class _Closed(Outbox):
    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self.messages = _Refusing()

    def annotate(self, key: Key, headers: Headers | None) -> None:
        self.messages.append(None)


async def _at_once() -> None:
    return None


CLOSED: Outbox = _Closed()
"""The outbox of a port while nothing may be sent."""

current_outboxes: ContextVar[dict[str, Outbox] | None] = ContextVar(
    "flowkit_outboxes", default=None
)
"""The outboxes of the coroutine handler that this task, or one it started, runs for."""


Confirm = Callable[[str, Outbox], Awaitable[None]]
"""Sends what is in an outbox on the output of that name, and returns when it is done."""


class OutPort(Generic[T]):
    """Sends the messages of one output channel of one node instance."""

    __slots__ = ("name", "_outbox", "_messages", "_wait", "_confirm", "__weakref__")

    def __init__(self, name: str) -> None:
        self.name = name
        self._wait: Callable[[], Awaitable[None]] = _at_once
        self._confirm: Confirm | None = None
        self.use(Outbox())

    # `key` and `headers` are given by name. That the signature does not say so saves a quarter of
    # the call: CPython 3.11 does not inline functions with keyword-only arguments.
    def send(self, message: T, key: Key = None, headers: Headers | None = None) -> None:
        """Send `message`; it leaves when the handler that sends it returns.

        Never blocks and never loses: a node gets no further input while one of its outputs is
        full. What a `run()` sends leaves at once if the replica was at rest, with the next turn of
        the loop, or when there is room; so it awaits `room()` between sends.
        Raises `SendError` outside a handler, hook or timer, and from another thread.
        """
        # The hot path: two compares and an append, 35 ns on a quiet machine. What else there is to
        # do is done by the class of the list: see `Messages`.
        if key is not None or headers is not None:
            self._outbox.annotate(key, headers)
        self._messages.append(message)

    def send_many(self, messages: Iterable[T]) -> None:
        """Send every message of `messages`, in order; as `send`, but faster for many.

        If `messages` is an iterator that raises, what came before is sent.
        """
        if type(messages) is list or type(messages) is tuple:
            self._collected().extend(messages)
            return
        # Who makes them may send as well, on other ports, and what was sent may leave with that:
        # so nothing is appended before all is made.
        made: list[T] = []
        try:
            made.extend(messages)
        finally:
            self._collected().extend(made)

    def _collected(self) -> Messages:
        """What `send_many` appends to."""
        return self._messages

    async def room(self) -> None:
        """Wait until the link has room: for `run()` and code outside handlers.

        Inside a handler it returns at once, since what a handler sends leaves only when the
        handler has returned, and the runtime hands over no further input while there is no room.
        """
        await self._wait()

    async def deliver(self, message: T, key: Key = None, headers: Headers | None = None) -> None:
        """Send `message` at once, and return when it is done downstream, with all that was made
        of it: for who owes somebody an answer. Waits for room, and lets others be sent meanwhile.

        Raises `DeadLettered` or `Dropped` if something of it was given up; the message may have
        taken effect in part then, and may do so twice if it is sent again. Raises `SendError` in a
        handler, whose sends belong to its batch; if the stream has ended; and if a link downstream
        forgets what it sends (at-most-once), so that nobody would ever know. A durable link counts
        as done what its journal holds.
        """
        if current_outboxes.get():
            raise SendError(
                "deliver() in a handler: what a handler sends leaves when it has returned, and its "
                "own message is done only after that; use send()"
            )
        box = Outbox()
        if key is not None or headers is not None:
            box.annotate(key, headers)
        box.messages.append(message)
        if self._confirm is None:
            self._outbox.extend(box)  # nobody runs the node: see `sent`
        else:
            await self._confirm(self.name, box)

    confirm = deliver

    @property
    def sent(self) -> list[T]:
        """What was sent and not yet taken by the runtime; for tests of a node that nobody runs."""
        return list(self._messages)

    # What follows is for the runtime.

    def use(self, outbox: Outbox) -> None:
        """Write to `outbox` from now on."""
        self._outbox = outbox
        self._messages = outbox.messages
        self.guard()

    def guard(self) -> None:
        """Look at the thread of each `send` from now on, if that has to be."""
        if type(self._messages) is Messages and _kind is not Messages:
            self._messages.__class__ = _kind

    def attach(self, wait: Callable[[], Awaitable[None]], confirm: Confirm | None = None) -> None:
        """Bind the port to a running replica: `wait` is what `room` awaits, `confirm` delivers."""
        self._wait = wait
        self._confirm = confirm
        _attached.add(self)
        self.use(CLOSED)


class TaskPort(OutPort[T]):
    """The port of a node with coroutine handlers: many may run at once, each has its outbox."""

    __slots__ = ()

    def send(self, message: T, key: Key = None, headers: Headers | None = None) -> None:
        outbox = self._find()
        if key is not None or headers is not None:
            outbox.annotate(key, headers)
        outbox.messages.append(message)

    def _collected(self) -> Messages:
        return self._find().messages

    async def room(self) -> None:
        if current_outboxes.get() is None:
            await self._wait()

    def _find(self) -> Outbox:
        outboxes = current_outboxes.get()
        return self._outbox if outboxes is None else outboxes.get(self.name, CLOSED)


def _duration(where: str, value: float | str) -> float:
    try:
        return duration(value)
    except ValueError as error:
        raise DeclarationError(f"{where}: {error}") from None
