"""Handlers that are coroutines, and handlers that take lists of messages.

A *job* is one piece of lineage: an input batch, or a group of messages out of several. Its *units*
are the handler calls it takes. What the units sent is released when the last one has returned, in
the order of the messages and not of completion.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flowkit.channels import In, Outbox, current_outboxes
from flowkit.histogram import record
from flowkit.message import Meta, slot_of
from flowkit.protocol.lineage import Work
from flowkit.protocol.receiver import InBatch
from flowkit.protocol.routing import extractor, itself
from flowkit.runtime import tracing
from flowkit.runtime.handling import FAILED, extras_of, messages_of, metas_of
from flowkit.runtime.inlet import Inlet, Shop, backoff, is_careful
from flowkit.runtime.shared import CARE, HANDLER, SINCE_NS, TIMES, done_care, note_care
from flowkit.runtime.stacks import task_stack
from flowkit.runtime.tracing import Context, Trace
from flowkit.topology.plan import LinkPlan


class _Piece(NamedTuple):
    """Some messages of one batch, in order: as few objects for many messages as for one."""

    batch: InBatch
    places: Sequence[int]
    """Where the messages stand in the batch."""
    messages: list[Any]
    metas: list[Meta] | None
    keys: list[Any] | None
    """What the order of handlers that run side by side depends on, if it is to be kept."""
    contexts: Sequence[Context | None] | None
    """The traces that the messages belong to, if any does."""

    @property
    def size(self) -> int:
        """The bytes of its messages, as far as their batch tells."""
        return self.batch.size * len(self.messages) // self.batch.count

    def part(self, start: int, stop: int) -> _Piece:
        if start == 0 and stop >= len(self.messages):
            return self
        return _Piece(
            self.batch,
            self.places[start:stop],
            self.messages[start:stop],
            None if self.metas is None else self.metas[start:stop],
            None if self.keys is None else self.keys[start:stop],
            None if self.contexts is None else self.contexts[start:stop],
        )


class _Unit:
    """One call of the handler."""

    __slots__ = ("pieces", "boxes", "attempts", "due")

    def __init__(self, pieces: list[_Piece]) -> None:
        self.pieces = pieces
        self.boxes: dict[str, Outbox] | None = None
        self.attempts = 0
        self.due = 0.0

    @property
    def careful(self) -> bool:
        """Whether one of its messages was in flight when somebody died."""
        return any(is_careful(piece.batch) for piece in self.pieces)


class _Job:
    """The calls whose output is released together, and what they are done for."""

    __slots__ = ("work", "units", "remaining", "began", "count", "size", "trace")

    def __init__(
        self, work: Work, units: list[_Unit], began: float, size: int, trace: Trace | None
    ) -> None:
        self.work = work
        self.trace = trace
        self.units = units
        self.remaining = len(units)
        self.began = began
        self.count = sum(len(piece.messages) for unit in units for piece in unit.pieces)
        self.size = size


class _Held:
    """An input batch whose messages are not all in a group yet."""

    __slots__ = ("work", "remaining")

    def __init__(self, work: Work, remaining: int) -> None:
        self.work = work
        self.remaining = remaining


def _key(given: Any, message: Any, key_of: Callable[[Any], Any]) -> Any:
    """The key of a message that came with `given`; None if it has none."""
    if given is not None:
        return given
    try:
        return key_of(message)
    except Exception:  # the message's own code, which may raise anything
        return None


def _context_of(trace: Trace, unit: _Unit) -> Context | None:
    """The trace that the call `unit` belongs to."""
    if trace.each is None:
        return trace.uniform
    contexts = (context for piece in unit.pieces for context in piece.contexts or ())
    return next(filter(None, contexts), None)


class JobInlet(Inlet):
    """Coroutine handlers, and handlers of lists. `links` are those that lead to the channel."""

    def __init__(self, shop: Shop, channel: In[Any], number: int, links: list[LinkPlan]) -> None:
        super().__init__(shop, channel, number)
        self._windows = {link.name: link.window for link in links}
        # With several handlers at once, messages of one key must still come one after the other.
        ordered = channel.concurrency > 1 and channel.batch is None
        self._key_of = {
            link.index: extractor(link.by) if link.by else itself
            for link in links
            if ordered and link.route == "key"
        }
        self._ordered = bool(self._key_of)
        # Lists on a keyed link come one after the other: two of them may hold the same key.
        keyed = any(link.route == "key" for link in links)
        self._limit = 1 if keyed and channel.batch is not None else channel.concurrency
        self._jobs: deque[_Job] = deque()
        self._waiting: deque[tuple[_Job, _Unit]] = deque()
        self._behind: dict[int, deque[tuple[_Job, _Unit]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._working = 0
        """Coroutine handlers that run; a task that waits for its next try has none."""
        self._looked = 0.0
        self._group: deque[_Piece] = deque()
        self._grouped = 0  # messages in it
        self._group_since = 0.0
        self._held: dict[InBatch, _Held] = {}
        self._stopping = False
        self._alone = False
        """Whether a careful handler runs: no other may run beside it."""

    # -- what the runner calls -----------------------------------------------------------------

    def step(self) -> bool:
        if self._start():
            return True
        if self._waiting or len(self._running) >= self._limit:
            return False
        taken = self.shop.engine.take(self.channel.name)
        if taken is not None:
            self._accept(*taken)
        elif self._is_due():
            self._hand_over()
        else:
            return False
        self._start()
        return True

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._running or self._group or self._jobs)

    @property
    def due_at(self) -> float | None:
        if self._waiting and not self._running:
            unit = self._waiting[0][1]
            return None if unit.careful and self.shop.careful is not None else unit.due
        if not self._group or self.channel.within is None:
            return None
        if self._waiting or len(self._running) >= self._limit:
            return None  # the handler that runs asks for a turn when it returns
        engine = self.shop.engine
        if engine.inboxes[self.channel.name].ended or engine.paused:
            return self._group_since  # nobody follows that would be worth waiting for
        return self._group_since + self.channel.within

    async def stop(self) -> None:
        self._stopping = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def accrue(self, now: float) -> None:
        # Fully busy is who has all the handlers at work that it may have.
        self.shop.busy += (now - self._looked) * self.shop.at_work(self._working) / self._limit
        self._looked = now

    def knob(self) -> str:
        name = self.channel.name
        if len(self._running) >= self.channel.concurrency:
            bound = f"concurrency={self.channel.concurrency} of In {name}"
        else:
            link = min(self._windows, key=lambda link: self._windows[link])
            bound = f"window: {self._windows[link]} of the link {link}"
        return f"if its handlers wait for later messages, raise {bound}"

    def stacks(self) -> list[str]:
        return [task_stack(task) for task in self._running]

    # -- from batches to jobs ------------------------------------------------------------------

    def _accept(self, batch: InBatch, work: Work) -> None:
        began = self.shop.clock()
        piece = self._piece(batch)
        count = len(piece.messages)
        careful = is_careful(batch)
        if self.channel.within is None or careful:
            while self._grouped:
                self._hand_over()  # what came before goes first
            # A message that may be the one that kills is handed over alone, and at once.
            size = 1 if careful else self.channel.batch or 1
            units = [_Unit([piece.part(at, at + size)]) for at in range(0, count, size)]
            self._add(_Job(work, units, began, batch.size, self._trace([piece])))
            return
        if not count:
            work.finish()
            return
        if not self._group:
            self._group_since = began
        self._held[batch] = _Held(work, count)
        self._group.append(piece)
        self._grouped += count
        while self._grouped >= (self.channel.batch or 1):
            self._hand_over()

    def _piece(self, batch: InBatch) -> _Piece:
        """All messages of a batch that are to be handled."""
        shop = self.shop
        link = batch.terms.index
        messages, found = messages_of(batch, shop.codecs[link], shop.undertaker)
        places: Sequence[int] = range(len(messages)) if found is None else found
        if shop.poisons:
            bad = shop.isolate(batch, places)
            kept = [number for number, place in enumerate(places) if place not in bad]
            messages = [messages[number] for number in kept]
            places = [places[number] for number in kept]
        if shop.tap is not None:
            shop.tap(self.channel.name, batch, messages, places)
        contexts = None
        if tracing.MARK in batch.extras:
            contexts = tracing.contexts_of(batch, places)
        metas = list(metas_of(batch, places)) if self.how.wants_meta else None
        keys = None
        key_of = self._key_of.get(link)
        if key_of is not None:
            given, _ = extras_of(batch)
            keys = [
                _key(given[place] if given else None, message, key_of)
                for place, message in zip(places, messages, strict=True)
            ]
        return _Piece(batch, places, messages, metas, keys, contexts)

    def _trace(self, pieces: list[_Piece]) -> Trace | None:
        """The trace of the messages of a job."""
        contexts: list[Context | None] | None = None
        if any(piece.contexts is not None for piece in pieces):
            contexts = []
            for piece in pieces:
                contexts += piece.contexts or [None] * len(piece.messages)
        count = sum(len(piece.messages) for piece in pieces)
        tracer, name = self.shop.tracer, self.channel.name
        return tracing.begin(tracer, name, count, contexts, self.channel.batch is not None)

    def _is_due(self) -> bool:
        due = self.due_at
        return due is not None and self.shop.clock() >= due

    def _hand_over(self) -> None:
        """Make a group of what waits. Its messages' batches are acknowledged only after it."""
        size = min(self._grouped, self.channel.batch or 1)
        self._grouped -= size
        pieces: list[_Piece] = []
        while size:
            piece = self._group.popleft()
            count = len(piece.messages)
            if count > size:
                self._group.appendleft(piece.part(size, count))
                piece, count = piece.part(0, size), size
            pieces.append(piece)
            size -= count
        self._group_since = self.shop.clock()
        # A batch has one piece in a group at most: what was cut off it comes first in the next.
        held = [self._held[piece.batch] for piece in pieces]
        root = self.shop.engine.begin(parents=tuple(one.work for one in held))
        for piece, one in zip(pieces, held, strict=True):
            one.remaining -= len(piece.messages)
            if one.remaining == 0:
                del self._held[piece.batch]
                one.work.finish()
        size = sum(piece.size for piece in pieces)
        self._add(_Job(root, [_Unit(pieces)], self.shop.clock(), size, self._trace(pieces)))

    def _add(self, job: _Job) -> None:
        if self._ordered:
            self._jobs.append(job)
        if not job.units:
            self._complete(job)
        self._waiting.extend((job, unit) for unit in job.units)

    # -- calling handlers ----------------------------------------------------------------------

    def _start(self) -> bool:
        """Start the handlers that may run now. True if one has."""
        started = False
        while self._waiting and len(self._running) < self._limit:
            unit = self._waiting[0][1]
            if unit.due > self.shop.clock() or (unit.careful and self._running) or self._alone:
                break
            if unit.careful and self.shop.careful is not None:
                break
            job, unit = self._waiting.popleft()
            started = True
            if not self.how.coroutine:
                self._call(job, unit)
                continue
            slot = self._slot(unit)
            if slot is not None:
                if slot in self._behind:
                    self._behind[slot].append((job, unit))
                    continue
                self._behind[slot] = deque()
            self._spawn(job, unit, slot)
        return started

    def _slot(self, unit: _Unit) -> int | None:
        keys = unit.pieces[0].keys
        key = None if keys is None else keys[0]
        try:
            return None if key is None else slot_of(key)
        except TypeError:  # no key, so no order was asked for
            return None

    def _spawn(self, job: _Job, unit: _Unit, slot: int | None) -> None:
        self._alone = unit.careful
        coroutine = self._call_coroutine(job, unit, slot)
        task = asyncio.get_running_loop().create_task(coroutine, name=self.how.method)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._alone = self._alone and bool(self._running)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.shop.fail(error)
        self.shop.wake()

    def _arguments(self, unit: _Unit) -> tuple[Any, ...]:
        first = unit.pieces[0]
        if self.channel.batch is None:
            return first.messages[0], *(first.metas or ())
        # Lists of their own: a handler that fails may have changed what it was given.
        messages = [message for piece in unit.pieces for message in piece.messages]
        if first.metas is None:
            return (messages,)
        return messages, [meta for piece in unit.pieces for meta in piece.metas or ()]

    def _call(self, job: _Job, unit: _Unit) -> None:
        shop = self.shop
        began = shop.clock()
        boxes = shop.ports.fresh()
        shop.ports.open(boxes)
        token = job.trace.enter() if job.trace is not None else None
        self._enter(unit)
        shop.gauges[SINCE_NS] = int(began * 1e9)
        try:
            self.function(*self._arguments(unit))
        except FAILED as error:
            if job.trace is not None:
                job.trace.failed(error)
            unit.attempts += 1
            if unit.attempts <= shop.undertaker.policy.retry:
                unit.due = shop.clock() + backoff(unit.attempts)
                self._waiting.appendleft((job, unit))
                return
            self._bury(unit, error)
        else:
            unit.boxes = boxes
        finally:
            if job.trace is not None:
                job.trace.exit(token)
            self._exit(unit)
            shop.ports.close()
            shop.gauges[SINCE_NS] = 0
            seconds = shop.clock() - began
            shop.busy += seconds
            self._clocked(unit, seconds)
        self._done(job)

    def _enter(self, unit: _Unit) -> None:
        gauges = self.shop.gauges
        gauges[HANDLER] = self.number
        if unit.careful:
            first = unit.pieces[0]
            self.shop.careful = self
            note_care(gauges, first.batch.terms.index, first.batch.id)
            gauges[CARE[3]] = first.places[0]

    def _exit(self, unit: _Unit) -> None:
        self.shop.gauges[HANDLER] = 0
        if unit.careful:
            self.shop.careful = None
            done_care(self.shop.gauges)
            self.shop.wake()  # for who waits for that

    async def _call_coroutine(self, job: _Job, unit: _Unit, slot: int | None) -> None:
        shop = self.shop
        while True:
            boxes = shop.ports.fresh()
            current_outboxes.set(boxes)
            if job.trace is not None:
                tracing.current.set(_context_of(job.trace, unit))
            token = job.trace.enter() if job.trace is not None else None
            self._enter(unit)
            began = shop.clock()
            self.accrue(began)
            self._working += 1
            try:
                await self.function(*self._arguments(unit))
            except FAILED as error:
                if self._stopping:
                    raise
                if job.trace is not None:
                    job.trace.failed(error)
                unit.attempts += 1
                if unit.attempts > shop.undertaker.policy.retry:
                    self._bury(unit, error)
                    break
            else:
                unit.boxes = dict(boxes)
                break
            finally:
                if job.trace is not None:
                    job.trace.exit(token)
                now = shop.clock()
                self.accrue(now)
                self._working -= 1
                self._clocked(unit, now - began)
                self._exit(unit)
                # A task that the handler left behind finds no outbox, and its sends raise.
                boxes.clear()
            await asyncio.sleep(backoff(unit.attempts))
        self._done(job)
        if slot is not None:
            behind = self._behind.pop(slot)
            # In front of the others, in their order: whether they may run now is `_start`'s word.
            self._waiting.extendleft(reversed(behind))

    def _clocked(self, unit: _Unit, seconds: float) -> None:
        count = sum(len(piece.messages) for piece in unit.pieces)
        record(self.shop.gauges, TIMES, seconds / count, count)

    def _bury(self, unit: _Unit, error: BaseException) -> None:
        undertaker, codecs = self.shop.undertaker, self.shop.codecs
        for piece in unit.pieces:
            codec = codecs[piece.batch.terms.index]
            undertaker.bury(piece.batch, piece.places, codec, error, unit.attempts)

    def _done(self, job: _Job) -> None:
        job.remaining -= 1
        if job.remaining == 0:
            self._complete(job)

    def _complete(self, job: _Job) -> None:
        if not self._ordered:
            self._release(job)
            return
        # The order of a key holds over batches too: what a later one sent waits for the earlier.
        while self._jobs and self._jobs[0].remaining == 0:
            self._release(self._jobs.popleft())

    def _release(self, job: _Job) -> None:
        shop = self.shop
        boxes = shop.ports.fresh()
        if job.trace is not None:
            self._carry_on(job, job.trace)
        for unit in job.units:
            for name, box in (unit.boxes or {}).items():
                boxes[name].extend(box)
        shop.release(job.work, boxes, job.count)
        shop.handled += job.count
        if job.count:
            # Handlers that wait at the same time share the time that passed.
            together = min(self._limit, len(job.units)) or 1
            seconds = (shop.clock() - job.began) / together
            self.pace.record(job.count, job.size, seconds)

    def _carry_on(self, job: _Job, trace: Trace) -> None:
        """Give the messages' traces to what was sent for them; the job is done."""
        at = 0
        for unit in job.units:
            count = sum(len(piece.messages) for piece in unit.pieces)
            sent = unit.boxes or {}
            tracing.stamp(sent.values(), [0] * len(sent), trace.of_list(range(at, at + count)))
            at += count
        trace.end()
