"""The nouns of a project: its nodes, their replicas, where each stands and what is wanted of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from flowkit.protocol.restart import RestartPolicy, RestartState


class Phase(Enum):
    """Where one replica stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    ENDED = "ended"
    LOST = "lost"
    """Given up, or killed at the end."""
    STOPPED = "stopped"
    """The operator wants no process of it, for now."""
    REMOVED = "removed"
    """Its node has fewer replicas now, or is no more."""


class Wanted(Enum):
    """What the operator wants of a replica."""

    UP = "up"
    DOWN = "down"
    GONE = "gone"


class Status(Enum):
    """How a project ended, or that it has not."""

    RUNNING = "running"
    DRAINED = "drained"
    FAILED = "failed"
    """A node was given up."""
    MISCONFIGURED = "misconfigured"
    """A node cannot start as it is configured."""
    STOPPED = "stopped"
    """The error policy of a node asked for it."""
    TIMED_OUT = "timed out"
    """It was not drained in time."""
    KILLED = "killed"


class Member(NamedTuple):
    """What the project knows of a node before it starts."""

    name: str
    replicas: int
    policy: RestartPolicy
    source: bool
    stateful: bool
    origin: int = 0
    """Number of replica 0 in the project."""
    begins: bool = False
    """Whether it reads from foreign peers, so that streams begin in it, too."""
    external: bool = False
    """Whether its replicas are run by applications that attach them."""


@dataclass(slots=True, eq=False)
class Replica:
    """One replica, over all its incarnations. `restarts` are those after a death, `planned` those
    that the operator asked for."""

    node: str
    number: int
    restart: RestartState
    source: bool
    stateful: bool
    phase: Phase = Phase.WAITING
    incarnation: int = 0
    restarts: int = 0
    lost_state: bool = False
    ended: bool = False
    """Whether the incarnation has said that its stream has ended and that it wants another."""
    addresses: Mapping[int, str] = field(default_factory=dict)
    launch_at: float | None = None
    origin: int = 0
    """Its number in the project: the first part of the ids of what begins in it."""
    wanted: Wanted = Wanted.UP
    planned: int = 0
    life: int = 1
    """1, and how often it was removed; see `events.Identity`."""
    leaving: bool = False
    """Whether this incarnation was told to end."""
    trying: bool = False
    """Whether the next incarnation was asked for, and has not been ready yet."""
    discarded: bool = False
    """Whether it is to be removed without its orderly end."""
    introduced: bool = False
    """Whether this incarnation's peers know of it."""
    known: bool = True
    """Whether they know of any incarnation, or are to be."""
    begun: bool = False
    """Whether this incarnation was told to `Start`."""
    begins: bool = False
    """Whether a stream begins in it: it is told when to start, and when to stop."""
    external: bool = False
    """Whether an application runs it, or is to."""
    absent: bool = False
    """Whether it is external, and no application has taken the incarnation that waits for one."""
    edition: int = 0
    """Which links the incarnation was launched with, or told of."""

    @property
    def name(self) -> str:
        return f"{self.node}.{self.number}"

    @property
    def over(self) -> bool:
        return self.phase in (Phase.ENDED, Phase.LOST, Phase.REMOVED)

    @property
    def done(self) -> bool:
        """Whether nothing will come from it any more."""
        return self.phase in (Phase.DONE, Phase.ENDED, Phase.REMOVED)
