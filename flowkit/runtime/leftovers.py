"""What an earlier run has left behind: only who starts a project knows what to do with it."""

from __future__ import annotations

from pathlib import Path

from flowkit.errors import DirtyStop
from flowkit.journal import holds_batches
from flowkit.runtime.journaling import journal_path
from flowkit.store import Store
from flowkit.topology.plan import Plan


def look(plan: Plan, store: Store, journals: Path, *, fresh: bool, resume: bool) -> None:
    """Raise DirtyStop if positions or journals need a decision that was not made.

    With `fresh` journals are removed; with `resume` what is there will be used.
    """
    mine = {
        journal_path(journals, link, replica)
        for link in plan.links
        if link.durable
        for replica in range(link.producers)
    }
    held = [path for path in journals.glob("*.journal") if holds_batches(path)]
    if fresh:
        for path in journals.iterdir():
            path.unlink()
        return
    strange = [path for path in held if path not in mine]
    if strange:
        raise DirtyStop(
            f"the journal {strange[0]} holds messages, and belongs to no link of "
            f"{plan.project} as it is now",
            hint="run the topology it was made by with --resume, or drop it with --fresh",
        )
    if not resume and (store.dirty or held):
        what = "messages in journals" if held else "positions"
        raise DirtyStop(
            f"the last run of {plan.project} was not drained and left {what} behind",
            hint="go on from there with --resume, or begin anew with --fresh",
        )
