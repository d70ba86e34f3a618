"""A topology file and what it includes, read into the typed model, with every problem found.

This is the only place of the pure core that opens files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flowkit.errors import Problem, TopologyError
from flowkit.topology import names
from flowkit.topology.model import EndpointModel, LinkModel, NodeModel, Part, Top, Topology, what
from flowkit.topology.render import in_order
from flowkit.topology.source import Marks, Path, Place, SourceText
from flowkit.topology.tree import Items, Scalar, Table, Tree, parse
from flowkit.topology.validation import unknown_key, validate
from flowkit.topology.values import Builder

MAX_BYTES = 1024 * 1024
"""A topology of a thousand nodes takes 200 KiB; a larger file is something else."""

MAX_FILES = 100
"""How many files may be included, all in all."""

P = TypeVar("P", bound=Part)

_EXAMPLES = {
    "node": "use: package.module:Class",
    "link": "from: a.b, to: c.d",
    "endpoint": "channel: a.b, socket: PULL, bind: tcp://127.0.0.1:5555",
}


def load(path: str, environ: Mapping[str, str]) -> tuple[Topology | None, list[Problem]]:
    """Read the topology file at `path`, with what it includes.

    Returns what could be understood, and every problem, in no particular order. None means that
    the file could not be read as a mapping at all. `environ` is what ``${VAR}`` refers to.
    """
    reader = _Reader(environ)
    return reader.read(path), reader.problems


def assemble(
    parts: Parts, topology: Topology, environ: Mapping[str, str]
) -> tuple[Topology, list[Problem]]:
    """Read the sections `parts` into `topology`, which is named and empty; with every problem."""
    reader = _Reader(environ)
    reader.merged = parts
    problems = reader.problems
    named = {"project": topology.project}
    problems += validate(Top, named, topology.marks, (), "")[1]
    reader.fill(topology, Builder(environ, topology.marks, problems))
    return topology, problems


def load_parts(path: str, environ: Mapping[str, str]) -> tuple[Parts, Topology]:
    """The sections of the topology file at `path` and what it includes, as they are written.

    Raises TopologyError if the file has problems.
    """
    reader = _Reader(environ)
    topology = reader.read(path)
    if topology is None or reader.problems:
        raise TopologyError(in_order(reader.problems))
    return reader.merged, topology


@dataclass(slots=True)
class Parts:
    """The sections of all files: for each entry the tree and where its key stands."""

    nodes: dict[str, tuple[Place, Tree]] = field(default_factory=dict)
    env: dict[str, tuple[Place, Tree]] = field(default_factory=dict)
    links: list[Tree] = field(default_factory=list)
    endpoints: list[Tree] = field(default_factory=list)


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[Problem] = []
        self.merged = Parts()
        self._done: set[str] = set()

    def read(self, shown: str) -> Topology | None:
        whole = Place(SourceText(shown))
        tree = self._parse(shown, whole)
        if not isinstance(tree, Table):
            return None
        marks = Marks(Place(tree.place.text))
        builder = Builder(self.environ, marks, self.problems)
        self._done.add(os.path.realpath(shown))
        top = self._top(tree, builder, marks, main=True)
        self._collect(tree)
        self._include(shown, top.include, marks, (os.path.realpath(shown),), [shown])
        project = top.project or self._stem(shown, whole)
        topology = Topology(os.path.abspath(shown), shown, project, marks)
        topology.files = sorted(self._done)
        self.fill(topology, builder)
        return topology

    # -- one file ----------------------------------------------------------------------------

    def _parse(self, shown: str, asked: Place) -> Tree | None:
        """The tree of one file; problems of reading it are reported at `asked`."""
        content = self._content(shown, asked)
        if content is None:
            return None
        text = SourceText(shown, tuple(content.splitlines()))
        tree, problems = parse(text, content)
        self.problems += problems
        if tree is None:
            if not problems:
                self.problems.append(
                    Place(text).problem("E100", "the file is empty", "try: flowkit init")
                )
            return None
        if not isinstance(tree, Table):
            self.problems.append(
                tree.place.problem(
                    "E104",
                    "a topology is a mapping with the keys flowkit, nodes and links",
                    "try: flowkit init",
                )
            )
        return tree

    def _content(self, shown: str, asked: Place) -> str | None:
        def refuse(message: str, hint: str = "", code: str = "E100") -> None:
            self.problems.append(asked.problem(code, message, hint))

        try:
            # Looked at before it is opened: opening a FIFO would wait for a writer.
            mode = os.stat(shown).st_mode
            if not stat.S_ISREG(mode):
                kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
                refuse(f"cannot read {names.shown(shown)}: it is {kind}", "name a YAML file")
                return None
            with open(shown, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            refuse(f"cannot read {names.shown(shown)}: {reason}", self._where(shown, asked))
            return None
        if len(content) > MAX_BYTES:
            refuse(
                f"{names.shown(shown)} is larger than {MAX_BYTES // 1024} KiB",
                "a topology is small; split a long one with 'include'",
                "E109",
            )
            return None
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            refuse(
                f"{names.shown(shown)} is not UTF-8 text: byte 0x{content[error.start]:02x} "
                f"in line {line}",
                "is this a YAML file?",
            )
            return None

    @staticmethod
    def _where(shown: str, asked: Place) -> str:
        if asked.line:
            return "paths are relative to the file that includes"
        if os.path.isabs(shown) or os.path.exists(shown):
            return ""
        return f"looked in {os.getcwd()}"

    def _stem(self, shown: str, whole: Place) -> str:
        stem = os.path.basename(shown).split(".")[0]
        if not names.valid(stem):
            self.problems.append(
                whole.problem(
                    "E108",
                    f"the file's name '{names.shown(stem)}' cannot name the project: it "
                    f"{names.complaint(stem)}",
                    "add 'project: NAME' to the file",
                )
            )
        return stem

    # -- the top level -----------------------------------------------------------------------

    def _top(self, tree: Table, builder: Builder, marks: Marks, *, main: bool) -> Top:
        """Check the keys of a whole file, and read the few that are not merged."""
        sections = {"nodes", "links", "endpoints", "env"}
        fields = [*Top.model_fields, "nodes", "links", "endpoints"]
        plain_keys = {}
        for name, (key, value) in tree.pairs.items():
            if name.startswith("x-"):
                continue
            if name in sections:
                continue
            if name not in fields:
                self.problems.append(unknown_key(key.place, "", name, fields))
            elif name == "project" and not main:
                self.problems.append(
                    key.place.problem(
                        "E112", "an included file cannot name the project", "remove the line"
                    )
                )
            else:
                marks.keys[(name,)] = key.place
                plain_keys[name] = builder.build(value, (name,))
        if main or "flowkit" in plain_keys:
            self._version(tree, plain_keys, marks)
        if main and "nodes" not in tree.pairs and not plain_keys.get("include"):
            self.problems.append(
                tree.place.problem(
                    "E106", "the key 'nodes' is missing", "nodes: {name: {use: ...}}"
                )
            )
        if isinstance(plain_keys.get("include"), str):
            plain_keys["include"] = [plain_keys["include"]]
        top, problems = validate(Top, plain_keys, marks, (), "")
        self.problems += problems
        return top

    def _version(self, tree: Table, data: dict[str, Any], marks: Marks) -> None:
        if "flowkit" not in data:
            self.problems.append(
                tree.place.problem(
                    "E106", "the key 'flowkit' is missing", "begin the file with 'flowkit: 1'"
                )
            )
            return
        version = data["flowkit"]
        if version is True or version != 1:
            self.problems.append(
                marks.value(("flowkit",)).problem(
                    "E107",
                    f"format version {what(version)} is not known: this flowkit reads version 1",
                    "write 'flowkit: 1'",
                )
            )

    def _collect(self, tree: Table) -> None:
        """Take the sections of one file into the merged ones."""
        for section, target in (("nodes", self.merged.nodes), ("env", self.merged.env)):
            if section not in tree.pairs:
                continue
            key, value = tree.pairs[section]
            if not isinstance(value, Table):
                self._not_a(value, key, "a mapping")
                continue
            for name, (place, entry) in value.pairs.items():
                if name not in target:
                    target[name] = (place.place, entry)
                    continue
                kind = "node" if section == "nodes" else "variable"
                self.problems.append(
                    place.place.problem(
                        "E113",
                        f"{kind} '{names.shown(name)}' is defined twice: "
                        f"{target[name][0]} and {place.place}",
                        "rename one of them",
                    )
                )
        for section, entries in (
            ("links", self.merged.links),
            ("endpoints", self.merged.endpoints),
        ):
            if section in tree.pairs:
                key, value = tree.pairs[section]
                if isinstance(value, Items):
                    entries += value.items
                else:
                    self._not_a(value, key, "a list")

    def _not_a(self, value: Tree, key: Scalar, kind: str) -> None:
        if isinstance(value, Scalar) and value.plain and value.text in ("", "~", "null"):
            return  # a section whose entries are commented out
        self.problems.append(
            key.place.problem("E104", f"'{key.text}' must be {kind}", "see: flowkit schema")
        )

    # -- other files -------------------------------------------------------------------------

    def _include(
        self, base: str, files: list[str], marks: Marks, chain: tuple[str, ...], shown: list[str]
    ) -> None:
        for at, name in enumerate(files):
            place = marks.value(("include", at))
            path = os.path.normpath(os.path.join(os.path.dirname(base), name))
            real = os.path.realpath(path)
            if real in chain:
                cycle = [*shown[chain.index(real) :], path]
                self.problems.append(
                    place.problem(
                        "E112", "files include each other: " + " -> ".join(cycle), "remove one"
                    )
                )
                continue
            if real in self._done:
                continue  # by another way; its nodes are here already
            self._done.add(real)
            if len(self._done) > MAX_FILES:
                self.problems.append(place.problem("E109", f"more than {MAX_FILES} files"))
                return
            tree = self._parse(path, place)
            if not isinstance(tree, Table):
                continue
            inner = Marks(Place(tree.place.text))
            builder = Builder(self.environ, inner, self.problems)
            top = self._top(tree, builder, inner, main=False)
            self._collect(tree)
            self._include(path, top.include, inner, (*chain, real), [*shown, path])

    # -- the entries -------------------------------------------------------------------------

    def fill(self, topology: Topology, builder: Builder) -> None:
        """Read and check the entries of all sections."""
        marks = topology.marks
        environment = {}
        for name, (place, tree) in self.merged.env.items():
            marks.keys[("env", name)] = place
            environment[name] = builder.build(tree, ("env", name))
        top, problems = validate(Top, {"env": environment}, marks, (), "")
        self.problems += problems
        topology.env = top.env
        for name, (place, tree) in self.merged.nodes.items():
            path: Path = ("nodes", name)
            marks.keys[path] = place
            if not names.valid(name):
                self.problems.append(
                    place.problem(
                        "E108",
                        f"'{names.shown(name)}' is not a name: it {names.complaint(name)}",
                        names.hint(name),
                    )
                )
            label = f"node '{names.shown(name)}'"
            node = self._entry(NodeModel, tree, builder, marks, path, "node", label)
            if node is not None:
                topology.nodes[name] = node
        for at, tree in enumerate(self.merged.links):
            link = self._entry(LinkModel, tree, builder, marks, ("links", at), "link", "a link")
            topology.links.append(link or LinkModel.model_construct(from_="", to=[]))
        for at, tree in enumerate(self.merged.endpoints):
            path = ("endpoints", at)
            found = self._entry(
                EndpointModel, tree, builder, marks, path, "endpoint", "an endpoint"
            )
            topology.endpoints.append(
                found or EndpointModel.model_construct(channel=[], socket="", bind=None)
            )
        if not topology.nodes and not self.problems:
            self.problems.append(
                marks.whole.problem("E106", "the topology has no nodes", "try: flowkit init")
            )

    def _entry(
        self,
        model: type[P],
        tree: Tree,
        builder: Builder,
        marks: Marks,
        path: Path,
        kind: str,
        label: str,
    ) -> P | None:
        data = builder.build(tree, path)
        if not isinstance(data, dict):
            example = _EXAMPLES[kind]
            self.problems.append(
                marks.key(path).problem(
                    "E104", f"{label} must be a mapping, not {what(data)}", f"like {{{example}}}"
                )
            )
            return None
        part, problems = validate(model, data, marks, path, label)
        self.problems += problems
        return part
