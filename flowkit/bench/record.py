"""A run as data: what `--json` prints and `--out` keeps in ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.bench.machine import Machine
from flowkit.bench.results import Outcome, RowResult, ratio
from flowkit.bench.session import Pace
from flowkit.bench.verdict import Judgement

FORMAT = 1
"""Of the data; grows when a key changes its meaning."""


def as_dict(
    machine: Machine,
    mode: str,
    pace: Pace,
    results: Mapping[str, RowResult],
    judgements: Sequence[Judgement],
) -> dict[str, Any]:
    """The whole run. Seconds, bytes, messages, and rates per second of them."""
    return {
        "format": FORMAT,
        "mode": mode,
        "rounds": pace.rounds,
        "seconds_per_round": pace.seconds,
        "machine": {
            "facts": machine.facts,
            "cores": machine.cores,
            "load": list(machine.load),
            "warning": machine.warning,
        },
        "rows": {name: row_as_dict(result) for name, result in results.items()},
        "verdict": [
            {
                "row": each.target.row,
                "target": each.target.text,
                "unit": each.target.unit,
                "better": each.target.better,
                "at_least": each.target.least,
                "aim": each.target.aim,
                "measured": each.measured.as_dict() if each.measured else None,
                "met": each.met,
                "aim_met": each.aim_met,
            }
            for each in judgements
        ],
    }


def row_as_dict(result: RowResult) -> dict[str, Any]:
    row = result.row
    return {
        "title": row.title,
        "method": row.method,
        "note": row.note,
        "figures": [
            {
                "key": figure.key,
                "label": figure.label,
                "unit": figure.unit,
                "better": figure.better,
            }
            for figure in row.figures
        ],
        "contestants": [_outcome(result, outcome) for outcome in result.outcomes],
    }


def _outcome(result: RowResult, outcome: Outcome) -> dict[str, Any]:
    main = result.row.figures[0].key
    compared = ratio(outcome, result.baseline(outcome), main)
    spreads = {figure.key: outcome.spread(figure.key) for figure in result.row.figures}
    return {
        "name": outcome.contestant.name,
        "group": outcome.contestant.group,
        "messages": outcome.count or None,
        "rounds": list(outcome.rounds),
        "figures": {key: spread.as_dict() for key, spread in spreads.items() if spread},
        "ratio": compared.as_dict() if compared else None,
        "failure": outcome.failure or None,
        "skipped": outcome.skipped or None,
    }
