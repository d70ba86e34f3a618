"""The screen of `top`: what keys do, and what is shown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.cli.live import Action, Look, Quit, Restart, Scale, Screen, keys_of
from tests.figures import replica, status

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def screen() -> Screen:
    one = Screen()
    one.show(status())
    return one


def pressed(one: Screen, *keys: str) -> Action | None:
    """What the last of `keys` asks for; the others ask for nothing."""
    for key in keys[:-1]:
        assert one.press(key) is None
    return one.press(keys[-1])


def order(one: Screen) -> list[str]:
    """The nodes, as they stand below each other."""
    rows = [re.match(r"[> ] (\w+)\.\d+ ", line) for line in one.lines(100, 30)]
    return [row[1] for row in rows if row is not None]


# ---------------------------------------------------------------------------- keys


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_leaving(key: str) -> None:
    assert pressed(screen(), key) == Quit()


def test_scaling_the_node_of_the_selected_replica() -> None:
    assert pressed(screen(), "down", "down", "+") == Scale("parse", 2)
    pool = Screen()
    pool.show(status(replicas=[replica("a"), replica("a", 1), replica("b")]))
    assert pressed(pool, "down", "+") == Scale("a", 3)
    assert pressed(pool, "-") == Scale("a", 1)


def test_a_node_is_not_scaled_to_nothing() -> None:
    one = screen()
    assert pressed(one, "down", "-") is None
    assert "flowkit stop read" in one.note


@pytest.mark.parametrize("key", ["+", "-", "r"])
def test_something_must_be_selected(key: str) -> None:
    one = screen()
    assert pressed(one, key) is None
    assert one.note == "select a replica first: up and down"
    assert pressed(one, "down") is None and one.note == ""


def test_a_restart_is_asked_for_twice() -> None:
    one = screen()
    assert pressed(one, "down", "down", "down", "r") is None
    assert one.lines(80, 20)[-1] == "restart store.0? y: yes, any other key: no"
    assert pressed(one, "y") == Restart("store", 0)
    assert pressed(one, "r", "n") is None and one.note == ""
    assert pressed(one, "r", "q") is None, "no is no, whatever the key does else"


def test_selecting() -> None:
    one = screen()
    assert not any(line.startswith(">") for line in one.lines(80, 20))
    for keys, expected in [
        (["down"], "read"),
        (["j"], "parse"),
        (["down", "down", "down"], "store"),
        (["k"], "parse"),
        (["up", "up", "up"], "read"),
    ]:
        pressed(one, *keys)
        (line,) = (line for line in one.lines(80, 20) if line.startswith(">"))
        assert line.startswith(f"> {expected}.0 ")


def test_the_selection_stays_with_the_replica() -> None:
    one = screen()
    pressed(one, "down", "down", "down", "s", "s")
    assert order(one) == ["store", "parse", "read"]
    assert pressed(one, "+") == Scale("store", 2)
    one.show(status(replicas=[replica("read"), replica("store")]))
    assert pressed(one, "+") == Scale("store", 2)
    one.show(status(replicas=[replica("read")]))
    assert pressed(one, "+") is None, "it is gone"


def test_sorting() -> None:
    one = screen()
    assert order(one) == ["read", "parse", "store"]
    pressed(one, "s", "s")
    assert order(one) == ["store", "parse", "read"]
    assert "sorted by CPU, largest first" in one.lines(80, 20)
    pressed(one, "R")
    assert order(one) == ["read", "parse", "store"]
    assert "sorted by CPU, smallest first" in one.lines(80, 20)
    pressed(one, "S", "S")
    assert order(one) == ["read", "parse", "store"]
    assert not any("sorted" in line for line in one.lines(80, 20))
    pressed(one, "S")
    assert "sorted by RESTARTS, largest first" in one.lines(80, 20)
    assert order(one)[0] == "parse"


def test_links_and_help_come_and_go() -> None:
    one = screen()
    assert any("read.lines -> parse.lines" in line for line in one.lines(100, 30))
    pressed(one, "l")
    assert not any("read.lines -> parse.lines" in line for line in one.lines(100, 30))
    pressed(one, "?")
    shown = one.lines(100, 30)
    assert any("restart the selected replica" in line for line in shown)
    assert not any("IN/S" in line for line in shown)
    pressed(one, "?")
    assert any("IN/S" in line for line in one.lines(100, 30))


def test_looking_again() -> None:
    assert pressed(screen(), " ") == Look()


def test_other_keys_do_nothing() -> None:
    one = screen()
    before = one.lines(80, 24)
    for key in "abcdexyz1234567890!\t\n\x00ü":
        assert one.press(key) is None
    assert one.lines(80, 24) == before


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ("q", ["q"]),
        ("\x1b[A\x1b[Bq", ["up", "down", "q"]),
        ("\x1bOA\x1bOB", ["up", "down"]),
        ("\x1b[5~s", ["s"]),
        ("\x1b[1;5Cs", ["s"]),
        ("\x1b", []),
        ("\x1b[", []),
        ("\x1b[12", []),
        ("", []),
    ],
)
def test_what_terminals_send(data: str, keys: list[str]) -> None:
    assert keys_of(data) == keys


# ---------------------------------------------------------------------------- what is shown


def test_the_screen() -> None:
    one = screen()
    pressed(one, "down", "down")
    assert one.lines(100, 16) == [
        "clicks · running 2m11s · 3 replicas · http://127.0.0.1:8787",
        "bottleneck: store (busy 97 %; parse waited 61 % of the time) - try: scale store",
        "",
        "  NAME     STATE    UPTIME  CPU  MEM  BUSY  WAIT  IN/S  OUT/S  QUEUE    P99  RESTARTS",
        "  read.0   waiting   2m11s  12%  38M    0%   80%     -   5.0k      -      -         0",
        "> parse.0  running   2m11s  61%  44M   39%   61%  1.3k   1.3k     12  2.1ms         1",
        "  store.0  busy      2m11s  97%  61M   97%    0%  4.9k      -   8.1k   84ms         0",
        "",
        "  LINK                        SENT  DONE  DONE/S  IN FLIGHT  QUEUED  FULL  DROPPED  DEAD",
        "  read.lines -> parse.lines    61k   61k       0        203       0   80%        0     1",
        "  parse.events -> store.rows   61k   53k    4.9k       8.1k      41   61%      102     0",
        "",
        "",
        "",
        "",
        "q quit · ↑↓ select · s sort · + - scale · r restart · l links · ? help",
    ]


def test_before_anything_is_known() -> None:
    assert Screen().lines(80, 24) == ["connecting ..."]


def test_more_replicas_than_lines_show_the_selected_one() -> None:
    one = Screen()
    one.show(status(replicas=[replica("a", number) for number in range(50)]))
    assert "  a.0 " in "\n".join(one.lines(80, 15))
    pressed(one, *["down"] * 31)
    shown = one.lines(80, 15)
    assert len(shown) == 15 and sum(line.startswith("> a.30 ") for line in shown) == 1
    pressed(one, *["down"] * 40)
    assert any(line.startswith("> a.49 ") for line in one.lines(80, 15))


def test_links_give_way_to_replicas() -> None:
    one = screen()
    assert not any("LINK" in line for line in one.lines(100, 11))
    assert any("store.0" in line for line in one.lines(100, 11))


@given(
    st.integers(1, 130),
    st.integers(1, 40),
    st.booleans(),
    st.lists(st.sampled_from("sR?ljr+ "), max_size=9),
)
def test_it_fits_on_any_screen(width: int, height: int, colour: bool, keys: list[str]) -> None:
    one = screen()
    for key in keys:
        one.press(key)
    lines = one.lines(width, height, colour)
    assert len(lines) == height
    if width >= 30:
        assert all(len(ANSI.sub("", line)) <= width for line in lines)


def test_colours_change_no_letter() -> None:
    one = screen()
    pressed(one, "down")
    assert [ANSI.sub("", line) for line in one.lines(100, 24, True)] == one.lines(100, 24)
    assert any("\x1b" in line for line in one.lines(100, 24, True))
