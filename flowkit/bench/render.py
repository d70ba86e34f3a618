"""What a run has come to as text: a table with bars for each row, the verdict, the machine."""

from __future__ import annotations

from collections.abc import Sequence

from flowkit.bench.machine import Machine
from flowkit.bench.results import Figure, Outcome, RowResult, Spread, ratio
from flowkit.bench.verdict import Judgement

BAR = 12
"""Characters of the longest bar of a row."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"

_SCALES = {
    "rate": ((1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")),
    "bytes/s": ((1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s")),
    "seconds": ((1.0, " s"), (1e-3, " ms"), (1e-6, " us")),
    "bytes": ((2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"), (1.0, " B")),
}
"""Units that are scaled: factors and suffixes, the largest first."""


def show(value: float, unit: str) -> str:
    """A figure for people, with three digits that count: ``3.72M/s``, ``84.1 us``, ``1.25 GB/s``.

    A ``count`` is shown exactly, a ``share`` in per cent, a ``ratio`` as ``21.3 x``.
    """
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "share":
        return f"{_digits(100 * value)} %"
    if unit == "ratio":
        return f"{_digits(value)} x"
    scales = _SCALES[unit]
    for factor, suffix in scales:
        if abs(value) >= factor * 0.9995:
            return _digits(value / factor) + suffix
    factor, suffix = scales[-1]
    return _digits(value / factor) + suffix


def _digits(value: float) -> str:
    for places, limit in ((2, 9.995), (1, 99.95)):
        if abs(value) < limit:
            return f"{value:.{places}f}"
    return f"{value:,.0f}"


def bar(share: float) -> str:
    """A bar whose length is `share` (0 to 1) of the longest."""
    eighths = round(max(0.0, min(1.0, share)) * BAR * 8)
    if not eighths and share > 0:
        eighths = 1
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def row_table(result: RowResult) -> list[str]:
    """The table of a row: a bar, what was measured, how far it lies apart, and the ratio."""
    main, *others = result.row.figures
    head = ["", "", main.label, "min - max"]
    head += ["ratio", "min - max"] if result.row.compared else []
    head += [figure.label for figure in others]
    table: list[Sequence[str]] = [head]
    lines: dict[int, str] = {}
    group = ""
    for outcome in result.outcomes:
        if outcome.contestant.group != group:
            group = outcome.contestant.group
            lines[len(table) + len(lines)] = f"  {group}"
        cells = _cells(result, outcome, main, others)
        if cells is None:
            text = outcome.skipped or "FAILED: " + outcome.failure.replace("\n", "\n      ")
            lines[len(table) + len(lines)] = f"  {outcome.contestant.name}: {text}"
        else:
            table.append(cells)
    texts = ["  " + line for line in align(table, left=(0, 1))]
    for at, line in lines.items():
        texts.insert(at, line)
    failed = [each for each in result.outcomes if each.failure and each.spread(main.key)]
    for outcome in failed:
        words = outcome.failure.replace("\n", "\n      ")
        texts.append(f"  {outcome.contestant.key}: FAILED in a later round: {words}")
    return [f"{result.row.name}: {result.row.title}", *texts]


def _cells(
    result: RowResult, outcome: Outcome, main: Figure, others: Sequence[Figure]
) -> list[str] | None:
    spread = outcome.spread(main.key)
    if spread is None:
        return None
    rivals = [
        each.spread(main.key)
        for each in result.outcomes
        if each.contestant.group == outcome.contestant.group
    ]
    longest = max(each.median for each in rivals if each is not None)
    cells = [
        outcome.contestant.name,
        bar(spread.median / longest if longest else 0.0),
        show(spread.median, main.unit),
        _range(spread, main.unit),
    ]
    if result.row.compared:
        cells += _compared(outcome, result.baseline(outcome), main.key)
    for figure in others:
        other = outcome.spread(figure.key)
        cells.append(show(other.median, figure.unit) if other else "-")
    return cells


def _compared(outcome: Outcome, baseline: Outcome, key: str) -> list[str]:
    if outcome is baseline:
        return ["1", ""]
    compared = ratio(outcome, baseline, key)
    return [show(compared.median, "ratio"), _range(compared, "ratio")] if compared else ["-", ""]


def _range(spread: Spread, unit: str) -> str:
    low, high = show(spread.low, unit), show(spread.high, unit)
    # A unit that both have is said once.
    number, _, suffix = low.partition(" ")
    return f"{number} - {high}" if suffix and high.endswith(f" {suffix}") else f"{low} - {high}"


def align(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """`rows` as lines in columns; the columns `left` are flush left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def verdict_table(judgements: Sequence[Judgement]) -> list[str]:
    """What was to be reached, and whether it was."""
    table = [["", "at least", "aim", "measured", "min - max", ""]]
    for each in judgements:
        target = each.target
        measured = each.measured
        table.append(
            [
                f"{target.row}: {target.text}",
                show(target.least, target.unit),
                show(target.aim, target.unit),
                show(measured.median, target.unit) if measured else "-",
                _range(measured, target.unit) if measured else "-",
                each.word,
            ]
        )
    return ["to reach", *("  " + line for line in align(table, left=(0, 5)))]


def machine_lines(machine: Machine) -> list[str]:
    """On what it was measured."""
    lines = [f"{name:<12} {value}" for name, value in machine.facts.items()]
    if warning := machine.warning:
        lines.append(f"warning: {warning}")
    return lines
