"""Addresses of ZeroMQ: their parts, and what is wrong with one.

Pure, and apart from the model: also those ask here who have no topology.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from flowkit.protocol.sockets import TRANSPORTS

PATH_LIMIT = 107
"""Bytes of the path of a Unix socket, on Linux."""

_TCP = re.compile(r"tcp://(?P<host>\*|\[[0-9A-Fa-f:.%\w]+\]|[^\[\]/:;]+):(?P<port>\*|[0-9]+)")
_PGM = re.compile(r"e?pgm://(?P<interface>[^;/:]+);(?P<group>[0-9A-Fa-f.:]+):(?P<port>[0-9]+)")

_LOOPBACK = ("localhost", "ip6-localhost")


class Address(NamedTuple):
    """An address in its parts; `host` is a path with ipc and a name with inproc."""

    transport: str
    host: str
    port: str = ""

    @property
    def local(self) -> bool:
        """Whether nobody but this machine can be at the other end."""
        if self.transport in ("ipc", "inproc"):
            return True
        if self.transport != "tcp":
            return False
        host = self.host.strip("[]")
        if host in _LOOPBACK or host in ("lo",):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def certain(self) -> bool:
        """Whether it can be connected to, and not only bound."""
        return self.host != "*" and self.port not in ("*", "0")

    def meets(self, other: Address) -> bool:
        """Whether the one who binds this and the one who connects to `other` meet, for all that can
        be told."""
        if (self.transport, self.port) != (other.transport, other.port) or self.port in ("*", "0"):
            return False
        return self.host == other.host or (
            self.transport == "tcp" and (self.local or self.host == "*") and other.local
        )


def address(text: str) -> Address | str:
    """The parts of an address, or what is wrong with it."""
    transport, separator, rest = text.partition("://")
    if not separator or transport not in TRANSPORTS:
        known = ", ".join(f"{name}://" for name in TRANSPORTS)
        return f"begins with none of {known}"
    if transport in ("ipc", "inproc"):
        if not rest:
            return "names nothing"
        if transport == "ipc" and len(rest.encode()) > PATH_LIMIT:
            return f"has a path of {len(rest.encode())} bytes; a socket's may have {PATH_LIMIT}"
        return Address(transport, rest)
    match = (_TCP if transport == "tcp" else _PGM).fullmatch(text)
    if match is None:
        form = "tcp://HOST:PORT" if transport == "tcp" else f"{transport}://INTERFACE;GROUP:PORT"
        return f"is not of the form {form}"
    if match["port"] != "*" and int(match["port"]) > 65_535:
        return f"has the port {match['port']}; ports go up to 65535"
    host = match["host"] if transport == "tcp" else f"{match['interface']};{match['group']}"
    return Address(transport, host, match["port"])


def to_bind(text: str) -> Address:
    """The parts of an address to listen at. Raises ValueError if it is none: ZeroMQ would take a
    port that is none for another one."""
    return _required(text, "listen at")


def to_connect(text: str) -> Address:
    """The parts of an address to connect to. Raises ValueError if it is none."""
    parts = _required(text, "connect to")
    if not parts.certain:
        raise ValueError(f"cannot connect to {text}: name the host and the port of the peer")
    return parts


def _required(text: str, to: str) -> Address:
    parts = address(text)
    if isinstance(parts, str):
        raise ValueError(f"cannot {to} {text}: it {parts}; pass one like tcp://127.0.0.1:5555")
    return parts
