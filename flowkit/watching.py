"""`up --watch`: what changes on the disk is taken in while the project runs.

The files are looked at twice a second: some dozen calls of `stat`, which work on every file system,
also where the kernel tells nobody what changes (in containers, over a network).

New code has to import before anything is touched. It is imported in a short-lived child, with all
the checks of `flowkit check`; if it does not, the replicas that run go on, and the operator is
shown why.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.errors import FlowkitError, OperatorError, TopologyError
from flowkit.runtime.sources import files_of
from flowkit.topology.plan import Plan
from flowkit.topology.render import as_text

if TYPE_CHECKING:
    from flowkit.supervisor import Supervisor

EVERY = 0.5
"""Seconds between two looks. What changed is taken in when it has stayed the same for one look:
editors, and checkouts, write several files."""

IMPORT_LIMIT = 60.0
"""Seconds that an import may take whose traceback is to be shown."""

Stamp = tuple[int, int, int]

TakeIn = Callable[[Plan, list[str], bool], Awaitable[object]]


class Watching:
    """Takes in what changes in the files of `supervisor`'s project; see `run`. `take_in` is called
    with the new plan, the nodes whose code has changed, and whether the topology has."""

    def __init__(
        self, supervisor: Supervisor, take_in: TakeIn, directory: str, every: float = EVERY
    ) -> None:
        if supervisor.in_process:
            raise OperatorError(
                "code cannot be watched in one process", "leave out --in-process, or --watch"
            )
        self._supervisor = supervisor
        self._hand_over = take_in
        self._directory = Path(directory)
        self._every = every

    async def run(self) -> None:
        """Watch until cancelled. What goes wrong is told to the supervisor's watcher."""
        taken = self._stamps()  # at once, so that no change from here on is taken for what was
        seen = taken
        while True:
            await asyncio.sleep(self._every)
            before, seen = seen, await asyncio.to_thread(self._stamps)
            if seen == before and seen != taken:
                changed = {
                    path for path in seen.keys() | taken.keys() if _differ(path, seen, taken)
                }
                taken = seen
                await self._take_in(changed)

    def code_of(self, plan: Plan) -> dict[str, set[Path]]:
        """The files of each node's class."""
        own = [node for node in plan.nodes if not node.external]  # not an application's code
        modules = {node.name: node.use.partition(":")[0] for node in own}
        known = {module: files_of(module, self._directory) for module in set(modules.values())}
        return {name: known[module] for name, module in modules.items()}

    # -- inside --------------------------------------------------------------------------------

    def _stamps(self) -> dict[Path, Stamp]:
        """What tells each watched file from what it was; a file that is not there has none."""
        plan = self._supervisor.plan
        files = {Path(path) for path in plan.files or [plan.path]}
        for mine in self.code_of(plan).values():
            files |= mine
        stamps = {}
        for path in files:
            try:
                found = os.stat(path)
            except OSError:
                continue
            stamps[path] = (found.st_mtime_ns, found.st_size, found.st_ino)
        return stamps

    async def _take_in(self, changed: set[Path]) -> None:
        supervisor = self._supervisor
        what = ", ".join(sorted(self._shown(path) for path in changed))
        try:
            before = await asyncio.to_thread(self.code_of, supervisor.plan)
            plan = await asyncio.to_thread(supervisor.load, supervisor.plan.path)
            after = await asyncio.to_thread(self.code_of, plan)
            names = [
                name
                for name in after
                if changed & (before.get(name, set()) | after[name]) and name in before
            ]
            files = {Path(path) for path in plan.files or [plan.path]}
            outcome = await self._hand_over(plan, names, bool(changed & files))
        except TopologyError as error:
            text = "\n".join(as_text(problem) for problem in error.problems)
            traces = await asyncio.to_thread(self._traces, error)
            supervisor.tell(
                f"{what} changed, but cannot be used; what runs goes on\n{text}{traces}"
            )
        except FlowkitError as error:
            hint = getattr(error, "hint", "")
            supervisor.tell(f"{what} changed: {error}{f' ({hint})' if hint else ''}")
        else:
            if outcome is not None:
                supervisor.tell(f"{what} changed: {outcome}")

    def _shown(self, path: Path) -> str:
        return os.path.relpath(path, self._directory)

    def _traces(self, error: TopologyError) -> str:
        """The tracebacks of the modules that do not import."""
        failed = [one for one in error.problems if one.code == "E301"]
        if not failed:
            return ""
        modules = {node.use.partition(":")[0] for node in self._supervisor.plan.nodes}
        quoted = {module for module in modules for one in failed if f"'{module}'" in one.message}
        return "".join(f"\n{_traceback(module, self._directory)}" for module in sorted(quoted))


def _traceback(module: str, directory: Path) -> str:
    """What importing `module` prints, in a process of its own."""
    code = f"import sys; sys.path[:0] = [{str(directory)!r}]; import {module}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=IMPORT_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.rstrip()


def _differ(path: Path, *stamps: dict[Path, Stamp]) -> bool:
    return len({one.get(path) for one in stamps}) > 1
