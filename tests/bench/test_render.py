"""Tables and the verdict: what a person reads, and what is in the data."""

from __future__ import annotations

import json

import pytest

from flowkit.bench import record, render
from flowkit.bench.machine import Machine, look
from flowkit.bench.results import Contestant, Figure, Outcome, Row, RowResult
from flowkit.bench.rows import ROWS, load
from flowkit.bench.session import Pace
from flowkit.bench.verdict import TARGETS, judge

RATE = Figure("rate", "messages/s", "rate")


def result(
    *outcomes: Outcome, name: str = "seed", figures: tuple[Figure, ...] = (RATE,)
) -> RowResult:
    contestants = [each.contestant for each in outcomes]
    return RowResult(Row(name, "some messages", "Somehow.", figures, contestants), list(outcomes))


def outcome(name: str, *rounds: dict[str, float] | None, group: str = "", **more: str) -> Outcome:
    return Outcome(Contestant(name, "m:f", group=group), rounds=list(rounds), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3_724_000.0, "rate", "3.72M/s"),
        (999_960.0, "rate", "1.00M/s"),
        (84_100.0, "rate", "84.1k/s"),
        (7.0, "rate", "7.00/s"),
        (1.25e9, "bytes/s", "1.25 GB/s"),
        (84.1e-6, "seconds", "84.1 us"),
        (0.25, "seconds", "250 ms"),
        (12.0, "seconds", "12.0 s"),
        (0.0, "seconds", "0.00 us"),
        (15 * 2**20, "bytes", "15.0 MiB"),
        (-130 * 1024, "bytes", "-130 KiB"),
        (21_096, "count", "21,096"),
        (0.0319, "share", "3.19 %"),
        (21.34, "ratio", "21.3 x"),
        (123.4, "ratio", "123 x"),
        (0.998, "ratio", "1.00 x"),
    ],
)
def test_figures_for_people(value: float, unit: str, text: str) -> None:
    assert render.show(value, unit) == text


def test_bars() -> None:
    assert render.bar(1.0) == "█" * render.BAR
    assert render.bar(0.5) == "█" * (render.BAR // 2)
    assert render.bar(1e-9) == "▏", "what is there can be seen"
    assert render.bar(0.0) == ""


def test_a_table_of_a_row() -> None:
    text = render.row_table(
        result(
            outcome("mp.Queue", {"rate": 100_000.0}, {"rate": 200_000.0}),
            outcome("flowkit", {"rate": 2_000_000.0}, {"rate": 4_000_000.0}),
        )
    )
    assert text == [
        "seed: some messages",
        "                          messages/s          min - max   ratio      min - max",
        "  mp.Queue  ▋                 150k/s    100k/s - 200k/s       1",
        "  flowkit   ████████████     3.00M/s  2.00M/s - 4.00M/s  20.0 x  20.0 - 20.0 x",
    ]


def test_groups_have_their_own_baseline_and_scale() -> None:
    text = render.row_table(
        result(
            outcome("a", {"rate": 1000.0}, group="small"),
            outcome("b", {"rate": 500.0}, group="small"),
            outcome("a", {"rate": 10.0}, group="large"),
            outcome("b", {"rate": 30.0}, group="large"),
        )
    )
    assert [line.strip() for line in text if "small" in line or "large" in line] == [
        "small",
        "large",
    ]
    assert text.index("  large") == 5
    assert "0.50 x" in text[4] and "3.00 x" in text[7]
    assert "█" * render.BAR in text[3] and "█" * render.BAR in text[7]


def test_what_failed_and_what_is_missing_is_said_in_its_place() -> None:
    text = "\n".join(
        render.row_table(
            result(
                outcome("a", {"rate": 1000.0}),
                outcome("b", None, failure="failed with exit code 1\nValueError: no"),
                outcome("c", skipped="c is not installed"),
                outcome("d", {"rate": 10.0}, None, failure="has not ended"),
            )
        )
    )
    assert "b: FAILED: failed with exit code 1\n      ValueError: no" in text
    assert "c: c is not installed" in text
    assert "d: FAILED in a later round: has not ended" in text


def test_other_figures_are_columns() -> None:
    figures = (RATE, Figure("p99", "p99", "seconds", "less"))
    text = render.row_table(
        result(
            outcome("a", {"rate": 1.0, "p99": 0.002}), outcome("b", {"rate": 1.0}), figures=figures
        )
    )
    assert text[1].endswith("p99")
    assert text[2].endswith("2.00 ms")
    assert text[3].endswith("-")


# ---------------------------------------------------------------------------- verdict


def test_every_target_is_about_contestants_and_figures_that_exist() -> None:
    for target in TARGETS:
        row = load(target.row, quick=True)
        names = {(each.name, each.group) for each in row.contestants}
        assert (target.ours.name, target.ours.group) in names, target
        assert target.theirs is None or (target.theirs.name, target.theirs.group) in names, target
        assert target.key in {figure.key for figure in row.figures}, target
        assert (target.aim - target.least) * (1 if target.better == "more" else -1) >= 0, target


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("quick", [True, False])
def test_rows_are_in_order(name: str, quick: bool) -> None:
    from flowkit.importing import load_object

    row = load(name, quick)
    assert row.name == name and row.title and row.method.endswith(".")
    keys = [each.key for each in row.contestants]
    assert len(keys) == len(set(keys))
    for each in row.contestants:
        assert callable(load_object(each.run))


def seed(flowkit: float, queue: float) -> dict[str, RowResult]:
    return {
        "seed": result(
            outcome("mp.Queue", {"rate": queue}),
            outcome("flowkit at-least-once", {"rate": flowkit}),
        )
    }


@pytest.mark.parametrize(
    ("flowkit", "word"), [(20.9, "NOT MET"), (21.0, "met"), (34.9, "met"), (35.0, "aim met")]
)
def test_a_target_is_met_or_not_and_never_rounded_up(flowkit: float, word: str) -> None:
    judgements = judge(seed(flowkit, 1.0))
    assert [each.target.row for each in judgements] == ["seed"] * 4
    assert judgements[0].word == word
    assert judgements[1].word == "not measured"
    line = render.verdict_table(judgements)[2]
    assert line.endswith(word) and "21.0 x" in line


def test_less_can_be_better() -> None:
    start = load("start", quick=True)
    outcomes = [Outcome(each, rounds=[]) for each in start.contestants]
    for each in outcomes:
        each.rounds.append({"ready": 0.9, "pss": 7.0 * 2**20, "cpu": 0.031})
    words = [each.word for each in judge({"start": RowResult(start, outcomes)})]
    assert words == ["met", "aim met", "NOT MET"]


# ---------------------------------------------------------------------------- data


def test_the_data_has_everything_the_tables_have() -> None:
    results = seed(40.0, 2.0)
    machine = look()
    data = record.as_dict(machine, "quick", Pace(0.1, 1), results, judge(results))
    assert json.loads(json.dumps(data)) == data
    contestants = data["rows"]["seed"]["contestants"]
    assert contestants[1]["figures"]["rate"] == {"median": 40.0, "min": 40.0, "max": 40.0}
    assert contestants[1]["ratio"]["median"] == 20.0
    assert data["verdict"][0]["met"] is False
    assert data["machine"]["facts"]["Python"].startswith("CPython")


def test_a_busy_machine_is_warned_about() -> None:
    quiet, busy = Machine({"a": "b"}, 4, (0.9, 0, 0)), Machine({"a": "b"}, 4, (3.0, 0, 0))
    assert render.machine_lines(quiet) == ["a            b"]
    assert "the machine is busy (load average 3.0 on 4 cores)" in render.machine_lines(busy)[1]
