"""Too few descriptors, floods of connections, bytes from strangers, messages beyond the limit."""

from __future__ import annotations

import random
import resource
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from flowkit.protocol import engine
from flowkit.wire import Ack, Data, Heartbeat, Reset, encode
from tests.e2e.harness import Place, Result, Run, complaint, environment, link, node
from tests.e2e.hurdles import hurdle

LINKS = [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")]


def pool(place: Place, transport: str = "tcp", replicas: int = 2) -> Path:
    """A source, workers and a counter; ends with the file `stop`."""
    return place.topology(
        {
            "read": node("Numbers", settings={"count": 1, "until": place.file("stop")}),
            "work": node("Work", replicas=replicas, settings={"busy": 5}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [{**each, "transport": transport} for each in LINKS],
    )


# ---------------------------------------------------------------------------- descriptors


def limited(place: Place, topology: Path, files: int) -> Run:
    """`flowkit up` by a shell that allows it so many open files, and no more ever."""
    shell = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    report = place.path / "limited.json"
    command = [*shell, sys.executable, "-m", "flowkit", "up", str(topology)]
    name = f"limited{files}"
    run = Run(
        [*command, "--report", str(report)], place.path, environment(place.path), name, report
    )
    place.runs.append(run)
    return run


@pytest.mark.parametrize("files", [64, pytest.param(127, marks=pytest.mark.slow)])
def test_too_few_descriptors_to_begin_with(place: Place, files: int) -> None:
    """Refused at the start, in words, before there is a process."""
    said = complaint(limited(place, pool(place), files).wait())
    assert f"may open {files} files only" in said and "ulimit -n" in said


@pytest.mark.parametrize("replicas", [30, pytest.param(64, marks=pytest.mark.slow)])
def test_descriptors_that_would_run_out(place: Place, replicas: int) -> None:
    """Enough for some replicas, not for all: refused as well, since ZeroMQ aborts a process that
    runs out of them."""
    said = complaint(limited(place, pool(place, replicas=replicas), 128).wait())
    assert "too few file descriptors" in said and "ulimit -n" in said
    assert "may open 128 files" in said


def test_descriptors_that_suffice(place: Place) -> None:
    """The least with which a small project runs; nothing is short then."""
    place.touch("stop")
    result = limited(place, pool(place), 160).wait()
    result.check_drained()


@pytest.mark.slow
def test_a_soft_limit_is_raised(place: Place) -> None:
    place.touch("stop")
    topology = pool(place)
    soft = 'ulimit -Sn 64; exec "$@"'
    command = ["sh", "-c", soft, "sh", sys.executable, "-m", "flowkit", "up", str(topology)]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 64
    run = Run(command, place.path, environment(place.path), "soft", None)
    place.runs.append(run)
    result = run.wait()
    assert result.code == 0, result.text


# ---------------------------------------------------------------------------- strangers


def port_of(run: Run, name: str) -> int:
    """Where a replica listens on tcp."""
    sockets = psutil.Process(run.pid(name)).net_connections("tcp")
    (port,) = {one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN}
    return int(port)


def end(place: Place, run: Run) -> Result:
    """It goes on, and ends as if nothing had happened."""
    for name in ("work.0", "work.1"):
        before = run.handled(name)
        run.until(lambda name=name, before=before: run.handled(name) > before)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert sum(entry["restarts"] for entry in result.report["nodes"]) == 0
    assert result.total("redelivered") == 0
    return result


@pytest.fixture
def ready(place: Place) -> Run:
    """A project on tcp that has begun to work."""
    run = place.up(pool(place))
    run.until(lambda: run.handled("work.0") > 100 and run.handled("tally.0") > 100)
    return run


def strange_bytes() -> Iterator[bytes]:
    chance = random.Random(22)
    yield b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield b""
    yield b"\x00" * 4096
    yield b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"  # the first bytes of a ZMTP greeting
    yield b"\x01\x00\x05\x00hello" * 50  # ZMTP 1.0
    yield b"\xff" + b"\xff" * 8 + b"\x7f" + b"\x03\x00NULL" + bytes(44) + b"\x06" + b"\xff" * 64
    for size in (1, 10, 100, 10_000, 100_000):
        yield chance.randbytes(size)


def test_bytes_that_are_no_zeromq(place: Place, ready: Run) -> None:
    ports = [port_of(ready, name) for name in ("read.0", "work.0", "work.1")]
    sent = 0
    for data in strange_bytes():
        for port in ports:
            with socket.create_connection(("127.0.0.1", port)) as line, suppress(OSError):
                line.sendall(data)
                line.shutdown(socket.SHUT_WR)
                sent += 1
    assert sent > 20
    end(place, ready)


def strange_frames() -> Iterator[Sequence[bytes]]:
    chance = random.Random(4)
    yield [b""]
    yield [b"fk"]
    yield [b"x"] * 5
    yield [chance.randbytes(64), chance.randbytes(100)]
    yield [b"\xff" * 64, b"\xff" * 8]
    for frame in (
        Data(1 << 32 | 1, 1, bytes(16), 0, 1, 1, 0, b"\x91\x01"),
        Ack(1 << 32 | 1, 1 << 40, 0, 0, 1 << 40, 1 << 40, 1, 1),
        Heartbeat(1 << 32 | 1, 7),
        Reset(1 << 32 | 1, "a stranger says so"),
    ):
        yield encode(frame)
    yield [encode(Heartbeat(1, 1))[0], b"\x91" * 100_000]  # nested beyond reason


def test_frames_of_a_stranger(place: Place, ready: Run) -> None:
    """He names sessions that exist, and is answered with RESET: they belong to other peers."""
    answers = 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.set(zmq.LINGER, 0)
        for name in ("read.0", "work.0", "work.1"):
            dealer.connect(f"tcp://127.0.0.1:{port_of(ready, name)}")
        for frame in strange_frames():
            for _ in range(3):  # a DEALER deals them out to all in turn
                dealer.send_multipart(list(frame))
        while answers < 15 and dealer.poll(5000):
            assert dealer.recv_multipart()
            answers += 1
    assert answers == 15
    end(place, ready)


def flood(lines: ExitStack, count: int, connect: Callable[[], socket.socket]) -> int:
    """Open connections and leave them open, until `count` or until nobody takes them."""
    made = 0
    for _ in range(count):
        with suppress(OSError):
            lines.enter_context(connect())
            made += 1
    return made


@pytest.mark.slow
def test_a_flood_of_connections(place: Place, ready: Run) -> None:
    port = port_of(ready, "work.0")
    with ExitStack() as lines:
        count = flood(lines, 400, lambda: socket.create_connection(("127.0.0.1", port)))
        assert count == 400
        process = psutil.Process(ready.pid("work.0"))
        ready.until(lambda: process.num_fds() > 400)
        result = end(place, ready)
    assert "Traceback" not in result.out


def test_a_flood_beyond_the_limit_of_descriptors(place: Place, ready: Run) -> None:
    """The process cannot take them all, and works on with the lines it has."""
    port = port_of(ready, "work.0")
    process = psutil.Process(ready.pid("work.0"))
    process.rlimit(psutil.RLIMIT_NOFILE, (100, 100))
    with ExitStack() as lines:
        count = flood(lines, 300, lambda: socket.create_connection(("127.0.0.1", port)))
        assert count > 100
        ready.until(lambda: process.num_fds() >= 100)
        end(place, ready)


def test_a_flood_of_an_ipc_socket_beyond_the_limit(place: Place) -> None:
    """Only our own user can do this. ZeroMQ aborts the process then; it is as if it was killed."""
    run = place.up(pool(place, transport="auto"))
    run.until(lambda: run.handled("work.0") > 100 and run.handled("tally.0") > 100)
    pid = run.pid("work.0")
    (path,) = (run.directory or Path()).glob("l1.0.1-*")
    psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE, (100, 100))

    def connect() -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.setblocking(False)
            line.connect(str(path))
        except BaseException:
            line.close()
            raise
        return line

    with ExitStack() as lines:
        flood(lines, 300, connect)
        run.until(lambda: "work.0 was killed by" in run.out or run.process.poll() is not None)
    assert "work.0 was killed by SIGABRT" in run.out
    run.pid("work.0", other_than=pid)
    run.until(lambda: run.handled("work.0") > 100)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.restarts("work") == 1


# ---------------------------------------------------------------------------- large messages


def too_large(place: Place, limit: int, **options: Any) -> None:
    """The third of ten messages is larger than `limit`: refused, named, kept; the rest arrive."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 10}),
            "large": hurdle("Large", settings={"at": 2, "size": limit + 1}),
            "end": hurdle("Lengths"),
        },
        [link("read.numbers -> large.numbers"), link("large.results -> end.blobs")],
    )
    result = place.up(topology, **options).wait()
    assert (result.code, result.report["status"]) == (4, "drained"), result.text
    entry = result.link("large.results -> end.blobs")
    assert (entry["sent"], entry["done"], entry["dead_lettered"]) == (10, 9, 1)
    assert result.link("read.numbers -> large.numbers")["done"] == 10
    (said,) = (line for line in result.printed("large.0") if "cannot send" in line)
    assert "large.results -> end.blobs" in said and "MessageTooLarge" in said
    assert f"{limit:,}" in said
    assert sum(entry["restarts"] for entry in result.report["nodes"]) == 0


def test_a_message_beyond_the_limit(place: Place) -> None:
    """With a limit of 1 MiB in all processes, for the time's sake."""
    site = place.path / "site"
    site.mkdir()
    # Found before any other module of that name; sets the limit when the engine is imported.
    (site / "sitecustomize.py").write_text(
        "import flowkit.protocol.engine as engine\n"
        "engine.BATCH_BYTES, engine.MESSAGE_BYTES = 1 << 16, 1 << 20\n"
    )
    root = environment(place.path)["PYTHONPATH"]
    too_large(place, 1 << 20, env={"PYTHONPATH": f"{site}:{root}"})


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 8 << 30, reason="needs 8 GiB of memory")
def test_a_message_beyond_the_real_limit(place: Place) -> None:
    too_large(place, engine.MESSAGE_BYTES)


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 8 << 30, reason="needs 8 GiB of memory")
def test_the_largest_message(place: Place) -> None:
    """One below the limit passes through a link; the window lets it go alone."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 3}),
            "large": hurdle("Large", settings={"at": 1, "size": engine.MESSAGE_BYTES - 64}),
            "end": hurdle("Lengths"),
        },
        [link("read.numbers -> large.numbers"), link("large.results -> end.blobs")],
    )
    place.up(topology).wait().check_drained()
