"""The command line itself: usage, errors, exit codes, and terminals of every kind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import flowkit
from flowkit import cli
from flowkit.cli import terminal
from flowkit.cli.problems import render
from flowkit.errors import (
    AlreadyRunning,
    FlowkitError,
    LocalProtocolError,
    OperatorError,
    Problem,
    ReplicaError,
    TopologyError,
)

ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `python -m flowkit` in an environment without any wishes about language or colour."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flowkit", *arguments],
            capture_output=True,
            cwd=tmp_path,
            env=clean_environment(**environment),
            encoding="utf-8",
            timeout=60,
        )

    return run


def clean_environment(**more: str) -> dict[str, str]:
    unwanted = ("LC_", "LANG", "NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING", "PYTHONUTF8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {**environment, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`verb(action)` adds the verb `trial`, which calls `action`."""

    def add(action: Callable[[], object]) -> None:
        module = ModuleType("flowkit.cli.trial")
        module.command = click.Command("trial", callback=action)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, "trial", "A verb for this test.")

    yield add


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


# ---------------------------------------------------------------------------- usage


def test_no_arguments_show_the_usage(run: Run) -> None:
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: flowkit [OPTIONS] VERB")


def test_help_lists_every_verb_and_imports_none(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb, text in cli.VERBS.items():
        assert f"  {verb} " in done.stdout and text in done.stdout
    code = (
        "import sys; from flowkit.cli import main, VERBS; assert main(['--help']) == 0;"
        "loaded = [verb for verb in VERBS if f'flowkit.cli.{verb}' in sys.modules];"
        "sys.exit(f'loaded {loaded}' if loaded or 'pydantic' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: flowkit {verb}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"flowkit {flowkit.__version__}\n"


def test_an_unknown_verb_gets_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chek", "x.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Usage: flowkit [OPTIONS] VERB [ARGS]...",
        "error: no verb 'chek'; did you mean 'check'?",
        "hint: flowkit --help",
    ]


def test_an_unknown_verb_like_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zzz"]) == 2
    assert "no verb 'zzz'; verbs are up, ls" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--nonsense"], ["doctor", "--nonsense"], ["doctor", "a", "b"], ["doctor", "--format", "x"]],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: flowkit") and "\nerror: " in err and "--help\n" in err


# ---------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (4, 4), ("text", 0)])
def test_a_verb_returns_its_exit_code(verb: Callable[..., None], value: object, code: int) -> None:
    verb(lambda: value)
    assert cli.main(["trial"]) == code


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (OperatorError("no room", hint="make some"), 2, ["error: no room", "hint: make some"]),
        (OperatorError("no room"), 2, ["error: no room"]),
        (ReplicaError("parse.0 does not start"), 3, ["error: parse.0 does not start"]),
        (FlowkitError("é"), 2, ["error: é"]),
        (click.ClickException("odd"), 2, ["error: odd"]),
        (KeyboardInterrupt(), 130, []),
        (click.exceptions.Exit(5), 5, []),
    ],
)
def test_errors_are_told_in_a_line(
    error: BaseException,
    code: int,
    lines: list[str],
    verb: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    verb(raising(error))
    assert cli.main(["trial"]) == code
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", lines)


def test_an_error_with_a_hint_of_its_own(
    verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(AlreadyRunning(12, "lock")))
    assert cli.main(["trial"]) == 2
    assert capsys.readouterr().err.startswith("error: already running: process 12 holds lock\nhint")


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), LocalProtocolError("oh")])
def test_anything_else_is_a_bug_of_ours(
    error: Exception, verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(error))
    assert cli.main(["trial"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "oh" in err
    assert f"this is a bug in flowkit {flowkit.__version__}" in err.splitlines()[-1]


def test_a_broken_pipe_that_is_not_ours_is_a_bug(
    verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(BrokenPipeError("some socket")))
    assert cli.main(["trial"]) == 1
    assert "this is a bug" in capsys.readouterr().err


# ---------------------------------------------------------------------------- problems

UNKNOWN_KEY = Problem(
    "topologies/clicks.yaml",
    5,
    5,
    "E102",
    "unknown key 'replcas' in node 'parse'",
    "did you mean 'replicas'?",
    7,
    "    replcas: 4",
)
UNKNOWN_NODE = Problem(
    "topologies/clicks.yaml",
    14,
    28,
    "E201",
    "link to unknown node 'prase'",
    "did you mean 'parse'?",
    5,
    "  - {from: read.lines, to: prase.lines}",
)
SHOWN = """\
topologies/clicks.yaml:5:5: error[E102]: unknown key 'replcas' in node 'parse'
  |
5 |     replcas: 4
  |     ^^^^^^^
  = help: did you mean 'replicas'?
topologies/clicks.yaml:14:28: error[E201]: link to unknown node 'prase'
   |
14 |   - {from: read.lines, to: prase.lines}
   |                            ^^^^^
   = help: did you mean 'parse'?
2 errors in 1 file"""


def test_problems_are_shown_as_a_compiler_does() -> None:
    assert render([UNKNOWN_KEY, UNKNOWN_NODE]) == SHOWN
    assert render([UNKNOWN_NODE, UNKNOWN_KEY]) == SHOWN


def test_colours_change_nothing_else() -> None:
    coloured = render([UNKNOWN_KEY, UNKNOWN_NODE], colour=True)
    assert "\x1b[" in coloured
    assert click.unstyle(coloured) == SHOWN


def test_a_problem_of_the_whole_file() -> None:
    shown = render([Problem("a.yaml", 0, 0, "E100", "no such file", "look for it")])
    assert shown.splitlines()[0] == "a.yaml: error[E100]: no such file"
    assert shown.splitlines()[-1] == "1 error in 1 file"


def test_no_problems() -> None:
    assert render([]) == ""


def test_a_topology_error_shows_all_its_problems(
    verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(TopologyError([UNKNOWN_KEY, UNKNOWN_NODE])))
    assert cli.main(["trial"]) == 2
    assert capsys.readouterr() == ("", SHOWN + "\n")


# ---------------------------------------------------------------------------- terminals


@pytest.mark.parametrize(
    ("environment", "terminal_", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_when_there_are_colours(
    environment: dict[str, str],
    terminal_: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal_)
    assert terminal.use_colour(stream) is expected


PRINT = (
    "import sys; from flowkit.cli import terminal;"
    "terminal.prepare(sys.stdout); print('caf\\u00e9 \\u00b7 \\u2588 \\u2192 \\udc80', end='')"
)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LANG": "C.UTF-8"}, "café · █ → ".encode()),
        ({"LC_ALL": "C.UTF-8"}, "café · █ → ".encode()),
        # The user's own letters are data and stay what they are, the ornaments become ASCII.
        ({"LANG": "C"}, "café - # -> ".encode()),
        ({"LC_ALL": "C"}, "café - # -> ".encode()),
        ({"LC_ALL": "POSIX"}, "café - # -> ".encode()),
        ({}, "café - # -> ".encode()),
        ({"PYTHONIOENCODING": "ascii"}, b"caf\\xe9 - # -> "),
        ({"PYTHONIOENCODING": "latin-1"}, b"caf\xe9 \xb7 # -> "),
    ],
)
def test_no_locale_is_too_poor(environment: dict[str, str], expected: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT], env=clean_environment(**environment), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected)
    # What was no UTF-8 to begin with is shown as the byte it was, or as an escape.
    assert done.stdout[len(expected) :] in (b"\x80", b"\\udc80")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flowkit", "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=clean_environment(),
            cwd=tmp_path,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (cli.EXIT_BROKEN_PIPE, b"")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_error(closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m flowkit --help {closed}', sys.executable],
        capture_output=True,
        env=clean_environment(),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (done.stdout == b"") == ("1>" in closed)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
@pytest.mark.parametrize("arguments", [["--help"], ["schema"]])
def test_a_full_disk_is_no_bug(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flowkit", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode == cli.EXIT_USAGE
    assert done.stderr.decode() == "error: cannot write the output: No space left on device\n"
