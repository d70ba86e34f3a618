"""README.rst tells the truth: what it shows is run, and prints what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from flowkit import cli
from flowkit.cli import up
from flowkit.runtime.planning import load_plan
from flowkit.units import duration
from tests.documents import Desk, blocks, plain, shape
from tests.e2e.harness import PATIENCE, ROOT

README = ROOT / "README.rst"
TEXT = README.read_text(encoding="utf-8")


BLOCKS = blocks(README)
FILES = {block.file: block.text for block in BLOCKS if block.file}


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A directory with the files that README shows, and the text that they read."""
    desk = Desk()
    for name, text in FILES.items():
        if "/" not in name:
            desk.write(name, text)
    desk.write("LICENSE", (ROOT / "LICENSE").read_text(encoding="utf-8"))
    yield desk
    desk.close()


# ---------------------------------------------------------------------------- what is shown


@pytest.mark.e2e
def test_the_console_sessions_are_true(desk: Desk) -> None:
    sessions = [block for block in BLOCKS if block.language == "console"]
    assert len(sessions) >= 6
    for session in sessions:
        if session is not RUNNING:
            for command, expected in session.sessions():
                _, output = desk.sh(command)
                assert plain(output) == plain(expected), f"{session.where}: {command}"


(RUNNING,) = (block for block in BLOCKS if "scale parse=4" in block.text)


@pytest.mark.e2e
def test_the_session_with_a_running_project_is_true(desk: Desk) -> None:
    for file in (ROOT / "tests" / "readme").iterdir():
        if file.is_file():
            desk.write(file.name, file.read_text(encoding="utf-8"))
    try:
        _follow(desk)
    finally:
        desk.sh("flowkit down --kill")


def _follow(desk: Desk) -> None:
    ran = []
    for command, expected in RUNNING.sessions():
        if command == "flowkit down":
            printed = desk.interrupted("python -u double.py", 2)
            assert "WARNING odd line" in printed
        if expected.endswith("^C\n"):
            lines = expected.splitlines(keepends=True)[:-1]
            # Which replica was the first is chance.
            output = re.sub(r"parse\.\d", "parse.2", desk.interrupted(command, len(lines)))
            expected = "".join(lines)
        else:
            _, output = desk.sh(command)
        assert shape(output) == shape(expected), f"{RUNNING.where}: {command}: {output}"
        ran.append(command.split()[1])
    assert ran == ["up", "ps", "scale", "logs", "down"]


def test_commands_that_are_shown_without_their_output_are_right() -> None:
    shown = [
        shlex.split(line.partition("#")[0])[2:]
        for block in BLOCKS
        if not block.language
        for line in block.text.splitlines()
        if line.startswith("$ flowkit ")
    ]
    assert shown
    for verb, *arguments in shown:
        cli.Verbs(name="flowkit").get_command(click.Context(cli.Verbs()), verb).make_context(
            verb, arguments
        )


@pytest.mark.slow
def test_the_tests_that_the_readme_names_are_there() -> None:
    named = [block for block in BLOCKS if not block.language and "-m pytest -m slow" in block.text]
    assert len(named) >= 2
    for block in named:
        for command in re.split(r"(?<!\\)\n", block.text.strip()):
            command = command.replace(".venv/bin/python", shlex.quote(sys.executable))
            done = subprocess.run(
                ["sh", "-c", f"{command} --collect-only -q"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert done.returncode == 0 and "::test_" in done.stdout, (command, done.stdout)


def test_every_python_file_of_the_readme_is_shown_whole(desk: Desk) -> None:
    for block in BLOCKS:
        if block.language in ("python", "yaml"):
            assert block.file, f"README.rst:{block.line}: no name of a file in the first line"
        if block.language == "python":
            compile(block.text, block.file, "exec")


@pytest.mark.e2e
def test_the_topologies_of_the_readme_are_right(desk: Desk) -> None:
    names = [name for name in FILES if name.endswith(".yaml")]
    assert len(names) >= 2
    code, output = desk.sh(f"flowkit check {' '.join(names)}")
    assert code == 0, output


@pytest.mark.e2e
def test_the_tests_of_the_readme_pass(desk: Desk) -> None:
    tests = [name for name in FILES if name.startswith("test_")]
    assert len(tests) == 3
    code, output = desk.sh(f"python -m pytest -q {' '.join(tests)}")
    assert code == 0, output


def test_a_node_and_its_test_take_ten_lines() -> None:
    lines = [line for line in FILES["test_shout.py"].splitlines()[1:] if line]
    assert len(lines) <= 10


@pytest.mark.e2e
def test_the_defaults_of_the_readme_are_the_defaults(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(desk.path))
    monkeypatch.chdir(desk.path)
    full = load_plan(str(desk.path / "everything.yaml"), {}, str(desk.path))
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
    Path(str(desk.path / "everything.yaml")).write_text(bare)
    least = load_plan(str(desk.path / "everything.yaml"), {}, str(desk.path))
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
