"""The tables of `ps` and `top`."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import pytest

from flowkit.cli import view
from flowkit.metrics import IDLE
from flowkit.status import ReplicaStatus, Status
from tests.figures import replica, status

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def test_ps() -> None:
    assert view.ps_lines(status()) == [
        "NAME     STATE    UPTIME  CPU  MEM  IN/S  OUT/S  QUEUE    P99  RESTARTS",
        "read.0   waiting   2m11s  12%  38M     -   5.0k      -      -         0",
        "parse.0  running   2m11s  61%  44M  1.3k   1.3k     12  2.1ms         1",
        "store.0  busy      2m11s  97%  61M  4.9k      -   8.1k   84ms         0",
        "bottleneck: store (busy 97 %; parse waited 61 % of the time) - try: scale store",
    ]


def test_what_is_not_known_is_a_dash() -> None:
    lines = view.ps_lines(status(replicas=[replica("a", in_rate=0.0, queue=0)], verdict=IDLE))
    assert lines[1].split() == ["a.0", "running", "-", "-", "-", "0", "-", "0", "-", "0"]
    assert lines[2] == "nothing limits: there is little to do"


def test_a_project_without_replicas() -> None:
    assert view.ps_lines(status(replicas=[])) == [
        "NAME  STATE  UPTIME  CPU  MEM  IN/S  OUT/S  QUEUE  P99  RESTARTS"
    ]


def test_links() -> None:
    assert view.link_lines(status().links) == [
        "LINK                        SENT  DONE  DONE/S  IN FLIGHT  QUEUED  FULL  REDELIVERED"
        "  DROPPED  DEAD",
        "read.lines -> parse.lines    61k   61k       0        203       0   80%          256"
        "        0     1",
        "parse.events -> store.rows   61k   53k    4.9k       8.1k      41   61%            0"
        "      102     0",
    ]


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        (status(), "clicks · running 2m11s · 3 replicas · http://127.0.0.1:8787"),
        (status(http=None, state="draining"), "clicks · draining 2m11s · 3 replicas"),
        (status(http=None, replicas=[replica("a")]), "clicks · running 2m11s · 1 replica"),
    ],
)
def test_the_title(project: Status, expected: str) -> None:
    assert view.title_line(project) == expected


# ---------------------------------------------------------------------------- narrow screens


def replica_lines(width: int | None) -> list[str]:
    return view.replica_lines(status().replicas, view.TOP, status().verdict, width)


def link_lines(width: int | None) -> list[str]:
    return view.link_lines(status().links, width)


@pytest.mark.parametrize("lines", [replica_lines, link_lines])
def test_no_line_is_too_wide(lines: Callable[[int | None], list[str]]) -> None:
    full = max(map(len, lines(None)))
    columns = len(lines(None)[0].split())
    for width in range(full + 5, 20, -1):
        shown = lines(width)
        assert max(map(len, shown)) <= width
        assert len(shown) == len(lines(None))
        titles = len(shown[0].split())
        assert titles <= columns
        columns = titles


def test_what_matters_least_is_left_out_first() -> None:
    assert "UPTIME" in replica_lines(84)[0] and "UPTIME" not in replica_lines(80)[0]
    assert replica_lines(40)[0].split() == ["NAME", "STATE", "BUSY", "IN/S", "OUT/S"]
    assert link_lines(52)[0].split() == ["LINK", "DONE", "DONE/S", "IN", "FLIGHT"]


def test_a_long_name_is_cut_where_nothing_else_helps() -> None:
    long = [replica("x" * 60, in_rate=1.0), replica("y", in_rate=1.0)]
    shown = view.replica_lines(long, view.PS, IDLE, 40)
    assert max(map(len, shown)) <= 40
    assert shown[1].startswith("xxxxxxxxxxxx") and "…" in shown[1]
    assert view.replica_lines(long, view.PS, IDLE, None)[1].startswith("x" * 60 + ".0 ")


# ---------------------------------------------------------------------------- colours


def test_colours_change_no_letter() -> None:
    for plain, coloured in [
        (view.ps_lines(status()), view.ps_lines(status(), colour=True)),
        (link_lines(None), view.link_lines(status().links, colour=True)),
        ([view.title_line(status())], [view.title_line(status(), True)]),
    ]:
        assert "\x1b" not in "".join(plain) and "\x1b" in "".join(coloured)
        assert [ANSI.sub("", line) for line in coloured] == plain


def test_what_limits_stands_out() -> None:
    lines = view.ps_lines(status(), colour=True)
    assert lines[3].startswith("\x1b[1mstore.0\x1b[0m") and "\x1b[33mbusy   \x1b[0m" in lines[3]
    assert not lines[2].startswith("\x1b") and "\x1b[32mrunning\x1b[0m" in lines[2]
    assert lines[-1].startswith("\x1b[33mbottleneck: ")
    assert "\x1b" not in view.ps_lines(status(verdict=IDLE), colour=True)[-1]


def test_every_state_has_a_colour() -> None:
    for state in view.STYLES:
        line = view.ps_lines(status(replicas=[replica("a", state=state)]), colour=True)[1]
        assert line.count("\x1b[") >= 2


# ---------------------------------------------------------------------------- JSON


def test_json_lines_are_exact() -> None:
    lines = list(view.json_lines(status()))
    assert len(lines) == 3 and not any("\n" in line for line in lines)
    back = [msgspec.json.decode(line, type=ReplicaStatus) for line in lines]
    assert back == status().replicas
    assert '"out_rate":5012.3' in lines[0] and '"memory":39845888' in lines[0]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (512, "512"), (1023, "1023"), (1024, "1.0K"), (9.5 * 1024, "9.5K"),
     (38 << 20, "38M"), (1023 << 20, "1023M"), (1 << 30, "1.0G"), (3 << 40, "3.0T"),
     (300 << 40, "300T")],
)  # fmt: skip
def test_short_sizes(size: float, text: str) -> None:
    assert view.short_bytes(size) == text
