"""A topology that is right, down to the plan; and what the plan promises."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from flowkit.errors import TopologyError
from flowkit.runtime.planning import load_plan
from flowkit.topology.plan import ErrorPolicy, LinkPlan, NodePlan, Plan, RestartPlan

CASES = Path(__file__).parent / "cases"
ENVIRONMENT = {"REPLICAS": "3", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def plan() -> Plan:
    before = os.getcwd()
    os.chdir(CASES)
    try:
        return load_plan("good.yaml", ENVIRONMENT, os.getcwd())
    finally:
        os.chdir(before)


def test_the_whole(plan: Plan) -> None:
    assert (plan.project, plan.path) == ("clicks", str(CASES / "good.yaml"))
    assert [node.name for node in plan.nodes] == ["read", "parse", "users", "first", "last"]
    assert plan.modules == ["parts"]
    assert plan.env == {"STAGE": "test", "PORT": "8080"}


def test_a_node_with_everything(plan: Plan) -> None:
    assert plan.node("parse") == NodePlan(
        name="parse",
        use="parts:Parse",
        settings={},
        replicas=3,
        env={"STAGE": "other", "PORT": "8080"},
        restart=RestartPlan("always", None, 90.0, 0.2, 10.0),
        on_error=ErrorPolicy(3, "stop"),
        watchdog=120.0,
        origin=1,
        stateful=False,
        positions=False,
        source=False,
        blocked=1.0,
        inputs=["lines"],
        outputs=["events"],
    )


def test_defaults(plan: Plan) -> None:
    read = plan.node("read")
    assert read.source and read.origin == 0 and read.watchdog == 30.0
    assert read.restart == RestartPlan("on-failure", 5, 60.0, 0.1, 10.0)
    assert read.on_error == ErrorPolicy(0, "dead-letter")
    with pytest.raises(KeyError):
        plan.node("nobody")


def test_substituted_settings_have_the_types_that_are_wanted(plan: Plan) -> None:
    assert plan.node("read").settings == {"path": "$HOME", "limit": 5, "loud": True}
    assert type(plan.node("read").settings["path"]) is str


def test_origins_do_not_overlap(plan: Plan) -> None:
    taken = [node.origin + replica for node in plan.nodes for replica in range(node.replicas)]
    assert sorted(taken) == list(range(len(taken)))


def test_links(plan: Plan) -> None:
    assert [(link.index, link.name) for link in plan.links] == [
        (0, "read.lines -> parse.lines"),
        (1, "read.lines -> first.given"),
        (2, "parse.events -> users.users"),
        (3, "first.taken -> last.given"),
    ]
    assert plan.links[0].window == 500 and plan.links[0].window_bytes == 64 * 2**20
    assert plan.links[2] == LinkPlan(
        index=2,
        name="parse.events -> users.users",
        source="parse",
        out="events",
        target="users",
        into="users",
        route="key",
        by="user",
        window=65_536,
        window_bytes=8 * 2**20,
        codec="json",
        delivery="at-most-once",
        when_full="drop-oldest",
        transport="ipc",
        producers=3,
        consumers=2,
        forgets="parse.events -> users.users",
    )


def test_it_can_be_sent(plan: Plan) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan


def test_problems_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    with pytest.raises(TopologyError) as caught:
        load_plan("y4.yaml", ENVIRONMENT, os.getcwd())
    assert [problem.code for problem in caught.value.problems][:2] == ["E102", "E102"]
