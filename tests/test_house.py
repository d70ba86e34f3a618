"""The rules of the house: which way imports point, what has one home, what importing may do.

Everything here is read from the source with `ast`, or tried in a fresh interpreter.
"""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flowkit"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room may import rooms of a lower number, and of its own as long as there is no cycle.
RANKS = {
    0: ["errors", "clock"],
    1: ["importing", "units", "histogram", "sliding"],
    2: ["message"],
    3: ["wire", "codecs"],
    4: ["protocol"],
    5: ["topology"],
    6: ["metrics", "sampling", "status", "channels", "calls", "node", "__init__"],
    7: ["transport", "store", "journal", "claims", "rundir", "connectors"],
    8: ["runtime"],
    9: ["control", "launchers", "logs"],
    10: ["report", "shares", "processes", "figures", "operations"]
    + ["watching", "embedding", "attaching", "supervisor", "inprocess", "mp"],
    11: ["dashboard"],
    12: ["cli", "testing", "bench", "__main__"],
}
RANK_OF = {room: rank for rank, rooms in RANKS.items() for room in rooms}

# The core decides and touches nothing. (Rank, then what it may not import.)
PURE = 6
IMPURE = {
    "asyncio",
    "multiprocessing",
    "random",
    "signal",
    "socket",
    "threading",
    "time",
    "tornado",
    "zmq",
}

# Module: the only places that may import it. A name with a slash at its end is a directory.
HOMES = {
    "pickle": ["codecs/pickle.py"],
    "marshal": [],
    "shelve": [],
    # The conformance suites try what they test between real processes; `bench` measures it.
    "multiprocessing": ["launchers/", "mp/", "testing/", "bench/"],
    "yaml": ["topology/"],
    "pydantic": ["topology/"],
    "rich": ["cli/"],
    "opentelemetry": ["runtime/spans.py"],
    "click": ["cli/"],
}

FILE_METHODS = {"read_text", "read_bytes", "write_text", "write_bytes"}

# Who may change what a signal does. Naming or sending one is free.
SIGNAL_HOMES = ("launchers/", "runtime/child.py", "embedding.py", "cli/up.py", "cli/pipe.py")

LONGEST = 700


@dataclass(frozen=True)
class Import:
    """`module` as written, absolute; `typing` if only type checkers follow it."""

    line: int
    module: str
    names: tuple[str, ...]
    typing: bool


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Every import of a module, also those inside functions."""
    return tuple(_imports(tree_of(path), typing=False))


def calls_of(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


def _imports(node: ast.AST, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(child.lineno, alias.name, (), typing)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            names = tuple(alias.name for alias in child.names)
            yield Import(child.lineno, child.module or "", names, typing)
        else:
            guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports(child, typing or guard)


def rooms_of(imported: Import) -> list[str]:
    """The rooms of flowkit that an import enters."""
    parts = imported.module.split(".")
    if parts[0] != "flowkit":
        return []
    if len(parts) > 1:
        return [parts[1]]
    return sorted({name if name in RANK_OF else "__init__" for name in imported.names or ("",)})


def room_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


each_module = pytest.mark.parametrize("path", MODULES, ids=relative)


# ---------------------------------------------------------------------------- imports


@each_module
def test_every_room_has_a_rank(path: Path) -> None:
    assert room_of(path) in RANK_OF, "give the new room a rank in this file"


@each_module
def test_imports_point_down(path: Path) -> None:
    here = room_of(path)
    wrong = [
        f"line {imported.line}: {here} (rank {RANK_OF[here]}) imports "
        f"{room} (rank {RANK_OF.get(room, '?')})"
        for imported in imports_of(path)
        for room in rooms_of(imported)
        # What the package names at its top and imports only when it is used.
        if not (here == "__init__" and imported.typing)
        and room != here
        and RANK_OF.get(room, 99) > RANK_OF[here]
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_have_no_cycles() -> None:
    known = {dotted(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        targets = graph.setdefault(dotted(path), set())
        for imported in imports_of(path):
            if imported.typing:
                continue
            inner = {f"{imported.module}.{name}" for name in imported.names} & known
            # `from package import module` needs the module, not all that the package imports.
            targets |= inner or ({imported.module} & known)
        targets.discard(dotted(path))
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the cycle


@each_module
def test_the_core_is_pure(path: Path) -> None:
    if RANK_OF[room_of(path)] > PURE:
        return
    allowed = {"time"} if relative(path) == "clock.py" else set()
    wrong = [
        f"line {imported.line}: {imported.module}"
        for imported in imports_of(path)
        if imported.module.split(".")[0] in IMPURE - allowed
    ]
    assert not wrong, "the core imports no I/O, time or chance:\n" + "\n".join(wrong)


@each_module
def test_only_the_loader_opens_files_in_the_core(path: Path) -> None:
    if RANK_OF[room_of(path)] > PURE or relative(path) == "topology/loader.py":
        return
    wrong = [
        f"line {call.lineno}: {ast.unparse(call.func)}()"
        for call in calls_of(path)
        if ast.unparse(call.func) in {"open", "io.open", "os.open"}
        or (isinstance(call.func, ast.Attribute) and call.func.attr in FILE_METHODS)
    ]
    assert not wrong, "\n".join(wrong)


@each_module
def test_what_is_dangerous_has_one_home(path: Path) -> None:
    wrong = []
    for imported in imports_of(path):
        name = imported.module.split(".")[0]
        homes = HOMES.get(name)
        if homes is not None and not any(
            relative(path) == home or (home.endswith("/") and relative(path).startswith(home))
            for home in homes
        ):
            wrong.append(f"line {imported.line}: {name} belongs to {homes or 'nobody'}")
    assert not wrong, "\n".join(wrong)


@each_module
def test_only_the_clock_asks_what_time_it_is(path: Path) -> None:
    if relative(path) == "clock.py":
        return
    questions = {"time", "monotonic", "perf_counter"}
    questions |= {f"{name}_ns" for name in questions}
    wrong = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree_of(path))
        if (
            isinstance(node, ast.Attribute)
            and node.attr in questions
            and ast.unparse(node.value) == "time"
        )
        or (isinstance(node, ast.Attribute) and ast.unparse(node).endswith("datetime.now"))
    ] + [
        f"line {imported.line}: from time import {', '.join(imported.names)}"
        for imported in imports_of(path)
        if imported.module == "time" and questions & set(imported.names)
    ]
    assert not wrong, "time is an argument:\n" + "\n".join(wrong)


@each_module
def test_signals_are_handled_in_few_places(path: Path) -> None:
    if relative(path).startswith(SIGNAL_HOMES):
        return
    handlers = {"signal.signal", "signal.set_wakeup_fd", "signal.pthread_sigmask"}
    wrong = [
        f"line {call.lineno}: {ast.unparse(call.func)}()"
        for call in calls_of(path)
        if ast.unparse(call.func) in handlers
        or (isinstance(call.func, ast.Attribute) and call.func.attr == "add_signal_handler")
    ]
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------------- habits


@each_module
def test_modules_are_short_and_explain_themselves(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert path.stem not in {"util", "utils", "helpers", "misc", "common"}
    assert ast.get_docstring(tree_of(path)), "a module says what it is for"


@each_module
def test_annotations_are_not_evaluated(path: Path) -> None:
    body = [node for node in tree_of(path).body if not isinstance(node, ast.Expr)]
    if body:
        first = body[0]
        assert isinstance(first, ast.ImportFrom) and first.module == "__future__"


@each_module
def test_nothing_is_left_for_later(path: Path) -> None:
    found = re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text(encoding="utf-8"))
    assert not found, found


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()


def sources() -> list[Path]:
    found = [
        *ROOT.glob("*.rst"),
        *ROOT.glob("*.cfg"),
        *ROOT.glob("*.py"),
        *(ROOT / ".ci").iterdir(),
    ]
    for directory in ("flowkit", "topologies", "examples", "tests"):
        for suffix in ("py", "yaml", "yml", "json", "txt", "in"):
            found += (ROOT / directory).rglob(f"*.{suffix}")
    return sorted(found)


# Somebody's own directories: what is written here must be true on every machine.
MACHINE = re.compile(r"(?<![\w.$}>~/-])/(?:work|root|home|Users|mnt)/[\w.-]+")


def test_no_paths_of_one_machine() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {found[0]}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (found := MACHINE.search(line))
    ]
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------------- importing


def in_fresh_interpreter(code: str) -> object:
    """Run `code` and return what it prints as JSON on its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_flowkit_loads_only_what_a_node_needs() -> None:
    loaded = in_fresh_interpreter(
        "import sys, json; before = set(sys.modules); import flowkit;"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    assert isinstance(loaded, list)
    unwanted = {
        "asyncio",
        "click",
        "multiprocessing",
        "prometheus_client",
        "psutil",
        "pydantic",
        "rich",
        "socket",
        "tornado",
        "yaml",
        "zmq",
    }
    assert not unwanted & set(loaded)


IMPORT_EVERYTHING = """
import importlib, json, sys, traceback
import asyncio, logging, os, signal, threading
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
environment = dict(os.environ)
failed = []
for name in NAMES:
    try:
        importlib.import_module(name)
    except BaseException:
        failed.append(f"{name}: {traceback.format_exc()}")
began = []
if threading.active_count() > 1:
    began.append(f"threads: {threading.enumerate()}")
if asyncio.get_event_loop_policy()._local.__dict__.get("_loop") is not None:
    began.append("an event loop")
if "zmq" in sys.modules and sys.modules["zmq"].Context._instance is not None:
    began.append("a ZeroMQ context")
if logging.getLogger().handlers or logging.getLogger("flowkit").handlers:
    began.append("logging")
if {number: signal.getsignal(number) for number in signal.valid_signals()} != handlers:
    began.append("signal handlers")
if dict(os.environ) != environment:
    began.append("environment variables")
import psutil
if psutil.Process().children():
    began.append("child processes")
print(json.dumps({"failed": failed, "began": began}))
"""


def test_every_module_imports_and_does_nothing_more() -> None:
    names = [dotted(path) for path in MODULES]
    result = in_fresh_interpreter(f"NAMES = {names!r}\n{IMPORT_EVERYTHING}")
    assert isinstance(result, dict)
    assert not result["failed"], "\n".join(result["failed"])
    assert not result["began"]


# ---------------------------------------------------------------------------- these rules bite


def test_imports_are_found_wherever_they_are() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from flowkit.cli import main\n"
        "def f():\n    import zmq.eventloop\n"
        "from flowkit import errors, Node\n"
    )
    found = list(_imports(ast.parse(source), typing=False))
    assert [(item.module, item.typing) for item in found] == [
        ("typing", False),
        ("flowkit.cli", True),
        ("zmq.eventloop", False),
        ("flowkit", False),
    ]
    assert rooms_of(found[1]) == ["cli"]
    assert rooms_of(found[3]) == ["__init__", "errors"]


@pytest.mark.parametrize("line", ["see /{}/x", "'/{}/main'", "(/{}/me/a)"])
@pytest.mark.parametrize("directory", ["home", "root", "work"])
def test_machine_paths_are_recognised(line: str, directory: str) -> None:
    assert MACHINE.search(line.format(directory))


@pytest.mark.parametrize("line", ["~/work/x", "${DIR}/home/x", "a/work/b", "https://x.org/home/y"])
def test_other_paths_are_not(line: str) -> None:
    assert not MACHINE.search(line)
