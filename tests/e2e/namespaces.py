"""Two network namespaces, a wire between them, and nodes that live in them.

A node of this module moves its process into a namespace before it has any socket, so that a real
project runs in both: its links on tcp go over the wire, its control over files as ever. The wire is
a pair of tun devices and a thread of the test that carries packets from one to the other, or not:
what TCP makes of that is the kernel's own doing.

Links listen on the loopback alone. So in the namespace `THERE` the addresses of the loopback lead
to the wire, and in `HERE`, where the producers are, the kernel may take them from there.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import secrets
import select
import struct
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any

from tests.e2e.nodes import Held, Journal, Numbers, Tally, Work

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_TUNSETIFF = 0x400454CA  # <linux/if_tun.h>
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

HERE, THERE = 0, 1
"""The ends of the wire: where the producers are, and where their consumers are."""

PACKET = 1 << 16


class Unavailable(Exception):
    """This machine, or this user, cannot have network namespaces."""


def enter(namespace: str) -> None:
    """Move the calling thread, and what it starts from now on, into a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    file = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(file, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    finally:
        os.close(file)


# ---------------------------------------------------------------------------- nodes


class FarNumbers(Numbers):
    def __init__(self, namespace: str, count: int = 0, until: str = "") -> None:
        enter(namespace)
        super().__init__(count, until)


class FarHeld(Held):
    def __init__(self, namespace: str, count: int, until: str) -> None:
        enter(namespace)
        super().__init__(count, until)


class FarWork(Work):
    def __init__(self, namespace: str, busy: int = 0) -> None:
        enter(namespace)
        super().__init__(busy)


class FarTally(Tally):
    stateful = True

    def __init__(self, namespace: str, path: str) -> None:
        enter(namespace)
        super().__init__(path)


class FarJournal(Journal):
    def __init__(self, namespace: str, path: str) -> None:
        enter(namespace)
        super().__init__(path)


# ---------------------------------------------------------------------------- the wire


def _tun(namespace: str) -> int:
    """The descriptor of a new tun device "wire" in `namespace`."""
    made: list[int] = []
    failed: list[OSError] = []

    def make() -> None:
        # In a thread of its own, since it is a thread that is in a namespace.
        try:
            enter(namespace)
            file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            made.append(file)
            fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        for file in made:
            os.close(file)
        raise Unavailable(f"no tun device: {failed[0]}")
    return made[0]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unavailable(f"there is no program {command[0]!r}") from None
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")


class Wire:
    """The two namespaces and what connects them; raises Unavailable.

    `loss` is the share of packets that get lost, of each way; `delay` what each takes, in seconds.
    Nothing leaves the end `cut`, if it is one. `carried` and `lost` count packets by the end that
    they left.
    """

    def __init__(self, seed: int = 18) -> None:
        if os.geteuid() != 0:
            raise Unavailable("network namespaces need root")
        self.loss = 0.0
        self.delay = 0.0
        self.cut: int | None = None
        self.carried = [0, 0]
        self.lost = [0, 0]
        self._chance = random.Random(seed)
        name = secrets.token_hex(3)
        self.namespaces = [f"fk{name}h", f"fk{name}t"]
        self._files: list[int] = []
        self._made: list[str] = []
        try:
            self._set_up()
        except BaseException:
            self._tear_down()
            raise
        self._waker, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="wire")
        self._thread.start()

    def close(self) -> None:
        os.close(self._stop)
        self._thread.join()
        os.close(self._waker)
        self._tear_down()

    def _set_up(self) -> None:
        for namespace in self.namespaces:
            _run("ip", "netns", "add", namespace)
            self._made.append(namespace)
            self._files.append(_tun(namespace))
        addresses = ["10.219.0.1", "10.219.0.2"]
        for namespace, address in zip(self.namespaces, addresses, strict=True):
            inside = ["ip", "netns", "exec", namespace]
            for setting in ("all/rp_filter=0", "wire/rp_filter=0", "wire/route_localnet=1"):
                key, _, value = setting.partition("=")
                path = f"/proc/sys/net/ipv4/conf/{key}"
                _run(*inside, "sh", "-c", f"echo {value} > {path}")
            _run(*inside, "ip", "addr", "add", f"{address}/24", "dev", "wire")
            _run(*inside, "ip", "link", "set", "wire", "up")
        here, there = (["ip", "netns", "exec", each] for each in self.namespaces)
        _run(*here, "ip", "link", "set", "lo", "up")
        source = addresses[THERE]
        _run(*there, "ip", "route", "add", "127.0.0.0/8", "dev", "wire", "src", source)

    def _tear_down(self) -> None:
        for file in self._files:
            os.close(file)
        for namespace in self._made:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    def _carry(self) -> None:
        """Packets from one end to the other, in their order, until the wire is closed."""
        queue: list[tuple[float, int, int, bytes]] = []
        number = 0
        while True:
            now = time.monotonic()
            while queue and queue[0][0] <= now:
                _, _, end, packet = heapq.heappop(queue)
                with suppress(OSError):  # the device is full: one more packet that is lost
                    os.write(self._files[1 - end], packet)
                    self.carried[end] += 1
            wait = queue[0][0] - now if queue else None
            ready, _, _ = select.select([*self._files, self._waker], [], [], wait)
            if self._waker in ready:
                return
            for end in (HERE, THERE):
                if self._files[end] not in ready:
                    continue
                for packet in _packets(self._files[end]):
                    if end == self.cut or self._chance.random() < self.loss:
                        self.lost[end] += 1
                        continue
                    number += 1
                    heapq.heappush(queue, (time.monotonic() + self.delay, number, end, packet))


def _packets(file: int) -> list[bytes]:
    """What is there, a bounded number."""
    found = []
    with suppress(BlockingIOError):
        while len(found) < 64:
            found.append(os.read(file, PACKET))
    return found


# ---------------------------------------------------------------------------- topologies


def far(use: str, namespace: str, **facts: Any) -> dict[str, Any]:
    """A node of a topology that lives in `namespace`."""
    settings = {"namespace": namespace, **facts.pop("settings", {})}
    return {"use": f"{__name__}:{use}", "with": settings, **facts}
