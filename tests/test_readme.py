"""README.rst tells the truth: what it shows is run, and prints what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from flowkit import cli
from flowkit.cli import up
from flowkit.runtime.planning import load_plan
from flowkit.units import duration
from tests.e2e.harness import PATIENCE, ROOT, Place, environment

README = ROOT / "README.rst"
TEXT = README.read_text(encoding="utf-8")


class Block(NamedTuple):
    """A code block: its language, its text without the indentation, the line it begins on."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The name in the comment of the first line; "" if there is none."""
        found = re.match(r"# (\S+\.(?:py|yaml))\n", self.text)
        return found[1] if found else ""


def _blocks() -> Iterator[Block]:
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if found := re.fullmatch(r"\.\. code-block:: (\w+)", line):
            body = []
            for text in lines[number + 2 :]:
                if text and not text.startswith("   "):
                    break
                body.append(text[3:])
            yield Block(found[1], "\n".join(body).strip("\n") + "\n", number + 3)


BLOCKS = list(_blocks())
FILES = {block.file: block.text for block in BLOCKS if block.file}


@pytest.fixture
def place() -> Iterator[Place]:
    """A directory with the files that README shows, and the text that they read."""
    place = Place()
    for name, text in FILES.items():
        if "/" not in name:
            Path(place.file(name)).write_text(text, encoding="utf-8")
    Path(place.file("LICENSE")).write_bytes((ROOT / "LICENSE").read_bytes())
    commands = Path(place.file("bin"))
    commands.mkdir()
    for name, start in {"python": "", "flowkit": " -m flowkit"}.items():
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{start} "$@"\n')
        script.chmod(0o755)
    yield place
    place.close()


def sh(place: Place, command: str) -> tuple[int, str]:
    """Run a line of a console session; its exit code and what it printed."""
    env = environment(place.path)
    env["PATH"] = f"{place.file('bin')}:{env['PATH']}"
    ended = subprocess.run(
        ["sh", "-c", command],
        cwd=place.path,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
    )
    return ended.returncode, ended.stdout.decode()


def plain(output: str) -> list[str]:
    """The lines of `output` without what differs: times, ports, processes, what they suggest."""
    output = re.sub(r"\b[0-9.]+(ms|s)\b", "TIME", output)
    output = re.sub(r"process [0-9]+", "process N", output)
    lines = re.sub(r"127\.0\.0\.1:[0-9]+", "ADDRESS", output).splitlines()
    return [line.rstrip() for line in lines if not line.startswith("bottleneck:")]


# ---------------------------------------------------------------------------- what is shown


@pytest.mark.e2e
def test_the_console_sessions_are_true(place: Place) -> None:
    sessions = [block for block in BLOCKS if block.language == "console"]
    assert len(sessions) >= 3
    for session in sessions:
        for part in re.split(r"^\$ ", session.text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            _, output = sh(place, command)
            assert plain(output) == plain(expected), f"README.rst:{session.line}: {command}"


def test_every_python_file_of_the_readme_is_shown_whole(place: Place) -> None:
    for block in BLOCKS:
        if block.language in ("python", "yaml"):
            assert block.file, f"README.rst:{block.line}: no name of a file in the first line"
        if block.language == "python":
            compile(block.text, block.file, "exec")


@pytest.mark.e2e
def test_the_topologies_of_the_readme_are_right(place: Place) -> None:
    names = [name for name in FILES if name.endswith(".yaml")]
    assert len(names) == 3
    code, output = sh(place, f"flowkit check {' '.join(names)}")
    assert code == 0, output


@pytest.mark.e2e
def test_the_test_of_the_readme_passes(place: Place) -> None:
    code, output = sh(place, "python -m pytest -q -p no:cacheprovider test_words.py")
    assert code == 0, output
    assert "1 passed" in output


@pytest.mark.e2e
def test_the_defaults_of_the_readme_are_the_defaults(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(place.path))
    monkeypatch.chdir(place.path)
    full = load_plan(place.file("everything.yaml"), {}, str(place.path))
    bare = "\n".join(
        line
        for line in FILES["everything.yaml"].splitlines()
        if not re.match(
            r" +(replicas|restart|on_error|watchdog|env|external|delivery|when_full|window):"
            r"| +(transport|route: balance)",
            line,
        )
    )
    assert len(bare.splitlines()) < len(FILES["everything.yaml"].splitlines()) - 8
    Path(place.file("everything.yaml")).write_text(bare)
    least = load_plan(place.file("everything.yaml"), {}, str(place.path))
    assert full.nodes == least.nodes
    assert full.links == least.links


@pytest.mark.parametrize("name", ["sockets", "poller", "stream", "flowkit"])
def test_the_programs_of_the_motivation_are_the_real_ones(name: str) -> None:
    path = f"examples/motivation/with_{name}.py"
    assert FILES[path] == f"# {path}\n" + (ROOT / path).read_text(encoding="utf-8")


def test_the_quickstart_shown_is_of_the_real_topology() -> None:
    (shown,) = (block.text for block in BLOCKS if block.language == "text")
    plan = load_plan(str(ROOT / "topologies" / "quickstart.yaml"), {}, str(ROOT))
    links = re.findall(r"^(\S+ -> \S+) +([\d,]+) +([\d,]+)", shown, re.MULTILINE)
    assert [name for name, _, _ in links] == [link.name for link in plan.links]
    assert all(sent == done for _, sent, done in links)


# ---------------------------------------------------------------------------- the two commands


def commands() -> dict[str, str]:
    """The lines that `.ci/run` takes from README, by the name in the comment before them."""
    pattern = r"^\.\. ci: (\w+)\n\n::\n\n((?:   .+\n)+)"
    return {found[1]: found[2] for found in re.finditer(pattern, TEXT, re.MULTILINE)}


def test_there_are_two_commands_of_one_line_each() -> None:
    found = commands()
    assert list(found) == ["quickstart", "test"]
    assert TEXT.count(".. ci:") == 2
    for command in found.values():
        assert len(command.splitlines()) == 1
        assert command.strip().startswith("python3 -m venv .venv && .venv/bin/pip install ")
    # `.ci/run` adds an option to the one and looks for the tools that the other has installed.
    assert found["quickstart"].endswith(" .venv/bin/flowkit up topologies/quickstart.yaml\n")
    assert "[test]" in found["test"] and found["test"].rstrip().endswith("pytest -q -n 4")


def test_the_verbs_are_those_there_are() -> None:
    shown = set(re.findall(r"^``flowkit ([\w-]+)[^`]*``  ", TEXT, re.MULTILINE))
    assert shown == set(cli.VERBS)


def test_the_options_of_up_are_those_there_are() -> None:
    row = TEXT[TEXT.index("``flowkit up FILE``  ") : TEXT.index("``flowkit ls``  ")]
    shown = set(re.findall(r"``(--[\w-]+)", row))
    options = [item for item in up.command.params if isinstance(item, click.Option)]
    names = {name for option in options if not option.hidden for name in option.opts}
    assert shown == {name for name in names if name.startswith("--")}
    limit = re.search(r"--drain-timeout (\w+)", row)
    assert limit and duration(limit[1]) == up.DRAIN_TIMEOUT


def test_docutils_has_nothing_to_complain_about() -> None:
    core = pytest.importorskip("docutils.core", reason="needs docutils: pip install docutils")
    settings = {"report_level": 1, "halt_level": 1, "syntax_highlight": "none"}
    for name in ("README.rst", "CHANGELOG.rst"):
        text = (ROOT / name).read_text(encoding="utf-8")
        core.publish_doctree(text, settings_overrides=settings)
