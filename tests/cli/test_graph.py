"""`flowkit graph`: the drawings."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowkit import cli

CASES = Path(__file__).parents[1] / "topology" / "cases"


@pytest.fixture(autouse=True)
def in_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    monkeypatch.delenv("REPLICAS", raising=False)


def draw(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["graph", "good.yaml", *arguments]) == 0
    return capsys.readouterr().out


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(capsys) == TEXT


def test_mermaid(capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(capsys, "--format", "mermaid") == MERMAID


def test_dot(capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(capsys, "--format", "dot") == DOT


def test_a_bad_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["graph", "y4.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "error[E102]" in err


def test_code_is_not_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "later.yaml"
    path.write_text(
        "flowkit: 1\nnodes: {a: {use: not_yet:A}, end: {use: not_yet:B}}\n"
        "links: [{from: a.out, to: end.in}]\n"
    )
    assert cli.main(["graph", str(path)]) == 0
    assert "a.out --[balance]--> end.in" in capsys.readouterr().out


TEXT = """\
clicks
  read      parts:Read
  parse x4  parts:Parse
  first     parts:Pass
  users x2  parts:Users
  last      parts:End

  read.lines   --[balance]----> parse.lines  1 -> 4  window 500
  read.lines   --[balance]----> first.given  1 -> 1  window 500
  parse.events --[key user]---> users.users  4 -> 2  at-most-once, drop-oldest, window 8MiB, json, ipc
  first.taken  --[broadcast]--> last.given   1 -> 1
"""  # noqa: E501

MERMAID = """\
flowchart LR
    n0["read"]
    n1["parse x4"]
    n2["users x2"]
    n3["first"]
    n4["last"]
    n0 -->|"lines -> lines<br/>balance, window 500"| n1
    n0 -->|"lines -> given<br/>balance, window 500"| n3
    n1 -->|"events -> users<br/>key user, at-most-once, drop-oldest, window 8MiB, json, ipc"| n2
    n3 -->|"taken -> given<br/>broadcast"| n4
"""

DOT = """\
digraph "clicks" {
    rankdir=LR;
    node [shape=box];
    "read" [label="read"];
    "parse" [label="parse x4"];
    "users" [label="users x2"];
    "first" [label="first"];
    "last" [label="last"];
    "read" -> "parse" [label="lines -> lines\\nbalance, window 500"];
    "read" -> "first" [label="lines -> given\\nbalance, window 500"];
    "parse" -> "users" [label="events -> users\\nkey user, at-most-once, drop-oldest, window 8MiB, json, ipc"];
    "first" -> "last" [label="taken -> given\\nbroadcast"];
}
"""  # noqa: E501
