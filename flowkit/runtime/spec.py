"""What a replica is told when it is started: plain data, readable in any process."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from flowkit.protocol.events import Identity, Terms
from flowkit.protocol.members import Replica
from flowkit.topology.plan import LinkPlan, NodePlan, Plan

JOURNALS, STORE = "journals", "flowkit.db"
"""What is kept in the state directory."""


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


class Surroundings(NamedTuple):
    """What the specs of a run have in common."""

    run: str
    token: str
    control: str
    run_directory: Path
    state: Path


def describe(
    plan: Plan,
    replica: Replica,
    around: Surroundings,
    books: Path,
    levels: dict[str, int],
    boxed: bool,
) -> ReplicaSpec:
    """What the present incarnation of a replica is to be told, with a black box beside its `books`
    if it is `boxed`."""
    node = plan.node(replica.node)
    return ReplicaSpec(
        project=plan.project,
        run=around.run,
        token=around.token,
        node=node,
        replica=replica.number,
        incarnation=replica.incarnation,
        inputs=[link for link in plan.links if link.target == node.name],
        outputs=[link for link in plan.links if link.source == node.name],
        control=around.control,
        run_directory=str(around.run_directory),
        books=str(books),
        journals=str(around.state / JOURNALS),
        store=str(around.state / STORE),
        durable=any(link.durable and link.fsync == "group" for link in plan.links),
        box=str(books.with_suffix(".box")) if boxed else "",
        levels=levels,
        origin=replica.origin,
        life=replica.life,
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
