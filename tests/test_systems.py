"""The topologies of systems with foreign peers, or of several files: each does its work."""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from examples import composition, distributor
from tests.e2e.harness import ROOT, Place, Result

TOPOLOGIES = ROOT / "topologies"

pytestmark = pytest.mark.e2e


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def up(place: Place, name: str, *options: str, **env: str) -> Result:
    result = place.up(TOPOLOGIES / f"{name}.yaml", *options, env=env).wait()
    assert result.code == 0, result.text
    return result


def test_the_work_distributor_finds_it_and_stops(place: Place) -> None:
    result = up(
        place,
        "work_distributor",
        BITS="12",
        LIMIT="4000000",
        CONTROL=f"ipc://{place.path}/control",
    )
    found, figures = result.printed("sink.0")
    number = int(found.removeprefix("found "))
    digest = hashlib.sha256(b"flowkit:%d" % number).digest()
    assert int.from_bytes(digest) >> (256 - 12) == 0
    searched, skipped = (int(one.replace(",", "")) for one in re.findall(r"\d[\d,]*", figures))
    assert searched + skipped == 800
    assert searched >= number // 5000 // 3
    assert skipped > 0, "somebody searched on although it was found"
    assert result.link("worker.results -> sink.results")["done"] == 800
    (stop,) = [link for link in result.report["links"] if link["from"] == "sink.control"]
    assert stop["sent"] >= stop["done"] >= 1


def test_a_worker_that_is_stopped_searches_nothing() -> None:
    worker = distributor.Worker(bits=1)
    worker.on_tasks(distributor.Task(0, 100))
    worker.on_control(b"something else")
    worker.on_tasks(distributor.Task(0, 100))
    worker.on_control(distributor.STOP)
    worker.on_tasks(distributor.Task(0, 100))
    assert [result.searched for result in worker.results.sent] == [True, True, False]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    root = tmp_path / "code"
    (root / "inner").mkdir(parents=True)
    for number in range(30):
        lines = ["import os.path, sys", "from collections import abc"][: 1 + number % 2]
        (root / f"m{number}.py").write_text("\n".join(lines) + "\n")
    (root / "inner" / "odd.py").write_text("from . import x\nimport json\n")
    (root / "broken.py").write_text("import (\n")
    (root / "text.txt").write_text("import nothing\n")
    return root


def expected(root: Path) -> list[str]:
    """The same by a plain loop."""
    counts: Counter[str] = Counter()
    for path in root.rglob("*.py"):
        try:
            tree = ast.parse(path.read_text())
        except SyntaxError:
            continue
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
        counts.update(names)
    ranking = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"{count:,}  {name}" for name, count in ranking[:10]]


def test_a_composition_of_three_pipelines(place: Place, code: Path) -> None:
    result = up(place, "distributed_composition", ROOT=str(code))
    result.check_drained()
    assert [line.strip() for line in result.printed("show.0")] == expected(code)
    assert result.link("walk.files -> parse.files")["done"] == len(
        composition.python_files(str(code))
    )


def test_the_server_and_the_workers_of_eyrie(place: Place) -> None:
    """Three jobs, each to one of four workers; two pieces of news and EXIT, each to all."""
    result = up(place, "eyrie", PAUSE="0.02", HERALD=f"ipc://{place.path}/herald")
    said = [line.partition("INFO ")[2] for n in range(4) for line in result.printed(f"worker.{n}")]
    assert Counter(said) == {
        **{f"Received job: This is message #{number}": 1 for number in (1, 3, 5)},
        **{f"Received broadcast: This is message #{number}": 4 for number in (2, 4)},
        "Received broadcast: EXIT": 4,
    }


@pytest.mark.slow
def test_a_herald_ends_eyrie(place: Place) -> None:
    herald = f"ipc://{place.path}/herald"
    run = place.up(TOPOLOGIES / "eyrie.yaml", env={"PAUSE": "60", "HERALD": herald})
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.linger = 0
        publisher.xpub_verbose = 1
        publisher.bind(herald)
        run.ready()
        for _ in range(4):
            assert publisher.recv() == b"\1"
        publisher.send_multipart([b"all", b"TERM"])
        result = run.wait()
    assert result.code == 0, result.text
    assert "TERM: the project is drained" in result.out


def test_the_example_is_no_longer_than_the_original() -> None:
    """cs.eyrie's own has 81 lines of code, its main program included, and a file of settings."""
    lines = 0
    for path in (ROOT / "examples" / "eyrie.py", TOPOLOGIES / "eyrie.yaml"):
        text = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        lines += sum(1 for line in text.splitlines() if line.strip() and line.strip()[0] != "#")
    assert lines < 81
