"""The supervisor: starts the replicas of a project, keeps them running, drains them, reports.

It carries out what `protocol.project.Project` decides: launches processes, passes on who is where
and who is dead, reads the counters that outlive a process. It runs on the event loop it is created
in, installs no signal handler and no logging, and may share the loop with an application and with
other supervisors::

    async with Supervisor("topology.yaml") as project:
        report = await project.drained()
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flowkit import __version__
from flowkit import status as statuses
from flowkit.clock import Clock, monotonic
from flowkit.control.capture import Captures
from flowkit.control.door import Door, Listening
from flowkit.control.guests import Guests
from flowkit.control.leftovers import Wishes, look_at_leftovers
from flowkit.control.places import Place, look_at
from flowkit.control.reception import Reception
from flowkit.control.replays import Replays
from flowkit.control.server import LAST_WORDS
from flowkit.control.slowness import Slowness
from flowkit.control.standstill import Standstill
from flowkit.control.taps import Listener, Tap, Taps
from flowkit.control.watcher import Logging, Several
from flowkit.control.watcher import Silent as Silent
from flowkit.control.watcher import Watcher as Watcher
from flowkit.control.words import Words
from flowkit.embedding import DRAIN_TIMEOUT as DRAIN_TIMEOUT
from flowkit.embedding import Embeddable, Signals
from flowkit.errors import FlowkitError, WireError
from flowkit.figures import Figures, Run, Scene
from flowkit.launchers.base import Launcher, parse_name
from flowkit.launchers.fleet import Fleet, Make
from flowkit.launchers.inprocess import InProcessLauncher
from flowkit.launchers.process import ProcessLauncher
from flowkit.operations import Changeable, Given, Operations, members_of
from flowkit.protocol import control
from flowkit.protocol import project as core
from flowkit.protocol.project import Project, Replica, Status, Wanted
from flowkit.report import Report, compile_report, progress
from flowkit.rundir import RunDirectory
from flowkit.runtime import descriptors, spec
from flowkit.runtime.books import ReplicaBooks, open_books
from flowkit.runtime.planning import load_plan
from flowkit.sampling import EVERY
from flowkit.store import Store
from flowkit.topology.code import Topology
from flowkit.topology.plan import Plan, kept_by
from flowkit.transport.base import Binding, Transport
from flowkit.transport.memory import MemoryHub, MemoryTransport
from flowkit.transport.zmq import NAME_EXTRA, ZmqTransport, raise_file_limit

LEAVE_GRACE = 10.0
"""Seconds at least that a replica may take to end after it has reported that it is done."""

OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

STACK_GRACE = 0.5
"""Seconds that a stuck replica gets to print its stack before it is killed."""

TERM_GRACE = 2.0
"""Seconds between SIGTERM, which lets `teardown` run, and SIGKILL."""

LONGEST_NAME = len("l999.999.9999999")
"""Bytes of the longest name of a socket: link, replica, incarnation."""


class Supervisor(Changeable, Embeddable):
    """Runs one project, once: `topology` is its file, a `Topology`, or a `Plan`. See `Embeddable`.

    Making one blocks, a second perhaps: its classes are looked at, in a process of their own.
    `resume` goes on from the positions that an earlier run left, `fresh` forgets them; without
    either, positions left by a run that was not drained are an error (`DirtyStop`), since only the
    caller knows what is wanted. `in_process` runs all replicas on this loop, for debugging.
    Without `sources` they are not started: for replaying dead letters alone.
    `watcher` is told what replicas print and what becomes of them; by default that is logged.
    `http` is an address to serve figures on ("127.0.0.1:8787", or "8787"; port 0 is any).
    With `signals` SIGINT and SIGTERM drain it, and kill it when they come again.
    `method` is how processes start: "fork", "spawn", or None for what the system does best.
    """

    def __init__(
        self,
        topology: Given,
        *,
        in_process: bool = False,
        resume: bool = False,
        fresh: bool = False,
        sources: bool = True,
        method: str | None = None,
        watcher: Watcher | None = None,
        http: str | Listening | None = None,
        signals: bool = False,
        drain_timeout: float = DRAIN_TIMEOUT,
        clock: Clock = monotonic,
    ) -> None:
        self._directory = os.getcwd()
        self.plan = self.load(topology)
        self.in_process = in_process
        self._resume, self._fresh = resume, fresh
        self._sources, self._method = sources, method
        self.drain_timeout = drain_timeout
        self._signals = Signals(self, drain_timeout) if signals else None
        self._watcher: Watcher = watcher or Logging()
        self._clock = clock
        self._run = secrets.token_hex(8)
        self._token = secrets.token_hex(16)
        self._project = Project(
            members_of(self.plan), [spec.terms_of(link) for link in self.plan.links], sources
        )
        super().__init__(Operations(self, self._project, self._directory, clock))
        self._books: dict[tuple[str, int], ReplicaBooks] = {}
        self.open_books(self.plan)
        self._rundir = RunDirectory(self.plan.project, self.plan.path)
        self._journals = self._rundir.state / spec.JOURNALS
        self._replays = Replays(self._run, self._pass_on)
        self._figures = Figures()
        self._door = Door(http)
        self._sampling: asyncio.TimerHandle | None = None
        self._words = Words(self._record, self._tell, in_process)
        self._taps = Taps(self._tell)
        self._operations.on_plan.append(self._taps.look)
        self._peers: dict[bytes, tuple[Replica, int]] = {}
        self._peer_of: dict[tuple[str, int], tuple[bytes, int]] = {}
        self._captures = Captures(lambda name, line: self._watcher.output(name, line), self._record)
        self._pids: dict[tuple[str, int], int] = {}
        self._handles: set[asyncio.TimerHandle] = set()
        self._standstill = Standstill(self.plan, self._show_and_kill)
        self._slowness = Slowness(self._project, self.tell, self._later)
        self._wake: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._launcher: Launcher | None = None
        self.guests = Guests(
            self._started, self._exited, self._project, self._operations, in_process
        )
        self._relaunch: asyncio.Task[None] | None = None
        self._launches: list[Replica] = []
        self.hub = MemoryHub()
        """Where replicas meet, if they are all in this process."""
        self._transport: Transport | None = None
        self._binding: Binding | None = None
        self._clients: ZmqTransport | None = None
        """For clients alone, where replicas use memory."""
        self._reception: Reception | None = None
        self._store: Store | None = None
        self._began = self._seconds = 0.0
        self._last_words = ""
        self._closed = False

    def load(self, topology: Given) -> Plan:
        """The plan of a topology, in the directory that the project runs in."""
        if isinstance(topology, Plan):
            return topology
        given = topology if isinstance(topology, Topology) else os.fspath(topology)
        return load_plan(given, os.environ, self._directory)

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the run directory and start all replicas.

        Raises `OperatorError` if the place is not in order. Await `wait` next, and `close` at the
        end, also when this raised.
        """
        self.check_first()
        self._loop = asyncio.get_running_loop()
        self._began = self._clock()
        self.over, self.begun = self._loop.create_future(), self._loop.create_future()
        if self._signals is not None:
            self._signals.install()
        self._rundir.check(LONGEST_NAME + NAME_EXTRA)
        if not self.in_process:
            descriptors.check(self.plan, raise_file_limit())
        self._door.bind()
        self._rundir.acquire()
        self._rundir.acquire_state()
        self._store = Store(str(self._rundir.state / spec.STORE))
        self._journals.mkdir(exist_ok=True)
        wishes = Wishes(self._sources, self._resume, self._fresh)
        look_at_leftovers(self.plan, self._journals, self._store, wishes)
        hub = self.hub
        sockets = ZmqTransport(self._rundir.path, largest=2 * control.LIMIT)
        if self.in_process:
            self._transport, self._clients = MemoryTransport(hub, self._loop), sockets
        else:
            self._transport = sockets
        self._binding = self._transport.bind("control", self._from_replica)
        self._receive_clients()
        self._store.set_fact("topology", self.plan.path)
        self._launcher = self._make_launcher(hub)
        await self._launcher.start()
        self._project.start(self._clock())
        self._act()
        self._slowness.begin()
        self._sample()
        self._door.open(self)
        if not self.in_process:
            self._look()

    def drain(self, timeout: float = DRAIN_TIMEOUT) -> None:
        """Stop the sources and let everything in flight be done, for at most `timeout` seconds.

        When it is called again the earlier end counts.
        """
        if self.over.done():
            return
        if not self._project.draining:
            in_flight = self.in_flight()
            self._watcher.draining(in_flight)
            for node in self.stopped:
                self._watcher.note(
                    f"{node} is stopped: what waits for it stays in flight (flowkit start {node})"
                )
            self._project.drain()
            for node in self._project.absent if in_flight else ():
                self._watcher.note(f"{node} is absent: what waits for it needs its application")
        self._later(timeout, self._too_late, timeout)
        self._act()

    def kill(self) -> None:
        """End everything at once, with whatever is in flight."""
        if self.over.done():
            return
        self._project.kill()
        self._act(gently=False)

    async def close(self) -> None:
        """End what is left and free everything. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "over"):
            self.kill()  # what ends now is not started again, and nobody is told that it will be
        if self._signals is not None:
            self._signals.remove()
        await self._door.close()
        for handle in self._handles:
            handle.cancel()
        for timer in (self._wake, self._looking, self._sampling):
            if timer is not None:
                timer.cancel()
        if self._relaunch is not None:
            self._relaunch.cancel()
            await asyncio.gather(self._relaunch, return_exceptions=True)
        await self.guests.close()
        if self._launcher is not None:
            await self._launcher.close()
        self._words.close()
        self._captures.close()
        if self._store is not None and self._project.started and self._sources:
            try:
                self._store.end_run(self._run, clean=self._project.status is Status.DRAINED)
            except sqlite3.Error as error:  # then the next run takes this one for killed, and asks
                self._watcher.note(f"how the run has ended cannot be kept: {error}")
        listened_to = self._reception is not None and await self._reception.close()
        for transport in (self._transport, self._clients):
            if transport is not None:
                transport.close(LAST_WORDS if listened_to else 0.0)
                transport.join()
        now = self._clock()
        await self._operations.close()
        for books in self._books.values():
            books.close(now, dead=False)
        if self._store is not None:
            self._store.close()
        self._rundir.release()

    # -- what is known -------------------------------------------------------------------------

    @property
    def pids(self) -> dict[str, int]:
        """The process of each replica that runs, by name ("split.0")."""
        return {f"{node}.{number}": pid for (node, number), pid in self._pids.items()}

    @property
    def place(self) -> Place:
        """Where others find the project."""
        return look_at(self._rundir)

    @property
    def state_directory(self) -> Path:
        """Where positions and dead letters are kept."""
        return self._rundir.state

    def progress(self) -> tuple[int, int | None]:
        """How many messages of the sources are done downstream, and how many there will be.

        The second is None unless every source knows.
        """
        return progress(self._project, self._books)

    def in_flight(self) -> int:
        """How many messages are under way between replicas."""
        return self.report().in_flight

    def report(self) -> Report:
        """The books as they are now."""
        now = self._clock()
        return compile_report(
            self.plan,
            self._project,
            self._books,
            self._replays.booked,
            now,
            self._seconds or now - self._began,
            self._last_words,
            self._operations.former,
            self._figures.began,
        )

    def status(self) -> statuses.Status:
        """Everything about the project as it is now; rates and shares are of the last seconds."""
        now, over = self._clock(), self.over.done()
        run = Run(self._run, __version__, over, self._door.url)
        return self._figures.status(self._scene(), self.report(), now, run)

    def histograms(self) -> dict[tuple[str, int], tuple[list[int], list[int]]]:
        """The histograms of each replica: seconds in handlers, and ages where messages end."""
        return {key: books.histograms() for key, books in self._books.items()}

    def _scene(self) -> Scene:
        former = self._operations.former
        return Scene(self.plan, self._project, self._books, self._pids, self.in_process, former)

    def _sample(self) -> None:
        self._sampling = self._loop.call_later(EVERY, self._sample)
        self._figures.sample(self._scene(), self._clock())

    # -- words and taps ------------------------------------------------------------------------

    def set_level(self, node: str, replica: int | None, level: int | str, logger: str = "") -> None:
        """Set a log level while the project runs; see `flowkit.control.words.Words.set_level`."""
        self._words.set_level(self.plan, node, replica, level, logger)

    def tap(self, node: str, channel: str, on_message: Listener, limit: int | None = None) -> Tap:
        """Show `on_message` what passes through a channel; see `flowkit.control.taps.Taps.open`."""
        return self._taps.open(self.plan, node, channel, on_message, limit)

    def _record(self, key: tuple[str, int], record: control.Record) -> None:
        self._captures.remember(key, record)
        self._watcher.record(f"{key[0]}.{key[1]}", record)

    def _tell(self, key: tuple[str, int], message: control.FromSupervisor) -> None:
        if (replica := self._project.replicas.get(key)) is not None:
            self._pass_on(replica, message)

    # -- set-up --------------------------------------------------------------------------------

    def _receive_clients(self) -> None:
        """From now on others can look at the project, and change it."""
        binding = self._binding
        if self._clients is not None:
            binding = self._clients.bind("control", self._from_replica)
        assert binding is not None
        where = (self._clock, binding.address, self._token, binding.send)
        self._reception = Reception(self, self._rundir, self._run, self._directory, *where)
        self._operations.on_plan.append(self._reception.replanned)
        self._watcher = Several([self._watcher, self._reception.recorder])

    def _begin_run(self) -> None:
        """Before the sources read. A run that never came so far leaves no trace."""
        assert self._store is not None
        if not self._sources:
            return
        if not self._resume:
            self._store.forget_positions()
        self._store.begin_run(self._run)

    def _make_launcher(self, hub: MemoryHub) -> Launcher:
        if self.in_process:
            if self._directory not in sys.path:
                sys.path.insert(0, self._directory)
            return InProcessLauncher(self._started, self._exited, hub)
        return Fleet(self._started, self._exited, self.nursery_for(self.plan))

    def nursery_for(self, plan: Plan) -> Make:
        """Makes launchers that take in the code as it is now."""
        # A module whose node has an environment of its own is imported in its children alone.
        private = {node.use.partition(":")[0] for node in plan.nodes if node.env}
        modules = [module for module in plan.modules if module not in private]
        return lambda started, exited: ProcessLauncher(
            started,
            exited,
            entry="flowkit.runtime.child:main",
            preload=["flowkit.runtime.child", *modules],
            path=[self._directory],
            method=self._method,
            title=f"flowkit: {plan.project}",
        )

    @property
    def fleet(self) -> Fleet | None:
        """Where processes are launched; None if there are none."""
        return self._launcher if isinstance(self._launcher, Fleet) else None

    # -- what happens --------------------------------------------------------------------------

    def _from_replica(self, peer: bytes, parts: list[bytes]) -> None:
        if self._reception is not None and self._reception.received(peer, parts):
            return
        try:
            message = control.from_replica(parts)
        except WireError:
            return  # not one of ours; nothing depends on it
        if isinstance(message, control.Ready):
            key = (message.node, message.replica)
            if not self._knows(message.token):
                return
            # Before the project answers, so that its words find their way.
            before = self._peer_of.get(key)
            self._peer_of[key] = (peer, message.incarnation)
            if self._project.ready(*key, message.incarnation, message.addresses):
                self._peers[peer] = (self._project.replicas[key], message.incarnation)
                for each in (self._words, self._taps, self.guests):
                    each.ready(key)
            else:
                if before is not None:
                    self._peer_of[key] = before
                replica = self._project.replicas.get(key)
                if replica is not None and self._binding is not None:
                    gone = control.encode(_gone(replica, message.incarnation))
                    self._binding.send(peer, gone)
        elif peer in self._peers:
            replica, incarnation = self._peers[peer]
            if isinstance(message, control.Said):
                self._words.said((replica.node, replica.number), message)
            elif isinstance(message, control.Tapped):
                self._taps.tapped((replica.node, replica.number), message)
            elif isinstance(message, control.Done):
                self._project.done(replica, incarnation)
                named = [one for one in self.plan.nodes if one.name == replica.node]
                watchdogs = [one.watchdog for one in named]  # none if it was taken out
                grace = max([LEAVE_GRACE, *watchdogs])
                self._later(grace, self._hurry, replica, incarnation, grace)
            elif isinstance(message, control.Ended):
                self._project.stream_ended(replica, incarnation)
            elif isinstance(message, control.AskDrain):
                self.drain()
            elif isinstance(message, control.Stop):
                self._project.stop(replica, incarnation, message.reason)
            elif isinstance(message, control.Resting | control.Held | control.Resized):
                self._project.heard(replica, message)
            elif self._replays.answered(message) and self._store is not None:
                self._store.drop_dead_letters([message.number])
        self._act()

    def _knows(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(), self._token.encode())

    def replay(self, numbers: Sequence[int], answer: Callable[[control.Replayed], None]) -> None:
        """Try dead letters again; `answer` is called once for each, with what became of it."""
        assert self._store is not None
        if self._project.operation is not None:
            self._operations.later.append(lambda: self.replay(numbers, answer))
            return
        letters = self._store.dead_letters(numbers)
        self._replays.ask(numbers, letters, list(self._project.replicas.values()), answer)

    def _started(self, name: str, pid: int) -> None:
        key, incarnation = parse_name(name)
        self._pids[key] = pid
        self._project.attached(self._project.replicas[key], incarnation)
        if self._reception is not None:
            self._reception.launched(self._project.replicas[key], pid)

    def _exited(self, name: str, code: int, error: str | None) -> None:
        key, incarnation = parse_name(name)
        self._pids.pop(key, None)
        self._words.gone(key)
        self._captures.drain(key)
        replica = self._project.replicas[key]
        self._replays.died(replica)
        self._peers = {
            peer: known for peer, known in self._peers.items() if known != (replica, incarnation)
        }
        stuck = self._standstill.epitaph(name)
        error = error or stuck
        held = self._books[key].in_hand()
        # A message that kills makes its process crash or leave; these signals come from outside.
        outside = stuck is not None or error is not None or -code in OUTSIDE
        outside = outside or replica.leaving or replica.wanted is not Wanted.UP
        if held is not None and not outside and replica.incarnation == incarnation:
            self._project.had_in_hand(replica, *held)
        self._project.exited(replica, incarnation, code, error, self._clock())
        self._act()

    def _hurry(self, replica: Replica, incarnation: int, grace: float) -> None:
        """A replica that is done must end; nothing depends on it any more."""
        if replica.phase is not core.Phase.DONE or replica.incarnation != incarnation:
            return
        self._watcher.note(
            f"{replica.name} is done, but has not ended for {grace:g} s (its teardown, or a thread "
            "that is left); it is killed"
        )
        self._show_and_kill(f"{replica.name}#{incarnation}")

    def _show_and_kill(self, name: str) -> None:
        """Kill a replica after it has shown its stack."""
        self._signal(name, signal.SIGUSR1)
        self._later(STACK_GRACE, self._end, name)

    def _look(self) -> None:
        """Kill the replicas whose loops stand still, after they have shown where."""
        self._looking = self._loop.call_later(self._standstill.every, self._look)
        self._standstill.look(self._clock(), self.plan, self._project, self._books)

    def _too_late(self, timeout: float) -> None:
        if self._project.status is Status.RUNNING:
            self._project.kill(Status.TIMED_OUT, f"not drained in {timeout:g} s")
            self._act()

    # -- carrying out --------------------------------------------------------------------------

    def _act(self, gently: bool = True) -> None:
        actions = self._project.actions
        while actions:
            action = actions.popleft()
            if isinstance(action, core.Tell):
                self._pass_on(action.replica, action.message)
            elif isinstance(action, core.Launch):
                self._launch(action.replica)
            elif isinstance(action, core.Kill):
                self._kill(action.replica, gently)
            elif isinstance(action, core.Bury):
                key = (action.replica.node, action.replica.number)
                self._books[key].close(self._clock(), dead=True)
                self._rundir.remove_sockets(
                    self._books[key].links, action.replica.number, action.incarnation
                )
                # Should it live after all (stopped, and its launcher dead): it is to leave.
                self._pass_on(action.replica, _gone(action.replica, action.incarnation))
            elif isinstance(action, core.Poisoned):
                self._watcher.poisoned(action)
            elif isinstance(action, core.Vacated):
                assert self._reception is not None
                self._reception.vacated(action, self._watcher.note)
            elif isinstance(action, core.Started):
                try:
                    self._begin_run()
                except sqlite3.Error as error:
                    # Before a source is told to begin: it would read from positions of old.
                    actions.clear()
                    self._project.kill(Status.MISCONFIGURED, f"cannot keep its state: {error}")
                else:
                    self._figures.begin(self._clock())
                    self._watcher.ready(self._clock() - self._began)
                    self.begun.set_result(None)
            elif isinstance(action, core.Adopt):
                self._operations.adopted(action.operation)
            elif isinstance(action, core.Restore | core.Completed):
                self._operations.happened(action)
            elif isinstance(action, core.Died):
                replica = action.replica
                self._last_words = self._captures.last_words((replica.node, replica.number))
                self._operations.died(action, self._last_words)
                self._watcher.died(action, replica.restart.policy.max)
            elif not self.over.done():
                self._seconds = self._clock() - self._began
                self.over.set_result(None)
                if self._reception is not None:
                    self._reception.ended(self.report().as_dict())
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        due = self._project.wake_at
        if due is not None and not self._closed:
            self._wake = self._loop.call_later(max(0.0, due - self._clock()), self._tick)

    def _tick(self) -> None:
        self._project.tick(self._clock())
        self._act()

    def _pass_on(self, replica: Replica, message: control.FromSupervisor) -> None:
        place = self._peer_of.get((replica.node, replica.number))
        if place is not None and place[1] == replica.incarnation and self._binding is not None:
            self._binding.send(place[0], control.encode(message))

    def _launch(self, replica: Replica) -> None:
        launcher = self._launcher if not replica.external else self.guests
        if isinstance(launcher, Fleet) and launcher.pid is None:
            self._launches.append(replica)
            if self._relaunch is None or self._relaunch.done():
                self._relaunch = self._loop.create_task(self._new_launcher())
            return
        try:
            self._launch_now(replica)
        except (FlowkitError, OSError) as error:  # no descriptors, no room for its counters
            self._never_lived(replica, f"could not be started: {error}")
            self._loop.call_soon(self._act)

    def _launch_now(self, replica: Replica) -> None:
        key = (replica.node, replica.number)
        plan = self._operations.plan_for(replica)
        node = plan.node(replica.node)
        name = f"{replica.name}#{replica.incarnation}"
        rows = self._rundir.path / f"{name}.rows"
        self._books[key].open(rows, self._clock(), kept_by(plan, node))
        launcher = self.guests if replica.external else self._launcher
        assert self._binding is not None and launcher is not None
        around = spec.Surroundings(
            self._run, self._token, self._binding.address, self._rundir.path, self._rundir.state
        )
        boxed = not self.in_process and not replica.external
        levels = self._words.levels(key)
        description = spec.describe(plan, replica, around, rows, levels, boxed)
        stdout = stderr = None
        if description.box:
            self._words.expect(key, replica.incarnation, Path(description.box))
            stdout, stderr = self._captures.open(key)
        launcher.launch(
            name,
            spec.encode(description),
            title=f"flowkit: {self.plan.project}/{replica.name}",
            env=node.env,
            stdout=stdout,
            stderr=stderr,
        )
        self._slowness.launched(replica)

    def open_books(self, plan: Plan) -> None:
        """Books for the replicas that have none yet."""
        open_books(self._books, plan, self._project.replicas)

    def tell(self, text: str) -> None:
        """Tell the operator."""
        self._watcher.note(text)

    def carry_out(self) -> None:
        """Do what the project has decided."""
        self._act()

    async def _new_launcher(self) -> None:
        """The launcher died, and its replicas with it: start another for those to come."""
        assert isinstance(self._launcher, Fleet)
        error = None
        try:
            await self._launcher.renew()
        except (FlowkitError, OSError) as caught:
            error = f"could not be started: {caught}"
        waiting, self._launches = self._launches, []
        for replica in waiting:
            if error is None and self._project.status is Status.RUNNING:
                self._launch(replica)
            else:
                self._never_lived(replica, error or "was not started")
        self._act()

    def _never_lived(self, replica: Replica, error: str) -> None:
        """No process came of a launch: the restart policy decides, or the end goes on."""
        self._project.exited(replica, replica.incarnation, 1, error, self._clock())

    def _kill(self, replica: Replica, gently: bool) -> None:
        name = f"{replica.name}#{replica.incarnation}"
        if gently:
            self._signal(name, signal.SIGTERM)
            self._later(TERM_GRACE, self._end, name)
        else:
            self._end(name)

    def _end(self, name: str) -> None:
        self._signal(name, signal.SIGKILL)

    def _signal(self, name: str, number: int) -> None:
        for launcher in (self._launcher, self.guests):
            if launcher is not None:
                launcher.kill(name, number)  # those that do not know the name do nothing

    def _later(self, seconds: float, function: object, *arguments: object) -> None:
        now = self._loop.time()
        self._handles = {handle for handle in self._handles if handle.when() > now}
        self._handles.add(self._loop.call_later(seconds, function, *arguments))  # type: ignore[arg-type]


def _gone(replica: Replica, incarnation: int) -> control.Gone:
    return control.Gone(replica.node, replica.number, incarnation, False)
