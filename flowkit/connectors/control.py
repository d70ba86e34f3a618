"""A control channel: a word from outside ends the project."""

from __future__ import annotations

import logging

from flowkit.channels import In
from flowkit.node import Node

log = logging.getLogger("flowkit.control")

TERM = b"TERM"


class Control(Node):
    """Drains the project when a message ends with the frame ``TERM``; other words are logged.

    Give it an endpoint, usually a SUB::

        endpoints:
          - {channel: control.commands, socket: SUB, connect: "ipc:///run/herald"}

    A subclass has the channel beside its own; the endpoint is then `aside`, so that the node's end
    does not wait for it.
    """

    commands = In(list[bytes])

    def on_commands(self, frames: list[bytes]) -> None:
        word = frames[-1] if frames else b""
        if word == TERM:
            log.warning("received TERM: the project is drained")
            self.drain()
        else:
            log.info("received %s, which means nothing here", word.decode(errors="replace"))
