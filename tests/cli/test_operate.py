"""The verbs for a running project in the hands of a user: up -d, ls, ps, logs, events, down."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowkit import cli
from flowkit.control.places import choose
from tests.conftest import Deadline, Eventually
from tests.e2e.harness import Place, alive, environment, link, node

pytestmark = pytest.mark.e2e
OWN = "tests.e2e.operated_nodes:"
eventually = Eventually()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)
    yield place
    for pid in detached(place):
        os.kill(pid, signal.SIGKILL)  # started here, and left by a test that failed
    place.close()


def detached(place: Place) -> list[int]:
    """The processes that `up -d` has started here and that still run."""
    wanted = f"{place.path}/"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("FLOWKIT_RUN_DIR", "").startswith(wanted) and (
                "flowkit up: " in " ".join(process.cmdline())
            ):
                found.append(process.pid)
    return found


def flowkit(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    here = Path.cwd()
    root = Path(os.environ["FLOWKIT_RUN_DIR"]).parent
    done = subprocess.run(
        [sys.executable, "-m", "flowkit", *arguments],
        cwd=here,
        env=environment(root, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "\nTraceback" not in f"\n{done.stderr}{done.stdout}", done.stderr + done.stdout
    return done


def chatty(place: Place, **settings: Any) -> Path:
    """Talks until the file `stop` exists."""
    facts = {"until": place.file("stop"), "burst": 1, **settings}
    return place.topology(
        {
            "talk": {**node("", settings=facts), "use": OWN + "Chatter"},
            "judge": {**node(""), "use": OWN + "Critic"},
        },
        [link("talk.numbers -> judge.numbers")],
    )


def gated(place: Place) -> Path:
    """It cannot drain before the file `gate` exists."""
    return place.topology(
        {
            "read": node("Numbers", settings={"until": place.file("stop")}),
            "gate": node("Gate", settings={"gate": place.file("gate")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> gate.numbers"), link("gate.results -> tally.numbers")],
    )


# ---------------------------------------------------------------------------- detached


def test_the_life_of_a_detached_run(place: Place) -> None:
    chatty(place)
    up = flowkit("up", "trial.yaml", "--wait", "--no-http")
    assert up.returncode == 0, up.stderr
    pid = choose("trial").pid
    assert pid is not None and up.stderr == ""
    assert up.stdout.startswith("trial runs: 2 replicas ready in ")
    assert up.stdout.endswith(f" (process {pid})\n")
    process = psutil.Process(pid)
    assert process.terminal() is None and os.getsid(pid) == pid

    listed = flowkit("ls")
    assert listed.stdout.splitlines()[0].split() == [
        "NAME", "STATE", "SINCE", "PID", "REPLICAS", "EXIT", "FILE",
    ]  # fmt: skip
    row = listed.stdout.splitlines()[1].split()
    assert (row[0], row[1], row[3], row[4], row[6]) == (
        "trial", "running", str(pid), "2", "trial.yaml",
    )  # fmt: skip
    (facts,) = map(json.loads, flowkit("ls", "--format", "json").stdout.splitlines())
    assert (facts["running"], facts["pid"], facts["exit"]) == (True, pid, None)

    ps = flowkit("ps")
    assert ps.returncode == 0 and "talk.0" in ps.stdout and "judge.0" in ps.stdout
    replicas = [json.loads(line) for line in flowkit("ps", "--format", "json").stdout.splitlines()]
    assert {each["node"] for each in replicas if "node" in each} == {"talk", "judge"}

    again = flowkit("up", "trial.yaml", "-d", "--no-http")
    assert again.returncode == 2 and f"already running: process {pid}" in again.stderr

    down = flowkit("down")
    assert down.returncode == 0, down.stderr
    assert down.stdout.startswith("trial is down: drained after ")
    assert "nothing lost" in down.stdout
    assert not alive(pid) and not place.leftovers()
    row = flowkit("ls").stdout.splitlines()[1].split()
    assert (row[1], row[3], row[5]) == ("drained", "-", "0")
    out = next(place.path.glob("s/*/logs/up.out")).read_text()
    assert "stopped and drained after" in out and "Traceback" not in out


def test_a_detached_run_takes_up_its_logs_again_and_shows_its_stacks(place: Place) -> None:
    chatty(place)
    assert flowkit("up", "trial.yaml", "--wait", "--no-http").returncode == 0
    pid = choose("trial").pid
    assert pid is not None
    (out,) = place.path.glob("s/*/logs/up.out")
    (log,) = place.path.glob("s/*/logs/talk.0.log")
    eventually(lambda: log.stat().st_size > 0)
    for path in (out, log):
        path.rename(path.with_suffix(".old"))
    os.kill(pid, signal.SIGHUP)
    eventually(out.exists)
    os.kill(pid, signal.SIGUSR1)
    eventually(lambda: "most recent call first" in out.read_text())
    eventually(lambda: log.exists() and log.stat().st_size > 0)
    assert choose("trial").pid == pid
    assert flowkit("down").returncode == 0
    assert "drained after" in out.read_text()


def test_logs_and_events_after_the_run(place: Place) -> None:
    chatty(place)
    assert flowkit("up", "trial.yaml", "--wait", "--no-http").returncode == 0
    eventually(lambda: "line 9" in flowkit("logs", "talk").stdout, 30)
    assert flowkit("down").returncode == 0

    logs = flowkit("logs")
    assert logs.returncode == 0
    lines = logs.stdout.splitlines()
    talk = [line for line in lines if line.startswith("talk.0     | ")]
    assert talk[0] == "talk.0     | line 0" and len(talk) > 9
    assert any(line.startswith("supervisor | trial has ended: drained") for line in lines)
    (warning,) = [line for line in lines if line.startswith("judge.0    | ")]
    assert "WARNING the first one is " in warning

    assert flowkit("logs", "talk", "-n", "2").stdout.splitlines() == talk[-2:]
    assert flowkit("logs", "-p", "trial", "--level", "warning", "judge").stdout == warning + "\n"
    assert flowkit("logs", "--grep", "line 7$").stdout == "talk.0     | line 7\n"
    assert flowkit("logs", "--since", "0s", "-f").stdout == "", "it does not run: no waiting"
    assert len(flowkit("logs", "--since", "1h", "talk").stdout.splitlines()) == len(talk)
    stamped = flowkit("logs", "-t", "talk", "-n", "1").stdout
    assert stamped.startswith("talk.0     | 20") and stamped.count(":") == 2
    found = [json.loads(line) for line in flowkit("logs", "--format", "json").stdout.splitlines()]
    assert len(found) == len(lines)
    assert {"time", "replica", "level", "text"} == set(found[0])
    times = [each["time"] for each in found]
    assert times == sorted(times)

    events = flowkit("events", "--format", "json").stdout.splitlines()
    names = [json.loads(line)["event"] for line in events]
    assert (names[0], names[-2:]) == ("starting", ["draining", "ended"])
    assert names.count("started") == 2 and "ready" in names
    assert len(flowkit("events").stdout.splitlines()) == len(events)
    last = flowkit("events", "--event", "started", "--tail", "1").stdout.splitlines()
    assert last == flowkit("events", "--event", "started").stdout.splitlines()[-1:]
    assert len(flowkit("events", "--event", "started").stdout.splitlines()) == 2

    # The next run begins anew; what was before is still there.
    place.touch("stop")
    assert flowkit("up", "trial.yaml", "--no-http").returncode == 0
    assert "line 3" not in flowkit("logs").stdout
    assert "line 3" in flowkit("logs", "--since", "1h").stdout


def test_following_events_until_the_end(place: Place) -> None:
    run = place.up(chatty(place), "--no-http")
    run.ready()
    command = [sys.executable, "-m", "flowkit", "events", "-f", "--format", "json"]
    with subprocess.Popen(
        command, cwd=place.path, env=environment(place.path), stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        first = json.loads(follower.stdout.readline())
        assert first["event"] == "starting"
        run.kill("judge.0")
        names = []
        while "restarted" not in names:
            names.append(json.loads(follower.stdout.readline())["event"])
        assert flowkit("down").returncode == 0
        names += [json.loads(line)["event"] for line in follower.stdout]
        assert follower.wait(30) == 0
    assert names.index("died") < names.index("restarted")
    assert names.count("started") == 2 and names[-1] == "ended", names
    assert run.wait().code == 0


@pytest.mark.parametrize("option", ["-d", "--wait"])
def test_a_topology_with_problems(place: Place, option: str) -> None:
    chatty(place).write_text("flowkit: 1\nnodes: {a: {use: nothing:Here}}\n")
    done = flowkit("up", "trial.yaml", option)
    assert done.returncode == 2 and done.stdout == ""
    assert "trial.yaml:2:" in done.stderr and "exit code 2" in done.stderr
    assert not detached(place)


def test_a_node_that_cannot_start(place: Place) -> None:
    topology = place.topology(
        {"read": node("Numbers"), "bad": node("Misconfigured")},
        [link("read.numbers -> bad.numbers")],
    )
    done = flowkit("up", str(topology), "--wait", "--no-http")
    assert done.returncode == 2, done.stderr
    assert "bad.0" in done.stderr and "it ended with exit code 2 before it was ready" in done.stderr
    assert not detached(place) and flowkit("ps").returncode == 6


def test_a_run_that_is_short(place: Place) -> None:
    topology = place.topology(
        {"read": node("Numbers", settings={"count": 5}), "talk": node("Talker")},
        [link("read.numbers -> talk.numbers")],
    )
    report = place.path / "report.json"
    done = flowkit("up", str(topology), "--wait", "--no-http", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    eventually(report.exists, 30)
    eventually(lambda: not detached(place), 30)
    assert json.loads(report.read_text())["exit"] == 0


def test_it_survives_the_terminal(place: Place) -> None:
    """What has started it goes away, with its terminal: a shell that is closed, say."""
    chatty(place)
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "flowkit", "up", "trial.yaml", "-d", "--no-http"],
        cwd=place.path,
        env=environment(place.path, TERM="xterm"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as up:
        os.close(slave)
        text = b""
        with contextlib.suppress(OSError):  # EIO: the last writer is gone
            while chunk := os.read(master, 1 << 16):
                text += chunk
        assert up.wait(30) == 0
    os.close(master)
    assert b"trial starts: 2 replicas" in text
    eventually(lambda: "running" in flowkit("ls").stdout, 30)
    assert flowkit("down").returncode == 0


# ---------------------------------------------------------------------------- changing


def test_every_change_is_confirmed(place: Place) -> None:
    topology = place.topology(
        {
            "read": node("Numbers", settings={"until": place.file("stop")}),
            "work": node("Work", replicas=2, settings={"busy": 100}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")],
    )
    run = place.up(topology, "--no-http")
    run.ready()

    scaled = flowkit("scale", "work=3")
    assert scaled.returncode == 0, scaled.stderr
    assert scaled.stdout.startswith("work 2 -> 3 replicas in ") and scaled.stdout.count("\n") == 1
    second = flowkit("up", "trial.yaml", "-d", "--no-http")
    assert second.returncode == 2 and second.stderr.startswith("error: already running: process")
    assert len(second.stderr.splitlines()) == 2 and second.stdout == ""

    assert flowkit("scale", "work=3").stdout == "work has 3 replicas already\n"
    names = [line.split()[0] for line in flowkit("ps").stdout.splitlines()[1:5]]
    assert names == ["read.0", "work.0", "work.1", "work.2"], "in the order of the file"
    assert json.loads(flowkit("ls", "--format", "json").stdout)["replicas"] == 5

    before = run.pid("work.1")
    restarted = flowkit("restart", "work.1")
    assert restarted.returncode == 0 and "restarted work.1" in restarted.stdout
    assert run.pid("work.1") != before

    stopped = flowkit("stop", "work")
    assert stopped.returncode == 0 and stopped.stdout.startswith("stopped work in ")
    assert "flowkit start work" in stopped.stdout
    assert "work.0" not in run.replicas()
    started = flowkit("start", "work")
    assert started.returncode == 0 and started.stdout.startswith("started work in ")

    tapped = flowkit("tap", "work.results", "-n", "2", "--format", "json")
    assert tapped.returncode == 0, tapped.stderr
    shown = [json.loads(line) for line in tapped.stdout.splitlines()]
    assert [each["node"] for each in shown] == ["work", "work"]
    assert all(isinstance(each["value"], int) for each in shown)
    text = flowkit("tap", "work.results", "-n", "1").stdout.splitlines()[-1]
    assert text.startswith("work.")

    level = flowkit("logs", "--set-level", "work.0=debug")
    assert (level.returncode, level.stdout) == (0, "work.0 logs from DEBUG on\n")

    content = json.loads(topology.read_text())
    content["nodes"]["work"]["replicas"] = 1
    topology.write_text(json.dumps(content))
    dry = flowkit("reload", "trial.yaml", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "~ node work: replicas 3 -> 1\n"), dry.stderr
    reloaded = flowkit("reload")
    assert reloaded.returncode == 0, reloaded.stderr
    assert reloaded.stdout.splitlines()[0] == "~ node work: replicas 3 -> 1"
    assert flowkit("reload").stdout == "nothing has changed\n"
    content["nodes"]["work"]["replcas"] = 2
    topology.write_text(json.dumps(content))
    wrong = flowkit("reload")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert "nothing is changed" in wrong.stderr and "did you mean 'replicas'?" in wrong.stderr

    for arguments, says in [
        (["scale", "wrok=2"], "did you mean 'work'?"),
        (["restart", "work.7"], "no replica work.7"),
        (["restart", "work.x"], "'work.x' is no replica: those are NODE.N, like work.0"),
        (["tap", "work.result"], "did you mean 'results'?"),
    ]:
        failed = flowkit(*arguments)
        assert (failed.returncode, failed.stdout) == (2, ""), failed.stderr
        assert says in failed.stderr
    events = [
        json.loads(line) for line in flowkit("events", "--format", "json").stdout.splitlines()
    ]
    asked = {"scaled", "rolled", "stopped", "resumed", "reloaded", "levelled"}
    assert asked <= {event["event"] for event in events}
    assert sum(event["event"] == "scaled" for event in events) == 1, "what was so is no event"
    place.touch("stop")
    result = run.wait()
    assert result.code == 0, result.text
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])


# ---------------------------------------------------------------------------- ending


def test_down_when_it_cannot_drain(place: Place) -> None:
    """It waits as long as it is told, and says what was given up."""
    topology = gated(place)
    run = place.up(topology, "--no-http")
    run.until(lambda: run.sent("read.0") > 10)
    done = flowkit("down", "--timeout", "300ms")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "trial is down: timed out" in done.stdout and "in flight given up" in done.stdout
    assert run.wait().code == 5

    run = place.up(topology, "--no-http", "--fresh")
    run.until(lambda: run.sent("read.0") > 10)
    done = flowkit("down", "trial.yaml", "--kill")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial is down: killed" in done.stdout
    assert run.wait().code == 130


def test_a_second_down_may_be_more_impatient(place: Place) -> None:
    topology = gated(place)
    run = place.up(topology, "--no-http")
    run.until(lambda: run.sent("read.0") > 10)
    command = [sys.executable, "-m", "flowkit", "down"]
    with subprocess.Popen(
        command, cwd=place.path, env=environment(place.path), stdout=subprocess.PIPE, text=True
    ) as patient:
        run.says("draining: ")
        assert flowkit("down", "--timeout", "100ms").returncode == 5
        assert patient.wait(30) == 5
        assert patient.stdout is not None and "is down: timed out" in patient.stdout.read()
    assert run.wait().code == 5


def test_down_kills_one_that_is_stopped(place: Place) -> None:
    run = place.up(chatty(place), "--no-http")
    run.ready()
    os.kill(run.process.pid, signal.SIGSTOP)
    done = flowkit("down", "--kill")
    assert done.returncode == 0, done.stderr
    assert f"process {run.process.pid} was killed" in done.stdout
    assert run.process.wait(10) == -signal.SIGKILL
    row = flowkit("ls").stdout.splitlines()[1].split()
    assert row[1] == "died"
    # What it has left behind goes with the next run.
    fresh = place.up(chatty(place), "--no-http", "--fresh")
    fresh.ready()
    assert flowkit("down").returncode == 0
    assert fresh.wait().code == 0


# ---------------------------------------------------------------------------- nothing runs

VERBS = [
    ["ps"],
    ["top", "--once"],
    ["down"],
    ["down", "--kill"],
    ["scale", "a=2"],
    ["restart", "a.0"],
    ["stop", "a"],
    ["start", "a"],
    ["reload"],
    ["tap", "a.b"],
    ["logs", "--set-level", "a=DEBUG"],
]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_RUN_DIR", str(tmp_path / "r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize("named", [[], ["-p", "clicks"]], ids=["here", "named"])
@pytest.mark.usefixtures("nowhere")
def test_nothing_runs(
    verb: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*verb, *named]) == 6
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 2
    assert err.startswith("error: not running: ")
    assert "clicks" in err if named else "this directory" in err
    assert "flowkit ls" in err


@pytest.mark.usefixtures("nowhere")
def test_nothing_has_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls"]) == 0
    assert capsys.readouterr().err == "no project runs or has run here\n"
    for verb in (["logs"], ["events"], ["logs", "-f"]):
        assert cli.main(verb) == 2
        assert "no project has run here" in capsys.readouterr().err
        assert cli.main([*verb, "-p", "clicks"]) == 2
        assert "'clicks' has never run here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["scale"], "Missing argument"),
        (["scale", "a"], "'a' is not NODE=N"),
        (["scale", "a=-1"], "'a=-1' is not NODE=N"),
        (["scale", "a=1", "a=2"], "named twice"),
        (["restart"], "Missing argument"),
        (["tap", "a"], "'a' is not NODE.CHANNEL"),
        (["tap", "a.b", "-n", "0"], "0 is not in the range"),
        (["logs", "--since", "soon"], "'soon' is no time"),
        (["logs", "--level", "LOUD"], "LOUD"),
        (["logs", "--set-level", "a"], "NODE=LEVEL"),
        (["ps", "a", "-p", "b"], "name the project once"),
        (["down", "--timeout", "soon"], "soon"),
        (["up", "x.yaml", "-d", "--in-process"], "foreground"),
        (["dwn"], "did you mean 'down'"),
        (["pss"], "did you mean 'ps'"),
    ],
)
@pytest.mark.usefixtures("nowhere")
def test_what_is_typed_wrongly(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("nowhere")
def test_a_regular_expression_that_is_none(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.up(chatty(place), "--no-http") and place.touch("stop") is None
    place.runs[0].wait()
    assert cli.main(["logs", "-p", str(place.path / "trial.yaml"), "--grep", "("]) == 2
    assert "no regular expression" in capsys.readouterr().err
    assert cli.main(["logs", "-p", str(place.path / "trial.yaml"), "tolk"]) == 2
    err = capsys.readouterr().err
    assert "trial has no node 'tolk'" in err and "did you mean 'talk'?" in err


# ---------------------------------------------------------------------------- pipes and languages


def test_the_reader_of_logs_goes_away(place: Place) -> None:
    """`flowkit logs -f | head -1` ends, also when nothing more is printed, without a word."""
    run = place.up(chatty(place, hush=place.file("hush")), "--no-http")
    run.ready()
    run.says("line 5")
    place.touch("hush")
    for verb in (["logs", "-f"], ["events", "-f"]):
        reader, writer = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-m", "flowkit", *verb],
            cwd=place.path,
            env=environment(place.path),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        ) as follower:
            os.close(writer)
            with open(reader, encoding="utf-8") as lines:
                assert lines.readline()
            deadline = Deadline(30)
            assert follower.wait(30) == 141
            assert follower.stderr is not None and follower.stderr.read() == ""
            assert not deadline.passed
    with Path(place.file("ls")).open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "flowkit", "ls"],
            cwd=place.path,
            env=environment(place.path),
            stdout=out,
        )
        assert done.returncode == 0
    place.touch("stop")
    assert run.wait().code == 0


@pytest.mark.parametrize(
    "env",
    [{"LANG": "C", "LC_ALL": "C"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}],
    ids=str,
)
def test_languages_and_colours(place: Place, env: dict[str, str]) -> None:
    place.touch("stop")
    assert place.up(chatty(place), "--no-http").wait().code == 0
    for verb in (["ls"], ["logs"], ["events"], ["logs", "--format", "json"]):
        done = flowkit(*verb, **env)
        assert done.returncode == 0 and done.stderr == ""
        coloured = "FORCE_COLOR" in env and verb in (["logs"], ["events"])
        assert ("\x1b[" in done.stdout) == coloured, verb


@pytest.mark.parametrize("how", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(place: Place, how: str) -> None:
    place.touch("stop")
    assert place.up(chatty(place), "--no-http").wait().code == 0
    for verb in ("ls", "logs", "events", "ps"):
        command = f"exec {sys.executable} -m flowkit {verb} {how}"
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=place.path,
            env=environment(place.path),
            timeout=60,
            capture_output=True,
            text=True,
        )
        assert done.returncode == (6 if verb == "ps" else 0), done.stderr
        assert "Traceback" not in done.stderr
