"""Links to foreign peers: programs that use ZeroMQ and know nothing of flowkit.

They grant no credit and acknowledge nothing. What they send begins a new lineage in the replica
that receives it, and counts as done when it is done downstream; what is sent to them is done when
ZeroMQ has taken it, for nobody says what became of it. A `ForeignReceiver` and a `ForeignSender`
stand where the engine has its other receivers and senders; the shell gives the one what it reads,
as far as there is `room`, and takes from the other what is to be sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from flowkit.codecs import decode_extras
from flowkit.errors import DecodeError
from flowkit.message import Pieces
from flowkit.protocol import sockets
from flowkit.protocol.batching import MAX_COUNT, Pace
from flowkit.protocol.events import Identity, Terms
from flowkit.protocol.ledger import Books
from flowkit.protocol.lineage import Root, Work, derive, nothing, root_id
from flowkit.protocol.receiver import InBatch, State
from flowkit.protocol.sender import OutBatch
from flowkit.wire import Data

NO_PEER = "no peer"
"""Why a message was dropped: nobody was there who could or would take it."""

NO_ROOM = "no room: newest"
"""Why it was dropped: a peer that was there did not take it in time."""

FOREIGN = 0
"""The session of a batch that came in from a foreign peer; see `engine.REPLAYED`."""


class ForeignReceiver:
    """What comes in on one endpoint. `aside`: the end of the node does not wait for its end.

    The receiver keeps the books of the link, since the peer does not.
    """

    def __init__(
        self,
        identity: Identity,
        terms: Terms,
        books: Books,
        concurrency: int = 1,
        aside: bool = False,
    ) -> None:
        self.terms = terms
        self.concurrency = concurrency
        self.pace = Pace(concurrency)
        """That of the input channel, once the engine has taken the receiver in."""
        self.books = books
        self.state = State.CLOSED if aside else State.LIVE
        self.queue: deque[InBatch] = deque()
        self.held = 0
        self.unhandled = 0
        self.waiting = 0
        self.retired = False
        self._identity = identity
        self._sequence = 0

    @property
    def ended(self) -> bool:
        return self.state is State.CLOSED

    @property
    def room(self) -> int:
        """How many messages may be read."""
        return max(0, self.terms.window - self.waiting)

    def push(self, raws: Sequence[bytes], extras: bytes = b"", born: int = 0) -> None:
        """Take in messages as one batch; `extras` are their keys and headers, encoded."""
        self._sequence += 1
        mine = self._identity
        root = root_id(mine.origin, mine.incarnation, self._sequence)
        # The ids of an endpoint's batches are those of no other's, nor of what is made of them.
        id = derive(root, self.terms.name.encode(), 0, 0)
        payload = Pieces(raws)
        frame = Data(FOREIGN, self._sequence, id, 0, MAX_COUNT, len(raws), 0, payload, extras, born)
        batch = InBatch(self, frame, lambda: self._settled(batch))  # type: ignore[arg-type]
        self.books.sent(len(raws), own=True, size=len(payload))
        self.books.delivered(len(raws), again=False)
        self.held += 1
        self.unhandled += 1
        self.waiting += len(raws)
        self.queue.append(batch)

    def refuse(self, count: int = 1) -> None:
        """A message came in that breaks the rules of its socket."""
        self.books.sent(count, own=True)
        self.books.dropped(count, NO_PEER, own=True)

    def _settled(self, batch: InBatch) -> None:
        self.held -= 1
        batch.settled = nothing
        self.books.settled(batch.count, batch.dead_lettered, batch.dropped, own=True)

    # -- what the engine asks ------------------------------------------------------------------

    def take(self) -> InBatch:
        return self.queue.popleft()

    def close(self) -> None:
        """Nothing more will be read."""
        self.state = State.CLOSED

    def flush(self) -> None:
        return None

    def tick(self) -> None:
        return None

    def gone(self, incarnation: int, done: bool) -> None:
        return None


class _Parcel:
    """A batch on its way out, message by message."""

    __slots__ = ("batch", "raws", "keys", "headers", "at", "lost", "hand")

    def __init__(self, batch: OutBatch, hand: list[bytes] | None) -> None:
        self.batch = batch
        payload = batch.payload
        assert isinstance(payload, Pieces)
        self.raws = payload.parts
        try:
            self.keys, self.headers = decode_extras(batch.extras, batch.count)
        except DecodeError:  # pragma: no cover - this process has encoded them
            self.keys = self.headers = None
        self.at = 0
        self.lost: dict[str, int] = {}
        self.hand = hand
        """The envelope of the message in hand, if it came in on the same endpoint."""


class ForeignSender:
    """What goes out on one endpoint.

    `next` is the message to be sent; then call `sent` or `lost`. On a REQ it is `sent` when its
    answer has come. `frames_of` makes the body of a raw message; `address` is the envelope of what
    has none.
    """

    def __init__(
        self,
        kind: str,
        terms: Terms,
        books: Books,
        *,
        frames_of: Callable[[bytes], list[bytes]],
        inlet: int | None = None,
        address: list[bytes] | None = None,
        peer: str | None = None,
    ) -> None:
        self.kind = kind
        self.terms = terms
        self.books = books
        self._frames_of = frames_of
        self._inlet = inlet
        self._address = address
        self._peer = peer
        self._parcels: deque[_Parcel] = deque()
        self._head: list[bytes] | None = None
        self.topic = b""
        """What the message to be sent begins with."""
        self.messages = 0
        self.bytes = 0
        self.unaddressed = 0
        """Messages that were dropped because nothing said where to."""

    # -- what the shell asks -------------------------------------------------------------------

    def next(self) -> list[bytes] | None:
        """The frames to be sent; None if there are none."""
        while self._head is None and self._parcels:
            parcel = self._parcels[0]
            at = parcel.at
            body = self._frames_of(parcel.raws[at])
            key = parcel.keys[at] if parcel.keys else None
            if key is not None and self.kind in sockets.PUBLISHERS:
                body = [key if isinstance(key, bytes) else str(key).encode(), *body]
            headers = parcel.headers[at] if parcel.headers else None
            envelope = self._envelope(headers or {}, parcel)
            self._head = sockets.sealed(self.kind, envelope, body, self._peer)
            if self._head is None:
                self.unaddressed += 1
                self.lost(NO_PEER)
            else:
                self.topic = self._head[0] if self._head else b""
        return self._head

    def _envelope(self, headers: Mapping[str, str], parcel: _Parcel) -> list[bytes] | None:
        text = headers.get(sockets.ENVELOPE)
        if text is not None:
            try:
                return sockets.from_header(text)
            except ValueError:
                return None
        return self._address if parcel.hand is None else parcel.hand

    def sent(self) -> None:
        """The message of `next` was taken, or answered."""
        self.books.delivered(1, again=False)
        self._gone()

    def lost(self, reason: str) -> None:
        """The message of `next` cannot be delivered."""
        lost = self._parcels[0].lost
        lost[reason] = lost.get(reason, 0) + 1
        self._gone()

    def _gone(self) -> None:
        self._head = None
        parcel = self._parcels[0]
        parcel.at += 1
        if parcel.at < len(parcel.raws):
            return
        self._parcels.popleft()
        batch = parcel.batch
        self.messages -= batch.count
        self.bytes -= batch.size
        done = batch.count
        for reason, count in parcel.lost.items():
            self.books.dropped(count, reason, batch.own)
            done -= count
        self.books.settled(done, 0, 0, batch.own)
        if batch.work is not None:
            batch.work.release()

    # -- what the engine asks ------------------------------------------------------------------

    derived = True
    max_count = MAX_COUNT
    cut = MAX_COUNT
    credit = 0

    def fit(self, asked: int) -> int:
        """As `Sender.fit`: whatever is right for the others."""
        return asked

    def offer(self, batches: Sequence[OutBatch]) -> None:
        for batch in batches:
            self.books.sent(batch.count, batch.own, batch.size)
            self.messages += batch.count
            self.bytes += batch.size
            hand = None
            if batch.work is not None:
                batch.work.pending += 1
                hand = self._in_hand(batch.work)
            self._parcels.append(_Parcel(batch, hand))

    def _in_hand(self, work: Work) -> list[bytes] | None:
        """The envelope of the one message that `work` is the handling of."""
        parents = work.parents if isinstance(work, Root) else ()
        if self._inlet is None or len(parents) != 1:
            return None
        (batch,) = parents
        if not isinstance(batch, InBatch) or batch.terms.index != self._inlet or batch.count != 1:
            return None
        try:
            _, headers = decode_extras(batch.extras, 1)
        except DecodeError:  # pragma: no cover - this process has encoded them
            return None
        text = (headers[0] or {}).get(sockets.ENVELOPE) if headers else None
        return None if text is None else sockets.from_header(text)

    @property
    def full(self) -> bool:
        return self.messages > 0 and self.at_window

    @property
    def at_window(self) -> bool:
        return self.messages >= self.terms.window or self.bytes >= self.terms.window_bytes

    @property
    def idle(self) -> bool:
        return self.messages == 0

    @property
    def queued(self) -> int:
        return self.messages

    def flush(self) -> None:
        return None

    def tick(self) -> None:
        return None

    def end(self) -> None:
        return None

    def close(self) -> None:
        return None

    def gone(self, replica: int, incarnation: int) -> None:
        return None

    def hold(self, replica: int, on: bool) -> None:
        return None

    def is_clear(self, replica: int) -> bool:
        return True
