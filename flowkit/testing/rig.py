"""One node between two others that are the test: what feeds it, and what takes what it sends.

Nothing of flowkit is imitated here but the world around it. All three are run by the runtime's own
`Runner`, over links of the memory transport with their codecs, credit and acknowledgements; who
tells them of each other, and starts a successor, is the supervisor's own `Project`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from flowkit.calls import Call, Serve
from flowkit.channels import In, Out, OutPort
from flowkit.clock import Clock
from flowkit.codecs import Codec
from flowkit.errors import HarnessError, MessageError, WireError
from flowkit.message import Key, Meta
from flowkit.node import Node, NodeInfo, describe
from flowkit.protocol import control
from flowkit.protocol import project as core
from flowkit.protocol.batching import MAX_COUNT
from flowkit.protocol.engine import Engine, Unsendable
from flowkit.protocol.receiver import InBatch
from flowkit.protocol.restart import RestartPolicy
from flowkit.runtime.handling import Undertaker
from flowkit.runtime.runner import Runner
from flowkit.runtime.spec import ReplicaSpec, terms_of
from flowkit.store import DeadLetter
from flowkit.topology.plan import (
    DEFAULT_WINDOW_BYTES,
    ErrorPolicy,
    LinkPlan,
    NodePlan,
    Plan,
    RestartPlan,
)
from flowkit.transport.memory import MemoryHub, MemoryTransport

FEED, TAKE = "test-feed", "test-take"
"""Names of the two nodes around the one that is tested."""

WINDOW = 1024
"""Messages in flight on a link: bounds how far a source reads ahead of what it was asked for."""

RUN, TOKEN = "test", "test"
"""The same each time, and so are the ids of messages."""


class Rig:
    """Runs `node` on the running loop, once `start` has been called.

    `policy` is its error policy; None: what handlers raise goes to `failures`. `links` changes
    fields of the links to inputs, by their names; `answers` are functions that answer what the node
    asks. What is fed goes through `feed` and `ask`, what was sent is in `taken`, and what went
    wrong in `failures`.
    """

    def __init__(
        self,
        node: Node,
        clock: Clock,
        policy: ErrorPolicy | None,
        place: tuple[int, int],
        links: Mapping[str, Mapping[str, Any]],
        answers: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self.info = describe(type(node))
        self.node = node
        self.failures: list[BaseException] = []
        self.taken: dict[str, list[tuple[Any, Meta]]] = {name: [] for name in self.info.outputs}
        self.letters: list[DeadLetter] = []
        """What the node's error policy has kept."""
        self.over = False
        self.position: Any = None
        """Where a source begins."""
        self.begun = False
        self._policy = policy
        self._place = place
        self._clock = clock
        self._answers = answers
        self._asked: set[asyncio.Task[Any]] = set()
        self._queue: _Queue = asyncio.Queue()
        self._successor: Node | None = None
        self.plan = _plan(self.info, policy or ErrorPolicy(), links)
        always = RestartPolicy("on-failure", None, 60.0, 0.0, 0.0)
        members = [
            core.Member(node.name, 1, always, node.source, node.stateful, node.origin)
            for node in self.plan.nodes
        ]
        self.project = core.Project(members, [terms_of(link) for link in self.plan.links])
        self._hub = MemoryHub()
        self._peers: dict[bytes, tuple[str, int]] = {}
        self._peer_of: dict[str, tuple[bytes, int]] = {}
        self.runners: dict[str, _Watched] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # -- what a test asks for ------------------------------------------------------------------

    def start(self) -> None:
        """Set all three up; they are ready in some turns of the loop."""
        self.begun = True
        self._loop = asyncio.get_running_loop()
        self._transport = MemoryTransport(self._hub, self._loop)
        self._binding = self._transport.bind("control", self._from_replica)
        self.project.start(self._clock())
        self._act()

    def feed(
        self, channel: str, messages: Iterable[Any], key: Key, headers: Mapping[str, str] | None
    ) -> None:
        """Send `messages` on the link to an input of the node."""

        def send(node: Node) -> None:
            port: OutPort[Any] = getattr(node, channel)
            for message in messages:
                port.send(message, key=key, headers=headers)

        self._queue.put_nowait(send)

    def ask(
        self, channel: str, question: Any, key: Key, headers: Mapping[str, str] | None
    ) -> asyncio.Future[Any]:
        """Ask the node; the future has its answer."""
        answer: asyncio.Future[Any] = self._loop.create_future()

        async def ask(node: Node) -> None:
            try:
                given = await getattr(node, channel).ask(question, key=key, headers=headers)
            except Exception as error:
                answer.set_exception(error)
            else:
                answer.set_result(given)

        def begin(node: Node) -> None:
            task = self._loop.create_task(ask(node))
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)

        self._queue.put_nowait(begin)
        return answer

    def end(self) -> None:
        """The node's input ends; a source is told to stop reading."""
        if self.info.inputs:
            self._queue.put_nowait(None)
        else:
            self.project.drain()
            self._act()

    def crash(self, successor: Node) -> None:
        """Kill the node; `successor` goes on in its place."""
        self._successor = successor
        self._tasks[self.plan.nodes[0].name].cancel()

    @property
    def settled(self) -> bool:
        """Whether all that was fed is done, and all that the node has sent has come."""
        if self.over:
            return True
        if not self.project.started or not self._queue.empty() or self._asked:
            return False
        feed = self.runners.get(FEED)
        if feed is not None and any(port.sent for port in feed._ports.ports.values()):
            return False
        engines = [runner.engine for runner in self.runners.values()]
        return all(engine.settled and not engine.in_hand for engine in engines)

    @property
    def engine(self) -> Engine:
        """The core of the node's replica."""
        return self.runners[self.plan.nodes[0].name].engine

    def waiting(self) -> str:
        """What is not done, for people."""
        runner = self.runners.get(self.plan.nodes[0].name)
        if runner is None:
            return "setup() has not returned"
        stacks = [stack.rstrip() for inlet in runner._inlets for stack in inlet.stacks()]
        count = runner.engine.in_hand
        return "\n".join([f"{count} {'batch' if count == 1 else 'batches'} in hand", *stacks])

    async def close(self) -> None:
        """End whatever is left; `teardown` runs."""
        self._successor = None
        self.over = True
        tasks = [*self._tasks.values(), *self._asked]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.begun:
            self._transport.close()

    # -- what happens --------------------------------------------------------------------------

    def _from_replica(self, peer: bytes, parts: list[bytes]) -> None:
        try:
            message = control.from_replica(parts)
        except WireError:  # pragma: no cover - they are ours
            return
        if isinstance(message, control.Ready):
            self._peers[peer] = (message.node, message.incarnation)
            self._peer_of[message.node] = (peer, message.incarnation)
            self.project.ready(message.node, 0, message.incarnation, message.addresses)
        else:
            node, incarnation = self._peers[peer]
            replica = self.project.replicas[node, 0]
            if isinstance(message, control.Done):
                self.project.done(replica, incarnation)
            elif isinstance(message, control.Stop):
                self.project.stop(replica, incarnation, message.reason)
        self._act()

    def _act(self) -> None:
        actions = self.project.actions
        while actions:
            match actions.popleft():
                case core.Launch(replica):
                    self._launch(replica)
                case core.Tell(replica, message):
                    peer, incarnation = self._peer_of[replica.node]
                    if incarnation == replica.incarnation:
                        self._binding.send(peer, control.encode(message))
                case core.Kill(replica):
                    if (task := self._tasks.get(replica.node)) is not None:
                        task.cancel()
                case core.Over():
                    self.over = True
                case _:
                    pass

    def _launch(self, replica: core.Replica) -> None:
        node = self.plan.node(replica.node)
        tested = node.name not in (FEED, TAKE)
        spec = ReplicaSpec(
            project=self.plan.project,
            run=RUN,
            token=TOKEN,
            node=node,
            replica=0,
            incarnation=replica.incarnation,
            inputs=[link for link in self.plan.links if link.target == node.name],
            outputs=[link for link in self.plan.links if link.source == node.name],
            control=self._binding.address,
            run_directory="",
            books="",
            journals="",
            store=":memory:",
            origin=replica.origin,
            life=replica.life,
        )
        if node.name == FEED:
            made: Node = _feeder(self.info, self._queue)
        elif node.name == TAKE:
            made = _taker(self.info, self.taken, self._answers)
        else:
            made = self.node
        transport = MemoryTransport(self._hub, self._loop)
        runner = _Watched(spec, made, transport, clock=self._clock)
        runner.mourn(self._undertaker(node, tested))
        if tested:
            made.replica, made.replicas = self._place
            if self.position is not None:
                runner._store.set_position(node.name, 0, self.position)
        if self.info.inputs:  # else a source would read far ahead of what it was asked for
            _hurry(runner)
        self.runners[node.name] = runner
        task = self._loop.create_task(runner.run(), name=spec.name)
        self._tasks[node.name] = task
        task.add_done_callback(partial(self._ended, replica, replica.incarnation))

    def _undertaker(self, node: NodePlan, tested: bool) -> Undertaker:
        who = ((node.name, 0), node.on_error, RUN, self._keep)
        if tested and self._policy is not None:
            return Undertaker(*who)
        return _Witness(self.failures.append, _note(self.info, node.name), *who)

    def _keep(self, letters: list[DeadLetter]) -> None:
        for number, letter in enumerate(letters, len(self.letters) + 1):
            self.letters.append(dataclasses.replace(letter, number=number))

    def _ended(self, replica: core.Replica, incarnation: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(replica.node, None)
        code = 0
        if task.cancelled():
            code = -9
            if self._successor is not None:
                self.node, self._successor = self._successor, None
            else:
                self.project.kill()
        elif (error := task.exception()) is not None:
            code = 1
            self.failures.append(error)
            self.project.kill()
        self.project.exited(replica, incarnation, code, None, self._clock())
        self.project.tick(self._clock())  # a successor begins at once
        if not self.over:
            self._act()


# -- who feeds and who takes ---------------------------------------------------------------------


_Queue = asyncio.Queue[Callable[[Node], object] | None]
"""What the feeding node is to do, in order; None: its stream ends."""


def _feeder(info: NodeInfo, queue: _Queue) -> Node:
    """A source whose channels are called, typed and encoded as the inputs of the tested node."""

    async def run(self: Node) -> None:
        while (do := await queue.get()) is not None:
            do(self)

    body: dict[str, Any] = {"run": run}
    for name, channel in info.inputs.items():
        if isinstance(channel, Serve):
            body[name] = Call(channel.type, channel.answer, codec=channel.codec)
        else:
            body[name] = Out(channel.type, codec=channel.codec)
    made: Node = type("Feed", (Node,), body)()
    return made


def _taker(
    info: NodeInfo,
    taken: dict[str, list[tuple[Any, Meta]]],
    answers: Mapping[str, Callable[[Any], Any]],
) -> Node:
    """A node whose inputs are called, typed and decoded as the outputs of the tested node, and
    which answers what that asks."""
    body: dict[str, Any] = {}
    for name, channel in info.outputs.items():
        body[name] = In(channel.type, codec=channel.codec)
        body[f"on_{name}"] = _collect(taken[name])
    for name, call in info.calls.items():
        body[name] = Serve(call.type, call.answer, codec=call.codec, concurrency=1000)
        body[f"on_{name}"] = _answer(name, answers.get(name))
    made: Node = type("Take", (Node,), body)()
    return made


def _answer(name: str, function: Callable[[Any], Any] | None) -> Callable[..., Any]:
    async def on_question(self: Node, question: Any) -> Any:
        if function is None:
            raise HarnessError(f"nobody answers: NodeHarness(..., answers={{'{name}': function}})")
        answer = function(question)
        return await answer if inspect.isawaitable(answer) else answer

    return on_question


def _hurry(runner: Runner) -> None:
    """Let what is sent together come together, as to a node that has proved to be fast.

    Not to coroutines: what those send is released batch by batch, and slow ones get single
    messages.
    """
    info = runner.node.__flowkit__
    for name, inbox in runner.engine.inboxes.items():
        if isinstance(info.inputs[name], Serve):
            continue
        if info.inputs[name].batch or not info.handlers[name].coroutine:
            inbox.pace.max_count = MAX_COUNT


def _collect(into: list[tuple[Any, Meta]]) -> Callable[..., None]:
    def on_message(self: Node, message: Any, meta: Meta) -> None:
        into.append((message, meta))

    return on_message


def _plan(info: NodeInfo, policy: ErrorPolicy, changes: Mapping[str, Mapping[str, Any]]) -> Plan:
    name = info.cls.__name__.lower()
    feeds, takes = list(info.inputs), [*info.outputs, *info.calls]
    nodes = [_node(name, info, policy, 0)]
    if feeds:
        nodes.append(_node(FEED, None, ErrorPolicy(), 1, outputs=feeds))
    if takes:
        nodes.append(_node(TAKE, None, ErrorPolicy(), 2, inputs=takes))
    links = [link_plan(FEED, one, name, one, index) for index, one in enumerate(feeds)]
    links = [_changed(link, changes.get(link.into, {})) for link in links]
    links += [link_plan(name, one, TAKE, one, index) for index, one in enumerate(takes, len(links))]
    asked = {one for one in feeds if isinstance(info.inputs[one], Serve)} | set(info.calls)
    links = [_request(link) if link.out in asked else link for link in links]
    return Plan("test", "", nodes, links, [])


def _node(
    name: str,
    info: NodeInfo | None,
    policy: ErrorPolicy,
    origin: int,
    inputs: list[str] | None = None,
    outputs: list[str] | None = None,
) -> NodePlan:
    return NodePlan(
        name=name,
        use="",
        settings={},
        replicas=1,
        env={},
        restart=RestartPlan(),
        on_error=policy,
        watchdog=30.0,
        origin=origin,
        stateful=info.stateful if info else False,
        source=info.source if info else not inputs,
        positions=info.positions if info else False,
        blocked=0.0,
        inputs=list(info.inputs) if info else inputs or [],
        outputs=list(info.outputs) if info else outputs or [],
    )


def link_plan(
    source: str, out: str, target: str, into: str, index: int = 0, window: int = WINDOW
) -> LinkPlan:
    """A link as a file has it that says no more than where it leads, of one replica to one."""
    return LinkPlan(
        index=index,
        name=f"{source}.{out} -> {target}.{into}",
        source=source,
        out=out,
        target=target,
        into=into,
        route="balance",
        by=None,
        window=window,
        window_bytes=DEFAULT_WINDOW_BYTES,
        codec=None,
        delivery="at-least-once",
        when_full="block",
        transport="auto",
        producers=1,
        consumers=1,
    )


def _request(link: LinkPlan) -> LinkPlan:
    return msgspec.structs.replace(link, pattern="request", delivery="at-most-once")


CHANGEABLE = ("route", "by", "codec", "delivery", "when_full", "window")
"""What a test may say about a link; as in a topology file."""


def _changed(link: LinkPlan, changes: Mapping[str, Any]) -> LinkPlan:
    for name in changes:
        if name not in CHANGEABLE:
            raise HarnessError(f"a link has no '{name}' here; there is {', '.join(CHANGEABLE)}")
    return msgspec.structs.replace(link, **changes)


# -- watching ------------------------------------------------------------------------------------


Note = Callable[[InBatch], str]


def _note(info: NodeInfo, name: str) -> Note:
    """What is said beside an error about a message that does not fit its channel."""

    def note(batch: InBatch) -> str:
        channel = batch.terms.into
        if name == TAKE:
            return f"{info.cls.__name__} has sent it on '{channel}'"
        return f"it was fed to '{channel}' of {info.cls.__name__}"

    return note


class _Watched(Runner):
    """A runner that gives up messages in the way of the test."""

    def mourn(self, undertaker: Undertaker) -> None:
        """Let `undertaker` have what is given up from now on."""
        self._undertaker = self._shop.undertaker = undertaker

    def _beat(self) -> None:
        """Nothing: in one process without sockets nobody falls silent, and whoever advances the
        time knows what stands still. It need not be looked at four times a second, for hours."""


class _Witness(Undertaker):
    """Gives up nothing in silence: `failed` is told."""

    def __init__(
        self,
        failed: Callable[[BaseException], None],
        note: Note,
        name: tuple[str, int],
        policy: ErrorPolicy,
        run: str,
        keep: Callable[[list[DeadLetter]], None],
    ) -> None:
        super().__init__(name, policy, run, keep)
        self._failed = failed
        self._note = note

    def bury(
        self,
        batch: InBatch,
        indices: Iterable[int],
        codec: Codec[Any],
        error: BaseException,
        attempts: int,
    ) -> None:
        batch.dead_lettered += len(list(indices))
        if isinstance(error, MessageError):  # it has no traceback that would say as much
            error.add_note(self._note(batch))
        self._failed(error)

    def unsendable(self, link: str, faults: list[Unsendable]) -> None:
        for fault in faults:
            fault.error.add_note(f"sent on {link}: {fault.message!r:.200}")
            self._failed(fault.error)
