"""Pipes: what multiprocessing's do, while many messages go out together."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import BufferTooShort, reduction
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

from flowkit import mp
from flowkit.mp import connection

Make = Callable[..., Any]
Start = Callable[..., Any]


def test_messages_come_in_order_whatever_their_size(make: Make, start: Start) -> None:
    reader, writer = make(mp.Pipe, duplex=False)
    sizes = [0, 1, 7, connection.FULL, connection.LARGE - 1, connection.LARGE, 2_000_000, 3]
    messages = [bytes([number]) * size for number, size in enumerate(sizes * 3)]

    def send() -> None:
        for message in messages:
            writer.send_bytes(message)
            writer.send(message)

    start(send)
    for message in messages:
        assert reader.recv_bytes() == message
        assert reader.recv() == message


def test_objects_and_bytes_are_the_same_to_a_pipe(make: Make) -> None:
    ours, theirs = make(mp.Pipe)
    assert isinstance(ours, Connection)
    ours.send({"a": 1})
    theirs.send_bytes(reduction.ForkingPickler.dumps([2]))
    assert reduction.ForkingPickler.loads(theirs.recv_bytes()) == {"a": 1}
    assert ours.recv() == [2]
    ours.send_bytes(b"0123456789", 2, 5)
    space = bytearray(8)
    assert theirs.recv_bytes_into(space, 3) == 5 and bytes(space) == b"\0\0\00023456"
    ours.send_bytes(b"too long")
    with pytest.raises(BufferTooShort):
        theirs.recv_bytes_into(bytearray(3))
    ours.send_bytes(b"too long")
    with pytest.raises(OSError, match="message length"):
        theirs.recv_bytes(3)


def test_objects_arrive_as_they_were_sent(make: Make) -> None:
    ours, theirs = make(mp.Pipe)
    shared = [1, "x"]
    items = [
        *(b"", "", "größe", "\ud800", 0, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 0.1, True, None),
        *((1,), [(1,)], {1: 2}, {"a": {"b": 1}}, {"a": 2**70}, {"a": "\ud800"}, [shared, shared]),
        *({"a": 1, "b": b"x", "c": None, "d": 1.0, "e": False}, shared, [], {}, "x" * 5000),
        *(bytes(5000), bytearray(b"x"), float("inf")),
    ]
    for _ in range(2):
        for item in items:
            ours.send(item)
        for item in items:
            found = theirs.recv()
            assert found == item and type(found) is type(item)
            if item == [shared, shared]:
                assert found[0] is found[1]
    for item in items:
        ours.send(item)
        assert reduction.ForkingPickler.loads(theirs.recv_bytes()) == item
    changing = {"a": 1}
    for number in range(3):
        changing["a"] = number
        ours.send(changing)
    assert [theirs.recv() for _ in range(3)] == [{"a": number} for number in range(3)]


def test_what_is_kept_back_goes_out_by_itself(make: Make) -> None:
    reader, writer = make(mp.Pipe, duplex=False)
    for number in range(100):
        writer.send(number)
    found = []
    while len(found) < 100:  # nobody asks the writer for anything any more
        assert wait([reader], 10) == [reader]
        found.append(reader.recv())
    assert found == list(range(100))
    assert wait([reader], 0) == []


def test_an_end_is_readable_as_long_as_there_is_a_message(make: Make) -> None:
    ours, theirs = make(mp.Pipe)
    assert not ours.poll() and not ours.poll(0.01) and wait([ours, theirs], 0) == []
    for number in range(3):
        theirs.send(number)
    theirs.flush()
    for number in range(3):
        assert ours.poll() and wait([ours, theirs], 0) == [ours]
        assert ours.recv() == number
    assert not ours.poll()
    theirs.close()
    assert ours.poll()
    with pytest.raises(EOFError):
        ours.recv()


def test_nobody_reads_what_is_sent_to_an_end_that_is_closed(make: Make) -> None:
    ours, theirs = make(mp.Pipe)
    theirs.close()
    for message in (b"x", bytes(connection.LARGE)):
        with pytest.raises(BrokenPipeError):
            ours.send_bytes(message)
    hot, other = make(mp.Pipe)
    hot.send(1)
    other.close()
    deadline = time.monotonic() + 10
    with pytest.raises(OSError):  # noqa: PT011  (broken, or reset: the first was not read)
        while time.monotonic() < deadline:
            hot.send(2)


def test_one_thread_receives_while_another_waits_for_room(make: Make) -> None:
    ours, theirs = make(mp.Pipe)
    theirs.send("answer")

    def send() -> None:
        with suppress(OSError):  # the other end is closed: it is over
            while True:
                ours.send_bytes(bytes(connection.FULL))

    threads = [threading.Thread(target=send, daemon=True)]
    threads[0].start()
    deadline = time.monotonic() + 10
    while select.select([], [ours], [], 0)[1]:  # there is room
        assert time.monotonic() < deadline
    found: list[Any] = []
    threads.append(threading.Thread(target=lambda: found.append(ours.recv()), daemon=True))
    threads[1].start()
    threads[1].join(5)
    received = list(found)
    theirs.close()
    for thread in threads:
        thread.join(10)
    assert received == ["answer"]


def test_a_large_message_waits_until_it_is_taken_or_nobody_can(make: Make, start: Start) -> None:
    reader, writer = make(mp.Pipe, duplex=False)

    def read_one_and_leave() -> None:
        writer.close()
        assert len(reader.recv_bytes()) == 1_000_000

    start(read_one_and_leave)
    reader.close()
    writer.send_bytes(bytes(1_000_000))
    with pytest.raises(BrokenPipeError):
        writer.send_bytes(bytes(1_000_000))


def test_processes_that_take_turns_go_on_where_the_other_stopped(make: Make, start: Start) -> None:
    reader, writer = make(mp.Pipe, duplex=False)
    for number in range(10):
        writer.send(number)
    writer.flush()
    assert [reader.recv() for _ in range(3)] == [0, 1, 2]
    assert start(lambda: os._exit([reader.recv() for _ in range(4)] != [3, 4, 5, 6])).join() is None
    assert [reader.recv() for _ in range(3)] == [7, 8, 9]
    assert not reader.poll()


def test_a_reader_that_is_killed_takes_only_what_it_got(make: Make, start: Start) -> None:
    reader, writer = make(mp.Pipe, duplex=False)
    got, said = make(mp.Pipe, duplex=False)
    for number in range(10):
        writer.send(number)

    def take_two() -> None:
        said.send([reader.recv(), reader.recv()])
        said.flush()
        time.sleep(60)

    child = start(take_two)
    assert got.recv() == [0, 1]
    child.kill()
    child.join()
    assert [reader.recv() for _ in range(8)] == list(range(2, 10))


def test_a_process_does_not_end_with_a_message_in_hand(
    make: Make, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = make(mp.Pipe, duplex=False)
    encode = connection._encode

    def slowly(messages: Any) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)
        return encode(messages)

    def send() -> None:
        monkeypatch.setattr(connection, "_encode", slowly)
        for number in range(3):
            writer.send(number)
        while writer._pending:  # until the thread has taken them up
            time.sleep(0.001)

    start(send).join()
    writer.close()
    assert [reader.recv() for _ in range(3)] == [0, 1, 2]


def test_many_may_write(make: Make, start: Start) -> None:
    reader, writer = make(mp.Pipe, duplex=False)

    def write(name: int) -> None:
        for number in range(300):
            writer.send_bytes(bytes([name]) * (number % 7 * 20_000 + number + 1))

    for name in range(3):
        start(write, name)
    found = [reader.recv_bytes() for _ in range(900)]
    for name in range(3):
        sizes = [len(message) for message in found if message[0] == name]
        assert sizes == [number % 7 * 20_000 + number + 1 for number in range(300)]
    assert all(message == message[:1] * len(message) for message in found)


def test_what_is_kept_back_is_sent_by_one_of_two_after_a_fork(make: Make, start: Start) -> None:
    reader, writer = make(mp.Pipe, duplex=False)
    writer.send("now")
    writer.send("kept back")
    start(lambda: writer.send("child's")).join()
    writer.send("last")
    found = [reader.recv() for _ in range(4)]
    assert sorted(found) == sorted(["now", "kept back", "child's", "last"])
    assert not reader.poll(0.05)


def test_sockets_that_time_out_by_default_are_none_of_its_business(make: Make) -> None:
    socket.setdefaulttimeout(0.01)
    try:
        ours, theirs = make(mp.Pipe)
        assert not ours.poll(0.05)
        theirs.send(1)
        assert ours.recv() == 1
    finally:
        socket.setdefaulttimeout(None)


def test_closed_ends_and_wrong_ways(make: Make) -> None:
    reader, writer = make(mp.Pipe, duplex=False)
    assert (reader.readable, reader.writable) == (True, False)
    assert (writer.readable, writer.writable) == (False, True)
    for call in (lambda: reader.send(1), writer.recv, writer.poll, writer.recv_bytes):
        with pytest.raises(OSError, match="only"):
            call()
    with reader, writer:
        pass
    assert reader.closed and writer.closed
    for call in (lambda: writer.send(1), reader.recv, reader.poll, reader.fileno):
        with pytest.raises(OSError, match="closed"):
            call()


def test_a_simple_queue_is_shared_by_all(make: Make, start: Start) -> None:
    tasks, results = make(mp.SimpleQueue), make(mp.SimpleQueue)
    assert tasks.empty()

    def work() -> None:
        for task in iter(tasks.get, None):
            results.put(task * 2)

    for _ in range(3):
        start(work)
    for number in range(500):
        tasks.put(number)
    assert sorted(results.get() for _ in range(500)) == [2 * number for number in range(500)]
    for _ in range(3):
        tasks.put(None)
    with pytest.raises(TypeError):
        tasks.put(socket.AF_INET and (n for n in ()))
    tasks.close()
    tasks.close()
    with pytest.raises(OSError):  # noqa: PT011
        tasks.put(1)


def test_an_end_that_was_closed_is_not_sent_from() -> None:
    """Whoever looks after the ends that have something pending may notice late."""
    one, other = mp.Pipe()
    with other:
        one.send(1)
        one.close()
        connection._flusher.add(one)
        connection._flusher.flush()
        one.flush(wait=False)
        assert other.recv() == 1
