"""``flowkit pipe``: every end, the function in between, what is bounded and what is kept."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from flowkit.errors import FlowkitError, OperatorError
from flowkit.runtime import ends
from flowkit.runtime.ends import Drain, Tap, open_drain, open_tap
from flowkit.runtime.pipe import Pipe, Through, ThroughError


class Numbers(Tap):
    """Messages from memory; notes how many are read and not done."""

    def __init__(self, count: int) -> None:
        self.left = [b"%d" % number for number in range(count)]
        self.under_way = self.most = 0

    async def read(self, limit: int) -> list[bytes] | None:
        batch, self.left = self.left[:limit], self.left[limit:]
        self.under_way += len(batch)
        self.most = max(self.most, self.under_way)
        return batch or None

    def settle(self, count: int) -> bool:
        self.under_way -= count
        return False

    def close(self) -> None: ...


class Kept(Drain):
    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def write(self, messages: Any) -> tuple[int, int]:
        before = len(self.got)
        self.got += messages
        await asyncio.sleep(0)
        return len(self.got) - before, 0

    def close(self) -> None: ...


def piped(
    function: Any, count: int = 10, inflight: int = 4, **more: Any
) -> tuple[Pipe, list[bytes], Numbers]:
    async def run() -> tuple[Pipe, list[bytes], Numbers]:
        tap, drain = Numbers(count), Kept()
        pipe = Pipe(tap, Through(function), drain, inflight, **more)
        try:
            await pipe.run()
        except ThroughError as error:
            pipe.error = error  # type: ignore[attr-defined]
        return pipe, drain.got, tap

    return asyncio.run(run())


def text(message: str) -> str:
    return message * 2


def test_a_function_gets_bytes_or_text_and_returns_what_it_likes() -> None:
    assert piped(bytes)[1] == [b"%d" % number for number in range(10)]
    assert piped(text, 3)[1] == [b"00", b"11", b"22"]
    assert piped(lambda m: None)[1] == []
    assert piped(lambda m: [m, m.decode()], 2)[1] == [b"0", b"0", b"1", b"1"]
    assert piped(lambda m: bytearray(m), 1)[1] == [b"0"]


def test_what_is_in_flight_is_bounded() -> None:
    pipe, got, tap = piped(bytes, 1000, inflight=7)
    assert (len(got), tap.most, tap.under_way) == (1000, 7, 0)
    running: list[int] = [0, 0]

    async def slow(message: bytes) -> bytes:
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0.001 if message.endswith(b"3") else 0)
        running[0] -= 1
        return message

    pipe, got, tap = piped(slow, 100, inflight=7)
    assert got == [b"%d" % number for number in range(100)], "in the order they came in"
    assert tap.most <= 7 and 1 < running[1] <= 7
    assert (pipe.count.read, pipe.count.written) == (100, 100)


@pytest.mark.parametrize("coroutine", [False, True])
@pytest.mark.parametrize("wrong", ["raises", "returns"])
def test_a_function_that_fails_stops_the_pipe_or_loses_that_message(
    coroutine: bool, wrong: str
) -> None:
    def fails(message: bytes) -> Any:
        if message == b"5":
            if wrong == "raises":
                raise ValueError("no five")
            return 5
        return message

    async def fails_later(message: bytes) -> Any:
        return fails(message)

    function = fails_later if coroutine else fails
    pipe, got, tap = piped(function, 10)
    assert got == [b"0", b"1", b"2", b"3", b"4"], "what comes before it is written"
    assert pipe.count.failed == 1
    assert isinstance(pipe.error, ThroughError) and pipe.error.exit_code == 3  # type: ignore[attr-defined]
    pipe, got, tap = piped(function, 10, on_error="drop")
    assert got == [b"%d" % number for number in range(10) if number != 5]
    assert tap.under_way == 0


# ---------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "no URL"),
        ("ftp://x", "cannot read from"),
        ("zmq+push://127.0.0.1:1", "cannot read from"),
        ("file:///no/such/file", "No such file"),
        ("file:///", "is a directory"),
        ("file:///dev/null?bind=1", "means nothing"),
        ("zmq+pull://127.0.0.1", "not of the form"),
        ("zmq+pull://127.0.0.1:99999", "65535"),
        ("zmq+pull://10.0.0.1:1", "beyond this machine"),
        ("zmq+pull://*:1?bind=1", "beyond this machine"),
        ("zmq+pull://127.0.0.1:1?topic=x", "means nothing"),
        ("zmq+pull://127.0.0.1:1?bind=yes", "means nothing"),
    ],
)
def test_a_tap_that_is_none(url: str, words: str) -> None:
    async def attempt() -> None:
        with pytest.raises(FlowkitError, match=words):
            open_tap(url)

    asyncio.run(attempt())


def test_a_state_is_for_files(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no positions"):
        open_tap("-", str(tmp_path / "state"))
    with pytest.raises(OperatorError, match="cannot write to"):
        open_drain("zmq+pull://127.0.0.1:1")
    (tmp_path / "in").write_bytes(b"a\n")
    (tmp_path / "state").write_text("100\n")
    with pytest.raises(OperatorError, match="shorter than the position"):
        open_tap(f"file://{tmp_path}/in", str(tmp_path / "state"))
    (tmp_path / "state").write_text("x\n")
    with pytest.raises(OperatorError, match="cannot use the position"):
        open_tap(f"file://{tmp_path}/in", str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\n\nlast", [b"a\r", b"", b"last"]),
        (b"\n", [b""]),
        (b"x" * 200_000 + b"\ny", [b"x" * 200_000, b"y"]),
    ],
)
def test_lines(tmp_path: Path, content: bytes, expected: list[bytes]) -> None:
    (tmp_path / "in").write_bytes(content)

    async def read() -> list[bytes]:
        tap = open_tap(f"file://{tmp_path}/in")
        got: list[bytes] = []
        while (batch := await tap.read(3)) is not None:
            got += batch
        tap.close()
        return got

    assert asyncio.run(read()) == expected


def test_a_long_line_takes_no_longer_than_its_bytes(tmp_path: Path) -> None:
    """Whatever is read of a line is not copied once more with each part that follows."""

    async def seconds(megabytes: int) -> float:
        (tmp_path / "in").write_bytes(bytes(megabytes << 20))
        tap = open_tap(f"file://{tmp_path}/in")
        begun = time.process_time()
        assert [len(line) for line in await tap.read(1) or []] == [megabytes << 20]
        tap.close()
        return time.process_time() - begun

    few, many = asyncio.run(seconds(4)), asyncio.run(seconds(64))
    assert many < 80 * few + 0.1  # it was 256 times


def test_what_nobody_takes_is_not_called_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "LINGER", 0.3)

    async def send(drain: Drain, size: int) -> None:
        await drain.write([bytes(size)] * 20)
        try:
            await drain.finish()
        finally:
            drain.close()

    async def attempt() -> None:
        with zmq.Context() as context, context.socket(zmq.PULL) as peer:
            peer.rcvhwm = 1
            peer.bind(f"ipc://{tmp_path}/socket")
            with pytest.raises(OperatorError, match="nobody took it within 0.3 s"):
                await send(open_drain(f"zmq+push://{tmp_path}/socket"), 1 << 20)
        with zmq.Context() as context, context.socket(zmq.PULL) as peer:
            peer.bind(f"ipc://{tmp_path}/socket")
            await send(open_drain(f"zmq+push://{tmp_path}/socket"), 10)
            assert [await asyncio.to_thread(peer.recv) for _ in range(20)] == [bytes(10)] * 20

    asyncio.run(attempt())


def test_a_file_is_read_at_least_once(tmp_path: Path) -> None:
    """Whatever was not written when it stopped is read again; what was is not."""
    source, target, state = (tmp_path / name for name in ("in", "out", "state"))
    source.write_bytes(b"".join(b"%d\n" % number for number in range(100)))

    def until(limit: int) -> Any:
        def function(message: bytes) -> bytes:
            if int(message) == limit:
                raise ValueError
            return message

        return function

    async def run(limit: int) -> None:
        tap = open_tap(f"file://{source}", str(state))
        drain = open_drain(f"file://{target}")
        try:
            await Pipe(tap, Through(until(limit)), drain, 10).run()
        except ThroughError:
            pass
        finally:
            tap.close()
            drain.close()

    asyncio.run(run(37))
    assert target.read_bytes().split() == [b"%d" % number for number in range(37)]
    asyncio.run(run(-1))
    assert target.read_bytes().split() == [b"%d" % number for number in range(100)]
    with source.open("ab") as file:
        file.write(b"100\n")
    asyncio.run(run(-1))
    assert target.read_bytes().split()[-2:] == [b"99", b"100"]


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(
        "import asyncio\n"
        "def upper(message: str): return message.upper()\n"
        "async def later(message): await asyncio.sleep(0); return message\n"
    )
    yield tmp_path


def pipe(place: Path, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "flowkit", "pipe", *arguments],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        **more,
    )


@pytest.mark.e2e
def test_streams(place: Path) -> None:
    program = pipe(place, "--from", "-", "--through", "mine:upper", "--to", "-")
    out, err = program.communicate(b"hello\nworld", timeout=60)
    assert (program.returncode, out) == (0, b"HELLO\nWORLD\n")
    assert err == b"2 read, 2 written\n"


@pytest.mark.e2e
def test_sockets(place: Path) -> None:
    """PULL, SUB and PUB are bound here and PUSH is connected; Ctrl-C finishes what is there."""
    address = f"{place}/pull"
    program = pipe(
        place, "--from", f"zmq+pull://{address}?bind=1", "--through", "mine:later",
        "--to", f"zmq+push://{place}/push",
    )  # fmt: skip
    try:
        with zmq.Context() as context:
            push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            push.sndtimeo = pull.rcvtimeo = 60_000
            push.connect(f"ipc://{address}")
            pull.bind(f"ipc://{place}/push")
            for number in range(2000):
                push.send(b"%d" % number)
            assert [pull.recv() for _ in range(2000)] == [b"%d" % n for n in range(2000)]
            push.close(0)
            pull.close(0)
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
        assert program.returncode == 0
        assert err == b"2,000 read, 2,000 written\n"
    finally:
        program.kill()
        program.wait()


def test_publish_and_subscribe(tmp_path: Path) -> None:
    """A SUB gets what it asked for; a PUB says what nobody wanted."""
    got: list[bytes] = []
    subscribed = threading.Event()

    def subscriber() -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.rcvtimeo = 20_000
            socket.subscribe(b"a")
            socket.connect(f"ipc://{tmp_path}/pub")
            subscribed.wait(20)
            got.append(socket.recv())

    async def run() -> tuple[int, int]:
        drain = open_drain(f"zmq+pub://{tmp_path}/pub?bind=1")
        thread = threading.Thread(target=subscriber)
        thread.start()
        subscribed.set()
        total = [0, 0]
        while not got:
            written, dropped = await drain.write([b"a1", b"b2"])
            total[0] += written
            total[1] += dropped
            await asyncio.sleep(0.005)
        thread.join()
        drain.close()
        return total[0], total[1]

    written, dropped = asyncio.run(run())
    assert got == [b"a1"]
    assert written >= 1 and dropped >= written

    async def hear() -> list[bytes]:
        with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
            socket.linger = 0
            socket.bind(f"ipc://{tmp_path}/sub")
            tap = open_tap(f"zmq+sub://{tmp_path}/sub?topic=x&topic=y")
            assert {await asyncio.to_thread(socket.recv) for _ in range(2)} == {b"\1x", b"\1y"}
            socket.send_multipart([b"y", b"heard"])
            batch = await tap.read(10)
            tap.close()
            return batch or []

    assert asyncio.run(hear()) == [b"heard"]
