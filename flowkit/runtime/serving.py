"""One serving channel of a running replica: takes questions, calls the handler, answers.

A question that fails is answered with why: there is somebody who waits for it and can act on it, so
neither retries nor dead letters come between.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from flowkit.calls import Serve
from flowkit.channels import Outbox, current_outboxes
from flowkit.codecs import Codec
from flowkit.errors import DecodeError, MessageError
from flowkit.histogram import record
from flowkit.protocol.asking import ANSWERED, REFUSED, Answerer
from flowkit.protocol.lineage import Work
from flowkit.protocol.receiver import InBatch
from flowkit.runtime import tracing
from flowkit.runtime.asking import check_size
from flowkit.runtime.handling import FAILED, metas_of
from flowkit.runtime.inlet import Inlet, Shop
from flowkit.runtime.shared import HANDLER, SINCE_NS, TIMES
from flowkit.runtime.stacks import task_stack
from flowkit.runtime.tracing import Trace


class ServeInlet(Inlet):
    """`answers` are the codecs of what the channel's handler returns, by link."""

    def __init__(
        self, shop: Shop, channel: Serve[Any, Any], number: int, answers: dict[int, Codec[Any]]
    ) -> None:
        super().__init__(shop, channel, number)
        self._answers = answers
        self._running: set[asyncio.Task[None]] = set()
        self._looked = 0.0
        self._stopping = False

    def step(self) -> bool:
        if len(self._running) >= self.channel.concurrency:
            return False
        taken = self.shop.engine.take(self.channel.name)
        if taken is None:
            return False
        batch, work = taken
        try:
            arguments = self._arguments(batch)
        except DecodeError as error:
            self._failed(batch, work, error)
            return True
        if self.how.coroutine:
            self.accrue(self.shop.clock())
            task = asyncio.get_running_loop().create_task(
                self._serve(batch, work, arguments, self._trace(batch)), name=self.how.method
            )
            self._running.add(task)
            task.add_done_callback(self._ended)
        else:
            self._call(batch, work, arguments, self._trace(batch))
        return True

    @property
    def idle(self) -> bool:
        return not self._running

    @property
    def due_at(self) -> float | None:
        return None

    async def stop(self) -> None:
        self._stopping = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def accrue(self, now: float) -> None:
        working = self.shop.at_work(len(self._running))
        self.shop.busy += (now - self._looked) * working / self.channel.concurrency
        self._looked = now

    def stacks(self) -> list[str]:
        return [task_stack(task) for task in self._running]

    def _arguments(self, batch: InBatch) -> list[Any]:
        """What the handler is called with. Raises DecodeError."""
        questions = self.shop.codecs[batch.terms.index].decode(batch.payload, batch.count)
        if self.shop.tap is not None:
            self.shop.tap(self.channel.name, batch, questions, None)
        return [*questions, *(metas_of(batch, [0]) if self.how.wants_meta else ())]

    def _trace(self, batch: InBatch) -> Trace | None:
        contexts = tracing.contexts_of(batch, [0]) if tracing.MARK in batch.extras else None
        return tracing.begin(self.shop.tracer, self.channel.name, 1, contexts)

    def _call(self, batch: InBatch, work: Work, arguments: list[Any], trace: Trace | None) -> None:
        shop = self.shop
        began = shop.clock()
        boxes = shop.ports.fresh()
        shop.gauges[HANDLER], shop.gauges[SINCE_NS] = self.number, int(began * 1e9)
        shop.ports.open(boxes)
        token = trace.enter() if trace is not None else None
        error: BaseException | None = None
        try:
            answer = self.function(*arguments)
            if inspect.iscoroutine(answer):
                answer.close()
                raise TypeError(f"{self.how.method} has returned a coroutine: write 'async def'")
        except FAILED as caught:
            error = caught
        finally:
            if trace is not None:
                trace.exit(token)
            shop.ports.close()
            shop.gauges[HANDLER] = shop.gauges[SINCE_NS] = 0
            shop.busy += shop.clock() - began
        if error is not None:
            self._failed(batch, work, error, trace)
        else:
            self._answer(batch, work, answer, boxes, trace)
        self._clocked(batch, shop.clock() - began)

    async def _serve(
        self, batch: InBatch, work: Work, arguments: list[Any], trace: Trace | None
    ) -> None:
        shop = self.shop
        began = shop.clock()
        boxes = shop.ports.fresh()
        current_outboxes.set(boxes)
        token = None
        if trace is not None:
            tracing.current.set(trace.context(0))
            token = trace.enter()
        try:
            answer = await self.function(*arguments)
        except FAILED as error:
            if self._stopping:
                raise
            self._failed(batch, work, error, trace)
        else:
            self._answer(batch, work, answer, dict(boxes), trace)
        finally:
            if trace is not None:
                trace.exit(token)
            # A task that the handler left behind finds no outbox, and its sends raise.
            boxes.clear()
            self._clocked(batch, shop.clock() - began)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.accrue(self.shop.clock())
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.shop.fail(error)
        self.shop.wake()

    def _answer(
        self,
        batch: InBatch,
        work: Work,
        answer: Any,
        boxes: dict[str, Outbox],
        trace: Trace | None,
    ) -> None:
        try:
            payload = self._answers[batch.terms.index].encode([answer])
            check_size(payload)
        except MessageError as error:
            self._failed(batch, work, error, trace)
            return
        if trace is not None:
            tracing.stamp(boxes.values(), [0] * len(boxes), trace.context(0))
            trace.end()
        _end_of(batch).answer(batch, payload, ANSWERED)
        self._release(work, boxes)

    def _failed(
        self, batch: InBatch, work: Work, error: BaseException, trace: Trace | None = None
    ) -> None:
        if trace is not None:
            trace.failed(error)
            trace.end()
        text = self.shop.undertaker.refused(batch, error)
        _end_of(batch).answer(batch, text.encode(), REFUSED)
        self._release(work, {})

    def _release(self, work: Work, boxes: dict[str, Outbox]) -> None:
        self.shop.release(work, boxes, 1)
        self.shop.handled += 1

    def _clocked(self, batch: InBatch, seconds: float) -> None:
        record(self.shop.gauges, TIMES, seconds, 1)
        self.pace.record(1, batch.size, seconds)


def _end_of(batch: InBatch) -> Answerer:
    end = batch.receiver
    assert isinstance(end, Answerer)
    return end
