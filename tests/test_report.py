"""The report: its sums, its exit code, its JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.metrics import Verdict
from flowkit.protocol.ledger import REASONS, Entry
from flowkit.protocol.project import Status
from flowkit.report import LinkReport, ReplicaReport, Report


def report(*entries: Entry, status: Status = Status.DRAINED, lossy: bool = False) -> Report:
    links = [
        LinkReport("a.out", f"b{number}.x", entry, lossy) for number, entry in enumerate(entries)
    ]
    nodes = [ReplicaReport("a", 0, 1, "done", False, 0.123456, 10)]
    return Report(
        "play", status, "because", 1.23456, links, nodes, Verdict("a", 0.5, "scale a", "sink")
    )


DONE = Entry(sent=10, delivered=10, done=10)
DEAD = Entry(sent=10, delivered=10, done=8, dead_lettered=2)
OPEN = Entry(sent=10, delivered=10, done=8)
ASKED = Entry(sent=10, delivered=10, done=8, dropped={"handler failed": 2})
LOST = Entry(sent=10, delivered=10, done=8, dropped={"producer died": 2})
WRONG = Entry(sent=10, delivered=10, done=11)


@pytest.mark.parametrize(
    ("status", "entry", "code"),
    [
        (Status.DRAINED, DONE, 0),
        (Status.DRAINED, Entry(), 0),
        (Status.DRAINED, ASKED, 0),
        (Status.DRAINED, DEAD, 4),
        (Status.DRAINED, OPEN, 5),
        (Status.DRAINED, LOST, 5),
        (Status.DRAINED, WRONG, 5),
        (Status.FAILED, DONE, 3),
        (Status.FAILED, OPEN, 3),
        (Status.STOPPED, DEAD, 3),
        (Status.MISCONFIGURED, DONE, 2),
        (Status.TIMED_OUT, DONE, 5),
        (Status.KILLED, OPEN, 130),
    ],
)
def test_the_exit_code(status: Status, entry: Entry, code: int) -> None:
    assert report(DONE, entry, status=status).exit == code


def test_what_a_lossy_link_lost_was_asked_for() -> None:
    assert report(LOST, lossy=True).exit == 0 and report(LOST, lossy=True).lost == 0
    assert report(LOST).lost == 2


def test_one_link_that_does_not_balance_is_enough() -> None:
    # The sums over all links may hide it: 10 too few here, 10 too many there.
    short = Entry(sent=20, delivered=20, done=10)
    over = Entry(sent=10, delivered=10, done=20)
    both = report(short, over)
    assert both.in_flight == 0 and not both.balanced and both.exit == 5


def test_the_sums() -> None:
    whole = report(DEAD, ASKED, OPEN)
    assert (whole.dead_lettered, whole.dropped, whole.in_flight) == (2, 2, 2)
    assert whole.balanced
    assert whole.links[0].name == "a.out -> b0.x"


def test_the_format_of_the_file() -> None:
    data = json.loads(json.dumps(report(ASKED, status=Status.TIMED_OUT).as_dict()))
    assert data == {
        "project": "play",
        "status": "timed out",
        "reason": "because",
        "interrupted": False,
        "seconds": 1.235,
        "exit": 5,
        "links": [
            {
                "from": "a.out",
                "to": "b0.x",
                "sent": 10,
                "delivered": 10,
                "done": 8,
                "redelivered": 0,
                "dropped": {"handler failed": 2},
                "dead_lettered": 0,
                "superseded": 0,
                "in_flight": 0,
            }
        ],
        "nodes": [
            {
                "node": "a",
                "replica": 0,
                "restarts": 1,
                "state": "done",
                "lost_state": False,
                "busy": 0.1235,
                "handled": 10,
            }
        ],
        "verdict": {
            "bottleneck": "a",
            "busy": 0.5,
            "advice": "scale a",
            "kind": "sink",
            "waits": None,
            "waiting": 0.0,
        },
    }


counts = st.integers(0, 1000)


@given(
    st.builds(
        Entry,
        sent=counts,
        done=counts,
        dead_lettered=counts,
        superseded=counts,
        dropped=st.dictionaries(st.sampled_from(REASONS), counts),
    )
)
def test_in_flight_is_what_no_other_column_says(entry: Entry) -> None:
    link: dict[str, Any] = report(entry).as_dict()["links"][0]
    accounted = link["done"] + link["dead_lettered"] + link["superseded"] + link["in_flight"]
    assert link["sent"] == accounted + sum(link["dropped"].values())
    if link["in_flight"] != 0:
        assert report(entry).exit == 5
