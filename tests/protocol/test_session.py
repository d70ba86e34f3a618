"""Sessions of clients with the supervisor: schedules against both ends, without a socket."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from flowkit.protocol import requests, session
from flowkit.protocol.caller import PING_EVERY, Caller, Refusal
from flowkit.protocol.requests import (
    Answered,
    Ask,
    Bye,
    Failed,
    Hello,
    Items,
    Opened,
    Refused,
    Seen,
    Told,
    Welcome,
    encode,
    pack,
    to_client,
    unpack,
)
from flowkit.protocol.session import Begin, End, Send, Sessions

TOKEN = "secret"


def new_sessions() -> Sessions:
    return Sessions(TOKEN, Welcome(False, "trial", 1, "0"))


def name(number: int) -> bytes:
    return number.to_bytes(16)


class Server:
    """Sessions, and what they have asked for so far."""

    def __init__(self) -> None:
        self.sessions = new_sessions()
        self.now = 0.0
        self.sent: dict[bytes, list[object]] = {}
        self.begun: list[Begin] = []
        self.ended: list[End] = []

    def hear(self, peer: bytes, *messages: requests.FromClient) -> None:
        for message in messages:
            self.sessions.received(peer, encode(message), self.now)
        self.act()

    def act(self) -> None:
        self.sessions.flush()
        while self.sessions.actions:
            action = self.sessions.actions.popleft()
            if isinstance(action, Send):
                self.sent.setdefault(action.peer, []).append(to_client(action.body))
            elif isinstance(action, Begin):
                self.begun.append(action)
            else:
                self.ended.append(action)

    def said(self, peer: bytes) -> list[object]:
        """What was sent to a peer since this was asked last."""
        return self.sent.pop(peer, [])


@pytest.fixture
def server() -> Server:
    return Server()


def open_session(server: Server, peer: bytes = b"p", number: int = 1) -> bytes:
    server.hear(peer, Hello(TOKEN, name(number)))
    assert server.said(peer) == [Welcome(False, "trial", 1, "0")]
    return name(number)


# ---------------------------------------------------------------------------- being let in


@pytest.mark.parametrize("token", ["", "wrong", "secre", "secret ", "geheim\ud7ff"])
def test_a_wrong_token(server: Server, token: str) -> None:
    server.hear(b"p", Hello(token, name(1)), Ask(1, "down"))
    first, second = server.said(b"p")
    assert isinstance(first, Refused) and first.code == requests.UNAUTHORISED
    assert isinstance(second, Refused) and second.code == requests.NO_SESSION
    assert not server.begun and len(server.sessions) == 0
    assert server.sessions.unauthorised == 1


def test_another_version(server: Server) -> None:
    server.hear(b"p", Hello(TOKEN, name(1), version=99))
    (refused,) = server.said(b"p")
    assert isinstance(refused, Refused) and refused.code == requests.OTHER_VERSION
    assert "99" in refused.text


def test_nothing_is_done_without_a_session(server: Server) -> None:
    server.hear(b"p", Ask(1, "down"), Seen(3), Bye())
    assert [type(each) for each in server.said(b"p")] == [Refused, Refused]
    assert not server.begun


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"GET / HTTP/1.1",
        msgspec.msgpack.encode({"type": "Hello"}),
        msgspec.msgpack.encode({"type": "Unheard", "id": 1}),
        msgspec.msgpack.encode({"type": "Ask", "id": "one", "verb": "down"}),
        b"\x91" * 100_000,
        b"\x00" * (requests.LIMIT + 1),
    ],
    ids=range(8),
)
def test_garbage_has_no_effect(server: Server, body: bytes) -> None:
    open_session(server)
    for peer in (b"p", b"stranger"):
        server.sessions.received(peer, body, 0.0)
    server.act()
    assert server.sessions.garbage == 2
    assert not server.sent and not server.begun and len(server.sessions) == 1


def test_random_bytes_raise_nothing(server: Server) -> None:
    chance = random.Random(7)
    open_session(server)
    whole = encode(Ask(1, "down", pack({"timeout": 1.0})))
    for _ in range(2000):
        body = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        server.sessions.received(b"p", bytes(body), 0.0)
        server.act()


def test_strangers_are_answered_so_often_and_no_oftener(server: Server) -> None:
    """What they are told takes memory until they read it, and they may not."""
    for _ in range(1000):
        server.hear(b"p", Ask(1, "status"))
    assert len(server.said(b"p")) == session.REFUSALS
    server.now = 2.0
    server.hear(b"p", Ask(1, "status"))
    assert len(server.said(b"p")) == 1


def test_there_is_an_end_to_sessions(server: Server) -> None:
    for number in range(session.SESSIONS):
        server.now = number / session.SESSIONS
        open_session(server, b"%d" % number, number)
    server.hear(b"late", Hello(TOKEN, name(9999)))
    (refused,) = server.said(b"late")
    assert isinstance(refused, Refused) and refused.code == requests.TOO_MANY
    server.now = session.STALE + 0.5
    server.hear(b"late", Hello(TOKEN, name(9999)))
    assert isinstance(server.said(b"late")[0], Welcome), "the most silent one has made room"
    assert len(server.sessions) == session.SESSIONS


# ---------------------------------------------------------------------------- requests


def test_a_request_and_its_answer(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "scale", pack({"replicas": {"split": 4}})))
    assert server.begun == [Begin(mine, 1, "scale", pack({"replicas": {"split": 4}}))]
    server.sessions.tell(mine, 1, "split.2 is ready")
    server.act()
    server.sessions.tell(mine, 1, "never heard: the answer is there first")
    server.sessions.answer(mine, 1, pack("done"))
    server.sessions.tell(mine, 1, "too late")
    server.sessions.fail(mine, 1, "refused", "too late")
    server.act()
    assert server.said(b"p") == [Told(1, 1, "split.2 is ready"), Answered(2, 1, pack("done"))]


def test_a_repeated_request_is_carried_out_once(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "restart"), Ask(1, "restart"))
    server.sessions.answer(mine, 1, pack(None))
    server.hear(b"p", Ask(1, "restart"))
    assert len(server.begun) == 1
    assert server.said(b"p") == [Answered(1, 1, pack(None))]


def test_a_request_after_a_gap_is_not_carried_out(server: Server) -> None:
    open_session(server)
    server.hear(b"p", Ask(2, "down"))
    (refused,) = server.said(b"p")
    assert isinstance(refused, Refused) and refused.code == requests.NO_SESSION
    assert not server.begun


def test_two_clients_do_not_hold_up_each_other(server: Server) -> None:
    one, two = open_session(server, b"one", 1), open_session(server, b"two", 2)
    server.hear(b"one", Ask(1, "scale"))
    server.hear(b"two", Ask(1, "status"))
    server.sessions.answer(two, 1, pack("fine"))
    server.act()
    assert server.said(b"two") == [Answered(1, 1, pack("fine"))]
    assert server.said(b"one") == []
    server.sessions.fail(one, 1, "refused", "no")
    server.act()
    assert server.said(b"one") == [Failed(1, 1, "refused", "no")]


def test_a_client_that_asks_and_never_reads(server: Server) -> None:
    mine = open_session(server)
    for id in range(1, session.WINDOW + session.REQUESTS + 1):
        server.hear(b"p", Ask(id, "status"))
        server.sessions.answer(mine, id, pack("x"))
        server.act()
    assert len(server.said(b"p")) == session.WINDOW
    server.hear(b"p", Ask(session.WINDOW + session.REQUESTS + 1, "status"))
    (refused,) = server.said(b"p")
    assert isinstance(refused, Refused) and refused.code == requests.TOO_MANY
    assert len(server.sessions) == 0, "one that does not keep to the rules is dropped"


def test_pings_of_a_client_that_does_not_read(server: Server) -> None:
    open_session(server)
    for _ in range(1000):
        server.hear(b"p", Seen(0, ping=True))
    assert server.said(b"p") == [requests.Pong(0, 0)]
    server.now = 1.0
    server.hear(b"p", Seen(0, ping=True), Seen(0, ping=True))
    assert server.said(b"p") == [requests.Pong(0, 0)]


# ---------------------------------------------------------------------------- streams


def test_a_slow_reader_is_told_what_it_has_missed(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "logs"))
    server.sessions.opened(mine, 1, pack("marks"), depth=10)
    total = session.WINDOW + 50
    for number in range(total):
        server.sessions.offer(mine, 1, msgspec.msgpack.encode(number))
        server.act()
    first, *items = server.said(b"p")
    assert first == Opened(1, 1, pack("marks"))
    assert len(items) == session.WINDOW - 1
    server.hear(b"p", Seen(session.WINDOW))
    (late,) = server.said(b"p")
    assert isinstance(late, Items)
    assert late.skipped == total - (session.WINDOW - 1) - 10
    assert [unpack(each, int) for each in late.items] == list(range(total - 10, total))


def test_large_items_are_limited_by_their_size(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "tap"))
    server.sessions.opened(mine, 1, pack(None), depth=1_000_000)
    item = pack(b"x" * 100_000)
    for _ in range(1000):
        server.sessions.offer(mine, 1, bytes(item))
        server.act()
    sent = sum(len(encode(each)) for each in server.said(b"p"))  # type: ignore[arg-type]
    assert sent <= session.WINDOW_BYTES + len(item) + 100
    (one,) = server.sessions._sessions.values()
    assert one.requests[1].size <= session.QUEUE_BYTES
    assert one.requests[1].skipped > 900


def test_a_stream_does_not_hold_up_answers(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "logs"), Ask(2, "status"))
    server.sessions.opened(mine, 1, pack(None), depth=1000)
    for _ in range(1000):
        server.sessions.offer(mine, 1, bytes(pack("x" * 2000)))
    server.sessions.answer(mine, 2, pack("fine"))
    server.act()
    kinds = [type(each) for each in server.said(b"p")]
    assert Answered in kinds[:3]


def test_who_cancels_hears_nothing_more(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "logs"))
    server.sessions.opened(mine, 1, pack(None), 10)
    server.act()
    server.said(b"p")
    server.hear(b"p", requests.Cancel(1), requests.Cancel(1), requests.Cancel(77))
    assert server.ended == [End(mine, 1)]
    server.sessions.offer(mine, 1, b"\x01")
    server.sessions.answer(mine, 1, pack(None))
    server.act()
    assert server.said(b"p") == []


# ---------------------------------------------------------------------------- life


def test_sessions_expire(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "logs"))
    server.now = session.EXPIRES - 1
    server.sessions.tick(server.now)
    assert len(server.sessions) == 1
    server.hear(b"p", Seen(0))
    server.now += session.EXPIRES - 1
    server.sessions.tick(server.now)
    assert len(server.sessions) == 1
    server.now += 1
    server.sessions.tick(server.now)
    server.act()
    assert len(server.sessions) == 0 and server.ended == [End(mine, 1)]
    server.sessions.offer(mine, 1, b"\x01")  # nobody is there: no harm
    server.hear(b"p", Seen(0))
    (refused,) = server.said(b"p")
    assert isinstance(refused, Refused) and refused.code == requests.NO_SESSION


def test_goodbye_ends_everything_at_once(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "logs"), Ask(2, "scale"), Bye())
    assert server.ended == [End(mine, 1), End(mine, 2)]
    assert len(server.sessions) == 0


def test_an_answer_waits_for_a_client_whose_line_broke(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "scale"))
    server.sessions.unreachable(b"p")
    server.sessions.answer(mine, 1, pack("done"))
    server.act()
    assert server.said(b"p") == []
    server.hear(b"q", Hello(TOKEN, mine))
    assert server.said(b"q") == [Welcome(True, "trial", 1, "0"), Answered(1, 1, pack("done"))]
    # It was lost again: who has not seen it gets it again.
    server.hear(b"r", Hello(TOKEN, mine, seen=0))
    assert server.said(b"r")[1:] == [Answered(1, 1, pack("done"))]
    server.hear(b"s", Hello(TOKEN, mine, seen=1))
    assert server.said(b"s") == [Welcome(True, "trial", 1, "0")]
    assert len(server.begun) == 1


def test_a_client_that_greets_and_greets_is_not_repeated_everything(server: Server) -> None:
    mine = open_session(server)
    server.hear(b"p", Ask(1, "status"))
    server.sessions.answer(mine, 1, pack("x" * 100_000))
    server.act()
    server.said(b"p")
    for _ in range(100):
        server.hear(b"p", Hello(TOKEN, mine))
    assert server.said(b"p") == [Welcome(True, "trial", 1, "0")] * session.REFUSALS
    server.now = 1.5
    server.hear(b"p", Hello(TOKEN, mine))
    assert len(server.said(b"p")) == 2


# ---------------------------------------------------------------------------- both ends


class Line:
    """What is under way between a client and the supervisor. It may lose things, and be made
    anew."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.names = count(number * 1000)
        self.caller = Caller(TOKEN, lambda: name(next(self.names)), world.now)
        self.peer = b""
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.asked: dict[int, str] = {}
        self.last_words: dict[int, Answered | Failed] = {}
        self.heard: dict[int, list[int]] = {}
        self.skipped: dict[int, int] = {}
        self.reads = True
        self.connect()

    def connect(self) -> None:
        self.peer = b"%d-%d" % (self.number, next(self.world.peers))
        self.world.lines[self.peer] = self
        self.up.clear()
        self.down.clear()

    def ask(self, verb: str) -> None:
        id = self.caller.ask(verb, None, self.world.now)
        self.asked[id] = verb

    def step(self) -> None:
        self.up.extend(self.caller.outgoing)
        self.caller.outgoing.clear()
        if self.up:
            self.world.sessions.received(self.peer, self.up.popleft(), self.world.now)
            self.world.act()
        if self.down and self.reads:
            for word in self.caller.received(self.down.popleft(), self.world.now):
                assert not isinstance(word, Refusal), word
                self.take(word)

    def take(self, word: object) -> None:
        if isinstance(word, Items):
            heard = self.heard.setdefault(word.id, [])
            self.skipped[word.id] = self.skipped.get(word.id, 0) + word.skipped
            heard.extend(unpack(each, int) for each in word.items)
        elif isinstance(word, Answered | Failed):
            assert word.id not in self.last_words, "two last words"
            self.last_words[word.id] = word


class World:
    """A supervisor, clients, and chance."""

    def __init__(self, seed: int, clients: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.sessions = new_sessions()
        self.peers = count(1)
        self.lines: dict[bytes, Line] = {}
        self.begun: dict[tuple[bytes, int], str] = {}
        self.open: dict[tuple[bytes, int], int] = {}
        self.clients = [Line(self, number) for number in range(1, clients + 1)]

    def act(self) -> None:
        self.sessions.flush()
        while self.sessions.actions:
            action = self.sessions.actions.popleft()
            if isinstance(action, Send):
                line = self.lines.get(action.peer)
                if line is None or line.peer != action.peer:
                    self.sessions.unreachable(action.peer)
                else:
                    line.down.append(action.body)
            elif isinstance(action, Begin):
                key = (action.session, action.id)
                assert key not in self.begun, "carried out twice"
                self.begun[key] = action.verb
                self.open[key] = 0
                if action.verb == "stream":
                    self.sessions.opened(*key, pack(None), depth=5)
        for one in self.sessions._sessions.values():
            assert len(one.unseen) <= session.WINDOW
            assert len(one.requests) <= session.REQUESTS
            assert all(len(each.items) <= max(5, each.depth) for each in one.requests.values())

    def work(self) -> None:
        """Something comes of some request."""
        if not self.open:
            return
        key = self.chance.choice(list(self.open))
        if self.begun[key] == "stream" and self.chance.random() < 0.9:
            self.sessions.offer(*key, msgspec.msgpack.encode(self.open[key]))
            self.open[key] += 1
        elif self.chance.random() < 0.3:
            self.sessions.tell(*key, "a word")
        else:
            total = self.open.pop(key)
            self.sessions.answer(*key, pack(total))
        self.act()

    def settle(self) -> None:
        """No more harm: everything comes to its end."""
        for client in self.clients:
            client.reads = True
        for _ in range(40):
            for _ in range(300):
                for client in self.clients:
                    client.step()
                self.work()
            self.now += PING_EVERY + 1
            for client in self.clients:
                client.caller.tick(self.now)
            self.sessions.tick(self.now)
            self.act()


@pytest.mark.parametrize("seed", range(25))
def test_whatever_a_line_loses(seed: int) -> None:
    """Every request is carried out once and gets one last word; a stream is complete but for what
    was skipped, which is counted."""
    world = World(seed, clients=3)
    chance = world.chance
    for _ in range(1500):
        client = chance.choice(world.clients)
        dice = chance.random()
        if dice < 0.05 and len(client.caller.under_way) < 20:
            client.ask(chance.choice(["stream", "change"]))
        elif dice < 0.5:
            client.step()
        elif dice < 0.85:
            world.work()
        elif dice < 0.87 and client.up:
            client.up.popleft()
        elif dice < 0.89 and client.down:
            client.down.popleft()
        elif dice < 0.90:
            client.connect()
        elif dice < 0.92:
            client.reads = not client.reads
        else:
            world.now += chance.random()
            client.caller.tick(world.now)
    world.settle()
    for client in world.clients:
        assert client.caller.under_way == set()
        assert set(client.last_words) == set(client.asked)
        for id, word in client.last_words.items():
            assert isinstance(word, Answered), "no session was silent for long"
            heard = client.heard.get(id, [])
            assert heard == sorted(set(heard)), "in order, none twice"
            total = unpack(word.result, int)
            assert len(heard) + client.skipped.get(id, 0) == total
    count_asked = sum(len(client.asked) for client in world.clients)
    assert len(world.begun) == count_asked > 20


def _forgets_early(patch: pytest.MonkeyPatch) -> None:
    """What is sent is not kept until it is seen."""
    say = Sessions._say

    def forgetful(self: Sessions, one: Any, said: Any) -> None:
        say(self, one, said)
        one.see(one.number)

    patch.setattr(Sessions, "_say", forgetful)


def _never_resumes(patch: pytest.MonkeyPatch) -> None:
    """A client does not care what it has missed."""
    patch.setattr(Caller, "_resume", lambda self, now: None)


def _does_not_count(patch: pytest.MonkeyPatch) -> None:
    """What is left out is not told."""
    pack = session._Request._pack

    def silent(self: Any) -> Items:
        items = pack(self)
        items.skipped = 0
        return items

    patch.setattr(session._Request, "_pack", silent)


def _carries_out_again(patch: pytest.MonkeyPatch) -> None:
    """A request that comes again is taken for a new one."""
    heard = Sessions._heard

    def forgetful(self: Sessions, one: Any, message: Any, now: float) -> None:
        if isinstance(message, Ask) and message.id <= one.last_id:
            one.last_id = message.id - 1
        heard(self, one, message, now)

    patch.setattr(Sessions, "_heard", forgetful)


def _believes_a_repetition(patch: pytest.MonkeyPatch) -> None:
    """A client takes what is sent again for news; and everything unseen is sent again."""
    received = Caller.received

    def gullible(self: Caller, body: bytes, now: float) -> Any:
        message = to_client(body)
        if isinstance(message, Items) and message.id in self._asked:
            if message.number <= self._seen:
                return [message]
        return received(self, body, now)

    patch.setattr(Caller, "received", gullible)
    patch.setattr(session._Session, "see", lambda self, number: None)
    patch.setattr(session._Session, "open", lambda self: True)
    patch.setattr(session, "WINDOW", 100_000)


@pytest.mark.parametrize(
    "mutate",
    [
        _forgets_early,
        _never_resumes,
        _does_not_count,
        _carries_out_again,
        _believes_a_repetition,
    ],
)
def test_planted_bugs_are_found(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    for seed in range(25):
        try:
            test_whatever_a_line_loses(seed)
        except AssertionError:
            return
    pytest.fail("no schedule has found it")


def test_a_client_that_was_silent_for_too_long() -> None:
    """What was under way has failed, with a code of its own; the next request works."""
    world = World(1, clients=1)
    (client,) = world.clients
    client.ask("change")
    for _ in range(5):
        client.step()
    world.now += session.EXPIRES + 1
    world.sessions.tick(world.now)
    world.act()
    client.caller.tick(world.now)
    for _ in range(10):
        client.step()
    (word,) = client.last_words.values()
    assert isinstance(word, Failed) and word.code == requests.LOST
    world.open.clear()
    client.ask("change")
    world.settle()
    assert isinstance(client.last_words[2], Answered)


def test_a_client_that_was_idle_begins_a_new_session() -> None:
    world = World(1, clients=1)
    (client,) = world.clients
    client.ask("change")
    world.settle()
    world.now += session.EXPIRES + 1
    world.sessions.tick(world.now)
    client.ask("change")
    world.settle()
    assert isinstance(client.last_words[2], Answered)
    assert len({key[0] for key in world.begun}) == 2


def test_the_supervisor_is_gone() -> None:
    world = World(1, clients=1)
    (client,) = world.clients
    client.ask("change")
    words = client.caller.lost(requests.ENDED, "it has ended")
    assert words == [Failed(0, 1, requests.ENDED, "it has ended", "")]
    assert client.caller.under_way == set()
    assert client.caller.lost(requests.ENDED, "it has ended") == []


def test_raw_is_kept_as_it_is() -> None:
    """The supervisor does not look into items: it cannot fail on them."""
    server = Server()
    mine = open_session(server)
    server.hear(b"p", Ask(1, "tap"))
    server.sessions.opened(mine, 1, Raw(b"\xc0"), 10)
    server.sessions.offer(mine, 1, b"\x93\x01\x02\x03")
    server.act()
    items = server.said(b"p")[1]
    assert isinstance(items, Items) and unpack(items.items[0], list) == [1, 2, 3]
