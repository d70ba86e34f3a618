"""The graph checks on their own: pure, with what the classes declare handed in."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowkit.topology.check import check
from flowkit.topology.facts import ChannelFacts, ClassFacts, Inspection
from flowkit.topology.loader import load


def facts(inputs: str = "", outputs: str = "") -> ClassFacts:
    return ClassFacts(
        use="a:B",
        doc="",
        inputs=[ChannelFacts(name, "str") for name in inputs.split()],
        outputs=[ChannelFacts(name, "str") for name in outputs.split()],
        settings=[],
        stateful=False,
        positions=False,
        source=not inputs,
    )


CLASSES = {
    "a": facts("", "out"),
    "b": facts("in", "out"),
    "c": facts("in", "out"),
    "d": facts("in", "out"),
    "e": facts("in"),
}
USED = (
    "flowkit: 1\nnodes: {a: {use: m:A}, b: {use: m:B}, c: {use: m:B}, d: {use: m:B}, e: {use: m:E}}"
)


def found(tmp_path: Path, *links: str, classes: dict[str, ClassFacts] | None = None) -> list[str]:
    path = tmp_path / "t.yaml"
    items = "".join(f"\n  - {{from: {one.split()[0]}, to: {one.split()[1]}}}" for one in links)
    path.write_text(f"{USED}\nlinks:{items}\n")
    topology, problems = load(str(path), {})
    assert topology is not None and not problems
    answers = Inspection(classes=CLASSES if classes is None else classes)
    return [f"{one.code} {one.message}" for one in check(topology, answers)]


CHAIN = ("a.out b.in", "b.out c.in", "c.out d.in", "d.out e.in")


def test_a_chain_is_fine(tmp_path: Path) -> None:
    assert found(tmp_path, *CHAIN) == []


def test_a_diamond_is_fine(tmp_path: Path) -> None:
    links = ("a.out b.in", "a.out c.in", "b.out d.in", "c.out d.in", "d.out e.in")
    assert found(tmp_path, *links) == []


@pytest.mark.parametrize(
    ("back", "cycle"),
    [
        ("c.out b.in", "b -> c -> b"),
        ("d.out b.in", "b -> c -> d -> b"),
        ("d.out c.in", "c -> d -> c"),
    ],
)
def test_cycles(tmp_path: Path, back: str, cycle: str) -> None:
    assert found(tmp_path, *CHAIN, back) == [f"E205 the links form a cycle: {cycle}"]


def test_two_cycles_are_two_problems(tmp_path: Path) -> None:
    problems = found(tmp_path, *CHAIN, "c.out b.in", "d.out c.in")
    assert [one[:4] for one in problems] == ["E205", "E205"]


def test_a_long_chain_needs_no_recursion(tmp_path: Path) -> None:
    count = 3000
    path = tmp_path / "long.yaml"
    nodes = "\n".join(f"  n{i}: {{use: m:B}}" for i in range(count))
    links = "\n".join(f"  - {{from: n{i}.out, to: n{i + 1}.in}}" for i in range(count - 1))
    path.write_text(f"flowkit: 1\nnodes:\n{nodes}\nlinks:\n{links}\n")
    topology, problems = load(str(path), {})
    assert topology is not None and not problems
    assert check(topology, Inspection()) == []


def test_unknown_classes_hide_nothing_else(tmp_path: Path) -> None:
    assert found(tmp_path, "a.out b.in", "x.out b.what", classes={}) == [
        "E201 link from unknown node 'x'"
    ]


def test_a_misspelt_node_is_not_also_unconnected(tmp_path: Path) -> None:
    long = {"parse": facts("in", "out")}
    path = tmp_path / "t.yaml"
    path.write_text(
        "flowkit: 1\nnodes: {parse: {use: m:B}}\nlinks: [{from: prase.out, to: pase.in}]"
    )
    topology, _ = load(str(path), {})
    assert topology is not None
    codes = [one.code for one in check(topology, Inspection(classes=long))]
    assert codes == ["E201", "E201"]


def test_too_many_replicas(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    nodes = ", ".join(f"n{i}: {{use: m:B, replicas: 1000}}" for i in range(66))
    path.write_text(f"flowkit: 1\nnodes: {{{nodes}}}")
    topology, _ = load(str(path), {})
    assert topology is not None
    [problem] = check(topology, Inspection())
    assert problem.code == "E107" and "66,000 replicas" in problem.message


def test_keys_of_processes_have_no_meaning_where_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "flowkit: 1\nnodes:\n"
        "  a: {use: m:A, external: true, with: {x: 1}, env: {X: y}, watchdog: 5s}\n"
        "  e: {use: m:E, external: true, restart: {max: 1}, blocked: 1s, replicas: 2}\n"
        "links: [{from: a.out, to: e.in}]\n"
    )
    topology, problems = load(str(path), {})
    assert topology is not None and not problems
    told = [(one.line, one.code, one.message) for one in check(topology, Inspection(CLASSES))]
    why = {
        "with": "the application builds the node",
        "env": "the application has an environment of its own",
        "restart": "the application starts itself",
        "blocked": "the application watches its own loop",
    }
    lines = {"with": 3, "env": 3, "restart": 4, "blocked": 4}
    assert told == [
        (lines[key], "E115", f"'{key}' has no meaning with external: {text}")
        for key, text in why.items()
    ]
