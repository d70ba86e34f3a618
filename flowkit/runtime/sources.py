"""Which files the code of a node is made of: its module, and what that imports of the project.

Read from the source, without importing anything: what runs at an import is nothing for the process
that asks. Modules that are found only at run time are not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def files_of(module: str, directory: Path) -> set[Path]:
    """The files below `directory` that `module` ("package.module") is made of, with its packages.

    A file that cannot be read, or is no Python, counts itself and imports nothing.
    """
    found: set[Path] = set()
    names = [module]
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        for path, package in _files(name, directory):
            if path not in found:
                found.add(path)
                names += _imports(path, package)
    return found


def _files(name: str, directory: Path) -> Iterator[tuple[Path, str]]:
    """The file of a module and those of the packages it is in, each with its package's name."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        place = directory.joinpath(*parts[:count])
        package = place / "__init__.py"
        if package.is_file():
            yield package, ".".join(parts[:count])
        elif place.with_suffix(".py").is_file():
            yield place.with_suffix(".py"), ".".join(parts[: count - 1])


def _imports(path: Path, package: str) -> Iterator[str]:
    """The names of modules that a file may import; some may be no modules, but what is in one."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".") if package else []
            above = base[: len(base) - (node.level - 1)] if node.level else []
            stem = ".".join([*above, *(node.module.split(".") if node.module else [])])
            if stem:
                yield stem
            yield from (f"{stem}.{alias.name}".lstrip(".") for alias in node.names)
