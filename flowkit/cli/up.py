"""`flowkit up`: run a project in the foreground, show what it prints, report what became of it."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from flowkit import __version__
from flowkit.cli import detach as detached
from flowkit.cli import terminal
from flowkit.cli.jsonlines import JsonLines
from flowkit.cli.projects import Duration
from flowkit.cli.relay import relayed
from flowkit.cli.show import Screen
from flowkit.clock import monotonic
from flowkit.control.door import listen, listen_somewhere
from flowkit.embedding import Signals
from flowkit.errors import OperatorError
from flowkit.report import Report
from flowkit.runtime.planning import load_plan
from flowkit.supervisor import DRAIN_TIMEOUT, Supervisor

REFRESH = 0.2
"""Seconds between looks at the counters for the progress bar."""


@click.command("up", short_help="Run a topology until its stream ends or Ctrl-C.")
@click.argument("file", metavar="FILE")
@click.option("--report", "report_file", metavar="FILE.json", help="Write the run report there.")
@click.option(
    "--in-process",
    is_flag=True,
    help="Run all replicas in this process, on memory links: for breakpoints and coverage.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Restart the nodes whose code or settings change, once the new code has imported.",
)
@click.option("--resume", is_flag=True, help="Go on from the positions an earlier run left.")
@click.option("--fresh", is_flag=True, help="Forget positions an earlier run left.")
@click.option(
    "--http",
    metavar="[HOST:]PORT",
    help="Serve metrics and JSON there. Default: port 8787 of this machine, or any that is free.",
)
@click.option("--no-http", is_flag=True, help="Serve nothing over HTTP.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="json: what happens and what nodes print and log, one JSON object a line.",
)
@click.option(
    "--drain-timeout",
    type=Duration(),
    default=DRAIN_TIMEOUT,
    help="How long the first Ctrl-C or SIGTERM waits for what is in flight (60s).",
)
@click.option("-d", "--detach", is_flag=True, help="Run in the background; return when started.")
@click.option("--wait", is_flag=True, help="As -d, but return when all replicas are ready.")
@click.option("--notify", hidden=True)
def command(
    file: str,
    report_file: str | None,
    in_process: bool,
    watch: bool,
    resume: bool,
    fresh: bool,
    http: str | None,
    no_http: bool,
    log_format: str,
    drain_timeout: float,
    detach: bool,
    wait: bool,
    notify: str | None,
) -> int:
    """Run the topology in FILE until its stream ends or Ctrl-C.

    The first Ctrl-C (or SIGTERM) stops the sources and drains what is in flight, a second one
    kills. Exit codes: 0 drained, nothing given up; 2 bad usage or topology; 3 a node was given up;
    4 finished with dead letters; 5 not drained in time, or messages unaccounted for; 130 killed by
    a second Ctrl-C.

    With -d or --wait it runs in the background, and the exit code is 0 as soon as it has started
    or is ready; if it does not, the reason is shown and the code is as above. `flowkit ps`, `logs`
    and `down` see to it then; its report will be in the state directory, in logs/up.out.
    """
    if resume and fresh:
        raise click.UsageError("--resume and --fresh exclude each other")
    if http is not None and no_http:
        raise click.UsageError("--http and --no-http exclude each other")
    if watch and in_process:
        raise click.UsageError("--watch starts new processes: leave out --in-process")
    if report_file is not None:
        # Better now than after an hour's run.
        folder = Path(report_file).resolve().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OperatorError(
                f"cannot write the report {report_file}", hint=f"make {folder} a writable folder"
            )
    if detach or wait:
        if in_process:
            raise click.UsageError("--in-process runs in the foreground: leave -d and --wait out")
        again = _again(file, report_file, resume, fresh, drain_timeout)
        again += ["--log-format", log_format]
        again += ["--watch"] if watch else []
        again += ["--no-http"] if no_http else ["--http", http] if http is not None else []
        return detached.start(again, wait)
    screen: Screen
    if log_format == "json":
        screen = JsonLines(sys.stdout)
    else:
        screen = Screen(sys.stdout, colour=terminal.use_colour(sys.stdout))
    plan = load_plan(file, os.environ, os.getcwd())
    listening = None
    if not no_http:
        listening = listen(http) if http is not None else listen_somewhere()
    supervisor = Supervisor(
        plan,
        in_process=in_process,
        resume=resume,
        fresh=fresh,
        watcher=screen,
        http=listening,
        drain_timeout=drain_timeout,
    )
    with terminal.without_control_echo(), relayed(screen) if in_process else nullcontext():
        notice = detached.Notice(notify) if notify is not None else None
        url = listening.url if listening else None
        report = asyncio.run(_run(supervisor, screen, url, watch, notice))
    screen.end(report, supervisor.state_directory)
    if report_file is not None:
        text = json.dumps(report.as_dict(), indent=2) + "\n"
        Path(report_file).write_text(text, encoding="utf-8")
    return report.exit


def _again(
    file: str, report_file: str | None, resume: bool, fresh: bool, drain_timeout: float
) -> list[str]:
    """The same once more, for a process that is to run in the background."""
    arguments = [file, "--drain-timeout", f"{drain_timeout}s"]
    if report_file is not None:
        arguments += ["--report", report_file]
    if resume:
        arguments.append("--resume")
    if fresh:
        arguments.append("--fresh")
    return arguments


async def _run(
    supervisor: Supervisor,
    screen: Screen,
    url: str | None,
    watch: bool,
    notice: detached.Notice | None = None,
) -> Report:
    signals = Signals(supervisor, supervisor.drain_timeout)
    screen.on_broken = signals.interrupt
    began = monotonic()

    def give_notice(seconds: float) -> None:
        assert notice is not None
        screen.quiet = True
        notice.give(
            supervisor.plan.project, supervisor.plan.processes, seconds, supervisor.state_directory
        )

    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # as replicas do
    if notice is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, notice.reopen)
    if notice is not None and notice.when == "ready":
        screen.on_ready = give_notice
    beside: list[asyncio.Task[None]] = []
    try:
        signals.install()
        await supervisor.start()
        # Not before it is sure that there is a run; nothing has come of it yet.
        screen.begin(__version__, supervisor.plan, url)
        if notice is not None and notice.when == "started":
            give_notice(monotonic() - began)
        if screen.live:
            beside.append(asyncio.create_task(_show(supervisor, screen)))
        if watch:
            beside.append(asyncio.create_task(supervisor.watch()))
        return await supervisor.wait()
    finally:
        await supervisor.close()
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        screen.stop()
        signals.remove()
        if notice is not None:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        faulthandler.unregister(signal.SIGUSR1)


async def _show(supervisor: Supervisor, screen: Screen) -> None:
    while True:
        screen.progress(*supervisor.progress())
        await asyncio.sleep(REFRESH)
