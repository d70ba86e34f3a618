"""What is in a directory of sources? The nodes of pubsub_fanout.yaml.

Documents are published under the ending of their name; who wants to know subscribes to it.
"""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from pathlib import PurePath

from msgspec import Struct

from flowkit import In, Node, Out

LARGEST = 1 << 20
"""Bytes of a file that are published at most; a larger one is none that somebody has written."""


class Document(Struct, frozen=True):
    """A file: its path, the ending of its name (".py"), and what is in it."""

    path: str
    ending: str
    text: str


class Feed(Node):
    """Publish the text files under a directory; the ending is the topic."""

    documents = Out(Document, key="ending")

    def __init__(self, root: str) -> None:
        if not os.path.isdir(root):
            raise NotADirectoryError(f"{root} is not a directory")
        self.root = root

    async def run(self) -> None:
        for document in documents(self.root):
            self.documents.send(document)
            await self.documents.room()


class Python(Node):
    """Count what Python files define; print the classes with the most methods."""

    stateful = True

    documents = In(Document)

    def __init__(self, top: int = 5) -> None:
        self.top = top
        self.files = self.functions = self.broken = 0
        self.methods: Counter[str] = Counter()

    def on_documents(self, document: Document) -> None:
        self.files += 1
        try:
            tree = ast.parse(document.text)
        except (SyntaxError, ValueError, RecursionError):
            self.broken += 1
            return
        functions = ast.FunctionDef | ast.AsyncFunctionDef
        for node in ast.walk(tree):
            self.functions += isinstance(node, functions)
            if isinstance(node, ast.ClassDef):
                count = sum(isinstance(one, functions) for one in node.body)
                self.methods[f"{document.path}: {node.name}"] = count

    def finish(self) -> None:
        for name, count in sorted(self.methods.items(), key=lambda one: (-one[1], one[0]))[
            : self.top
        ]:
            print(f"{count:>4} methods in {name}")
        print(
            f"{self.files} Python files ({self.broken} broken), {self.functions} functions, "
            f"{len(self.methods)} classes"
        )


class Prose(Node):
    """Count words of prose; print the longest texts."""

    stateful = True

    documents = In(Document)

    def __init__(self, top: int = 5) -> None:
        self.top = top
        self.words: Counter[str] = Counter()

    def on_documents(self, document: Document) -> None:
        self.words[document.path] = len(re.findall(r"\w+", document.text))

    def finish(self) -> None:
        for path, count in sorted(self.words.items(), key=lambda one: (-one[1], one[0]))[
            : self.top
        ]:
            print(f"{count:>6,} words in {path}")
        print(f"{self.words.total():,} words in {len(self.words)} texts")


class Audit(Node):
    """See everything that is published; print how much there was of each kind."""

    stateful = True

    documents = In(Document)

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()

    def on_documents(self, document: Document) -> None:
        self.lines[document.ending or "(none)"] += document.text.count("\n")

    def finish(self) -> None:
        for ending, count in sorted(self.lines.items(), key=lambda one: (-one[1], one[0])):
            print(f"{count:>8,} lines of {ending}")


def documents(root: str) -> list[Document]:
    """The text files under `root`, sorted; what begins with a dot is left out."""
    found = []
    for directory, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = os.path.join(directory, name)
            if name.startswith(".") or not os.path.isfile(path) or os.path.getsize(path) > LARGEST:
                continue
            try:
                with open(path, encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError):
                continue
            found.append(Document(os.path.relpath(path, root), PurePath(name).suffix, text))
    return sorted(found, key=lambda document: document.path)
