"""Where a supervisor listens for HTTP: on the loopback, unless it is told otherwise."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from flowkit.control.http import Figured
from flowkit.errors import OperatorError

if TYPE_CHECKING:
    from flowkit.control.web import HttpServer

PORT = 8787
"""Where it listens if nobody says otherwise and the port is free."""

LOOPBACK = "127.0.0.1"

BACKLOG = 64
"""Connections that may wait to be accepted, while the loop is busy."""


class Listening(NamedTuple):
    """A socket that is bound; `host` is what it was asked to be bound to."""

    bound: socket.socket
    host: str
    port: int

    @property
    def url(self) -> str:
        host = self.host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def close(self) -> None:
        self.bound.close()


def listen(where: str) -> Listening:
    """Bind to `where`: ``HOST:PORT``, or ``PORT`` on the loopback; port 0 is any that is free.

    Raises OperatorError if that is no address, or cannot be had.
    """
    host, port = _parse(where)
    try:
        return _bind(host, port)
    except OSError as error:
        hint = "port 0 takes any that is free; --no-http does without" if port else ""
        text = (
            error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        )
        raise OperatorError(f"cannot listen on {where} for HTTP: {text}", hint=hint) from error


def listen_somewhere() -> Listening | None:
    """Bind to the usual port of the loopback, or to any that is free; None if that fails."""
    for port in (PORT, 0):
        try:
            return _bind(LOOPBACK, port)
        except OSError:
            continue
    return None


def _bind(host: str, port: int) -> Listening:
    """Bind to the first address of `host`; one of IPv4, if it has both."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    both = host == "::" and socket.has_dualstack_ipv6()
    bound = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    bound.setblocking(False)
    return Listening(bound, host, bound.getsockname()[1])


def _parse(where: str) -> tuple[str, int]:
    host, colon, digits = where.rpartition(":")
    if not colon:
        host = LOOPBACK
    elif not host:
        raise OperatorError(
            f"'{where}' names no host",
            hint=f"say 0.0.0.0{where} for all interfaces, or {LOOPBACK}{where} for this machine",
        )
    host = host.removeprefix("[").removesuffix("]")
    if not digits.isascii() or not digits.isdigit() or int(digits) > 65535:
        raise OperatorError(
            f"'{where}' is no address to listen on: '{digits}' is no port",
            hint=f"HOST:PORT, like {LOOPBACK}:{PORT}, or a PORT of this machine",
        )
    return host, int(digits)


class Door:
    """Where a supervisor is asked over HTTP, if it is to be: `where` is an address for `listen`, or
    what has been bound, or None."""

    def __init__(self, where: str | Listening | None) -> None:
        self._where = where if isinstance(where, str) else None
        self._listening = where if isinstance(where, Listening) else None
        self._server: HttpServer | None = None

    @property
    def url(self) -> str | None:
        return self._listening.url if self._listening is not None else None

    def bind(self) -> None:
        """Take the address. Raises OperatorError if that cannot be had."""
        if self._where is not None and self._listening is None:
            self._listening = listen(self._where)

    def open(self, source: Figured) -> None:
        """Answer from now on, on the running loop."""
        if self._listening is not None:
            # Not at the top: who serves nothing need not wait for Tornado's server to be imported.
            from flowkit.control.web import HttpServer

            self._server = HttpServer(source, self._listening.bound, self._listening.host)

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()
        if self._listening is not None:
            self._listening.close()
