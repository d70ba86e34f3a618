"""Servers in processes of their own that are killed with a question in hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.harness import Place, link

OWN = "tests.e2e.asking_nodes:"


def asking(place: Place, count: int, retries: int, replicas: int, transport: str) -> Path:
    server = {"at": count // 2, "marker": place.file("marker")}
    return place.topology(
        {
            "client": {"use": f"{OWN}Client", "with": {"count": count, "retries": retries}},
            "server": {"use": f"{OWN}Server", "with": server, "replicas": replicas},
        },
        [link("client.answer -> server.answer", pattern="request", transport=transport)],
    )


def test_a_killed_server_is_a_named_error(place: Place) -> None:
    """Only for what it had in hand: what waited is asked of others, or of the next incarnation."""
    result = place.up(asking(place, 200, 0, 2, "tcp")).wait()
    assert result.report["exit"] == 0, result.text
    lines = result.printed("client.0")
    lost = {number for number, line in enumerate(lines) if line != str(number)}
    assert 100 in lost and len(lines) == 200
    for number in lost:
        assert re.fullmatch(
            r"ServerLost of (server\.\d): \1 died with the question in hand", lines[number]
        )
    asked = result.link("client.answer -> server.answer")
    assert (asked["sent"], asked["done"]) == (200, 200 - len(lost))
    assert asked["dropped"] == {"server lost": len(lost)} and asked["redelivered"] == 0
    assert result.restarts("server") == 1


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_with_retries_another_server_answers(place: Place, replicas: int) -> None:
    """Another one, or the same when it is back."""
    result = place.up(asking(place, 200, 1, replicas, "auto")).wait()
    result.check_drained()
    assert result.printed("client.0") == [str(number) for number in range(200)]
    asked = result.link("client.answer -> server.answer")
    assert asked["done"] == 200 and asked["redelivered"] > 0
    assert result.restarts("server") == 1
