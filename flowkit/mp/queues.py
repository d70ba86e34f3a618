"""`Queue`, `JoinableQueue`, `SimpleQueue`: what a program sees, and what it counts with.

Places and unfinished tasks are counted by multiprocessing's own semaphores, so `maxsize`, `qsize`,
`full` and `join` are exact and cost no message.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import traceback
import types
import weakref
from multiprocessing import context
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import SEM_VALUE_MAX  # type: ignore[attr-defined]
from queue import Empty, Full
from typing import Any

from flowkit.mp import client, lifeline, side
from flowkit.mp.cells import Cursor
from flowkit.mp.connection import Pipe, unpickled
from flowkit.mp.gateway import Gateway
from flowkit.mp.items import codec as codec_of
from flowkit.mp.reader import NOTHING

_living: weakref.WeakSet[Queue] = weakref.WeakSet()
"""The queues of this process: a forked child has to make them anew."""


class Queue:
    """A queue that any number of processes may put into and get from, as `multiprocessing.Queue`.

    `maxsize` is how many items may be in it, 0 for no limit. `ctx` is the context whose processes
    will use it, by default that of `multiprocessing.get_context()`. `codec` is ``pickle``,
    ``msgpack`` or ``raw``. Hand it to processes as an argument when they are started.

    With an `address` (``tcp://127.0.0.1:5555``; port ``*`` for any that is free) this process also
    serves the queue there, as long as it has it open, to whoever cannot inherit it; `address` is
    then the attribute that says where. One that other hosts reach needs ``insecure=True``. Raises
    ValueError if it is none, TransportError if it cannot be bound. See `flowkit.mp.gateway`.
    """

    __class_getitem__: Any = classmethod(types.GenericAlias)

    _gateway: Gateway | None
    """Only where the queue was made."""

    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: BaseContext | None = None,
        codec: str = "pickle",
        address: str | None = None,
        insecure: bool = False,
    ) -> None:
        codec_of(codec)  # raises ValueError
        ctx = ctx or multiprocessing.get_context()
        self._maxsize = maxsize if maxsize > 0 else SEM_VALUE_MAX
        self._codec = codec
        self._name = secrets.token_hex(8)
        self._lock = ctx.Lock()
        self._room = ctx.BoundedSemaphore(self._maxsize)
        self._lifeline = lifeline.hold()
        Cursor.create(self._lifeline.file_of(self._name))
        self.address: str | None = None
        self._begin()
        if address is not None:
            self._gateway = Gateway(self, codec_of(codec), max(maxsize, 0), address, insecure)
            self.address = self._gateway.endpoint

    def __getstate__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        shared = self._lock, self._room, self._lifeline
        return self._maxsize, self._codec, self._name, self.address, *shared

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._maxsize, self._codec, self._name, self.address, self._lock, self._room, line = state
        self._lifeline = lifeline.hold(line)
        self._begin()

    def _begin(self) -> None:
        """Be new in this process."""
        self._places: Any = self._room._semlock  # type: ignore[attr-defined]
        release, hook = self._places.release, self._on_queue_feeder_error

        def lost(error: Exception, item: Any) -> None:
            release()
            hook(error, item)

        self._closed = False
        self._gateway = None
        self._side = side.Side(
            self._lifeline, self._name, codec_of(self._codec), self._lock, lost, release
        )
        self._client: client.Client | None = None
        # What every put and get needs, without a detour.
        self._acquire = self._places.acquire
        self._append = self._side.outbox.items.append
        self._take = self._side.reader.take
        self._finalizer = weakref.finalize(self, self._side.close)
        self._finalizer.atexit = False
        _living.add(self)

    def _after_fork(self) -> None:
        self._finalizer.detach()
        self._begin()

    # ------------------------------------------------------------ put and get

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put `obj` into the queue; it is encoded later, by another thread.

        Raises Full if there is no room (within `timeout` seconds, if `block`), ValueError if the
        queue is closed, BrokenPipeError if the broker has died.
        """
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if not self._acquire(block, timeout):
            raise Full
        self._append(obj)
        desk = self._client or self._connect()
        if desk.resting:
            desk.wake()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next item out of the queue.

        Raises Empty if there is none (within `timeout` seconds, if `block`), ValueError if the
        queue is closed, EOFError if the broker has died, and what decoding the item raises.
        """
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if (item := self._take()) is NOTHING:
            if (item := self._side.reader.wait(block, timeout)) is NOTHING:
                raise Empty
        return item

    def put_nowait(self, obj: Any) -> None:
        """`put` without waiting for room."""
        self.put(obj, False)

    def get_nowait(self) -> Any:
        """`get` without waiting for an item."""
        return self.get(False)

    def _connect(self) -> client.Client:
        self._client = self._side.connect()
        return self._client

    def call_for_news(self) -> None:
        """For the gateway: wake it when there is an item."""
        assert self._gateway is not None
        self._side.reader.call(self._gateway.wake)

    # ------------------------------------------------------------ figures

    def qsize(self) -> int:
        """How many items are in the queue; also those that are not with the broker yet."""
        return self._maxsize - int(self._places._get_value())

    def empty(self) -> bool:
        """Whether `get_nowait` would find nothing now."""
        return self._side.reader.empty()

    def full(self) -> bool:
        """Whether `put_nowait` would find no room now."""
        return bool(self._places._is_zero())

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """This process puts and gets no more. What it has put is still sent."""
        self._closed = True
        if self._gateway is not None:
            self._gateway.stop()
        self._side.close()

    def join_thread(self) -> None:
        """Wait until what this process has put is with the broker. Call `close` first."""
        assert self._closed, f"Queue {self!r} not closed"
        self._side.flush()

    def cancel_join_thread(self) -> None:
        """Do not wait for that when the process ends: what has not been sent then is lost."""
        self._side.cancel()

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        """An item could not be encoded. A hook, as in `multiprocessing.Queue`."""
        traceback.print_exception(e)


class JoinableQueue(Queue):
    """A queue whose `join` waits until `task_done` was called for all that was ever put."""

    def __init__(
        self, maxsize: int = 0, *, ctx: BaseContext | None = None, **settings: Any
    ) -> None:
        ctx = ctx or multiprocessing.get_context()
        self._unfinished = ctx.Semaphore(0)
        self._all_done = ctx.Condition()
        super().__init__(maxsize, ctx=ctx, **settings)

    def __getstate__(self) -> tuple[Any, ...]:
        return super().__getstate__(), self._unfinished, self._all_done

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        ours, self._unfinished, self._all_done = state
        super().__setstate__(ours)

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if not self._acquire(block, timeout):
            raise Full
        self._unfinished.release()  # before somebody can get it, and be done with it
        self._append(obj)
        desk = self._client or self._connect()
        if desk.resting:
            desk.wake()

    put.__doc__ = Queue.put.__doc__

    def task_done(self) -> None:
        """One item that was got is done with. Raises ValueError if none is left."""
        with self._all_done:
            if not self._unfinished.acquire(False):
                raise ValueError("task_done() called too many times")
            if self._unfinished._semlock._is_zero():  # type: ignore[attr-defined]
                self._all_done.notify_all()

    def join(self) -> None:
        """Wait until every item that was put is done with."""
        with self._all_done:
            while not self._unfinished._semlock._is_zero():  # type: ignore[attr-defined]
                self._all_done.wait()


class SimpleQueue:
    """A `Pipe` with a lock, as `multiprocessing.SimpleQueue`: `put` waits while it is full."""

    __class_getitem__: Any = classmethod(types.GenericAlias)

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        reader, writer = Pipe(duplex=False)
        self.__setstate__((reader, writer, (ctx or multiprocessing.get_context()).Lock()))

    def __getstate__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        return self._reader, self._writer, self._rlock

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._reader, self._writer, self._rlock = state
        # Where it is multiprocessing's own pipe, that has no messages but pickles.
        self._take = getattr(self._reader, "take", self._reader.recv_bytes)

    def put(self, obj: Any) -> None:
        """Put `obj` into the queue. Raises what pickling it raises, and OSError if closed."""
        self._writer.send(obj)

    def get(self) -> Any:
        """Wait for the next item and take it out. Raises OSError if closed."""
        with self._rlock:
            message = self._take()
        return unpickled(message)  # without the lock: that runs any code, and takes its time

    def empty(self) -> bool:
        """Whether there is nothing to get."""
        return not self._reader.poll()

    def close(self) -> None:
        """This process puts and gets no more."""
        self._reader.close()
        self._writer.close()


def _after_fork() -> None:
    for module in (lifeline, client, side):
        module.after_fork()
    for queue in list(_living):
        queue._after_fork()


os.register_at_fork(after_in_child=_after_fork)
