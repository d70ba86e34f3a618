"""The leak detectors of conftest.py find what they are there to find."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest
import zmq

from tests.conftest import Belongings, Deadline, Eventually, leaks_since

SHORT = 0.05


def test_nothing_is_no_leak() -> None:
    assert leaks_since(Belongings(), SHORT) == []


def test_a_thread() -> None:
    before, end = Belongings(), threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten", daemon=True)
    thread.start()
    assert leaks_since(before, SHORT) == ["thread 'forgotten'"]
    end.set()
    thread.join()
    assert leaks_since(before) == []


def test_a_child_process() -> None:
    before = Belongings()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = leaks_since(before, SHORT)
    assert any(f"process {child.pid} " in item for item in found)
    child.communicate()
    assert leaks_since(before) == []


def test_a_file() -> None:
    before = Belongings()
    descriptor = os.open(os.devnull, os.O_RDONLY)
    assert leaks_since(before, SHORT) == [f"file descriptor {descriptor}: {os.devnull}"]
    os.close(descriptor)
    assert leaks_since(before) == []


def test_a_zeromq_socket() -> None:
    before = Belongings()
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    found = "\n".join(leaks_since(before, SHORT))
    assert "socket not closed" in found and "context not closed" in found
    socket.close(0)
    context.term()
    assert leaks_since(before) == []


def test_an_event_loop() -> None:
    before = Belongings()
    loop = asyncio.new_event_loop()
    assert "event loop not closed" in "\n".join(leaks_since(before, SHORT))
    loop.close()
    assert leaks_since(before) == []


def test_what_ends_by_itself_is_waited_for() -> None:
    before, end = Belongings(), threading.Event()
    threading.Thread(target=end.wait, args=(0.1,)).start()
    assert leaks_since(before) == []


def test_eventually(eventually: Eventually) -> None:
    values = iter([0, 0, 7])
    assert eventually(lambda: next(values)) == 7
    with pytest.raises(pytest.fail.Exception, match="not true within 0.01 s"):
        eventually(lambda: False, 0.01)


def test_eventually_on_a_loop(eventually: Eventually) -> None:
    async def scenario() -> None:
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, done.set)
        assert await eventually.on_loop(done.is_set)

        async def seven() -> int:
            return 7

        assert await eventually.on_loop(seven) == 7
        with pytest.raises(pytest.fail.Exception):
            await eventually.on_loop(lambda: False, 0.01)

    asyncio.run(scenario())


def test_deadline() -> None:
    assert Deadline(0).passed
    assert 0 < Deadline(60).left <= 60
