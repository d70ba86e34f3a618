"""Channels for questions and answers: `Call` asks, `Serve` answers.

They are joined by links with ``pattern: request``. A question goes to the replica of the serving
node with the fewest in hand; a server that is killed, or does not answer in time, is a named error.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from flowkit.channels import Headers, In
from flowkit.errors import DeclarationError, SendError
from flowkit.units import duration

if TYPE_CHECKING:
    from flowkit.message import Key

Question = TypeVar("Question")
Answer = TypeVar("Answer")

TIMEOUT = 30.0
"""Seconds that an answer may take, unless the channel or `ask` says otherwise."""

Ask = Callable[[Any, "Key", Headers | None, float, int], Awaitable[Any]]


class Serve(In[Question], Generic[Question, Answer]):
    """An input channel whose handler, ``on_<name>``, returns the answer to each question.

    The handler is a plain function or a coroutine, called with the question, and with its meta if
    it takes a second argument. `concurrency` is how many coroutine handlers may run at once. What
    it sends is sent when it returns, and the answer leaves when all of that is done downstream. If
    it raises, it has sent nothing and the asker gets `HandlerFailed`; `on_error` does not apply.
    `codec` is as for `In`, of question and answer.
    """

    @overload
    def __init__(
        self,
        type: type[Question],
        answer: type[Answer],
        *,
        concurrency: int = ...,
        codec: str | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Serve[Any, Any],
        type: Any,
        answer: Any,
        *,
        concurrency: int = ...,
        codec: str | None = ...,
    ) -> None: ...
    def __init__(
        self, type: Any, answer: Any, *, concurrency: int = 1, codec: str | None = None
    ) -> None:
        super().__init__(type, concurrency=concurrency, codec=codec)
        self.answer = answer


class Call(Generic[Question, Answer]):
    """A channel that asks: ``answer = await self.<name>.ask(question, timeout=1.0)``.

    `timeout` (seconds, or a text like ``"500ms"``) and `retries` are what `ask` does unless it is
    told otherwise; `codec` is as for `In`, of question and answer.
    """

    name: str = ""

    @overload
    def __init__(
        self,
        type: type[Question],
        answer: type[Answer],
        *,
        timeout: float | str = ...,
        retries: int = ...,
        codec: str | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Call[Any, Any],
        type: Any,
        answer: Any,
        *,
        timeout: float | str = ...,
        retries: int = ...,
        codec: str | None = ...,
    ) -> None: ...
    def __init__(
        self,
        type: Any,
        answer: Any,
        *,
        timeout: float | str = TIMEOUT,
        retries: int = 0,
        codec: str | None = None,
    ) -> None:
        self.type = type
        self.answer = answer
        try:
            self.timeout = _timeout(timeout)
        except ValueError as error:
            raise DeclarationError(f"Call(timeout=...): {error}") from None
        if isinstance(retries, bool) or retries < 0:
            raise DeclarationError(f"Call(retries={retries!r}): a whole number, 0 or more")
        self.retries = retries
        self.codec = codec

    def __set_name__(self, owner: object, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Call[Question, Answer]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> CallPort[Question, Answer]: ...
    def __get__(
        self, instance: Any, owner: Any = None
    ) -> Call[Question, Answer] | CallPort[Question, Answer]:
        if instance is None:
            return self
        port: CallPort[Question, Answer]
        port = instance.__dict__[self.name] = CallPort(self)
        return port


class CallPort(Generic[Question, Answer]):
    """Asks the questions of one channel of one node instance."""

    def __init__(self, channel: Call[Question, Answer]) -> None:
        self._channel = channel
        self._ask: Ask | None = None

    async def ask(
        self,
        question: Question,
        *,
        timeout: float | str | None = None,
        retries: int | None = None,
        key: Key = None,
        headers: Headers | None = None,
    ) -> Answer:
        """The answer of one server: in a coroutine handler, a `run()`, or anywhere on the loop.

        The timeout counts from now, over all tries, and also while no server is free. `retries`
        says how often the question may be asked again, of another server or of the one that is
        started again, after one died with it in hand: it may have its effect twice then, and the
        server can know it by its `meta.id`, which stays the same. Servers get `key` and `headers`
        with it, in their `meta`.

        Raises `RequestTimeout`, `ServerLost` or `HandlerFailed`, all of them `RequestError`;
        `EncodeError` for a question that cannot be sent, `DecodeError` for an answer that is not of
        the channel's type, and `SendError` when the stream of this replica has ended.
        """
        if self._ask is None:
            raise SendError(
                f"{self._channel.name}.ask(): nobody runs this node; in a test, say who answers: "
                f"node.{self._channel.name}.answer_with(function)"
            )
        seconds = self._channel.timeout if timeout is None else _timeout(timeout)
        again = self._channel.retries if retries is None else retries
        answer: Answer = await self._ask(question, key, headers, seconds, again)
        return answer

    def answer_with(self, function: Callable[[Question], Any]) -> None:
        """Have `function`, plain or a coroutine, answer: for tests of a node that nobody runs."""

        async def ask(question: Any, *_: object) -> Any:
            answer = function(question)
            return await answer if inspect.isawaitable(answer) else answer

        self._ask = ask

    def attach(self, ask: Ask) -> None:
        """Bind the port to a running replica; for the runtime."""
        self._ask = ask


def _timeout(value: float | str) -> float:
    seconds = duration(value)
    if seconds <= 0:
        raise ValueError(f"a timeout longer than nothing is expected, not {value!r}")
    return seconds
