"""Questions and answers: the two ends of a link with ``pattern: request``.

Theory of operation. The link is that of any pipeline, from the replicas that ask to those that
serve: the same sessions, credit and end, so that a server leaves after its clients. A question is
a batch of one. Each client keeps its questions in one queue and gives the next to the server with
the fewest of its own in hand; a server lets it have no more of them than its handlers can work at,
or as many as take a moment. So what waits, waits where it can still go to anybody.

The answer comes back as DATA with the question's session and sequence, in whatever order answers
are ready; an ACK follows and returns the credit. A session that ends takes its questions along:
each is asked again, of another server, as often as its asker has allowed, and is lost after that.
Never otherwise: a question that was in hand may have been answered already, with all its effects.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from flowkit import wire
from flowkit.message import Payload
from flowkit.protocol.batching import MAX_AHEAD, MAX_COUNT, Pace
from flowkit.protocol.events import Action, Identity, Terms
from flowkit.protocol.ledger import Books
from flowkit.protocol.lineage import Work, derive, nothing, root_id
from flowkit.protocol.receiver import InBatch, Receiver, State
from flowkit.protocol.routing import ANY
from flowkit.protocol.sender import OutBatch, Sender, Session
from flowkit.wire import Ack, Credit, Data, Frame

MOMENT = 0.005
"""Seconds of work that a server lets a client have with it beyond what its handlers are at."""

ANSWERED, REFUSED = 0, 1
"""What `attempts` says in the DATA of an answer: its body is the answer, or a text that says why
there is none."""


class Outcome(Enum):
    """What became of a question; the values are the ledger's reasons."""

    OPEN = ""
    ANSWERED = "answered"
    FAILED = "request failed"
    """The server's handler raised, or its answer cannot be sent."""
    TIMED_OUT = "timed out"
    LOST = "server lost"
    """The server died with it, or its session has ended, and it may not be asked again."""
    CANCELLED = "cancelled"


class Question(OutBatch):
    """A question on its way. `told` is called once, when `outcome` is no longer open.

    `retries` is how often it may still be asked again after its server was lost; `answer` what
    came back, or why nothing did; `server` the replica that had it last.
    """

    __slots__ = ("retries", "told", "outcome", "answer", "server", "back")

    def __init__(
        self,
        work: Work,
        payload: Payload,
        extras: bytes,
        retries: int,
        told: Callable[[Question], None],
    ) -> None:
        super().__init__(work, work.id, 1, payload, extras, ANY, False)
        self.work = None
        self.retries = retries
        self.told = told
        self.outcome = Outcome.OPEN
        self.answer: Payload = b""
        self.server = -1
        self.back = False
        """Whether that replica has answered."""

    @property
    def over(self) -> bool:
        return self.outcome is not Outcome.OPEN


class Asker(Sender):
    """The asking end of a request link, in one replica. It knows no time: the shell says when a
    question has `expired`."""

    def __init__(
        self, identity: Identity, terms: Terms, books: Books, post: Callable[[Action], None]
    ) -> None:
        super().__init__(identity, terms, books, post)
        self._forgetting = False
        self._asked = 0
        self._way = f"{identity.run}/{terms.name}".encode()
        # Questions are never put together, so nothing here bounds how other messages are.
        self.max_count = self.cut = MAX_COUNT
        self.derived = True

    @property
    def full(self) -> bool:
        return False  # a caller waits for each answer, and that bounds them

    @property
    def queued(self) -> int:
        return len(self._queues[0])

    def ask(
        self,
        payload: Payload,
        extras: bytes,
        retries: int,
        told: Callable[[Question], None],
        born: int = 0,
    ) -> Question:
        """Put a question; call `flush` when the loop's turn has put all.

        Its id is the same however often it is asked, so that a server can know it again.
        """
        if self._closed:
            raise AssertionError(f"{self.terms.name}: a question after CLOSE")
        self._asked += 1
        root = root_id(self._identity.origin, self._identity.incarnation, self._asked)
        work = Work(derive(root, self._way, 0, 0), 0, 1, nothing, born)
        question = Question(work, payload, extras, retries, told)
        self.books.sent(1, own=False, size=question.size)
        self._hold(question)
        self._queue(question)
        return question

    def expire(self, question: Question, outcome: Outcome = Outcome.TIMED_OUT) -> None:
        """Nobody waits for the answer any more. A server that has it in hand works on."""
        if not question.over:
            self._conclude(question, outcome)

    def flush(self) -> None:
        queue = self._queues[0]
        while queue:
            question = queue[0]
            assert isinstance(question, Question)
            if not question.over:
                session = self._least_loaded(question)
                if session is None:
                    return
                self._deliver(session, question)
                question.server = session.replica
                # Among equals, the one whose turn is longest ago.
                self._sessions[session.id] = self._sessions.pop(session.id)
            queue.popleft()

    def receive(self, peer: bytes, frame: Frame) -> None:
        if not isinstance(frame, Data):
            super().receive(peer, frame)
            return
        session = self._sessions.get(frame.session)
        if session is None or session.peer != peer:
            self.refuse(peer, frame.session, "unknown session")
            return
        session.silent = 0
        place = frame.sequence - session.acked - 1
        if not 0 <= place < len(session.unacked):
            self._break(session, f"an answer to {frame.sequence}, asked {session.sequence}")
            return
        question = session.unacked[place]
        assert isinstance(question, Question)
        if not question.back:
            question.back = True
            session.load -= 1
        if not question.over:
            question.answer = frame.payload
            failed = frame.attempts != ANSWERED
            self._conclude(question, Outcome.FAILED if failed else Outcome.ANSWERED)

    def _ack(self, session: Session, frame: Ack) -> None:
        while session.acked < frame.sequence:
            session.acked += 1
            question = session.unacked.popleft()
            assert isinstance(question, Question)
            session.load -= not question.back
            if not question.over:
                self._conclude(question, Outcome.LOST)  # the server has nothing more to say

    def _credit(self, session: Session, frame: Credit | Ack) -> None:
        session.limit = max(session.limit, frame.limit)
        session.limit_bytes = max(session.limit_bytes, frame.limit_bytes)

    def _adapt(self) -> None:
        return None

    def _take_back(self, session: Session, dead: bool) -> None:
        again: list[OutBatch] = []
        for question in session.unacked:
            assert isinstance(question, Question)
            if question.over:
                continue
            if question.retries:
                question.retries -= 1
                again.append(question)
            else:
                self._conclude(question, Outcome.LOST)
        self._queues[0].extendleft(reversed(again))

    def _conclude(self, question: Question, outcome: Outcome) -> None:
        question.outcome = outcome
        question.payload = question.extras = b""
        self._hold(question, -1)
        if outcome is Outcome.ANSWERED:
            self.books.settled(1, 0, 0, own=False)
        else:
            self.books.dropped(1, outcome.value, own=False)
        told, question.told = question.told, _nobody
        told(question)


def _nobody(question: Question) -> None:
    return None


class Steps(Pace):
    """The pace of a serving channel: `ahead` counts questions a client may have with this server.

    As many as there may be handlers at work; where they take less than `MOMENT` together, more, so
    that the next is there when one is done.
    """

    __slots__ = ("_concurrency",)

    def __init__(self, concurrency: int = 1) -> None:
        super().__init__(concurrency)
        self._concurrency = self.ahead = concurrency

    def record(self, count: int, size: int, seconds: float) -> None:
        super().record(count, size, seconds)
        self.max_count = 1
        quick = int(MOMENT / max(self._batch, 1e-6))
        self.ahead = max(self._concurrency, min(MAX_AHEAD, quick))


class Answerer(Receiver):
    """The serving end of a request link, for one replica that asks."""

    def _begin(self, session: int) -> None:
        # The asker has given up, or asks again, what was not begun.
        while self.queue:
            self.queue.popleft().finish()
        super()._begin(session)
        self._answered = 0
        self._answers: dict[InBatch, tuple[Payload, int]] = {}

    def answer(self, batch: InBatch, payload: Payload, kind: int = ANSWERED) -> None:
        """What to answer the question `batch` when it is settled: when all that its handler has
        sent is done."""
        self._answers[batch] = payload, kind

    def _settled(self, batch: InBatch) -> None:
        payload, kind = self._answers.pop(batch, (b"", REFUSED))
        current = batch.session == self._session
        if current and self.state is State.LIVE and payload:
            self._say(Data(batch.session, batch.sequence, batch.id, 0, 1, 1, kind, payload, b"", 0))
        self._answered += current
        super()._settled(batch)

    def _limit(self) -> int:
        return self._answered + self.pace.ahead

    def _wishes(self) -> tuple[int, int]:
        return 1, 1

    def receive(self, frame: wire.Frame) -> None:
        if isinstance(frame, Data) and frame.count != 1:
            self.restart(f"{frame.count} questions in one")
            return
        super().receive(frame)
