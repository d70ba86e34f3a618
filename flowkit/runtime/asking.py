"""The questions of one replica: from `Call` ports to the links, and their answers back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from flowkit.channels import Headers, current_outboxes
from flowkit.codecs import Codec, codec_for, encode_extras
from flowkit.errors import (
    HandlerFailed,
    MessageTooLarge,
    RequestError,
    RequestTimeout,
    SendError,
    ServerLost,
)
from flowkit.message import Key, Payload, whole
from flowkit.protocol.asking import Asker, Outcome, Question
from flowkit.protocol.engine import MESSAGE_BYTES, Phase, Released
from flowkit.runtime import tracing
from flowkit.runtime.inlet import Shop
from flowkit.topology.plan import LinkPlan

WHY = 2000
"""Characters of a server's reason that are shown."""


class Asking:
    """What the `Call` channels of the node ask. `born` tells the time, as a root's; `accrue` is
    called before the number of handlers changes that wait for answers."""

    def __init__(
        self,
        shop: Shop,
        links: Sequence[LinkPlan],
        born: Callable[[], int],
        accrue: Callable[[], None],
    ) -> None:
        node = shop.node
        self._engine = engine = shop.engine
        self._wake = shop.wake
        self._waiting = shop.asking
        self._born = born
        self._accrue = accrue
        self._loop = asyncio.get_running_loop()
        self._rested: list[asyncio.Future[None]] = []
        self._open: dict[Question, Asker] = {}
        self._left = False
        self.open = False
        """Whether `setup()` has returned: before that nobody is there who could answer."""
        for name, channel in node.__flowkit__.calls.items():
            link = next((link for link in links if link.out == name), None)
            if link is None:
                continue
            asker = engine.senders[link.index]
            assert isinstance(asker, Asker)
            codec = link.codec or channel.codec
            codecs = codec_for(channel.type, codec), codec_for(channel.answer, codec)
            getattr(node, name).attach(partial(self._ask, name, asker, *codecs))

    async def _ask(
        self,
        name: str,
        asker: Asker,
        questions: Codec[Any],
        answers: Codec[Any],
        message: Any,
        key: Key,
        headers: Headers | None,
        timeout: float,
        retries: int,
    ) -> Any:
        if asyncio.get_running_loop() is not self._loop:
            raise SendError(f"{name}.ask() on another event loop than the replica's")
        if not self.open:
            raise SendError(f"{name}.ask() in setup(): no server is connected yet")
        context = tracing.current.get()
        if context is not None and tracing.TRACEPARENT not in (headers or {}):
            headers = {**(headers or {}), **context}
        payload = questions.encode([message])
        check_size(payload)
        extras = encode_extras(
            None if key is None else [key], None if headers is None else [headers]
        )
        target = asker.terms.target
        done: asyncio.Future[None] = self._loop.create_future()
        late = self._loop.call_later(timeout, _resolve, done)
        question: Question | None = None
        try:
            # What runs by itself waits while the project is changed; a handler comes to its end.
            while self._engine.paused and current_outboxes.get() is None and not done.done():
                await self._rest(done)
            if self._left or self._engine.phase not in (Phase.OPEN, Phase.FINISHING):
                raise SendError(f"{name}.ask(): the stream of this replica has ended")
            question = asker.ask(payload, extras, retries, lambda _: _resolve(done), self._born())
            self._open[question] = asker
            if self._engine.on_release is not None:
                keys, all_headers = [key] if key is not None else None, [headers]
                self._engine.on_release(name, Released([message], keys, all_headers, [question]))
            self._wake()
            with self._not_working():
                await done
        finally:
            late.cancel()
            if question is not None:
                del self._open[question]
                gave_up = not done.done() or done.cancelled()
                asker.expire(question, Outcome.CANCELLED if gave_up else Outcome.TIMED_OUT)
                self._wake()
        server = f"{target}.{question.server}" if question.server >= 0 else ""
        if question.outcome is Outcome.ANSWERED:
            (answer,) = answers.decode(question.answer, 1)
            return answer
        if question.outcome is Outcome.FAILED:
            raise HandlerFailed(f"{server}: {_reason(question)}", server)
        if question.outcome is Outcome.LOST:
            raise ServerLost(f"{server} died with the question in hand", server)
        if question.outcome is Outcome.CANCELLED:
            raise RequestError("the replica that asked has ended before the answer came", server)
        where = f"{server} has it in hand" if server else f"no replica of {target} was free"
        raise RequestTimeout(f"no answer within {timeout:g} s: {where}", server)

    @contextmanager
    def _not_working(self) -> Iterator[None]:
        """The handler that asks, if it is one, waits."""
        boxes = current_outboxes.get()
        if boxes is None:
            yield
            return
        handler = id(boxes)
        self._accrue()
        self._waiting[handler] += 1
        try:
            yield
        finally:
            self._accrue()
            self._waiting[handler] -= 1
            if not self._waiting[handler]:
                del self._waiting[handler]

    async def _rest(self, done: asyncio.Future[None]) -> None:
        rested = self._loop.create_future()
        self._rested.append(rested)
        await asyncio.wait({rested, done}, return_when=asyncio.FIRST_COMPLETED)

    def flush(self) -> None:
        """Once a turn of the loop: who waited for the end of a change goes on."""
        if self._rested and (not self._engine.paused or self._left):
            rested, self._rested = self._rested, []
            for one in rested:
                _resolve(one)

    def leave(self) -> None:
        """The replica ends: whoever still waits is told."""
        self._left = True
        for question, asker in list(self._open.items()):
            asker.expire(question, Outcome.CANCELLED)
        self.flush()


def check_size(payload: Payload) -> None:
    """Raise MessageTooLarge for a question or an answer that is too large for a frame."""
    size = len(payload)
    if size > MESSAGE_BYTES:
        text = f"a message of {size:,} bytes; the limit is {MESSAGE_BYTES:,}"
        raise MessageTooLarge(text, size, MESSAGE_BYTES)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _reason(question: Question) -> str:
    text = bytes(whole(question.answer)).decode(errors="replace")
    return text if len(text) <= WHY else f"{text[:WHY]}..."
