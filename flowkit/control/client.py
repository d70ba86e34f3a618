"""A client of a running project: finds its supervisor through the private run directory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import zmq

from flowkit.errors import OperatorError
from flowkit.protocol import control

CONTACT = "contact.json"
"""The file in the run directory that says where the supervisor listens, and the token it wants."""


def leave_contact(directory: Path, address: str, token: str) -> None:
    """Written by the supervisor; the directory is private, and so is the file. Who reads it finds
    all of it or nothing."""
    path = directory / f"{CONTACT}.new"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"address": address, "token": token}), encoding="utf-8")
    path.replace(directory / CONTACT)


class Client:
    """A connection to the supervisor whose run directory is `directory`. Use it in a `with`.

    Raises OperatorError if nothing runs there.
    """

    def __init__(self, directory: Path) -> None:
        try:
            contact = json.loads((directory / CONTACT).read_text(encoding="utf-8"))
        except OSError:
            raise OperatorError("the project is not running") from None
        self._token: str = contact["token"]
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(contact["address"])

    def replay(self, numbers: Sequence[int], timeout: float) -> Iterator[control.Replayed]:
        """Try dead letters again; yields what became of each, as it is known.

        Raises OperatorError when `timeout` seconds pass without an answer.
        """
        self._socket.send_multipart(control.encode(control.Replay(list(numbers), self._token)))
        for _ in numbers:
            if not self._socket.poll(int(timeout * 1000)):
                raise OperatorError(
                    f"the project has not answered for {timeout:g} s", hint="is it stopped?"
                )
            message = control.from_supervisor(self._socket.recv_multipart())
            assert isinstance(message, control.Replayed)
            yield message

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
