"""The hop of `hops`, through libraries that are not flowkit's business otherwise.

They are optional: each function imports its library, and is called only if that is installed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from importlib import import_module
from itertools import islice
from typing import Any

from flowkit.bench.crew import context
from flowkit.bench.payload import messages
from flowkit.bench.tally import Tally, figures
from flowkit.clock import monotonic


class Counter:
    """Counts what arrives, in any of these libraries."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0.0

    def take(self, message: object) -> None:
        if not self.count:
            self.first = monotonic()
        self.count += 1

    def tally(self) -> Tally:
        return Tally(self.count, self.first, monotonic())


def streamz(count: int) -> dict[str, float]:
    """`Stream.emit` and `sink`."""
    counter = Counter()
    source = import_module("streamz").Stream()
    source.sink(counter.take)
    emit = source.emit
    for message in islice(messages("bytes"), count):
        emit(message)
    return figures([counter.tally()], count)


def bytewax(count: int) -> dict[str, float]:
    """A dataflow of an input, a map and an output, on one worker."""
    op, testing = import_module("bytewax.operators"), import_module("bytewax.testing")
    counter = Counter()

    def take(message: bytes) -> bytes:
        counter.take(message)
        return message

    flow = import_module("bytewax.dataflow").Dataflow("hop")
    source = testing.TestingSource(islice(messages("bytes"), count), batch_size=1000)
    op.output("out", op.map("take", op.input("in", flow, source), take), testing.TestingSink([]))
    testing.run_main(flow)
    return figures([counter.tally()], count)


def ezmsg(count: int) -> dict[str, float]:
    """A publisher and a subscriber, each in a process of its own."""
    ez: Any = import_module("ezmsg.core")
    found: Any = context().Queue()

    class Produce(ez.Unit):  # type: ignore[misc]
        OUTPUT = ez.OutputStream(bytes)

        @ez.publisher(OUTPUT)  # type: ignore[untyped-decorator]
        async def produce(self) -> AsyncGenerator[Any, None]:
            for message in islice(messages("bytes"), count):
                yield self.OUTPUT, message

    class Consume(ez.Unit):  # type: ignore[misc]
        INPUT = ez.InputStream(bytes)

        async def initialize(self) -> None:
            self.counter = Counter()

        @ez.subscriber(INPUT)  # type: ignore[untyped-decorator]
        async def consume(self, message: bytes) -> None:
            self.counter.take(message)
            if self.counter.count == count:
                found.put(self.counter.tally())
                raise ez.NormalTermination

    produce, consume = Produce(), Consume()
    ez.run(
        PRODUCE=produce,
        CONSUME=consume,
        connections=((produce.OUTPUT, consume.INPUT),),
        process_components=(produce, consume),
    )
    return figures([found.get(timeout=5)], count)


def ray(count: int) -> dict[str, float]:
    """Calls of an actor's method, and one more that asks it what it has seen."""
    library = import_module("ray")
    library.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        counter = library.remote(Counter).remote()
        for message in islice(messages("bytes"), count):
            counter.take.remote(message)
        tally = library.get(counter.tally.remote())
    finally:
        library.shutdown()
    return figures([tally], count)
