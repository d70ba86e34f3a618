"""A client of a running project, for scripts, tests and the command line; its calls block.

::

    with Client("clicks") as project:
        print(project.status())
        project.scale(split=4)
        for line in project.logs():
            print(line.replica, line.text)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import zmq

from flowkit.clock import monotonic
from flowkit.control import arguments
from flowkit.control.correspondence import LOOK, PATIENCE, Correspondence, OnTold
from flowkit.control.correspondence import Skipped as Skipped
from flowkit.control.places import Place, Presence
from flowkit.control.records import Changed, Ended, Event, LogLine, Marks, RunRecord
from flowkit.errors import OperatorError
from flowkit.protocol import requests
from flowkit.protocol.caller import Refusal, Word
from flowkit.protocol.control import Replayed
from flowkit.protocol.requests import MARK, Answered, Opened
from flowkit.status import Status

T = TypeVar("T")


class Client(Correspondence):
    """A connection to the project `project`: its name, its topology file, or a `Place`; without
    one, the project of the current directory.

    Use it in a ``with``, or `close` it. Every method waits until what it asks for is done or true,
    and raises `RequestFailed` with the reason if it cannot be, `NotRunning` if the project has
    ended. A project that shows no sign of life for `patience` seconds raises OperatorError.
    """

    def __init__(
        self, project: str | os.PathLike[str] | Place | None = None, *, patience: float = PATIENCE
    ) -> None:
        super().__init__(project, patience)
        self.before_waiting: Callable[[], None] = lambda: None
        """Called before this client waits, and every half second while it does. It may raise."""
        self._words: dict[int, list[Word]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        # What is under way is bounded by the session; a full socket must not make it wait.
        self._socket.set_hwm(0)
        self._socket.connect(self._address)

    # -- looking -------------------------------------------------------------------------------

    def info(self) -> RunRecord:
        """Which run this is."""
        return self._ask("info", arguments.Nothing(), RunRecord)

    def wait_until_ready(self, timeout: float | None = None) -> RunRecord:
        """Wait until all replicas are ready. None: however long it takes."""
        return self._ask("ready", arguments.Nothing(), RunRecord, timeout=timeout)

    def status(self) -> Status:
        """How every replica and every link is; what `flowkit ps` shows."""
        return self._ask("status", arguments.Nothing(), Status)

    def watch(self, every: float = 1.0) -> Iterator[Status]:
        """The same every `every` seconds, until the project ends."""
        for item in self.stream("watch", arguments.Watch(every), Status):
            if isinstance(item, Status):
                yield item

    def tap(self, node: str, channel: str, depth: int = 100) -> Iterator[Any]:
        """Messages that pass a channel, decoded, until the project ends; `Skipped` where some were
        left out."""
        return self.stream("tap", arguments.Tap(node, channel, depth), Any)

    def logs(self, *names: str, depth: int = 1000) -> Iterator[LogLine | Skipped]:
        """Lines that are printed from now on, of these nodes or replicas if any are named, until
        the project ends. What was printed before is in files: see `flowkit.control.history`."""
        wanted = arguments.Stream(depth, list(names))
        return self.stream("logs", wanted, LogLine)

    def events(self, depth: int = 1000) -> Iterator[Event | Skipped]:
        """What happens from now on, until the project ends."""
        return self.stream("events", arguments.Stream(depth), Event)

    # -- changing ------------------------------------------------------------------------------

    def scale(
        self,
        replicas: dict[str, int] | None = None,
        *,
        lose_state: bool = False,
        tell: OnTold | None = None,
        **more: int,
    ) -> Changed:
        """Give nodes another number of replicas: ``scale(split=4)``, ``scale({"split": 4})``."""
        return self._ask(
            "scale", arguments.Scale({**(replicas or {}), **more}, lose_state), Changed, tell
        )

    def restart(
        self, node: str, replica: int | None = None, *, tell: OnTold | None = None
    ) -> Changed:
        """Restart the replicas of a node one after the other, or one of them."""
        return self._ask("restart", arguments.Restart(node, replica), Changed, tell)

    def stop(self, node: str, *, tell: OnTold | None = None) -> Changed:
        """Stop a node, and leave it so."""
        return self._ask("stop", arguments.OfNode(node), Changed, tell)

    def start(self, node: str, *, tell: OnTold | None = None) -> Changed:
        """Start a node that was stopped."""
        return self._ask("start", arguments.OfNode(node), Changed, tell)

    def reload(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        dry: bool = False,
        lose_state: bool = False,
        tell: OnTold | None = None,
    ) -> Changed:
        """Make the running project what its file, or `file`, says now; with `dry` only say how."""
        wanted = arguments.Reload(self._file(file), dry, lose_state)
        return self._ask("reload", wanted, Changed, tell)

    def set_level(self, node: str, level: str, replica: int | None = None) -> Changed:
        """Set the level of a node's log, or of one replica's: "DEBUG", "WARNING" ..."""
        return self._ask("level", arguments.Level(node, level, replica), Changed)

    def replay(self, numbers: Sequence[int]) -> Iterator[Replayed]:
        """Try dead letters again; yields what became of each, as it is known."""
        for item in self.stream("replay", arguments.Replay(list(numbers)), Replayed):
            if isinstance(item, Replayed):
                yield item

    def down(
        self, timeout: float = 60.0, *, kill: bool = False, tell: OnTold | None = None
    ) -> dict[str, Any]:
        """Drain the project, for at most `timeout` seconds, or end it at once; returns the report
        of the run once its process has gone."""
        process = Presence(self.place)
        report = self._ask("down", arguments.Down(timeout, kill), Ended, tell).report
        until = monotonic() + self._patience
        while (process or self._is_there()) and monotonic() < until:
            self._socket.poll(10)  # what still comes is of no interest
            self._receive()
        return report

    # -- life ----------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session. Twice is fine."""
        if self._socket.closed:
            return
        self._caller.leave(monotonic())
        self._send()
        # The last word takes no time on a socket of this machine, and nobody waits for it.
        self._socket.close(100)
        self._context.term()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- what all commands share ---------------------------------------------------------------

    def stream(
        self,
        verb: str,
        wanted: msgspec.Struct,
        kind: type[T],
        on_open: Callable[[Any], None] | None = None,
    ) -> Iterator[T | Skipped]:
        """What a command yields, and where something was left out. `on_open` is called with what
        it says at the beginning."""
        id = self._begin(verb, wanted)
        try:
            while True:
                for word in self._next(id):
                    if isinstance(word, Opened) and on_open is not None:
                        on_open(word.result)
                    yield from self._items(word, kind)
                    if isinstance(word, Answered):
                        return
        finally:
            self._forget(id)

    def marks(self, raw: Any) -> Marks:
        """Where a stream of lines or events begins, in what its `on_open` is given."""
        return requests.unpack(raw, Marks)

    def _ask(
        self,
        verb: str,
        wanted: msgspec.Struct,
        kind: type[T],
        tell: OnTold | None = None,
        timeout: float | None = None,
    ) -> T:
        """The answer to a command."""
        until = None if timeout is None else monotonic() + timeout
        id = self._begin(verb, wanted)
        try:
            while True:
                for word in self._next(id, until):
                    if isinstance(word, Answered):
                        return requests.unpack(word.result, kind)
                    self._hear(word, tell)
        finally:
            self._forget(id)

    def _begin(self, verb: str, wanted: msgspec.Struct) -> int:
        id = self._caller.ask(verb, wanted, monotonic())
        self._words[id] = []
        self._send()
        return id

    def _forget(self, id: int) -> None:
        self._words.pop(id, None)
        if not self._socket.closed:
            self._caller.cancel(id, monotonic())
            self._send()

    def _next(self, id: int, until: float | None = None) -> list[Word]:
        """Words of a request that are news; waits for some."""
        silence = 0.0  # not by the clock: this process may have been stopped itself
        while not self._words[id]:
            now = monotonic()
            if until is not None and now >= until:
                raise OperatorError(f"{self.place.project} has not done it in time")
            left = LOOK if until is None else min(LOOK, until - now)
            if not self._socket.poll(0):
                self.before_waiting()
            if self._socket.poll(max(1, int(left * 1000))):
                self._receive()
                silence = 0.0
                continue
            silence += left
            if not self._is_there():
                self._receive()  # it may have said a last word
                if not self._words[id]:
                    self._keep(self._caller.lost(requests.ENDED, str(self._gone())))
                continue
            if silence >= self._patience:
                raise self._silent(silence)
            self._caller.tick(monotonic())
            self._send()
        words, self._words[id] = self._words[id], []
        return words

    def _receive(self) -> None:
        """Take in what has arrived."""
        while self._socket.poll(0):
            now = monotonic()
            for word in self._caller.received(self._socket.recv(), now):
                if isinstance(word, Refusal):
                    raise self._refusal(word)
                self._keep([word])
        self._caller.tick(monotonic())
        self._send()

    def _keep(self, words: Sequence[Word]) -> None:
        for word in words:
            if word.id in self._words:
                self._words[word.id].append(word)

    def _send(self) -> None:
        while self._caller.outgoing:
            self._socket.send_multipart([MARK, self._caller.outgoing.popleft()])
