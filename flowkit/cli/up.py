"""`flowkit up`: run a project in the foreground, show what it prints, report what became of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from flowkit import __version__
from flowkit.cli import terminal
from flowkit.cli.jsonlines import JsonLines
from flowkit.cli.relay import relayed
from flowkit.cli.show import Screen
from flowkit.errors import OperatorError
from flowkit.report import Report
from flowkit.supervisor import DRAIN_TIMEOUT, Supervisor
from flowkit.units import duration

REFRESH = 0.2
"""Seconds between looks at the counters for the progress bar."""


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return duration(value)  # type: ignore[arg-type]
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("up", short_help="Run a topology until its stream ends or Ctrl-C.")
@click.argument("file", metavar="FILE")
@click.option("--report", "report_file", metavar="FILE.json", help="Write the run report there.")
@click.option(
    "--in-process",
    is_flag=True,
    help="Run all replicas in this process, on memory links: for breakpoints and coverage.",
)
@click.option("--resume", is_flag=True, help="Go on from the positions an earlier run left.")
@click.option("--fresh", is_flag=True, help="Forget positions an earlier run left.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="json: what happens and what nodes print and log, one JSON object a line.",
)
@click.option(
    "--drain-timeout",
    type=_Duration(),
    default=DRAIN_TIMEOUT,
    help="How long the first Ctrl-C or SIGTERM waits for what is in flight (60s).",
)
def command(
    file: str,
    report_file: str | None,
    in_process: bool,
    resume: bool,
    fresh: bool,
    log_format: str,
    drain_timeout: float,
) -> int:
    """Run the topology in FILE until its stream ends or Ctrl-C.

    The first Ctrl-C (or SIGTERM) stops the sources and drains what is in flight, a second one
    kills. Exit codes: 0 drained, nothing given up; 2 bad usage or topology; 3 a node was given up;
    4 finished with dead letters; 5 not drained in time, or messages unaccounted for; 130 killed by
    a second Ctrl-C.
    """
    if resume and fresh:
        raise click.UsageError("--resume and --fresh exclude each other")
    if report_file is not None:
        # Better now than after an hour's run.
        folder = Path(report_file).resolve().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OperatorError(
                f"cannot write the report {report_file}", hint=f"make {folder} a writable folder"
            )
    screen: Screen
    if log_format == "json":
        screen = JsonLines(sys.stdout)
    else:
        screen = Screen(sys.stdout, colour=terminal.use_colour(sys.stdout))
    supervisor = Supervisor(file, in_process=in_process, resume=resume, fresh=fresh, watcher=screen)
    screen.begin(__version__, supervisor.plan)
    with terminal.without_control_echo(), relayed(screen) if in_process else nullcontext():
        report = asyncio.run(_run(supervisor, screen, drain_timeout))
    screen.end(report, supervisor.state_directory)
    if report_file is not None:
        text = json.dumps(report.as_dict(), indent=2) + "\n"
        Path(report_file).write_text(text, encoding="utf-8")
    return report.exit


async def _run(supervisor: Supervisor, screen: Screen, drain_timeout: float) -> Report:
    loop = asyncio.get_running_loop()
    asked = False

    def interrupted() -> None:
        nonlocal asked
        if asked:
            supervisor.kill()
        else:
            asked = True
            supervisor.drain(drain_timeout)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    screen.on_broken = interrupted
    watching: asyncio.Task[None] | None = None
    try:
        async with supervisor:
            if screen.live:
                watching = asyncio.create_task(_watch(supervisor, screen))
            report = await supervisor.wait()
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        screen.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return report


async def _watch(supervisor: Supervisor, screen: Screen) -> None:
    while True:
        screen.progress(*supervisor.progress())
        await asyncio.sleep(REFRESH)
