"""What is between two plans, what forbids it, and what it is called."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from flowkit.topology.changes import changes, refusals, scaled
from flowkit.topology.plan import (
    EndpointPlan,
    ErrorPolicy,
    LinkPlan,
    NodePlan,
    Plan,
    RestartPlan,
    foreign_links,
)


def node(name: str, replicas: int = 1, **facts: Any) -> NodePlan:
    usual: dict[str, Any] = {
        "use": f"nodes:{name.title()}",
        "settings": {},
        "env": {},
        "restart": RestartPlan(),
        "on_error": ErrorPolicy(),
        "watchdog": 30.0,
        "origin": 0,
        "stateful": False,
        "source": name == "read",
        "positions": name == "read",
    }
    return NodePlan(name=name, replicas=replicas, **{**usual, **facts})


def plan(nodes: list[NodePlan], links: list[tuple[str, str, dict[str, Any]]]) -> Plan:
    counts = {one.name: one.replicas for one in nodes}
    usual: dict[str, Any] = {
        "route": "balance",
        "by": None,
        "window": 100,
        "window_bytes": 1000,
        "codec": None,
        "delivery": "at-least-once",
        "when_full": "block",
        "transport": "auto",
    }
    made = [
        LinkPlan(
            index=index,
            name=f"{source}.out -> {target}.in",
            source=source,
            out="out",
            target=target,
            into="in",
            producers=counts[source],
            consumers=counts[target],
            **{**usual, **facts},
        )
        for index, (source, target, facts) in enumerate(links)
    ]
    return Plan("trial", "/trial.yaml", nodes, made, ["nodes"])


NODES = [node("read"), node("work", 2), node("count", 2, stateful=True), node("show")]
KEYED = {"route": "key"}
LINKS: list[tuple[str, str, dict[str, Any]]] = [
    ("read", "work", {}),
    ("work", "count", KEYED),
    ("count", "show", {}),
]
BASE = plan(NODES, LINKS)


def where(name: str, **facts: Any) -> list[NodePlan]:
    return [replace(one, **facts) if one.name == name else one for one in NODES]


# ---------------------------------------------------------------------------- scaling


def test_scaling_changes_both_ends_of_links_and_the_version_of_maps() -> None:
    new = scaled(BASE, {"count": 5, "work": 3})
    assert [one.replicas for one in new.nodes] == [1, 3, 5, 1]
    sizes = [(one.producers, one.consumers, one.version) for one in new.links]
    assert sizes == [(1, 3, 0), (3, 5, 1), (5, 1, 0)]
    again = scaled(new, {"work": 1})
    assert [one.version for one in again.links] == [0, 1, 0], "the map is the same"


@pytest.mark.parametrize(
    ("replicas", "text", "hint"),
    [
        ({"wrok": 2}, "there is no node wrok in trial", "did you mean 'work'?"),
        ({"work": 0}, "work cannot have 0 replicas, but 1 to 1,000", "flowkit stop work"),
        ({"work": 1001}, "work cannot have 1001 replicas", ""),
        ({"read": 2}, "read is a source: its replicas share the work", "drain"),
        ({"count": 3}, "count keeps state by key", "--lose-state"),
    ],
)
def test_what_cannot_be_scaled(replicas: dict[str, int], text: str, hint: str) -> None:
    ((said, helped),) = refusals(BASE, replicas, lose_state=False)
    assert said.startswith(text) and hint in helped


def test_all_that_forbids_it_is_said() -> None:
    found = refusals(BASE, {"read": 3, "count": 1, "nobody": 2, "work": 3}, lose_state=False)
    assert len(found) == 3
    assert len(refusals(BASE, {"read": 3, "count": 1}, lose_state=True)) == 1
    assert not refusals(BASE, {"read": 1, "count": 2, "work": 7}, lose_state=False)


@pytest.mark.parametrize(("route", "allowed"), [("balance", True), ("key", False)])
def test_durable_links_bind_their_ends(route: str, allowed: bool) -> None:
    durable = {"durable": True, "route": route}
    with_journal = plan(NODES, [("read", "work", {}), ("work", "show", durable)])
    ((text, _),) = refusals(with_journal, {"work": 3}, lose_state=False)
    assert "each replica of work keeps a journal" in text
    assert bool(refusals(with_journal, {"show": 2}, lose_state=False)) is not allowed


# ---------------------------------------------------------------------------- reloading


def test_nothing_has_changed() -> None:
    found = changes(BASE, replace(BASE))
    assert not found and not found.lines() and not found.refusals and not found.whole


@pytest.mark.parametrize(
    ("facts", "what", "renewed"),
    [
        ({"settings": {"top": 3}}, ["with"], True),
        ({"env": {"A": "b"}, "watchdog": 5.0}, ["env", "watchdog"], True),
        ({"use": "others:Work"}, ["use"], True),
        ({"on_error": ErrorPolicy(3)}, ["on_error"], True),
        ({"restart": RestartPlan(max=9)}, ["restart"], False),
    ],
)
def test_a_node_changes(facts: dict[str, Any], what: list[str], renewed: bool) -> None:
    found = changes(BASE, plan(where("work", **facts), LINKS))
    assert found.changed == {"work": what}
    assert found.renewed == ({"work"} if renewed else set())
    assert found.whole is renewed and not found.refusals
    assert found.lines()[0] == f"~ node work: {', '.join(what)}"


def test_replicas_change_as_with_scale() -> None:
    found = changes(BASE, plan(where("work", replicas=5), LINKS))
    assert found.lines() == ["~ node work: replicas 2 -> 5"]
    assert not found.whole
    assert [one.index for one in found.plan.links] == [0, 1, 2]
    (refused,) = changes(BASE, plan(where("count", replicas=5), LINKS)).refusals
    assert "count keeps state by key" in refused[0]


def test_links_that_stay_keep_their_numbers_and_others_get_new_ones() -> None:
    nodes = [*NODES, node("audit")]
    links = [("work", "audit", {}), LINKS[2], LINKS[1], ("read", "work", {"window": 7})]
    found = changes(scaled(BASE, {"count": 3}), plan(nodes, links), lose_state=True)
    assert found.lines() == [
        "+ node audit",
        "~ node count: replicas 3 -> 2",
        "+ link work.out -> audit.in",
        "~ link read.out -> work.in: window",
        "restarted at rest: read, work",
    ]
    numbers = {one.name: (one.index, one.version) for one in found.plan.links}
    assert numbers == {
        "work.out -> audit.in": (3, 0),
        "count.out -> show.in": (2, 0),
        "work.out -> count.in": (1, 2),
        "read.out -> work.in": (4, 0),
    }


def test_a_number_that_a_link_once_had_is_never_given_again() -> None:
    shorter = plan(NODES, LINKS[:2])
    removed = changes(BASE, shorter)
    assert removed.lines()[0] == "- link count.out -> show.in"
    assert {one.name for one in removed.plan.nodes} == {"read", "work", "count", "show"}
    (text, _) = removed.refusals[0]
    assert "count keeps state in memory, and would be started anew" in text
    former = [BASE.links[2]]
    back = changes(removed.plan, BASE, former, lose_state=True)
    assert back.plan.links[2].index == 3 and not back.refusals


def test_what_cannot_be_reloaded() -> None:
    durable = plan(NODES, [*LINKS, ("work", "show", {"durable": True})])
    other = replace(BASE, project="other")
    source = plan(where("read", use="others:Read"), LINKS)
    for new, text in (
        (durable, "work.out -> show.in is durable, and its journals are open"),
        (other, "the file is of project other, and trial is what runs"),
        (source, "read is another source now"),
        (plan(where("read", replicas=2), LINKS), "read is a source"),
    ):
        assert any(said.startswith(text) for said, _ in changes(BASE, new).refusals), text


def test_a_node_that_binds_is_not_scaled_and_one_whose_endpoints_change_is_renewed() -> None:
    listens = EndpointPlan("PULL", ["tcp://127.0.0.1:5555"], bind=True, into="x")
    before = plan([node("a"), node("b", endpoints=[listens])], [])
    ((text, hint),) = refusals(before, {"b": 2}, False)
    assert "binds tcp://127.0.0.1:5555" in text and "connect" in hint
    connects = replace(listens, bind=False)
    after = replace(before, nodes=[before.nodes[0], replace(before.nodes[1], endpoints=[connects])])
    found = changes(before, after)
    assert found.renewed == {"b"} and found.changed == {"b": ["endpoints"]}
    assert not refusals(after, {"b": 2}, False)


def test_the_number_of_a_foreign_link_is_its_name_s_and_no_other_link_s() -> None:
    listens = EndpointPlan("REP", ["ipc:///a"], bind=True, into="x", out="y")
    links = foreign_links([node("a", endpoints=[listens])])
    assert [link.name for link in links] == ["REP ipc:///a -> a.x", "a.y -> REP ipc:///a"]
    assert all(link.index < -1 for link in links)
    assert links[0].index != links[1].index
    assert links == foreign_links([node("z"), node("a", endpoints=[listens])])
