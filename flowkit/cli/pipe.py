"""``flowkit pipe``: one function between two ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from flowkit.errors import FlowkitError, OperatorError


@click.command()
@click.option("--from", "source", metavar="URL", required=True, help="Where messages come from.")
@click.option(
    "--through",
    metavar="MODULE:FUNCTION",
    help="What makes messages of messages. Default: nothing.",
)
@click.option("--to", "target", metavar="URL", required=True, help="Where messages go to.")
@click.option(
    "--inflight",
    type=click.IntRange(1, 1_000_000),
    default=500,
    show_default=True,
    help="Messages that are read and not yet written, at most.",
)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "drop"]),
    default="stop",
    show_default=True,
    help="When the function raises: stop, or go on without that message.",
)
@click.option("--state", metavar="FILE", help="Keep how far a file was read, and go on there.")
@click.option("--quiet", "-q", is_flag=True, help="Do not print the figures at the end.")
def command(
    source: str,
    through: str | None,
    target: str,
    inflight: int,
    on_error: str,
    state: str | None,
    quiet: bool,
) -> int:
    """Pass messages from one end to another, through a function.

    \b
    URL                       a message is
    -                         a line of standard input or output
    file://PATH               a line of a file; output is appended
    zmq+pull://, zmq+sub://   what a socket receives (--from)
    zmq+push://, zmq+pub://   what a socket sends (--to)

    Sockets are at HOST:PORT or /PATH. They connect; ?bind=1 listens, ?topic=PREFIX subscribes.

    The function gets bytes (or text, if its parameter is annotated str) and returns a message, a
    list of them, or None; it may be a coroutine function, of which --inflight run at once. What it
    makes is written in the order of its messages.

    Reading stops while --inflight messages are not written. From a file with --state every message
    is written at least once, over kills; from elsewhere a kill loses what is in flight. A PUSH
    waits for peers; a PUB drops what nobody has subscribed to, and says how much.
    Ctrl-C finishes what is in flight, a second one does not.
    """
    return asyncio.run(_pipe(source, through, target, inflight, on_error, state, quiet))


async def _pipe(
    source: str,
    through: str | None,
    target: str,
    inflight: int,
    on_error: str,
    state: str | None,
    quiet: bool,
) -> int:
    from flowkit.runtime.ends import open_drain, open_tap
    from flowkit.runtime.pipe import Pipe, Through

    function = _function(through) if through is not None else bytes
    tap = open_tap(source, state)
    try:
        drain = open_drain(target)
    except FlowkitError:
        tap.close()
        raise
    pipe = Pipe(tap, Through(function), drain, inflight, on_error)

    def failed(message: bytes, error: BaseException) -> None:
        shown = message[:80].decode(errors="replace")
        click.echo(f"{through}: {type(error).__name__}: {error} (message: {shown})", err=True)

    pipe.on_failure = failed
    loop = asyncio.get_running_loop()
    running = asyncio.current_task()
    interrupts = 0

    def interrupted() -> None:
        nonlocal interrupts
        interrupts += 1
        pipe.stop()
        if interrupts > 1 and running is not None:
            running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        try:
            await pipe.run()
        finally:
            if interrupts < 2:
                await drain.finish()
    except asyncio.CancelledError:
        return 130
    finally:
        tap.close()
        drain.close()
        if not quiet:
            count = pipe.count
            text = f"{count.read:,} read, {count.written:,} written"
            if count.failed:
                text += f", {count.failed:,} failed"
            if count.dropped:
                text += f", {count.dropped:,} dropped: nobody had subscribed"
            click.echo(text, err=True)
    return 0


def _function(reference: str) -> Callable[..., Any]:
    from flowkit.importing import NotImportable, load_object

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = load_object(reference)
    except NotImportable as error:
        raise OperatorError(str(error), error.hint) from error
    if not callable(found):
        raise OperatorError(f"{reference} is no function: it cannot be called")
    return found  # type: ignore[no-any-return]
