"""Trace contexts (W3C Trace Context) that travel with messages, with or without OpenTelemetry.

A message may have the header `traceparent`, and `tracestate` with it. What a handler sends while it
handles such a message gets the same, unless its author has given it a `traceparent`: the trace goes
on through every node. A handler of lists (``batch=``) gives on that of the first message that has
one. What timers, `finish()` and sources send has none of its own.

With OpenTelemetry (`flowkit.runtime.spans`) every batch that is handled is a span, linked to those
of its messages. If they are all of one trace, or of none, or go to a handler of lists, what is sent
continues the span; if handlers take messages of several traces one by one, each keeps its own.

Questions carry on the context of the handler that asks, and servers handle them in it.

A batch without these headers costs nothing: they are searched for in the batch's encoded headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from flowkit.channels import Outbox
from flowkit.protocol.receiver import InBatch
from flowkit.runtime.handling import extras_of

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

MARK = TRACEPARENT.encode()
"""Is in the encoded headers of a batch in which anything is traced."""

_VALID = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?"
)

Context = Mapping[str, str]
"""The headers that carry a trace context on: `traceparent`, and `tracestate` if there is one."""


current: ContextVar[Context | None] = ContextVar("flowkit_trace", default=None)
"""What the questions of the coroutine handler that this task runs for carry on."""


def is_valid(traceparent: str) -> bool:
    """Whether it names a trace. Versions above 00 may have more behind the fields of 00."""
    found = _VALID.fullmatch(traceparent)
    return found is not None and (found["more"] is None or not traceparent.startswith("00"))


def context_of(headers: Mapping[str, str] | None) -> Context | None:
    """The trace context in the headers of a message, None if there is no valid one."""
    if not headers:
        return None
    traceparent = headers.get(TRACEPARENT)
    if traceparent is None or not is_valid(traceparent):
        return None
    if TRACESTATE in headers:
        return {TRACEPARENT: traceparent, TRACESTATE: headers[TRACESTATE]}
    return {TRACEPARENT: traceparent}


def contexts_of(batch: InBatch, places: Iterable[int]) -> list[Context | None] | None:
    """The contexts of the messages at `places`; None if none has any.

    Look first whether `MARK` is in the batch's extras. Messages with the same headers share one.
    """
    _, headers = extras_of(batch)
    if headers is None:
        return None
    known: dict[tuple[str | None, str | None], Context | None] = {}
    found: list[Context | None] = []
    for place in places:
        mine = headers[place] or {}
        name = (mine.get(TRACEPARENT), mine.get(TRACESTATE))
        if name not in known:
            known[name] = context_of(mine)
        found.append(known[name])
    return found if any(context is not None for context in found) else None


def stamp(boxes: Iterable[Outbox], marks: Sequence[int], context: Context | None) -> None:
    """Give `context` to what was sent after `marks`, where the sender has not said otherwise."""
    if context is None:
        return
    for box, mark in zip(boxes, marks, strict=True):
        count = len(box.messages)
        if mark == count:
            continue
        headers = box.headers
        if headers is None:
            headers = box.headers = []
        headers.extend([None] * (count - len(headers)))
        for place in range(mark, count):
            given = headers[place]
            if given is None:
                headers[place] = context
            elif TRACEPARENT not in given:
                # A tracestate belongs to its traceparent: one without the other means nothing.
                headers[place] = {**given, **context}


class Trace:
    """The traces of a batch in hand.

    What is sent gets `uniform`, whichever message it was sent for, or else, if that is None, the
    context in `each` of its message; neither is there where nothing is to be carried on.
    """

    def __init__(self, contexts: Sequence[Context | None] | None) -> None:
        self.uniform: Context | None = None
        self.each: Sequence[Context | None] | None = contexts
        if contexts and all(context is contexts[0] for context in contexts):
            self.uniform, self.each = contexts[0], None

    def context(self, number: int) -> Context | None:
        """What is sent for message `number` of the batch carries this."""
        return self.uniform if self.each is None else self.each[number]

    def of_list(self, numbers: Iterable[int]) -> Context | None:
        """What a handler of all the messages `numbers` sends carries this."""
        if self.each is None:
            return self.uniform
        return next(filter(None, (self.each[number] for number in numbers)), None)

    def enter(self) -> Any:
        """A handler is about to run; what is returned goes to `exit`."""
        return None

    def exit(self, token: Any) -> None:
        """The handler has returned, or raised."""

    def failed(self, error: BaseException) -> None:
        """A handler has raised."""

    def end(self) -> None:
        """The batch is handled."""


class Tracer(Protocol):
    """Makes spans; see `flowkit.runtime.spans`."""

    def begin(
        self, channel: str, count: int, contexts: Sequence[Context | None] | None, merged: bool
    ) -> Trace:
        """`count` messages of input `channel` are about to be handled; `merged`: in lists."""


def begin(
    tracer: Tracer | None,
    channel: str,
    count: int,
    contexts: Sequence[Context | None] | None,
    merged: bool = False,
) -> Trace | None:
    """The trace of a batch that is about to be handled; None if there is nothing to do for it."""
    if tracer is not None:
        return tracer.begin(channel, count, contexts, merged)
    return Trace(contexts) if contexts is not None else None
