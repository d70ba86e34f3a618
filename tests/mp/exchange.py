"""A program: many producers, many consumers, one queue; then a pipe and a queue that are passed on.

``python exchange.py METHOD`` prints ``ok`` if every item came out once, and those of each producer
in order wherever they came out.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter
from multiprocessing.context import BaseContext
from typing import Any

from flowkit import mp

PRODUCERS, CONSUMERS, ITEMS = 3, 3, 400


def produce(queue: Any, number: int) -> None:
    for item in range(ITEMS):
        queue.put((number, item))


def consume(queue: Any, found: Any) -> None:
    seen = list(iter(queue.get, None))
    found.put(seen)


def echo(end: Any) -> None:
    """Sends back what comes, and in the end an end of its own, through which it says goodbye."""
    for message in iter(end.recv, None):
        end.send(message)
    reader, writer = mp.Pipe(duplex=False)
    end.send(reader)
    writer.send("goodbye")
    writer.close()
    end.recv()  # the reader has arrived


def nest(queue: Any, method: str) -> None:
    """A child that passes its queue on to a child of its own."""
    child = multiprocessing.get_context(method).Process(target=produce, args=(queue, 7))
    child.start()
    child.join()


def main(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    check_queue(context)
    ours, theirs = mp.Pipe()
    child = context.Process(target=echo, args=(theirs,))
    child.start()
    theirs.close()
    messages = [b"x" * size for size in (0, 1, 70_000, 3_000_000)] + [{"a": [1, None]}] * 3000
    for message in messages:
        ours.send(message)
        assert ours.recv() == message
    ours.send(None)
    reader = ours.recv()
    ours.send("here")
    assert reader.recv() == "goodbye"
    child.join()
    for end in (ours, reader):
        try:
            end.recv()
        except EOFError:
            end.close()
        else:
            raise AssertionError("not at its end")
    queue = mp.Queue(ctx=context)
    child = context.Process(target=nest, args=(queue, method))
    child.start()
    child.join()
    assert [queue.get() for _ in range(ITEMS)] == [(7, item) for item in range(ITEMS)]
    print("ok")


def check_queue(context: BaseContext) -> None:
    queue, found = mp.Queue(ctx=context), mp.SimpleQueue(ctx=context)
    start: Any = context
    producers = [start.Process(target=produce, args=(queue, n)) for n in range(PRODUCERS)]
    consumers = [start.Process(target=consume, args=(queue, found)) for _ in range(CONSUMERS)]
    for process in producers + consumers:
        process.start()
    for process in producers:
        process.join()
    for _ in consumers:
        queue.put(None)
    seen = [found.get() for _ in consumers]
    for process in consumers:
        process.join()
    counted = Counter(item for items in seen for item in items)
    assert len(counted) == PRODUCERS * ITEMS and set(counted.values()) == {1}
    for items in seen:
        for number in range(PRODUCERS):
            ours = [item for producer, item in items if producer == number]
            assert ours == sorted(ours)
    assert queue.empty() and queue.qsize() == 0


if __name__ == "__main__":
    main(sys.argv[1])
