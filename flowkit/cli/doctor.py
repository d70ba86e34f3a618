"""`flowkit doctor`: is this machine fit to run topologies?"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from flowkit import __version__, clock
from flowkit.cli import terminal
from flowkit.errors import AlreadyRunning, FlowkitError, TopologyError
from flowkit.units import human_bytes, human_seconds

Status = Literal["ok", "warn", "fail"]

SOCKET_NAME = 24
"""Bytes of the longest name that a socket of a run has (`l999.9999.999`), with some to spare."""

FEW_DESCRIPTORS = 4096
"""A link takes a handful of descriptors per peer; libzmq aborts the process when they run out."""

LITTLE_DISK = 1 << 30
"""Dead letters and positions are small, but a full disk stops a project that needs them."""

SLOW_START = 2.0
LAUNCH_TIMEOUT = 20.0
"""Seconds for a helper process and one replica. A healthy machine takes a fifth of a second."""

REPLICA = "flowkit.cli.doctor:replica"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one thing; `hint` says what to do unless `status` is ok."""

    check: str
    status: Status
    found: str
    hint: str = ""


@click.command(short_help="Check that this machine can run topologies.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A table, or JSON Lines.",
)
def command(file: Path | None, format_: str) -> int:
    """Check that this machine can run topologies, or FILE in particular.

    Exit code 0 if nothing fails, 1 otherwise; warnings do not fail.
    """
    findings = []
    for finding in examine(file):
        findings.append(finding)
        if format_ == "json":
            click.echo(json.dumps(asdict(finding)))
    if format_ == "text":
        click.echo(_table(findings))
    return int(any(finding.status == "fail" for finding in findings))


def examine(file: Path | None = None) -> Iterator[Finding]:
    """Make every check, one after the other. Raises TopologyError if `file` cannot be read."""
    project, path, replicas = _project(file)
    yield _python()
    yield Finding("flowkit", "ok", __version__)
    yield from _libraries()
    yield from _zmq_features()
    yield _descriptors()
    yield _processors(replicas)
    for name, check in (
        ("run directory", _run_directory),
        ("state directory", _state_directory),
    ):
        yield _guarded(name, check, project, path)
    yield _guarded("processes", _processes)


def _guarded(name: str, check: Callable[..., Finding], *arguments: object) -> Finding:
    """A check that fails in a way nobody thought of is a finding, not the end of the others."""
    try:
        return check(*arguments)
    except FlowkitError as error:
        return Finding(name, "fail", str(error), getattr(error, "hint", ""))
    except Exception as error:
        return Finding(name, "fail", f"{type(error).__name__}: {error}")


def _project(file: Path | None) -> tuple[str, Path, int]:
    """Name, path and number of replicas of the project in `file`."""
    if file is None:
        return "doctor", Path.cwd() / "topology.yaml", 0
    from flowkit.topology.loader import load

    topology, problems = load(str(file), os.environ)
    if topology is None or problems:
        raise TopologyError(problems)
    replicas = sum(node.replicas for node in topology.nodes.values())
    return topology.project, Path(topology.path), replicas


def _python() -> Finding:
    found = f"{platform.python_version()} ({platform.python_implementation()}, {sys.platform})"
    return Finding("python", "ok", found)


def _libraries() -> Iterator[Finding]:
    import tornado
    import zmq

    libzmq = zmq.zmq_version_info()
    yield Finding("pyzmq", "ok", zmq.pyzmq_version())
    if libzmq < (4, 3):
        hint = "pip install --upgrade pyzmq brings a newer one"
        yield Finding("libzmq", "warn", zmq.zmq_version(), hint)
    else:
        yield Finding("libzmq", "ok", zmq.zmq_version())
    yield Finding("tornado", "ok", tornado.version)


def _zmq_features() -> Iterator[Finding]:
    import zmq

    if zmq.has("ipc"):
        yield Finding("ipc", "ok", "links use Unix sockets")
    else:
        hint = "nothing to do; Unix sockets are faster and private"
        yield Finding("ipc", "warn", "missing: links use tcp on 127.0.0.1", hint)
    if zmq.has("curve"):
        yield Finding("curve", "ok", "links can be encrypted")
    else:
        hint = "install pyzmq from a wheel: pip install --only-binary pyzmq pyzmq"
        yield Finding("curve", "warn", "missing: links cannot be encrypted", hint)


def _descriptors() -> Finding:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return Finding("descriptors", "ok", "not limited")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    found = f"{soft}, raised to {'the maximum' if unlimited else hard} at the start"
    if soft == hard:
        found = "unlimited" if unlimited else str(hard)
    if not unlimited and hard < FEW_DESCRIPTORS:
        hint = f"raise the hard limit to {FEW_DESCRIPTORS} or more: ulimit -Hn, LimitNOFILE="
        return Finding("descriptors", "warn", found, hint)
    return Finding("descriptors", "ok", found)


def _processors(replicas: int) -> Finding:
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    found = f"{processors} usable"
    if replicas:
        found += f", {replicas} replica{'s' * (replicas != 1)}"
    # Most replicas of a pipeline wait most of the time; far too many only cost memory.
    if replicas > 16 * processors:
        return Finding("processors", "warn", found, "fewer replicas may do the same work")
    return Finding("processors", "ok", found)


def _run_directory(project: str, path: Path) -> Finding:
    from flowkit.rundir import RunDirectory

    directory = RunDirectory(project, path)
    directory.check(SOCKET_NAME)
    try:
        directory.acquire()
    except AlreadyRunning as error:
        return Finding("run directory", "ok", f"{directory.path} (in use by process {error.pid})")
    directory.release()
    return Finding("run directory", "ok", str(directory.path))


def _state_directory(project: str, path: Path) -> Finding:
    from flowkit.rundir import RunDirectory

    state = RunDirectory(project, path).state
    present = next(parent for parent in (state, *state.parents) if parent.exists())
    hint = "set FLOWKIT_STATE_DIR to a directory that you can write to"
    try:
        with tempfile.TemporaryFile(dir=present):
            pass
        free = shutil.disk_usage(present).free
    except OSError as error:
        return Finding("state directory", "fail", f"{state}: {error.strerror or error}", hint)
    found = f"{state} ({human_bytes(free)} free)"
    if free < LITTLE_DISK:
        return Finding("state directory", "warn", found, "free some space on that disk")
    return Finding("state directory", "ok", found)


def _processes() -> Finding:
    helper, replica = asyncio.run(_start_one())
    found = f"helper started in {human_seconds(helper)}, a replica in {human_seconds(replica)}"
    if helper + replica > SLOW_START:
        return Finding("processes", "warn", found, "the machine is busy, or its disk is slow")
    return Finding("processes", "ok", found)


async def _start_one() -> tuple[float, float]:
    """Start a nursery and a replica that ends at once; how many seconds either took."""
    from flowkit.launchers.process import ProcessLauncher

    ended: asyncio.Future[tuple[int, str | None]] = asyncio.get_running_loop().create_future()

    def on_exit(name: str, exitcode: int, error: str | None) -> None:
        if not ended.done():
            ended.set_result((exitcode, error))

    launcher = ProcessLauncher(_ignore, on_exit, entry=REPLICA, title="flowkit: doctor")
    try:
        async with asyncio.timeout(LAUNCH_TIMEOUT):
            began = clock.monotonic()
            await launcher.start()
            ready = clock.monotonic()
            launcher.launch(
                "doctor.0#1",
                b"",
                title="flowkit: doctor/doctor.0",
                env={},
                stdout=None,
                stderr=None,
            )
            exitcode, error = await ended
            done = clock.monotonic()
    except TimeoutError:
        raise RuntimeError(f"no process started and ended within {LAUNCH_TIMEOUT:g} s") from None
    finally:
        await launcher.close()
    if exitcode != 0:
        raise RuntimeError(error or f"a replica that does nothing ended with {exitcode}")
    return ready - began, done - ready


def _ignore(*_: Any) -> None:
    """`on_started` is of no interest: the end says all."""


def replica(spec: bytes) -> int:
    """What the trial replica does: it ends well."""
    return 0


def _table(findings: list[Finding]) -> str:
    width = max(len(finding.check) for finding in findings)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    colour = terminal.use_colour(sys.stdout)
    lines = []
    for finding in findings:
        status = f"{finding.status:4}"
        if colour:
            status = click.style(status, fg=colours[finding.status], bold=finding.status != "ok")
        lines.append(f"{finding.check:{width}}  {status}  {finding.found}")
        if finding.hint and finding.status != "ok":
            lines.append(f"{'':{width}}        {finding.hint}")
    counts = {status: sum(f.status == status for f in findings) for status in colours}
    lines.append("")
    if counts["fail"]:
        lines.append(f"{counts['fail']} of {len(findings)} checks failed")
    elif counts["warn"]:
        lines.append(f"fit to run topologies, {counts['warn']} warning{'s' * (counts['warn'] > 1)}")
    else:
        lines.append("fit to run topologies")
    return "\n".join(lines)
