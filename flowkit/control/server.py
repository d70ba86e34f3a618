"""The supervisor's end of its sessions with clients: the shell around `protocol.session`.

It passes on what arrives on the control socket, sends what the sessions say, and runs each command
as a task of its own. What a task does when its client leaves is decided by the command: one that
only looks is cancelled, one that changes something goes on.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable

import msgspec
from msgspec import Raw

from flowkit import __version__
from flowkit.clock import Clock
from flowkit.control.commands import COMMANDS, Command, Denial, Desk, Operated
from flowkit.control.recorder import Recorder
from flowkit.control.records import Event
from flowkit.errors import FlowkitError, UnknownName, WireError
from flowkit.importing import suggest
from flowkit.protocol import requests
from flowkit.protocol.requests import MARK, Welcome
from flowkit.protocol.session import Begin, End, Send, Sessions

TICK = 10.0
"""Seconds between looks for sessions that have expired."""

LAST_WORDS = 0.5
"""Seconds that clients get to receive what they are told at the end."""

_encode = msgspec.msgpack.Encoder().encode
_Key = tuple[bytes, int]


class ControlServer:
    """Serves the clients of one supervisor. `send` sends to a peer, and says False if it cannot."""

    def __init__(
        self,
        project: Operated,
        recorder: Recorder,
        token: str,
        clock: Clock,
        send: Callable[[bytes, list[bytes]], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._recorder = recorder
        self._clock = clock
        self._send = send
        record = recorder.run
        self._sessions = Sessions(token, Welcome(False, record.project, record.pid, __version__))
        self._desk = Desk(project, recorder, self._loop.create_future())
        self._tasks: dict[_Key, tuple[Command, asyncio.Task[None]]] = {}
        self._act_due = False
        self._closed = False
        self._ticking = self._loop.call_later(TICK, self._tick)

    @staticmethod
    def is_from_client(parts: list[bytes]) -> bool:
        """Whether a message on the control socket is a client's."""
        return len(parts) == 2 and parts[0] == MARK

    def received(self, peer: bytes, body: bytes) -> None:
        """A client has said something."""
        self._sessions.received(peer, body, self._clock())
        self._soon()

    def ended(self, report: dict[str, object]) -> None:
        """The project has ended; `report` as `up --report` writes it."""
        if not self._desk.over.done():
            self._recorder.ended(report)
            self._desk.over.set_result(report)

    async def close(self) -> bool:
        """Let commands say their last words, and end what is left. True if there are clients who
        should get the time to hear them."""
        if self._closed:
            return False
        tasks = [task for _, task in self._tasks.values()]
        if tasks and self._desk.over.done():
            # Those that wait for the end have it now; those that work on something have not.
            await asyncio.wait(tasks, timeout=LAST_WORDS)
        for (session, id), (_, task) in list(self._tasks.items()):
            text = "the project has ended before this was done"
            self._sessions.fail(session, id, requests.ENDED, text)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._act()
        self._closed = True
        self._ticking.cancel()
        self._desk.over.cancel()
        return len(self._sessions) > 0

    # -- inside --------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(TICK, self._tick)
        self._sessions.tick(self._clock())
        self._soon()

    def _soon(self) -> None:
        """Carry out what sessions want at the end of this turn of the loop."""
        if not self._act_due and not self._closed:
            self._act_due = True
            self._loop.call_soon(self._act)

    def _act(self) -> None:
        self._act_due = False
        if self._closed:
            return
        self._sessions.flush()
        actions = self._sessions.actions
        while actions:
            action = actions.popleft()
            if isinstance(action, Send):
                if not self._send(action.peer, [action.body]):
                    self._sessions.unreachable(action.peer)
            elif isinstance(action, Begin):
                self._begin(action)
            elif isinstance(action, End):
                self._end(action)

    def _begin(self, begin: Begin) -> None:
        command = COMMANDS.get(begin.verb)
        if command is None:
            guess = suggest(begin.verb, COMMANDS)
            text = f"there is no command '{begin.verb}'"
            hint = f"did you mean '{guess}'?" if guess else f"commands are {', '.join(COMMANDS)}"
            self._sessions.fail(begin.session, begin.id, requests.UNKNOWN_VERB, text, hint)
            self._soon()
            return
        try:
            arguments = requests.unpack(begin.arguments, command.arguments)
        except WireError as error:
            text = f"'{begin.verb}' does not take these arguments: {error.text}"
            self._sessions.fail(begin.session, begin.id, requests.BAD_ARGUMENTS, text)
            self._soon()
            return
        key = (begin.session, begin.id)
        task = self._loop.create_task(self._carry_out(key, command, arguments))
        self._tasks[key] = (command, task)

    def _end(self, end: End) -> None:
        found = self._tasks.get((end.session, end.id))
        if found is not None and not found[0].change:
            found[1].cancel()

    async def _carry_out(self, key: _Key, command: Command, arguments: object) -> None:
        reply = _Reply(self._sessions, key, self._soon)

        def heard(event: Event) -> None:
            reply.tell(event.text)

        if command.change:
            self._recorder.on_event.add(heard)
        try:
            result = await command.run(self._desk, arguments, reply)
            self._sessions.answer(*key, Raw(_encode(result)))
        except Denial as error:
            self._sessions.fail(*key, error.code, str(error), error.hint)
        except UnknownName as error:
            self._sessions.fail(*key, requests.NO_SUCH, str(error), error.hint)
        except FlowkitError as error:
            hint = getattr(error, "hint", "")
            self._sessions.fail(*key, requests.REFUSED, str(error), hint)
            if command.change:
                self._recorder.on_event.discard(heard)  # it is told that as the answer
                self._recorder.note(f"{command.verb}: {error}{f' ({hint})' if hint else ''}")
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self._sessions.fail(*key, requests.INTERNAL, f"a bug in flowkit: {text}")
            trace = traceback.format_exc().rstrip()
            self._recorder.note(f"a bug in flowkit: '{command.verb}' failed\n{trace}")
        finally:
            self._recorder.on_event.discard(heard)
            self._tasks.pop(key, None)
            self._soon()


class _Reply:
    """Where one command says what comes of it."""

    def __init__(self, sessions: Sessions, key: _Key, soon: Callable[[], None]) -> None:
        self._sessions = sessions
        self._key = key
        self._soon = soon

    def tell(self, text: str) -> None:
        self._sessions.tell(*self._key, text)
        self._soon()

    def opened(self, result: object, depth: int = 1000) -> None:
        self._sessions.opened(*self._key, Raw(_encode(result)), depth)
        self._soon()

    def offer(self, item: object) -> None:
        self._sessions.offer(*self._key, _encode(item))
        self._soon()
