"""References to code, and guesses at what was meant."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from flowkit.importing import (
    NotImportable,
    did_you_mean,
    load_module,
    load_object,
    split_reference,
    suggest,
)


def test_a_reference() -> None:
    assert load_object("pathlib:Path") is Path
    assert load_object("pathlib:Path.cwd") == Path.cwd
    assert split_reference("a.b:C.d") == ("a.b", "C.d")


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("pathlib.Path", "did you mean 'pathlib:Path'?"),
        ("pathlib", "dots between packages"),
        ("pathlib:", "dots between packages"),
        (":Path", "dots between packages"),
        ("a b:C", "dots between packages"),
        ("a:b:C", "dots between packages"),
        ("a..b:C", "dots between packages"),
        ("../x:C", "dots between packages"),
    ],
)
def test_no_reference(reference: str, hint: str) -> None:
    with pytest.raises(NotImportable) as caught:
        load_object(reference)
    assert hint in caught.value.hint and caught.value.reference == reference


@pytest.mark.parametrize(
    ("reference", "part", "text", "hint"),
    [
        ("pytst:Path", "pytst", "no module 'pytst'", "did you mean 'pytest'?"),
        ("pathlb:Path", "pathlb", "no module 'pathlb'", "modules are looked for"),
        ("json.decoer:X", "json.decoer", "no module 'json.decoer'", "'json.decoder'?"),
        ("pathlib.deep:X", "pathlib.deep", "'pathlib.deep'", "is a module, not a package"),
        ("pathlib:Pth", "Pth", "module 'pathlib' has no 'Pth'", "did you mean 'Path'?"),
        ("pathlib:Qqqq", "Qqqq", "module 'pathlib' has no 'Qqqq'", ""),
    ],
)
def test_what_is_missing(reference: str, part: str, text: str, hint: str) -> None:
    with pytest.raises(NotImportable) as caught:
        load_object(reference)
    assert caught.value.part == part
    assert text in str(caught.value) and hint in caught.value.hint


def test_errors_inside_a_module_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "importing_needs_more.py").write_text("import there_is_no_such_driver\n")
    (tmp_path / "importing_raises.py").write_text("raise ValueError('mine')\n")
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_driver"):
        load_object("importing_needs_more:X")
    with pytest.raises(ValueError, match="mine"):
        load_module("importing_raises")


def test_it_can_be_sent() -> None:
    error = NotImportable("text", "a:b", "b", "hint")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.part, again.hint) == ("text", "b", "hint")


def test_suggestions() -> None:
    assert suggest("prase", ["parse", "read"]) == "parse"
    assert suggest("PARSE", ["parse", "read"]) == "parse"
    assert suggest("parse", ["parse"]) is None
    assert suggest("zzz", ["parse"]) is None
    assert did_you_mean("replcas", ["replicas", "use"]) == "did you mean 'replicas'?"
    assert did_you_mean("zzz", ["a", "b"]) == "there is 'a', 'b'"
    assert did_you_mean("zzz", [str(n) for n in range(20)]) == ""
    assert did_you_mean("zzz", []) == ""
