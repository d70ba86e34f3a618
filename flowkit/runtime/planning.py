"""From a topology file to a plan, with every check in between."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping

from flowkit.errors import Problem, TopologyError
from flowkit.runtime.inspect import inspect
from flowkit.topology import check as graph
from flowkit.topology.code import Topology as Made
from flowkit.topology.facts import Inspection
from flowkit.topology.loader import load
from flowkit.topology.model import Topology
from flowkit.topology.plan import Plan, make_plan
from flowkit.topology.render import in_order


def check(topology: str | os.PathLike[str] | Made) -> list[Problem]:
    """Every problem of a topology, a file or one made in Python; nothing of it is run.

    Its node classes are imported in a child process, in which the current directory is importable.
    """
    given = topology if isinstance(topology, Made) else os.fspath(topology)
    return examine(given, os.environ, os.getcwd())[2]


def examine(
    given: str | Made, environ: Mapping[str, str], cwd: str
) -> tuple[Topology | None, Inspection, list[Problem]]:
    """Load and check a topology file, or one made in Python: what was understood, and every
    problem.

    User code is imported in a child process, in which `cwd` is importable. A path is relative to
    the process's own current directory.
    """
    topology: Topology | None
    if isinstance(given, Made):
        topology, problems = given.read(environ)
    else:
        topology, problems = load(given, environ)
    inspection = Inspection()
    if topology is not None:
        inspection = inspect(topology, environ, cwd)
        found = graph.check(topology, inspection, readable=not problems)
        problems += [_elsewhere(problem, topology.path, cwd) for problem in found]
    # The file itself before what it includes.
    path = topology.shown if topology is not None else given
    problems.sort(key=lambda problem: problem.path != path)
    return topology, inspection, in_order(problems)


def _elsewhere(problem: Problem, path: str, cwd: str) -> Problem:
    """Say so if a module that was not found lies beside the topology: the usual slip."""
    missing = re.fullmatch(r"there is no module '(\w+)'", problem.message)
    folder = os.path.dirname(path)
    if missing is None or folder == os.path.abspath(cwd):
        return problem
    file = f"{missing[1]}.py"
    if not os.path.exists(os.path.join(folder, file)):
        return problem
    place = os.path.relpath(folder, cwd)
    return dataclasses.replace(problem, hint=f"{file} is in {place}; run flowkit there: cd {place}")


def load_plan(given: str | Made, environ: Mapping[str, str], cwd: str) -> Plan:
    """The plan of a topology file, or of one made in Python; TopologyError with every problem if it
    has any."""
    topology, inspection, problems = examine(given, environ, cwd)
    if problems or topology is None:
        raise TopologyError(problems)
    return make_plan(topology, inspection)
