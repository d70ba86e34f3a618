"""YAML text to a tree that remembers where everything stands.

The tree is built from PyYAML's events, without its constructors: no tag can name a Python object,
nesting needs no recursion, and an alias is counted as often as it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import yaml

from flowkit.errors import Problem
from flowkit.topology.source import Place, SourceText

MAX_DEPTH = 64
"""Deeper nesting than this is no topology; the file's own structure needs six levels."""

TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
FEW_LEVELS = "a topology needs few levels; is this file one?"

MAX_VALUES = 100_000
"""Values in a file with every alias written out: a thousand nodes with links need a quarter."""

LONGEST_CARET = 400

# libyaml's loader where it was built in: ten times as fast, and the same events.
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Scalar:
    """`text` as written; `plain`: without quotes, so that it may be a number or a boolean."""

    text: str
    plain: bool
    place: Place
    weight: int = 1
    height: int = 0


@dataclass(slots=True)
class Items:
    """A sequence. `weight` and `height` count its values and levels, aliases written out."""

    place: Place
    items: list[Tree] = field(default_factory=list)
    weight: int = 1
    height: int = 1


@dataclass(slots=True)
class Table:
    """A mapping; duplicate keys were reported and only the first is here."""

    place: Place
    pairs: dict[str, tuple[Scalar, Tree]] = field(default_factory=dict)
    weight: int = 1
    height: int = 1


Tree = Scalar | Items | Table


class _Refused(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come yet."""

    tree: Items | Table
    anchor: str | None
    key: Scalar | None = None
    awaits_value: bool = False
    merges: list[tuple[Scalar, Tree]] = field(default_factory=list)


def parse(text: SourceText, content: str) -> tuple[Tree | None, list[Problem]]:
    """The tree of a YAML document, and everything that is wrong with it as YAML.

    None when it cannot be read at all; then the last problem says why.
    """
    builder = _Builder(text)
    try:
        for event in yaml.parse(content, Loader=_LOADER):
            builder.feed(event)
    except yaml.MarkedYAMLError as error:
        builder.problems.append(_syntax(text, error))
        return None, builder.problems
    except yaml.reader.ReaderError as error:
        builder.problems.append(_unreadable(text, content, error))
        return None, builder.problems
    except _Refused as refused:
        builder.problems.append(refused.problem)
        return None, builder.problems
    return builder.root, builder.problems


class _Builder:
    def __init__(self, text: SourceText) -> None:
        self.text = text
        self.root: Tree | None = None
        self.problems: list[Problem] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, Tree] = {}
        self._documents = 0
        self._total = 0

    def feed(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _Refused(
                    self._place(event).problem(
                        "E101",
                        "a second YAML document begins here",
                        "one file holds one topology: remove the '---' or use another file",
                    )
                )
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.NodeEvent):
            self._check_tag(event)
            self._node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self._stack.pop()
            if isinstance(done.tree, Table):
                self._merge(done.tree, done.merges)
            # The outer collection got this one when it began; now its size is known.
            if self._stack:
                self._grow(done.tree)
            if done.anchor:
                self._anchors[done.anchor] = done.tree

    def _place(self, event: yaml.Event) -> Place:
        start, end = event.start_mark, event.end_mark
        if start is None or end is None:
            return Place(self.text)
        if start.line == end.line:
            length = end.column - start.column
        else:
            length = len(self.text.line(start.line + 1).rstrip()) - start.column
        return Place(self.text, start.line + 1, start.column + 1, max(length, 1))

    def _check_tag(self, event: yaml.NodeEvent) -> None:
        tag = getattr(event, "tag", None)
        if tag is None:
            return
        place = self._place(event)
        shown = tag.replace("tag:yaml.org,2002:", "!!", 1)
        raise_hint = (
            "tags can make YAML build objects; flowkit reads plain data only"
            if "python" in tag
            else "remove the tag; quote a value to make it text"
        )
        self.problems.append(
            Place(place.text, place.line, place.column, len(shown)).problem(
                "E110", f"tag '{shown}' is not allowed", raise_hint
            )
        )

    def _node(self, event: yaml.NodeEvent) -> None:
        place = self._place(event)
        if isinstance(event, yaml.ScalarEvent):
            scalar = Scalar(event.value, event.style in (None, ""), place)
            if event.anchor:
                self._anchors[event.anchor] = scalar
            self._count(place, 1)
            self._add(scalar)
            return
        self._check_depth(place, 1)
        flow = getattr(event, "flow_style", False)
        tree: Items | Table
        if isinstance(event, yaml.SequenceStartEvent):
            tree = Items(place)
        else:
            tree = Table(place)
        if flow or place.length <= 1:
            tree.place = self._bracketed(place) if flow else self._rest_of_line(place)
        self._count(place, 1)
        self._add(tree)
        self._stack.append(_Open(tree, event.anchor))

    def _rest_of_line(self, place: Place) -> Place:
        """A block collection starts at its first key or dash: point at the whole first line."""
        source = self.text.line(place.line)
        end = len(source.split(" #", 1)[0].rstrip())
        return Place(self.text, place.line, place.column, max(1, end - place.column + 1))

    def _bracketed(self, place: Place) -> Place:
        """From the bracket to the one that closes it, as far as that is on the same line."""
        source = self.text.line(place.line)
        depth = 0
        # No caret is longer; in a minified file every bracket would be sought to the end of it.
        end = min(len(source), place.column + LONGEST_CARET)
        for at in range(place.column - 1, end):
            depth += (source[at] in "{[") - (source[at] in "}]")
            if depth == 0:
                return Place(self.text, place.line, place.column, at + 2 - place.column)
        return self._rest_of_line(place)

    def _alias(self, event: yaml.AliasEvent) -> None:
        place = self._place(event)
        target = self._anchors.get(event.anchor or "")
        if target is None:
            inside = any(one.anchor == event.anchor for one in self._stack)
            raise _Refused(
                place.problem(
                    "E101",
                    f"alias '*{event.anchor}' stands inside what it refers to"
                    if inside
                    else f"alias '*{event.anchor}' has no anchor before it",
                    "" if inside else f"write '&{event.anchor}' at the value it is to repeat",
                )
            )
        self._count(place, target.weight)
        self._check_depth(place, target.height)
        self._add(target)
        # A collection got its own weight from its end event; an alias has none.
        if self._stack and not isinstance(target, Scalar):
            self._grow(target)

    def _grow(self, inner: Items | Table) -> None:
        outer = self._stack[-1].tree
        outer.weight += inner.weight
        outer.height = max(outer.height, inner.height + 1)

    def _check_depth(self, place: Place, more: int) -> None:
        if len(self._stack) + more > MAX_DEPTH:
            raise _Refused(
                place.problem(
                    "E109",
                    TOO_DEEP,
                    FEW_LEVELS,
                )
            )

    def _count(self, place: Place, weight: int) -> None:
        self._total += weight
        if self._total > MAX_VALUES:
            raise _Refused(
                place.problem(
                    "E109",
                    f"more than {MAX_VALUES:,} values, with every alias written out",
                    "aliases that repeat aliases grow without bound; is this file a topology?",
                )
            )

    def _add(self, tree: Tree) -> None:
        if not self._stack:
            self.root = tree
            return
        top = self._stack[-1]
        if isinstance(tree, Scalar):
            top.tree.weight += 1
        if isinstance(top.tree, Items):
            top.tree.items.append(tree)
        elif not top.awaits_value:
            top.awaits_value = True
            if isinstance(tree, Scalar):
                top.key = tree
            else:
                top.key = None
                self.problems.append(
                    tree.place.problem(
                        "E104",
                        "a key must be text",
                        "quote it if it begins with '{', '[', '*' or '?'",
                    )
                )
        else:
            top.awaits_value = False
            if top.key is not None:
                self._pair(top, top.key, tree)

    def _pair(self, top: _Open, key: Scalar, value: Tree) -> None:
        assert isinstance(top.tree, Table)
        if key.text == "<<" and key.plain:
            # Looked at when the mapping ends: a value written in place is still empty now.
            top.merges.append((key, value))
            return
        earlier = top.tree.pairs.get(key.text)
        if earlier is not None:
            first = earlier[0].place.line
            self.problems.append(
                key.place.problem(
                    "E103",
                    f"duplicate key '{key.text}': lines {first} and {key.place.line}",
                    f"YAML would keep only one of them; the first is on line {first}",
                )
            )
            return
        top.tree.pairs[key.text] = (key, value)

    def _merge(self, tree: Table, merges: list[tuple[Scalar, Tree]]) -> None:
        for key, value in merges:
            for other in value.items if isinstance(value, Items) else [value]:
                if not isinstance(other, Table):
                    self.problems.append(
                        key.place.problem(
                            "E104", "'<<' takes a mapping, or a list of mappings", "<<: *anchor"
                        )
                    )
                    continue
                for name, pair in other.pairs.items():
                    tree.pairs.setdefault(name, pair)


_KNOWN_SYNTAX = (
    ("found a tab", "tabs cannot indent YAML", "use spaces"),
    ("could not find expected ':'", "a key without its ':'", "write 'key: value'"),
    (
        "mapping values are not allowed",
        "a ':' where no key can be",
        "quote text that contains ': '",
    ),
    (
        "did not find expected key",
        "the indentation fits nothing above",
        "keys of one mapping line up",
    ),
    (
        "did not find expected '-' indicator",
        "the indentation fits nothing above",
        "items of one list line up",
    ),
    ("did not find expected ',' or '}'", "'{' is never closed, or a comma is missing", ""),
    ("did not find expected ',' or ']'", "'[' is never closed, or a comma is missing", ""),
    ("unexpected end of stream", "a quote is opened and never closed", "close it where it ends"),
    (
        "found unknown escape character",
        "unknown escape in double quotes",
        "write \\\\ for a backslash, or use single quotes",
    ),
)


def _syntax(text: SourceText, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    what = str(error.problem or error.context or "this is not YAML")
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    source = text.line(line)
    if "\t" in source[: max(column, 1)] and source[: column - 1].strip() == "":
        column = source.index("\t") + 1
        return Place(text, line, column).problem(
            "E101", "a tab cannot indent YAML", "use spaces, two per level"
        )
    if "nesting depth" in what:  # the parser has a limit of its own
        return Place(text, line, column).problem("E109", TOO_DEEP, FEW_LEVELS)
    message, hint = f"not valid YAML: {what}", ""
    for known, said, help_ in _KNOWN_SYNTAX:
        if known in what:
            message, hint = said, help_
            break
    context = error.context_mark
    opened = context is not None and ("quote" in message or "closed" in message)
    if opened and context is not None:
        # Where the end of the file was reached says nothing; where it was opened does.
        line, column = context.line + 1, context.column + 1
        if "${" in text.line(line)[column - 1 :]:
            hint = 'quote a ${VAR} inside braces or brackets: "${VAR}"'
    if line > len(text.lines):
        line = len(text.lines)
        column = len(text.line(line)) + 1
    return Place(text, line, column).problem("E101", message, hint)


def _unreadable(text: SourceText, content: str, error: yaml.reader.ReaderError) -> Problem:
    at = next((i for i, one in enumerate(content) if not _printable(one)), 0)
    line = content.count("\n", 0, at) + 1
    column = at - (content.rfind("\n", 0, at) + 1) + 1
    shown = f"U+{ord(content[at]):04X}" if content else "nothing"
    return Place(text, line, column).problem(
        "E100", f"the character {shown} cannot stand in YAML", "is this a text file?"
    )


def _printable(one: str) -> bool:
    code = ord(one)
    return code in (9, 10, 13, 0x85) or (
        code >= 0x20 and not 0x7F <= code <= 0x9F and code not in (0xFFFE, 0xFFFF)
    )
