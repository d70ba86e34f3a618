"""Sphinx: ``sphinx-build -W docs build/docs``. What is described is in the docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flowkit  # noqa: E402

project = "flowkit"
author = copyright = "flowkit developers"
version = release = flowkit.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "alabaster"
html_theme_options = {"description": flowkit.__doc__.partition("\n")[0].partition(": ")[2]}
html_show_sourcelink = False

# Docstrings use single backquotes for names of this package and of the arguments.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
suppress_warnings = ["ref.python"]
exclude_patterns: list[str] = []
