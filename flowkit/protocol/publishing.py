"""Publishing: the producer's end of a link with ``pattern: pubsub``.

Every subscriber, which is a replica of the consuming node, gets every message whose key begins with
one of the link's topics. The publisher waits for nobody: each subscriber has a window of its own,
and what does not fit there, or is published while it is away, it misses. Since a subscriber has a
session as on any link, the publisher knows what each of them missed and counts it as ``gap``; end
and close reach all of them.

A subscriber that is there from the start misses nothing of the beginning: until its first session
its messages wait in its window. One that joins later gets what is published from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowkit.errors import EncodeError
from flowkit.message import Key
from flowkit.protocol.events import Action, Complain, Identity, Terms
from flowkit.protocol.ledger import Books
from flowkit.protocol.routing import Cut, Router
from flowkit.protocol.sender import OutBatch, Sender

GAP = "gap"
AWAY = "is away"
OLDEST = "no room: oldest"

MOST = 0xFFFF
"""The most missed messages that a batch can tell of; the books know them all."""


class Topics(Router):
    """Lets through what has one of `topics`: beginnings of keys, which are text or bytes then.

    Without topics everything passes, with a key or without.
    """

    def __init__(
        self,
        groups: int,
        by: Callable[[Any], Key],
        topics: Sequence[str],
        version: int = 0,
    ) -> None:
        super().__init__("broadcast", groups, by, version)
        self._topics = tuple(topics)
        self._raw = tuple(topic.encode() for topic in topics)

    def cut(
        self,
        messages: list[Any],
        keys: list[Key] | None,
        headers: list[Any] | None,
        size: int,
    ) -> list[Cut]:
        """As `Router.cut`, of the messages that pass. Raises `EncodeError` for one without a key
        that could be a topic."""
        if self._topics:
            places = [
                place
                for place, message in enumerate(messages)
                if self._passes((keys[place] if keys else None) or self.key_of(message))
            ]
            if len(places) < len(messages):
                messages = [messages[place] for place in places]
                keys = None if keys is None else [keys[place] for place in places]
                headers = None if headers is None else [headers[place] for place in places]
        return super().cut(messages, keys, headers, size) if messages else []

    def resized(self, groups: int, version: int) -> Router:
        return Topics(groups, self._by, self._topics, version)

    def _passes(self, key: Key) -> bool:
        if isinstance(key, str):
            return key.startswith(self._topics)
        if isinstance(key, bytes):
            return key.startswith(self._raw)
        raise EncodeError(f"{key!r} is no topic: with 'topics' a key is text or bytes")


class Publisher(Sender):
    """The publishing end, in one replica."""

    def __init__(
        self, identity: Identity, terms: Terms, books: Books, post: Callable[[Action], None]
    ) -> None:
        super().__init__(identity, terms, books, post)
        self._missing: dict[int, bool] = {}
        """Subscribers that miss something, and whether they have since the last tick."""
        self._missed: dict[int, int] = {}
        """How many messages each has missed since the last that is queued for it."""

    def gone(self, replica: int, incarnation: int) -> None:
        super().gone(replica, incarnation)
        if replica < len(self._queues) and self._is_away(replica):
            queue = self._queues[replica]
            while queue:
                batch = queue.popleft()
                self._lose(batch, AWAY)
                self._forget(batch)

    def tick(self) -> None:
        super().tick()
        self._missing = {replica: False for replica, still in self._missing.items() if still}

    def _drop_for(self, batch: OutBatch) -> bool:
        batch.span = 0
        if self._is_away(batch.group):
            self._lose(batch, AWAY)
            return True
        return super()._drop_for(batch)

    def _queue(self, batch: OutBatch) -> None:
        # Nobody follows the lineage of what is published, so nobody looks at its span: here it is
        # how many messages the subscriber has missed before this batch.
        batch.span = min(self._missed.pop(batch.group, 0), MOST)
        super()._queue(batch)

    def _is_away(self, replica: int) -> bool:
        """Whether it was there before, or was to be, and is not now."""
        known = replica in self._highest or replica in self._fenced
        return known and replica not in self._of_replica

    def _lose(self, batch: OutBatch, reason: str) -> None:
        super()._lose(batch, GAP)
        queue = self._queues[batch.group]
        missed = batch.span + batch.count
        if reason == OLDEST and queue:
            queue[0].span = min(queue[0].span + missed, MOST)
        else:
            self._missed[batch.group] = self._missed.get(batch.group, 0) + missed
        new = batch.group not in self._missing
        self._missing[batch.group] = True
        if new:  # said once, until it has missed nothing for a second
            who = f"{self.terms.target}.{batch.group}"
            why = AWAY if reason == AWAY else "is slow, and its window is full"
            self._post(Complain(f"{self.terms.name}: {who} {why}: what it misses counts as gap"))
