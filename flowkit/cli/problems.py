"""Lists of problems as every verb shows them: place, line, caret, help; then how many."""

from __future__ import annotations

from collections.abc import Sequence

from flowkit.errors import Problem
from flowkit.topology.render import as_text, count, in_order


def render(problems: Sequence[Problem], colour: bool = False) -> str:
    """The text that shows all `problems`, in file order, and a line that counts them.

    Empty when there are none. No newline at the end.
    """
    found = in_order(problems)
    if not found:
        return ""
    lines = [as_text(problem, colour=colour) for problem in found]
    files = len({problem.path for problem in found})
    lines.append(f"{count(len(found), 'error')} in {count(files, 'file')}")
    return "\n".join(lines)
