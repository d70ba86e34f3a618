"""Ports and outboxes: who may send, what a message carries beside it, what is cut off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import In, Out
from flowkit.channels import CLOSED, Outbox, OutPort, TaskPort, current_outboxes
from flowkit.errors import SendError

PORTS: list[type[OutPort[Any]]] = [OutPort, TaskPort]


@pytest.fixture(params=PORTS, ids=lambda kind: kind.__name__)
def port(request: pytest.FixtureRequest) -> OutPort[Any]:
    return request.param("words")


def test_messages_keep_their_order(port: OutPort[Any]) -> None:
    assert port.send(1) is None
    port.send_many(iter([2, 3]))
    port.send_many(())
    port.send(4)
    assert port.sent == [1, 2, 3, 4]


def test_what_was_sent_is_a_copy(port: OutPort[Any]) -> None:
    port.send(1)
    port.sent.append(2)
    assert port.sent == [1]


async def _nowhere() -> None: ...


def test_a_closed_port_refuses_everything(port: OutPort[Any]) -> None:
    port.attach(_nowhere)
    for send in (
        lambda: port.send(1),
        lambda: port.send(1, key="k"),
        lambda: port.send(1, headers={"a": "b"}),
        lambda: port.send_many([1]),
        lambda: port.send_many([]),
    ):
        with pytest.raises(SendError, match="belongs to a running handler"):
            send()
    assert port.sent == [] and CLOSED.keys is None and CLOSED.headers is None


def test_only_the_thread_of_the_loop_may_send(port: OutPort[Any]) -> None:
    errors: list[BaseException] = []

    def elsewhere() -> None:
        for send in (lambda: port.send(1), lambda: port.send_many([1])):
            try:
                send()
            except SendError as error:
                errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(errors) == 2 and port.sent == []
    assert "send() from another thread" in str(errors[0])


def test_a_port_belongs_to_the_thread_that_runs_the_node() -> None:
    ports: list[OutPort[int]] = []
    thread = threading.Thread(target=lambda: ports.append(OutPort("x")))
    thread.start()
    thread.join()
    (port,) = ports
    port.attach(_nowhere)
    port.use(Outbox())
    port.send(1)
    assert port.sent == [1]


def test_the_first_message_is_told_and_the_first_after_each_taking(port: OutPort[Any]) -> None:
    told: list[int] = []
    box = Outbox(lambda: told.append(len(box.messages)))
    port.use(box)
    port.send_many([])
    assert told == []
    port.send(1)
    port.send(2)
    port.send_many([3, 4])
    assert told == [1]
    assert box.take() == ([1, 2, 3, 4], None, None)
    port.use(box)
    port.send_many([5, 6])
    port.send(7)
    assert told == [1, 2] and port.sent == [5, 6, 7]


def test_what_came_before_an_iterable_failed_is_told_as_well(port: OutPort[Any]) -> None:
    """Whoever goes on after the error has sent it."""
    told: list[int] = []
    box = Outbox(lambda: told.append(len(box.messages)))
    port.use(box)
    with pytest.raises(ValueError, match="x"):
        port.send_many(int(text) for text in ("1", "2", "x", "3"))
    assert port.sent == [1, 2] and told == [2]


def test_a_process_of_one_thread_looks_for_others_only_once_there_are_some() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ONE_THREAD],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["Messages", "refused", "refused", "_Guarded", "[1,", "2]"]
    assert (done.returncode, done.stderr) == (0, "")


ONE_THREAD = """
import threading
from flowkit.channels import Outbox, OutPort
from flowkit.errors import SendError
from flowkit.runtime.child import trust_the_only_thread

async def nowhere(): pass

trust_the_only_thread()
port = OutPort("x")
port.attach(nowhere)
port.use(Outbox())
port.send(1)
print(type(port._messages).__name__)

def elsewhere(send):  # a method that was bound before the thread was there is no way in
    try:
        send(3)
    except SendError:
        print("refused", flush=True)

for send in (port.send, lambda message: port.send(message, key="k")):
    thread = threading.Thread(target=elsewhere, args=(send,))
    thread.start()
    thread.join()
print(type(port._messages).__name__)
port.send(2)
print(port.sent)
"""


def test_room_is_what_the_runtime_says() -> None:
    waits: list[str] = []

    async def wait() -> None:
        waits.append("room")

    for kind in PORTS:
        port = kind("x")
        asyncio.run(port.room())
        port.attach(wait)
        asyncio.run(port.room())
    assert waits == ["room", "room"]


def test_inside_a_coroutine_handler_there_is_room() -> None:
    async def never() -> None:
        raise AssertionError

    port: TaskPort[int] = TaskPort("x")
    port.attach(never)

    async def handler() -> None:
        current_outboxes.set({"x": Outbox()})
        await port.room()

    asyncio.run(handler())


def test_every_task_has_outboxes_of_its_own() -> None:
    port: TaskPort[str] = TaskPort("x")
    port.attach(_nowhere)

    async def handler(name: str, box: Outbox) -> None:
        current_outboxes.set({"x": box})
        port.send(name + "1", key=name)
        await asyncio.sleep(0)
        port.send_many([name + "2"])

    async def main() -> list[Outbox]:
        boxes = [Outbox(), Outbox()]
        await asyncio.gather(handler("a", boxes[0]), handler("b", boxes[1]))
        with pytest.raises(SendError):
            port.send("nobody")
        return boxes

    first, second = asyncio.run(main())
    assert first.take() == (["a1", "a2"], ["a", None], None)
    assert second.take() == (["b1", "b2"], ["b", None], None)


def test_a_task_whose_handler_has_returned_may_not_send() -> None:
    port: TaskPort[str] = TaskPort("x")
    port.attach(_nowhere)

    async def main() -> None:
        boxes = {"x": Outbox()}
        current_outboxes.set(boxes)
        boxes.clear()
        with pytest.raises(SendError):
            port.send("late")

    asyncio.run(main())


Sent = tuple[int, Any, Any]
sent = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.none() | st.sampled_from(["", "k", 0]),
        st.none() | st.fixed_dictionaries({"h": st.text(max_size=2)}),
    ),
    max_size=8,
)


def fill(port: OutPort[int], messages: list[Sent]) -> None:
    for message, key, headers in messages:
        port.send(message, key=key, headers=headers)


def columns(messages: list[Sent]) -> Any:
    values, keys, headers = ([one[place] for one in messages] for place in range(3))
    return (
        values,
        keys if any(key is not None for key in keys) else None,
        headers if any(one is not None for one in headers) else None,
    )


@given(sent, st.integers(0, 8), sent, sent)
def test_keys_and_headers_stay_with_their_messages(
    first: list[Sent], length: int, second: list[Sent], third: list[Sent]
) -> None:
    """Whatever is cut off and put together in between; `None` everywhere is no column at all."""
    box, other = Outbox(), Outbox()
    port: OutPort[int] = OutPort("x")
    port.use(box)
    fill(port, first)
    box.cut(length)
    fill(port, second)
    port.use(other)
    fill(port, third)
    box.extend(other)
    values, keys, headers = box.take()
    expected = columns(first[:length] + second + third)
    assert values == expected[0]
    blank = [None] * len(values)
    assert (keys or blank, headers or blank) == (expected[1] or blank, expected[2] or blank)
    assert all(column is None or len(column) == len(values) for column in (keys, headers))
    assert box.take() == ([], None, None)


def test_an_outbox_is_taken_in_parts() -> None:
    """Keys and headers stay with their messages, also where the last have none."""
    box = Outbox()
    port: OutPort[int] = OutPort("x")
    port.use(box)
    for number in range(3):
        port.send(number, key=f"k{number}" if number % 2 else None)
    port.send(3, headers={"h": "3"})
    port.send_many([4, 5])
    assert box.part(0, 2).take() == ([0, 1], [None, "k1"], [None, None])
    assert box.part(2, 3).take() == ([2, 3, 4], None, [None, {"h": "3"}, None])
    box.skip(5)
    port.send(6, key="k6")
    assert box.part(0, 1).take() == ([5], [None], None)
    box.skip(1)
    assert box.take() == ([6], ["k6"], None)


def test_what_was_taken_is_not_touched_again() -> None:
    box = Outbox()
    box.messages.append(1)
    taken, _, _ = box.take()
    box.messages.append(2)
    assert taken == [1]


def test_channels_know_their_names() -> None:
    class Thing:
        lines = In(str)
        words = Out(str, key="user.id", codec="json")

    assert (Thing.lines.name, Thing.__dict__["words"].name) == ("lines", "words")
    assert In(int, batch=5).within is None
    assert In(int, batch=5, within="250ms").within == 0.25
    assert In(int, batch=5, within=2).within == 2.0
