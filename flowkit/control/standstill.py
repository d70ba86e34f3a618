"""Finds the replicas whose loops stand still, and knows what to say when they are killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flowkit.protocol.project import Phase, Project
from flowkit.protocol.watch import Watch, interval
from flowkit.runtime.books import ReplicaBooks
from flowkit.topology.plan import Plan


class Standstill:
    """The watchdogs of a project. `kill` ends a process by its launcher's name ("split.0#2")."""

    def __init__(self, plan: Plan, kill: Callable[[str], None]) -> None:
        self.every = interval([node.watchdog for node in plan.nodes])
        """Seconds between two looks."""
        self._watch = Watch(self.every)
        self._kill = kill
        self._killed: dict[str, str] = {}

    def look(
        self,
        now: float,
        plan: Plan,
        project: Project,
        books: Mapping[tuple[str, int], ReplicaBooks],
    ) -> None:
        """Kill the replicas whose loops have not turned for as long as their watchdog allows.

        Nodes that a change brings, or has taken out, are not in `plan`: it waits for them itself.
        """
        watchdogs = {node.name: node.watchdog for node in plan.nodes}
        turned = {}
        for key, replica in project.replicas.items():
            at = books[key].turned
            name = f"{replica.name}#{replica.incarnation}"
            seconds = watchdogs.get(replica.node)
            if seconds is None or replica.phase is not Phase.READY:
                continue
            if at and name not in self._killed:
                turned[key] = (at, seconds)
        for key in self._watch.look(now, turned):
            replica = project.replicas[key]
            name = f"{replica.name}#{replica.incarnation}"
            handler = books[key].handler
            inputs = _inputs_of(plan, replica.node)
            where = f" in on_{inputs[handler - 1]}" if 0 < handler <= len(inputs) else ""
            seconds = turned[key][1]
            then = "counts as dead" if replica.external else "was killed"
            self._killed[name] = f"did not turn its loop for {seconds:g} s{where} and {then}"
            self._kill(name)

    def epitaph(self, name: str) -> str | None:
        """What to say of a process that has ended, if it was killed here; once."""
        return self._killed.pop(name, None)


def _inputs_of(plan: Plan, node: str) -> list[str]:
    return list(dict.fromkeys(link.into for link in plan.links if link.target == node))
