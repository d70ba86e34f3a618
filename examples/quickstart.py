"""Which identifiers does Python's standard library use most? The nodes of quickstart.yaml.

An identifier is a NAME token that is no keyword, as `keyword.iskeyword` knows them; soft keywords
(`match`, `case`, `type`) are names like any other.
"""

from __future__ import annotations

import json
import keyword
import os
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from flowkit import In, Node, Out, Source

TESTS = frozenset({"test", "tests", "idle_test"})
"""Directories that hold the standard library's own tests, wherever they are in it."""

EIGHTHS = "▏▎▍▌▋▊▉█"
"""Bars are drawn with these where the output is UTF-8, else with ``#``."""

INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Directories of what was installed beside the standard library."""


class ListFiles(Source):
    """Python files under a directory; the position is how many of the sorted list are done."""

    files = Out(str)

    def __init__(self, root: str = "") -> None:
        """`root`: a directory, or nothing for the standard library of this interpreter."""
        self.paths = python_files(root)

    def length(self) -> int:
        return len(self.paths)

    def read(self, position: int | None) -> Iterator[tuple[str, int]]:
        for number in range(position or 0, len(self.paths)):
            yield self.paths[number], number + 1


class Tokenize(Node):
    """Read files, send their identifiers."""

    files = In(str)
    names = Out(str)

    def on_files(self, path: str) -> None:
        self.names.send_many(identifiers(path))


class Count(Node):
    """Count identifiers; send the counts when there are no more."""

    stateful = True  # a replica that dies takes its counts with it, and the report says so

    names = In(str)
    totals = Out(dict[str, int])

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def on_names(self, name: str) -> None:
        self.counts[name] += 1

    def finish(self) -> None:
        self.totals.send(dict(self.counts))


class Show(Node):
    """Print the most frequent identifiers as a table, write all of them to a JSON file."""

    stateful = True

    totals = In(dict[str, int])

    def __init__(self, out: str = "identifiers.json", top: int = 20) -> None:
        self.out = Path(out).resolve()
        self.top = top
        self.counts: Counter[str] = Counter()
        if not self.out.parent.is_dir() or self.out.is_dir():  # better now than after the work
            raise ValueError(f"cannot write the file {out}: {self.out.parent} is no directory")

    def on_totals(self, totals: dict[str, int]) -> None:
        self.counts.update(totals)

    def finish(self) -> None:
        # Equal counts in the order of the alphabet: the table is the same each time.
        ranking = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        for line in table(ranking[: self.top]):
            print(line)
        write(self.out, self.counts)
        print(f"{len(self.counts):,} identifiers, {self.counts.total():,} uses: {self.out.name}")


def python_files(root: str = "") -> list[str]:
    """Paths of the ``*.py`` files under `root`, sorted.

    Without `root`, of the running interpreter's standard library, its tests and what is installed
    beside it left out. Raises NotADirectoryError.
    """
    left_out = frozenset() if root else TESTS | INSTALLED
    top = root or sysconfig.get_path("stdlib")
    if not os.path.isdir(top):
        raise NotADirectoryError(f"{top} is not a directory")
    found = []
    for directory, below, files in os.walk(top):
        below[:] = [name for name in below if name not in left_out]
        found += [os.path.join(directory, name) for name in files if name.endswith(".py")]
    return sorted(filter(os.path.isfile, found))


def identifiers(path: str) -> Iterator[str]:
    """The identifiers in a Python file, in order; of a broken file those before the error."""
    with open(path, "rb") as file:
        try:
            for token in tokenize.tokenize(file.readline):
                if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                    yield token.string
        except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):
            return


def count_files(root: str = "") -> Counter[str]:
    """The same counts from a plain loop in one process: what the topology is compared with."""
    counts: Counter[str] = Counter()
    for path in python_files(root):
        counts.update(identifiers(path))
    return counts


def table(ranking: list[tuple[str, int]], width: int = 32) -> list[str]:
    """Lines of names, counts and bars; the longest bar is `width` characters."""
    encoding = sys.stdout.encoding or "ascii"
    blocks = EIGHTHS if "█".encode(encoding, "replace") != b"?" else "#"
    longest = max((len(name) for name, _ in ranking), default=0)
    most = max((count for _, count in ranking), default=0)
    lines = []
    for name, count in ranking:
        whole, part = divmod(max(1, round(width * len(blocks) * count / most)), len(blocks))
        bar = blocks[-1] * whole + (blocks[part - 1] if part else "")
        lines.append(f"{name:{longest}} {count:>9,} {bar}")
    return [line.encode(encoding, "backslashreplace").decode(encoding) for line in lines]


def write(path: Path, counts: Counter[str]) -> None:
    """Write `counts` as one JSON object, sorted by name: whole, or not at all."""
    text = json.dumps(counts, indent=0, sort_keys=True, ensure_ascii=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
