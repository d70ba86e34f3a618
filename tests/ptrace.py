"""Kills a function in the middle of it: before a chosen one of its writes to files.

The function runs in a fork of this process that is traced with ptrace(2). Every system call that
changes a file is counted, those on the pipe that the function reports to left out; before the one
that is asked for, the process is killed. What it has written by then is there, nothing else.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable

# <linux/ptrace.h>
_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_TRACESYSGOOD, _EXITKILL = 0x1, 0x100000
_ENTRY = 1
_INFO = struct.Struct("=BxxxIQQQ6Q")
"""What is asked about a system call: kind of stop, machine, two pointers, number, arguments."""

_WRITES = {
    # write, pwrite64, pwritev, pwritev2, ftruncate, fallocate, fsync, fdatasync, rename, unlink,
    # unlinkat, renameat2
    "x86_64": {1, 18, 296, 328, 77, 285, 74, 75, 82, 87, 263, 316},
    "aarch64": {64, 68, 70, 287, 46, 47, 82, 83, 38, 35, 276},
}.get(platform.machine(), set())


class Unavailable(Exception):
    """Processes cannot be traced here."""


def run_until(write: int, function: Callable[[int], None]) -> tuple[list[bytes], int, bool]:
    """Run `function` up to the `write`th write to a file, from 1.

    It is called with the descriptor of a pipe; the result is the lines that it has written there,
    how many writes it has begun, and whether it was killed. Raises Unavailable.
    """
    if sys.platform != "linux" or not _WRITES:
        raise Unavailable("not on this kind of machine")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(function, writer)
    os.close(writer)
    try:
        begun, killed = _trace(pid, write, writer)
        with open(reader, "rb", closefd=False) as file:
            return file.read().splitlines(), begun, killed
    finally:
        os.close(reader)


def _ptrace(request: int, pid: int, address: int = 0, data: object = 0) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    result = libc.ptrace(request, pid, address, data)
    if result == -1:
        raise OSError(ctypes.get_errno(), "ptrace")
    return int(result)


def _child(function: Callable[[int], None], writer: int) -> None:
    code = 1
    try:
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        function(writer)
        code = 0
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _trace(pid: int, last: int, spared: int) -> tuple[int, bool]:
    begun = 0
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise Unavailable("ptrace is not allowed")
    try:
        _ptrace(_SETOPTIONS, pid, 0, _TRACESYSGOOD | _EXITKILL)
        pass_on = 0
        while True:
            _ptrace(_SYSCALL, pid, 0, pass_on)
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                assert status == 0, f"the function failed: {status}"
                return begun, False
            stopped = os.WSTOPSIG(status)
            pass_on = 0 if stopped == signal.SIGTRAP | 0x80 else stopped
            if pass_on:
                continue
            info = ctypes.create_string_buffer(_INFO.size)
            _ptrace(_GET_SYSCALL_INFO, pid, _INFO.size, ctypes.addressof(info))
            kind, _, _, _, number, first, *_ = _INFO.unpack(info.raw)
            if kind == _ENTRY and number in _WRITES and first != spared:
                begun += 1
                if begun == last:
                    break
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise Unavailable(str(error)) from error
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return begun, True
