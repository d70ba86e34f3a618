"""What a replica is told when it is started: plain data, readable in any process."""

from __future__ import annotations

import msgspec

from flowkit.protocol.events import Identity, Terms
from flowkit.topology.plan import LinkPlan, NodePlan


class ReplicaSpec(msgspec.Struct, frozen=True):
    """One incarnation of one replica. Paths are absolute."""

    project: str
    run: str
    token: str
    node: NodePlan
    replica: int
    incarnation: int
    inputs: list[LinkPlan]
    outputs: list[LinkPlan]
    control: str
    """Address of the supervisor's control socket."""
    run_directory: str
    books: str
    """File of the shared counters; see `flowkit.runtime.shared`. Empty: count in memory."""
    journals: str
    """Directory of the journals of durable links."""
    store: str
    """The project's SQLite database of positions and dead letters."""
    durable: bool = False
    """Whether what is written there must survive the machine: a journal forgets a message that has
    become a dead letter."""
    box: str = ""
    """File that keeps the newest log records over a death; see `flowkit.runtime.blackbox`."""
    levels: dict[str, int] = {}
    """Log levels by logger that the operator has set; "" is the root."""
    origin: int = 0
    """Number of the replica in the project; 0: what the plan says."""
    life: int = 1

    @property
    def name(self) -> str:
        return f"{self.node.name}.{self.replica}"

    def identity(self) -> Identity:
        return Identity(
            self.run,
            self.token,
            self.node.name,
            self.replica,
            self.incarnation,
            self.origin or self.node.origin + self.replica,
            self.life,
        )


def terms_of(link: LinkPlan) -> Terms:
    """The part of a link's plan that its two ends act on."""
    return Terms(
        index=link.index,
        name=link.name,
        source=link.source,
        out=link.out,
        target=link.target,
        into=link.into,
        producers=link.producers,
        consumers=link.consumers,
        route=link.route,
        lossy=link.delivery == "at-most-once",
        when_full=link.when_full,
        window=link.window,
        window_bytes=link.window_bytes,
        durable=link.durable,
        origin=link.origin,
        version=link.version,
        pattern=link.pattern,
    )


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(ReplicaSpec).decode
