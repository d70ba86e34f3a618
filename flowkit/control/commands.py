"""What clients can ask of a running project: one function for each command.

A command gets the `Desk`, its arguments and a `Reply`. What it returns is the answer; a `Denial` or
any other `FlowkitError` is the reason why there is none. A command that yields something says
`opened` first. Commands run beside each other on the supervisor's loop: a long one holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from flowkit.control import arguments
from flowkit.control.recorder import Recorder
from flowkit.control.records import Changed, Ended, Event, LogLine, RunRecord
from flowkit.errors import FlowkitError, TopologyError
from flowkit.importing import suggest
from flowkit.protocol import control, requests
from flowkit.topology.plan import Plan
from flowkit.topology.render import as_text, in_order

SHORTEST = 0.1
"""Seconds between two looks at the figures at least, however often a client wants them."""

TELL_EVERY = 1.0
"""Seconds after which a client that waits for the end is told again how far it is."""


class Denial(FlowkitError):
    """A command cannot be carried out; `code` is one of `protocol.requests`."""

    def __init__(self, code: str, text: str, hint: str = "") -> None:
        self.code = code
        self.hint = hint
        super().__init__(text)


class Operated(Protocol):
    """What commands need of a supervisor. What else it can do is found out when it is wanted."""

    plan: Plan

    def drain(self, timeout: float) -> None: ...

    def kill(self) -> None: ...

    def in_flight(self) -> int: ...

    def replay(
        self, numbers: Sequence[int], answer: Callable[[control.Replayed], None]
    ) -> None: ...


class Desk(NamedTuple):
    """What commands work with."""

    project: Operated
    recorder: Recorder
    over: asyncio.Future[dict[str, Any]]
    """The report, once the project has ended."""


class Reply(Protocol):
    """Where a command says what comes of it before it is done."""

    def tell(self, text: str) -> None:
        """How far it has come, for people."""

    def opened(self, result: object, depth: int = 1000) -> None:
        """It yields something from now on; at most `depth` of it wait for a client that is slow."""

    def offer(self, item: object) -> None:
        """It yields something."""


class Command(NamedTuple):
    """`change` if it alters the project, and goes on when its client has left."""

    verb: str
    arguments: type[msgspec.Struct]
    run: Callable[[Desk, Any, Reply], Awaitable[object]]
    change: bool


COMMANDS: dict[str, Command] = {}

Arguments = TypeVar("Arguments", bound=msgspec.Struct)
Run = Callable[[Desk, Arguments, Reply], Awaitable[object]]


def command(
    verb: str, kind: type[Arguments], change: bool = False
) -> Callable[[Run[Arguments]], Run[Arguments]]:
    def register(run: Run[Arguments]) -> Run[Arguments]:
        COMMANDS[verb] = Command(verb, kind, run, change)
        return run

    return register


# -- looking


@command("info", arguments.Nothing)
async def info(desk: Desk, wanted: arguments.Nothing, reply: Reply) -> RunRecord:
    """Which run this is."""
    return desk.recorder.run


@command("status", arguments.Nothing)
async def status(desk: Desk, wanted: arguments.Nothing, reply: Reply) -> object:
    """How every replica and every link is."""
    return _ability(desk, "status")()


@command("watch", arguments.Watch)
async def watch(desk: Desk, wanted: arguments.Watch, reply: Reply) -> object:
    """The same again and again. A client that is slow gets the newest."""
    look = _ability(desk, "status")
    reply.opened(None, depth=1)
    every = max(SHORTEST, wanted.every)
    while not desk.over.done():
        reply.offer(look())
        await asyncio.wait([desk.over], timeout=every)
    return look()


@command("logs", arguments.Stream)
async def logs(desk: Desk, wanted: arguments.Stream, reply: Reply) -> None:
    """Lines that are printed from now on."""
    names = set(wanted.names)

    def heard(line: LogLine) -> None:
        if not names or line.replica in names or line.replica.rpartition(".")[0] in names:
            reply.offer(line)

    reply.opened(desk.recorder.line_marks(), wanted.depth)
    desk.recorder.on_line.add(heard)
    try:
        await _end(desk)
    finally:
        desk.recorder.on_line.discard(heard)


@command("events", arguments.Stream)
async def events(desk: Desk, wanted: arguments.Stream, reply: Reply) -> None:
    """What happens from now on."""
    reply.opened(desk.recorder.event_marks(), wanted.depth)
    desk.recorder.on_event.add(reply.offer)
    try:
        await _end(desk)
    finally:
        desk.recorder.on_event.discard(reply.offer)


@command("ready", arguments.Nothing)
async def ready(desk: Desk, wanted: arguments.Nothing, reply: Reply) -> RunRecord:
    """Wait until all replicas are ready."""
    changed = asyncio.Event()

    def heard(event: Event) -> None:
        if event.event in ("ready", "ended"):
            changed.set()

    desk.recorder.on_event.add(heard)
    try:
        if desk.recorder.run.state == "starting" and not desk.over.done():
            await changed.wait()
    finally:
        desk.recorder.on_event.discard(heard)
    await asyncio.sleep(0)  # `over` is done in the same turn as the event is told
    if desk.over.done():
        report = desk.over.result()
        text = f"{report['project']} has ended: {report['reason'] or report['status']}"
        raise Denial(requests.ENDED, text)
    return desk.recorder.run


@command("tap", arguments.Tap)
async def tap(desk: Desk, wanted: arguments.Tap, reply: Reply) -> None:
    """Messages that pass a channel from now on."""
    _check_node(desk, wanted.node)
    open_tap = _ability(desk, "tap")
    reply.opened(None, wanted.depth)
    handle = open_tap(wanted.node, wanted.channel, reply.offer)
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    handle.on_end = gone.set_result
    try:
        ends: list[asyncio.Future[Any]] = [desk.over, gone]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise Denial(requests.GONE, gone.result())
    finally:
        handle.close()


# -- changing


@command("scale", arguments.Scale, change=True)
async def scale(desk: Desk, wanted: arguments.Scale, reply: Reply) -> Changed:
    """Give nodes another number of replicas."""
    for node in wanted.replicas:
        _check_node(desk, node)
    change = _ability(desk, "scale")
    done = await change(dict(wanted.replicas), lose_state=wanted.lose_state)
    return _changed(desk, "scaled", done, None)


@command("restart", arguments.Restart, change=True)
async def restart(desk: Desk, wanted: arguments.Restart, reply: Reply) -> Changed:
    """Restart replicas, one after the other."""
    _check_node(desk, wanted.node)
    change = _ability(desk, "restart")
    return _changed(desk, "rolled", await change(wanted.node, wanted.replica), wanted.node)


@command("stop", arguments.OfNode, change=True)
async def stop(desk: Desk, wanted: arguments.OfNode, reply: Reply) -> Changed:
    """Stop a node, and leave it so."""
    _check_node(desk, wanted.node)
    change = _ability(desk, "stop_node")
    return _changed(desk, "stopped", await change(wanted.node), wanted.node)


@command("attach", arguments.Attach)
async def attach(desk: Desk, wanted: arguments.Attach, reply: Reply) -> str:
    """Run a replica of an external node: yields its spec, and ends when it is to leave."""
    attach_guest = _ability(desk, "guests").attach
    reply.opened(None)
    return await attach_guest(wanted, reply.offer)  # type: ignore[no-any-return]


@command("detach", arguments.Detach, change=True)
async def detach(desk: Desk, wanted: arguments.Detach, reply: Reply) -> bool:
    """Let an attached replica leave with nothing in hand. False if it ends by itself, since the
    project does."""
    return await _ability(desk, "guests").detach(wanted)  # type: ignore[no-any-return]


@command("start", arguments.OfNode, change=True)
async def start(desk: Desk, wanted: arguments.OfNode, reply: Reply) -> Changed:
    """Start a node that was stopped."""
    _check_node(desk, wanted.node)
    change = _ability(desk, "start_node")
    return _changed(desk, "resumed", await change(wanted.node), wanted.node)


@command("reload", arguments.Reload, change=True)
async def reload(desk: Desk, wanted: arguments.Reload, reply: Reply) -> Changed:
    """Make the running project what its file says now."""
    try:
        if wanted.dry:
            # Importing the classes takes a moment, in a child; the loop turns meanwhile.
            look = partial(_ability(desk, "changes"), lose_state=wanted.lose_state)
            planned = await asyncio.to_thread(look, wanted.file)
            return Changed(
                "\n".join(planned.lines()) or "nothing has changed",
                {
                    "changed": bool(planned),
                    "refusals": [text for text, _ in planned.refusals],
                    "hints": list(dict.fromkeys(hint for _, hint in planned.refusals if hint)),
                },
            )
        change = _ability(desk, "reload")
        done = await change(wanted.file, lose_state=wanted.lose_state)
    except TopologyError as error:
        found = in_order(error.problems)
        text = "\n".join(as_text(problem) for problem in found)
        count = f"{len(found)} error{'' if len(found) == 1 else 's'}"
        raise Denial(
            requests.PROBLEMS, f"{count} in the file: nothing is changed\n{text}"
        ) from None
    return _changed(desk, "reloaded", done, None)


@command("level", arguments.Level, change=True)
async def level(desk: Desk, wanted: arguments.Level, reply: Reply) -> Changed:
    """Set the level of a log."""
    _check_node(desk, wanted.node)
    change = _ability(desk, "set_level")
    done = change(wanted.node, wanted.replica, wanted.level)
    if isinstance(done, Awaitable):
        done = await done
    name = wanted.node if wanted.replica is None else f"{wanted.node}.{wanted.replica}"
    text = f"{name} logs from {wanted.level} on"
    desk.recorder.event("levelled", text, node=wanted.node, level=wanted.level)
    return Changed(text)


@command("replay", arguments.Replay, change=True)
async def replay(desk: Desk, wanted: arguments.Replay, reply: Reply) -> None:
    """Try dead letters again; yields what becomes of each."""
    missing = len(set(wanted.numbers))
    all_told = asyncio.Event()

    def told(answer: control.Replayed) -> None:
        nonlocal missing
        missing -= 1
        reply.offer(answer)
        if missing <= 0:
            all_told.set()

    reply.opened(None, depth=max(1, missing))
    if missing:
        desk.project.replay(sorted(set(wanted.numbers)), told)
        await all_told.wait()


@command("down", arguments.Down, change=True)
async def down(desk: Desk, wanted: arguments.Down, reply: Reply) -> Ended:
    """End the project."""
    if wanted.kill:
        desk.project.kill()
    else:
        desk.project.drain(wanted.timeout)
    while not desk.over.done():
        text = f"draining: {desk.project.in_flight():,} in flight"
        for node in getattr(desk.project, "stopped", []):
            text += f"; {node} is stopped: flowkit start {node}"
        reply.tell(text)
        await asyncio.wait([desk.over], timeout=TELL_EVERY)
    return Ended(desk.over.result())


# -- what they share


def _ability(desk: Desk, name: str) -> Any:
    method = getattr(desk.project, name, None)
    if method is None:
        text = f"this version of flowkit cannot do that ('{name}')"
        raise Denial(requests.NOT_SUPPORTED, text)
    return method


def _check_node(desk: Desk, node: str) -> None:
    names = [each.name for each in desk.project.plan.nodes]
    if node not in names:
        guess = suggest(node, names)
        raise Denial(
            requests.NO_SUCH,
            f"{desk.project.plan.project} has no node '{node}'",
            f"did you mean '{guess}'?" if guess else f"its nodes are {', '.join(names)}",
        )


def _changed(desk: Desk, event: str, result: object, node: str | None) -> Changed:
    text = str(result)
    if getattr(result, "seconds", 0.0) is not None:  # else it was so before
        desk.recorder.event(event, text, node=node)
    return Changed(text)


async def _end(desk: Desk) -> None:
    await asyncio.wait([desk.over])
