"""Scalars, variables, names: what text in a topology file means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.topology import names
from flowkit.topology.check import check
from flowkit.topology.facts import Inspection
from flowkit.topology.loader import load
from flowkit.topology.model import Topology
from flowkit.topology.render import as_text, in_order
from flowkit.topology.values import resolve, surprise


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("-12", -12),
        ("0x1F", 31),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("text", "text"),
        ("1.2.3", "1.2.3"),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("9" * 500, "9" * 500),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    assert resolve(text) == value and type(resolve(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("no", "false"),
        ("On", "true"),
        ("22:22", "1342"),
        ("-1:30", "-90"),
        ("1:30:15.5", "5415.5"),
        ("0777", "511"),
        ("0899", "899"),
        ("1_000", "1000"),
    ],
)
def test_surprises(text: str, written: str) -> None:
    found = surprise(text)
    assert found is not None and found[2] == written
    assert text in found[0] and f'"{text}"' in found[1]


@pytest.mark.parametrize("text", ["nothing", "0", "0.5", "12:99", "a:1", "1.0.0", "none", "-", "_"])
def test_no_surprises(text: str) -> None:
    assert surprise(text) is None


def read(tmp_path: Path, value: str, **environ: str) -> tuple[Any, list[str]]:
    path = tmp_path / "t.yaml"
    path.write_text(f"flowkit: 1\nnodes:\n  a: {{use: m:C, with: {{v: {value}}}}}\n")
    topology, problems = load(str(path), environ)
    assert isinstance(topology, Topology)
    return topology.nodes["a"].with_.get("v"), [problem.message for problem in problems]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"${A}"', "one"),
        ('"${A} and ${A}"', "one and one"),
        ('"${NONE:-two}"', "two"),
        ('"${EMPTY:-two}"', "two"),
        ('"${EMPTY}"', ""),
        ('"${NONE:-}"', ""),
        ('"${NONE:-a:-b}"', "a:-b"),
        ('"$${A}"', "${A}"),
        ('"$$$${A}"', "$${A}"),
        ("$A", "$A"),
        ("'cost: 5$'", "cost: 5$"),
        ('"${A:?needed}"', "one"),
    ],
)
def test_variables(tmp_path: Path, value: str, expected: str) -> None:
    assert read(tmp_path, value, A="one", EMPTY="") == (expected, [])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"${NONE}"', "variable 'NONE' is not set"),
        ('"${NONE:?say who}"', "variable 'NONE' is not set: say who"),
        ('"${EMPTY:?say who}"', "variable 'EMPTY' is not set: say who"),
        ('"${1}"', "'${1}' is no reference to a variable"),
        ('"${A-b}"', "'${A-b}' is no reference to a variable"),
    ],
)
def test_variables_that_are_not_there(tmp_path: Path, value: str, message: str) -> None:
    assert read(tmp_path, value, A="one", EMPTY="")[1] == [message]


def test_a_value_does_not_inject_yaml(tmp_path: Path) -> None:
    nasty = 'x"}}\nnodes: {evil: {use: os:system}}'
    assert read(tmp_path, '"${A}"', A=nasty) == (nasty, [])
    assert read(tmp_path, '"${A}"', A="${B}", B="b") == ("${B}", [])


def test_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "flowkit: 1\n"
        "x-a: &a {replicas: 3, watchdog: 5s}\n"
        "x-b: &b {replicas: 4, use: m:D}\n"
        "nodes:\n"
        "  one: {<<: *a, use: m:C}\n"
        "  two: {<<: [*a, *b]}\n"
    )
    topology, problems = load(str(path), {})
    assert topology is not None and not problems
    one, two = topology.nodes["one"], topology.nodes["two"]
    assert (one.use, one.replicas, one.watchdog) == ("m:C", 3, 5.0)
    assert (two.use, two.replicas) == ("m:D", 3)


def test_unused_anchors_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text('flowkit: 1\nx-a: {b: "${NONE}", c: no}\nnodes: {a: {use: m:C}}\n')
    assert load(str(path), {})[1] == []


@given(st.text(max_size=80))
def test_names(name: str) -> None:
    assert names.valid(name) is (names.complaint(name) == "")
    assert "\0" not in names.hint(name) + names.shown(name)


@given(content=st.binary(max_size=200))
def test_any_bytes_give_problems_and_no_exception(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    topology, problems = load(str(path), {})
    assert topology is not None or problems


YAML = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=10)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["flowkit", "project", "include", "env", "nodes", "links"]
NODE_KEYS = ["use", "with", "replicas", "restart", "on_error", "watchdog", "env", "external"]
LINK_KEYS = ["from", "to", "pattern", "route", "by", "window", "codec", "transport", "delivery"]


@given(
    top=st.dictionaries(st.sampled_from(KEYS), YAML, max_size=4),
    node=st.dictionaries(st.sampled_from(NODE_KEYS), YAML, max_size=4),
    link=st.dictionaries(st.sampled_from(LINK_KEYS), YAML, max_size=4),
)
def test_any_values_give_problems_and_no_exception(
    top: dict[str, Any],
    node: dict[str, Any],
    link: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    path.write_text(json.dumps({"nodes": {"a": node}, "links": [link], **top}))
    topology, problems = load(str(path), {})
    if topology is not None:
        problems += check(topology, Inspection())
    for problem in in_order(problems):
        assert problem.code and as_text(problem)
