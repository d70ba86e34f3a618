"""A topology in a test: what is put in its sources' place, what is kept, and what harm does."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from flowkit.errors import HarnessError, TopologyError
from flowkit.runtime.planning import load_plan
from flowkit.testing import TopologyHarness, run_topology, stand_ins
from flowkit.topology.plan import Plan
from tests.testing.words import TOPOLOGY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The topology, read and checked once."""
    path = tmp_path_factory.mktemp("plan") / "words.yaml"
    path.write_text(TOPOLOGY)
    return load_plan(str(path), {}, str(ROOT))


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words.yaml"
    path.write_text(TOPOLOGY)
    return str(path)


def test_a_topology_runs_from_what_it_is_given(words: str) -> None:
    before = {name for name in vars(stand_ins) if name.startswith("StandIn")}
    channels = ["read.lines", "split.words", "count.totals"]
    run = run_topology(words, inputs={"read.lines": ["a b a", "b a c"]}, channels=channels)
    assert run.sent("read.lines") == ["a b a", "b a c"]
    assert sorted(run.sent("split.words")) == ["a", "a", "a", "b", "b", "c"]
    assert run.sent("count.totals") == [{"a": 3, "b": 2}]
    assert run.metas("split.words")[0].headers == {"n": "1"}
    report = run.report()
    assert report.exit == 0 and [link.name for link in report.links] == [
        "read.lines -> split.lines",
        "split.words -> count.words",
        "count.totals -> show.totals",
    ]
    assert {node.node for node in report.nodes} == {"read", "split", "count", "show"}
    assert {name for name in vars(stand_ins) if name.startswith("StandIn")} == before


def test_a_topology_runs_as_it_is(words: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one two\nthree\n")
    run = run_topology(
        words,
        channels=["read.lines"],
        settings={"count": {"top": 1}},
        env={"TEXT": str(tmp_path / "text")},
    )
    assert run.sent("read.lines") == ["one two\n", "three\n"]


def test_a_part_of_a_topology_runs_alone(plan: Plan) -> None:
    run = run_topology(plan, inputs={"count.words": ["x", "y", "x"]}, channels=["count.totals"])
    assert run.sent("count.totals") == [{"x": 2, "y": 1}]
    assert {node.node for node in run.report().nodes} == {"count", "show"}


def test_messages_that_are_given_up_fail_the_test(plan: Plan) -> None:
    inputs = {"read.lines": ["a", "b!"]}
    with pytest.raises(HarnessError) as caught:
        run_topology(plan, inputs=inputs)
    assert str(caught.value) == (
        "messages were given up:\n  read.lines -> split.lines: ValueError: no b!"
    )
    run = run_topology(plan, inputs=inputs, channels=["split.words"], check=False)
    assert run.sent("split.words") == ["a"] and run.report().exit == 4
    assert [letter.error for letter in run.dead_letters] == ["ValueError: no b!"]


def test_an_endless_one_is_ended_when_the_test_has_seen_enough(tmp_path: Path) -> None:
    path = tmp_path / "endless.yaml"
    path.write_text(
        "flowkit: 1\n"
        "nodes:\n"
        '  endless: {use: "tests.testing.words:Endless"}\n'
        '  sum: {use: "tests.testing.words:Sum"}\n'
        "links: [{from: endless.numbers, to: sum.numbers}]\n"
    )
    channels = ["endless.numbers"]
    enough = run_topology(
        path, channels=channels, until=lambda run: len(run.sent("endless.numbers")) >= 100
    )
    sent = enough.sent("endless.numbers")
    assert sent == list(range(1, len(sent) + 1)) and len(sent) >= 100
    with pytest.raises(HarnessError, match=r"not so after 0\.1 s: running"):
        run_topology(path, channels=channels, timeout=0.1)


def test_harm_costs_nothing(plan: Plan) -> None:
    lines = [f"w{number % 7} x{number % 3}" for number in range(3000)]

    async def harm(run: TopologyHarness) -> None:
        run.delay(0.001)
        await run.until(lambda: len(run.sent("split.words")) > 100)
        run.kill("split.0")
        assert run.cut("split.words -> count.words") > 0
        run.delay(0.0)

    run = run_topology(
        plan,
        inputs={"read.lines": lines},
        channels=["split.words", "count.totals"],
        settings={"count": {"top": 100}},
        during=harm,
    )
    words_sent = [word for line in lines for word in line.split()]
    assert sorted(run.sent("split.words")) == sorted(words_sent)
    (totals,) = run.sent("count.totals")
    assert totals == {word: words_sent.count(word) for word in set(words_sent)}
    assert {one.node: one.restarts for one in run.report().nodes if one.replica == 0}["split"] == 1


def test_in_a_coroutine(plan: Plan) -> None:
    async def test() -> None:
        inputs = {"split.lines": ["a b"] * 10}
        async with TopologyHarness(plan, inputs=inputs, channels=["split.words"]) as run:
            await run.until(lambda: len(run.sent("split.words")) == 20)
            report = await run.stop()
        assert report.exit == 0 and len(run.sent("split.words")) == 20

    asyncio.run(test())


def test_what_fails_is_said(plan: Plan) -> None:
    with pytest.raises(HarnessError) as caught:
        run_topology(plan)  # there is no file "nothing"
    assert "the topology has failed: read.0 was given up" in str(caught.value)
    assert "read.lines -> split.lines: 0 sent, 0 done" in str(caught.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "node": (
        {"inputs": {"reed.lines": []}},
        "'reed.lines' is no channel: there is no node 'reed'; did you mean 'read'?",
    ),
    "channel": (
        {"channels": ["split.word"]},
        "'split.word' is no channel: 'split' has no 'word'; did you mean 'words'?",
    ),
    "no dot": (
        {"channels": ["split"]},
        "'split' is no channel: write node.channel; 'split' has 'lines', 'words'",
    ),
    "an input to keep": (
        {"channels": ["count.words"]},
        "'count.words' is an input: outputs are kept; keep split.words",
    ),
    "the output of a node in the middle": (
        {"inputs": {"split.words": []}},
        "'split.words' is sent by a node that has inputs; give them to count.words",
    ),
    "settings": (
        {"settings": {"counts": {}}},
        "there is no node 'counts'; did you mean 'count'?",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said_in_one_line(name: str, plan: Plan) -> None:
    options, text = WRONG[name]
    with pytest.raises(HarnessError) as caught:
        run_topology(plan, **options)
    assert str(caught.value) == text


def test_wrong_names_while_it_runs(plan: Plan) -> None:
    async def wrong(run: TopologyHarness) -> None:
        for ask, text in {
            lambda: run.kill("split.7"): "there is no replica 'split.7'; did you mean 'split.",
            lambda: run.cut("a -> b"): "there is no link 'a -> b'",
            lambda: run.sent("split.words"): "'split.words' is not on record; ask for it",
        }.items():
            with pytest.raises(HarnessError) as caught:
                ask()
            assert str(caught.value).startswith(text)

    run_topology(plan, inputs={"read.lines": []}, during=wrong)
    with pytest.raises(HarnessError, match="it does not run yet: async with"):
        TopologyHarness(plan).kill("split.0")


def test_a_topology_with_problems_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(TOPOLOGY.replace("split.words,", "split.wrds,"))
    with pytest.raises(TopologyError, match="wrds"):
        run_topology(path)


# ---------------------------------------------------------------------------- the plugin

TEST = """
import sys

from tests.testing.words import Split


def test_nothing_is_imported_that_is_not_used(request):
    assert request.config.pluginmanager.hasplugin("flowkit.testing.plugin")
    assert not {"tornado", "zmq", "yaml", "pydantic", "flowkit.supervisor"} & set(sys.modules)


def test_a_node(node_harness):
    assert node_harness(Split()).feed("lines", "a b").sent("words") == ["a", "b"]
    assert "flowkit.supervisor" not in sys.modules


def test_a_topology(topology):
    run = topology("words.yaml", inputs={"read.lines": ["a"]}, channels=["count.totals"])
    assert run.sent("count.totals") == [{"a": 1}]
"""


def test_the_plugin_has_the_fixtures(tmp_path: Path, words: str) -> None:
    import subprocess

    (tmp_path / "test_words.py").write_text(TEST)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "flowkit.testing.plugin", "-p", "no:xdist", "-p", "no:hypothesispytest"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_plugin_is_found_by_pytest() -> None:
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options.entry_points"]["pytest11"].strip() == (
        "flowkit.testing.plugin = flowkit.testing.plugin"
    )
