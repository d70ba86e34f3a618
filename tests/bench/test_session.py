"""Rounds are real processes: what fails is told, what hangs is ended, and nothing is left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flowkit.bench.results import Contestant, Figure, Row
from flowkit.bench.rows import load
from flowkit.bench.session import Pace, RoundFailed, run_round, run_row

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent

TINY = Pace(seconds=0.003, rounds=1)


@pytest.fixture(autouse=True)
def odd_contestants_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def odd(name: str, **more: object) -> Contestant:
    return Contestant(name, f"odd_contestants:{name}", **more)  # type: ignore[arg-type]


def row(*contestants: Contestant) -> Row:
    return Row("odd", "", "", [Figure("rate", "", "rate")], contestants)


def quiet(*_: object) -> None:
    return None


def test_contestants_take_turns() -> None:
    seen = []
    result = run_row(
        row(odd("fine"), odd("also_fine", rounds=1)),
        Pace(0.1, 2),
        lambda _, contestant, step: seen.append((contestant.name, step)),
    )
    assert seen == [
        ("fine", "round 1/2"),
        ("also_fine", "round 1/1"),
        ("fine", "round 2/2"),
    ]
    assert [len(each.rounds) for each in result.outcomes] == [2, 1]


def test_a_contestant_that_fails_is_reported_and_the_others_go_on() -> None:
    result = run_row(row(odd("raises"), odd("fine"), odd("dies"), odd("lies")), TINY, quiet)
    raises, fine, dies, lies = result.outcomes
    assert "failed with exit code 1" in raises.failure
    assert "ValueError: this contestant cannot" in raises.failure
    assert not fine.failure and fine.values("rate") == [1.0]
    assert "was killed by signal 9" in dies.failure
    assert "99 messages have arrived, and 100 were sent" in lies.failure


def test_what_a_contestant_prints_is_not_taken_for_figures() -> None:
    assert run_round(odd("talks")) == {"rate": 2.0}


def test_a_peer_that_is_not_installed_is_left_out() -> None:
    result = run_row(row(odd("fine", needs="no_such_module_at_all")), TINY, quiet)
    assert result.outcomes[0].skipped == "no_such_module_at_all is not installed"


def test_what_hangs_is_ended_with_all_it_has_started(
    tmp_path: Path, eventually: Callable[..., object]
) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(RoundFailed, match="has not ended after 3 s"):
        run_round(odd("hangs", settings={"pids": str(pids)}, limit=3.0))
    eventually(lambda: gone(pids))


def test_an_interrupt_ends_everything(tmp_path: Path, eventually: Callable[..., object]) -> None:
    pids = tmp_path / "pids"

    def interrupt() -> None:
        eventually(lambda: pids.exists() and pids.read_text().endswith("\n"), 30.0)
        # To the thread that waits: it is its wait that a signal has to interrupt.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_round(odd("hangs", settings={"pids": str(pids)}))
    finally:
        interrupting.join()
    eventually(lambda: gone(pids))


def gone(pids: Path) -> bool:
    """Whether nothing of what a contestant has noted runs any more; a moment after it was killed
    somebody may still have to collect it."""
    found = [int(pid) for pid in pids.read_text().split()]
    assert len(found) == 2
    for pid in found:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            continue
    return True


@pytest.mark.parametrize("name", ["objects", "pipeline", "fanout", "latency", "large", "foreign"])
def test_every_contestant_of_a_row_passes_all_its_messages(name: str) -> None:
    """Few messages; a round in which one of them is missing fails."""
    found = load(name, quick=False)
    for contestant in found.contestants:
        arguments: dict[str, float] = {}
        if contestant.first:
            arguments["count"] = 8 if name == "large" else 2000
        if contestant.load:
            arguments["rate"] = 20_000.0
        elif "count" in contestant.settings:  # a latency at rest
            arguments["count"] = 100
        figures = run_round(contestant, **arguments)
        assert {figure.key for figure in found.figures} <= set(figures), contestant.key
        assert figures["count"] >= arguments.get("count", 1)


@pytest.mark.parametrize("name", ["start", "growth", "recovery"])
def test_the_rows_that_watch(name: str) -> None:
    found = load(name, quick=True)
    for contestant in found.contestants:
        settings = dict(contestant.settings)
        if name == "growth":
            if "count" not in settings:
                continue
            settings["count"] = 5000
        if name == "start":
            settings |= {"idle": 0.1, "replicas": 2}
        small = Contestant(contestant.name, contestant.run, settings, limit=contestant.limit)
        figures = run_round(small)
        assert figures
        if name == "start":
            assert figures["pss"] > 1 << 20
        if name == "recovery" and "flowkit" in contestant.name:
            assert figures["lost"] == figures["doubled"] == 0
            assert figures["restarted"] > 0
