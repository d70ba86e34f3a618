"""Topologies made in Python are those of files: the same model, plan and problems."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import flowkit
from flowkit.errors import Problem, TopologyError
from flowkit.runtime.planning import load_plan
from flowkit.topology.code import Template, Topology, reference
from flowkit.topology.loader import load
from flowkit.topology.model import Topology as Read
from tests.topology.cases import parts

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).parent / "cases"
SHIPPED = [*ROOT.glob("topologies/*.yaml"), *ROOT.glob("examples/*/*.yaml")]
ENVIRON = {"ORDERS": "orders.jsonl"}

CASE = f"{parts.__name__}:"


def facts(read: Read) -> Any:
    """All that a model says."""
    return (
        read.project,
        read.env,
        {name: node.model_dump() for name, node in read.nodes.items()},
        [link.model_dump() for link in read.links],
        [endpoint.model_dump() for endpoint in read.endpoints],
    )


def again(text: str, folder: Path, environ: dict[str, str]) -> Read:
    path = folder / "again.yaml"
    path.write_text(text, encoding="utf-8")
    read, problems = load(str(path), environ)
    assert read is not None and not problems, problems
    return read


# ---------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("path", [*SHIPPED, CASES / "good.yaml"], ids=lambda path: path.name)
def test_a_file_that_is_loaded_and_dumped(path: Path, tmp_path: Path) -> None:
    before, problems = load(str(path), ENVIRON)
    assert before is not None and not problems
    made = Topology.load(path, ENVIRON)
    read, problems = made.read(ENVIRON)
    assert not problems
    assert facts(read) == facts(before)
    text = made.dump()
    assert facts(again(text, tmp_path, ENVIRON)) == facts(before)
    assert Topology.load(tmp_path / "again.yaml", ENVIRON).dump() == text, "it does not change"


def test_what_is_included_and_what_refers_to_variables(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("nodes:\n  b: {use: m:B, replicas: '${N:-2}'}\nlinks: [{from: a.x, to: b.y}]\n")
    main = tmp_path / "main.yaml"
    main.write_text("flowkit: 1\ninclude: [more.yaml]\nnodes: {a: {use: m:A, env: {D: $$5}}}\n")
    made = Topology.load(main)
    text = made.dump()
    assert '"${N:-2}"' in text and "D: $$5" in text and "include" not in text
    read = again(text, tmp_path, {"N": "7"})
    assert (read.nodes["b"].replicas, read.nodes["a"].env) == (7, {"D": "$5"})
    made.node("c", "m:C", {"price": "$5", "n": Template("${N:-2}")}, replicas=Template("${N}"))
    read = again(made.dump(), tmp_path, {"N": "7"})
    assert read.nodes["c"].with_ == {"price": "$5", "n": "7"} and read.nodes["c"].replicas == 7


@pytest.mark.parametrize(
    "path",
    [path for path in SHIPPED if "\ninclude:" not in path.read_text(encoding="utf-8")],
    ids=lambda path: path.name,
)
def test_the_same_calls_make_the_same(path: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))

    def templates(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: templates(one) for key, one in value.items()}
        if isinstance(value, list):
            return [templates(one) for one in value]
        return Template(value) if isinstance(value, str) else value

    made = Topology(data["project"], env=templates(data.get("env", {})))
    for name, node in data["nodes"].items():
        entry = templates(node)
        made.node(name, str(entry.pop("use")), entry.pop("with", None), **entry)
    for link in data.get("links", ()):
        made.link(link.pop("from"), link.pop("to"), **link)
    for endpoint in templates(data.get("endpoints", [])):
        made.endpoint(endpoint.pop("channel"), str(endpoint.pop("socket")), **endpoint)
    before, problems = load(str(path), ENVIRON)
    assert before is not None and not problems
    read, problems = made.read(ENVIRON)
    assert not problems
    assert facts(read) == facts(before)
    assert facts(again(made.dump(), tmp_path, ENVIRON)) == facts(before)


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.sampled_from(["no", "1e3", "0777", "1:30", "${HOME}", "$$", "~", "-", "a: b", "#", "\x85"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(values=st.dictionaries(NAMES, VALUES, max_size=4), env=st.dictionaries(NAMES, st.text()))
def test_any_values_come_back(
    values: dict[str, Any], env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exactly, whatever YAML would like to make of them; but for what no file can hold."""
    made = Topology("trial", env=env)
    made.node("read", "m:C", values, restart={"max": "unlimited"})
    made.link("read.out", ["a.x", "b.y"], window="1MiB")
    read, problems = made.read({})
    assert read.nodes["read"].with_ == values and read.env == env and not problems
    assert facts(again(made.dump(), tmp_path_factory.getbasetemp(), {})) == facts(read)


def test_no_number() -> None:
    made = Topology("trial")
    made.node("read", "m:C", {"x": math.nan, "y": -math.inf})
    read, _ = made.read({})
    assert math.isnan(read.nodes["read"].with_["x"])
    assert read.nodes["read"].with_["y"] == -math.inf


# ---------------------------------------------------------------------------- problems


def test_the_same_problems_and_where_they_are() -> None:
    made = Topology("trial")
    read = made.node(
        "read",
        CASE + "Read",
        {"pth": 1},
        replcas=2,
    )
    made.node("end", parts.End, replicas="3")
    made.link(read.lnes, "ende.given", route="kye")
    found = flowkit.check(made)
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    file = Path("tests") / "topology" / "test_code.py"
    seen = {}
    for problem in found:
        assert Path(problem.path).name == file.name
        assert problem.source == lines[problem.line - 1]
        under = problem.source[problem.column - 1 :][: problem.length]
        seen[problem.code, under] = problem.message
    assert "unknown key 'replcas' in node 'read'" in seen["E102", "replcas"]
    assert "a whole number" in seen["E104", "3"]
    assert "unknown node 'ende'" in seen["E201", "ende"]
    assert "none of balance, key, broadcast" in seen["E107", "kye"]
    text = made.dump()
    assert "replcas: 2" in text and 'replicas: "3"' in text, "what is wrong stays as it was said"


def test_the_same_problems_as_the_file(tmp_path: Path) -> None:
    made = Topology("trial")
    read = made.node("read", CASE + "Read", {"pth": 1}, replcas=2)
    made.node("end", parts.End, replicas="3")
    made.link(read.lnes, "ende.given", route="kye")
    path = tmp_path / "trial.yaml"
    path.write_text(made.dump())

    def said(problems: list[Problem]) -> list[tuple[str, str, str]]:
        return sorted((one.code, one.message, one.hint) for one in problems)

    assert said(flowkit.check(made)) == said(flowkit.check(path))


def test_what_is_wrong_at_once() -> None:
    made = Topology("trial")
    node = made.node("a", "m:C")
    assert (node.name, node.x) == ("a.name", "a.x"), "a channel may have any name"
    with pytest.raises(ValueError, match="there is a node 'a' already"):
        made.node("a", "m:C")
    with pytest.raises(TypeError, match="1 is no key of a topology"):
        made.node("b", "m:C", {"x": {1: 2}})
    with pytest.raises(TypeError, match="cannot be part of a topology"):
        made.node("b", "m:C", {"x": object()})
    for arguments in ((node, "b.x"), ("b.x", node), ("b.x", [node])):
        with pytest.raises(TypeError, match="<node a> is a node: name a channel of it, like a.ch"):
            made.link(*arguments)
    with pytest.raises(TypeError, match="5 is no channel"):
        made.link("a.x", 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'use' is a class or 'package.module:Class', not 5"):
        made.node("b", 5)  # type: ignore[arg-type]

    class Local:
        pass

    with pytest.raises(ValueError, match="Local, which is made by a function"):
        made.node("b", Local)
    read, problems = Topology("no name").read({})
    assert [one.code for one in problems][0] == "E108" and not read.nodes


def test_a_file_with_problems_is_not_loaded() -> None:
    with pytest.raises(TopologyError) as wrong:
        Topology.load(CASES / "y4.yaml")
    assert "did you mean 'project'" in wrong.value.problems[0].hint


# ---------------------------------------------------------------------------- in use


def test_its_plan_is_that_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = ROOT / "topologies" / "quickstart.yaml"
    plan = load_plan(str(path), {}, str(ROOT))
    made = load_plan(Topology.load(path, {}), {}, str(ROOT))
    assert made == plan
    assert "examples.quickstart" in plan.modules


def test_a_class_is_named_as_others_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference(parts.End) == CASE + "End"
    program = ModuleType("__main__")
    program.__file__ = "some/where/service.py"
    monkeypatch.setitem(sys.modules, "__main__", program)
    monkeypatch.setattr(parts.End, "__module__", "__main__")
    assert reference(parts.End) == "service:End"
