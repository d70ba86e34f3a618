"""Problems as people and programs read them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable

from flowkit.errors import Problem

WIDTH = 160
"""Longer source lines are shown in part, around the caret."""

_BOLD, _RED, _BLUE, _RESET = "\x1b[1m", "\x1b[31m", "\x1b[34m", "\x1b[0m"


MOST = 1000
"""Nobody reads more problems than this of one run; the rest is found when these are mended."""

_CAUSES = {"E105", "E110", "E111"}
"""Problems of how a value is written: what else is said about the value follows from them."""

_ECHOES = {"E104", "E107", "E108", "E303"}


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sorted by file, in the order the files first appear, and place.

    Doubles are removed, problems of values that only follow from how the value is written, and
    what is beyond the first `MOST`.
    """
    found = list(dict.fromkeys(problems))
    files = {path: at for at, path in enumerate(dict.fromkeys(one.path for one in found))}
    found.sort(key=lambda one: (files[one.path], one.line, one.column, one.code))
    del found[MOST:]
    causes = [one for one in found if one.code in _CAUSES]
    return [
        one
        for one in found
        if one.code not in _ECHOES or not any(_overlap(one, cause) for cause in causes)
    ]


def _overlap(one: Problem, other: Problem) -> bool:
    return (
        (one.path, one.line) == (other.path, other.line)
        and one.column < other.column + other.length
        and other.column < one.column + one.length
    )


def as_text(problem: Problem, *, colour: bool = False) -> str:
    """The problem with its source line, a caret under the place, and the hint."""
    bold, red, blue, reset = (_BOLD, _RED, _BLUE, _RESET) if colour else ("", "", "", "")
    where = problem.path if not problem.line else f"{problem.path}:{problem.line}:{problem.column}"
    lines = [
        f"{bold}{where}:{reset} {bold}{red}error[{problem.code}]{reset}{bold}: "
        f"{problem.message}{reset}"
    ]
    pad = ""
    if problem.line:
        number = str(problem.line)
        pad = " " * len(number)
        source, start, length = _window(problem)
        indent = " " * _columns(source[:start])
        carets = "^" * max(1, _columns(source[start : start + length]))
        lines += [
            f"{blue}{pad} |{reset}",
            f"{blue}{number} |{reset} {source}".rstrip(),
            f"{blue}{pad} |{reset} {indent}{red}{carets}{reset}",
        ]
    if problem.hint:
        lines.append(f"{blue}{pad} ={reset} help: {problem.hint}")
    return "\n".join(lines)


def as_json(problem: Problem) -> str:
    """One line of JSON."""
    return json.dumps(
        {
            "path": problem.path,
            "line": problem.line,
            "column": problem.column,
            "length": problem.length,
            "severity": "error",
            "code": problem.code,
            "message": problem.message,
            "hint": problem.hint,
        }
    )


def as_github(problem: Problem) -> str:
    """An annotation that GitHub Actions shows at the line."""
    facts = [f"file={_property(problem.path)}"]
    if problem.line:
        facts += [
            f"line={problem.line}",
            f"col={problem.column}",
            f"endColumn={problem.column + problem.length}",
        ]
    facts.append(f"title={problem.code}")
    text = problem.message + (f" ({problem.hint})" if problem.hint else "")
    return f"::error {','.join(facts)}::{_data(text)}"


def count(number: int, noun: str) -> str:
    """``1 error``, ``2 errors``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _window(problem: Problem) -> tuple[str, int, int]:
    """The part of the source line to show, where the caret starts in it, and its length."""
    source = problem.source
    start = max(problem.column - 1, 0)
    length = max(1, min(problem.length, len(source) - start))
    if len(source) <= WIDTH:
        return _printable(source), start, length
    left = max(0, min(start - 40, len(source) - WIDTH))
    right = left + WIDTH
    shown = _printable(source[left:right])
    shown = ("..." if left else "") + shown + ("..." if right < len(source) else "")
    return shown, start - left + (3 if left else 0), min(length, right - start)


def _printable(text: str) -> str:
    """A tab or a control character would move the caret away from what it points at."""
    return "".join(one if one.isprintable() else " " for one in text)


def _columns(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )
