"""Which modules does a body of Python code lean on? The nodes of distributed_composition.yaml."""

from __future__ import annotations

import ast
import os
import warnings
from collections import Counter
from collections.abc import Iterator

from msgspec import Struct

from flowkit import In, Node, Out, Source


class Use(Struct, frozen=True):
    """A file imports a module."""

    file: str
    module: str


class Total(Struct, frozen=True):
    """How many files import a package."""

    package: str
    files: int


class Walk(Source):
    """The Python files under a directory; the position is how many of the sorted list are done."""

    files = Out(str)

    def __init__(self, root: str = ".") -> None:
        if not os.path.isdir(root):
            raise NotADirectoryError(f"{root} is not a directory")
        self.paths = python_files(root)

    def length(self) -> int:
        return len(self.paths)

    def read(self, position: int | None) -> Iterator[tuple[str, int]]:
        for number in range(position or 0, len(self.paths)):
            yield self.paths[number], number + 1


class Parse(Node):
    """Find the imports of a file; one that is no Python has none."""

    files = In(str)
    uses = Out(Use)

    def on_files(self, path: str) -> None:
        for module in imports_of(path):
            self.uses.send(Use(path, module))


class Reduce(Node):
    """From modules to the packages that they are in."""

    uses = In(Use)
    packages = Out(Use, key="module")

    def on_uses(self, use: Use) -> None:
        self.packages.send(Use(use.file, use.module.partition(".")[0]))


class Tally(Node):
    """Count the files that import each package."""

    stateful = True

    packages = In(Use)
    totals = Out(Total)

    def __init__(self) -> None:
        self.files: dict[str, set[str]] = {}

    def on_packages(self, use: Use) -> None:
        self.files.setdefault(use.module, set()).add(use.file)

    def finish(self) -> None:
        for package, files in sorted(self.files.items()):
            self.totals.send(Total(package, len(files)))


class Rank(Node):
    """Put the totals of all replicas in order."""

    stateful = True

    totals = In(Total)
    lines = Out(str)

    def __init__(self, top: int = 10) -> None:
        self.top = top
        self.totals_of: Counter[str] = Counter()

    def on_totals(self, total: Total) -> None:
        self.totals_of[total.package] = total.files

    def finish(self) -> None:
        ranking = sorted(self.totals_of.items(), key=lambda item: (-item[1], item[0]))
        for package, files in ranking[: self.top]:
            self.lines.send(f"{files:>6,}  {package}")


class Show(Node):
    """Print."""

    lines = In(str)

    def on_lines(self, line: str) -> None:
        print(line)


def imports_of(path: str) -> Iterator[str]:
    """The modules that a file imports by their full names, each as often as it does."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def python_files(root: str) -> list[str]:
    """Paths of the Python files under `root`, sorted; hidden directories are left out."""
    found = []
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [os.path.join(directory, name) for name in files if name.endswith(".py")]
    return sorted(filter(os.path.isfile, found))
