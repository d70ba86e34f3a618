"""`flowkit schema` and `flowkit nodes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowkit import cli
from flowkit.topology.schema import DRAFT, schema

CASES = Path(__file__).parents[1] / "topology" / "cases"


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == schema() and document["$schema"] == DRAFT
