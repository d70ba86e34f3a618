"""Endpoints against plain pyzmq: every pair of sockets, both ways, and what goes wrong there.

The peers run in threads and use nothing of flowkit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from flowkit import In, Node, Out
from flowkit.clock import monotonic
from flowkit.connectors.proxy import PubSubProxy
from flowkit.errors import TransportError
from flowkit.message import Meta
from flowkit.protocol.engine import Engine
from flowkit.protocol.events import Identity
from flowkit.protocol.foreign import ForeignSender
from flowkit.protocol.ledger import ROW, Books
from flowkit.protocol.sockets import ENVELOPE, to_header
from flowkit.report import Report
from flowkit.runtime import foreign as foreign_module
from flowkit.runtime import runner
from flowkit.runtime.foreign import LINGER, Endpoint, Host
from flowkit.topology.plan import EndpointPlan, foreign_links
from flowkit.transport.foreign import ForeignSocket
from tests.runtime.conftest import Build
from tests.runtime.stage import Part, Stage, books, check, collect, link, make_plan, numbers

PATIENCE = 10_000
"""Milliseconds that a peer waits for a message."""

Peer = Callable[["Plain"], Any]


class Plain:
    """What a program with plain pyzmq has: a context, and sockets that give up after a while."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def socket(self, kind: int, *, bind: bool = False, **options: Any) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        self._sockets.append(socket)
        socket.rcvtimeo = socket.sndtimeo = PATIENCE
        for name, value in options.items():
            if name != "address":
                setattr(socket, name, value)
        (socket.bind if bind else socket.connect)(options.get("address", self.address))
        return socket

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(0)  # what was to arrive has
        self.context.term()


class Fixture:
    """Runs a project with one endpoint, and a peer, to their ends."""

    def __init__(self, stage: Build, on_loop: Any, address: str) -> None:
        self._stage = stage
        self._on_loop = on_loop
        self.address = address
        self.stage: Stage | None = None

    def __call__(
        self,
        cls: type[Node],
        socket: str,
        program: Peer,
        *,
        into: str = "",
        out: str = "",
        bind: bool = True,
        others: dict[str, type[Node]] | None = None,
        links: tuple[Any, ...] = (),
        until: Callable[[], bool] = lambda: True,
        drain: bool = True,
        retry: int = 0,
        then: str = "dead-letter",
        before: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
        more: Sequence[EndpointPlan] = (),
        **facts: Any,
    ) -> tuple[Any, Report, Stage]:
        """What the peer returns, and the report. The project is drained when the peer has ended
        and `until` holds. `before`: the peer is there before the project."""
        endpoint = EndpointPlan(
            socket=socket,
            addresses=[self.address],
            bind=bind,
            into=into,
            out=out,
            **{"topics": [""], **facts},
        )
        part = Part(cls, endpoints=[endpoint, *more], retry=retry, then=then)

        async def whole() -> tuple[Any, Report, Stage]:
            plain = Plain(self.address)
            try:
                task = asyncio.create_task(asyncio.to_thread(program, plain)) if before else None
                async with self._stage({"node": part, **(others or {})}, links) as built:
                    self.stage = built
                    await built.all_ready.wait()
                    if task is None:
                        task = asyncio.create_task(asyncio.to_thread(program, plain))
                    while not (task.done() and until()):
                        meanwhile()
                        await asyncio.sleep(0.002)
                        if task.done() and task.exception() is not None:
                            break
                    result = task.result()
                    if drain:
                        built.drain()
                    return result, await built.wait(), built
            finally:
                await asyncio.to_thread(plain.close)

        return self._on_loop(whole())  # type: ignore[no-any-return]


@pytest.fixture(params=["ipc", "tcp"])
def run(
    stage: Build, on_loop: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Fixture]:
    """`run(cls, "PULL", peer, into="x")`."""
    address = f"ipc://{tmp_path}/e"
    if request.param == "tcp":
        with zmq.Context() as context, context.socket(zmq.PULL) as probe:
            port = probe.bind_to_random_port("tcp://127.0.0.1")
        address = f"tcp://127.0.0.1:{port}"
    yield Fixture(stage, on_loop, address)


only_ipc = pytest.mark.parametrize("run", ["ipc"], indirect=True)


class Echo(Node):
    """Answers in capitals."""

    asked = In(bytes)
    answers = Out(bytes)

    def on_asked(self, message: bytes) -> None:
        self.answers.send(message.upper())


def foreign(report: Report, socket: str) -> dict[str, Any]:
    """The entries of the links of an endpoint, by direction."""
    found = {}
    for one in report.links:
        if one.source.startswith(f"{socket} "):
            found["in"] = one.entry
        if one.target.startswith(f"{socket} "):
            found["out"] = one.entry
    return found


# ---------------------------------------------------------------------------- one way


@pytest.mark.parametrize("bind", [True, False])
def test_push_to_pull(run: Fixture, bind: bool) -> None:
    got: list[bytes] = []

    def peer(plain: Plain) -> None:
        socket = plain.socket(zmq.PUSH, bind=not bind)
        for number in range(3000):
            socket.send(b"%d" % number)

    _, report, _ = run(
        collect(got, bytes), "PULL", peer, into="x", bind=bind, until=lambda: len(got) == 3000
    )
    check(report)
    assert got == [b"%d" % number for number in range(3000)]
    entry = foreign(report, "PULL")["in"]
    assert (entry.sent, entry.done) == (3000, 3000)


@pytest.mark.parametrize("bind", [True, False])
def test_pull_from_push(run: Fixture, bind: bool) -> None:
    """All that a finite stream sends arrives, though the project ends as soon as it is sent."""

    def peer(plain: Plain) -> list[bytes]:
        socket = plain.socket(zmq.PULL, bind=not bind)
        return [socket.recv() for _ in range(3000)]

    class Forward(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message)

    got, report, _ = run(
        Forward,
        "PUSH",
        peer,
        out="out",
        bind=bind,
        others={"read": numbers(3000)},
        links=("read.out -> node.x",),
        drain=False,
    )
    check(report)
    assert [msgspec.msgpack.decode(one) for one in got] == list(range(3000))
    entry = foreign(report, "PUSH")["out"]
    assert (entry.sent, entry.done) == (3000, 3000)
    assert books(report, "read.out -> node.x").entry.done == 3000


@only_ipc
def test_a_peer_that_takes_nothing_holds_the_stream_up(run: Fixture) -> None:
    """Back-pressure reaches the source; nothing is lost when the peer wakes up."""
    read: list[int] = []
    may_read = threading.Event()

    class Count(numbers(20_000)):  # type: ignore[misc]
        async def read(self, position: int | None) -> Any:
            async for item in super().read(position):
                read.append(item[0])
                yield item

    class Forward(Node):
        x = In(int)
        out = Out(bytes)

        def on_x(self, message: int) -> None:
            self.out.send(b"%1000d" % message)  # the system's buffers hold many short ones

    seen: list[int] = []

    def peer(plain: Plain) -> int:
        socket = plain.socket(zmq.PULL, rcvhwm=10)
        for _ in range(5):
            socket.recv()
        while not seen or seen[-1] != len(read):  # until nothing moves any more
            seen.append(len(read))
            may_read.wait(0.2)
        return 5 + sum(1 for _ in range(20_000 - 5) if socket.recv())

    count, report, _ = run(
        Forward,
        "PUSH",
        peer,
        out="out",
        others={"read": Count},
        links=(link("read.out -> node.x", window=100),),
        drain=False,
        window=100,
        options={"sndhwm": 10},
    )
    check(report)
    assert count == 20_000
    assert seen[-1] < 20_000


@only_ipc
def test_a_slow_node_holds_the_peer_up(run: Fixture) -> None:
    """It stops reading at its bound: the peer's socket fills up, and says so."""
    release = threading.Event()
    got: list[bytes] = []
    sent: list[bytes] = []

    class Slow(Node):
        x = In(bytes, concurrency=1)

        async def on_x(self, message: bytes) -> None:
            while not release.is_set():
                await asyncio.sleep(0.002)
            got.append(message)

    def peer(plain: Plain) -> None:
        socket = plain.socket(zmq.PUSH, sndhwm=10)
        socket.sndtimeo = 300
        try:
            while len(sent) < 100_000:
                socket.send(b"x" * 1000)
                sent.append(b"x" * 1000)
        except zmq.Again:
            pass
        release.set()

    _, report, _ = run(
        Slow,
        "PULL",
        peer,
        into="x",
        window=50,
        options={"rcvhwm": 10},
        until=lambda: len(got) == len(sent),
    )
    check(report)
    assert len(sent) < 100_000
    assert got == sent
    assert foreign(report, "PULL")["in"].done == len(sent)


@only_ipc
def test_publish_with_topics(run: Fixture) -> None:
    """The key is the topic; what nobody has subscribed to is counted."""

    class Say(Node):
        x = In(int)
        out = Out(bytes)

        def on_x(self, number: int) -> None:
            self.out.send(b"%d" % number, key="even" if number % 2 == 0 else "odd")

    subscribed = threading.Event()

    class Wait(numbers(100)):  # type: ignore[misc]
        async def read(self, position: int | None) -> Any:
            while not subscribed.is_set():
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.1)  # the wish is under way, and nothing tells when it is there
            async for item in super().read(position):
                yield item

    def peer(plain: Plain) -> list[list[bytes]]:
        socket = plain.socket(zmq.SUB, bind=True)
        socket.subscribe(b"even")
        subscribed.set()
        return [socket.recv_multipart() for _ in range(50)]

    got, report, _ = run(
        Say,
        "PUB",
        peer,
        out="out",
        bind=False,
        others={"read": Wait},
        links=("read.out -> node.x",),
        drain=False,
        when_full="drop-newest",
        before=True,
    )
    check(report)
    assert got == [[b"even", b"%d" % number] for number in range(0, 100, 2)]
    entry = foreign(report, "PUB")["out"]
    assert (entry.sent, entry.done, entry.dropped) == (100, 50, {"no peer": 50})


@pytest.mark.parametrize("kind", ["SUB", "XSUB"])
@only_ipc
def test_subscribe(run: Fixture, kind: str) -> None:
    """Two frames are topic and message; the topic is the key."""
    got: list[tuple[Any, bytes]] = []

    class Hear(Node):
        x = In(bytes)

        def on_x(self, message: bytes, meta: Meta) -> None:
            got.append((meta.key, message))

    def peer(plain: Plain) -> None:
        socket = plain.socket(zmq.XPUB)
        topics = {socket.recv(), socket.recv()}
        assert topics == {b"\1a", b"\1b"}
        for topic in (b"a1", b"b2", b"c3"):
            socket.send_multipart([topic, b"x"])
        socket.send(b"alone")

    _, report, _ = run(Hear, kind, peer, into="x", topics=["a", "b"], until=lambda: len(got) == 3)
    check(report)
    assert got == [("a1", b"x"), ("b2", b"x"), (None, b"alone")]


@only_ipc
def test_xpub_tells_who_subscribes(run: Fixture) -> None:
    class Feed(Node):
        wishes = In(bytes)
        out = Out(bytes)

        def on_wishes(self, wish: bytes) -> None:
            self.out.send(b"welcome", key=wish[1:])

    def peer(plain: Plain) -> list[list[bytes]]:
        socket = plain.socket(zmq.XSUB)
        socket.send(b"\1news")
        first = socket.recv_multipart()
        socket.send(b"\1more")
        return [first, socket.recv_multipart()]

    got, report, _ = run(Feed, "XPUB", peer, into="wishes", out="out", when_full="drop-newest")
    check(report)
    assert got == [[b"news", b"welcome"], [b"more", b"welcome"]]


@only_ipc
def test_xsub_subscribes_when_the_node_says_so(run: Fixture) -> None:
    got: list[bytes] = []

    class Hear(Node):
        x = In(bytes)
        wishes = Out(bytes)

        def on_x(self, message: bytes) -> None:
            got.append(message)
            self.wishes.send(b"\1second")

    def peer(plain: Plain) -> None:
        socket = plain.socket(zmq.XPUB)
        assert socket.recv() == b"\1first"
        socket.send(b"first")
        assert socket.recv() == b"\1second"
        socket.send(b"second")

    _, report, _ = run(
        Hear,
        "XSUB",
        peer,
        into="x",
        out="wishes",
        topics=["first"],
        until=lambda: len(got) == 2,
    )
    check(report)
    assert got == [b"first", b"second"]


@pytest.mark.parametrize("bind", [True, False])
@only_ipc
def test_pair(run: Fixture, bind: bool) -> None:
    def peer(plain: Plain) -> list[bytes]:
        socket = plain.socket(zmq.PAIR, bind=not bind)
        socket.send(b"a")
        socket.send(b"b")
        return [socket.recv(), socket.recv()]

    got, report, _ = run(Echo, "PAIR", peer, into="asked", out="answers", bind=bind)
    check(report)
    assert got == [b"A", b"B"]


# ---------------------------------------------------------------------------- asking


@pytest.mark.parametrize("kind", ["REP", "ROUTER"])
def test_req_is_answered(run: Fixture, kind: str) -> None:
    """By a REP, and by a ROUTER that keeps the empty frame; two clients, each its own answers."""

    def peer(plain: Plain) -> list[bytes]:
        first, second = plain.socket(zmq.REQ), plain.socket(zmq.REQ)
        got = []
        for number in range(50):
            first.send(b"a%d" % number)
            second.send(b"b%d" % number)
            got += [second.recv(), first.recv()]
        return got

    got, report, _ = run(Echo, kind, peer, into="asked", out="answers")
    check(report)
    assert got == [one for n in range(50) for one in (b"B%d" % n, b"A%d" % n)]
    found = foreign(report, kind)
    assert found["in"].done == found["out"].done == 100


@pytest.mark.parametrize("kind", ["REP", "ROUTER", "DEALER"])
@only_ipc
def test_dealer_is_answered(run: Fixture, kind: str) -> None:
    """With the empty frame that a REP insists on; many at a time."""

    def peer(plain: Plain) -> list[list[bytes]]:
        socket = plain.socket(zmq.DEALER)
        for number in range(200):
            socket.send_multipart([b"", b"a%d" % number])
        return [socket.recv_multipart() for _ in range(200)]

    got, report, _ = run(Echo, kind, peer, into="asked", out="answers")
    check(report)
    assert got == [[b"", b"A%d" % number] for number in range(200)]


@pytest.mark.parametrize("kind", ["ROUTER", "DEALER"])
@only_ipc
def test_dealer_without_an_empty_frame(run: Fixture, kind: str) -> None:
    def peer(plain: Plain) -> list[list[bytes]]:
        socket = plain.socket(zmq.DEALER)
        socket.send(b"a")
        socket.send(b"")
        return [socket.recv_multipart(), socket.recv_multipart()]

    got, report, _ = run(Echo, kind, peer, into="asked", out="answers")
    check(report)
    assert got == [[b"A"], [b""]]


@only_ipc
def test_a_broker_of_two_hops(run: Fixture) -> None:
    """A REP behind somebody else's ROUTER-DEALER proxy: all identities come back."""

    def peer(plain: Plain) -> list[bytes]:
        front = plain.socket(zmq.ROUTER, bind=True, address="inproc://front")
        back = plain.socket(zmq.DEALER)
        clients = []
        for number in range(3):
            client = plain.socket(zmq.REQ, address="inproc://front")
            client.send(b"c%d" % number)
            clients.append(client)
        for _ in clients:
            back.send_multipart(front.recv_multipart())
        for _ in clients:
            front.send_multipart(back.recv_multipart())
        return [client.recv() for client in clients]

    got, report, _ = run(Echo, "REP", peer, into="asked", out="answers")
    check(report)
    assert got == [b"C0", b"C1", b"C2"]


@only_ipc
def test_router_to_router_needs_names(run: Fixture) -> None:
    def peer(plain: Plain) -> list[bytes]:
        socket = plain.socket(zmq.ROUTER, routing_id=b"peer", router_mandatory=1)
        while True:
            try:
                socket.send_multipart([b"flow", b"hello"])
                break
            except zmq.ZMQError:  # the greeting is under way
                threading.Event().wait(0.01)
        return socket.recv_multipart()

    got, report, _ = run(Echo, "ROUTER", peer, into="asked", out="answers", identity="flow")
    check(report)
    assert got == [b"flow", b"HELLO"]


class Ask(Node):
    """Sends what its input says, and keeps the answers."""

    x = In(int)
    answers = In(bytes)
    questions = Out(bytes)
    kept: list[bytes]

    def on_x(self, number: int) -> None:
        self.questions.send(b"q%d" % number)

    def on_answers(self, answer: bytes) -> None:
        self.kept.append(answer)


@pytest.mark.parametrize("peer_kind", ["REP", "ROUTER"])
@only_ipc
def test_req_asks(run: Fixture, peer_kind: str) -> None:
    """One question at a time, each answered before the next leaves. The stream ends with the
    questions, when all are answered."""
    kept: list[bytes] = []

    def peer(plain: Plain) -> None:
        socket = plain.socket(getattr(zmq, peer_kind), bind=True)
        for number in range(20):
            *envelope, question = socket.recv_multipart()
            assert question == b"q%d" % number
            if peer_kind == "ROUTER":
                assert envelope[-1] == b""
                assert not socket.poll(20), "a second question before the answer to the first"
            socket.send_multipart([*envelope, question.upper()])

    cls = type("Asking", (Ask,), {"kept": kept})
    _, report, _ = run(
        cls,
        "REQ",
        peer,
        into="answers",
        out="questions",
        bind=False,
        others={"read": numbers(20)},
        links=("read.out -> node.x",),
        drain=False,
    )
    check(report)
    assert kept == [b"Q%d" % number for number in range(20)]


@only_ipc
def test_req_gives_up_and_goes_on(run: Fixture) -> None:
    """A question without an answer is counted as dropped; the late answer to it is no other's."""
    kept: list[bytes] = []

    def peer(plain: Plain) -> None:
        socket = plain.socket(zmq.ROUTER, bind=True)
        first = socket.recv_multipart()
        *envelope, question = socket.recv_multipart()  # comes when the first is given up
        socket.send_multipart([*first[:-1], b"late"])
        socket.send_multipart([*envelope, question.upper()])

    cls = type("Asking", (Ask,), {"kept": kept})
    _, report, _ = run(
        cls,
        "REQ",
        peer,
        into="answers",
        out="questions",
        bind=False,
        others={"read": numbers(2)},
        links=("read.out -> node.x",),
        timeout=0.2,
        until=lambda: bool(kept),
    )
    check(report)
    assert kept == [b"Q1"]
    assert foreign(report, "REQ")["out"].dropped == {"no peer": 1}


@pytest.mark.parametrize("peer_kind", ["REP", "DEALER", "ROUTER"])
@only_ipc
def test_dealer_asks(run: Fixture, peer_kind: str) -> None:
    kept: list[bytes] = []

    def peer(plain: Plain) -> None:
        socket = plain.socket(getattr(zmq, peer_kind), bind=True)
        for _ in range(20):
            *envelope, question = socket.recv_multipart()
            socket.send_multipart([*envelope, question.upper()])

    cls = type("Asking", (Ask,), {"kept": kept})
    _, report, _ = run(
        cls,
        "DEALER",
        peer,
        into="answers",
        out="questions",
        bind=False,
        peer=peer_kind,
        others={"read": numbers(20)},
        links=("read.out -> node.x",),
        until=lambda: len(kept) == 20,
    )
    check(report)
    assert kept == [b"Q%d" % number for number in range(20)]


# ---------------------------------------------------------------------------- envelopes


@only_ipc
def test_answers_by_coroutines_each_find_their_way(run: Fixture) -> None:
    """Many requests at once, answered in another order than they came in."""

    class Slow(Node):
        asked = In(bytes, concurrency=20)
        answers = Out(bytes)

        async def on_asked(self, message: bytes) -> None:
            await asyncio.sleep(0.05 if message.endswith(b"0") else 0)
            self.answers.send(message.upper())

    def peer(plain: Plain) -> list[bytes]:
        clients = [plain.socket(zmq.REQ) for _ in range(20)]
        for number, client in enumerate(clients):
            client.send(b"a%d" % number)
        return [client.recv() for client in clients]

    got, report, _ = run(Slow, "REP", peer, into="asked", out="answers")
    check(report)
    assert got == [b"A%d" % number for number in range(20)]


@only_ipc
def test_an_envelope_can_be_kept_for_later(run: Fixture) -> None:
    """The answer comes from another handler: the headers say where to."""

    class Later(Node):
        stateful = True
        asked = In(bytes)
        answers = Out(bytes)

        def __init__(self) -> None:
            self.waiting: list[tuple[bytes, Meta]] = []

        def on_asked(self, message: bytes, meta: Meta) -> None:
            self.waiting.append((message, meta))
            if len(self.waiting) == 3:
                for one, its in self.waiting:
                    self.answers.send(one.upper(), headers=its.headers)

    def peer(plain: Plain) -> list[bytes]:
        clients = [plain.socket(zmq.REQ) for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(b"a%d" % number)
        return [client.recv() for client in clients]

    got, report, _ = run(Later, "ROUTER", peer, into="asked", out="answers")
    check(report)
    assert got == [b"A0", b"A1", b"A2"]


@only_ipc
def test_a_router_can_speak_first(run: Fixture) -> None:
    """To a peer whose name is in the plan, or in the headers; anything else is counted."""

    class First(Node):
        x = In(int)
        asked = In(bytes)
        out = Out(bytes)

        def on_x(self, number: int) -> None:
            self.out.send(b"default")
            self.out.send(b"other", headers={ENVELOPE: to_header([b"other"])})
            self.out.send(b"nobody", headers={ENVELOPE: to_header([b"nobody"])})
            self.out.send(b"nonsense", headers={ENVELOPE: "nonsense"})

        def on_asked(self, message: bytes) -> None: ...

    go = threading.Event()

    class Wait(numbers(1)):  # type: ignore[misc]
        async def read(self, position: int | None) -> Any:
            while not go.is_set():
                await asyncio.sleep(0.002)
            yield 1, 1

    seen: list[bytes] = []

    class Seeing(First):
        def on_asked(self, message: bytes) -> None:
            seen.append(message)
            if len(seen) == 2:
                go.set()

    def peer(plain: Plain) -> list[bytes]:
        sockets = [plain.socket(zmq.DEALER, routing_id=name) for name in (b"main", b"other")]
        for socket in sockets:
            socket.send(b"here")
        return [socket.recv() for socket in sockets]

    got, report, _ = run(
        Seeing,
        "ROUTER",
        peer,
        into="asked",
        out="out",
        to="main",
        others={"read": Wait},
        links=("read.out -> node.x",),
    )
    check(report)
    assert got == [b"default", b"other"]
    assert foreign(report, "ROUTER")["out"].dropped == {"no peer": 2}


@only_ipc
def test_a_failed_request_blocks_nobody(run: Fixture) -> None:
    """It gets no answer and becomes a dead letter; the same client's next is answered."""

    class Picky(Echo):
        def on_asked(self, message: bytes) -> None:
            if message == b"bad":
                raise ValueError("bad")
            super().on_asked(message)

    def peer(plain: Plain) -> bytes:
        socket = plain.socket(zmq.DEALER)
        socket.send_multipart([b"", b"bad"])
        socket.send_multipart([b"", b"good"])
        return socket.recv_multipart()[-1]

    got, report, stage = run(Picky, "REP", peer, into="asked", out="answers")
    check(report)
    assert got == b"GOOD"
    assert report.exit == 4
    (letter,) = stage.dead_letters
    assert letter.raw == b"bad" and letter.headers[ENVELOPE].endswith("//")


# ---------------------------------------------------------------------------- what is wrong


class Number(msgspec.Struct):
    value: int


@only_ipc
def test_what_does_not_decode_is_a_dead_letter(run: Fixture) -> None:
    """One by one: those beside it are handled."""
    got: list[Number] = []

    def peer(plain: Plain) -> None:
        socket = plain.socket(zmq.PUSH)
        for number in range(10):
            socket.send(msgspec.json.encode(Number(number)) if number % 3 else b"{garbage")
        socket.send_multipart([b"two", b"frames"])
        socket.send(b"")

    _, report, stage = run(
        collect(got, Number), "PULL", peer, into="x", codec="json", until=lambda: len(got) == 6
    )
    check(report)
    assert [one.value for one in got] == [1, 2, 4, 5, 7, 8]
    assert foreign(report, "PULL")["in"].dead_lettered == 6
    errors = [letter.error for letter in stage.dead_letters]
    assert sum("a message of 2 frames" in error for error in errors) == 1


@only_ipc
def test_frames_as_they_are(run: Fixture) -> None:
    class Raw(Node):
        asked = In(list[bytes])
        answers = Out(list[bytes])

        def on_asked(self, frames: list[bytes]) -> None:
            self.answers.send([b"%d" % len(frames), *frames])

    def peer(plain: Plain) -> list[list[bytes]]:
        socket = plain.socket(zmq.PAIR)
        socket.send_multipart([b"a", b"", b"\xff"])
        socket.send(b"alone")
        return [socket.recv_multipart(), socket.recv_multipart()]

    got, report, _ = run(Raw, "PAIR", peer, into="asked", out="answers")
    check(report)
    assert got == [[b"3", b"a", b"", b"\xff"], [b"1", b"alone"]]


@only_ipc
def test_rules_that_a_peer_breaks_are_counted(run: Fixture) -> None:
    def peer(plain: Plain) -> bytes:
        socket = plain.socket(zmq.DEALER)
        socket.send(b"no empty frame")
        socket.send_multipart([b"", b"good"])
        return socket.recv_multipart()[-1]

    got, report, _ = run(Echo, "REP", peer, into="asked", out="answers")
    check(report)
    assert got == b"GOOD"
    assert foreign(report, "REP")["in"].dropped == {"no peer": 1}


@only_ipc
def test_a_client_that_has_left_is_counted(run: Fixture) -> None:
    asked, gone = threading.Event(), threading.Event()

    class Slow(Node):
        asked = In(bytes)
        answers = Out(bytes)

        async def on_asked(self, message: bytes) -> None:
            asked.set()
            while not gone.is_set():
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.1)  # nothing tells when ZeroMQ has noticed
            self.answers.send(message)

    def peer(plain: Plain) -> None:
        socket = plain.socket(zmq.REQ)
        socket.send(b"x")
        assert asked.wait(10)
        socket.close(0)
        gone.set()

    _, report, _ = run(Slow, "REP", peer, into="asked", out="answers")
    check(report)
    assert foreign(report, "REP")["out"].dropped == {"no peer": 1}


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_an_address_that_is_taken(stage: Build, on_loop: Any, tmp_path: Path, scheme: str) -> None:
    async def attempt(address: str) -> Report:
        endpoint = EndpointPlan("PULL", [address], bind=True, into="x")
        async with stage({"node": Part(collect([]), endpoints=[endpoint])}) as built:
            return await built.wait()

    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        if scheme == "ipc":
            socket.bind(f"ipc://{tmp_path}/e")
        else:
            socket.bind("tcp://127.0.0.1:*")
        address = socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        report = on_loop(attempt(address))
    assert report.exit == 2
    assert report.status.value == "misconfigured"


def test_pgm_says_how_to_get_it(stage: Build, on_loop: Any, capfd: Any) -> None:
    if zmq.has("pgm"):
        pytest.skip("this ZeroMQ has PGM")

    async def attempt() -> Report:
        endpoint = EndpointPlan("SUB", ["epgm://lo;239.192.1.1:5555"], bind=False, into="x")
        async with stage({"node": Part(collect([]), endpoints=[endpoint])}) as built:
            return await built.wait()

    assert on_loop(attempt()).exit == 2
    assert "libzmq3-dev" in capfd.readouterr().err


def test_two_nodes_meet_in_one_process(stage: Build, on_loop: Any) -> None:
    """inproc: both ends are endpoints, and share the context."""
    got: list[int] = []

    class Send(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, number: int) -> None:
            self.out.send(number)

    address = ["inproc://here"]

    async def whole() -> Report:
        parts = {
            "read": numbers(100),
            "send": Part(Send, endpoints=[EndpointPlan("PUSH", address, bind=True, out="out")]),
            "take": Part(
                collect(got), endpoints=[EndpointPlan("PULL", address, bind=False, into="x")]
            ),
        }
        async with stage(parts, ["read.out -> send.x"]) as built:
            while len(got) < 100:
                await asyncio.sleep(0.002)
            built.drain()
            return await built.wait()

    check(on_loop(whole()))
    assert got == list(range(100))


@only_ipc
def test_an_input_aside_holds_no_end_up(run: Fixture) -> None:
    """The stream ends with the links; what the control channel says until then is heard."""
    stopped: list[bytes] = []
    go = threading.Event()

    class Work(Node):
        x = In(int)
        control = In(bytes)

        def on_x(self, number: int) -> None: ...

        def on_control(self, word: bytes) -> None:
            stopped.append(word)
            go.set()

    class Wait(numbers(1)):  # type: ignore[misc]
        async def read(self, position: int | None) -> Any:
            while not go.is_set():
                await asyncio.sleep(0.002)
            yield 1, 1

    def peer(plain: Plain) -> None:
        plain.socket(zmq.PUSH).send(b"TERM")

    _, report, _ = run(
        Work,
        "PULL",
        peer,
        into="control",
        others={"read": Wait},
        links=("read.out -> node.x",),
        drain=False,
        aside=True,
    )
    check(report)
    assert stopped == [b"TERM"]


@only_ipc
def test_a_death_is_counted_and_the_address_taken_again(run: Fixture) -> None:
    got: list[bytes] = []
    crashed: list[bool] = []

    class Fragile(Node):
        x = In(bytes)

        async def on_x(self, message: bytes) -> None:
            got.append(message)
            if message == b"stay":
                await asyncio.Event().wait()

    def peer(plain: Plain) -> None:
        socket = plain.socket(zmq.PUSH)
        socket.send(b"stay")
        while b"again" not in got:
            if crashed:
                socket.send(b"again")
            threading.Event().wait(0.01)

    def crash_once() -> None:
        assert run.stage is not None
        if got and not crashed:
            run.stage.crash("node.0")
            crashed.append(True)

    _, report, _ = run(Fragile, "PULL", peer, into="x", meanwhile=crash_once)
    check(report)
    entry = foreign(report, "PULL")["in"]
    assert entry.dropped["consumer died"] >= 1
    assert entry.sent == entry.done + entry.dropped["consumer died"]
    assert report.nodes[0].restarts == 1


@only_ipc
def test_what_waits_for_a_socket_goes_on_when_it_has_sent(
    run: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 100 takes two turns of 64, and nobody else tells the replica of the second."""
    monkeypatch.setattr(ForeignSender, "max_count", 100)
    monkeypatch.setattr(foreign_module, "TURN", -1.0)
    monkeypatch.setattr(runner, "TICK", 60.0)

    class Runs(Node):
        out = Out(bytes)

        async def run(self) -> None:
            self.out.send_many([b"%d" % number for number in range(1000)])

    def peer(plain: Plain) -> list[bytes]:
        socket = plain.socket(zmq.PULL, rcvhwm=0)
        return [socket.recv() for _ in range(1000)]

    got, report, _ = run(
        Runs, "PUSH", peer, out="out", drain=False, window=16, options={"sndhwm": 0}
    )
    check(report)
    assert got == [b"%d" % number for number in range(1000)]


def test_inproc_is_for_one_process(tmp_path: Path) -> None:
    """A replica with a process of its own would wait for ever."""

    class Nothing(Node):
        x = In(bytes)

        def on_x(self, message: bytes) -> None: ...

    async def attempt() -> None:
        endpoint = EndpointPlan("PULL", ["inproc://here"], bind=True, into="x")
        plan = make_plan({"node": Part(Nothing, endpoints=[endpoint])}, [], tmp_path)
        links = {"in": foreign_links(plan.nodes)[0]}
        books_of = {link.index: Books([0] * ROW) for link in links.values()}
        engine = Engine(Identity("r", "t", "node", 0, 1, 0), [], [])
        host = Host(Nothing(), engine, books_of, zmq.Context, False, print, print, monotonic)
        with pytest.raises(TransportError, match="joins nodes of one process"):
            Endpoint(endpoint, links, False, host)

    asyncio.run(attempt())


@only_ipc
def test_a_pubsub_proxy(run: Fixture, tmp_path: Path) -> None:
    """What its subscribers want goes up, what is published comes down, frame for frame."""
    back = f"ipc://{tmp_path}/back"

    def program(plain: Plain) -> list[list[bytes]]:
        publisher = plain.socket(zmq.XPUB, address=back)
        subscriber = plain.socket(zmq.SUB)
        subscriber.subscribe(b"a")
        assert publisher.recv() == b"\1a"
        publisher.send_multipart([b"b", b"nobody wants this"])
        publisher.send_multipart([b"a", b"", b"1"])
        return [subscriber.recv_multipart()]

    class Quiet(PubSubProxy):
        monitor = Out(list[bytes])

    got, report, _ = run(
        Quiet,
        "XPUB",
        program,
        into="wishes",
        out="outbound",
        when_full="drop-newest",
        more=[
            EndpointPlan("XSUB", [back], True, into="inbound", out="subscribe", topics=[]),
        ],
    )
    check(report)
    assert got == [[b"a", b"", b"1"]]


@only_ipc
def test_a_restart_takes_the_address_with_it(run: Fixture) -> None:
    """What had come is handled before it leaves, and the next incarnation goes on."""
    got: list[bytes] = []
    restarted: list[Any] = []

    def program(plain: Plain) -> None:
        socket = plain.socket(zmq.PUSH)
        number = 0
        while not restarted or not restarted[0].done() or got[-1:] != [b"last"]:
            socket.send(b"%d" % number if not restarted else b"last")
            number += 1
            threading.Event().wait(0.005)

    def restart_once() -> None:
        assert run.stage is not None
        if len(got) > 20 and not restarted:
            restarted.append(asyncio.ensure_future(run.stage.supervisor.restart("node")))

    _, report, _ = run(collect(got, bytes), "PULL", program, into="x", meanwhile=restart_once)
    check(report)
    assert "restarted node" in str(restarted[0].result())
    entry = foreign(report, "PULL")["in"]
    assert entry.sent == entry.done == len(got)


@pytest.mark.parametrize("full", [False, True], ids=["nothing to do", "no room"])
@only_ipc
def test_an_endpoint_that_waits_takes_no_turns(
    run: Fixture, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when there is nothing to do nor when there is no room."""
    looks: list[int] = []
    seen: list[int] = []
    release = threading.Event()
    original = ForeignSocket._look

    def look(self: ForeignSocket) -> None:
        looks.append(1)
        original(self)

    monkeypatch.setattr(ForeignSocket, "_look", look)

    class Slow(Node):
        asked = In(bytes, concurrency=2)
        answers = Out(bytes)

        async def on_asked(self, message: bytes) -> None:
            while full and not release.is_set():
                await asyncio.sleep(0.001)
            self.answers.send(message)

    def program(plain: Plain) -> list[bytes]:
        socket = plain.socket(zmq.PAIR)
        for _ in range(50):
            socket.send(b"x")
        while full and len(seen) < 200:  # turns of the loop without anything new
            threading.Event().wait(0.001)
        release.set()
        return [socket.recv() for _ in range(50)]

    def turn() -> None:
        if looks and not release.is_set():
            seen.append(len(looks))

    got, report, _ = run(
        Slow, "PAIR", program, into="asked", out="answers", window=5, meanwhile=turn
    )
    check(report)
    assert got == [b"x"] * 50
    if full:
        assert seen[-1] - seen[len(seen) // 2] <= 2
    assert len(looks) < 400


@only_ipc
def test_what_was_sent_waits_for_a_slow_peer_at_the_end(run: Fixture) -> None:
    """The project is over, and the peer begins to read: ZeroMQ hands over what it had taken. Not
    all of it: when a connection ends, libzmq forgets what it has received and has no room for.
    Plain pyzmq at both ends loses as much."""
    over = threading.Event()

    class Forward(Node):
        x = In(int)
        out = Out(bytes)

        def on_x(self, message: int) -> None:
            self.out.send(b"%50000d" % message)

    def program(plain: Plain) -> int:
        socket = plain.socket(zmq.PULL, rcvhwm=10)
        assert over.wait(20)
        socket.rcvtimeo = 1000
        count = 0
        with suppress(zmq.Again):
            while count < 500:
                socket.recv()
                count += 1
        return count

    def look() -> None:
        assert run.stage is not None
        if run.stage.supervisor.over.done():
            over.set()

    got, report, _ = run(
        Forward,
        "PUSH",
        program,
        out="out",
        others={"read": numbers(500)},
        links=("read.out -> node.x",),
        drain=False,
        meanwhile=look,
    )
    check(report)
    assert foreign(report, "PUSH")["out"].done == 500
    assert got > 400


@only_ipc
def test_a_publisher_that_never_came_holds_no_end_up(run: Fixture) -> None:
    """ZeroMQ would wait to tell it what the subscriber wants."""

    class Work(Node):
        y = In(int)
        x = In(bytes)

        def on_y(self, number: int) -> None: ...

        def on_x(self, message: bytes) -> None: ...

    began = monotonic()
    _, report, _ = run(
        Work,
        "SUB",
        lambda plain: None,
        into="x",
        bind=False,
        aside=True,
        others={"read": numbers(3)},
        links=("read.out -> node.y",),
        drain=False,
    )
    check(report)
    assert monotonic() - began < LINGER
