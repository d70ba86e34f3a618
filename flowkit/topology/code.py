"""Topologies made in Python: the same entries, checks and problems as in a file.

Every call makes of its arguments the tree that a parser would make of a file's text, and what
follows is the same for both. A problem points at the line of the call.
"""

from __future__ import annotations

import linecache
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import yaml

from flowkit.errors import Problem
from flowkit.topology.loader import Parts, assemble, load_parts
from flowkit.topology.model import Topology as Read
from flowkit.topology.source import Marks, Place, SourceText
from flowkit.topology.tree import Items, Scalar, Table, Tree
from flowkit.topology.values import resolve, surprise

_BARE = re.compile(r"[A-Za-z_./][\w./]*(?:[:@-]+[\w./]+)*")
"""Text that YAML takes for text without quotes."""


_resolver: Any = yaml.resolver.Resolver()
"""Says what YAML takes a text for."""


class Template(str):
    """Text in which ``${VAR}``, ``${VAR:-default}`` and ``$$`` mean what they mean in a file. Other
    text is taken as it is."""

    __slots__ = ()


class NodeRef:
    """A node of a topology that is being made: its attributes name its channels, for `link`."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, channel: str) -> str:
        if channel.startswith("_"):  # no name of a channel
            raise AttributeError(channel)
        return f"{self._name}.{channel}"

    def __repr__(self) -> str:
        return f"<node {self._name}>"


class Topology:
    """A project made in Python. Give it to a `Supervisor`, `run_in_process` or `check`.

    ::

        topology = Topology("words")
        read = topology.node("read", Read, settings={"path": "words.py"})
        split = topology.node("split", Split, replicas=2)
        topology.link(read.lines, split.lines)

    Nothing is looked at before it is used: then every problem is told at once, as of a file.
    `project` names the run; together with the file that makes the topology it says which run it is.
    `env` is the environment of all nodes.
    """

    def __init__(self, project: str, *, env: Mapping[str, str] | None = None) -> None:
        call = _Call()
        self.project = project
        self.path = os.path.abspath(call.place.text.path)
        self._place = call.place
        self._parts = Parts()
        for name, value in (env or {}).items():
            self._parts.env[name] = call.find(name), _tree(value, call.find)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ
    ) -> Topology:
        """The topology in a file, with all that it includes, to be changed; references to variables
        stay what they are. Raises TopologyError if the file has problems."""
        parts, read = load_parts(os.fspath(path), environ)
        made = cls.__new__(cls)
        made.project, made.path = read.project, read.path
        made._place = read.marks.whole
        made._parts = parts
        return made

    def node(
        self, name: str, use: type | str, settings: Mapping[str, Any] | None = None, **options: Any
    ) -> NodeRef:
        """Add a node. `use` is its class, or ``"package.module:Class"``; `settings` are the
        arguments of its constructor, plain data. `options` are the other keys of a node in a
        file: `replicas`, `restart`, `on_error`, `watchdog`, `env`, `external` ...

        Raises ValueError if the topology has a node of that name, or a function made the class.
        """
        if name in self._parts.nodes:
            raise ValueError(f"there is a node '{name}' already")
        call = _Call()
        entry: dict[str, Any] = {"use": use if isinstance(use, str) else reference(use)}
        if settings is not None:
            entry["with"] = settings
        self._parts.nodes[name] = call.find(name), _tree({**entry, **options}, call.find)
        return NodeRef(name)

    def link(self, source: str, to: str | Iterable[str], **options: Any) -> None:
        """Add a link from an output to an input, or to each of several: ``read.lines`` of what
        `node` has returned, or ``"read.lines"``. `options` are the other keys of a link in a file:
        `route`, `by`, `window`, `delivery` ..."""
        if isinstance(source, NodeRef):
            raise _not_a_node(source)
        entry = {"from": source, "to": _channels(to), **options}
        self._parts.links.append(_tree(entry, _Call().find))

    def endpoint(self, channel: str | Iterable[str], socket: str, **options: Any) -> None:
        """Add a socket for foreign peers at a channel, or at an input and an output: ``node.input``
        of what `node` has returned. `socket` is its type in ZeroMQ's words; `options` are the other
        keys of an endpoint in a file: `bind` or `connect`, `topics`, `options` ..."""
        entry = {"channel": _channels(channel), "socket": socket, **options}
        self._parts.endpoints.append(_tree(entry, _Call().find))

    def read(self, environ: Mapping[str, str]) -> tuple[Read, list[Problem]]:
        """The typed model, and what is wrong with it, as `load` of a file."""
        marks = Marks(self._place)
        shown = self._place.text.path
        topology = Read(self.path, shown, self.project, marks, files=[os.path.realpath(self.path)])
        return assemble(self._parts, topology, environ)

    def dump(self) -> str:
        """The same as the text of a topology file."""
        head = {"flowkit": 1, "project": self.project}
        nowhere = Place(SourceText(""))
        tree = _tree(head, lambda part: nowhere)
        assert isinstance(tree, Table)
        sections: dict[str, Tree] = {}
        if self._parts.env:
            sections["env"] = _section(self._parts.env)
        sections["nodes"] = _section(self._parts.nodes)
        for name, entries in (("links", self._parts.links), ("endpoints", self._parts.endpoints)):
            if entries:
                sections[name] = Items(nowhere, entries)
        for name, section in sections.items():
            tree.pairs[name] = Scalar(name, True, nowhere), section
        text: str = yaml.serialize(_yaml(tree, 0), allow_unicode=True, width=1000)
        for name in sections:
            text = text.replace(f"\n{name}:\n", f"\n\n{name}:\n", 1)
        return text


def reference(cls: type) -> str:
    """How a topology names a class. What is in a program itself is found under its module's name,
    by the processes that run nodes. TypeError for what is no class, ValueError for what a function
    has made."""
    if not isinstance(cls, type):
        raise TypeError(f"'use' is a class or 'package.module:Class', not {cls!r}")
    if "<locals>" in cls.__qualname__:
        raise ValueError(
            f"nobody else finds {cls.__qualname__}, which is made by a function: define the class "
            "in its module"
        )
    module = cls.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None) or "__main__"
        module = spec.name if spec is not None else os.path.basename(file).split(".")[0]
    return f"{module}:{cls.__qualname__}"


# -- values to trees


def _channels(given: Any) -> str | list[Any]:
    """One channel, or several."""
    if isinstance(given, str):
        return given
    several = list(given) if isinstance(given, Iterable) else [given]
    for one in several:
        if isinstance(one, NodeRef):
            raise _not_a_node(one)
        if not isinstance(one, str):
            raise TypeError(f"{one!r} is no channel: write read.lines, or 'read.lines'")
    return several


def _not_a_node(node: NodeRef) -> TypeError:
    return TypeError(f"{node!r} is a node: name a channel of it, like {node.channel}")


class _Call:
    """Where the program calls: from the line of `place` to line `end`."""

    def __init__(self) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        path = frame.f_code.co_filename
        shown = os.path.relpath(path) if os.path.isabs(path) else path
        lines = tuple(one.rstrip("\n") for one in linecache.getlines(path, frame.f_globals))
        text = SourceText(path if shown.startswith("..") else shown, lines)
        positions = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
        self.line = frame.f_lineno
        self.end = max(self.line, positions[1] or 0)
        self.place = self._whole(text, self.line)

    def find(self, part: str) -> Place:
        """Where `part` is written in the call; the call's first line if it is not."""
        for line in range(self.line, self.end + 1):
            whole = self._whole(self.place.text, line)
            found = whole.within(part)
            if found is not whole:
                return found
        return self.place

    @staticmethod
    def _whole(text: SourceText, line: int) -> Place:
        source = text.line(line)
        bare = source.strip()
        return Place(text, line, 1 + len(source) - len(source.lstrip()), max(1, len(bare)))


def _tree(value: Any, find: Callable[[str], Place]) -> Tree:
    """What a parser would make of `value`; `find` says where a text of it is written."""
    if isinstance(value, Mapping):
        pairs = {}
        for key, one in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{key!r} is no key of a topology: keys are text")
            pairs[key] = Scalar(key, False, find(key)), _tree(one, find)
        return Table(find(""), pairs)
    if isinstance(value, list | tuple):
        return Items(find(""), [_tree(one, find) for one in value])
    text, plain = _written(value)
    return Scalar(text, plain, find(str(value)))


def _written(value: Any) -> tuple[str, bool]:
    """How a scalar is written in YAML, and whether without quotes."""
    if isinstance(value, Template):
        return str(value), False
    if isinstance(value, str | os.PathLike):
        return str(os.fspath(value)).replace("$", "$$"), False
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value], True
    if isinstance(value, int):
        return str(int(value)), True
    if isinstance(value, float):
        if math.isnan(value):
            return ".nan", True
        return (f"{'-' * (value < 0)}.inf" if math.isinf(value) else repr(float(value))), True
    raise TypeError(
        f"{value!r} cannot be part of a topology: texts, numbers, booleans, None, lists and "
        "mappings can"
    )


# -- trees to text


def _section(entries: Mapping[str, tuple[Place, Tree]]) -> Table:
    return Table(
        Place(SourceText("")),
        {name: (Scalar(name, False, place), tree) for name, (place, tree) in entries.items()},
    )


def _yaml(tree: Tree, depth: int) -> yaml.Node:
    """What is two levels below a section stands in one line."""
    if isinstance(tree, Table):
        pairs = [(_yaml(key, depth), _yaml(one, depth + 1)) for key, one in tree.pairs.values()]
        return yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=depth > 2)
    if isinstance(tree, Items):
        items = [_yaml(one, max(depth + 1, 3)) for one in tree.items]
        return yaml.SequenceNode("tag:yaml.org,2002:seq", items, flow_style=depth > 2)
    if tree.plain:
        tag = _resolver.resolve(yaml.ScalarNode, tree.text, (True, False))
        return yaml.ScalarNode(tag, tree.text)
    text = tree.text
    bare = _BARE.fullmatch(text) and resolve(text) == text and surprise(text) is None
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, style=None if bare else '"')
