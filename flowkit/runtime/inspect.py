"""Asks a short-lived child process about the user code that a topology names.

The process that checks or supervises imports no user code itself: an import that prints, hangs,
exits or crashes becomes a problem of the file like any other.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

import msgspec

from flowkit.clock import monotonic
from flowkit.errors import LocalProtocolError
from flowkit.runtime.inspector import Answered, Began, Compared, Listed, Record
from flowkit.topology.check import ends
from flowkit.topology.facts import (
    EndpointQuestion,
    Finding,
    Inspection,
    LinkQuestion,
    NodeQuestion,
    Questions,
)
from flowkit.topology.model import Topology
from flowkit.topology.plan import channels_of
from flowkit.topology.values import plain, retyped

TIME_LIMIT = 60.0
"""Seconds for all imports together; a class that needs longer would also restart as slowly."""

# One line of the report of `faulthandler`.
_FRAME = re.compile(r' +File "(?P<path>.+)", line (?P<line>[0-9]+) in ')

_BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from flowkit.runtime.inspector import main; main({descriptor})"
)


def inspect(
    topology: Topology,
    environ: Mapping[str, str],
    cwd: str,
    *,
    time_limit: float = TIME_LIMIT,
) -> Inspection:
    """What the classes of `topology` declare, and what is wrong with them and their use.

    `cwd` is importable, before everything else. The child's environment is `environ` and the
    topology's own.
    """
    questions = _questions(topology)
    return ask(questions, {**environ, **topology.env}, cwd, time_limit=time_limit)


def ask(
    questions: Questions,
    environ: Mapping[str, str],
    cwd: str,
    *,
    time_limit: float = TIME_LIMIT,
) -> Inspection:
    """The answers to `questions`.

    One child answers all; only if a class ends it, another goes on with the others.
    """
    deadline = monotonic() + time_limit
    blamed: list[Finding] = []
    while True:
        result = Inspection()
        if not questions.nodes and not questions.modules:
            break
        records, status, output = _run(questions, environ, cwd, deadline - monotonic())
        culprit = _collect(result, records)
        if culprit is None:
            if not records or not isinstance(records[-1], Compared):
                raise LocalProtocolError(f"the inspection ended early: {output or status}")
            break
        blamed.append(_blame(culprit.node, culprit.module, status, output, time_limit))
        questions = Questions(
            [one for one in questions.nodes if one.use.partition(":")[0] != culprit.module],
            questions.links,
            [one for one in questions.modules if one != culprit.module],
            questions.endpoints,
        )
        if status is None:
            # No time is left for a second child; what the first one found stands.
            break
    result.findings += blamed
    return result


def _questions(topology: Topology) -> Questions:
    nodes = [
        NodeQuestion(name, node.use, plain(node.with_), retyped(node.with_), node.external)
        for name, node in topology.nodes.items()
        if node.use
    ]
    links = []
    for index, link in enumerate(topology.links):
        source, targets = ends(topology, index)
        for at, target in enumerate(targets):
            if source is not None:
                links.append(
                    LinkQuestion(
                        index=index,
                        target=at,
                        listed=len(target.path) == 4,
                        source=source.node,
                        out=source.channel,
                        into_node=target.node,
                        into=target.channel,
                        route=link.route,
                        by=link.by,
                        codec=link.codec,
                        pattern=link.pattern,
                        topics=bool(link.topics),
                    )
                )
    endpoints = [
        EndpointQuestion(index, *channels_of(endpoint), endpoint.codec)
        for index, endpoint in enumerate(topology.endpoints)
    ]
    return Questions(nodes, links, endpoints=endpoints)


def _collect(result: Inspection, records: Sequence[Record]) -> Began | None:
    """Put `records` into `result`; what was being looked at when they end."""
    current: Began | None = None
    for record in records:
        if isinstance(record, Began):
            current = record
        elif isinstance(record, Answered):
            current = None
            result.findings += record.findings
            if record.facts is not None:
                result.classes[record.node] = record.facts
                result.settings[record.node] = record.settings
        elif isinstance(record, Listed):
            current = None
            result.findings += record.findings
            result.modules[record.module] = record.classes
        else:
            result.findings += record.findings
    return current


def _run(
    questions: Questions, environ: Mapping[str, str], cwd: str, seconds: float
) -> tuple[list[Record], int | None, str]:
    """The records of one child, its exit status (None: it took too long), its last output line."""
    path = [cwd, *(one for one in sys.path if one not in ("", cwd))]
    # Files, not pipes: a process that the imported code leaves behind could hold a pipe open.
    with tempfile.TemporaryFile() as answers, tempfile.TemporaryFile() as output:
        descriptor = answers.fileno()
        process = subprocess.Popen(
            [
                sys.executable,
                "-u",
                "-X",
                "faulthandler",
                "-c",
                _BOOT.format(path=path, descriptor=descriptor),
            ],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(descriptor,),
            env=dict(environ),
            cwd=cwd,
            start_new_session=True,
        )
        status: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(msgspec.msgpack.encode(questions), timeout=max(seconds, 0.1))
                status = process.returncode
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return _read_records(answers), status, _last_line(output)


def _read_records(file: IO[bytes]) -> list[Record]:
    file.seek(0)
    data = file.read()
    decoder = msgspec.msgpack.Decoder(Record)
    records: list[Any] = []
    at = 0
    while at + 4 <= len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        records.append(decoder.decode(data[at + 4 : end]))
        at = end
    return records


def _last_line(file: IO[bytes]) -> str:
    """What the child printed last; of a crash, where it happened."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 4096))
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    for at, line in enumerate(lines):
        # The report of `faulthandler` has the innermost frame first.
        if line.startswith("Fatal Python error"):
            frames = [found for one in lines[at:] if (found := _FRAME.match(one))]
            users = [one for one in frames if f"{os.sep}python3" not in one["path"]]
            for frame in users or frames:
                return f"in {os.path.basename(frame['path'])}, line {frame['line']}"
            return line
    return f"the last it said: {lines[-1].strip()}" if lines else ""


def _blame(node: str, module: str, status: int | None, output: str, limit: float) -> Finding:
    if status is None:
        what = f"took longer than {limit:g} s"
    elif status < 0:
        try:
            what = f"crashed: killed by {signal.Signals(-status).name}"
        except ValueError:
            what = f"crashed: killed by signal {-status}"
    else:
        what = f"ended the process with status {status}"
    return Finding(
        ["nodes", node, "use"],
        "E301",
        f"importing '{module}' {what}",
        output or f"import it alone: python -c 'import {module}'",
        part=module,
    )
