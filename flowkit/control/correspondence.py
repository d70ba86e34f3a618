"""What both kinds of client share, without a socket: whom they speak to, and what they are told."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from flowkit.clock import monotonic
from flowkit.control.places import Place, choose, read_contact
from flowkit.errors import NotRunning, OperatorError, RequestFailed
from flowkit.protocol import requests
from flowkit.protocol.caller import Caller, Refusal, Word
from flowkit.protocol.requests import Failed, Items, Told
from flowkit.protocol.session import NAME

PATIENCE = 15.0
"""Seconds without a sign of life after which a project is taken to be stuck. One that is alive
answers in milliseconds, unless a handler of the application around it holds its loop."""

LOOK = 0.5
"""Seconds of silence after which it is looked whether the project is still there."""

T = TypeVar("T")
OnTold = Callable[[str], None]


class Skipped(msgspec.Struct, frozen=True):
    """In a stream: `count` items were left out here, because this client was too slow; None if it
    is not known how many."""

    count: int | None


class Correspondence:
    """A session with the project that is meant, which runs at `place` and listens at `_address`;
    raises NotRunning if it does not, and what `choose` raises."""

    def __init__(self, project: str | os.PathLike[str] | Place | None, patience: float) -> None:
        if not isinstance(project, Place):
            project = choose(None if project is None else os.fspath(project))
        self.place = project
        self._patience = patience
        contact = read_contact(self.place.directory.path)
        if contact is None or self.place.pid is None:
            raise self._gone()
        self._address = contact.address
        self._caller = Caller(contact.token, lambda: secrets.token_bytes(NAME), monotonic())

    def _file(self, file: str | os.PathLike[str] | None) -> str:
        """The topology file that is meant, for a process in another directory."""
        return os.path.abspath(file if file is not None else self.place.file)

    # -- what a request is told ----------------------------------------------------------------

    def _hear(self, word: Word, tell: OnTold | None = None) -> None:
        """Take in a word that is no answer; raises what went wrong."""
        if isinstance(word, Told) and tell is not None:
            tell(word.text)
        elif isinstance(word, Failed):
            raise self._failure(word)

    def _items(self, word: Word, kind: type[T]) -> Iterator[T | Skipped]:
        """What a word of a stream brings; raises what went wrong."""
        self._hear(word)
        if isinstance(word, Items):
            if word.skipped:
                yield Skipped(word.skipped)
            for item in word.items:
                yield requests.unpack(item, kind)

    # -- what goes wrong, in words -------------------------------------------------------------

    def _failure(self, word: Failed) -> OperatorError:
        if word.code == requests.ENDED:
            return NotRunning(word.text, word.hint)
        return RequestFailed(word.code, word.text, word.hint)

    def _refusal(self, word: Refusal) -> RequestFailed:
        return RequestFailed(word.code, f"{self.place.project}: {word.text}")

    def _gone(self) -> NotRunning:
        return NotRunning(f"not running: {self.place.name}", "flowkit ls shows what there is")

    def _silent(self, seconds: float) -> OperatorError:
        return OperatorError(
            f"{self.place.project} (process {self.place.pid}) has shown no sign of life for "
            f"{seconds:.0f} s",
            hint="it is stopped or busy; flowkit down --kill ends it",
        )

    def _is_there(self) -> bool:
        """Whether the process that was found at first still runs the project."""
        return self.place.directory.holder() == self.place.pid
