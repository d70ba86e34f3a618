"""Which files a node's code is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowkit.runtime.sources import files_of


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "top.py": "import json, lib.one\nfrom lib import two\n",
        "lib/__init__.py": "from . import zero\n",
        "lib/zero.py": "",
        "lib/one.py": "from .deep.well import water\nfrom ..lib import three\n",
        "lib/two.py": "def f():\n    import late\n",
        "lib/three.py": "import top\n",
        "lib/deep/__init__.py": "",
        "lib/deep/well.py": "water = 1",
        "lib/unused.py": "",
        "late.py": "this is no Python",
        "binary.py": "\0",
        "alone.py": "import nothing.such, os.path\nfrom . import beside\nfrom .... import far\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def names(project: Path, module: str) -> set[str]:
    return {path.relative_to(project).as_posix() for path in files_of(module, project)}


def test_imports_are_followed_below_the_directory(project: Path) -> None:
    assert names(project, "top") == {
        "top.py",
        "lib/__init__.py",
        "lib/zero.py",
        "lib/one.py",
        "lib/two.py",
        "lib/three.py",
        "lib/deep/__init__.py",
        "lib/deep/well.py",
        "late.py",
    }


def test_a_module_in_a_package_brings_its_packages(project: Path) -> None:
    assert names(project, "lib.deep.well") == {
        "lib/__init__.py",
        "lib/zero.py",
        "lib/deep/__init__.py",
        "lib/deep/well.py",
    }


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("late", {"late.py"}),
        ("binary", {"binary.py"}),
        ("alone", {"alone.py"}),
        ("missing", set()),
        ("missing.too", set()),
    ],
)
def test_what_is_strange_is_no_error(project: Path, module: str, files: set[str]) -> None:
    assert names(project, module) == files
