"""The rows, in the order in which they are run. Each module has `row(quick) -> Row`."""

from __future__ import annotations

from flowkit.bench.results import Row, for_quick
from flowkit.importing import load_object

ROWS = (
    "seed",
    "objects",
    "mp",
    "pipeline",
    "fanout",
    "latency",
    "large",
    "foreign",
    "start",
    "growth",
    "recovery",
    "peers",
)


def load(name: str, quick: bool) -> Row:
    """The row called `name`, as it is in a quick run or a full one."""
    row = load_object(f"flowkit.bench.rows.{name}:row")(quick)
    assert isinstance(row, Row)
    return for_quick(row) if quick else row
