"""One hop, 7-byte messages, one producer and one consumer process, end to end.

`multiprocessing.Queue` against flowkit with one `send` and one handler call for each message, every
message acknowledged. Run alternately; medians and their ratio are printed::

    python tests/bench/hop.py [ROUNDS] [MESSAGES]

Both are measured in the consumer: from its first message to its last.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from flowkit import In, Node, Out
from flowkit.supervisor import Silent, Supervisor

MESSAGE = b"message"


class Produce(Node):
    """Sends `count` messages, one `send` each."""

    messages = Out(bytes)

    def __init__(self, count: int) -> None:
        self.count = count

    async def run(self) -> None:
        send = self.messages.send
        for _ in range(self.count // 1000):
            for _ in range(1000):
                send(MESSAGE)
            await self.messages.room()


class Consume(Node):
    """Counts messages, one call each; prints messages per second at the end."""

    messages = In(bytes)

    def __init__(self) -> None:
        self.count = 0
        self.first = 0.0
        self.last = 0.0

    def on_messages(self, message: bytes) -> None:
        if not self.count:
            self.first = time.perf_counter()
        self.count += 1

    def finish(self) -> None:
        self.last = time.perf_counter()
        print(self.count / (self.last - self.first), flush=True)


TOPOLOGY = """
flowkit: 1
project: hop
nodes:
  produce: {{use: "hop:Produce", with: {{count: {count}}}}}
  consume: {{use: "hop:Consume"}}
links:
  - {{from: produce.messages, to: consume.messages}}
"""


class _Rate(Silent):
    rate = 0.0

    def output(self, replica: str, line: bytes) -> None:
        try:
            self.rate = float(line)
        except ValueError:
            print(line.decode(), file=sys.stderr)


async def flowkit_hop(count: int) -> float:
    """Messages per second through flowkit."""
    os.chdir(Path(__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hop.yaml"
        path.write_text(TOPOLOGY.format(count=count))
        watcher = _Rate()
        async with Supervisor(path, fresh=True, watcher=watcher) as project:
            report = await project.wait()
        assert report.exit == 0, report
        assert report.links[0].entry.done == count
        return watcher.rate


def _put(queue: multiprocessing.Queue[bytes], count: int) -> None:
    for _ in range(count):
        queue.put(MESSAGE)


def queue_hop(count: int) -> float:
    """Messages per second through `multiprocessing.Queue`."""
    queue: multiprocessing.Queue[bytes] = multiprocessing.Queue()
    producer = multiprocessing.Process(target=_put, args=(queue, count))
    producer.start()
    queue.get()
    first = time.perf_counter()
    for _ in range(count - 1):
        queue.get()
    rate = count / (time.perf_counter() - first)
    producer.join()
    queue.close()
    queue.join_thread()
    return rate


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 3_000_000
    ours, theirs = [], []
    for number in range(rounds):
        theirs.append(queue_hop(count // 10))
        ours.append(asyncio.run(flowkit_hop(count)))
        print(
            f"round {number + 1}: queue {theirs[-1]:>12,.0f}/s   flowkit {ours[-1]:>12,.0f}/s"
            f"   {ours[-1] / theirs[-1]:.1f} x"
        )
    print(
        f"median:  queue {statistics.median(theirs):>12,.0f}/s   flowkit"
        f" {statistics.median(ours):>12,.0f}/s"
        f"   {statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.1f} x"
    )


if __name__ == "__main__":
    main()
