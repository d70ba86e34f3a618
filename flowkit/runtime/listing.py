"""The node classes of modules and topologies, for people who look for one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from flowkit.errors import TopologyError
from flowkit.importing import NotImportable
from flowkit.runtime.inspect import ask, inspect
from flowkit.topology.check import check
from flowkit.topology.facts import ClassFacts, Questions
from flowkit.topology.loader import load
from flowkit.topology.render import in_order


def list_classes(targets: Sequence[str], environ: Mapping[str, str], cwd: str) -> list[ClassFacts]:
    """The node classes of `targets` in their order, each once.

    A target is a topology file, a module's name, or the path of a module's file below `cwd`. Raises
    TopologyError for a file whose classes cannot be read, NotImportable for such a module.
    """
    found: dict[str, ClassFacts] = {}
    for target in targets:
        if _is_topology(target):
            classes = _of_topology(target, environ, cwd)
        else:
            classes = _of_module(_module_name(target), environ, cwd)
        for one in classes:
            found.setdefault(one.use, one)
    return list(found.values())


def _is_topology(target: str) -> bool:
    return target.endswith((".yaml", ".yml", ".json"))


def _module_name(target: str) -> str:
    """``examples/wordcount.py`` is the module ``examples.wordcount``."""
    if target.endswith(".py") or os.sep in target:
        path = os.path.relpath(target).removesuffix(".py").removesuffix("/__init__")
        return path.strip(os.sep).replace(os.sep, ".")
    return target


def _of_topology(path: str, environ: Mapping[str, str], cwd: str) -> list[ClassFacts]:
    topology, problems = load(path, environ)
    if topology is None or problems:
        raise TopologyError(in_order(problems))
    inspection = inspect(topology, environ, cwd)
    unusable = [one for one in inspection.findings if one.code in ("E301", "E302")]
    if unusable:
        found = check(topology, inspection)
        raise TopologyError(in_order(one for one in found if one.code in ("E301", "E302")))
    return [inspection.classes[name] for name in topology.nodes]


def _of_module(module: str, environ: Mapping[str, str], cwd: str) -> list[ClassFacts]:
    inspection = ask(Questions([], [], [module]), environ, cwd)
    for finding in inspection.findings:
        raise NotImportable(finding.message, module, hint=finding.hint)
    return inspection.modules.get(module, [])
