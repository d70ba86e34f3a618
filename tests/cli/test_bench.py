"""`flowkit bench`: its options, its words, and one tiny run of it."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path

import pytest

from flowkit import cli
from flowkit.bench import charts
from flowkit.bench.results import Contestant, Outcome, Row, RowResult
from flowkit.bench.rows import ROWS, peers
from flowkit.bench.session import Pace, Progress

bench = importlib.import_module("flowkit.cli.bench")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Pace]]:
    """Nothing is run: every contestant has passed a thousand messages a second, flowkit more."""
    ran: list[tuple[str, Pace]] = []

    def run_row(row: Row, pace: Pace, progress: Progress) -> RowResult:
        ran.append((row.name, pace))
        outcomes = []
        for contestant in row.contestants:
            progress(row, contestant, "round 1/1")
            rate = 30_000.0 if "flowkit" in contestant.name else 1000.0
            keys = [figure.key for figure in row.figures]
            outcomes.append(Outcome(contestant, rounds=[dict.fromkeys(keys, rate)]))
        return RowResult(row, outcomes)

    monkeypatch.setattr(bench, "run_row", run_row)
    return ran


def test_one_row(measured: list[tuple[str, Pace]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--only", "seed", "--rounds", "7"]) == 0
    assert measured == [("seed", Pace(bench.FULL.seconds, 7))]
    out, err = capsys.readouterr()
    assert err == "", "no progress where nobody looks"
    assert out.startswith("flowkit ")
    for line in ("processor ", "libraries ", "load average ", "seed: 7-byte messages", "to reach"):
        assert line in out, line
    assert "aim met" in out and "met" in out
    assert max(map(len, out.splitlines())) <= 120


def test_all_rows(measured: list[tuple[str, Pace]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--quick"]) == 0
    expected = [name for name in ROWS if name != "peers" or peers.installed()]
    assert measured == [(name, bench.QUICK) for name in expected]
    assert "figures to quote need a full run" in capsys.readouterr().out


def test_rows_are_named_again_or_with_commas(measured: list[tuple[str, Pace]]) -> None:
    assert cli.main(["bench", "--only", "large,seed", "--only", "objects"]) == 0
    assert [name for name, _ in measured] == ["seed", "objects", "large"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "sed"], "no row 'sed'; did you mean 'seed'?"),
        (["--only", "nothing"], "no row 'nothing'; rows are seed, objects"),
        (["--only", ","], "names no row"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
    ],
)
def test_bad_usage(
    arguments: list[str],
    words: str,
    measured: list[tuple[str, Pace]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not measured


def test_a_place_that_cannot_be_written_to(
    measured: list[tuple[str, Pace]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["bench", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot make" in capsys.readouterr().err
    assert not measured


def test_without_matplotlib_there_are_no_charts(
    measured: list[tuple[str, Pace]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(charts, "available", lambda: False)
    assert cli.main(["bench", "--only", "seed", "--out", str(tmp_path / "new")]) == 0
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["results.json", "results.txt"]
    out, err = capsys.readouterr()
    assert (tmp_path / "new" / "results.txt").read_text(encoding="utf-8") == out
    assert "pip install 'flowkit[bench]'" in err


@pytest.fixture(scope="module")
def fonts() -> None:
    """matplotlib keeps the files of the fonts open that it has drawn with, for the next figure: it
    has done so before the test begins."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.text(0, 0, "text")
    figure.savefig(io.BytesIO())


def test_charts(fonts: None, measured: list[tuple[str, Pace]], tmp_path: Path) -> None:
    assert cli.main(["bench", "--only", "seed,latency", "--out", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latency.png", "results.json", "results.txt", "seed.png"]
    assert (tmp_path / "seed.png").read_bytes().startswith(b"\x89PNG")


def test_a_failure_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_row(row: Row, pace: Pace, progress: Progress) -> RowResult:
        return RowResult(row, [Outcome(Contestant("it", "m:f"), failure="has not ended")])

    monkeypatch.setattr(bench, "run_row", run_row)
    assert cli.main(["bench", "--only", "large"]) == 1
    assert "it: FAILED: has not ended" in capsys.readouterr().out


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_row(row: Row, pace: Pace, progress: Progress) -> RowResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_row", run_row)
    assert cli.main(["bench", "--only", "seed"]) == cli.EXIT_INTERRUPTED


@pytest.mark.e2e
def test_a_tiny_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few thousand messages through each contestant. A round in which one is missing fails."""
    monkeypatch.setattr(bench, "QUICK", Pace(seconds=0.003, rounds=1))
    code = cli.main(["bench", "--quick", "--only", "seed", "--json", "--out", str(tmp_path)])
    data = json.loads(capsys.readouterr().out)
    assert code == 0, data
    assert data == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (data["mode"], data["rounds"], list(data["rows"])) == ("quick", 1, ["seed"])
    contestants = data["rows"]["seed"]["contestants"]
    assert len(contestants) == 7
    for each in contestants:
        assert each["failure"] is each["skipped"] is None
        (figures,) = each["rounds"]
        assert figures["count"] == each["messages"] > 1
        assert figures["rate"] > 0
    assert [each["row"] for each in data["verdict"]] == ["seed"] * 4
    assert all(each["measured"] for each in data["verdict"])
