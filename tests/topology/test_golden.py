"""The whole printed text of every kind of bad topology file, as a user reads it.

`cases/NAME.yaml` must print `cases/NAME.txt`. Files that cannot be kept in a repository are made
here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from flowkit.cli.problems import render
from flowkit.runtime.planning import examine

CASES = Path(__file__).parent / "cases"
NAMES = sorted(path.stem for path in CASES.glob("*.txt"))
# A name that is close to a variable of the machine would get another hint.
ENVIRONMENT = {"COUNT": "x", "EMPTY": "", "PYTHONDONTWRITEBYTECODE": "1"}


def printed(path: str) -> str:
    _, _, problems = examine(path, ENVIRONMENT, os.getcwd())
    return render(problems)


@pytest.mark.parametrize("name", NAMES)
def test_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    assert printed(f"{name}.yaml") + "\n" == (CASES / f"{name}.txt").read_text(encoding="utf-8")


def test_every_bad_file_has_its_text() -> None:
    assert {path.stem for path in CASES.glob("*.yaml")} - {*NAMES} == {"good"}


def test_one_file_has_nearly_every_kind_of_problem() -> None:
    everything = (CASES / "everything.txt").read_text(encoding="utf-8")
    codes = {line.split("error[")[1][:4] for line in everything.splitlines() if "error[" in line}
    assert len(codes) >= 22


# ---------------------------------------------------------------- files that cannot be read


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_missing(here: Path) -> None:
    assert printed("none.yaml") == (
        "none.yaml: error[E100]: cannot read none.yaml: No such file or directory\n"
        f" = help: looked in {here}\n"
        "1 error in 1 file"
    )


def test_directory(here: Path) -> None:
    (here / "dir.yaml").mkdir()
    assert printed("dir.yaml") == (
        "dir.yaml: error[E100]: cannot read dir.yaml: it is a directory\n"
        " = help: name a YAML file\n"
        "1 error in 1 file"
    )


def test_fifo_does_not_hang(here: Path) -> None:
    os.mkfifo("fifo.yaml")
    assert "it is not a regular file" in printed("fifo.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable(here: Path) -> None:
    (here / "a.yaml").write_text("flowkit: 1\n")
    (here / "a.yaml").chmod(0)
    assert printed("a.yaml").startswith("a.yaml: error[E100]: cannot read a.yaml: Permission")


def test_name_that_no_file_can_have(here: Path) -> None:
    assert "cannot read nul\\x00: embedded null byte" in printed("nul\0")


@pytest.mark.parametrize("content", ["", "# nothing but a comment\n", "---\n"])
def test_empty(here: Path, content: str) -> None:
    (here / "empty.yaml").write_text(content)
    assert printed("empty.yaml").splitlines()[-1] == "1 error in 1 file"
    assert "E10" in printed("empty.yaml")


def test_empty_text(here: Path) -> None:
    (here / "empty.yaml").write_text("")
    assert printed("empty.yaml") == (
        "empty.yaml: error[E100]: the file is empty\n = help: try: flowkit init\n1 error in 1 file"
    )


def test_binary(here: Path) -> None:
    (here / "binary.yaml").write_bytes(b"flowkit: 1\n\x80\x81\x00")
    assert printed("binary.yaml") == (
        "binary.yaml: error[E100]: binary.yaml is not UTF-8 text: byte 0x80 in line 2\n"
        " = help: is this a YAML file?\n"
        "1 error in 1 file"
    )


def test_control_character(here: Path) -> None:
    (here / "control.yaml").write_bytes(b"flowkit: 1\nproject: a\x07b\n")
    assert printed("control.yaml") == (
        "control.yaml:2:11: error[E100]: the character U+0007 cannot stand in YAML\n"
        "  |\n"
        "2 | project: a b\n"
        "  |           ^\n"
        "  = help: is this a text file?\n"
        "1 error in 1 file"
    )


def test_other_yaml(here: Path) -> None:
    (here / "list.yaml").write_text("- a\n- b\n")
    assert printed("list.yaml") == (
        "list.yaml:1:1: error[E104]: a topology is a mapping with the keys flowkit, nodes and "
        "links\n"
        "  |\n"
        "1 | - a\n"
        "  | ^^^\n"
        "  = help: try: flowkit init\n"
        "1 error in 1 file"
    )


# ---------------------------------------------------------------- files that are too much


def test_huge(here: Path) -> None:
    with open("huge.yaml", "wb") as file:
        file.truncate(100 * 1024 * 1024)
    assert printed("huge.yaml") == (
        "huge.yaml: error[E109]: huge.yaml is larger than 1024 KiB\n"
        " = help: a topology is small; split a long one with 'include'\n"
        "1 error in 1 file"
    )


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_deep(here: Path, opening: str, closing: str) -> None:
    inner = opening * 10_000 + closing * 10_000
    (here / "deep.yaml").write_text(f"flowkit: 1\nx-deep: {inner}\n")
    lines = printed("deep.yaml").splitlines()
    # Since PyYAML 6.0.4 its parser may have had enough before that.
    columns = "|".join(str(9 + depth * len(opening)) for depth in (63, 999))
    said = rf"deep.yaml:2:({columns}): error\[E109\]: nested more than 64 levels deep"
    assert re.fullmatch(said, lines[0])
    assert lines[-1] == "1 error in 1 file"
    assert max(map(len, lines)) < 200


def test_deep_by_aliases(here: Path) -> None:
    lines = ["flowkit: 1", "x-0: &a0 []"]
    lines += [f"x-{n}: &a{n} {'[' * 10}*a{n - 1}{']' * 10}" for n in range(1, 20)]
    (here / "deep.yaml").write_text("\n".join(lines))
    assert "E109]: nested more than 64 levels deep" in printed("deep.yaml")


def test_bomb(here: Path) -> None:
    lines = ["flowkit: 1", "x-0: &a0 [lol, lol]"]
    lines += [f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (here / "bomb.yaml").write_text("\n".join(lines))
    assert printed("bomb.yaml").splitlines()[0] == (
        "bomb.yaml:7:21: error[E109]: more than 100,000 values, with every alias written out"
    )


def test_many_keys(here: Path) -> None:
    (here / "many.yaml").write_text("x-many: [" + "1," * 200_000 + "]")
    assert "E109]: more than 100,000 values" in printed("many.yaml")


def test_alias_inside_itself(here: Path) -> None:
    (here / "loop.yaml").write_text("flowkit: 1\nx-loop: &loop [*loop]\n")
    assert printed("loop.yaml") == (
        "loop.yaml:2:16: error[E101]: alias '*loop' stands inside what it refers to\n"
        "  |\n"
        "2 | x-loop: &loop [*loop]\n"
        "  |                ^^^^^\n"
        "1 error in 1 file"
    )


def test_second_document(here: Path) -> None:
    (here / "two.yaml").write_text("flowkit: 1\n---\nflowkit: 1\n")
    assert printed("two.yaml").startswith("two.yaml:2:1: error[E101]: a second YAML document")


# What follows took minutes before there were bounds; now it is a second.


def test_a_file_full_of_slips(here: Path) -> None:
    names = range(1500)
    (here / "slips.yaml").write_text(
        "flowkit: 1\nnodes:\n"
        + "".join(f"  node{n}: {{use: 'parts.Read'}}\n" for n in names)
        + "links:\n"
        + "".join(f"  - {{from: node{n}.out, to: nod{n}.in}}\n" for n in names)
    )
    assert printed("slips.yaml").splitlines()[-1] == "1000 errors in 1 file"


def test_a_text_full_of_dollars(here: Path) -> None:
    (here / "dollars.yaml").write_text(f'flowkit: 1\nproject: "{"${A:-" * 50_000}"\n')
    assert "'${' is no reference to a variable" in printed("dollars.yaml")
