"""What a running project looks like in one moment, as plain data.

`Supervisor.status()` makes it; `ps`, `top`, `/metrics`, the HTTP API and clients show it. All of it
are `msgspec.Struct` of builtins, so it travels as msgpack or JSON. Figures are exact; times are in
seconds, sizes in bytes, shares between 0 and 1 unless said otherwise. *Rates, shares and
percentiles are of the last seconds (`Status.window`)*, counts of the whole run, over all
incarnations of a replica. What is not known is None.
"""

from __future__ import annotations

from msgspec import Struct, field

from flowkit.metrics import Verdict


class ReplicaStatus(Struct, kw_only=True, frozen=True):
    """One replica."""

    node: str
    replica: int
    state: str
    """What `ps` shows: "pending" (waits to be started), "starting", "running", "busy" (in handlers
    nearly all the time), "waiting" (held up by what is downstream), "idle", "stopping", "stopped",
    "done", "lost", "absent" (waits for an application to attach it)."""
    phase: str
    """Where its life stands: waiting, starting, ready, done, ended, lost, stopped, removed."""
    pid: int | None = None
    incarnation: int = 0
    uptime: float = 0.0
    """Of the present incarnation."""
    cpu: float | None = None
    """Cores used, 1.0 is one of them. None with `in_process`, and of an attached replica."""
    memory: int | None = None
    memory_kind: str = ""
    """"pss", which counts what processes share by parts, or "rss", which counts it whole."""
    in_rate: float | None = None
    """Messages handled per second; None for a source."""
    out_rate: float | None = None
    """Messages sent per second, over all output links; None without outputs."""
    queue: int | None = None
    """Messages received and not yet handled; None for a source."""
    p50: float | None = None
    p99: float | None = None
    """Seconds that the handlers took for one message."""
    age_p50: float | None = None
    age_p99: float | None = None
    """Where messages end: their age in seconds, since their stream began at a source or a timer."""
    busy: float = 0.0
    """Share of the time in handlers; of a source, reading."""
    waiting: float = 0.0
    """Share of the time held up for want of room downstream."""
    handled: int = 0
    sent: int = 0
    restarts: int = 0
    lost_state: bool = False
    source: bool = False
    ends: bool = False
    """Whether the way of messages ends here."""
    busy_seconds: float = 0.0
    waiting_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the whole run."""

    @property
    def name(self) -> str:
        return f"{self.node}.{self.replica}"


class LinkStatus(Struct, kw_only=True, frozen=True, rename={"from_": "from"}):
    """One link, over all its producers. `sent` is the sum of `done`, `dropped`, `dead_lettered`,
    `superseded` and `in_flight`."""

    from_: str
    to: str
    route: str = "balance"
    delivery: str = "at-least-once"
    sent: int = 0
    delivered: int = 0
    done: int = 0
    redelivered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    dead_lettered: int = 0
    superseded: int = 0
    in_flight: int = 0
    sent_bytes: int = 0
    queued: int = 0
    """Messages at the producers that wait for credit."""
    credit: int = 0
    """Batches that the consumers would take at once."""
    window: int = 0
    window_bytes: int = 0
    """Messages and bytes that may be in flight from each producer replica."""
    full: float = 0.0
    """Share of the time that producers were held up by this link, of the one held up most."""
    full_seconds: float = 0.0
    """How long they were held up in the whole run, all together."""
    rate: float = 0.0
    """Messages done per second."""

    @property
    def name(self) -> str:
        return f"{self.from_} -> {self.to}"


class Status(Struct, kw_only=True, frozen=True):
    """A project."""

    project: str
    file: str
    run: str
    pid: int
    """Of the supervisor."""
    version: str
    state: str
    """"starting", "running", "draining", or how it ended: "drained", "failed" ..."""
    uptime: float
    exit: int | None = None
    """The exit code, when it has ended."""
    reason: str = ""
    ready: bool = False
    """Whether every replica is there: none is being started, but for those that a change which is
    under way has asked for."""
    http: str | None = None
    """Where its HTTP server listens, as a URL."""
    window: float = 0.0
    """Seconds that rates, shares and percentiles look back."""
    replicas: list[ReplicaStatus] = []
    links: list[LinkStatus] = []
    removed: list[ReplicaStatus] = []
    removed_links: list[LinkStatus] = []
    """Those that a change has taken out. What they have counted stays, for counters never fall."""
    verdict: Verdict
