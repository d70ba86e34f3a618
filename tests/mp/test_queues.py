"""Queues: what they promise, also when somebody dies, stands still or has gone."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue as standard
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowkit import mp
from flowkit.mp import lifeline

FORK: Any = multiprocessing.get_context("fork")
Make = Callable[..., Any]
Start = Callable[..., Any]

EXCHANGE = Path(__file__).with_name("exchange.py")


@pytest.mark.parametrize(
    "method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_every_item_comes_out_once_and_in_order(method: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXCHANGE), method],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


# ---------------------------------------------------------------------------- waiting


def test_a_queue_has_as_much_room_as_it_was_made_with(make: Make, start: Start) -> None:
    queue = make(mp.Queue, 3)
    for number in range(3):
        queue.put(number)
    assert (queue.qsize(), queue.full()) == (3, True)
    for arguments in ((False,), (True, 0.01), (False, 5)):
        with pytest.raises(standard.Full):
            queue.put(3, *arguments)
    start(lambda: queue.get()).join()
    assert (queue.qsize(), queue.full()) == (2, False)
    queue.put_nowait(3)
    assert [queue.get() for _ in range(3)] == [1, 2, 3]


def test_nothing_comes_out_of_an_empty_queue(make: Make) -> None:
    queue = make(mp.Queue)
    began = time.monotonic()
    for arguments in ((False,), (False, 5), (True, 0.05), (True, -1)):
        with pytest.raises(standard.Empty):
            queue.get(*arguments)
    assert 0.05 <= time.monotonic() - began < 1
    assert queue.empty() and queue.qsize() == 0


def test_whoever_gave_up_waiting_gets_nothing_later(make: Make, start: Start) -> None:
    queue = make(mp.Queue)
    with pytest.raises(standard.Empty):
        queue.get(timeout=0.01)
    start(queue.put, "x").join()
    got, said = FORK.Pipe(duplex=False)
    start(lambda: said.send(queue.get(timeout=5)))
    assert got.recv() == "x"
    for end in (got, said):
        end.close()


def test_threads_of_one_process_wait_for_themselves(make: Make, start: Start) -> None:
    queue = make(mp.Queue)
    found: list[int] = []

    def get(timeout: float) -> None:
        try:
            found.append(queue.get(timeout=timeout))
        except standard.Empty:
            found.append(-1)

    threads = [threading.Thread(target=get, args=(wait,)) for wait in (0.02, 10, 10)]
    for thread in threads:
        thread.start()
    threads[0].join()
    start(lambda: [queue.put(number) for number in (1, 2)]).join()
    for thread in threads:
        thread.join()
    assert sorted(found) == [-1, 1, 2]


# ---------------------------------------------------------------------------- who gets what


def test_an_item_stays_for_others_until_it_is_asked_for(make: Make, start: Start) -> None:
    queue, first = make(mp.Queue), make(mp.SimpleQueue)
    for number in range(1000):
        queue.put(number)

    def take_one_and_stay() -> None:
        first.put(queue.get())
        signal.pause()

    start(take_one_and_stay)
    assert first.get() == 0
    assert [queue.get() for _ in range(999)] == list(range(1, 1000))


def test_what_a_killed_consumer_had_not_got_is_got_by_others(
    make: Make, start: Start, tmp_path: Path
) -> None:
    """Consumers note what they got in files, at once: each death may cost the one item that was
    got and not noted. They are killed at any moment, also while they hold the lock."""
    queue = make(mp.Queue)
    count, deaths = 40_000, 8

    def consume(name: str) -> None:
        with open(tmp_path / name, "ab", buffering=0) as notes:
            while True:
                notes.write(b"%d\n" % queue.get())

    producer = start(lambda: [queue.put(number) for number in range(count)])
    for number in range(deaths):
        consumer = start(consume, f"{number}")
        path = tmp_path / f"{number}"
        deadline = time.monotonic() + 20
        while not (path.exists() and path.stat().st_size > 2000):
            assert time.monotonic() < deadline
        consumer.kill()
        consumer.join()
    producer.join()
    rest = []
    with pytest.raises(standard.Empty):
        while True:
            rest.append(queue.get(timeout=2))
    noted = [
        [int(line) for line in (tmp_path / f"{number}").read_bytes().splitlines()]
        for number in range(deaths)
    ]
    everything = [number for each in (*noted, rest) for number in each]
    assert everything == sorted(set(everything)), "twice, or out of order"
    assert count - deaths <= len(everything) <= count
    assert rest[-1] == count - 1


def test_a_consumer_that_is_killed_while_it_waits_leaves_nothing_locked(
    make: Make, start: Start, eventually: Any
) -> None:
    queue = make(mp.Queue)
    waiting = [start(queue.get) for _ in range(2)]
    queue.put("first")
    eventually(lambda: any(not child.is_alive() for child in waiting))
    for child in waiting:
        child.kill()
        child.join()
    queue.put("second")
    assert queue.get(timeout=5) == "second"


def test_queues_go_on_when_the_process_that_made_them_stands_still(start: Start) -> None:
    answers, said = FORK.Pipe(duplex=False)

    def create() -> None:
        queue = mp.Queue(ctx=FORK)

        def exchange() -> None:
            FORK.Process(target=lambda: [queue.put(n) for n in range(5000)]).start()
            said.send(sum(queue.get() for _ in range(5000)))

        child = FORK.Process(target=exchange)
        child.start()
        said.send(child.pid)
        os.kill(os.getpid(), signal.SIGSTOP)
        child.join()

    creator = start(create)
    answers.recv()
    assert answers.poll(20) and answers.recv() == sum(range(5000))
    os.kill(creator.pid, signal.SIGCONT)
    creator.join()
    for end in (answers, said):
        end.close()


# ---------------------------------------------------------------------------- producers


def test_a_producer_may_leave_before_anybody_gets(make: Make, start: Start) -> None:
    queue = make(mp.Queue)
    producer = start(lambda: [queue.put(bytes(100_000)) for _ in range(50)])
    producer.join()
    assert queue.qsize() == 50
    assert sum(len(queue.get()) for _ in range(50)) == 5_000_000


def test_a_queue_that_is_collected_sends_what_it_has(make: Make, start: Start) -> None:
    queue = make(mp.Queue)

    def put_and_forget() -> None:
        child_side = [queue]
        for number in range(100):
            child_side[0].put(number)

    start(put_and_forget).join()
    own = [mp.Queue(ctx=FORK)]
    answers = make(mp.SimpleQueue)
    start(lambda: answers.put([own[0].get() for _ in range(100)]))
    for number in range(100):
        own[0].put(number)
    own.clear()
    gc.collect()
    assert answers.get() == list(range(100)) == [queue.get() for _ in range(100)]


def test_an_item_that_cannot_be_pickled_is_reported_and_takes_no_place(make: Make) -> None:
    seen = []

    class Noting(mp.Queue):
        @staticmethod
        def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
            seen.append((type(e), obj))

    queue = make(Noting, 3)
    lock = threading.Lock()
    for item in ("before", lock, "after"):
        queue.put(item)
    assert [queue.get(timeout=5), queue.get(timeout=5)] == ["before", "after"]
    assert seen == [(TypeError, lock)]
    assert queue.qsize() == 0


def test_items_come_out_as_they_were_put(make: Make) -> None:
    queue = make(mp.Queue)
    shared = [1]
    items = [
        *(b"", "", 0, -1, 2**63, 2**64, 10**40, 1.5, True, None, "\ud800", "größe"),
        *((1, (2,)), {"a": {3}}, shared, shared, bytearray(b"x"), float("inf"), test_log_name),
        *(bytes(3_000_000), "x" * 200_000),
    ]
    for alone in (True, False):
        flat = [{"a": 1, "b": b"x", "c": None}, [1, "x"], [], {}, {"a": 2**64}, {"a": "\ud800"}, 1]
        for item in flat:
            queue.put(item)
            assert not alone or queue.get() == item
        assert alone or [queue.get() for _ in flat] == flat
    for item in items:
        queue.put(item)
    found = [queue.get() for _ in items]
    assert found == items
    assert [type(item) for item in found] == [type(item) for item in items]
    ours = [item for item in found if item == shared]
    assert ours[0] is not ours[1], "what was put twice is two things"


def test_log_name() -> None:
    """A function of a module, which is pickled by its name."""
    assert test_log_name.__module__


@pytest.mark.parametrize(
    ("codec", "good", "bad"),
    [("raw", b"x", "text"), ("msgpack", {"a": [1, b"x", None]}, object())],
)
def test_codecs_for_other_languages(make: Make, codec: str, good: Any, bad: Any) -> None:
    errors = []

    class Noting(mp.Queue):
        @staticmethod
        def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
            errors.append((type(e), obj))

    queue = make(Noting, codec=codec)
    for item in (good, bad, good):
        queue.put(item)
    assert [queue.get(timeout=5) for _ in range(2)] == [good, good]
    assert errors == [(TypeError, bad)]
    with pytest.raises(ValueError, match="'xml'"):
        mp.Queue(codec="xml")


# ---------------------------------------------------------------------------- the end


@pytest.mark.parametrize("kind", [mp.Queue, mp.JoinableQueue])
def test_a_closed_queue_refuses(make: Make, kind: Any) -> None:
    queue = make(kind)
    queue.put(1)
    with pytest.raises(AssertionError, match="not closed"):
        queue.join_thread()
    queue.close()
    queue.close()
    queue.join_thread()
    for call in (lambda: queue.put(1), queue.get, queue.get_nowait):
        with pytest.raises(ValueError, match="is closed"):
            call()


def test_join_waits_until_everything_is_done(make: Make, start: Start) -> None:
    queue = make(mp.JoinableQueue)
    done = make(mp.SimpleQueue)

    def work() -> None:
        while True:
            item = queue.get()
            done.put(item)
            queue.task_done()

    for _ in range(2):
        start(work)
    for number in range(20):
        queue.put(number)
    queue.join()
    assert sorted(done.get() for _ in range(20)) == list(range(20))
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


def test_a_process_that_does_not_wait_may_lose_and_ends_at_once(make: Make, start: Start) -> None:
    queue = make(mp.Queue)

    def put() -> None:
        queue.cancel_join_thread()
        for number in range(100):
            queue.put(number)

    child = start(put)
    child.join()
    assert child.exitcode == 0
    assert queue.qsize() <= 100


def test_the_death_of_the_broker_is_noticed(make: Make) -> None:
    queue = make(mp.Queue)
    queue.put(1)
    assert queue.get() == 1
    assert queue._lifeline.pid
    os.kill(queue._lifeline.pid, signal.SIGKILL)
    with pytest.raises(EOFError, match="has died"):
        queue.get(timeout=10)
    with pytest.raises(BrokenPipeError, match="has died"):
        queue.put(2)
    other = make(mp.Queue)
    other.put(3)
    assert other.get(timeout=5) == 3, "with a broker of its own"
    queue.close()
    queue.join_thread()


def test_a_broker_ends_with_its_last_user_and_clears_up(eventually: Any) -> None:
    for killed in (False, True):
        own = lifeline._start()
        lifeline.hold(own)
        assert Path(own.directory).is_dir()
        if killed:
            os.kill(own.pid, signal.SIGKILL)
        own.release()
        eventually(lambda own=own: not Path(own.directory).exists())
        eventually(lambda own=own: not psutil.pid_exists(own.pid))
