"""What an earlier run left behind: positions and journals. Only the caller knows what is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from flowkit.errors import DirtyStop
from flowkit.journal import holds_batches
from flowkit.runtime.journaling import journal_path
from flowkit.store import Store
from flowkit.topology.plan import Plan


class Wishes(NamedTuple):
    """What the caller of a run has said: whether sources run, to go on, or to begin anew."""

    sources: bool
    resume: bool
    fresh: bool


def look_at_leftovers(plan: Plan, journals: Path, store: Store, wishes: Wishes) -> None:
    """Drop the journals in the directory `journals` if that is wanted.

    Raises DirtyStop if there is something left, and nothing was said of it.
    """
    mine = {
        journal_path(journals, link, replica)
        for link in plan.links
        if link.durable
        for replica in range(link.producers)
    }
    held = [path for path in journals.glob("*.journal") if holds_batches(path)]
    if wishes.fresh:
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
    if wishes.sources and not wishes.resume and (store.dirty or held):
        what = "messages in journals" if held else "positions"
        raise DirtyStop(
            f"the last run of {plan.project} was not drained and left {what} behind",
            hint="go on from there with --resume, or begin anew with --fresh",
        )
