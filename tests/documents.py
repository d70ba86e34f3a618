"""The documents of the repository, taken apart: what they show, so that tests can try it."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import Deadline
from tests.e2e.harness import PATIENCE, ROOT, Place, environment

_FILE = re.compile(r"(?:#|<!--|//) (\S+\.(?:py|yaml|cfg|html))\b.*\n")
VERDICTS = ("bottleneck:", "nothing limits", "too early to say")
"""How the line begins that says what limits a project: it differs from run to run."""

_DIRECTIVE = re.compile(r"( *)\.\. code-block:: (\S+)")


class Block(NamedTuple):
    """Something that a document shows: `language` is that of its ``code-block``, or "" for what
    stands behind ``::``. `line` is where it begins, from 1."""

    path: Path
    language: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The name in the comment of the first line; "" if there is none."""
        found = _FILE.match(self.text)
        return found[1] if found else ""

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    def sessions(self) -> Iterator[tuple[str, str]]:
        """The commands of a console session, each with what it prints."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            while command.endswith("\\"):
                more, _, printed = printed.partition("\n")
                command = command[:-1] + more.strip()
            yield command, printed


def documents() -> list[Path]:
    """Every reStructuredText file of the repository."""
    return [
        path
        for path in sorted(ROOT.rglob("*.rst"))
        if not any(part.startswith((".", "build")) for part in path.relative_to(ROOT).parts)
    ]


def blocks(path: Path) -> list[Block]:
    """Everything that the document at `path` shows."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines):
        if directive := _DIRECTIVE.fullmatch(line):
            indent, language = len(directive[1]), directive[2]
        elif line.endswith("::") and not line.lstrip().startswith(".. "):
            indent, language = len(line) - len(line.lstrip()), ""
        else:
            continue
        body = []
        for text in lines[number + 1 :]:
            if text.strip() and len(text) - len(text.lstrip()) <= indent:
                break
            if not body and re.match(r" +:\w+:", text):
                continue  # an option of the directive
            body.append(text)
        margin = min((len(one) - len(one.lstrip()) for one in body if one.strip()), default=0)
        text = "\n".join(one[margin:] for one in body).strip("\n") + "\n"
        found.append(Block(path, language, text, number + 3))
    return found


class Desk:
    """A directory in which what a document shows is written down, and its commands are run."""

    def __init__(self) -> None:
        self.place = Place()
        commands = self.place.path / "bin"
        commands.mkdir()
        for name, start in {"python": "", "flowkit": " -m flowkit", "pytest": " -m pytest"}.items():
            script = commands / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{start} "$@"\n')
            script.chmod(0o755)
        self.env = environment(self.place.path, PYTEST_ADDOPTS="-p no:cacheprovider -p no:xdist")
        # As if flowkit were installed here from this tree, whenever that was.
        self.env["PYTEST_PLUGINS"] = "flowkit.testing.plugin"
        self.env["PATH"] = f"{commands}:{self.env['PATH']}"

    @property
    def path(self) -> Path:
        return self.place.path

    def write(self, name: str, text: str) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def sh(self, command: str, cwd: Path | None = None) -> tuple[int, str]:
        """Run a line of a console session; its exit code and what it printed."""
        ended = subprocess.run(
            ["sh", "-c", command],
            cwd=cwd or self.path,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
        return ended.returncode, ended.stdout.decode()

    def interrupted(self, command: str, lines: int) -> str:
        """Run a command until it has printed so many lines, then press Ctrl-C; what it printed."""
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=self.path,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        deadline = Deadline(PATIENCE)
        assert process.stdout is not None
        try:
            printed = [process.stdout.readline().decode() for _ in range(lines)]
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            process.wait(deadline.left)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        return "".join(printed)

    def close(self) -> None:
        self.place.close()


def plain(output: str) -> list[str]:
    """The lines of `output` without what differs: times, ports, processes, what they suggest."""
    output = re.sub(r"\b[0-9.]+(ms|s)\b", "TIME", output)
    output = re.sub(r"process [0-9]+", "process N", output)
    lines = re.sub(r"127\.0\.0\.1:[0-9]+", "ADDRESS", output).splitlines()
    return [line.rstrip() for line in lines if not line.startswith(VERDICTS)]


def shape(output: str) -> list[str]:
    """The lines of `output` without any figure, and whatever a replica is doing."""
    lines = []
    for line in output.splitlines():
        line = re.sub(r"(?<![\w.])\d[\d.,:]*(?:[a-zA-Z%]+(?:\d+[a-z]+)*)?(?![\w.])", "#", line)
        line = re.sub(r"\b(running|waiting|busy|idle)\b", "STATE", line)
        line = re.sub(r"(?<!\S)-(?!\S)", "#", line)
        lines.append(" ".join(line.split()))
    return [line for line in lines if line and not line.startswith(VERDICTS)]
