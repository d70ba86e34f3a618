"""Drop-in replacements for `multiprocessing`'s Queue, JoinableQueue, SimpleQueue and Pipe.

The same signatures, exceptions and promises, several times the throughput::

    from flowkit.mp import Queue        # was: from multiprocessing import Queue

Theory of operation of a queue
------------------------------
`multiprocessing.Queue` makes system calls for every item, and holds a lock meanwhile. What makes
this one fast is that items travel in *pages* of many; what makes that difficult is the promise that
an item goes to exactly one consumer, one that has asked for it. A consumer that has fetched a page
must not sit on it, nor take it along when it dies. So to fetch and to take are two things:

* **The broker**, a process that is started with the first queue, keeps the pages of all queues of
  a program, in order (`flowkit.mp.broker`, `flowkit.mp.log`). It gives copies of them to whoever
  asks, and gives nothing away by it. It belongs to nobody: a producer may leave as soon as what it
  has put is there, and the process that made the queue may be busy, or gone. It ends when the last
  process has that could use it.
* **The cursor** is a number in memory that all processes share which have the queue: how many items
  have been taken (`flowkit.mp.cells`). To take an item is to move the cursor by one, with its page
  at hand, under a lock that is held for about a microsecond. There is one cursor, so the queue is
  first in, first out over all consumers, as the original is. A consumer that is killed has taken
  what the cursor says and no more; if it held the lock, those who wait for it find out, and unlock.
* **The client** is the thread with which a process talks to the broker (`flowkit.mp.client`). It
  encodes what was put, sends it, and asks for one page ahead. After a fork the child starts its
  own; the parent's sockets are never touched there.
* **The reader** waits without the lock if the item that is next is not at hand
  (`flowkit.mp.reader`). The broker tells as many of those who wait as there are items; if after 10
  ms nobody has taken one (whoever was told may have died just then), it tells the next.
* **Places and tasks** are counted by multiprocessing's own semaphores, so `maxsize`, `qsize`,
  `full` and `join` are exact, as before.

With an `address` the process that made a queue serves it over ZeroMQ to other hosts and languages
(`flowkit.mp.gateway`; `connect` is the other side in Python). A `Pipe` is not on ZeroMQ but on a
socket of the kernel, for reasons that `flowkit.mp.connection` gives.

This module asks for threads and for multiprocessing where nodes do without: a program that puts and
gets has no event loop to do it on.
"""

from __future__ import annotations

from flowkit.mp.connection import Connection, Pipe
from flowkit.mp.queues import JoinableQueue, Queue, SimpleQueue
from flowkit.mp.remote import RemoteQueue, connect

__all__ = ["Connection", "JoinableQueue", "Pipe", "Queue", "RemoteQueue", "SimpleQueue", "connect"]
