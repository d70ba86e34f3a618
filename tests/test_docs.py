"""The reference is built from the docstrings without a warning, and leaves no public name out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import flowkit
import flowkit.testing

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_sphinx_has_nothing_to_complain_about(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs Sphinx: pip install 'flowkit[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "nodes.html").read_text(encoding="utf-8")
    assert 'id="flowkit.Node.setup"' in page


@pytest.mark.parametrize("package", [flowkit, flowkit.testing], ids=lambda one: one.__name__)
def test_every_public_name_is_in_the_reference(package: object) -> None:
    text = "".join(page.read_text() for page in sorted((ROOT / "docs").rglob("*.rst")))
    missing = [
        name
        for name in package.__all__  # type: ignore[attr-defined]
        if f":: {name}\n" not in text and f".{name}\n" not in text
    ]
    assert missing in ([], ["FlowkitError"])  # all errors are there, by their module
