"""CPython's own tests of queues and pipes, with flowkit's classes in the place of its own.

``python cpython.py METHOD ours|theirs [PATTERN ...]`` runs them with one start method and prints,
as JSON on its last line, what became of each. A program and not a test module: children that are
spawned import it again, and have to find the same classes.
"""

from __future__ import annotations

import json
import sys
import unittest
from multiprocessing import connection, queues

from test import _test_multiprocessing as theirs

import flowkit.mp

CLASSES = (
    # queues
    "WithProcessesTestQueue",
    "TestSimpleQueue",
    # pipes
    "WithProcessesTestConnection",
    "WithProcessesTestPoll",
    "WithProcessesTestPicklingConnections",
    "TestWait",
    "TestTimeouts",
    "TestIgnoreEINTR",
    "TestCloseFds",
    # what uses them
    "WithProcessesTestProcess",
    "WithProcessesTestSubclassingProcess",
    "WithProcessesTestFinalize",
    "WithProcessesTestLogging",
    "WithProcessesTestBarrier",
    "WithProcessesTestPool",
    "WithProcessesTestPoolWorkerLifetime",
    "TestPoolNotLeakOnFailure",
    "TestStdinBadfiledescriptor",
    "TestForkAwareThreadLock",
    "TestStartMethod",
    "TestFlags",
)

if sys.argv[2:3] != ["theirs"]:  # what spawn gives to a child has no arguments of ours
    queues.Queue = flowkit.mp.Queue
    queues.JoinableQueue = flowkit.mp.JoinableQueue
    queues.SimpleQueue = flowkit.mp.SimpleQueue
    connection.Pipe = flowkit.mp.Pipe


class Outcomes(unittest.TextTestResult):
    """Notes the outcome of each test by its name."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)
        self.outcomes: dict[str, str] = {}

    def _note(self, test: unittest.TestCase, outcome: str) -> None:
        self.outcomes[".".join(test.id().rsplit(".", 2)[-2:])] = outcome

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self._note(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, "skipped")

    def addFailure(self, test: unittest.TestCase, err: object) -> None:
        super().addFailure(test, err)
        self._note(test, "failed")

    def addError(self, test: unittest.TestCase, err: object) -> None:
        super().addError(test, err)
        self._note(test, "failed")


METHOD = sys.argv[1] if len(sys.argv) > 1 else "fork"
theirs.install_tests_in_module_dict(globals(), METHOD)  # also in children: they find them here


def main(patterns: list[str]) -> None:
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{pattern}*" for pattern in patterns] or None
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(globals()[name]) for name in CLASSES)
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Outcomes)
    result = runner.run(suite)
    print(json.dumps(result.outcomes))


if __name__ == "__main__":
    main(sys.argv[3:])
