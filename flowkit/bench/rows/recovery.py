"""The row `recovery`: a worker is killed under load."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row


def row(quick: bool) -> Row:
    settings = {"before": 0.8, "after": 1.5} if quick else {"before": 1.5, "after": 3.0}
    return Row(
        "recovery",
        "kill -9 of one of two workers under load: source, workers, sink",
        "All messages are numbered, and the sink ticks each one off. Back is the time from the "
        "kill until the sink again gets 90 % of what it got before; 0 if it always did, the other "
        "worker being fast enough. Restarted: until the new process is there. For pyzmq a script "
        "starts the new worker at once.",
        [
            Figure("lost", "lost", "count", "less"),
            Figure("doubled", "doubled", "count", "less"),
            Figure("redelivered", "redelivered", "count", "less"),
            Figure("back", "back", "seconds", "less"),
            Figure("restarted", "restarted", "seconds", "less"),
            Figure("rate", "messages/s", "rate"),
        ],
        [
            Contestant("pyzmq, a worker killed", "flowkit.bench.recoveries:pyzmq", settings),
            Contestant("flowkit, a worker killed", "flowkit.bench.recoveries:flowkit", settings),
        ],
        compared=False,
    )
