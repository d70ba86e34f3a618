"""One input channel of a running replica: takes batches and calls the handler over them.

`PlainInlet` is the hot path: a plain handler, one message at a time. `JobInlet`, for coroutines and
for lists of messages, is in `flowkit.runtime.jobs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from operator import length_hint
from typing import Any

from flowkit.channels import In, Outbox
from flowkit.clock import Clock
from flowkit.codecs import Codec
from flowkit.message import Meta
from flowkit.node import Node
from flowkit.protocol.engine import Engine
from flowkit.protocol.lineage import Work
from flowkit.protocol.receiver import InBatch
from flowkit.runtime.handling import Ports, Undertaker, messages_of, metas_of


@dataclass(slots=True)
class Shop:
    """What all the inlets of a replica work with."""

    node: Node
    engine: Engine
    ports: Ports
    undertaker: Undertaker
    codecs: dict[int, Codec[Any]]
    """By input link."""
    release: Callable[[Work, dict[str, Outbox]], None]
    """Offers the contents of outboxes and finishes the work."""
    clock: Clock
    wake: Callable[[], None]
    """There may be something to do: take a turn."""
    fail: Callable[[BaseException], None]
    """The replica cannot go on."""
    busy: float = 0.0
    """Seconds spent in handlers."""
    handled: int = 0


class Inlet(ABC):
    """One input channel."""

    def __init__(self, shop: Shop, channel: In[Any]) -> None:
        self.shop = shop
        self.channel = channel
        self.how = shop.node.__flowkit__.handlers[channel.name]
        self.function: Callable[..., Any] = getattr(shop.node, self.how.method)
        self.pace = shop.engine.inboxes[channel.name].pace

    @abstractmethod
    def step(self) -> bool:
        """Do a piece of work, a batch at most. False if there was nothing to do."""

    @property
    def due_at(self) -> float | None:
        """When `step` must be called although nothing came in; None if never."""
        return None

    async def stop(self) -> None:
        """Cancel what runs."""
        return None


class PlainInlet(Inlet):
    """Plain handlers, one message after the other."""

    def __init__(self, shop: Shop, channel: In[Any]) -> None:
        super().__init__(shop, channel)
        self._boxes = shop.ports.fresh()

    def step(self) -> bool:
        shop = self.shop
        taken = shop.engine.take(self.channel.name)
        if taken is None:
            return False
        batch, work = taken
        began = shop.clock()
        codec = shop.codecs[batch.terms.index]
        messages, places = messages_of(batch, codec, shop.undertaker)
        shop.ports.open(self._boxes)
        try:
            if self.how.wants_meta:
                metas = list(metas_of(batch, places if places is not None else range(batch.count)))
                self._call_with_meta(messages, metas, batch, places)
            else:
                start = 0
                while start < len(messages):
                    start = self._call(messages, start, batch, places)
        finally:
            shop.ports.close()
        shop.release(work, self._boxes)
        seconds = shop.clock() - began
        shop.busy += seconds
        shop.handled += batch.count
        self.pace.record(batch.count, batch.size, seconds)
        return True

    def _call(
        self, messages: list[Any], start: int, batch: InBatch, places: list[int] | None
    ) -> int:
        """Call the handler from `start` on; returns where to go on, behind one that failed."""
        function = self.function
        boxes = list(self._boxes.values())
        rest = iter(messages if start == 0 else messages[start:])
        marks: list[int] = []
        mark = 0
        try:
            # A mark before each message, so that what a failing handler sent can be cut off. The
            # usual case of one output costs 25 ns a message, that of several five times as much.
            if not boxes:
                for message in rest:
                    function(message)
            elif len(boxes) == 1:
                sent = boxes[0].messages
                for message in rest:
                    mark = len(sent)
                    function(message)
            else:
                sents = [box.messages for box in boxes]
                for message in rest:
                    marks = [len(sent) for sent in sents]
                    function(message)
        except Exception as error:
            # The iterator knows how far it was, so that nothing is counted while all goes well.
            index = len(messages) - length_hint(rest) - 1
            self._retry((messages[index],), error, marks or [mark], batch, index, places)
            return index + 1
        return len(messages)

    def _call_with_meta(
        self,
        messages: list[Any],
        metas: list[Meta],
        batch: InBatch,
        places: list[int] | None,
    ) -> None:
        boxes = list(self._boxes.values())
        for index, message in enumerate(messages):
            marks = [len(box.messages) for box in boxes]
            try:
                self.function(message, metas[index])
            except Exception as error:
                self._retry((message, metas[index]), error, marks, batch, index, places)

    def _retry(
        self,
        arguments: tuple[Any, ...],
        error: Exception,
        marks: list[int],
        batch: InBatch,
        index: int,
        places: list[int] | None,
    ) -> None:
        """The handler raised: cut off what it sent, try again as often as the policy says."""
        undertaker = self.shop.undertaker
        attempts = 1
        while True:
            for box, mark in zip(self._boxes.values(), marks, strict=False):
                box.cut(mark)
            if attempts > undertaker.policy.retry:
                place = index if places is None else places[index]
                codec = self.shop.codecs[batch.terms.index]
                undertaker.bury(batch, [place], codec, error, attempts)
                return
            attempts += 1
            try:
                self.function(*arguments)
                return
            except Exception as again:
                error = again
