"""What fills a directory, and what is there twice? The nodes of fanout.yaml."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath

from msgspec import Struct

from flowkit import In, Node, Out, Source


class File(Struct, frozen=True):
    """A file and its size in bytes."""

    path: str
    size: int


class Digest(Struct, frozen=True):
    """A file and the SHA-256 of what is in it."""

    file: File
    sha256: str


class Walk(Source):
    """The files under a directory; the position is how many of the sorted list are done."""

    files = Out(File)

    def __init__(self, root: str) -> None:
        if not os.path.isdir(root):
            raise NotADirectoryError(f"{root} is not a directory")
        self.paths = visible_files(root)

    def length(self) -> int:
        return len(self.paths)

    def read(self, position: int | None) -> Iterator[tuple[File, int]]:
        for number in range(position or 0, len(self.paths)):
            path = self.paths[number]
            yield File(path, os.path.getsize(path)), number + 1


class Sizes(Node):
    """Add up sizes by the ending of the names; print where most bytes are."""

    stateful = True

    files = In(File)

    def __init__(self, top: int = 10) -> None:
        self.top = top
        self.bytes: Counter[str] = Counter()
        self.files_of: Counter[str] = Counter()

    def on_files(self, file: File) -> None:
        ending = PurePath(file.path).suffix or "(none)"
        self.bytes[ending] += file.size
        self.files_of[ending] += 1

    def finish(self) -> None:
        ranking = sorted(self.bytes.items(), key=lambda item: (-item[1], item[0]))
        for ending, size in ranking[: self.top]:
            print(f"{size:>13,} bytes in {self.files_of[ending]:>6,} files: {ending}")


class Hash(Node):
    """Read files, send what identifies their content."""

    files = In(File)
    digests = Out(Digest)

    def on_files(self, file: File) -> None:
        if file.size:  # all empty files are alike, and nobody minds
            with open(file.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            self.digests.send(Digest(file, digest))


class Twins(Node):
    """Print the files that have the same content, those that waste most first."""

    stateful = True

    digests = In(Digest)

    def __init__(self, top: int = 10) -> None:
        self.top = top
        self.files: dict[str, list[File]] = {}

    def on_digests(self, digest: Digest) -> None:
        self.files.setdefault(digest.sha256, []).append(digest.file)

    def finish(self) -> None:
        groups = [sorted(files, key=lambda file: file.path) for files in self.files.values()]
        groups = [files for files in groups if len(files) > 1]
        groups.sort(key=lambda files: (-files[0].size * (len(files) - 1), files[0].path))
        wasted = sum(files[0].size * (len(files) - 1) for files in groups)
        for files in groups[: self.top]:
            print(f"{files[0].size:,} bytes each:", ", ".join(file.path for file in files))
        print(f"{wasted:,} bytes are there more than once")


def visible_files(root: str) -> list[str]:
    """Paths of the files under `root`, sorted; what begins with a dot is left out."""
    found = []
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [os.path.join(directory, name) for name in files if not name.startswith(".")]
    return sorted(filter(os.path.isfile, found))
