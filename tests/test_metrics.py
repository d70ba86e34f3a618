"""The verdict: what limits the flow, and what is said about it.

`situations/` has some that were recorded in real runs, by `tests/e2e/test_verdicts.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.metrics import EARLY, IDLE, LinkShare, NodeShare, Situation, Verdict, verdict

RECORDED = Path(__file__).parent / "situations"


def source(name: str = "read", busy: float = 0.0, waiting: float = 0.0, **more: Any) -> NodeShare:
    return NodeShare(name, [busy], [waiting], source=True, **more)


def worker(name: str, *busy: float, waiting: float = 0.0, **more: Any) -> NodeShare:
    return NodeShare(name, list(busy), [waiting] * len(busy), **more)


def link(ends: str, full: float = 0.0, **more: Any) -> LinkShare:
    before, after = ends.split(" -> ")
    return LinkShare(before, after, f"{before}.out -> {after}.in", full=full, **more)


def judge(*parts: NodeShare | LinkShare, cores: int = 0) -> Verdict:
    nodes = [part for part in parts if isinstance(part, NodeShare)]
    links = [part for part in parts if isinstance(part, LinkShare)]
    return verdict(Situation(nodes, links, cores))


# ---------------------------------------------------------------------------- recorded


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("slow_node", "bottleneck: parse (busy 90 %; read waited 100 % of the time) - "
                      "try: scale parse"),
        ("slow_sink", "bottleneck: store (busy 96 %; parse waited 99 % of the time) - "
                      "try: scale store, or write many at once: In(..., batch=)"),
        ("slow_stateful", "bottleneck: count (busy 96 %; read waited 99 % of the time) - "
                          "try: scale count, with route: key on its input, or make its handler "
                          "faster"),
        ("skewed_key", "bottleneck: count (busy 97 %; mark waited 94 % of the time) - "
                       "try: a finer key: count.0 gets 97 % of the messages of count, and more "
                       "replicas would not change that"),
        ("slow_fetch", "bottleneck: fetch (busy 97 %; read waited 95 % of the time) - "
                       "try: scale fetch, or raise concurrency= of its input (100)"),
        ("small_window", "bottleneck: read.numbers -> fetch.numbers (read waited 90 % of the time)"
                         " - try: raise its window (8): fetch could take more"),
        ("lossy", "bottleneck: show (busy 96 %) - try: scale show, or write many at once: "
                  "In(..., batch=); meanwhile read.numbers -> show.numbers drops 13k a second"),
        ("idle_source", "nothing limits: read waits for its input"),
    ],
)  # fmt: skip
def test_a_recorded_situation(name: str, said: str) -> None:
    situation = msgspec.json.decode((RECORDED / f"{name}.json").read_bytes(), type=Situation)
    assert verdict(situation).text == said


# ---------------------------------------------------------------------------- which node


def test_the_busiest_node_is_the_bottleneck() -> None:
    said = judge(
        source(waiting=0.9),
        worker("split", 0.97123),
        worker("count", 0.3),
        link("read -> split", 0.9),
        link("split -> count"),
    )
    assert said == Verdict("split", 0.9712, "scale split", "handler", "read", 0.9)


def test_who_hands_the_waiting_on_is_not_the_bottleneck() -> None:
    said = judge(
        source(waiting=1.0),
        worker("parse", 0.35, waiting=0.61),
        worker("store", 0.97),
        link("read -> parse", 0.95),
        link("parse -> store", 0.61),
    )
    assert said.text == (
        "bottleneck: store (busy 97 %; parse waited 61 % of the time) - try: scale store"
    )


def test_a_node_that_is_busy_most_of_the_time_limits_if_it_is_waited_for() -> None:
    nodes = [source(busy=0.7, waiting=0.3), worker("split", 0.7)]
    assert judge(*nodes, link("read -> split", 0.3)).bottleneck == "split"


def test_a_node_that_keeps_up_with_its_source_does_not_limit() -> None:
    nodes = [source(busy=1.0, cpu=[0.1]), worker("split", 0.7, cpu=[0.6])]
    assert judge(*nodes, link("read -> split")).kind == "input"


def test_a_node_that_keeps_up_with_a_source_that_sleeps_does_not_limit() -> None:
    nodes = [source(busy=0.05, awaiting=0.9), worker("split", 0.7, cpu=[0.6])]
    said = judge(*nodes, link("read -> split"))
    assert said == Verdict(None, 0.0, "nothing limits: read waits for its input", "input")


def test_a_node_that_is_at_its_limit_is_one_before_anybody_waits() -> None:
    nodes = [source(busy=1.0, cpu=[0.1]), worker("split", 0.95)]
    said = judge(*nodes, link("read -> split"))
    assert said.text == "bottleneck: split (busy 95 %) - try: scale split"


def test_what_is_left_when_the_source_has_ended_limits() -> None:
    assert judge(source(busy=0.1), worker("split", 0.7), link("read -> split")).kind == "sink"


def test_a_pool_is_as_busy_as_its_replicas_are_together() -> None:
    nodes = [source(waiting=0.9), worker("pool", 1.0, 0.1, 0.1), worker("next", 0.65)]
    said = judge(*nodes, link("read -> pool", 0.2), link("pool -> next", 0.5))
    assert said.bottleneck == "next"


# ---------------------------------------------------------------------------- what helps


def test_a_stateful_node_cannot_just_be_scaled() -> None:
    nodes = [source(), worker("count", 0.9, stateful=True)]
    said = judge(*nodes, link("read -> count", 0.9))
    assert said.advice == "scale count, with route: key on its input, or make its handler faster"
    keyed = judge(*nodes, link("read -> count", 0.9, route="key"))
    assert keyed.advice == "scale count"


def test_a_key_that_most_messages_have() -> None:
    count = worker("count", 0.97, 0.02, 0.03, 0.02, rate=[930.0, 20.0, 30.0, 20.0], stateful=True)
    said = judge(source(waiting=0.9), count, link("read -> count", 0.9, route="key"))
    assert (said.kind, said.bottleneck, said.busy) == ("skew", "count", 0.97)
    assert said.advice == (
        "a finer key: count.0 gets 93 % of the messages of count, and more replicas would not "
        "change that"
    )


def test_a_key_whose_messages_take_longer() -> None:
    count = worker("count", 0.02, 0.97, 0.03, rate=[100.0, 90.0, 110.0])
    said = judge(source(waiting=0.9), count, link("read -> count", 0.9, route="key"))
    assert said.kind == "skew" and "some keys, all in count.1, take longer" in said.advice


def test_keys_that_are_spread_are_no_reason() -> None:
    count = worker("count", 0.97, 0.8, 0.75, rate=[40.0, 33.0, 30.0])
    said = judge(source(waiting=0.9), count, link("read -> count", 0.9, route="key"))
    assert (said.kind, said.advice) == ("sink", "scale count")


def test_a_pool_is_never_skewed() -> None:
    pool = worker("pool", 0.99, 0.4, rate=[1.0, 99.0])
    assert judge(source(waiting=0.9), pool, link("read -> pool", 0.9)).kind == "sink"


def test_a_node_that_gets_everything_shares_nothing_with_its_replicas() -> None:
    found = judge(
        worker("audit", 0.99), link("feed -> audit", route="broadcast"), worker("feed", 0.1)
    )
    assert (found.bottleneck, found.advice) == ("audit", "make its handler faster")


def test_who_waits_for_answers_is_not_what_limits() -> None:
    found = judge(
        source("read", waiting=0.9),
        worker("client", 0.1),
        worker("broker", 0.01),
        worker("server", 0.3, 0.4),
        link("read -> client", 0.9),
        link("client -> broker", asks=True),
        link("broker -> server", asks=True),
    )
    assert (found.bottleneck, found.kind) == ("server", "overhead")


def test_one_replica_of_a_broadcast_that_is_slower() -> None:
    show = worker("show", 0.1, 0.98, rate=[50.0, 50.0])
    said = judge(source(waiting=0.9), show, link("read -> show", 0.9, route="broadcast"))
    assert "why show.1 is slower than its siblings" in said.advice


def test_a_sink_that_waits_for_something_outside() -> None:
    asleep = worker("store", 0.95, cpu=[0.05])
    said = judge(source(waiting=0.9), asleep, link("read -> store", 0.9))
    assert said.advice == "scale store, or write many at once: In(..., batch=)"
    lists = worker("store", 0.95, cpu=[0.05], lists=500)
    assert judge(lists, link("read -> store", 0.9)).advice == "scale store"
    awake = worker("store", 0.95, cpu=[0.9])
    assert judge(awake, link("read -> store", 0.9)).advice == "scale store"


def test_a_sink_that_commits_most_of_the_time() -> None:
    store = worker("store", 0.95, cpu=[0.05], committing=0.9)
    windowed = link("read -> store", 0.9, by_window=0.9, window=64)
    assert judge(store, windowed).advice == (
        "scale store, or let each commit() cover more: raise the window of read.out -> store.in "
        "(64)"
    )
    assert judge(store, link("read -> store", 0.9)).advice == (
        "scale store, or make its commit() faster"
    )


def test_no_core_is_free() -> None:
    nodes = [source(cpu=[0.2]), worker("split", 0.9, 0.9, cpu=[0.85, 0.85])]
    said = judge(*nodes, link("read -> split", 0.9), cores=2)
    assert (said.kind, said.bottleneck) == ("cores", "split")
    assert said.advice == "make its handler faster, or give it more cores: all are in use"
    assert judge(*nodes, link("read -> split", 0.9), cores=8).kind == "sink"


def test_the_system_says_that_no_core_is_free() -> None:
    starved = worker("split", 0.9, cpu=[0.5], starved=[0.4])
    assert judge(starved, link("read -> split", 0.9), cores=64).kind == "cores"


def test_who_sleeps_needs_no_core() -> None:
    nodes = [source(cpu=[1.0]), worker("split", 0.9, cpu=[0.01]), worker("other", 0.1, cpu=[1.0])]
    assert judge(*nodes, link("read -> split", 0.9), cores=2).kind == "sink"


def test_what_a_lossy_link_loses_is_said_as_well() -> None:
    lossy = link("read -> show", dropping=1234.0)
    said = judge(source(busy=0.5), worker("show", 0.97, cpu=[0.9]), lossy)
    assert said.advice == "scale show; meanwhile read.out -> show.in drops 1.2k a second"


# ---------------------------------------------------------------------------- links and sources


def test_a_window_that_is_too_small() -> None:
    nodes = [source(waiting=0.9), worker("fetch", 0.1)]
    said = judge(*nodes, link("read -> fetch", 0.9, by_window=0.9, window=16))
    assert (said.kind, said.bottleneck) == ("window", "read.out -> fetch.in")
    assert said.advice == "raise its window (16): fetch could take more"


def test_the_cause_is_the_last_link_that_is_held_up() -> None:
    nodes = [source(waiting=0.9), worker("a", 0.1, waiting=0.8), worker("b", 0.2)]
    said = judge(*nodes, link("read -> a", 0.9, by_window=0.9), link("a -> b", 0.8))
    assert (said.kind, said.bottleneck, said.waits) == ("overhead", "b", "a")


def test_a_source_that_reads_all_the_time_limits() -> None:
    reading = source("slow", busy=0.9, waiting=0.1)
    said = judge(reading, source("fast", busy=0.5, waiting=0.5), worker("split", 0.4))
    assert (said.kind, said.bottleneck, said.busy) == ("source", "slow", 0.9)
    assert said.advice.startswith("everything waits for slow to read its input: make read() faster")


def test_a_source_that_waits_for_its_input_does_not() -> None:
    said = judge(source(busy=1.0, cpu=[0.02]), worker("split", 0.1))
    assert said == Verdict(None, 0.0, "nothing limits: read waits for its input", "input")
    assert judge(source(busy=1.0, cpu=[0.98]), worker("split", 0.1)).kind == "source"
    said = judge(source("slow", busy=0.9), source("idle", awaiting=1.0), worker("split", 0.1))
    assert (said.kind, said.bottleneck) == ("source", "slow")
    assert judge(source(busy=0.2, waiting=0.5), worker("split", 0.1)) == IDLE


@pytest.mark.parametrize("nodes", [[], [source(waiting=1.0)], [worker("idle", 0.0)]])
def test_nothing_limits_when_there_is_nothing_to_do(nodes: list[NodeShare]) -> None:
    assert judge(*nodes) == IDLE
    assert IDLE.text == "nothing limits: there is little to do"


def test_a_node_that_was_stopped() -> None:
    nodes = [source(waiting=0.98), worker("parse", stopped=True), worker("show", 0.0)]
    said = judge(*nodes, link("read -> parse", 0.98), link("parse -> show"))
    assert (said.kind, said.bottleneck) == ("stopped", "parse")
    assert said.text == (
        "bottleneck: parse (stopped; read waited 98 % of the time) - try: flowkit start parse"
    )
    assert judge(*nodes, link("read -> parse", 0.1)).kind != "stopped", "nobody waits for it"


def test_an_external_node_that_has_done_nothing_was_not_there() -> None:
    said = judge(source(), worker("show", 0.0, external=True), link("read -> show", 1.0))
    assert (said.kind, said.advice) == ("absent", "start its application")
    said = judge(source(), worker("show", 0.01, external=True), link("read -> show", 1.0))
    assert said.kind != "absent"


def test_a_node_that_was_just_started_is_not_blamed_for_the_time_before() -> None:
    nodes = [source(busy=0.1), worker("parse", 0.02), worker("count", 0.01, cpu=[0.1])]
    links = [link("read -> parse", 0.5), link("parse -> count", 0.4)]
    assert judge(*nodes, *links).bottleneck == "count"
    nodes[2] = worker("count", 0.01, cpu=[0.1], recent=True)
    assert judge(*nodes, *links) == EARLY
    full = link("parse -> count", 0.4, by_window=0.4, window=8)
    assert judge(*nodes, links[0], full) == EARLY, "nor is the window of its link"
    nodes[2] = worker("count", 0.95, recent=True)
    assert judge(*nodes, *links).kind == "sink", "if it works all the time, it limits"


def test_a_source_that_was_stopped_does_not_wait_for_its_input() -> None:
    said = judge(source(busy=0.1, awaiting=0.7, stopped=True), worker("parse", 0.02))
    assert (said.kind, said.bottleneck) == ("idle", None)
    assert said.text == "nothing limits, but read is stopped: flowkit start read"
    said = judge(source("feed", stopped=True, external=True), worker("parse", 0.02))
    assert said.text == "nothing limits, but feed is absent: start its application"


def test_it_may_be_too_early() -> None:
    assert EARLY.bottleneck is None and EARLY.text == "too early to say what limits"


# ---------------------------------------------------------------------------- whatever it is

share = st.floats(0, 1)
names = st.sampled_from("abcd")
nodes = st.builds(
    NodeShare,
    names,
    busy=st.lists(share, max_size=3),
    waiting=st.lists(share, max_size=3),
    rate=st.just([]),
    cpu=st.lists(share | st.none(), max_size=3),
    source=st.booleans(),
    stateful=st.booleans(),
    concurrency=st.integers(0, 9),
)
links = st.builds(
    LinkShare,
    names,
    names,
    st.sampled_from(["a.out -> b.in", "b.out -> c.in"]),
    route=st.sampled_from(["balance", "key", "broadcast"]),
    full=share,
    by_window=share,
    dropping=st.floats(0, 1e9),
)


@given(
    st.lists(nodes, max_size=5, unique_by=lambda node: node.node),
    st.lists(links, max_size=5),
    st.integers(0, 8),
)
def test_any_verdict_names_what_there_is(
    all_nodes: list[NodeShare], all_links: list[LinkShare], cores: int
) -> None:
    said = verdict(Situation(all_nodes, all_links, cores))
    known = {node.node for node in all_nodes} | {one.name for one in all_links}
    assert said.bottleneck is None or said.bottleneck in known
    assert 0.0 <= said.busy <= 1.0 and 0.0 <= said.waiting <= 1.0
    assert said.advice and "\n" not in said.text
    assert (said.waits is None) == (said.waiting == 0.0)


def test_it_travels() -> None:
    said = Verdict("a", 0.5, "scale a", "handler", "b", 0.25)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=Verdict) == said
