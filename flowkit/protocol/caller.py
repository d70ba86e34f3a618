"""The client's end of a session, without the socket: the same for every kind of client.

`ask` and `cancel` say what is wanted; `received` is told what the supervisor says and returns the
words of it that are news; `tick` keeps the session alive. Whatever they put into `outgoing` is to
be sent. `lost` ends what is under way when the supervisor is gone.

The session is resumed if the line has lost something: messages are numbered, and a gap, or a word
that the session is not known on this line, is answered with `Hello` and with every request that has
not had its last word, which the supervisor ignores if it has them. If the supervisor has
forgotten the session (this client was silent for a minute), what was under way has failed with the
code ``lost``, and a new session is begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

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
    Opened,
    Pong,
    Refused,
    Seen,
    Told,
    Welcome,
)
from flowkit.protocol.session import REQUESTS, WINDOW

PING_EVERY = 5.0
"""Seconds of silence after which the client speaks, so that its session does not expire."""

GREET_EVERY = 2.0
"""Seconds after which a greeting that was not answered is repeated."""

IDLE = 30.0
"""Seconds after which an idle session is not trusted to be there: a new one is begun."""

SEEN_EVERY = WINDOW // 4
"""Messages after which their receipt is told, so that the window never closes on a reader."""

SEEN_BYTES = 1 << 18
"""Bytes after which it is."""

Word = Opened | Told | Items | Answered | Failed
"""What comes of a request. `Answered` and `Failed` are the last of it."""


@dataclass(slots=True)
class Refusal:
    """The supervisor does not want this client: `code` and `text` say why. Nothing more comes."""

    code: str
    text: str


class Caller:
    """A session with the supervisor whose token is `token`. `new_name` makes the names of
    sessions: 16 random bytes."""

    def __init__(self, token: str, new_name: Callable[[], bytes], now: float) -> None:
        self.outgoing: deque[bytes] = deque()
        self.welcome: Welcome | None = None
        """What the supervisor said of itself."""
        self._token = token
        self._new_name = new_name
        self._id = 0
        self._asked: dict[int, Ask] = {}
        """Requests whose last word is not known."""
        self._heard_at = now
        self._spoke_at = now
        self._name = b""
        self._seen = 0
        self._told = 0
        """How far the supervisor knows that we have read."""
        self._told_bytes = 0
        self._attempt = 0
        self._greeting = True
        """Whether the answer to the last `Hello` has not come. What comes before it is of another
        session, or will be sent again."""
        self._resuming = False
        self._begin(now)

    @property
    def under_way(self) -> set[int]:
        """The requests that have not had their last word."""
        return set(self._asked)

    # -- what the client wants -----------------------------------------------------------------

    def ask(self, verb: str, arguments: object, now: float) -> int:
        """Have a command carried out; returns the id under which words of it come."""
        if len(self._asked) >= REQUESTS:
            raise ValueError(f"at most {REQUESTS} requests at a time")
        if not self._asked and now - self._heard_at > IDLE:
            self._say(Bye(), now)
            self._begin(now)
        self._id += 1
        ask = self._asked[self._id] = Ask(self._id, verb, requests.pack(arguments))
        self._say(ask, now)
        return self._id

    def cancel(self, id: int, now: float) -> None:
        """Nothing more is wanted of a request; no word of it comes any more."""
        if self._asked.pop(id, None) is not None:
            self._say(Cancel(id), now)

    def leave(self, now: float) -> None:
        """End the session."""
        self._asked.clear()
        self._say(Bye(), now)

    # -- what happens --------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Speak if it is time to: call it every second or so while something is under way."""
        if self._greeting:
            if now - self._spoke_at >= GREET_EVERY:
                self._greet(now)  # the last one may have been lost
        elif now - max(self._spoke_at, self._heard_at) >= PING_EVERY:
            self._say(Seen(self._seen, ping=True), now)
            self._told = self._seen
            self._told_bytes = 0

    def received(self, body: bytes, now: float) -> list[Word | Refusal]:
        """The supervisor has said something; raises WireError if it is nothing it could say."""
        message = requests.to_client(body)
        self._heard_at = now
        if isinstance(message, Welcome):
            if message.attempt != self._attempt:
                return []
            self.welcome = message
            self._greeting = False
            resuming, self._resuming = self._resuming, False
            if resuming and not message.resumed:
                # What was under way is gone with the session that it was in.
                return self._restart()
            if resuming:
                for ask in self._asked.values():
                    self._say(ask, now)
            return []
        if isinstance(message, Refused):
            if message.code == requests.NO_SESSION:
                self._resume(now)
                return []
            return [Refusal(message.code, message.text)]
        if self._greeting:
            return []
        if isinstance(message, Pong):
            if message.number > self._seen or any(id > message.asked for id in self._asked):
                self._resume(now)
            return []
        if message.number <= self._seen:
            return []  # sent again
        if message.number > self._seen + 1:
            self._resume(now)
            return []
        self._seen = message.number
        self._told_bytes += len(body)
        if self._seen - self._told >= SEEN_EVERY or self._told_bytes >= SEEN_BYTES:
            self._say(Seen(self._seen), now)
            self._told = self._seen
            self._told_bytes = 0
        if message.id not in self._asked:
            if isinstance(message, Items):
                self._say(Cancel(message.id), now)  # the first was lost
            return []
        if isinstance(message, Answered | Failed):
            del self._asked[message.id]
        return [message]

    def lost(self, code: str, text: str, hint: str = "") -> list[Word]:
        """The supervisor is gone: the last words of everything that was under way."""
        words: list[Word] = [Failed(0, id, code, text, hint) for id in self._asked]
        self._asked.clear()
        return words

    # -- inside --------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        """Open a session. `Hello` may be followed by requests at once."""
        self._name = self._new_name()
        self._seen = self._told = self._told_bytes = 0
        self._resuming = False
        self._greet(now)

    def _resume(self, now: float) -> None:
        if not self._greeting:
            self._resuming = True
            self._greet(now)

    def _greet(self, now: float) -> None:
        self._attempt += 1
        self._greeting = True
        first = min(self._asked, default=self._id + 1)
        hello = Hello(self._token, self._name, self._seen, first - 1, self._attempt)
        self._say(hello, now)

    def _restart(self) -> list[Word | Refusal]:
        """The session is a new one under the old name: nothing was heard in it."""
        self._seen = self._told = self._told_bytes = 0
        text = "the project has forgotten this client, which was silent for too long"
        hint = "whether it was done is not known: flowkit ps shows how things are"
        return list(self.lost(requests.LOST, text, hint))

    def _say(self, message: FromClient, now: float) -> None:
        self._spoke_at = now
        self.outgoing.append(requests.encode(message))
