"""The sessions of clients with the supervisor, without the socket.

Told of what arrives, it answers with actions: `Send` a body to a peer, `Begin` a request, `End` one
that is no longer wanted. The supervisor reports what comes of requests with `opened`, `tell`,
`offer`, `answer` and `fail`. What is to be said is put together in `flush`: call it once after a
turn's events, then carry out the `actions`.

No client can make the supervisor's memory grow, or keep it from answering others:

* What a client has not said to have `Seen` is at most `WINDOW` messages and `WINDOW_BYTES`; the
  rest waits here, not in the socket, and is kept for a line that breaks.
* A request waits with one answer, the last word on its progress, and a queue of items whose depth
  it chose. When the queue is full its oldest items are left out, and the client is told how many.
* A session has at most `REQUESTS` requests; there are at most `SESSIONS` sessions; one that has
  not been heard of for `EXPIRES` seconds is over.

A request is carried out once, however often the client repeats it: ids have no gaps, and one that
is not above the last is ignored. Its answer is sent again, to a client that comes back over
another line or has missed something, until it is seen.
"""

from __future__ import annotations

import hmac
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import Raw

from flowkit.errors import WireError
from flowkit.protocol import requests
from flowkit.protocol.requests import (
    Answered,
    Ask,
    Bye,
    Cancel,
    Failed,
    FromClient,
    Hello,
    Items,
    Numbered,
    Opened,
    Pong,
    Refused,
    Seen,
    Told,
    Welcome,
)

WINDOW = 128
WINDOW_BYTES = 1 << 20
"""What may be under way to one client. A megabyte is a screenful of log lines many times over."""

QUEUE_BYTES = 1 << 20
"""What the items of one request may take while they wait."""

PACK_BYTES = 1 << 16
"""Items are sent together up to this size, so that a fast stream costs few messages."""

REQUESTS = 32
SESSIONS = 512
NAME = 16
"""Bytes of a session's name."""

EXPIRES = 60.0
"""Seconds of silence after which a session is over. A client that waits speaks every five."""

STALE = 30.0
"""Seconds of silence after which a session may be ended to make room for a new one."""

AGAIN = 1.0
"""Seconds between two greetings on one line that make the supervisor repeat what is unseen, and
between two pings that it answers."""

REFUSALS = 64
"""How many strangers are answered in a second; what they are told takes memory until read."""


class Send(NamedTuple):
    """Send `body` to `peer`; report with `unreachable` if that is impossible."""

    peer: bytes
    body: bytes


class Begin(NamedTuple):
    """Carry out a request, and report what comes of it under `session` and `id`."""

    session: bytes
    id: int
    verb: str
    arguments: Raw


class End(NamedTuple):
    """Nobody wants to hear of this request any more: stop what it yields."""

    session: bytes
    id: int


Action = Send | Begin | End


@dataclass(slots=True)
class _Request:
    """One request, and what is to be said of it."""

    id: int
    depth: int = 0
    opened: Raw | None = None
    told: str | None = None
    items: deque[bytes] = field(default_factory=deque)
    size: int = 0
    skipped: int = 0
    final: Answered | Failed | None = None

    def next(self) -> Numbered | None:
        """What is to be said next; its number is still missing."""
        if self.opened is not None:
            said, self.opened = Opened(0, self.id, self.opened), None
            return said
        if self.items or self.skipped:
            return self._pack()
        if self.told is not None and self.final is None:
            told, self.told = Told(0, self.id, self.told), None
            return told
        return self.final

    def _pack(self) -> Items:
        pack: list[Raw] = []
        room = PACK_BYTES
        while self.items and (not pack or len(self.items[0]) <= room):
            item = self.items.popleft()
            room -= len(item)
            self.size -= len(item)
            pack.append(Raw(item))
        skipped, self.skipped = self.skipped, 0
        return Items(0, self.id, pack, skipped)


@dataclass(slots=True)
class _Session:
    name: bytes
    peer: bytes | None
    heard_at: float
    greeted_at: float
    number: int = 0
    """Of the last message that was sent."""
    unseen: deque[tuple[int, bytes]] = field(default_factory=deque)
    unseen_bytes: int = 0
    pong_at: float | None = None
    last_id: int = 0
    requests: dict[int, _Request] = field(default_factory=dict)
    waiting: dict[int, None] = field(default_factory=dict)
    """Requests that have something to say, whose turn it is first."""

    def open(self) -> bool:
        """Whether something may be sent now."""
        return len(self.unseen) < WINDOW and self.unseen_bytes < WINDOW_BYTES

    def see(self, number: int) -> None:
        while self.unseen and self.unseen[0][0] <= number:
            self.unseen_bytes -= len(self.unseen.popleft()[1])


class Sessions:
    """The sessions of one supervisor. `token` is what a client must show; `welcome` is said to
    those that do."""

    def __init__(self, token: str, welcome: Welcome) -> None:
        self.actions: deque[Action] = deque()
        self._token = token.encode()
        self._welcome = welcome
        self._sessions: dict[bytes, _Session] = {}
        self._by_peer: dict[bytes, _Session] = {}
        self._dirty: dict[bytes, None] = {}
        """Sessions that may have something to say."""
        self._refused: deque[float] = deque()
        self.garbage = 0
        """Messages that were none."""
        self.unauthorised = 0
        """Attempts with a wrong token."""

    def __len__(self) -> int:
        return len(self._sessions)

    # -- what happens --------------------------------------------------------------------------

    def received(self, peer: bytes, body: bytes, now: float) -> None:
        """A client has said something."""
        try:
            message = requests.from_client(body)
        except WireError:
            self.garbage += 1
            return
        if isinstance(message, Hello):
            self._hello(peer, message, now)
            return
        session = self._by_peer.get(peer)
        if session is None:
            if not isinstance(message, Bye):
                self._refuse(peer, requests.NO_SESSION, "say hello first", now)
            return
        session.heard_at = now
        self._heard(session, message, now)
        self._dirty[session.name] = None

    def unreachable(self, peer: bytes) -> None:
        """Nothing can be sent to `peer` any more. Its session waits for it to come back."""
        session = self._by_peer.pop(peer, None)
        if session is not None:
            session.peer = None

    def tick(self, now: float) -> None:
        """End the sessions that were silent for too long. Call it every few seconds."""
        for session in list(self._sessions.values()):
            if now - session.heard_at >= EXPIRES:
                self._end(session)

    def flush(self) -> None:
        """Say what there is to say, as far as clients have room for it."""
        dirty, self._dirty = self._dirty, {}
        for name in dirty:
            session = self._sessions.get(name)
            if session is not None:
                self._flush(session)

    # -- what comes of requests ----------------------------------------------------------------

    def opened(self, name: bytes, id: int, result: Raw, depth: int) -> None:
        """The request yields items from now on; at most `depth` of them wait for its client."""
        request = self._find(name, id)
        if request is not None:
            request.depth = max(1, depth)
            request.opened = result
            self._speak(name, id)

    def tell(self, name: bytes, id: int, text: str) -> None:
        """How far a request has come. What was told before and is still waiting is replaced."""
        request = self._find(name, id)
        if request is not None:
            request.told = text
            self._speak(name, id)

    def offer(self, name: bytes, id: int, item: bytes) -> None:
        """The request yields `item`, encoded."""
        request = self._find(name, id)
        if request is None:
            return
        request.items.append(item)
        request.size += len(item)
        while len(request.items) > request.depth or (
            request.size > QUEUE_BYTES and len(request.items) > 1
        ):
            request.size -= len(request.items.popleft())
            request.skipped += 1
        self._speak(name, id)

    def answer(self, name: bytes, id: int, result: Raw) -> None:
        """The request is done."""
        request = self._find(name, id)
        if request is not None:
            request.final = Answered(0, id, result)
            self._speak(name, id)

    def fail(self, name: bytes, id: int, code: str, text: str, hint: str = "") -> None:
        """The request cannot be done, or was not."""
        request = self._find(name, id)
        if request is not None:
            request.final = Failed(0, id, code, text, hint)
            self._speak(name, id)

    # -- inside --------------------------------------------------------------------------------

    def _hello(self, peer: bytes, hello: Hello, now: float) -> None:
        if hello.version != requests.VERSION:
            text = (
                f"the project speaks version {requests.VERSION} with its clients, this client "
                f"version {hello.version}: use flowkit {self._welcome.version}, which started it"
            )
            self._refuse(peer, requests.OTHER_VERSION, text, now)
            return
        if not hmac.compare_digest(hello.token.encode("utf-8", "replace"), self._token):
            self.unauthorised += 1
            self._refuse(peer, requests.UNAUTHORISED, "this token is not that of the run", now)
            return
        if len(hello.session) != NAME:
            self.garbage += 1
            return
        session = self._sessions.get(hello.session)
        before = self._by_peer.get(peer)
        if before is not None and before is not session:
            self._end(before)  # one line has one session
        if session is None and not self._make_room(now):
            text = f"{SESSIONS} clients are connected already"
            self._refuse(peer, requests.TOO_MANY, text, now)
            return
        resumed = session is not None
        if session is None:
            session = _Session(hello.session, peer, now, now, last_id=hello.asked)
            self._sessions[session.name] = session
        else:
            # What the client has given up it does not repeat.
            session.last_id = max(session.last_id, hello.asked)
            if session.peer == peer and now - session.greeted_at < AGAIN:
                self._greet(peer, resumed, hello.attempt, now)
                return
            if session.peer is not None:
                self._by_peer.pop(session.peer, None)
            session.greeted_at = now
        session.peer, session.heard_at = peer, now
        self._by_peer[peer] = session
        self._greet(peer, resumed, hello.attempt)
        session.see(hello.seen)
        for _, body in session.unseen:
            self.actions.append(Send(peer, body))
        self._dirty[session.name] = None

    def _heard(self, session: _Session, message: FromClient, now: float) -> None:
        if isinstance(message, Ask):
            if message.id <= session.last_id:
                return  # it was carried out, or is being
            if message.id > session.last_id + 1:
                assert session.peer is not None
                self._refuse(session.peer, requests.NO_SESSION, "a request was lost", now)
                return
            if len(session.requests) >= REQUESTS:
                assert session.peer is not None
                text = f"{REQUESTS} requests are under way in one session"
                self._refuse(session.peer, requests.TOO_MANY, text, now)
                self._end(session)
                return
            session.last_id = message.id
            session.requests[message.id] = _Request(message.id)
            begin = Begin(session.name, message.id, message.verb, message.arguments)
            self.actions.append(begin)
        elif isinstance(message, Cancel):
            if session.requests.pop(message.id, None) is not None:
                session.waiting.pop(message.id, None)
                self.actions.append(End(session.name, message.id))
        elif isinstance(message, Seen):
            session.see(message.number)
            if message.ping and (session.pong_at is None or now - session.pong_at >= AGAIN):
                # Not within the window, which may be closed because what was in it is lost.
                assert session.peer is not None
                session.pong_at = now
                pong = Pong(session.number, session.last_id)
                self.actions.append(Send(session.peer, requests.encode(pong)))
        else:
            self._end(session)

    def _make_room(self, now: float) -> bool:
        if len(self._sessions) < SESSIONS:
            return True
        silent = min(self._sessions.values(), key=lambda session: session.heard_at)
        if now - silent.heard_at < STALE:
            return False
        self._end(silent)
        return True

    def _end(self, session: _Session) -> None:
        self._sessions.pop(session.name, None)
        if session.peer is not None:
            self._by_peer.pop(session.peer, None)
        for id in session.requests:
            self.actions.append(End(session.name, id))
        session.requests.clear()
        session.waiting.clear()

    def _find(self, name: bytes, id: int) -> _Request | None:
        """The request, if its client still wants to hear of it and has not been answered."""
        session = self._sessions.get(name)
        request = session.requests.get(id) if session is not None else None
        return request if request is not None and request.final is None else None

    def _speak(self, name: bytes, id: int) -> None:
        self._sessions[name].waiting[id] = None
        self._dirty[name] = None

    def _flush(self, session: _Session) -> None:
        """Say what may be said, request by request in turn."""
        while session.peer is not None and session.open():
            if not session.waiting:
                return
            id = next(iter(session.waiting))
            del session.waiting[id]
            request = session.requests[id]
            said = request.next()
            if said is None:
                continue
            self._say(session, said)
            if isinstance(said, Answered | Failed):
                del session.requests[id]
            else:
                session.waiting[id] = None

    def _say(self, session: _Session, said: Numbered) -> None:
        assert session.peer is not None
        session.number += 1
        said.number = session.number
        body = requests.encode(said)
        session.unseen.append((session.number, body))
        session.unseen_bytes += len(body)
        self.actions.append(Send(session.peer, body))

    def _greet(self, peer: bytes, resumed: bool, attempt: int, now: float | None = None) -> None:
        """Say welcome; with `now` only if that was not said too often."""
        if now is None or self._may_answer(now):
            welcome = self._welcome
            said = Welcome(resumed, welcome.project, welcome.pid, welcome.version, attempt)
            self.actions.append(Send(peer, requests.encode(said)))

    def _refuse(self, peer: bytes, code: str, text: str, now: float) -> None:
        if self._may_answer(now):
            self.actions.append(Send(peer, requests.encode(Refused(code, text))))

    def _may_answer(self, now: float) -> bool:
        """Whether one more that is outside of all windows may be answered now."""
        while self._refused and now - self._refused[0] > 1.0:
            self._refused.popleft()
        if len(self._refused) >= REFUSALS:
            return False
        self._refused.append(now)
        return True
