"""What every way of calling handlers needs: the ports, the messages of a batch, giving up.

A handler that returns has sent what it sent; one that raises has sent nothing, and the node's
error policy says what becomes of its message.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from flowkit.channels import CLOSED, Outbox, OutPort, current_outboxes
from flowkit.codecs import Codec, decode_extras
from flowkit.codecs.preview import preview
from flowkit.errors import DecodeError, MessageError
from flowkit.message import Key, Meta, message_id
from flowkit.node import Node
from flowkit.protocol.engine import Unsendable
from flowkit.protocol.receiver import InBatch
from flowkit.store import DeadLetter
from flowkit.topology.plan import ErrorPolicy

log = logging.getLogger("flowkit.node")

FAILED = (Exception, asyncio.CancelledError)
"""What a handler may raise that is its own failure. CancelledError is no Exception; one that comes
out of a handler is that of something it asked for."""

OURS = ("flowkit.runtime", "flowkit.importing", "importlib", "asyncio")
"""Where frames of a traceback come from that say nothing to the author of a node."""

KEPT = 10_000
"""Characters kept of a message that could not be encoded."""

PREVIEW = 120
"""Characters of a message shown in the log."""

WHOLE, SHORT = 3, 10
"""How many failures of one kind are told with their traceback, and how many at all, one by one;
after that the tenth, the hundredth and so on."""


class StopProject(Exception):
    """The error policy of the node asks to stop the project."""


class Ports:
    """The output ports of a node, and where they write to at the moment."""

    def __init__(self, node: Node) -> None:
        self.names = list(node.__flowkit__.outputs)
        self.ports: dict[str, OutPort[Any]] = {name: getattr(node, name) for name in self.names}
        self.tasks = node.__flowkit__.tasks
        self.idle: dict[str, Outbox] = dict.fromkeys(self.names, CLOSED)
        """Where the ports write to while no handler runs: refuses, but for a `run()`."""

    def fresh(self) -> dict[str, Outbox]:
        return {name: Outbox() for name in self.names}

    def open(self, boxes: dict[str, Outbox]) -> None:
        """Let the ports write to `boxes`, for a plain function called next."""
        if self.tasks:
            current_outboxes.set(dict(boxes))
        else:
            for name, port in self.ports.items():
                port.use(boxes[name])

    def close(self) -> None:
        if self.tasks:
            # A task that was left behind has this very mapping, and finds it empty.
            opened = current_outboxes.get()
            if opened is not None:
                opened.clear()
            current_outboxes.set(None)
        for name, port in self.ports.items():
            port.use(self.idle[name])


class Undertaker:
    """Gives messages up: keeps them as dead letters, or drops them, and tells.

    `keep` stores dead letters; it returns when they are safe.
    """

    def __init__(
        self,
        name: tuple[str, int],
        policy: ErrorPolicy,
        run: str,
        keep: Callable[[list[DeadLetter]], None],
    ) -> None:
        self._node, self._replica = name
        self.policy = policy
        self._run = run
        self._kinds: dict[Any, int] = {}
        self._split: tuple[InBatch, list[bytes]] | None = None
        self._keep = keep

    def bury(
        self,
        batch: InBatch,
        indices: Iterable[int],
        codec: Codec[Any],
        error: BaseException,
        attempts: int,
    ) -> None:
        """Give up the messages at `indices` of `batch` for `error`.

        Raises StopProject if that is the policy.
        """
        where = f"{self._node}.{self._replica}: {batch.terms.into}"
        places = list(indices)
        lines = _lines_of(error)
        if type(error).__name__ == "BdbQuit":
            raise StopProject("the debugger was left")
        shown = (type(error), error, theirs(error)) if lines else None
        if self.policy.then == "stop":
            log.error("%s: %s", where, _summary(error), exc_info=shown)
            raise StopProject(f"{batch.terms.into}: {_summary(error)}")
        raws = self._raws(batch, codec, places)
        ids = [message_id(batch.id, batch.first + place) for place in places]
        tries = f"{attempts} {'try' if attempts == 1 else 'tries'}"
        if self.policy.then == "drop":
            batch.dropped += len(places)
            fate = f"dropped after {tries}"
        else:
            batch.dead_lettered += len(places)
            fate = f"dead-lettered after {tries}"
            keys, headers = extras_of(batch)
            self._keep(
                [
                    DeadLetter(
                        message=ids[number],
                        link=batch.terms.name,
                        node=self._node,
                        replica=self._replica,
                        raw=raws[number],
                        key=keys[place] if keys else None,
                        headers=dict((headers[place] if headers else None) or {}),
                        error=_summary(error),
                        traceback=_printable("".join(lines)),
                        attempts=attempts,
                        run=self._run,
                    )
                    for number, place in enumerate(places)
                ]
            )
        count = self._told(batch, error)
        if count > SHORT and str(count).strip("0") != "1":
            return
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        log.error(
            "%s: %s (message %s%s, %s: %s)%s",
            where,
            _summary(error),
            ids[0],
            more,
            fate,
            preview(raws[0], PREVIEW),
            f"; {count:,} like it so far" if count > WHOLE else "",
            exc_info=shown if count <= WHOLE else None,
        )

    def refused(self, batch: InBatch, error: BaseException) -> str:
        """Tell that the question `batch` has no answer; returns what its asker is told."""
        count = self._told(batch, error)
        if count <= SHORT or str(count).strip("0") == "1":
            log.error(
                "%s.%d: %s: %s (question %s: the asker is told)%s",
                self._node,
                self._replica,
                batch.terms.into,
                _summary(error),
                message_id(batch.id, 0),
                f"; {count:,} like it so far" if count > WHOLE else "",
                exc_info=(type(error), error, theirs(error))
                if count <= WHOLE and _lines_of(error)
                else None,
            )
        return _summary(error)

    def _raws(self, batch: InBatch, codec: Codec[Any], places: Sequence[int]) -> list[bytes]:
        """The raw bytes of the messages at `places`; a batch is split once, however many fail."""
        if self._split is None or self._split[0] is not batch:
            try:
                self._split = batch, codec.split(batch.payload, batch.count)
            except DecodeError:
                # Not even an array: keep the whole payload once.
                return [bytes(batch.payload), *(b"" for _ in places[1:])]
        return [self._split[1][place] for place in places]

    def _told(self, batch: InBatch, error: BaseException) -> int:
        """How many failures of this kind there were: the same error from the same place."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (trace.tb_frame.f_code, trace.tb_lineno) if trace is not None else None
        kind = (batch.terms.index, type(error), place)
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        return self._kinds[kind]

    def unsendable(self, link: str, faults: list[Unsendable]) -> None:
        """Keep and tell what the engine has booked as dead-lettered: it could not be encoded."""
        letters = [
            DeadLetter(
                message=fault.id,
                link=link,
                node=self._node,
                replica=self._replica,
                raw=_shortly(fault.message).encode(errors="replace"),
                key=None,
                headers={},
                error=_summary(fault.error),
                traceback="",
                attempts=0,
                run=self._run,
            )
            for fault in faults
        ]
        self._keep(letters)
        log.error(
            "%s.%d: cannot send on %s: %s (%d dead-lettered)",
            self._node,
            self._replica,
            link,
            letters[0].error,
            len(faults),
        )


def messages_of(
    batch: InBatch, codec: Codec[Any], undertaker: Undertaker
) -> tuple[list[Any], list[int] | None]:
    """The messages of `batch`, and their places in it if some could not be decoded.

    Those are given up at once: they would not decode the next time either.
    """
    try:
        return codec.decode(batch.payload, batch.count), None
    except DecodeError as whole:
        messages: list[Any] = []
        places: list[int] = []
        try:
            raws = codec.split(batch.payload, batch.count)
        except DecodeError:
            undertaker.bury(batch, range(batch.count), codec, whole, 1)
            return [], []
        for place, raw in enumerate(raws):
            try:
                messages.append(codec.decode_one(raw))
                places.append(place)
            except DecodeError as error:
                undertaker.bury(batch, [place], codec, error, 1)
        return messages, places


def metas_of(batch: InBatch, places: Sequence[int]) -> Iterator[Meta]:
    """What handlers with a second argument get, for the messages at `places`."""
    keys, headers = extras_of(batch)
    missed = batch.span if batch.terms.pattern == "pubsub" else 0
    for place in places:
        yield Meta(
            message_id(batch.id, batch.first + place),
            keys[place] if keys else None,
            (headers[place] if headers else None) or {},
            batch.attempts,
            missed,
        )
        missed = 0


def extras_of(batch: InBatch) -> tuple[list[Key] | None, list[Any] | None]:
    """Keys and headers of a batch; what a broken peer sent instead of them counts as none."""
    try:
        return decode_extras(batch.extras, batch.count)
    except DecodeError as error:
        log.error("%s: keys and headers are lost: %s", batch.terms.name, error)
        return None, None


def theirs(error: BaseException) -> TracebackType | None:
    """The traceback of `error` from the user's code on, without the frames that called it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        if not str(trace.tb_frame.f_globals.get("__name__")).startswith(OURS):
            break
        trace = trace.tb_next
    return trace


def _lines_of(error: BaseException) -> list[str]:
    """The traceback, where it says something: there is none of the user's in a decode error."""
    if isinstance(error, MessageError):
        return []
    return traceback.format_exception(type(error), error, theirs(error))


def _shortly(message: Any) -> str:
    """The beginning of a message that has no bytes; not of a text of gigabytes, made for it."""
    if isinstance(message, bytes | str):
        return repr(message[:KEPT])
    return repr(message)[:KEPT]


def _summary(error: BaseException) -> str:
    """The error in one text, whatever it holds."""
    try:
        text = str(error)
    except Exception:
        text = "(an error that cannot be printed)"
    return _printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _printable(text: str) -> str:
    """Without lone surrogates (file names, broken decoders), which neither store nor wire takes."""
    return text.encode("utf-8", "backslashreplace").decode()
