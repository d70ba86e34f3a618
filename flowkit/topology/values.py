"""Trees to plain data: scalars get their types, ``${VAR}`` its value, every value its mark."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from flowkit.errors import Problem
from flowkit.importing import suggest
from flowkit.topology.source import Marks, Path, Place
from flowkit.topology.tree import Items, Scalar, Table, Tree

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TRUTH = re.compile(r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_GROUPED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?")

# The bound keeps a text of nothing but "${" from being read to its end again and again.
_VARIABLE = re.compile(r"\$\$|\$\{([^}]{0,4000}+)\}|\$\{")
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:[-?])(.*))?", re.DOTALL)


MOST_GUESSES = 50
"""Comparing a name with all others takes a millisecond; a file full of slips would take minutes."""


class Substituted(str):
    """Text that came out of a ``${VAR}``: it becomes a number or a boolean where one is wanted."""

    __slots__ = ()


def resolve(text: str) -> Any:
    """What `text` means without quotes in YAML 1.2: null, a boolean, a number, or itself."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if len(text) <= 400:  # no number is longer, and int() of a very long one is slow
        if _INT.fullmatch(text):
            return int(text, 16) if text.startswith("0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _INFINITE.fullmatch(text):
            return float(text.replace(".", "", 1))
    return text


def surprise(text: str) -> tuple[str, str, str] | None:
    """When YAML 1.1 and YAML 1.2 disagree about `text` without quotes: message, hint, and how what
    YAML 1.1 makes of it is written plainly."""
    quoted = json.dumps(text, ensure_ascii=False)
    if _TRUTH.fullmatch(text):
        truth = "true" if text.lower() in ("yes", "on") else "false"
        return (
            f"{text} without quotes is not text in YAML 1.1: it means {truth}",
            f"quote it if text is meant: {quoted}; else write {truth}",
            truth,
        )
    meant: float | None = None
    if _SEXAGESIMAL.fullmatch(text):
        meant = 0.0
        for part in text.lstrip("+-").replace("_", "").split(":"):
            meant = meant * 60 + float(part)
    elif _OCTAL.fullmatch(text):
        digits = text.lstrip("+-").replace("_", "")
        base = 10 if set(digits) & {"8", "9"} else 8
        meant = float(int(digits, base)) if len(digits) < 20 else math.inf
    elif _GROUPED.fullmatch(text):
        meant = float(text.lstrip("+-").replace("_", "") or "0")
    if meant is None:
        return None
    shown = f"{'-' if text[0] == '-' else ''}{meant:.10g}"
    return (
        f"{text} without quotes is not text in YAML 1.1: it is the number {shown}",
        f"quote it if text is meant: {quoted}; else write {shown}",
        shown,
    )


class Builder:
    """Turns trees into data, collecting marks and problems."""

    def __init__(self, environ: Mapping[str, str], marks: Marks, problems: list[Problem]) -> None:
        self._environ = environ
        self._marks = marks
        self._problems = problems
        self._said: set[tuple[str, int, int]] = set()
        self._guesses = MOST_GUESSES

    def build(self, tree: Tree, path: Path) -> Any:
        """The data of `tree`, marked as the value at `path`."""
        self._marks.values[path] = tree.place
        if isinstance(tree, Items):
            return [self.build(item, (*path, at)) for at, item in enumerate(tree.items)]
        if isinstance(tree, Table):
            result = {}
            for name, (key, value) in tree.pairs.items():
                inner = (*path, name)
                self._marks.keys[inner] = key.place
                result[name] = self.build(value, inner)
            return result
        return self._scalar(tree)

    def _scalar(self, scalar: Scalar) -> Any:
        text = scalar.text
        if "$" in text:
            return self._substitute(scalar)
        if not scalar.plain:
            return text
        odd = surprise(text)
        if odd is not None:
            message, hint, written = odd
            self._say(scalar.place, "E105", message, hint)
            # Fits whatever is expected here, so that nothing else is said about it.
            return Substituted(written)
        found = resolve(text)
        if isinstance(found, int) and not -(2**63) <= found < 2**63:
            self._say(
                scalar.place, "E107", "a number beyond 64 bits", "quote it if it is meant as text"
            )
            return 0
        return found

    def _say(self, place: Place, code: str, message: str, hint: str) -> None:
        # An aliased value is built once for each use, but is wrong only once.
        at = (place.text.path, place.line, place.column)
        if at not in self._said:
            self._said.add(at)
            self._problems.append(place.problem(code, message, hint))

    def _substitute(self, scalar: Scalar) -> str:
        replaced = False

        def one(match: re.Match[str]) -> str:
            nonlocal replaced
            whole, inner = match.group(0), match.group(1)
            if whole == "$$":
                return "$"
            replaced = True
            place = scalar.place.within(whole)
            reference = _REFERENCE.fullmatch(inner) if inner is not None else None
            if reference is None or "${" in inner:
                self._say(
                    place,
                    "E111",
                    f"'{whole}' is no reference to a variable",
                    "write ${NAME}, ${NAME:-default} or ${NAME:?message}; $$ is a dollar sign",
                )
                return ""
            name, kind, rest = reference.groups()
            value = self._environ.get(name)
            if value is not None and (value or kind is None):
                return value
            if kind == ":-":
                return rest.replace("$$", "$")
            if kind == ":?":
                self._say(place, "E111", f"variable '{name}' is not set: {rest.strip()}", "")
            else:
                self._guesses -= 1
                guess = suggest(name, self._environ) if self._guesses >= 0 else None
                self._say(
                    place,
                    "E111",
                    f"variable '{name}' is not set",
                    (f"did you mean '{guess}'? or " if guess else "")
                    + f"give a default: ${{{name}:-value}}",
                )
            return ""

        result = _VARIABLE.sub(one, scalar.text)
        return Substituted(result) if replaced else result


def plain(value: Any) -> Any:
    """`value` without `Substituted`: only builtins, to be sent or kept."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Substituted) else value


def retyped(value: Any) -> Any:
    """`value` with everything substituted read as if it had been written without quotes."""
    if isinstance(value, dict):
        return {key: retyped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [retyped(one) for one in value]
    return resolve(str(value)) if isinstance(value, Substituted) else value
