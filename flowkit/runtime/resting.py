"""What a replica does while its project is changed: it rests, goes on, retires, or leaves.

The commands come from the supervisor; see `flowkit.protocol.change` for what they are good for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from flowkit.protocol import control, events

if TYPE_CHECKING:
    from flowkit.runtime.runner import Runner

COMMANDS = (
    control.Rest,
    control.Resume,
    control.Hold,
    control.Retire,
    control.Leave,
    control.Resize,
)


class Resting:
    """The part of a `Runner` that obeys `COMMANDS`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._round = 0
        self.leaving = False
        """Whether this incarnation is about to end, and another one to go on with its stream."""

    def obey(self, message: control.FromSupervisor) -> None:
        """Do what was said; the runner takes a turn afterwards."""
        runner = self._runner
        engine = runner.engine
        match message:
            case control.Rest(round, leaving):
                self._round = round
                self.leaving = leaving
                if not leaving:
                    engine.pause()
                runner.spawn(self._rest(round))
            case control.Resume():
                self._round = 0
                runner.resume()
            case control.Hold(node, replica, on):
                engine.hold(node, replica, on)
            case control.Retire():
                self._round = 0
                runner.resume()
                if engine.inboxes:
                    engine.retire()
                else:
                    runner.drain()
            case control.Resize(round, replicas, links):
                runner.node.replicas = replicas
                for size in links:
                    engine.resize(size.link, size.producers, size.consumers, size.version)
                runner.say(control.Resized(runner.spec.incarnation, round))
            case _:
                runner.leave()

    async def _rest(self, round: int) -> None:
        """Let what runs by itself end; then what was sent has to be settled."""
        runner = self._runner
        if self.leaving:
            await runner.stop_reading()
            runner.engine.pause()
        running = runner.timers.running
        if running:
            await asyncio.wait(running)
        if self._round == round:
            runner.engine.rest(round)
            runner.wake()

    def report(self, action: events.ReportRest | events.ReportHeld) -> None:
        """The engine has an answer."""
        runner = self._runner
        if isinstance(action, events.ReportHeld):
            held = control.Held(runner.spec.incarnation, action.node, action.replica)
            runner.say(held)
        else:
            runner.spawn(self._rests(action.round))

    async def _rests(self, round: int) -> None:
        await self._runner.commit()
        self._runner.say(control.Resting(self._runner.spec.incarnation, round))
