"""`up -d`: the project runs in a process of its own, which the terminal has no hold on.

The parent starts it in a new session, with what it prints in a file without a name. The child says
on a pipe that it has started, or that it is ready, and from then on prints into the state directory
(``logs/up.out``: its report, and what should never happen); until then what it prints is the reason
why it has failed, which the parent shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import click
from setproctitle import setproctitle

from flowkit.units import human_seconds

OUT = "up.out"

_BOOT = "import sys; sys.path[:] = {path!r}; from flowkit.cli import main; sys.exit(main())"


def start(arguments: Sequence[str], wait: bool) -> int:
    """Run ``flowkit up ARGUMENTS`` detached; returns when it has started, or, with `wait`, is
    ready. The exit code is 0 then, else that of the run, whose output was shown."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as out, open(reader, "rb") as news:
        try:
            child = _spawn([*arguments, "--notify", f"{writer}:{'ready' if wait else 'started'}"],
                           out, writer)  # fmt: skip
        finally:
            os.close(writer)
        try:
            said = news.readline()
        except KeyboardInterrupt:
            _let_go(child)
            text = f"it goes on starting in the background, as process {child.pid}"
            click.echo(f"\n{text}: flowkit down ends it", err=True)
            raise
        if not said:
            code = child.wait()
            out.seek(0)
            # The messages of a failure: where `up` would have shown them.
            text = out.read().decode("utf-8", "replace").rstrip("\n")
            click.echo(text, err=True)
            if not any(line.startswith("error:") for line in text.splitlines()):
                click.echo(f"error: it ended with exit code {code} before it was "
                           f"{'ready' if wait else 'started'}", err=True)  # fmt: skip
            return code
        _let_go(child)
    facts = json.loads(said)
    project, count = facts["project"], facts["replicas"]
    replicas = f"{count} replica{'' if count == 1 else 's'}"
    if wait:
        taken = human_seconds(facts["seconds"])
        click.echo(f"{project} runs: {replicas} ready in {taken} (process {child.pid})")
    else:
        click.echo(f"{project} starts: {replicas} (process {child.pid})")
    return 0


def _spawn(arguments: Sequence[str], out: IO[bytes], writer: int) -> subprocess.Popen[bytes]:
    boot = _BOOT.format(path=sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", boot, "up", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        pass_fds=[writer],
        start_new_session=True,
    )


def _let_go(child: subprocess.Popen[bytes]) -> None:
    """It is not ours to wait for any more."""
    child.returncode = 0  # else subprocess complains that it still runs


class Notice:
    """The child's end. `text` is the value of ``--notify``."""

    def __init__(self, text: str) -> None:
        number, _, self.when = text.partition(":")
        self._pipe: int | None = int(number)
        self._out: Path | None = None
        os.set_inheritable(self._pipe, False)

    def give(self, project: str, replicas: int, seconds: float, state: Path) -> None:
        """Tell the parent, and print into the state directory from now on."""
        if self._pipe is None:
            return
        self._out = state / "logs" / OUT
        self._out.unlink(missing_ok=True)  # that of the run before
        self.reopen()
        setproctitle(f"flowkit up: {project}")
        facts = {"project": project, "replicas": replicas, "seconds": round(seconds, 3)}
        try:
            os.write(self._pipe, json.dumps(facts).encode() + b"\n")
        except BrokenPipeError:
            pass  # whoever has started it has not waited
        os.close(self._pipe)
        self._pipe = None

    def reopen(self) -> None:
        """Print into a file that is made anew if somebody has moved it: what SIGHUP asks for."""
        if self._out is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        try:
            out = os.open(self._out, flags, 0o600)
        except OSError as error:
            print(f"cannot open {self._out} anew: {error.strerror}", file=sys.stderr, flush=True)
            return
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
