"""One round of one contestant, in a process of its own: ``python -m flowkit.bench.round TASK``.

TASK is a JSON object with `run` ("module:function") and `arguments`. The figures go to standard
output as JSON; all else that is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys

from flowkit.bench.crew import die_with_parent
from flowkit.importing import load_object


def main() -> None:
    die_with_parent()
    # What a peer prints must not get between the figures.
    answer = os.dup(1)
    os.dup2(2, 1)
    task = json.loads(sys.argv[1])
    figures = load_object(task["run"])(**task["arguments"])
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(figures, file)


if __name__ == "__main__":
    main()
