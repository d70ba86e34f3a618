"""The two ends of a link, by its pattern; and the input channel that links lead to."""

from __future__ import annotations

from collections import deque

from flowkit.protocol.asking import Answerer, Asker, Steps
from flowkit.protocol.batching import Pace
from flowkit.protocol.events import Terms
from flowkit.protocol.publishing import Publisher
from flowkit.protocol.receiver import InBatch, Receiver, State
from flowkit.protocol.sender import Sender

_SENDERS: dict[str, type[Sender]] = {"request": Asker, "pubsub": Publisher}


def sender_for(terms: Terms) -> type[Sender]:
    """What a producer's end of the link is."""
    return _SENDERS.get(terms.pattern, Sender)


def receiver_for(terms: Terms) -> type[Receiver]:
    """What a consumer's end of the link is, for each producer."""
    return Answerer if terms.pattern == "request" else Receiver


class Inbox:
    """One input channel: the receivers of all links that lead to it, taken from in turn."""

    def __init__(self, channel: str, concurrency: int, pattern: str = "pipeline") -> None:
        self.channel = channel
        self.pace = (Steps if pattern == "request" else Pace)(concurrency)
        self.receivers: list[Receiver] = []
        self._turn: deque[Receiver] = deque()

    def add(self, receiver: Receiver) -> None:
        self.receivers.append(receiver)
        self._turn.append(receiver)

    def discard(self, receiver: Receiver) -> None:
        """Another takes the place of `receiver`, whose producer has left."""
        if not receiver.held:
            self.receivers.remove(receiver)
            self._turn.remove(receiver)

    @property
    def empty(self) -> bool:
        return not any(receiver.queue for receiver in self.receivers)

    def take(self) -> InBatch | None:
        """The next batch, fairly among producers."""
        for _ in range(len(self._turn)):
            receiver = self._turn[0]
            self._turn.rotate(-1)
            if receiver.queue:
                return receiver.take()
        return None

    @property
    def ended(self) -> bool:
        """Whether nothing new is likely to come: what waits for company need not wait any more.

        Only a hint: what a dead producer had sent may still come from another.
        """
        return all(
            receiver.ended or receiver.state is State.CLOSED for receiver in self.receivers
        ) and not any(receiver.queue for receiver in self.receivers)

    @property
    def closed(self) -> bool:
        return all(
            receiver.state is State.CLOSED and not receiver.held for receiver in self.receivers
        )
