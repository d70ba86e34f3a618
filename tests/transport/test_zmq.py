"""What the ZeroMQ transport promises beyond what every transport does."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import zmq

from flowkit.errors import TransportError
from flowkit.testing.conformance import Hub, Peer, until
from flowkit.transport.zmq import NAME_EXTRA, PATH_LIMIT, ZmqTransport, raise_file_limit

pytestmark = pytest.mark.e2e


def run(
    directory: Path, test: Callable[[ZmqTransport], Coroutine[Any, Any, None]], tcp: bool = False
) -> None:
    async def body() -> None:
        transport = ZmqTransport(directory, tcp=tcp)
        try:
            await test(transport)
        finally:
            transport.close()
            transport.join()

    asyncio.run(body())


def test_sockets_are_private_files_with_their_name(tmp_path: Path) -> None:
    async def test(transport: ZmqTransport) -> None:
        before = os.umask(0)
        try:
            binding = transport.bind("l3.0.1", lambda peer, parts: None)
            assert os.umask(0) == 0
        finally:
            os.umask(before)
        assert binding.path is not None
        assert binding.address == f"ipc://{binding.path}"
        assert binding.path.parent == tmp_path
        assert binding.path.name.startswith("l3.0.1-")
        assert len(binding.path.name) == len("l3.0.1") + NAME_EXTRA
        mode = binding.path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        binding.close()
        assert not binding.path.exists()

    run(tmp_path, test)


def test_tcp_is_on_this_machine_only(tmp_path: Path) -> None:
    async def test(transport: ZmqTransport) -> None:
        binding = transport.bind("x", lambda peer, parts: None)
        host, port = binding.address.removeprefix("tcp://").split(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        assert binding.path is None
        assert list(tmp_path.iterdir()) == []

    run(tmp_path, test, tcp=True)


def test_a_path_that_is_too_long_is_refused_and_the_longest_works(tmp_path: Path) -> None:
    async def test(transport: ZmqTransport) -> None:
        room = PATH_LIMIT - len(os.fsencode(tmp_path)) - 1 - NAME_EXTRA
        hub = Hub(transport, "n" * room)
        Peer(transport, hub.address).send(b"x")
        await until(lambda: hub.count)
        with pytest.raises(TransportError) as refused:
            transport.bind("n" * (room + 1), lambda peer, parts: None)
        assert str(PATH_LIMIT + 1) in str(refused.value)
        assert str(tmp_path) in str(refused.value)
        assert "FLOWKIT_RUN_DIR" in refused.value.hint
        with pytest.raises(TransportError) as refused:
            transport.connect("ipc:///" + "n" * 200, lambda parts: None)
        assert "FLOWKIT_RUN_DIR" in refused.value.hint

    run(tmp_path, test)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async def test(transport: ZmqTransport) -> None:
        with pytest.raises(TransportError, match="gone/x-"):
            transport.bind("x", lambda peer, parts: None)

    run(tmp_path / "gone", test)


def test_a_name_is_not_a_path(tmp_path: Path) -> None:
    async def test(transport: ZmqTransport) -> None:
        for name in ("", "../x", "a/b", "\0"):
            with pytest.raises(ValueError, match="name"):
                transport.bind(name, lambda peer, parts: None)

    run(tmp_path, test)


def test_ipc_and_tcp_transports_reach_each_other(tmp_path: Path) -> None:
    async def test(transport: ZmqTransport) -> None:
        other = ZmqTransport(tmp_path, tcp=True)
        hubs = [Hub(transport), Hub(other)]
        for here in (transport, other):
            for hub in hubs:
                Peer(here, hub.address).send(b"x")
        await until(lambda: all(len(hub.heard) == 2 for hub in hubs))
        other.close()

    run(tmp_path, test)


def test_a_context_that_was_given_is_left_alone(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    async def main() -> None:
        first, second = (ZmqTransport(tmp_path, context=context) for _ in range(2))
        first.close()
        first.join()
        hub = Hub(second)
        Peer(second, hub.address).send(b"x")
        await until(lambda: hub.count)
        second.close()
        second.join()

    asyncio.run(main())
    assert not context.closed
    context.term()


def test_strangers_do_no_harm(tmp_path: Path) -> None:
    async def test(transport: ZmqTransport) -> None:
        hub = Hub(transport)
        host, port = hub.address.removeprefix("tcp://").split(":")
        noise = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(300), b"\xff" * 4000, os.urandom(4000)]
        noise.append(b"\xff" + b"\x7f" * 8 + b"\x01" * 20)
        strangers = []
        for data in noise:
            stranger = socket.create_connection((host, int(port)))
            stranger.sendall(data)
            strangers.append(stranger)
        peer = Peer(transport, hub.address)
        peer.send(b"through the noise")
        await until(lambda: [[b"through the noise"]] in hub.heard.values())
        for stranger in strangers:
            stranger.close()
        peer.send(b"still")
        await until(lambda: [[b"through the noise"], [b"still"]] in hub.heard.values())

    run(tmp_path, test, tcp=True)


def test_closing_amid_events_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(transport: ZmqTransport) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            hub = Hub(transport)
            peer = Peer(transport, hub.address)
            hub.then = lambda name, parts, hub=hub: loop.call_soon(hub.binding.close) and None
            for _ in range(5000):
                peer.send(b"x")
            await until(lambda hub=hub: hub.count)
            peer.connection.close()

    run(tmp_path, test)
    assert caplog.records == []


def test_a_stream_that_goes_its_own_way_is_not_deaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Stream` overrides a method of ZMQStream that may be called otherwise one day."""
    monkeypatch.delattr("flowkit.transport.zmq.Stream._handle_events")

    async def test(transport: ZmqTransport) -> None:
        hub = Hub(transport)
        peer = Peer(transport, hub.address)
        hub.then = lambda name, parts: hub.send(name, *parts) and None
        for _ in range(5000):
            peer.send(b"x")
        await until(lambda: len(peer.heard) == 5000)
        for sent in range(5001, 5050):
            peer.send(b"x")
            await until(lambda sent=sent: len(peer.heard) == sent)

    run(tmp_path, test)


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 512:
        pytest.skip("the system allows too few files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert raise_file_limit() > 256
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("limit", [100, 250])
def test_running_out_of_files_is_an_error_and_no_crash(tmp_path: Path, limit: int) -> None:
    child = multiprocessing.get_context("spawn").Process(target=use_up, args=(tmp_path, limit))
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()


def use_up(directory: Path, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    async def test(transport: ZmqTransport) -> None:
        hub = Hub(transport)
        peers: list[Peer] = []
        with pytest.raises(TransportError, match="file descriptors") as refused:
            for number in range(limit):
                peers.append(Peer(transport, hub.address))
                peers[-1].send(b"%d" % number)
                await until(lambda: hub.count == len(peers))
        assert "ulimit" in refused.value.hint
        assert len(peers) > 10

    if limit < 128:
        with pytest.raises(TransportError, match="100 files"):
            run(directory, test)
    else:
        run(directory, test)
