"""What a client and the supervisor say to each other, on the socket that replicas use too.

A client's message has two parts, `MARK` and a body; a replica's has one. `Hello` opens a session,
which is the client's: it chooses the session's name, and takes it up again with another `Hello` if
the line breaks. `Ask` carries out a command, by name, with arguments of the command's own type.
What the supervisor says within a session is numbered; the client says with `Seen` how far it has
read, which is both the acknowledgement and the credit.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from flowkit.errors import WireError

MARK = b"flowkit-client"
"""The first part of what clients say."""

VERSION = 1
"""Of these messages. Both sides must speak the same."""

LIMIT = 1 << 20
"""Bytes of a client's message at most."""

# -- why something was refused, or has failed: stable, for programs

UNAUTHORISED = "unauthorised"
"""The token is not that of the run."""
OTHER_VERSION = "other-version"
"""The client and the supervisor are of different versions of flowkit."""
NO_SESSION = "no-session"
"""Nothing is known of a session on this line, or a request was lost: say `Hello`."""
TOO_MANY = "too-many"
"""Too many sessions, or too many requests of one."""
UNKNOWN_VERB = "unknown-verb"
BAD_ARGUMENTS = "bad-arguments"
"""The arguments do not have the command's type."""
NOT_SUPPORTED = "not-supported"
"""The command exists, but not for this project or in this version."""
NO_SUCH = "no-such"
"""There is no node, replica, channel ... of that name."""
GONE = "gone"
"""There was one, and it has been removed."""
REFUSED = "refused"
"""It cannot be done as things are; nothing was changed unless the text says so."""
PROBLEMS = "problems"
"""The topology file has problems, which the text shows. Nothing was changed."""
ENDED = "ended"
"""The project ended before the request was done."""
SILENT = "silent"
"""The project shows no sign of life; said by the client to itself."""
LOST = "lost"
"""The session was lost with the request in it: whether it was done is not known."""
INTERNAL = "internal"
"""A bug in flowkit."""


class Hello(Struct, tag=True):
    """Client: open the session `session`, in which requests are numbered from `asked` + 1, or go on
    with it after message `seen`. The answer repeats `attempt`."""

    token: str
    session: bytes
    seen: int = 0
    asked: int = 0
    attempt: int = 0
    version: int = VERSION


class Ask(Struct, tag=True):
    """Client: carry out a command. Ids have no gaps; a repeated one is ignored."""

    id: int
    verb: str
    arguments: Raw = Raw(b"\x80")


class Cancel(Struct, tag=True):
    """Client: nothing more is wanted of that request. A change that has begun goes on."""

    id: int


class Seen(Struct, tag=True):
    """Client: I have read everything up to `number`. With `ping` it is answered with `Pong`."""

    number: int
    ping: bool = False


class Bye(Struct, tag=True):
    """Client: the session is over."""


class Welcome(Struct, tag=True):
    """Supervisor: the session is open; `resumed` if it was before."""

    resumed: bool
    project: str
    pid: int
    version: str
    """Of flowkit, for people."""
    attempt: int = 0


class Refused(Struct, tag=True):
    """Supervisor: nothing was done about what you said, for the reason `code`."""

    code: str
    text: str


class Opened(Struct, tag=True):
    """Supervisor: the request will yield items from now on; `result` says what they begin at."""

    number: int
    id: int
    result: Raw


class Told(Struct, tag=True):
    """Supervisor: how far a request has come, for people."""

    number: int
    id: int
    text: str


class Items(Struct, tag=True):
    """Supervisor: what a request yields. Before these, `skipped` were left out: the client was
    too slow."""

    number: int
    id: int
    items: list[Raw]
    skipped: int = 0


class Answered(Struct, tag=True):
    """Supervisor: the request is done."""

    number: int
    id: int
    result: Raw


class Failed(Struct, tag=True):
    """Supervisor: the request is not done, for the reason `code`; `text` and `hint` for people."""

    number: int
    id: int
    code: str
    text: str
    hint: str = ""


class Pong(Struct, tag=True):
    """Supervisor: I am here. The last thing that I have said was `number`, the last request that I
    know of is `asked`; what you do not know of these was lost."""

    number: int
    asked: int


FromClient = Hello | Ask | Cancel | Seen | Bye
Numbered = Opened | Told | Items | Answered | Failed
ToClient = Welcome | Refused | Pong | Numbered

_encode = msgspec.msgpack.Encoder().encode
_of_client: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_to_client: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)

T = TypeVar("T")


def encode(message: FromClient | ToClient) -> bytes:
    return _encode(message)


def from_client(body: bytes) -> FromClient:
    """Decode what a client said; raises WireError and nothing else."""
    if len(body) > LIMIT:
        raise WireError("request", f"{len(body)} bytes, {LIMIT} are allowed")
    try:
        return _of_client.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise WireError("request", str(error)) from None


def to_client(body: bytes) -> ToClient:
    """Decode what the supervisor said to a client; raises WireError and nothing else."""
    try:
        return _to_client.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise WireError("request", str(error)) from None


def pack(value: Any) -> Raw:
    """Arguments or a result, as a part of a message."""
    return Raw(_encode(value))


def unpack(raw: Raw, kind: type[T]) -> T:
    """The arguments or the result in a message; raises WireError if they are not of `kind`."""
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise WireError("request", str(error)) from None
