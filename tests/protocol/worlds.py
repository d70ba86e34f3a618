"""Worlds in which something happens at a chosen moment, or is looked at."""

from __future__ import annotations

from flowkit.protocol import control, project
from flowkit.protocol import engine as core
from tests.protocol.processes import Process
from tests.protocol.sim import World


class KillsAfterDone(World):
    """A run in which one replica is killed at a chosen moment, again and again."""

    moment = project.Phase.DONE
    times = 3

    def supervise(self) -> None:
        super().supervise()
        for process in list(self.processes.values()):
            chosen = process.replica.phase is self.moment and process.node.name == "w"
            if chosen and process.alive and self.times:
                self.times -= 1
                self.kill(process)


class KillsBeforeDone(World):
    """Every replica of the pool is killed when it has reported DONE, before that is heard."""

    def heard(self, process: Process, message: control.FromReplica) -> None:
        known = isinstance(message, control.Done) and process.node.name == "w"
        if known and process.incarnation < 3:
            self.kill(process)
            return
        super().heard(process, message)


class Remembering(World):
    """Looks at how many ids consumers remember."""

    most = 0
    ids = 0

    def observe(self, process: Process, channel: str, message: str) -> None:
        super().observe(process, channel, message)
        for inbox in process.engine.inboxes.values():
            for receiver in inbox.receivers:
                self.most = max(self.most, len(receiver._seen))

    def judge(self) -> None:
        self.ids = max(len(ids) for ids in self.arrived.values())
        super().judge()


class RetiringWorld(World):
    """One replica of the pool dies, is started again, and dies for good when it says HELLO."""

    victim = ("w", 2)

    def tell(self, process: Process, message: control.FromSupervisor) -> None:
        super().tell(process, message)
        replica = process.replica
        if (replica.node, replica.number) == self.victim:
            if isinstance(message, control.Gone | control.ProducerAt):
                strike = self.crash if process.incarnation == 1 else self.retire
                self.at(process.told_at + self.random.random() * 0.1, lambda: strike(process))

    def crash(self, process: Process) -> None:
        if self.project.started:
            self.kill(process)
        elif process.alive:
            self.after(0.05, lambda: self.crash(process))

    def retire(self, process: Process) -> None:
        if not process.alive:
            return
        self.kill(process)
        replica = process.replica
        replica.phase = project.Phase.ENDED
        self.buried.add((replica.node, replica.number, process.incarnation))
        self.project._announce(replica, process.incarnation, done=True)
        self.supervise()


class TimerProcess(Process):
    """Replicas of the pool have a timer that sends; a tick that finds no room is skipped."""

    EVERY = 0.02

    def __init__(self, world: World, replica: project.Replica) -> None:
        super().__init__(world, replica)
        if self.node.name == "w":
            world.after(self.EVERY, self.timer)

    def timer(self) -> None:
        if self.alive and self.engine.phase is core.Phase.OPEN:
            self.receive(self.fire)
            self.world.after(self.EVERY, self.timer)

    def fire(self) -> None:
        self.world.stats["ticks"] += 1
        if self.engine.phase is core.Phase.OPEN and self.engine.room:
            self.send_tick()
        else:
            self.world.stats["skipped"] += 1

    def send_tick(self) -> None:
        root = self.engine.begin()
        self.release(root, [("out", "tick")])
        root.finish()


class TimerWorld(World):
    """A world of such processes; how many ticks there are is not known before."""

    process_class = TimerProcess

    def observe(self, process: Process, channel: str, message: str) -> None:
        if message != "tick":
            super().observe(process, channel, message)


class SlowProcess(Process):
    handling = (0.3, 0.5)


class SlowWorld(World):
    """Queues are full, since handlers take longer than the network."""

    process_class = SlowProcess
