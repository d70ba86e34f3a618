"""The child process that looks at user code: whatever an import does, a problem comes back."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowkit.importing import NotImportable
from flowkit.runtime.inspect import ask
from flowkit.runtime.listing import list_classes
from flowkit.topology.facts import Inspection, LinkQuestion, NodeQuestion, Questions

CASES = Path(__file__).parent / "cases"
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1"}

NODE = """
from flowkit.channels import In
from flowkit.node import Node

class Good(Node):
    given = In(str)
    def on_given(self, text: str) -> None: ...
"""


def look(
    tmp_path: Path, *uses: str, time_limit: float = 60.0, links: list[LinkQuestion] | None = None
) -> Inspection:
    nodes = [NodeQuestion(f"n{at}", use, {}, {}) for at, use in enumerate(uses)]
    return ask(Questions(nodes, links or []), ENVIRONMENT, str(tmp_path), time_limit=time_limit)


def test_noise_does_not_disturb(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import os, sys\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "os.write(1, b'x' * 200_000); os.write(2, b'\\x00\\xff' * 100_000)\n"
        "assert sys.stdin.read() == ''\n" + NODE
    )
    result = look(tmp_path, "noisy:Good")
    assert result.findings == [] and result.classes["n0"].inputs[0].type == "str"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os._exit(7)", "ended the process with status 7"),
        ("import os; os.kill(os.getpid(), 9)", "crashed: killed by SIGKILL"),
        ("import os; os.abort()", "crashed: killed by SIGABRT"),
        ("raise SystemExit", "failed: SystemExit"),
        ("raise KeyboardInterrupt", "failed: KeyboardInterrupt"),
        ("1/0", "failed: ZeroDivisionError: division by zero"),
        ("def f(:", "failed: SyntaxError: invalid syntax"),
        ("f()\ndef f(): f()", "failed: NameError"),
        ("def f(): f()\nf()", "failed: RecursionError"),
        ("import sys; sys.stdout.close(); sys.stderr.close(); 1/0", "failed: ZeroDivisionError"),
    ],
)
def test_what_an_import_can_do(tmp_path: Path, code: str, text: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    (tmp_path / "good.py").write_text(NODE)
    result = look(tmp_path, "bad:Good", "good:Good", "bad:Other")
    [finding] = result.findings
    assert text in finding.message and finding.code == "E301"
    assert finding.where == ["nodes", "n0", "use"]
    assert list(result.classes) == ["n1"]


def test_an_import_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import threading; threading.Event().wait()")
    result = look(tmp_path, "hangs:Good", time_limit=1.5)
    [finding] = result.findings
    assert finding.message == "importing 'hangs' took longer than 1.5 s"


def test_processes_left_by_an_import_are_ended(tmp_path: Path, eventually: Any) -> None:
    (tmp_path / "forks.py").write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n" + NODE
    )
    assert look(tmp_path, "forks:Good").findings == []
    pid = int((tmp_path / "pid").read_text())

    def ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    eventually(ended)


def test_the_current_directory_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()  # there is one in the test's own sys.path, too
    (tmp_path / "tests" / "__init__.py").write_text(NODE)
    assert look(tmp_path, "tests:Good").findings == []


def test_no_constructor_runs(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(
        NODE + "    def __init__(self, size: int): raise SystemExit(3)\n"
    )
    nodes = [NodeQuestion("a", "good:Good", {"size": 3}, {"size": 3})]
    result = ask(Questions(nodes, []), ENVIRONMENT, str(tmp_path))
    assert result.findings == [] and result.settings == {"a": {"size": 3}}


def test_the_supervisor_imports_nothing_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "only_in_the_child.py").write_text(NODE)
    assert look(tmp_path, "only_in_the_child:Good").findings == []
    assert "only_in_the_child" not in sys.modules


KEYS = """
from flowkit.channels import In, Out
from flowkit.node import Node

class Source(Node):
    given = In(str)
    plain = Out(dict)
    keyed = Out(dict[str, int], key="user")
    def on_given(self, text: str) -> None:
        BODY

class Sink(Node):
    given = In(dict)
    def on_given(self, message: dict) -> None: ...
"""


@pytest.mark.parametrize(
    ("out", "body", "codes"),
    [
        ("plain", "self.plain.send({})", ["E305"]),
        ("plain", "self.plain.send({}, key=text)", []),
        ("plain", "self.plain.send({}, **{'key': text})", []),
        ("keyed", "self.keyed.send({})", []),
    ],
)
def test_keys(tmp_path: Path, out: str, body: str, codes: list[str]) -> None:
    (tmp_path / "keys.py").write_text(KEYS.replace("BODY", body))
    link = LinkQuestion(0, 0, False, "n0", out, "n1", "given", "key", None, None)
    result = look(tmp_path, "keys:Source", "keys:Sink", links=[link])
    assert [finding.code for finding in result.findings] == codes


STATE = """
from flowkit.channels import In, Out
from flowkit.node import Node, every

class Given(Node):
    given = In(str)
    out = Out(str)
    def on_given(self, text: str) -> None: self.out.send(text)
"""


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("", False),
        ("    def finish(self): self.out.send('a')", True),
        ("    def finish(self): self.flush()\n    def flush(self): self.out.send_many('a')", True),
        ("    def finish(self): print('done')", False),
        ("    @every(1)\n    def tick(self): self.out.send('a')", True),
        ("    @every(1)\n    async def tick(self): [self.out.send(a) for a in 'ab']", True),
        ("    stateful = True\n    def finish(self): self.out.send('a')", False),
    ],
)
def test_memory_that_is_sent(tmp_path: Path, body: str, found: bool) -> None:
    (tmp_path / "state.py").write_text(f"{STATE}{body}\n")
    codes = [finding.code for finding in look(tmp_path, "state:Given").findings]
    assert codes == (["E307"] if found else [])


def test_classes_of_a_module() -> None:
    classes = list_classes(["parts"], ENVIRONMENT, str(CASES))
    assert [one.use for one in classes][:3] == ["parts:Read", "parts:Parse", "parts:Store"]
    assert "parts:Unfinished" not in [one.use for one in classes]
    assert [setting.default for setting in classes[2].settings] == [None, "None"]


def test_classes_of_a_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    classes = list_classes(["good.yaml", "parts.py"], ENVIRONMENT, os.getcwd())
    uses = [one.use for one in classes]
    assert uses[0] == "parts:Read" and len(uses) == len(set(uses))


@pytest.mark.parametrize("module", ["none_such", "crashes", "quits", "not a module"])
def test_modules_that_cannot_be_listed(module: str) -> None:
    with pytest.raises(NotImportable):
        list_classes([module], ENVIRONMENT, str(CASES))


def test_nothing_that_could_send(tmp_path: Path) -> None:
    """Unless an application does."""
    (tmp_path / "feeds.py").write_text(
        "from flowkit import Call, Node, Out\n\nclass Feed(Node):\n    x = Out(int)\n"
        "    def __init__(self, size: int) -> None: ...\n"
        "class Asks(Node):\n    x = Call(int, int)\n"
    )
    nodes = [
        NodeQuestion("a", "feeds:Feed", {}, {}, external=True),
        NodeQuestion("b", "feeds:Feed", {"size": 3}, {"size": 3}),
        NodeQuestion("c", "feeds:Asks", {}, {}),
    ]
    result = ask(Questions(nodes, []), ENVIRONMENT, str(tmp_path))
    finding, other = result.findings
    assert other.where == ["nodes", "c", "use"]
    assert (finding.where, finding.code) == (["nodes", "b", "use"], "E302")
    assert finding.message == "'feeds:Feed' has outputs, but nothing that could send"
    assert "external: true" in finding.hint
