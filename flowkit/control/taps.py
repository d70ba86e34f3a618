"""Taps: who looks at which channel, and what they are shown. The supervisor's side."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from flowkit.errors import OperatorError, UnknownName
from flowkit.importing import did_you_mean
from flowkit.protocol import control
from flowkit.topology.plan import NodePlan, Plan

log = logging.getLogger("flowkit.supervisor")

Key = tuple[str, int]


class Tapped(msgspec.Struct, frozen=True):
    """A message that has passed through a channel.

    `value` is what JSON can hold of it. Of one that is large it is the beginning of its JSON, as a
    text, and `cut` is set; of bytes that are no text it is their base64, and `binary` is set. `id`
    is empty on an output that leads nowhere. `skipped` messages of this replica have passed
    unseen since the one before.
    """

    node: str
    replica: int
    channel: str
    id: str
    key: Any
    headers: dict[str, str]
    value: Any
    cut: bool = False
    binary: bool = False
    skipped: int = 0


Listener = Callable[[Tapped], object]
"""Gets each message, on the loop. If it returns False or raises, its tap is closed."""


class Tap:
    """One who looks. `shown` and `skipped` count messages; `close` ends it, twice is fine. `on_end`
    is called with the reason if there is nothing to look at any more."""

    def __init__(
        self, taps: Taps, place: tuple[str, str], listener: Listener, limit: int | None
    ) -> None:
        self._taps = taps
        self._place = place
        self._listener = listener
        self._limit = limit
        self._unsaid: dict[int, int] = {}
        self.shown = 0
        self.skipped = 0
        self.closed = False
        self.on_end: Callable[[str], object] = lambda reason: None

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._taps._closed(self, self._place)

    def _show(self, message: Tapped) -> None:
        if self.closed:
            return
        skipped = self._unsaid.pop(message.replica, 0)
        self.shown += 1
        try:
            wanted = self._listener(msgspec.structs.replace(message, skipped=skipped))
        except Exception:
            log.exception("the tap of %s.%s failed and is closed", *self._place)
            wanted = False
        if wanted is False or self.shown == self._limit:
            self.close()

    def _skip(self, replica: int, count: int) -> None:
        self.skipped += count
        self._unsaid[replica] = self._unsaid.get(replica, 0) + count


class Taps:
    """All the taps of a project; `tell` sends a message to a replica, if it runs."""

    def __init__(self, tell: Callable[[Key, control.FromSupervisor], None]) -> None:
        self._tell = tell
        self._open: dict[tuple[str, str], list[Tap]] = {}
        self._ready: set[Key] = set()

    def open(
        self, plan: Plan, node: str, channel: str, listener: Listener, limit: int | None = None
    ) -> Tap:
        """Show `listener` what passes through `channel` of all replicas of `node`.

        An output shows what is sent, when its handler has returned; an input shows what a replica
        takes. Under pressure it is a sample: nothing waits for a tap. Replicas that are started
        later are shown too. It ends with `Tap.close`, or after `limit` messages. Raises
        UnknownName for a node or channel that does not exist.
        """
        names = {one.name: one for one in plan.nodes}
        if node not in names:
            raise UnknownName(f"there is no node '{node}'", hint=did_you_mean(node, names))
        channels = channels_of(plan, names[node])
        if channel not in channels:
            raise UnknownName(
                f"node '{node}' has no channel '{channel}'", hint=did_you_mean(channel, channels)
            )
        if limit is not None and limit < 1:
            raise OperatorError(f"a tap of {limit} messages shows none")
        place = (node, channel)
        tap = Tap(self, place, listener, limit)
        if place not in self._open:
            self._open[place] = []
            self._tell_all(place, control.Tap(channel))
        self._open[place].append(tap)
        return tap

    def look(self, plan: Plan) -> None:
        """The project is `plan` now: taps of channels that it does not have are closed."""
        names = {one.name: one for one in plan.nodes}
        for node, channel in list(self._open):
            if node in names and channel in channels_of(plan, names[node]):
                continue
            what = f"channel '{node}.{channel}'" if node in names else f"node '{node}'"
            for tap in list(self._open[node, channel]):
                tap.close()
                tap.on_end(f"{plan.project} has no {what} any more: a reload has removed it")

    def ready(self, key: Key) -> None:
        """A replica has started: it learns who looks."""
        self._ready.add(key)
        for node, channel in self._open:
            if node == key[0]:
                self._tell(key, control.Tap(channel))

    def tapped(self, key: Key, message: control.Tapped) -> None:
        """A replica has sent copies: show them, and let more come."""
        node, replica = key
        for tap in list(self._open.get((node, message.channel), ())):
            tap._skip(replica, message.skipped)
        for glimpse in message.messages:
            taps = self._open.get((node, message.channel))
            if not taps:
                break
            shown = _tapped(node, replica, message.channel, glimpse)
            for tap in list(taps):
                tap._show(shown)
        if message.size and (node, message.channel) in self._open:
            self._tell(key, control.TapHeard(message.channel, message.size))

    def _closed(self, tap: Tap, place: tuple[str, str]) -> None:
        taps = self._open.get(place, [])
        if tap in taps:
            taps.remove(tap)
        if not taps and self._open.pop(place, None) is not None:
            self._tell_all(place, control.Untap(place[1]))

    def _tell_all(self, place: tuple[str, str], message: control.FromSupervisor) -> None:
        for key in self._ready:
            if key[0] == place[0]:
                self._tell(key, message)


def channels_of(plan: Plan, node: NodePlan) -> list[str]:
    """The inputs and outputs of a node: those of its class, and those that links name."""
    linked = [link.into for link in plan.links if link.target == node.name]
    linked += [link.out for link in plan.links if link.source == node.name]
    return list(dict.fromkeys([*node.inputs, *node.outputs, *linked]))


def _tapped(node: str, replica: int, channel: str, glimpse: control.Glimpse) -> Tapped:
    value: Any
    if glimpse.cut or glimpse.binary:
        value = glimpse.value.decode("utf-8", "ignore")
    else:
        value = msgspec.json.decode(glimpse.value)
    key = msgspec.json.decode(glimpse.key) if glimpse.key else None
    return Tapped(
        node, replica, channel, glimpse.id, key, glimpse.headers, value, glimpse.cut, glimpse.binary
    )
