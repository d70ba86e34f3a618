"""Count the words of a directory of texts. The nodes of wordcount.yaml."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

from flowkit import In, Many, Node, Out, Source, every

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

CHUNK = 1 << 16
"""Bytes of lines that share one position."""


class ReadLines(Source):
    """Lines of the text files under a directory; the position is a file and a byte offset."""

    lines = Out(str)

    def __init__(self, root: str) -> None:
        """`root`: a directory, or a single file."""
        if not os.path.exists(root):
            raise FileNotFoundError(f"{root} does not exist")
        self.root = root

    def read(self, position: tuple[str, int] | None) -> Iterator[tuple[Many, tuple[str, int]]]:
        first, offset = position or ("", 0)
        for path in text_files(self.root):
            if path < first:
                continue
            with open(path, "rb") as file:
                file.seek(offset if path == first else 0)
                # Many lines with one position cost less than a position for each.
                while lines := file.readlines(CHUNK):
                    texts = [line.decode(errors="replace") for line in lines]
                    yield Many(texts), (path, file.tell())


class Split(Node):
    """Cut lines into words, in lower case."""

    lines = In(str)
    words = Out(str)

    def on_lines(self, line: str) -> None:
        for word in WORD.findall(line.lower()):
            self.words.send(word)


class Count(Node):
    """Count words; report the most common ones every few seconds and at the end."""

    # It sends from its memory: a replica that dies takes its counts with it, and says so.
    stateful = True

    words = In(str)
    totals = Out(dict[str, int])

    def __init__(self, top: int = 20) -> None:
        self.top = top
        self.counts: Counter[str] = Counter()

    def on_words(self, word: str) -> None:
        self.counts[word] += 1

    @every("5s")
    def report(self) -> None:
        ranking = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        self.totals.send(dict(ranking[: self.top]))

    def finish(self) -> None:
        self.report()


class Show(Node):
    """Print the most common words, so far on the way and all at the end."""

    stateful = True

    totals = In(dict[str, int])

    def __init__(self, top: int = 20) -> None:
        self.top = top
        self.counts: dict[str, int] = {}

    def on_totals(self, totals: dict[str, int]) -> None:
        # A word is always counted by the same replica, so a later total replaces the earlier one.
        self.counts.update(totals)

    @every("5s")
    def so_far(self) -> None:
        if self.counts:
            print("so far:", ", ".join(f"{word} {count:,}" for word, count in self.ranking()[:5]))

    def finish(self) -> None:
        for word, count in self.ranking():
            print(f"{count:>9,} {word}")

    def ranking(self) -> list[tuple[str, int]]:
        """The most common words first; equal ones in the order of the alphabet."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[: self.top]


def text_files(root: str) -> list[str]:
    """Paths of the text files under `root`, or `root` itself, sorted.

    What begins with a dot is left out, and so is a file with a zero byte near its beginning.
    """
    found = [root] if os.path.isfile(root) else []
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [os.path.join(directory, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if os.path.isfile(path) and _is_text(path))


def _is_text(path: str) -> bool:
    with open(path, "rb") as file:
        return b"\0" not in file.read(4096)
