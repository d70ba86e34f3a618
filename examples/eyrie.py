"""A server that hands out jobs and tells everybody the news, and its workers. Nodes of eyrie.yaml.

What CrowdStrike's cs.eyrie showed with two classes, ten sockets' worth of options and a main
program, here without any of the latter two.
"""

from __future__ import annotations

import asyncio
import logging

from flowkit import In, Node, Out
from flowkit.connectors.control import Control

log = logging.getLogger("eyrie")


class Server(Node):
    """Five messages, by turns a job for one worker and news for all; then EXIT."""

    job = Out(str)
    broadcast = Out(str)

    def __init__(self, pause: float = 2.0) -> None:
        self.pause = pause

    async def run(self) -> None:
        for number in range(1, 6):
            await asyncio.sleep(self.pause)
            channel = self.job if number % 2 else self.broadcast
            log.info("Sending %s: This is message #%d", channel.name, number)
            channel.send(f"This is message #{number}")
        self.broadcast.send("EXIT")


class Worker(Control):
    """Logs what it gets. TERM on the control channel ends the project."""

    job = In(str)
    broadcast = In(str)

    def on_job(self, message: str) -> None:
        log.info("Received job: %s", message)

    def on_broadcast(self, message: str) -> None:
        log.info("Received broadcast: %s", message)
