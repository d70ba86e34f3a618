"""Every error flowkit raises, sorted by who must act.

::

    FlowkitError
    |-- TopologyError            the topology author: the file is wrong (carries `problems`)
    |-- DeclarationError         the node author: a class is declared wrongly (also a TypeError)
    |-- SettingsError            the topology author: settings do not fit a node's constructor
    |-- SendError                the node author: `send` where nothing may be sent
    |-- MessageError             the node author: a message does not fit its channel
    |   |-- EncodeError
    |   |-- DecodeError
    |   |-- Poisoned
    |   `-- MessageTooLarge
    |-- OperatorError            whoever runs the project (carries `hint`)
    |   |-- RunDirectoryError
    |   |-- AlreadyRunning
    |   |-- DirtyStop
    |   |-- NoSuchProject
    |   |-- UnknownName          a running project has no node, replica or channel of that name
    |   |-- NotRunning           the project does not run, or has ended
    |   |-- ProjectFailed        it ran, and was not drained (carries its `report`)
    |   `-- RequestFailed        it runs, and does not do what was asked for (carries `code`)
    |-- DeliveryError            the caller of `deliver`: its message was not done
    |   |-- DeadLettered
    |   `-- Dropped
    |-- RequestError             who has asked a question (carries `server`)
    |   |-- RequestTimeout       there was no answer in time (also a TimeoutError)
    |   |-- ServerLost           the server died with the question in hand
    |   `-- HandlerFailed        its handler raised
    |-- TransportError           whoever runs the project: an endpoint cannot be bound or reached
    |-- ReplicaError             a replica cannot start or go on
    |-- HarnessError             the author of a test: it asks for what cannot be
    |-- WireError                the peer: bytes that are no flowkit frame
    |-- RemoteProtocolError      the peer: a frame that breaks the rules of the link
    `-- LocalProtocolError       us: a bug in flowkit

Errors keep their facts in fields, can be pickled, and keep their cause.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class FlowkitError(Exception):
    """Root of every error that flowkit raises on purpose.

    `exit_code` is what the command line returns when this error ends it.
    """

    exit_code = 2

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own __reduce__ calls the class with `args`, which are the formatted text
        # here and not what the constructors take; restore the fields instead.
        return (_restore, (type(self), self.args, self.__dict__.copy()))


def _restore(
    kind: type[FlowkitError], args: tuple[object, ...], fields: dict[str, object]
) -> FlowkitError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a topology file.

    `line` and `column` count from 1; 0 means the file as a whole. `length` is how many characters
    the caret underlines, `source` the text of that line. `code` is stable: ``E1xx`` the file,
    ``E2xx`` its references, ``E3xx`` the classes it names, ``E4xx`` where it is to run.
    """

    path: str
    line: int
    column: int
    code: str
    message: str
    hint: str = ""
    length: int = 1
    source: str = ""


class TopologyError(FlowkitError):
    """The topology cannot be run. `problems` holds everything that was found, in file order."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        first = problems[0] if problems else None
        text = f"{first.path}:{first.line}:{first.column}: {first.message}" if first else ""
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(text + more)


class DeclarationError(FlowkitError, TypeError):
    """A node class is declared wrongly; raised when the class is created.

    Mend the class: `hint` says how, where flowkit can guess.
    """

    def __init__(self, text: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(f"{text}; {hint}" if hint else text)


class SettingsError(FlowkitError):
    """The settings given under `with:` do not fit the constructor of the node class."""

    def __init__(self, text: str, setting: str | None = None, hint: str = "") -> None:
        self.setting = setting
        self.hint = hint
        super().__init__(text)


class SendError(FlowkitError, RuntimeError):
    """`send` was called where it has no batch to belong to.

    A send belongs to the handler that makes it: it must happen before the handler returns, on
    the thread of the event loop.
    """


class MessageError(FlowkitError, ValueError):
    """A message does not fit its channel."""


class EncodeError(MessageError):
    """A message that was sent cannot be encoded as its channel's type."""


class DecodeError(MessageError):
    """Bytes that were received cannot be decoded as the channel's type."""


class Poisoned(MessageError):
    """A message that killed the process that handled it, again and again; given up unhandled."""


class MessageTooLarge(MessageError):
    """A message is larger than its link allows (`size` and `limit` in bytes)."""

    def __init__(self, text: str, size: int = 0, limit: int = 0) -> None:
        self.size = size
        self.limit = limit
        super().__init__(text)


class OperatorError(FlowkitError):
    """The place where a project is to run is not in order; `hint` says what to do."""

    def __init__(self, text: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(text)


class RunDirectoryError(OperatorError):
    """The run directory cannot be used: its path is too long, or it is not private."""


class AlreadyRunning(OperatorError):
    """Another process runs this project: `pid` holds the lock file at `path`."""

    def __init__(self, pid: int, path: str) -> None:
        self.pid = pid
        self.path = path
        super().__init__(
            f"already running: process {pid} holds {path}",
            hint="flowkit down ends it, flowkit reload changes it; or give this one another "
            "project name",
        )


class DirtyStop(OperatorError):
    """The last run did not end cleanly and left positions behind: say what to do with them."""


class NoSuchProject(OperatorError):
    """There is no such project, running or not."""


class UnknownName(OperatorError):
    """A running project has no node, replica or channel of that name."""


class NotRunning(OperatorError):
    """The project does not run, or has ended while it was talked to."""

    exit_code = 6


class ProjectFailed(OperatorError):
    """A project has ended in another way than drained; `report`, a `flowkit.report.Report`, says
    how. Its `traceback` is what the replica that was given up has printed last.

    The exit code is that of the report.
    """

    def __init__(self, report: Any) -> None:
        self.report = report
        self.exit_code = report.exit
        text = f"{report.project}: {report.reason or report.status.value}"
        last = report.traceback.strip().rpartition("\n")[2]
        super().__init__(f"{text} ({last})" if last else text)


class RequestFailed(OperatorError):
    """A running project does not do what was asked for.

    `code` is stable, one of `flowkit.protocol.requests`: "refused", "no-such", "not-supported" ...
    The exit code is 7, or 2 if a topology file has problems, or a name is wrong.
    """

    exit_code = 7

    def __init__(self, code: str, text: str, hint: str = "") -> None:
        self.code = code
        if code in ("problems", "no-such"):
            self.exit_code = 2
        super().__init__(text, hint)


class DeliveryError(FlowkitError):
    """A message that was sent with `deliver`, or one that was made of it, was given up."""


class DeadLettered(DeliveryError):
    """Something of it is kept as a dead letter: ``flowkit dead-letters`` shows and replays it."""


class Dropped(DeliveryError):
    """Something of it is lost, or nobody knows any more what became of it: send it again."""


class RequestError(FlowkitError):
    """A question has no answer. `server` is the replica that had it last ("lookup.1"), or empty."""

    def __init__(self, text: str, server: str = "") -> None:
        self.server = server
        super().__init__(text)


class RequestTimeout(RequestError, TimeoutError):
    """There was no answer in time. A server that has the question in hand works on: it may have
    its effect yet."""


class ServerLost(RequestError):
    """The server died, or the line to it broke, with the question in hand: it may have had its
    effect or not. Nobody asks again unless the asker says so (`retries`)."""


class HandlerFailed(RequestError):
    """The server's handler raised; the text says what. The whole traceback is in its log."""


class TransportError(FlowkitError):
    """An endpoint cannot be bound or connected; `endpoint` names it, `hint` says what to do."""

    def __init__(self, text: str, endpoint: str = "", hint: str = "") -> None:
        self.endpoint = endpoint
        self.hint = hint
        super().__init__(text)


class ReplicaError(FlowkitError):
    """A replica cannot start or go on: its class does not import, or a hook failed."""

    exit_code = 3


class HarnessError(FlowkitError):
    """A test asks `flowkit.testing` for what cannot be: a channel that is not there, a node that
    has ended, time on a loop whose time is not the test's."""


class WireError(FlowkitError):
    """Bytes that are no flowkit frame. `code` is stable, for counting."""

    exit_code = 1

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(f"{code}: {text}")


class RemoteProtocolError(FlowkitError):
    """A peer sent a frame that the rules of the link do not allow in this state."""

    exit_code = 1


class LocalProtocolError(FlowkitError):
    """flowkit broke one of its own rules: a bug, please report it."""

    exit_code = 1
