"""A network that misbehaves: a proxy before every tcp binding of a project in this process.

`Weather` says what the proxies do to the bytes; `Far` is a `Stage` whose replicas talk through
them. The supervisor announces the proxies' addresses, since that is what the bindings say of
themselves; nothing in the product knows of them.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowkit.launchers.base import Launcher
from flowkit.launchers.inprocess import InProcessLauncher
from flowkit.runtime import spec as specs
from flowkit.runtime.child import build
from flowkit.runtime.runner import Runner
from flowkit.supervisor import Supervisor
from flowkit.transport.base import Answered, Connection, Heard
from flowkit.transport.memory import MemoryHub, MemoryTransport
from flowkit.transport.zmq import ZmqBinding, ZmqTransport
from tests.runtime.stage import Stage

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing throws away what is under way, and says RST


class Weather:
    """What happens to the lines of all proxies.

    `delay`: seconds for each way. `slices`: bytes of a piece at most, 0 for as they come. While
    `down` or `up` are clear nothing goes that way (to the consumers, to the producers).
    """

    def __init__(self, seed: int = 1) -> None:
        self.delay = 0.0
        self.slices = 0
        self.chance = random.Random(seed)
        self.down, self.up = asyncio.Event(), asyncio.Event()
        self.resume()
        self.proxies: list[_Proxy] = []
        self.lines = 0
        """Lines that were ever opened."""
        self.broken = 0
        """Lines that were reset."""
        self.pieces = 0

    def stall(self) -> None:
        self.down.clear()
        self.up.clear()

    def resume(self) -> None:
        self.down.set()
        self.up.set()

    def reset(self) -> None:
        """Break every line there is."""
        for proxy in self.proxies:
            proxy.reset()

    async def close(self) -> None:
        for proxy in self.proxies:
            await proxy.close()


class _Proxy:
    """Forwards what comes to `address` to `port`."""

    def __init__(self, weather: Weather, port: int) -> None:
        self._weather = weather
        self._port = port
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._start(self._listen(listener))
        weather.proxies.append(self)

    def _start(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._accept, sock=listener)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # the replica has left
            writer.close()
            return
        weather = self._weather
        weather.lines += 1
        self._writers |= {writer, there[1]}
        self._start(self._pump(reader, there[1], weather.up))
        self._start(self._pump(there[0], writer, weather.down))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        writing = loop.create_task(self._write(queue, writer, way))
        try:
            while data := await reader.read(1 << 16):
                queue.put_nowait((loop.time() + self._weather.delay, data))
            queue.put_nowait((loop.time() + self._weather.delay, b""))
            await writing
        except OSError:
            pass
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            self._writers.discard(writer)
            writer.close()

    async def _write(
        self,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        way: asyncio.Event,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await way.wait()
            if not data:
                return
            weather = self._weather
            while data:
                size = weather.chance.randint(1, weather.slices) if weather.slices else len(data)
                writer.write(data[:size])
                weather.pieces += 1
                data = data[size:]
                if weather.slices:
                    await asyncio.sleep(0)
            await writer.drain()

    def reset(self) -> None:
        for writer in self._writers:
            self._weather.broken += 1
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                )
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()


class _Tcp(ZmqTransport):
    """Binds on tcp behind a proxy each, and says that it listens there."""

    def __init__(self, directory: Path, weather: Weather) -> None:
        super().__init__(directory, tcp=True)
        self._weather = weather

    def bind(self, name: str, on_message: Heard) -> ZmqBinding:
        binding = super().bind(name, on_message)
        proxy = _Proxy(self._weather, int(binding.address.rpartition(":")[2]))
        binding.address = proxy.address
        return binding


class _Mixed(MemoryTransport):
    """Connects to memory, for the supervisor, and to tcp."""

    tcp: _Tcp

    def connect(self, address: str, on_message: Answered) -> Connection:
        if address.startswith("tcp:"):
            return self.tcp.connect(address, on_message)
        return super().connect(address, on_message)


class _FarLauncher(InProcessLauncher):
    weather: Weather

    async def _run(self, data: bytes) -> None:
        spec = specs.decode(data)
        transport = _Mixed(self._hub, asyncio.get_running_loop())
        transport.tcp = _Tcp(Path(spec.run_directory), self.weather)
        try:
            await Runner(spec, build(spec), transport, transport.tcp).run()
        finally:
            transport.close(1.0)
            transport.tcp.close()
            # In a thread: what lingers leaves through a proxy, which needs this loop.
            await asyncio.to_thread(transport.tcp.join)


class _FarSupervisor(Supervisor):
    weather: Weather

    def _make_launcher(self, hub: MemoryHub) -> Launcher:
        launcher = _FarLauncher(self._started, self._exited, hub)
        launcher.weather = self.weather
        return launcher


class Far(Stage):
    """A stage in whose network it has `weather`; links that are to feel it ask for tcp."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.weather = Weather()
        self.supervisor = _FarSupervisor(self.plan, in_process=True, watcher=self)
        self.supervisor.weather = self.weather

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        await self.weather.close()
