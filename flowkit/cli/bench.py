"""`flowkit bench`: how fast flowkit is on this machine, beside what one would use instead."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from flowkit.bench import charts, machine, record, render
from flowkit.bench.results import Contestant, Row, RowResult
from flowkit.bench.rows import ROWS, load, peers
from flowkit.bench.session import Pace, run_row
from flowkit.bench.verdict import judge
from flowkit.errors import OperatorError
from flowkit.importing import did_you_mean

QUICK = Pace(seconds=0.3, rounds=2)
FULL = Pace(seconds=1.2, rounds=3)

WIDTH = 100


@click.command(short_help="Measure flowkit beside other ways, on this machine.")
@click.option("--quick", is_flag=True, help="Less, and shorter: a minute or two in all.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help=f"Only these rows, of {', '.join(ROWS)}. Several: again, or with commas.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help=f"Rounds of each contestant ({FULL.rounds}; quick {QUICK.rounds}).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write results.json and results.txt there, and charts if matplotlib is installed.",
)
def command(
    quick: bool, only: tuple[str, ...], rounds: int | None, as_json: bool, out: Path | None
) -> int:
    """Measure flowkit beside what one would use instead, on this machine, in one run.

    All contestants of a row are run in turn, in real processes, with the same messages; figures are
    medians of the rounds, ratios those of the rounds to each other. Takes up to ten minutes. The
    row 'peers' is there if other libraries are: streamz, bytewax, ezmsg, ray.

    Exit code 0, or 1 if a contestant failed. Whether flowkit was fast enough is printed, and does
    not matter for it.
    """
    names = _chosen(only)
    pace = QUICK if quick else FULL
    pace = Pace(pace.seconds, rounds or pace.rounds)
    if out is not None:
        _prepare(out)
    here = machine.look()
    text: list[str] = []

    def say(lines: list[str]) -> None:
        text.extend(lines)
        if not as_json:
            click.echo("\n".join(lines))

    say(render.machine_lines(here))
    progress = _Progress(sum(_steps(load(name, quick), pace) for name in names))
    results: dict[str, RowResult] = {}
    try:
        for name in names:
            results[name] = run_row(load(name, quick), pace, progress)
            progress.clear()
            say(_row_lines(results[name]))
    finally:
        progress.clear()
    judgements = judge(results)
    data = record.as_dict(here, "quick" if quick else "full", pace, results, judgements)
    if judgements:
        say(["", *render.verdict_table(judgements)])
    if quick:
        say(["", "quick: short rounds, and few of them; figures to quote need a full run"])
    if as_json:
        click.echo(json.dumps(data, indent=2))
    if out is not None:
        _write(out, text, data, results)
    failed = any(outcome.failure for result in results.values() for outcome in result.outcomes)
    return int(failed)


def _chosen(only: tuple[str, ...]) -> list[str]:
    """The rows to run, in their own order."""
    wanted = [name.strip() for each in only for name in each.split(",") if name.strip()]
    for name in wanted:
        if name not in ROWS:
            guess = did_you_mean(name, ROWS) or f"rows are {', '.join(ROWS)}"
            raise click.BadParameter(f"no row '{name}'; {guess}", param_hint="'--only'")
    if only and not wanted:
        raise click.BadParameter("names no row", param_hint="'--only'")
    if wanted:
        return [name for name in ROWS if name in wanted]
    return [name for name in ROWS if name != "peers" or peers.installed()]


def _prepare(out: Path) -> None:
    """Better now than after ten minutes."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot make {out}: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise OperatorError(f"cannot write to {out}", hint="name a writable directory")


def _row_lines(result: RowResult) -> list[str]:
    lines = ["", *render.row_table(result)]
    for text in filter(None, (result.row.method, result.row.note)):
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return lines


def _write(out: Path, text: list[str], data: dict[str, Any], results: dict[str, RowResult]) -> None:
    contents = {"results.json": json.dumps(data, indent=2), "results.txt": "\n".join(text)}
    written = []
    for name, content in contents.items():
        (out / name).write_text(content + "\n", encoding="utf-8")
        written.append(str(out / name))
    if charts.available():
        written += [str(path) for path in charts.draw(out, list(results.values()))]
    click.echo(f"written: {', '.join(written)}", err=True)
    if not charts.available():
        click.echo("no charts: matplotlib is missing (pip install 'flowkit[bench]')", err=True)


def _steps(row: Row, pace: Pace) -> int:
    """How often something is run for a row."""
    return sum(
        min(pace.rounds, contestant.rounds or pace.rounds) + bool(contestant.first)
        for contestant in row.contestants
    )


class _Progress:
    """One line on a terminal's stderr that says what is run; elsewhere nothing."""

    def __init__(self, whole: int) -> None:
        self._whole = whole
        self._done = 0
        self._live = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, row: Row, contestant: Contestant, step: str) -> None:
        self._done += 1
        if self._live:
            share = 100 * (self._done - 1) // self._whole
            text = f"{share:3} %  {row.name}  {contestant.key}  {step}"
            self._show(text[: max(20, terminal_width() - 1)])

    def clear(self) -> None:
        """Make room for what is printed next."""
        if self._live:
            self._show("")

    def _show(self, text: str) -> None:
        sys.stderr.write("\r\x1b[K" + text)
        sys.stderr.flush()


def terminal_width() -> int:
    """Columns of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
