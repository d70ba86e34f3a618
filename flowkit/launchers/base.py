"""What a launcher is: it starts replicas, kills them, and reports how they ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from signal import SIGKILL

OnStarted = Callable[[str, int], None]
"""`on_started(name, pid)`: the replica called `name` has become process `pid`."""

OnExit = Callable[[str, int, str | None], None]
"""`on_exit(name, exitcode, error)`: nothing of the replica is left.

`exitcode` is negative for a signal, as in `multiprocessing`. `error` is None when the process came
to this end itself, else it says why the launcher answers for it: it could not be started
(`exitcode` 1), the launcher died, or the launcher was closed (`exitcode` -9).
"""


class Launcher(ABC):
    """Starts replicas. It decides nothing: whether one is to be started again is not its concern.

    Callbacks are called on the loop in which `start` was awaited. Every name that was given to
    `launch` gets exactly one `on_exit`, after at most one `on_started`, also if the launcher
    itself is killed; after `close` has returned no callback is called. What a replica itself says,
    on its streams or to its peers, may be heard before `on_started`.
    """

    def __init__(self, on_started: OnStarted, on_exit: OnExit) -> None:
        self.on_started = on_started
        self.on_exit = on_exit

    @abstractmethod
    async def start(self) -> None:
        """Get ready to launch. Raises ReplicaError if that fails; call `close` then, too."""

    @abstractmethod
    def launch(
        self,
        name: str,
        spec: bytes,
        *,
        title: str,
        env: Mapping[str, str],
        stdout: int | None,
        stderr: int | None,
    ) -> None:
        """Start one replica and return at once; `on_started` follows, or `on_exit`.

        `name` is unique among the living, by convention ``node.replica#incarnation``; ValueError
        if it is not. `spec` is opaque and goes to the entry point. `env` is applied on top of the
        inherited environment before the entry point is imported (too late for what the
        interpreter itself reads at its start). `stdout` and `stderr` are descriptors to write to,
        None to inherit; they are given away: the launcher closes them, whatever happens.
        """

    @abstractmethod
    def kill(self, name: str, signal: int = SIGKILL) -> None:
        """Send `signal` to a replica; nothing happens if it has ended or was never launched."""

    @abstractmethod
    async def close(self) -> None:
        """Kill what is left, wait for its end and report it. May be called twice."""


def parse_name(name: str) -> tuple[tuple[str, int], int]:
    """The node, replica and incarnation in a name that was given to `launch`."""
    place, _, incarnation = name.partition("#")
    node, _, number = place.rpartition(".")
    return (node, int(number)), int(incarnation)
