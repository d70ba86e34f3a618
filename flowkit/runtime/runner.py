"""One replica on one event loop: joins a node, its engine, a transport and the supervisor.

The runner executes what the engine asks for and reports what happens; it decides nothing about
delivery. It is the same in a child process and inside somebody's application: what differs is the
transport and who calls `run`.

A *turn* is one round of work: handlers over what has come in, for at most `TURN` seconds, then
everything that is due is sent. When it is taken says `Turns`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

from flowkit.channels import Outbox
from flowkit.clock import Clock, monotonic
from flowkit.errors import ReplicaError, TransportError, WireError
from flowkit.node import Node, Source
from flowkit.protocol import control, events
from flowkit.protocol.engine import Engine, Phase, Unsendable
from flowkit.protocol.ledger import ROW, Books
from flowkit.protocol.lineage import Work
from flowkit.protocol.watch import LOOKS
from flowkit.runtime import shared
from flowkit.runtime.asking import Asking
from flowkit.runtime.committing import Committing
from flowkit.runtime.confirming import Confirms
from flowkit.runtime.foreign import Foreign
from flowkit.runtime.handling import Ports, StopProject, Undertaker
from flowkit.runtime.inlet import Shop
from flowkit.runtime.journaling import JournalDriver
from flowkit.runtime.kit import BARE, Kit
from flowkit.runtime.linkage import codec_of, inlet_of, router_of
from flowkit.runtime.logs import current_replica, set_level
from flowkit.runtime.meter import Meter
from flowkit.runtime.positions import Positions, call
from flowkit.runtime.processor import Use
from flowkit.runtime.replaying import replay
from flowkit.runtime.resting import COMMANDS, Resting
from flowkit.runtime.shared import SharedRows
from flowkit.runtime.sourcing import Outflow, RunDriver, SourceDriver
from flowkit.runtime.spec import ReplicaSpec, terms_of
from flowkit.runtime.stacks import warn_of_standstill
from flowkit.runtime.tapping import Tapping
from flowkit.runtime.timers import Timers, guard_state
from flowkit.runtime.turns import Turns
from flowkit.store import Store
from flowkit.topology.plan import foreign_links
from flowkit.transport.base import Binding, Connection, Transport
from flowkit.wire import decode, encode

log = logging.getLogger("flowkit.replica")

TURN = 0.010
"""Seconds of handlers before the loop turns: what else waits on the loop waits so long."""

TICK = 1.0
"""Seconds between the engine's ticks: heartbeats, and what depends on them."""

BEAT = 0.25
"""Seconds between notes of what is going on, while there is something: a replica that has nothing
in hand, and is no source, is content with one at each tick. What wakes an idle process takes it
0.2 to 0.4 ms of a core, whatever it does then: nothing is in the caches any more."""

EARLY = 0.25
"""The part of a TICK by which a tick of such a replica may come early, if the loop turns anyway:
for a heartbeat, that is. So it wakes once for both."""

LAST_WORDS = 1.0
"""Seconds that the supervisor gets to hear the last log records, before they go to stderr."""

LINGER = 2.0
"""Seconds that the last frames (CLOSE) get to leave the process."""


class Runner:
    """Runs `node` as the replica that `spec` describes, on the running loop.

    Links that ask for tcp are bound on `tcp`, if it is given, all others on `transport`. `cpu` (its
    use of the processor) and `kit` are what a process of its own adds to a replica.

    `run` returns when the replica has left in order; it raises what made it fail.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        node: Node,
        transport: Transport,
        tcp: Transport | None = None,
        clock: Clock = monotonic,
        cpu: Callable[[], Use] | None = None,
        kit: Kit = BARE,
    ) -> None:
        self.spec = spec
        self._kit = kit
        # Callbacks come in the context of whoever has asked for them, another replica's maybe.
        self._context = copy_context()
        self._context.run(current_replica.set, (spec.node.name, spec.replica))
        self.node = node
        node.node, node.replica, node.replicas = spec.node.name, spec.replica, spec.node.replicas
        node._ask_drain = lambda: self.say(control.AskDrain(spec.incarnation))
        self._info = info = node.__flowkit__
        self._transport = transport
        self._tcp = tcp or transport
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._left: asyncio.Future[None] = self._loop.create_future()
        self._turns = Turns(self._turn_once, self._context, clock)
        self.wake = self._turns.soon
        self._store = Store(spec.store, spec.durable)
        kept = [link.index for link in [*spec.outputs, *foreign_links([spec.node])]]
        self._rows = SharedRows(spec.books, len(kept)) if spec.books else None
        self._gauges: Any = self._rows.gauges if self._rows else [0] * shared.GAUGES
        books = self._rows.books if self._rows else [Books([0] * ROW) for _ in kept]
        self.engine = Engine(
            spec.identity(),
            [terms_of(link) for link in spec.inputs],
            [
                (terms_of(link), router_of(link), codec_of(info, link, out=True), book)
                for link, book in zip(spec.outputs, books, strict=False)
            ],
            {name: channel.concurrency for name, channel in info.inputs.items()},
        )
        booked = dict(zip(kept, books, strict=True))
        self._foreign = Foreign(
            spec, node, self.engine, booked, kit.context, self.wake, self.fail, clock
        )
        inputs = [*spec.inputs, *self._foreign.links]
        self._ports = Ports(node)
        name = (spec.node.name, spec.replica)
        self._undertaker = Undertaker(
            name, spec.node.on_error, spec.run, self._store.add_dead_letters
        )
        self._shop = Shop(
            node,
            self.engine,
            self._ports,
            self._undertaker,
            {link.index: codec_of(info, link, out=False) for link in spec.inputs}
            | self._foreign.codecs,
            self._release,
            clock,
            self.wake,
            self.fail,
            self._gauges,
            tracer=kit.tracer,
        )
        self._tapping = Tapping(self._shop, self.engine, self.say, clock)
        self._inlets = [
            inlet_of(self._shop, [one for one in inputs if one.into == into], into, number)
            for number, into in enumerate(self.engine.inboxes, 1)
        ]
        self._meter = Meter(
            self._gauges, self.engine, self._shop, self._inlets, not info.outputs, cpu
        )
        self._outflow = Outflow(self.engine, self._ports, self._release, self._turns.now, clock)
        self._asking = Asking(self._shop, spec.outputs, self._born, self._meter.accrue)
        forgets = {link.out: link.forgets for link in spec.outputs if link.forgets}
        forgets |= {link.out: link.name for link in self._foreign.links if link.out}
        self._confirms = Confirms(self.engine, self._release, self.wake, self._born, forgets)
        for port in self._ports.ports.values():
            port.attach(self._outflow.room, self._confirms.deliver)
        self.timers = Timers(
            node, self.engine, self._ports, self._context, self._send_timed, self._spawn, self.fail
        )
        self._journals = {
            link.index: JournalDriver(spec, link, self.engine, self.wake, self.fail)
            for link in spec.outputs
            if link.durable
        }
        self._bindings: dict[int, Binding] = {}
        self._connections: dict[tuple[int, int], Connection] = {}
        self._control: Connection | None = None
        self._driver: SourceDriver | RunDriver | None = None
        self._driving: asyncio.Future[None] = self._loop.create_future()
        self._driving.set_result(None)
        self._progress = (0, clock())
        self._draining = False
        self._settling: asyncio.Future[None] | None = None
        """Resolved when everything that was sent is acknowledged."""
        self._beginning_again = False
        self._stopped = False
        self._due: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        """When the engine's next tick is, by the loop's clock."""
        self._rests = False
        """Whether there was nothing to watch at the last beat."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._positions = Positions(spec, node, self._store, self._spawn)
        self._committing = Committing(
            node, self._meter, clock, self._settle_work, self._spawn, self.wake
        )
        self._resting = Resting(self)
        self.garbage = 0
        """Frames that made no sense."""

    # -- life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Set the node up, run it until its end, tear it down."""
        current_replica.set((self.spec.node.name, self.spec.replica))
        try:
            if not await self._set_up():
                return
            self._bind()
            self.say(
                control.Ready(
                    self.spec.token,
                    self.spec.node.name,
                    self.spec.replica,
                    self.spec.incarnation,
                    {link: binding.address for link, binding in self._bindings.items()},
                )
            )
            self._asking.open = self._confirms.open = True
            if self._kit.courier is not None and self._control is not None:
                self._kit.courier.connect(self._control.send)
            if self._kit.guard is not None:
                self._kit.guard.start()
            self._tick_at = self._loop.time() + TICK
            self._beat()
            if not self._info.source:
                self.timers.start()
            await self._left
        finally:
            await self._end()

    async def _set_up(self) -> bool:
        """Call `setup`. False if the replica was told to leave meanwhile."""
        task = self._loop.create_task(call(self.node.setup))
        try:
            await asyncio.wait({task, self._left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            return False
        task.result()
        return True

    def leave(self) -> None:
        """Stop at once, with whatever is in hand; the supervisor delivers it to others."""
        if not self._left.done():
            self._left.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Stop: the replica cannot go on."""
        if isinstance(error, StopProject):
            self._stopped = True
            self.say(control.Stop(self.spec.incarnation, str(error)))
        elif not self._left.done():
            self._left.set_exception(error)

    async def _end(self) -> None:
        if self._kit.guard is not None:
            self._kit.guard.stop()
        self._confirms.leave()
        self._asking.leave()
        self.timers.cancel()
        for handle in (self._beating, self._due):
            if handle is not None:
                handle.cancel()
        self._outflow.note()
        if self._driver is not None:
            await self._driver.stop()
            self._outflow.note()  # it may have sent something last
        for inlet in self._inlets:
            await inlet.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await call(self.node.teardown)
        finally:
            if self._kit.courier is not None:
                await self._kit.courier.disconnect(LAST_WORDS)
            # CLOSE frames must arrive; of what fails, others know by its death.
            in_order = self.engine.phase is Phase.CLOSED
            linger = LINGER if in_order else 0.0
            for binding in self._bindings.values():
                binding.close(linger)
            for connection in self._connections.values():
                connection.close(0.0)
            if self._control is not None:
                self._control.close(LINGER)
            self._store.close()
            for journal in self._journals.values():
                journal.close()
            self._foreign.close(in_order)
            if self._rows is not None:
                self._gauges = [0] * shared.GAUGES
                self._rows.close()

    # -- set-up --------------------------------------------------------------------------------

    def _bind(self) -> None:
        for link in self.spec.outputs:
            name = f"l{link.index}.{self.spec.replica}.{self.spec.incarnation}"
            transport = self._tcp if link.transport == "tcp" else self._transport
            self._bindings[link.index] = transport.bind(
                name, partial(self._from_consumer, link.index)
            )
        self._control = self._transport.connect(self.spec.control, self._from_supervisor)

    # -- what comes in -------------------------------------------------------------------------

    def _from_consumer(self, link: int, peer: bytes, parts: list[bytes]) -> None:
        try:
            frame = decode(parts)
        except WireError as error:
            self.garbage += 1
            self.engine.garbage_from_consumer(link, peer, str(error))
        else:
            self.engine.from_consumer(link, peer, frame)
        self._turns.now()

    def _from_producer(self, link: int, producer: int, parts: list[bytes]) -> None:
        try:
            frame = decode(parts)
        except WireError as error:
            self.garbage += 1
            self.engine.garbage_from_producer(link, producer, str(error))
        else:
            self.engine.from_producer(link, producer, frame)
        if not self._turns.at_once():
            self._soon()

    def _from_supervisor(self, parts: list[bytes]) -> None:
        message = control.from_supervisor(parts)
        if isinstance(message, control.ProducerAt):
            at = (message.incarnation, message.address)
            self.engine.producer_at(message.link, message.replica, *at)
        elif isinstance(message, control.Gone) and self._is_me(message):
            self._leave("it was replaced by a later incarnation")
        elif isinstance(message, control.Gone):
            self.engine.peer_gone(message.node, message.replica, message.incarnation, message.done)
        elif isinstance(message, control.Start):
            self._start()
        elif isinstance(message, control.Drain):
            self.drain()
        elif isinstance(message, control.Poison):
            self._shop.poisons.setdefault((message.link, message.id), set()).add(message.index)
        elif isinstance(message, control.Replay):
            for letter in self._store.dead_letters(message.numbers):
                replay(letter, self.spec, self._shop, self.say)
        elif isinstance(message, control.Heard):
            if self._kit.courier is not None:
                self._kit.courier.heard(message.sequence)
        elif isinstance(message, control.SetLevel):
            set_level(message.logger, message.level)
        elif isinstance(message, control.Tap | control.Untap | control.TapHeard):
            self._tapping.hear(message)
        elif isinstance(message, COMMANDS):
            self._resting.obey(message)
        elif self._beginning_again:
            self.leave()
        else:
            self.engine.released()
        self._soon()

    def _is_me(self, gone: control.Gone) -> bool:
        me = (self.spec.node.name, self.spec.replica, self.spec.incarnation)
        return (gone.node, gone.replica, gone.incarnation) == me

    def _start(self) -> None:
        """Everybody is ready: a source begins."""
        self._foreign.start()
        if not self._info.source:
            return
        self.timers.start()
        if self._draining:
            return
        if isinstance(self.node, Source):
            position = self._store.position(self.spec.node.name, self.spec.replica)
            self._driver = SourceDriver(
                self.node, position, self._outflow, self._turn, self._clock, self._gauges
            )
        elif hasattr(self.node, "run"):
            self._driver = RunDriver(self.node, self._outflow, self._clock)
        else:
            return  # timers alone: its stream ends when it is told so
        self._driving = self._spawn(self._drive(self._driver))

    async def _drive(self, driver: SourceDriver | RunDriver) -> None:
        self._meter.reads(driver.pauses)
        await driver.run()
        self._meter.reads(None)
        await self._outflow.close()
        if self._resting.leaving:
            return
        if self.spec.node.restart.policy == "always" and not self._draining:
            await self._settle()
        if self._resting.leaving:
            return  # that was said meanwhile
        if self.spec.node.restart.policy == "always" and not self._draining:
            # Its links stay open for the next incarnation: neither END nor DONE.
            self._beginning_again = True
            self.say(control.Ended(self.spec.incarnation))
            return
        self.engine.end_stream()
        self.wake()

    async def _settle(self) -> None:
        """Return when all is done that this replica has sent; its timers have stopped by then."""
        await self.timers.stop(self.spec.node.watchdog)
        self._settling = self._loop.create_future()
        self.wake()
        await self._settling
        await self.commit()

    async def commit(self) -> None:
        """Commit the last position, and tidy the journals."""
        await self._positions.finish()
        for journal in self._journals.values():
            journal.write()

    def resume(self) -> None:
        """The project has rested, and goes on."""
        self.engine.resume()
        self._foreign.resume()
        if self._driver is not None:
            self._driver.resume()
        self.wake()

    async def stop_reading(self) -> None:
        """End what a source reads, without ending its stream: another incarnation goes on."""
        self._foreign.halt()
        self._draining = True
        if self._driver is not None:
            self._driver.drain()
        await self._driving

    def drain(self) -> None:
        """A source is to stop reading."""
        self._foreign.drain()
        self._draining = True
        if self._driver is not None:
            self._driver.drain()
        else:
            self.engine.end_stream()

    # -- turns ---------------------------------------------------------------------------------

    def _soon(self) -> None:
        """Carry out what cannot wait for the turn, before another frame comes.

        A new connection replaces the one that frames of the old session still come on.
        """
        if self.engine.actions:
            self._act()
        self.wake()

    def _turn_once(self) -> None:
        if self._left.done():
            return
        try:
            self._turn()
            if self._rests:
                self._beat_along()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # Whatever it is: a batch that is half handled must not be begun again.
            self.fail(error)

    def _turn(self) -> None:
        if self._stopped:
            return
        self._turns.begin()
        if self._inlets and self.engine.phase is Phase.OPEN:
            self._handle()
        self._committing.flush()
        self._outflow.flush()
        self._foreign.flush()
        self._confirms.flush()
        self._asking.flush()
        self.engine.flush()
        if self._settling is not None and not self._settling.done() and self.engine.settled:
            self._settling.set_result(None)
        self._act()
        self._meter.note(self._turns.end())

    def _handle(self) -> None:
        until = self._clock() + TURN
        busy = True
        while busy:
            busy = False
            for inlet in self._inlets:
                busy = inlet.step() or busy  # each has its turn, however long another takes
            if self._clock() >= until:
                if busy:
                    self.wake()
                break
        self._wait_for_groups()

    def _wait_for_groups(self) -> None:
        times = [inlet.due_at for inlet in self._inlets]
        due = min((time for time in times if time is not None), default=None)
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if due is not None:
            self._due = self._loop.call_later(max(0.0, due - self._clock()), self.wake)

    def _release(self, work: Work, boxes: Mapping[str, Outbox], count: int = 0) -> None:
        """Offer what was sent to the links, keep what cannot be encoded, finish the work, which
        was to handle `count` messages."""
        for name, box in boxes.items():
            if box.messages:
                messages, keys, headers = box.take()
                faults = self.engine.release(work, name, messages, keys, headers)
                if faults:
                    self._lament(faults)
        self._committing.add(work, count)

    def _settle_work(self, work: Work, count: int) -> None:
        self._meter.settled(work, count)
        work.finish()

    def _lament(self, faults: list[Unsendable]) -> None:
        names = {link.index: link.name for link in self.spec.outputs}
        for link in dict.fromkeys(fault.link for fault in faults):
            mine = [fault for fault in faults if fault.link == link]
            self._undertaker.unsendable(names[link], mine)

    # -- carrying out --------------------------------------------------------------------------

    def _act(self) -> None:
        actions = self.engine.actions
        while actions:
            action = actions.popleft()
            if isinstance(action, events.ToConsumer):
                self._bindings[action.link].send(action.peer, encode(action.frame))
            elif isinstance(action, events.ToProducer):
                connection = self._connections.get((action.link, action.producer))
                if connection is not None and not connection.send(encode(action.frame)):
                    self.engine.unreachable(action.link, action.producer)
            elif isinstance(action, events.Connect):
                self._connect(action)
            elif isinstance(action, events.Disconnect):
                self._disconnect(action.link, action.producer)
            elif isinstance(action, events.Persist | events.Erase):
                self._journals[action.link].take(action)
            elif isinstance(action, events.Complain):
                log.warning("%s: %s", self.spec.name, action.text)
            elif isinstance(action, events.ReportRest | events.ReportHeld):
                self._resting.report(action)
            elif isinstance(action, events.Commit):
                self._positions.commit(action.position)
            elif isinstance(action, events.CallFinish):
                self._spawn(self._finish())
            elif isinstance(action, events.ReportDone):
                self._spawn(self._report_done())
            else:
                self._leave(action.reason)
        for journal in self._journals.values():
            journal.flush()

    def _leave(self, reason: str) -> None:
        if self.engine.phase is Phase.CLOSED:
            self.leave()
        else:
            self.fail(ReplicaError(f"{self.spec.name}: {reason}"))

    def _connect(self, action: events.Connect) -> None:
        place = (action.link, action.producer)
        self._disconnect(*place)
        try:
            self._connections[place] = self._transport.connect(
                action.address, partial(self._from_producer, *place)
            )
        except TransportError as error:  # no descriptors left; without the link it is no use
            self.fail(error)

    def _disconnect(self, link: int, producer: int) -> None:
        connection = self._connections.pop((link, producer), None)
        if connection is not None:
            connection.close(0.0)

    def say(self, message: control.FromReplica) -> None:
        """Tell the supervisor."""
        if self._control is not None:
            self._control.send(control.encode(message))

    async def _finish(self) -> None:
        """Every input has ended: timers stop, the node says its last."""
        await self.timers.stop(self.spec.node.watchdog)
        boxes = self._ports.fresh()
        self._ports.open(boxes)
        try:
            # In a task of its own, so that the outboxes of a coroutine stay this task's.
            await call(self.node.finish)
        finally:
            self._ports.close()
        guard_state(self.node, "finish()", boxes)
        root = self.engine.begin_finish(self._born())
        self._release(root, boxes)
        self.engine.finished()
        self.wake()

    # -- the watchdog --------------------------------------------------------------------------

    def _beat(self) -> None:
        """Note that the loop turns; say so if there is input and nothing gets finished. Tick when
        it is time to."""
        now = self._clock()
        self._meter.turned(now)
        nothing = self._look(now)
        self._rests = nothing and self._driver is None and not self._committing.running
        time = self._loop.time()
        early = EARLY * TICK if self._rests else 0.0
        if time >= self._tick_at - early:
            # A bit later than what it may go along with, so that it meets it.
            self._tick_at = time + TICK + early / 2
            self.engine.tick()
            self._tapping.tick()
            self._soon()
        pause = self._tick_at - time
        if not self._rests:
            pause = min(pause, BEAT)
        pause = min(pause, self.spec.node.watchdog / (2 * LOOKS))
        self._beating = self._loop.call_later(pause, self._beat)

    def _beat_along(self) -> None:
        """The loop turns for something else: if there is little to do, do now what is due soon."""
        if self._beating is not None and self._loop.time() >= self._tick_at - EARLY * TICK:
            self._beating.cancel()
            self._beat()

    def _look(self, now: float) -> bool:
        """The watchdog of handlers that wait. True if there is nothing to watch."""
        seconds = self.spec.node.watchdog
        busy = any(not inlet.idle for inlet in self._inlets)
        room = self.engine.room
        if self._shop.handled != self._progress[0] or not busy or not room:
            self._progress = (self._shop.handled, now)
        elif now - self._progress[1] > seconds:
            self._progress = (self._shop.handled, now)
            held = [inlet for inlet in self._inlets if not inlet.idle]
            knobs = [inlet.knob() for inlet in held if inlet.knob()]
            warn_of_standstill(self.spec.name, seconds, knobs, [each.stacks() for each in held])
        return room and not busy

    def _send_timed(self, boxes: Mapping[str, Outbox]) -> None:
        """Release what a timer has sent."""
        self._release(self.engine.begin(born=self._born()), boxes)
        self.wake()

    def _born(self) -> int:
        return int(self._clock() * 1e9)

    async def _report_done(self) -> None:
        """Say DONE, after the last position is committed: a death after it is no crash."""
        await self.commit()
        self.say(control.Done(self.spec.incarnation))

    def spawn(self, coroutine: Any) -> None:
        """Run a coroutine of the replica; if it raises, the replica fails."""
        self._spawn(coroutine)

    def _spawn(self, coroutine: Any, name: str | None = None) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(
            coroutine, name=name, context=self._context.copy()
        )
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)
