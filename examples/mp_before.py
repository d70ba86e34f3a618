"""A producer and a worker with a queue between them: how many messages a second?

``python examples/mp_before.py [COUNT]``. The one after this, `mp_after.py`, differs in one line.
"""

from __future__ import annotations

import sys
import time
from multiprocessing import Process, Queue


def work(queue: Queue[bytes | None]) -> None:
    queue.get()
    start, count = time.monotonic(), 0
    while queue.get() is not None:
        count += 1
    seconds = time.monotonic() - start
    print(f"{count:,} messages in {seconds:.2f} s: {count / seconds:,.0f} messages per second")


def main(count: int) -> None:
    queue: Queue[bytes | None] = Queue()
    worker = Process(target=work, args=(queue,))
    worker.start()
    for _ in range(count + 1):
        queue.put(b"message")
    queue.put(None)
    worker.join()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300_000)
