"""One input channel of a running replica: takes batches and calls the handler over them.

`PlainInlet` is the hot path: a plain handler, one message at a time. `JobInlet`, for coroutines and
for lists of messages, is in `flowkit.runtime.jobs`.

A batch that was in flight when somebody died is handled *carefully*: before each message its index
is noted where the supervisor can read it after a death, so that a message that kills is found.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import length_hint
from typing import Any

from flowkit.channels import In, Outbox
from flowkit.clock import Clock
from flowkit.codecs import Codec
from flowkit.errors import Poisoned, ReplicaError
from flowkit.histogram import record
from flowkit.message import Meta
from flowkit.node import Node
from flowkit.protocol.engine import Engine
from flowkit.protocol.lineage import Work
from flowkit.protocol.project import DEATHS_IN_HAND
from flowkit.protocol.receiver import InBatch
from flowkit.runtime import tracing
from flowkit.runtime.handling import FAILED, Ports, Undertaker, messages_of, metas_of
from flowkit.runtime.shared import CARE, HANDLER, SINCE_NS, TIMES, done_care, note_care
from flowkit.runtime.tracing import Trace, Tracer

BACKOFF = 0.1
BACKOFF_MAX = 10.0
"""Seconds before the first retry of a handler, doubled for each further one up to the maximum."""


SLICE = 0.010
"""Seconds of a batch that are handled before the loop turns. A batch may hold more: for handlers
that have become slow, or of whose pace its sender knew nothing."""

STRIDE = 128
"""Messages between two looks at the clock, at most. A look and what belongs to it take 0.3 us."""

STRIDE_SECONDS = 0.001
"""What they may take: fewer follow if it was more. So it takes a handler that becomes a thousand
times as slow for all of a stride to hold the loop for a second."""


def backoff(attempts: int) -> float:
    """Seconds to wait after `attempts` failed tries."""
    return float(min(BACKOFF * 2 ** min(attempts - 1, 20), BACKOFF_MAX))


@dataclass(slots=True)
class Shop:
    """What all the inlets of a replica work with."""

    node: Node
    engine: Engine
    ports: Ports
    undertaker: Undertaker
    codecs: dict[int, Codec[Any]]
    """By input link."""
    release: Callable[[Work, dict[str, Outbox], int], None]
    """Offers the contents of outboxes and finishes the work, which was so many messages."""
    clock: Clock
    wake: Callable[[], None]
    """There may be something to do: take a turn."""
    fail: Callable[[BaseException], None]
    """The replica cannot go on."""
    gauges: MutableSequence[int] | memoryview[int]
    poisons: dict[tuple[int, bytes], set[int]] = field(default_factory=dict)
    """By link and batch: the indices of messages to give up unhandled."""
    careful: Inlet | None = None
    """The inlet that handles a message carefully: there is one place to note which."""
    tap: Callable[[str, InBatch, list[Any], Sequence[int] | None], None] | None = None
    """Shown the batches that are taken, while somebody looks."""
    tracer: Tracer | None = None
    """Makes spans, with OpenTelemetry."""
    busy: float = 0.0
    """Seconds spent in handlers."""
    handled: int = 0
    asking: Counter[int] = field(default_factory=Counter)
    """Handlers, by the identity of their outboxes, and how many answers each waits for: that is
    not their own work."""

    def at_work(self, running: int) -> int:
        """How many of the `running` coroutine handlers do not wait for answers."""
        return max(0, running - len(self.asking))

    def isolate(self, batch: InBatch, places: Iterable[int]) -> set[int]:
        """Give up the poisoned messages among those at `places`; returns their places."""
        link = batch.terms.index
        bad = self.poisons.get((link, batch.id), set()).intersection(places)
        if bad:
            error = Poisoned(f"killed its process {DEATHS_IN_HAND + 1} times")
            self.undertaker.bury(batch, sorted(bad), self.codecs[link], error, DEATHS_IN_HAND + 1)
        return bad


class Inlet(ABC):
    """One input channel, the `number`th of its node, from 1."""

    def __init__(self, shop: Shop, channel: In[Any], number: int) -> None:
        self.shop = shop
        self.channel = channel
        self.number = number
        self.how = shop.node.__flowkit__.handlers[channel.name]
        self.function: Callable[..., Any] = getattr(shop.node, self.how.method)
        self.pace = shop.engine.inboxes[channel.name].pace

    @abstractmethod
    def step(self) -> bool:
        """Do a piece of work, a batch at most. False if there was nothing to do."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing is begun and not finished."""

    @property
    @abstractmethod
    def due_at(self) -> float | None:
        """When `step` must be called although nothing came in; None if never."""

    def accrue(self, now: float) -> None:
        """Count the time of handlers that have not returned yet."""
        return None

    async def stop(self) -> None:
        """Cancel what runs."""
        return None

    def knob(self) -> str:
        """What bounds the messages in hand, if handlers wait for later ones; for people."""
        return ""

    def stacks(self) -> list[str]:
        """Where the handlers that wait are, for people."""
        return []


class _Failed(Exception):
    """The replica cannot go on, and knows it."""


class _Batch:
    """A batch in hand: how far it is, and, after a failure, when to go on."""

    __slots__ = (
        "batch",
        "work",
        "messages",
        "places",
        "metas",
        "trace",
        "start",
        "attempts",
        "due",
        "spent",
    )

    def __init__(
        self,
        batch: InBatch,
        work: Work,
        messages: list[Any],
        places: list[int] | None,
        metas: list[Meta] | None,
        trace: Trace | None,
    ) -> None:
        self.batch = batch
        self.work = work
        self.messages = messages
        self.places = places
        self.metas = metas
        self.trace = trace
        self.start = 0
        self.attempts = 0
        """Failed tries of the message at `start`."""
        self.due = 0.0
        self.spent = 0.0

    def place(self, index: int) -> int:
        """Where message `index` stands in the batch as it was received."""
        return index if self.places is None else self.places[index]


def is_careful(batch: InBatch) -> bool:
    """Whether one of its messages may be the one that kills: it was in flight at a death."""
    return batch.attempts > 0 and not batch.terms.lossy


class PlainInlet(Inlet):
    """Plain handlers, one message after the other. A batch that takes long is handled in slices:
    the loop turns in between, and whatever it is that waits for that."""

    def __init__(self, shop: Shop, channel: In[Any], number: int) -> None:
        super().__init__(shop, channel, number)
        self._boxes = shop.ports.fresh()
        self._current: _Batch | None = None
        self._tried = False
        self._stride = 1

    @property
    def idle(self) -> bool:
        return self._current is None

    @property
    def due_at(self) -> float | None:
        if self._current is None or self._is_kept:
            return None
        return self._current.due

    @property
    def _is_kept(self) -> bool:
        """Whether the batch waits for another that is handled carefully; a turn is asked for when
        that is done."""
        if self.shop.careful is None or self._current is None:
            return False
        return is_careful(self._current.batch)

    def step(self) -> bool:
        shop = self.shop
        began = shop.clock()
        current = self._current
        if current is None:
            current = self._take()
            if current is None:
                return False
            self._current = current
        elif began < current.due:
            return False
        if self._is_kept:
            return False
        shop.gauges[HANDLER] = self.number
        shop.gauges[SINCE_NS] = int(began * 1e9)
        shop.ports.open(self._boxes)
        trace = current.trace
        token = trace.enter() if trace is not None else None
        start = current.start
        try:
            self._go_on(current, shop.clock() + SLICE)  # decoding does not count
        finally:
            if trace is not None:
                trace.exit(token)
            shop.ports.close()
            shop.gauges[HANDLER] = shop.gauges[SINCE_NS] = 0
        shop.handled += current.start - start
        seconds = shop.clock() - began
        shop.busy += seconds
        current.spent += seconds
        if current.start >= len(current.messages):
            self._current = None
            batch = current.batch
            if trace is not None:
                tracing.stamp(self._boxes.values(), [0] * len(self._boxes), trace.uniform)
                trace.end()
            shop.release(current.work, self._boxes, batch.count)
            shop.handled += batch.count - len(current.messages)  # what had been given up before
            # All of a batch count with its mean: a clock for each message would cost more than
            # many a handler.
            record(shop.gauges, TIMES, current.spent / (batch.count or 1), batch.count)
            self.pace.record(batch.count, batch.size, current.spent)
        return True

    def _take(self) -> _Batch | None:
        shop = self.shop
        taken = shop.engine.take(self.channel.name)
        if taken is None:
            return None
        batch, work = taken
        codec = shop.codecs[batch.terms.index]
        messages, places = messages_of(batch, codec, shop.undertaker)
        if shop.poisons:
            known = range(len(messages)) if places is None else places
            bad = shop.isolate(batch, known)
            if bad:
                kept = [number for number, place in enumerate(known) if place not in bad]
                places = [known[number] for number in kept]
                messages = [messages[number] for number in kept]
        metas = None
        if self.how.wants_meta:
            metas = list(metas_of(batch, range(batch.count) if places is None else places))
        if shop.tap is not None:
            shop.tap(self.channel.name, batch, messages, places)
        trace = None
        if shop.tracer is not None or tracing.MARK in batch.extras:
            known = range(batch.count) if places is None else places
            contexts = tracing.contexts_of(batch, known)
            trace = tracing.begin(shop.tracer, self.channel.name, len(messages), contexts)
        return _Batch(batch, work, messages, places, metas, trace)

    def _go_on(self, current: _Batch, until: float) -> None:
        """Call the handler until the batch is through, the slice is, or a message must wait for
        another try."""
        careful = is_careful(current.batch)
        if careful:
            note_care(self.shop.gauges, current.batch.terms.index, current.batch.id)
        trace = current.trace
        each = trace is not None and trace.each is not None
        while current.start < len(current.messages):
            marks = [len(box.messages) for box in self._boxes.values()]
            try:
                if careful or each or self.how.wants_meta or current.attempts or not self._tried:
                    self._one(current, careful)
                    if trace is not None and each:
                        context = trace.context(current.start - 1)
                        tracing.stamp(self._boxes.values(), marks, context)
                else:
                    self._many(current, marks, until)
            except _Failed:
                return
            except FAILED as error:
                for box, mark in zip(self._boxes.values(), marks, strict=True):
                    box.cut(mark)
                if self._failed(current, error):
                    break
            if self.shop.clock() >= until:
                break
        if careful:
            done_care(self.shop.gauges)

    def _one(self, current: _Batch, careful: bool) -> None:
        index = current.start
        if careful:
            self.shop.gauges[CARE[3]] = current.place(index)
        if current.metas is not None:
            result = self.function(current.messages[index], current.metas[index])
        else:
            result = self.function(current.messages[index])
        if not self._tried:
            self._tried = True
            self._check_plain(result)
        current.start += 1
        current.attempts = 0

    def _check_plain(self, result: Any) -> None:
        """Refuse a coroutine that nobody would run: a decorator hid that the handler is one."""
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            name = f"{type(self.shop.node).__qualname__}.{self.how.method}"
            self.shop.fail(
                ReplicaError(
                    f"{name} returned a coroutine, but is declared as a plain function: its "
                    "decorator must be declared with async def"
                )
            )
            raise _Failed

    def _many(self, current: _Batch, marks: list[int], until: float) -> None:
        """Call the handler for what is left, as far as there is time: the hot path. If it raises,
        `current.start` is the message that failed and `marks` where the outputs stood before it."""
        function, clock = self.function, self.shop.clock
        boxes = list(self._boxes.values())
        messages = current.messages
        rest = iter(messages if current.start == 0 else messages[current.start :])
        left = len(messages) - current.start
        mark = marks[0] if marks else 0
        now = clock()
        try:
            while left:
                # A mark before each message, so that what a failing handler sent can be cut off.
                # The usual case of one output costs 25 ns a message, that of several five times
                # as much.
                stride = islice(rest, self._stride)
                if not boxes:
                    for message in stride:
                        function(message)
                elif len(boxes) == 1:
                    sent = boxes[0].messages
                    for message in stride:
                        mark = len(sent)
                        function(message)
                else:
                    sents = [box.messages for box in boxes]
                    for message in stride:
                        marks[:] = [len(sent) for sent in sents]
                        function(message)
                left = length_hint(rest)
                began, now = now, clock()
                seconds = now - began
                if seconds > STRIDE_SECONDS:
                    self._stride = max(1, int(self._stride * STRIDE_SECONDS / seconds))
                elif self._stride < STRIDE:
                    self._stride *= 2
                if now >= until:
                    break
        except FAILED:
            if len(boxes) == 1:
                marks[0] = mark
            # The iterator knows how far it was, so that nothing is counted while all goes well.
            current.start = len(messages) - length_hint(rest) - 1
            raise
        current.start = len(messages) - left

    def _failed(self, current: _Batch, error: BaseException) -> bool:
        """The message at `current.start` failed. True if it must wait for another try."""
        undertaker = self.shop.undertaker
        if current.trace is not None:
            current.trace.failed(error)
        current.attempts += 1
        if current.attempts <= undertaker.policy.retry:
            current.due = self.shop.clock() + backoff(current.attempts)
            return True
        codec = self.shop.codecs[current.batch.terms.index]
        place = current.place(current.start)
        undertaker.bury(current.batch, [place], codec, error, current.attempts)
        current.start += 1
        current.attempts = 0
        return False
