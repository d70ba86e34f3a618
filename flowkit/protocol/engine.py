"""The core of a replica: its links, its unsettled work, and when it may finish, close and leave.

The shell that runs a node calls in: frames with `from_consumer` and `from_producer`, the
supervisor's words with `producer_at` and `peer_gone`, and the work itself: `take` a batch,
`release` what its handlers sent, `finish` the work. After each turn of the loop it calls `flush`
and carries out `actions`. Nothing here knows a socket, a loop, a clock or a process.

The rules of the end (a replica leaves only when nothing depends on it any more):

1. `finish()` runs once, when every input is closed; for a source, when its stream has ended.
2. When that has returned and everything sent is acknowledged, DONE goes to the supervisor.
3. When the supervisor has confirmed it, CLOSE goes to the consumers, and the process may end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

from flowkit.codecs import Codec, encode_extras
from flowkit.errors import EncodeError, MessageTooLarge
from flowkit.message import Key, Payload, message_id
from flowkit.protocol.batching import MAX_COUNT
from flowkit.protocol.events import (
    Action,
    CallFinish,
    Commit,
    Complain,
    Identity,
    Leave,
    ReportDone,
    ReportHeld,
    ReportRest,
    Terms,
)
from flowkit.protocol.ledger import Books
from flowkit.protocol.lineage import FAILED, Root, Roots, Seen, Work, derive
from flowkit.protocol.patterns import Inbox, receiver_for, sender_for
from flowkit.protocol.receiver import InBatch, Receiver
from flowkit.protocol.routing import Cut, Router
from flowkit.protocol.sender import OutBatch
from flowkit.wire import Data, Frame

BATCH_BYTES = 8 << 20
"""A batch whose payload is larger is cut in two, unless it is a single message."""

ROOT_CUTS = 16
"""How many times as large as the batches made of it a root batch may be: bounds how many small
batches one root becomes on its way to a slow handler, while the fast ones before it still get
batches that are worth it."""

UNKNOWN_CUT = 64
"""Messages in a batch for a link whose consumers have not been heard of: if the first message of a
stream becomes a thousand, all replicas of the pool get some."""

MESSAGE_BYTES = 512 << 20
"""The largest message that may be sent."""

REPLAYED = 0
"""The session of a batch that is replayed. Real ones hold an incarnation and are never 0."""


class Phase(Enum):
    """How far a replica is; only forward."""

    OPEN = "open"
    FINISHING = "finishing"
    """`finish()` is running."""
    DRAINING = "draining"
    """Waiting until everything that was sent is acknowledged."""
    REPORTING = "reporting"
    """DONE is reported and not yet confirmed."""
    CLOSED = "closed"


@dataclass(slots=True)
class Outlet:
    """One output link: where it leads, how its messages are cut and encoded."""

    sender: Any  # a Sender, or a ForeignSender
    router: Router
    codec: Codec[Any]
    way: bytes
    """Names the output channel in ids; see `lineage.derive`."""


class Unsendable(NamedTuple):
    """A message that cannot be encoded, or has no key, on output link `link`."""

    link: int
    id: str
    """Stable if the work is delivered again."""
    message: Any
    error: EncodeError | MessageTooLarge


class Released(NamedTuple):
    """What was sent on an output channel, as its first link carries it; for who looks at it."""

    messages: Sequence[Any]
    keys: Sequence[Key] | None
    headers: Sequence[Any] | None
    batches: Sequence[OutBatch]
    """What the messages are in, in order; none if no link leads away."""

    def id(self, number: int) -> str:
        """The id that message `number` arrives with; empty if it does not."""
        for batch in self.batches:
            if number < batch.count:
                return message_id(batch.id, number)
            number -= batch.count
        return ""


class Engine:
    """One replica's links and unsettled work."""

    def __init__(
        self,
        identity: Identity,
        inputs: Sequence[Terms],
        outputs: Sequence[tuple[Terms, Router, Codec[Any], Books]],
        concurrency: Mapping[str, int] | None = None,
    ) -> None:
        self.identity = identity
        self.actions: deque[Action] = deque()
        self.phase = Phase.OPEN
        self.roots = Roots(identity.origin, identity.incarnation, identity.life)
        self.roots.on_commit = self._on_commit
        self.inboxes: dict[str, Inbox] = {}
        self._receivers: dict[int, list[Receiver]] = {}
        self._seen: dict[int, Seen] = {}
        self.paused = False
        """Whether nothing is to begin here: no reading, no timers, no end."""
        self._asked_rest: int | None = None
        self._asked_held: list[tuple[str, int]] = []
        self._inputs = {terms.index: terms for terms in inputs}
        self._outlets: dict[str, list[Outlet]] = {}
        self.senders: dict[int, Any] = {}
        self._stream_ended = False
        self._commit_due = False
        self._taken = 0
        self._injected: dict[str, deque[InBatch]] = {}
        self._replaying = 0
        self.on_release: Callable[[str, Released], None] | None = None
        """Told what is released on which output, while somebody looks."""
        for terms in inputs:
            inbox = self.inboxes.get(terms.into)
            if inbox is None:
                handlers = (concurrency or {}).get(terms.into, 1)
                inbox = Inbox(terms.into, handlers, terms.pattern)
                self.inboxes[terms.into] = inbox
            self._seen[terms.index] = Seen()
            self._receivers[terms.index] = [
                self._receiver(terms, producer) for producer in range(terms.producers)
            ]
        for terms, router, codec, books in outputs:
            sender = sender_for(terms)(identity, terms, books, self.actions.append)
            self.senders[terms.index] = sender
            if terms.pattern == "request":
                continue  # questions are asked, not released
            # The run is part of it, so that no id of another run is ever met again: not among the
            # dead letters, nor in the table of a sink that is idempotent by id.
            way = f"{identity.run}/{terms.out}".encode()
            outlet = Outlet(sender, router, codec, way)
            self._outlets.setdefault(terms.out, []).append(outlet)

    def join(self, receivers: Iterable[Any], outlets: Iterable[Outlet]) -> None:
        """Links with foreign peers, before any work: see `flowkit.protocol.foreign`."""
        for receiver in receivers:
            terms = self._inputs[receiver.terms.index] = receiver.terms
            self._receivers[terms.index] = [receiver]
            inbox = self.inboxes.setdefault(terms.into, Inbox(terms.into, receiver.concurrency))
            receiver.pace = inbox.pace
            inbox.add(receiver)
        for outlet in outlets:
            self.senders[outlet.sender.terms.index] = outlet.sender
            self._outlets.setdefault(outlet.sender.terms.out, []).append(outlet)

    # -- what peers and the supervisor say -----------------------------------------------------

    def from_consumer(self, link: int, peer: bytes, frame: Frame) -> None:
        """A frame came in on the socket bound for output `link`."""
        self.senders[link].receive(peer, frame)

    def from_producer(self, link: int, producer: int, frame: Frame) -> None:
        """A frame came in on the connection to replica `producer` of input `link`."""
        self._receivers[link][producer].receive(frame)

    def garbage_from_consumer(self, link: int, peer: bytes, reason: str) -> None:
        """Bytes that are no frame came in: dropped, counted by the shell, answered with RESET."""
        self.senders[link].refuse(peer, 0, reason)

    def garbage_from_producer(self, link: int, producer: int, reason: str) -> None:
        self._receivers[link][producer].restart(reason)

    def unreachable(self, link: int, producer: int) -> None:
        """The connection to that producer leads nowhere any more, although it may live."""
        self._receivers[link][producer].unreachable()

    def producer_at(self, link: int, replica: int, incarnation: int, address: str) -> None:
        """The supervisor says where a producer listens."""
        self._receivers[link][replica].available(incarnation, address)

    def peer_gone(self, node: str, replica: int, incarnation: int, done: bool) -> None:
        """The supervisor says that a replica is dead, or done with everything."""
        for index, terms in self._inputs.items():
            if terms.source == node and replica < len(self._receivers[index]):
                self._receivers[index][replica].gone(incarnation, done)
        for sender in self.senders.values():
            if sender.terms.target == node:
                sender.gone(replica, incarnation)

    def tick(self) -> None:
        """Call once a second."""
        for sender in self.senders.values():
            sender.tick()
        for receiver in self._all_receivers():
            receiver.tick()

    # -- work ----------------------------------------------------------------------------------

    @property
    def room(self) -> bool:
        """Whether new work may begin: looked at before a batch is taken, never within one."""
        if self.paused and not self.inboxes:
            return False
        if self.roots.full:
            return False
        for sender in self.senders.values():  # no any(): this is asked several times a turn
            if sender.full:
                return False
        return True

    def takes(self, channel: str) -> bool:
        """Whether the links of output `channel` take more: what begins here waits for that."""
        if self.paused or self.roots.full:
            return False
        return not any(outlet.sender.full for outlet in self._outlets.get(channel, ()))

    def holds(self, channel: str, count: int) -> None:
        """So many messages were sent on `channel` that the links do not take yet. They are in the
        books, so that their loss is told if this process dies. A publisher waits for nobody."""
        for outlet in self._outlets.get(channel, ()):
            if outlet.sender.terms.pattern != "pubsub":
                outlet.sender.books.held(count * outlet.router.copies)

    def take(self, channel: str) -> tuple[InBatch, Work] | None:
        """The next batch of `channel` and the work to `release` on; None if there is none.

        The work is the batch itself, except on a lossy link and for what is replayed: nobody holds
        that batch's lineage, so what is made of it begins a new one.
        """
        if not self.room:
            return None
        replayed = self._injected.get(channel)
        batch = replayed.popleft() if replayed else self.inboxes[channel].take()
        if batch is None:
            return None
        self._taken += batch.count
        if batch.terms.lossy or batch.session == REPLAYED:
            work = self.begin(parents=(batch,))
            batch.finish()
            return batch, work
        return batch, batch

    def inject(
        self, link: int, frame: Data, first: int, settled: Callable[[InBatch], None]
    ) -> None:
        """Handle `frame` as if it had come in on `link`: a dead letter that is replayed.

        `first` is the index that its message had in its batch. `settled` is called with the batch
        when it is done downstream, or given up again.
        """

        def done() -> None:
            self._replaying -= 1
            settled(batch)

        frame.session = REPLAYED
        batch = InBatch(self._receivers[link][0], frame, done, first)
        batch.receiver.unhandled += 1
        batch.receiver.waiting += batch.count
        self._replaying += 1
        self._injected.setdefault(self._inputs[link].into, deque()).append(batch)

    def begin(self, position: Any = None, parents: tuple[Work, ...] = (), born: int = 0) -> Root:
        """Open a root, `born` now: a batch of a source, a tick of a timer, a group of messages.

        `parents` are acknowledged only after it. Call `finish` on it when all is released.
        """
        root = self.roots.open(position, parents, born)
        root.cut = self._stamp()
        return root

    def begin_finish(self, born: int = 0) -> Root:
        """Open the root of what `finish()` sends. Its cut is the same in every incarnation."""
        root = self.roots.finish(born)
        root.cut = MAX_COUNT
        return root

    def root_count(self, channel: str) -> int:
        """Messages that a root batch of `channel` should hold now."""
        return min(
            (
                min(outlet.sender.max_count, ROOT_CUTS * outlet.sender.cut)
                for outlet in self._outlets.get(channel, ())
            ),
            default=MAX_COUNT,
        )

    def release(
        self,
        work: Work,
        channel: str,
        messages: list[Any],
        keys: list[Key] | None = None,
        headers: list[Any] | None = None,
    ) -> list[Unsendable]:
        """Offer what was sent while handling `work` to the links of `channel`.

        Call it once for each channel, in a fixed order, then `finish` on the work. What cannot be
        encoded is booked as dead-lettered and returned for the shell to keep and to tell.
        """
        bad: list[Unsendable] = []
        renewed = self.roots.renewed(work)
        own = isinstance(work, Root) and renewed and not work.parents
        shown: Released | None = None
        for outlet in self._outlets.get(channel, ()):
            sender = outlet.sender
            # A root's ids are never made again, so it may be cut as its consumers ask now; what is
            # made of it must be cut the same way each time, as the root was stamped.
            size = sender.max_count if renewed else sender.fit(work.cut)
            try:
                pieces = _encode(outlet, messages, keys, headers, size)
            except (EncodeError, MessageTooLarge):
                good, faults = _sort_out(outlet, messages, keys, headers)
                lost = len(faults) * outlet.router.copies
                work.taint |= FAILED
                sender.books.sent(lost, own)
                sender.books.dead_lettered(lost, own)
                bad += [
                    Unsendable(
                        sender.terms.index,
                        f"{message_id(work.id, place)}:{channel}",
                        messages[place],
                        error,
                    )
                    for place, error in faults
                ]
                pieces = _encode(outlet, *good, size)
            # The link that the parent came on is part of the way: see `derive`.
            way = outlet.way
            if isinstance(work, InBatch):
                way = b"%b>%b" % (work.terms.name.encode(), way)
            batches = []
            for number, (piece, payload, extras) in enumerate(pieces):
                batches.append(
                    OutBatch(
                        work,
                        derive(work.id, way, number, piece.slot),
                        len(piece.messages),
                        payload,
                        extras,
                        piece.group,
                        own,
                    )
                )
            if batches:
                if self.on_release is not None and shown is None:
                    shown = _shown(outlet, [piece for piece, _, _ in pieces], batches)
                sender.offer(batches)
        if self.on_release is not None:
            self.on_release(channel, shown or Released(messages, keys, headers, []))
        return bad

    def flush(self) -> None:
        """Send what is due: batches, acknowledgements, credit. Once a turn of the loop."""
        for sender in self.senders.values():
            sender.flush()
        for receiver in self._all_receivers():
            receiver.flush()
        if self._commit_due:
            self._commit_due = False
            self.actions.append(Commit(self.roots.committed))
        self._progress()

    def persisted(self, link: int, batches: Sequence[OutBatch], sequences: Sequence[int]) -> None:
        """The journal of `link` holds `batches`, at `sequences`."""
        self.senders[link].persisted(batches, sequences)

    def erased(self, link: int, sequences: Iterable[int]) -> None:
        """The journal of `link` no longer holds those sequences: `Erase` is carried out."""
        self.senders[link].erased(sequences)

    # -- changes -------------------------------------------------------------------------------

    def pause(self) -> None:
        """Begin nothing new: the shell stops timers and reading. Input is handled as before."""
        self.paused = True

    def rest(self, round: int) -> None:
        """Ask for `ReportRest` when nothing is held or unsettled."""
        self.pause()
        self._asked_rest = round
        self._progress()

    def resume(self) -> None:
        """The rest is over."""
        self.paused = False
        self._asked_rest = None
        self._progress()

    def hold(self, node: str, replica: int, on: bool) -> None:
        """Give that consumer nothing new, and ask for `ReportHeld`; or go on."""
        for sender in self.senders.values():
            if sender.terms.target == node:
                sender.hold(replica, on)
        self._asked_held = [one for one in self._asked_held if one != (node, replica)]
        if on:
            self._asked_held.append((node, replica))
            self._answer_held()

    def retire(self) -> None:
        """This replica's stream ends, whatever its producers do for others."""
        self.resume()
        for receiver in self._all_receivers():
            receiver.close()
        self.end_stream()

    def resize(self, link: int, producers: int, consumers: int, version: int) -> None:
        """The ends of `link` have other numbers of replicas; see `Sender.resize`."""
        inlet = self._inputs.get(link)
        if inlet is not None:
            self._inputs[link] = inlet = replace(inlet, producers=producers, consumers=consumers)
            self._grow(inlet)
        sender = self.senders.get(link)
        if sender is not None:
            terms = sender.terms
            sender.resize(replace(terms, producers=producers, consumers=consumers, version=version))
        for outlets in self._outlets.values():
            for outlet in outlets:
                if outlet.sender is sender:
                    outlet.router = outlet.router.resized(consumers, version)

    def _grow(self, terms: Terms) -> None:
        """Receivers for new producers. Those of producers that have left stay, closed, until
        there is a new producer of that number."""
        receivers = self._receivers[terms.index]
        inbox = self.inboxes[terms.into]
        for producer in range(terms.producers):
            if producer == len(receivers):
                receivers.append(self._receiver(terms, producer))
            elif receivers[producer].retired:
                inbox.discard(receivers[producer])
                receivers[producer] = self._receiver(terms, producer)
        for receiver in receivers[terms.producers :]:
            receiver.close()
            receiver.retired = True

    def _receiver(self, terms: Terms, producer: int) -> Receiver:
        inbox, seen = self.inboxes[terms.into], self._seen[terms.index]
        post = self.actions.append
        kind = receiver_for(terms)
        receiver = kind(self.identity, terms, producer, inbox.pace, seen, self._wish, post)
        inbox.add(receiver)
        return receiver

    def _answer_held(self) -> None:
        for node, replica in list(self._asked_held):
            mine = [sender for sender in self.senders.values() if sender.terms.target == node]
            if all(sender.is_clear(replica) for sender in mine):
                self._asked_held.remove((node, replica))
                self.actions.append(ReportHeld(node, replica))

    @property
    def _at_rest(self) -> bool:
        if self.phase is not Phase.OPEN:
            return self.phase in (Phase.REPORTING, Phase.CLOSED)
        return self.settled and not self._replaying and not self.in_hand

    # -- the end -------------------------------------------------------------------------------

    def end_stream(self) -> None:
        """A source's stream has ended, or it was told to stop."""
        self._stream_ended = True
        self._progress()

    def finished(self) -> None:
        """The node's `finish` has returned and what it sent is released."""
        self.phase = Phase.DRAINING
        for sender in self.senders.values():
            sender.flush()
            sender.end()
        self._progress()

    def released(self) -> None:
        """The supervisor has confirmed DONE."""
        if self.phase is not Phase.REPORTING:
            self.actions.append(Complain(f"released while {self.phase.value}"))
            return
        self.phase = Phase.CLOSED
        for sender in self.senders.values():
            sender.close()
        self.actions.append(Leave())

    @property
    def settled(self) -> bool:
        """Whether everything that was sent is acknowledged; `flush` before you ask."""
        return self.roots.idle and all(sender.idle for sender in self.senders.values())

    @property
    def waiting(self) -> int:
        """Messages received and not yet handled."""
        return sum(receiver.waiting for receiver in self._all_receivers())

    @property
    def in_hand(self) -> int:
        """Input batches received and not yet settled."""
        return sum(receiver.held for receiver in self._all_receivers())

    def _progress(self) -> None:
        if self._asked_held:
            self._answer_held()
        if self._asked_rest is not None and self._at_rest:
            self.actions.append(ReportRest(self._asked_rest))
            self._asked_rest = None
        if self.phase is Phase.OPEN and not self.paused:
            ended = self._stream_ended
            if self.inboxes:
                closed = all(inbox.closed for inbox in self.inboxes.values())
                ended = closed and not self._replaying
            if ended:
                self.phase = Phase.FINISHING
                self.actions.append(CallFinish())
            elif self.inboxes and self._nothing_follows():
                for sender in self.senders.values():
                    sender.end()
        elif self.phase is Phase.DRAINING:
            if self.settled:
                self.phase = Phase.REPORTING
                if self._commit_due:
                    self._commit_due = False
                    self.actions.append(Commit(self.roots.committed))
                self.actions.append(ReportDone())

    def _nothing_follows(self) -> bool:
        """Whether all input has ended and is handled, so that at most `finish()` sends more."""
        return all(inbox.ended for inbox in self.inboxes.values()) and not any(
            receiver.unhandled for receiver in self._all_receivers()
        )

    def _all_receivers(self) -> Iterable[Receiver]:
        for inbox in self.inboxes.values():
            yield from inbox.receivers

    def _stamp(self) -> int:
        """How many messages the batches made of a root should hold: as its consumers wish."""
        cut = MAX_COUNT
        for sender in self.senders.values():
            cut = min(cut, sender.cut)
        return cut

    def _wish(self) -> int:
        """The same as far as this replica's input is concerned, to be told upstream.

        Consumers that have acknowledged nothing made of it do not know their pace yet; if that
        stays so (a timer's totals, a rare branch) they matter the less the more input has passed.
        """
        unused = max(UNKNOWN_CUT, self._taken)
        return min(
            (
                min(sender.max_count, sender.cut) if sender.derived else unused
                for sender in self.senders.values()
                if sender.terms.waits
            ),
            default=MAX_COUNT,
        )

    def _on_commit(self) -> None:
        self._commit_due = True


def _shown(outlet: Outlet, pieces: Sequence[Cut], batches: Sequence[OutBatch]) -> Released:
    """The messages of `pieces`, each once."""
    if len(pieces) == 1:
        return Released(pieces[0].messages, pieces[0].keys, pieces[0].headers, batches)
    pairs = list(zip(pieces, batches, strict=True))
    if outlet.router.copies > 1:
        pairs = [pair for pair in pairs if pair[0].group == pieces[0].group]
    messages = [message for piece, _ in pairs for message in piece.messages]
    keys = headers = None
    if pieces[0].keys is not None:
        keys = [key for piece, _ in pairs for key in piece.keys or ()]
    if pieces[0].headers is not None:
        headers = [header for piece, _ in pairs for header in piece.headers or ()]
    return Released(messages, keys, headers, [batch for _, batch in pairs])


def _encode(
    outlet: Outlet,
    messages: list[Any],
    keys: list[Key] | None,
    headers: list[Any] | None,
    size: int,
) -> list[tuple[Cut, Payload, bytes]]:
    if not messages:
        return []
    router, encode = outlet.router, outlet.codec.encode
    found: list[tuple[Cut, Payload, bytes]] = []
    shared: dict[int, list[tuple[Cut, Payload, bytes]]] = {}
    """By chunk: what several replicas get is encoded, and kept until it is acknowledged, once."""
    for piece in router.cut(messages, keys, headers, max(size, 1)):
        made = shared.get(piece.chunk)
        if made is None:
            made = _sized(encode, piece)
            if router.copies > 1:
                shared[piece.chunk] = made
            found += made
        else:
            for part, payload, extras in made:
                found.append((part._replace(group=piece.group, slot=piece.slot), payload, extras))
    return found


def _sized(
    encode: Callable[[Sequence[Any]], Payload], whole: Cut
) -> list[tuple[Cut, Payload, bytes]]:
    """Encode a piece; cut it in two, and again, where it is too large. Depends on its content
    alone."""
    found = []
    pieces = [whole]
    while pieces:
        piece = pieces.pop()
        payload = encode(piece.messages)
        size, count = len(payload), len(piece.messages)
        if size <= BATCH_BYTES or (count == 1 and size <= MESSAGE_BYTES):
            found.append((piece, payload, encode_extras(piece.keys, piece.headers)))
        elif count == 1:
            raise MessageTooLarge(
                f"a message of {size:,} bytes; the limit is {MESSAGE_BYTES:,}", size, MESSAGE_BYTES
            )
        else:
            del payload  # it may be much larger than what is made of it at a time
            half = count // 2
            pieces += [_part(piece, slice(half, count)), _part(piece, slice(0, half))]
    return found


def _part(piece: Cut, place: slice) -> Cut:
    return piece._replace(
        messages=piece.messages[place],
        keys=None if piece.keys is None else piece.keys[place],
        headers=None if piece.headers is None else piece.headers[place],
    )


def _sort_out(
    outlet: Outlet, messages: list[Any], keys: list[Key] | None, headers: list[Any] | None
) -> tuple[tuple[Any, Any, Any], list[tuple[int, EncodeError | MessageTooLarge]]]:
    """Part the messages that can be sent from the places of those that cannot, one by one."""
    places: list[int] = []
    faults: list[tuple[int, EncodeError | MessageTooLarge]] = []
    for place, message in enumerate(messages):
        key = None if keys is None else [keys[place]]
        header = None if headers is None else [headers[place]]
        try:
            _encode(outlet, [message], key, header, 1)
        except (EncodeError, MessageTooLarge) as error:
            faults.append((place, error))
        else:
            places.append(place)
    good = (
        [messages[place] for place in places],
        None if keys is None else [keys[place] for place in places],
        None if headers is None else [headers[place] for place in places],
    )
    return good, faults
