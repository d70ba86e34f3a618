"""The endpoints of a replica: moves messages between its foreign links and their sockets.

What is read goes to a `ForeignReceiver`, as far as there is room; what a `ForeignSender` has is
sent, as far as the socket takes it. Reading begins when everybody is ready and ends when the
project is drained; what ZeroMQ has received by then is read first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import zmq

from flowkit.clock import Clock
from flowkit.codecs import encode_extras
from flowkit.codecs.single import Single
from flowkit.errors import OperatorError, TransportError
from flowkit.message import Key
from flowkit.node import Node
from flowkit.protocol import sockets
from flowkit.protocol.engine import Engine, Outlet, Phase
from flowkit.protocol.foreign import NO_PEER, NO_ROOM, ForeignReceiver, ForeignSender
from flowkit.protocol.ledger import Books
from flowkit.protocol.routing import Cut, Router, extractor
from flowkit.runtime.spec import ReplicaSpec, terms_of
from flowkit.topology.plan import EndpointPlan, LinkPlan, foreign_links
from flowkit.transport.foreign import ForeignSocket, Sent

log = logging.getLogger("flowkit.replica")

TURN = 0.010
"""Seconds for which an endpoint may read or write before others come."""

AGAIN = 0.005
"""Seconds until a send is tried again where the socket cannot tell that there is room."""

LAST_READING = 1.0
"""Seconds in which an endpoint that is to end reads what has come, if its peers go on sending."""

LINGER = 8.0
"""Seconds that the last messages get to leave at an orderly end, unless the option says otherwise;
it takes no longer than they need. After `supervisor.LEAVE_GRACE` the process would be killed."""


class Topics(Router):
    """Gives each message the key that its channel declares: its topic."""

    def __init__(self, path: str) -> None:
        super().__init__("balance", 1)
        self._of = extractor(path)

    def cut(
        self,
        messages: list[Any],
        keys: list[Key] | None,
        headers: list[Any] | None,
        size: int,
    ) -> list[Cut]:
        given = keys or [None] * len(messages)
        found = [
            self._of(message) if key is None else key
            for message, key in zip(messages, given, strict=True)
        ]
        return super().cut(messages, found, headers, size)


class Host(NamedTuple):
    """What the endpoints of a replica work with. `shared`: the context is that of several."""

    node: Node
    engine: Engine
    books: Mapping[int, Books]
    context: Callable[[], zmq.Context[zmq.Socket[bytes]]]
    shared: bool
    wake: Callable[[], None]
    fail: Callable[[BaseException], None]
    clock: Clock


class Endpoint:
    """One socket, and the channels it serves: `links` by direction. `others`: the node has other
    inputs."""

    def __init__(
        self, plan: EndpointPlan, links: Mapping[str, LinkPlan], others: bool, host: Host
    ) -> None:
        self.plan = plan
        self.codecs: dict[int, Single] = {}
        self._kind = sockets.SOCKETS[plan.socket]
        self._host = host
        self._engine = engine = host.engine
        self._wake = host.wake
        self._clock = host.clock
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._until: float | None = None
        """When the last reading is over, if it has begun."""
        self._last = False
        self._unread = True
        self._blocked = False
        self._stalled: float | None = None
        self._awaiting: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._complained: set[str] = set()
        # The answers to what the node asks, in the course of its other inputs, are no stream of
        # their own: they end with the questions, and all are answered when those inputs have ended.
        self._asks = plan.socket == "REQ" and others
        self._aside = plan.aside or self._asks
        self._multicast = any("pgm://" in one for one in plan.addresses)
        self._subscriptions = sockets.Subscriptions()
        self.receiver: ForeignReceiver | None = None
        self.sender: ForeignSender | None = None
        info = host.node.__flowkit__
        inlet = links.get("in")
        if inlet is not None:
            channel = info.inputs[plan.into]
            self._codec = Single(channel.type, plan.codec or channel.codec)
            self.codecs[inlet.index] = self._codec
            self.receiver = ForeignReceiver(
                engine.identity,
                terms_of(inlet),
                host.books[inlet.index],
                channel.concurrency,
                self._aside,
            )
            engine.join([self.receiver], [])
        outlet = links.get("out")
        if outlet is not None:
            out = info.outputs[plan.out]
            codec = Single(out.type, plan.codec or out.codec)
            self.sender = ForeignSender(
                plan.socket,
                terms_of(outlet),
                host.books[outlet.index],
                frames_of=codec.frames_of,
                inlet=inlet.index if inlet is not None else None,
                address=sockets.addressed(plan.to, plan.peer) if plan.to else None,
                peer=plan.peer,
            )
            by_topic = out.key is not None and plan.socket in sockets.PUBLISHERS
            router = Topics(out.key) if by_topic and out.key else Router("balance", 1)
            way = f"{engine.identity.run}/{plan.out}".encode()
            engine.join([], [Outlet(self.sender, router, codec, way)])
        self._socket = self._open()

    def _open(self) -> ForeignSocket:
        plan = self.plan
        if not self._host.shared and any(one.startswith("inproc:") for one in plan.addresses):
            raise TransportError(
                f"{plan.addresses[0]} joins nodes of one process, and each has its own",
                hint="use ipc://, or run with --in-process",
            )
        socket = ForeignSocket(
            self._host.context(),
            self._kind.opened_as,
            plan.addresses,
            bind=plan.bind,
            on_events=self._on_events,
            identity=plan.identity,
            topics=plan.topics,
            options=plan.options,
            shared=plan.insecure,
        )
        if plan.bind and any(one.endswith(("*", ":0")) for one in plan.addresses):
            log.info("%s listens on %s", plan.label, socket.bound)
        return socket

    # -- what the replica asks -----------------------------------------------------------------

    def start(self) -> None:
        """Everybody is ready: read."""
        self._reading = True
        self.work()

    def end(self, last: bool) -> None:
        """Read what has come, and nothing more. `last`: the stream ends; else another incarnation
        goes on with it."""
        if self.receiver is None or self._asks:
            return
        self._last = self._last or last
        if self._until is None:
            self._until = self._clock() + LAST_READING
            if self._one_way:  # elsewhere it would cut off the answers
                self._socket.leave()
        self._unread = True
        self.work()

    def resume(self) -> None:
        """It is not the end after all."""
        if self._until is not None and not self._last:
            self._until = None
            self._reading = self._unread = True
            self._socket.join()
        self.work()

    def flush(self) -> None:
        """Once a turn: `work`. Who waits for what was sent to leave learns that it has."""
        before = self.sender.messages if self.sender is not None else 0
        self.work()
        if self.sender is not None and self.sender.messages < before:
            self._wake()

    def work(self) -> None:
        """Send and read what can be, now."""
        if self._socket.closed:
            return
        try:
            if self.sender is not None and not self._blocked and self._awaiting is None:
                self._write(self.sender)
            if self._unread:
                self._read()
        except zmq.ZMQError as error:
            text = f"{self.plan.label}: {error}"
            self._host.fail(TransportError(text, endpoint=self.plan.addresses[0]))

    def close(self, in_order: bool) -> None:
        """Close the socket; the last messages get time to leave if the end is `in_order`."""
        for handle in (self._awaiting, self._retry):
            if handle is not None:
                handle.cancel()
        self._awaiting = self._retry = None
        milliseconds = int(self.plan.options.get("linger", LINGER * 1000))
        # What a subscriber has for a publisher that is not there are only its wishes.
        waits = in_order and self.sender is not None and self._kind.name not in sockets.SUBSCRIBERS
        self._socket.close(milliseconds / 1000 if waits else 0.0)

    # -- reading -------------------------------------------------------------------------------

    @property
    def _one_way(self) -> bool:
        return self._kind.sends is False or self._kind.name == "XSUB"

    def _on_events(self, readable: bool, writable: bool) -> None:
        if readable:
            self._unread = True
        if writable and self._retry is None:
            self._blocked = False
        before = self._stand()
        self.work()
        if before != self._stand():
            self._wake()

    def _stand(self) -> tuple[int, int]:
        """What changes when there is something for the replica to do."""
        receiver, sender = self.receiver, self.sender
        return (
            receiver.waiting if receiver is not None else 0,
            sender.messages if sender is not None else 0,
        )

    def _read(self) -> None:
        """Receive while there is something, room for it, and time."""
        if self.receiver is None:
            self._read_aside()
            return
        now = self._clock()
        until = now + TURN
        while self._may_read(self.receiver):
            if not self._read_batch(self.receiver) or self._clock() >= until:
                break
        answered = self._awaiting is None
        if self._until is not None and answered and (not self._unread or now >= self._until):
            # Whatever comes now comes too late.
            self._reading = self._unread = False
            if self._last:
                self.receiver.close()
            self._wake()
        elif self._may_read(self.receiver):
            self._socket.look_soon()  # where there is no room, the turn that makes some comes here

    def _may_read(self, receiver: ForeignReceiver) -> bool:
        if not self._unread or not self._reading:
            return False
        if receiver.ended and not self._aside:
            return False
        if self._engine.phase is not Phase.OPEN:
            return False
        if self._engine.paused and self._until is None:
            return False
        return receiver.room > 0

    def _read_batch(self, receiver: ForeignReceiver) -> bool:
        """Receive one batch; False when nothing is left."""
        most = 1 if self._kind.enveloped else max(1, min(receiver.room, receiver.pace.max_count))
        # The usual case: nothing stands before the message, and it is one frame.
        simple = self._kind.name in ("PULL", "PAIR") and not self._codec.multipart
        raws: list[bytes] = []
        keys: list[Key] | None = None
        headers: list[dict[str, str] | None] | None = None
        for _ in range(most):
            frames = self._socket.receive()
            if frames is None:
                self._unread = False
                break
            if simple and len(frames) == 1:
                raws.append(frames[0])
                continue
            if self._kind.name == "XPUB":
                self._subscriptions.heard(frames[0])
            found = sockets.opened(self.plan.socket, frames)
            if found is None or (self._kind.name == "REQ" and self._awaiting is None):
                self._refuse(receiver, frames)
                continue
            envelope, body = found
            if self._kind.name == "REQ":
                self._answered()
            if self._kind.name in sockets.SUBSCRIBERS and not self._codec.multipart:
                if len(body) == 2:
                    keys = keys if keys is not None else [None] * len(raws)
                    keys.append(_topic(body.pop(0)))
                elif keys is not None:
                    keys.append(None)
            if envelope:
                headers = [{sockets.ENVELOPE: sockets.to_header(envelope)}]
            raws.append(self._codec.raw_of(body))
        if raws:
            receiver.push(raws, encode_extras(keys, headers), int(self._clock() * 1e9))
            self._wake()
        return self._unread

    def _read_aside(self) -> None:
        """What comes in where no channel takes it: wishes of subscribers, and what is not asked
        for."""
        self._unread = False
        if self._kind.opened_as == "PUSH":
            return
        while (frames := self._socket.receive()) is not None:
            if self._kind.opened_as == "XPUB":
                self._subscriptions.heard(frames[0])
            else:
                self._complain("a peer sends, and no channel takes it: it is thrown away")

    def _refuse(self, receiver: ForeignReceiver, frames: list[bytes]) -> None:
        receiver.refuse()
        kind = self._kind.name
        text = "an answer that nothing was asked for" if kind == "REQ" else "no empty frame in it"
        self._complain(f"a message that breaks the rules of {kind} was dropped: {text}")

    def _complain(self, text: str) -> None:
        """Tell the operator, once."""
        if text not in self._complained:
            self._complained.add(text)
            log.warning("%s: %s", self.plan.label, text)

    # -- writing -------------------------------------------------------------------------------

    def _write(self, sender: ForeignSender) -> None:
        until = self._clock() + TURN
        publishes = self._kind.opened_as == "XPUB"
        if publishes and self.receiver is None:
            self._read_aside()
        count, tried = 0, False
        while (frames := sender.next()) is not None:
            heard = not publishes or self._multicast or self._subscriptions.wants(sender.topic)
            if not heard:
                sender.lost(NO_PEER)
                continue
            sent = self._socket.send(frames)
            tried = True
            if sent is Sent.FULL and not self._overrun(sender, frames):
                break
            if sent is Sent.GONE:
                sender.lost(NO_PEER)
            elif sent is Sent.TAKEN:
                self._stalled = None
                if self._kind.name == "REQ":
                    self._awaiting = self._loop.call_later(self.plan.timeout, self._unanswered)
                    break
                sender.sent()
            count += 1
            if not count & 63 and self._clock() >= until:
                break
        if tried:
            self._socket.look_soon()
        if sender.unaddressed:
            self._complain(
                "a message without an address was dropped: answer in the handler of what was "
                "asked, send with headers=meta.headers, or give the endpoint 'to'"
            )

    def _overrun(self, sender: ForeignSender, frames: list[bytes]) -> bool:
        """The socket takes nothing now. True if the message was dropped."""
        if self.plan.when_full == "drop-newest":
            if self._kind.opened_as == "XPUB":
                self._socket.drop(True)  # for those who have no room; the others get it
                self._socket.send(frames)
                self._socket.drop(False)
            sender.lost(NO_ROOM)
            return True
        if self._kind.opened_as not in ("ROUTER", "XPUB"):
            self._blocked = True  # the socket tells when it has room
            return False
        now = self._clock()
        if self._stalled is None:
            self._stalled = now
        elif self._kind.opened_as == "ROUTER" and now - self._stalled > self.plan.timeout:
            self._stalled = None
            sender.lost(NO_ROOM)
            return True
        self._blocked = True
        self._retry = self._loop.call_later(AGAIN, self._try_again)
        return False

    def _try_again(self) -> None:
        self._retry = None
        self._blocked = False
        self._on_events(False, False)

    def _answered(self) -> None:
        """The request that was sent has its answer."""
        if self._awaiting is not None:
            self._awaiting.cancel()
            self._awaiting = None
        assert self.sender is not None
        self.sender.sent()
        self._loop.call_soon(self._wake)

    def _unanswered(self) -> None:
        """The request has no answer, and is given up. A late one must not pass for that of the
        next, so it finds the socket closed; where it is bound, its address must not be lost."""
        self._awaiting = None
        assert self.sender is not None
        self.sender.lost(NO_PEER)
        self._complain(f"no answer within {self.plan.timeout:g} s")
        if not self.plan.bind:
            self._socket.close(0)
            try:
                self._socket = self._open()
            except TransportError as error:
                self._host.fail(error)
        self._unread = True
        self._wake()


class Foreign:
    """All endpoints of a replica. Without a `context`, one is made when it is needed, and ended."""

    def __init__(
        self,
        spec: ReplicaSpec,
        node: Node,
        engine: Engine,
        books: Mapping[int, Books],
        context: Callable[[], zmq.Context[zmq.Socket[bytes]]] | None,
        wake: Callable[[], None],
        fail: Callable[[BaseException], None],
        clock: Clock,
    ) -> None:
        self.links = foreign_links([spec.node])
        self.codecs: dict[int, Single] = {}
        self._own: zmq.Context[zmq.Socket[bytes]] | None = None
        self._endpoints: list[Endpoint] = []
        host = Host(
            node,
            engine,
            books,
            context or self._make,
            context is not None,
            wake,
            fail,
            clock,
        )
        links = iter(self.links)
        inputs = {link.into for link in spec.inputs}
        inputs |= {one.into for one in spec.node.endpoints if one.into and not one.aside}
        try:
            for plan in spec.node.endpoints:
                mine: dict[str, LinkPlan] = {}
                if plan.into:
                    mine["in"] = next(links)
                if plan.out:
                    mine["out"] = next(links)
                others = inputs - {plan.into} != set()
                endpoint = Endpoint(plan, mine, others, host)
                self._endpoints.append(endpoint)
                self.codecs |= endpoint.codecs
        except TransportError as error:
            self.close(in_order=False)
            raise OperatorError(str(error), error.hint) from error

    def _make(self) -> zmq.Context[zmq.Socket[bytes]]:
        if self._own is None:
            self._own = zmq.Context()
        return self._own

    def start(self) -> None:
        """Everybody is ready: read."""
        for one in self._endpoints:
            one.start()

    def flush(self) -> None:
        """Once a turn of the loop: send what is due, and read where there is room again."""
        for one in self._endpoints:
            one.flush()

    def drain(self) -> None:
        """The project ends: read what has come, and nothing more."""
        for one in self._endpoints:
            one.end(last=True)

    def halt(self) -> None:
        """This incarnation ends: as `drain`, but its stream goes on in another."""
        for one in self._endpoints:
            one.end(last=False)

    def resume(self) -> None:
        """It does not end."""
        for one in self._endpoints:
            one.resume()

    def close(self, in_order: bool) -> None:
        """Close all sockets. Takes as long as the last messages need, at most their linger."""
        for one in self._endpoints:
            one.close(in_order)
        if self._own is not None:
            self._own.term()
            self._own = None


def _topic(frame: bytes) -> str | bytes:
    try:
        return frame.decode()
    except UnicodeDecodeError:
        return frame
