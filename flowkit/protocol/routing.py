"""Which replica gets which message: cuts what was sent into batches, by route.

``balance``: any replica; ``key``: the replica of the key's group; ``broadcast``: every replica. A
*group* is the number of a consumer replica; `ANY` where the choice is the link's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.errors import EncodeError
from flowkit.message import Key, slot_of

ANY = -1


class Cut(NamedTuple):
    """A piece of what was sent: one batch to be. `slot` and `chunk` go into its id."""

    group: int
    slot: int
    chunk: int
    messages: list[Any]
    keys: list[Key] | None
    headers: list[Any] | None


def extractor(path: str) -> Callable[[Any], Key]:
    """A function that reads `path` (``"user.id"``) from a message: attributes or mapping keys."""
    names = path.split(".")

    def read(message: Any) -> Any:
        for name in names:
            message = message[name] if isinstance(message, Mapping) else getattr(message, name)
        return message

    return read


def itself(message: Any) -> Any:
    """The key of a message that is a scalar."""
    return message


class Router:
    """Cuts the messages of one output for one link.

    `by` reads the key of a message that was sent without one. `version` is the version of the key
    map; ids depend on it, since another map cuts batches differently.
    """

    def __init__(
        self, route: str, groups: int, by: Callable[[Any], Key] = itself, version: int = 0
    ) -> None:
        self.route = route
        self.groups = groups
        self._by = by
        self._version = version & 0xFFFF  # the rest of the four bytes is the group's
        self._of_text: dict[str, int] = {}

    @property
    def copies(self) -> int:
        """How many replicas get each message."""
        return self.groups if self.route == "broadcast" else 1

    def cut(
        self,
        messages: list[Any],
        keys: list[Key] | None,
        headers: list[Any] | None,
        size: int,
    ) -> list[Cut]:
        """Cut into batches of `size` messages at most, in order; a pure function of its input.

        Raises `EncodeError` if a message has no key on a keyed link to several replicas; with a
        single one the keys are not looked at.
        """
        if self.route == "key":
            if self.groups > 1:
                return self._by_key(messages, keys, headers, size)
            return _chunks(0, self._version << 16, messages, keys, headers, size)
        if self.route == "broadcast":
            return [
                piece
                for group in range(self.groups)
                for piece in _chunks(group, group, messages, keys, headers, size)
            ]
        return _chunks(ANY, 0, messages, keys, headers, size)

    def resized(self, groups: int, version: int) -> Router:
        """The router for another number of replicas."""
        return Router(self.route, groups, self._by, version)

    def group_of(self, key: Key) -> int:
        """The replica that has `key`."""
        return slot_of(key) % self.groups

    def key_of(self, message: Any) -> Key:
        """The key of a message that was sent without one. Raises `EncodeError` if it has none."""
        try:
            return self._by(message)
        except Exception as error:  # the message's own code, which may raise anything
            raise EncodeError(f"no key in {type(message).__name__}: {error!r}") from None

    def _by_key(
        self,
        messages: list[Any],
        keys: list[Key] | None,
        headers: list[Any] | None,
        size: int,
    ) -> list[Cut]:
        places: list[list[int]] = [[] for _ in range(self.groups)]
        known = self._of_text
        for place, message in enumerate(messages):
            key = keys[place] if keys is not None else None
            if key is None:
                key = self.key_of(message)
            if type(key) is str:
                # Words repeat: a look-up is four times faster than packing and hashing the key.
                group = known.get(key)
                if group is None:
                    if len(known) >= 1 << 16:
                        known.clear()
                    group = known[key] = self.group_of(key)
            else:
                try:
                    group = self.group_of(key)
                except TypeError as error:
                    raise EncodeError(f"{key!r} cannot be a key: {error}") from None
            places[group].append(place)
        result = []
        for group, mine in enumerate(places):
            if mine:
                result += _chunks(
                    group,
                    self._version << 16 | group,
                    [messages[place] for place in mine],
                    None if keys is None else [keys[place] for place in mine],
                    None if headers is None else [headers[place] for place in mine],
                    size,
                )
        return result


def _chunks(
    group: int,
    slot: int,
    messages: list[Any],
    keys: list[Key] | None,
    headers: list[Any] | None,
    size: int,
) -> list[Cut]:
    if len(messages) <= size:
        return [Cut(group, slot, 0, messages, keys, headers)]
    return [
        Cut(group, slot, number, messages[start : start + size], _slice(keys, start, size),
            _slice(headers, start, size))
        for number, start in enumerate(range(0, len(messages), size))
    ]  # fmt: skip


def _slice(values: Sequence[Any] | None, start: int, size: int) -> list[Any] | None:
    return None if values is None else list(values[start : start + size])
