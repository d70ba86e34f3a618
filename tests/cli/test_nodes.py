"""`flowkit nodes`: the classes of a module or a topology."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowkit import cli

CASES = Path(__file__).parents[1] / "topology" / "cases"


@pytest.fixture(autouse=True)
def in_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


def nodes(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["nodes", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = nodes(capsys, "parts")
    assert (code, err) == (0, "")
    assert out.startswith(
        "parts:Read  (source)\n"
        "  Lines of a file.\n"
        "  out   lines  str\n"
        "  with  path   Path = PosixPath('.')\n"
        "  with  limit  int = 0\n"
        "  with  loud   bool = False\n"
        "\n"
        "parts:Parse\n"
        "  Events of lines.\n"
        "  in    lines   str\n"
        "  out   events  Event\n"
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = nodes(capsys, "--format", "json", "parts.py")
    assert code == 0
    store = next(one for one in map(json.loads, out.splitlines()) if one["use"] == "parts:Store")
    assert store == {
        "use": "parts:Store",
        "doc": "Rows go nowhere.",
        "kind": "node",
        "stateful": False,
        "inputs": [{"name": "rows", "type": "Row", "codec": None}],
        "outputs": [],
        "settings": [
            {"name": "table", "type": "str", "required": True, "default": None},
            {
                "name": "sizes",
                "type": "list[int] | None",
                "required": False,
                "default": "None",
            },
        ],
    }


def test_a_topology(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = nodes(capsys, "good.yaml")
    assert code == 0
    heads = [line for line in out.splitlines() if line.startswith("parts:")]
    assert heads == [
        "parts:Read  (source)",
        "parts:Parse",
        "parts:Users",
        "parts:Pass",
        "parts:End",
    ]


def test_what_cannot_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = nodes(capsys, "prats")
    assert (code, out) == (2, "")
    assert "error: there is no module 'prats'" in err and "did you mean 'parts'?" in err
    code, out, err = nodes(capsys, "y9.yaml")
    assert code == 2 and "error[E107]" in err
    assert nodes(capsys)[0] == 2


def test_a_module_without_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert nodes(capsys, "json") == (0, "no node classes found\n", "")
