"""The JSON Schema agrees with the loader about what a topology file looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flowkit.topology.model import EndpointModel, LinkModel, NodeModel, OnError, Restart, Top
from flowkit.topology.schema import schema

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).parent / "cases"
GOOD = [CASES / "good.yaml", CASES / "inc" / "tail.yaml", *(ROOT / "topologies").glob("*.yaml")]


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema.Draft202012Validator(schema())


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_good_files(path: Path, validator: Any) -> None:
    assert [
        error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))
    ] == []


@pytest.mark.parametrize("name", ["y4", "y6", "y8", "everything"])
def test_bad_files(name: str, validator: Any) -> None:
    data = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8").replace("!!map", ""))
    assert list(validator.iter_errors(data))


def node(**changes: Any) -> dict[str, Any]:
    return {"flowkit": 1, "nodes": {"a": {"use": "m:C", **changes}}}


def link(**changes: Any) -> dict[str, Any]:
    return {**node(), "links": [{"from": "a.out", "to": "b.in", **changes}]}


@pytest.mark.parametrize(
    "data",
    [
        node(replicas=3),
        node(replicas="${N:-3}"),
        node(watchdog="1m30s"),
        node(watchdog=2.5),
        node(blocked="500ms"),
        node(external=True),
        node(external="${OURS:-false}"),
        link(durable=True, fsync="interval:100ms"),
        node(restart={"max": "unlimited"}),
        node(restart={"max": 0, "backoff": 0}),
        node(**{"with": {"any": [1, None]}}),
        node(env={"A": 1}),
        link(to=["b.in", "c.in"]),
        link(window="64MiB"),
        link(route="${ROUTE:-key}", by="user.id"),
        {"flowkit": 1, "include": "other.yaml", "x-any": 1},
    ],
    ids=str,
)
def test_accepted(data: Any, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(data)] == []


@pytest.mark.parametrize(
    "data",
    [
        [],
        {"flowkit": 2},
        {"flowkit": 1, "nodez": {}},
        node(replicas=0),
        node(replicas=1001),
        node(replicas="3"),
        node(replicas=True),
        node(use="no reference"),
        node(watchdog=0),
        node(watchdog="5 parsecs"),
        node(restart={"max": "many"}),
        node(restart={"policy": "sometimes"}),
        node(on_error={"then": "retry"}),
        node(replcas=1),
        node(env={"A": True}),
        {"flowkit": 1, "nodes": {"a/b": {"use": "m:C"}}},
        {"flowkit": 1, "nodes": {"a": {}}},
        link(to=[]),
        link(to="b"),
        link(window=0),
        link(window="64"),
        link(route="random"),
        link(pattern="pubsup"),
        link(codec="xml"),
        link(by="a b"),
        link(topics="a"),
    ],
    ids=str,
)
def test_refused(data: Any, validator: Any) -> None:
    assert list(validator.iter_errors(data))


def test_everything_is_described() -> None:
    document = schema()
    for part, model in {
        "node": NodeModel,
        "link": LinkModel,
        "endpoint": EndpointModel,
        "restart": Restart,
        "on_error": OnError,
    }.items():
        properties = document["$defs"][part]["properties"]
        assert set(properties) == {field.alias or n for n, field in model.model_fields.items()}
        assert all(one["description"] for one in properties.values())
    assert set(document["properties"]) == {*Top.model_fields, "nodes", "links", "endpoints"}
