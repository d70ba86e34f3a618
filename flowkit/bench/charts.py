"""A PNG chart for each row, with matplotlib, which is an optional extra: ``flowkit[bench]``."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path

from flowkit.bench.render import show
from flowkit.bench.results import Contestant, RowResult
from flowkit.importing import load_object

OURS, THEIRS = "#2a6f97", "#b0b7bf"
"""flowkit, and what it is compared with."""

TITLE = 110
"""Characters of a line of a title."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(folder: Path, results: Sequence[RowResult]) -> list[Path]:
    """Draw every row that has measured something; return the files."""
    return [path for result in results if (path := _draw(folder, result)) is not None]


def _is_ours(contestant: Contestant) -> bool:
    # In the row that is about flowkit alone, no name says so.
    return "flowkit" in contestant.name or contestant.run.endswith(":flowkit")


def _draw(folder: Path, result: RowResult) -> Path | None:
    main = result.row.figures[0]
    bars = [
        (outcome.contestant, spread)
        for outcome in result.outcomes
        if (spread := outcome.spread(main.key)) is not None
    ]
    if not bars:
        return None
    # Not through pyplot: a figure of one's own needs no display and leaves no state behind.
    figure = load_object("matplotlib.figure:Figure")(
        figsize=(9, 1.4 + 0.36 * len(bars)), layout="constrained"
    )
    axes = figure.subplots()
    names = [contestant.key for contestant, _ in bars]
    medians = [spread.median for _, spread in bars]
    apart = [
        [spread.median - spread.low for _, spread in bars],
        [spread.high - spread.median for _, spread in bars],
    ]
    colours = [OURS if _is_ours(contestant) else THEIRS for contestant, _ in bars]
    drawn = axes.barh(
        range(len(bars)), medians, xerr=apart, color=colours, ecolor="#555", capsize=2
    )
    axes.bar_label(drawn, [f" {show(value, main.unit)}" for value in medians], fontsize=8)
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: show(value, main.unit))
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    better = "more is better" if main.better == "more" else "less is better"
    title = textwrap.fill(f"{result.row.title}: {main.label}, {better}", TITLE)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    path = folder / f"{result.row.name}.png"
    figure.savefig(path, dpi=144)
    return path
