"""Dead letters of real projects: they survive, are replayed where they belong, and add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Place, environment, link, node

OWN = "tests.e2e.faulty_nodes:"
LINK = "read.numbers -> work.numbers"


def project(
    place: Place, replicas: int = 1, until: str = "", kill: bool = False, count: int = 20
) -> Path:
    """Numbers for workers that refuse every tenth, until they are `mended`."""
    settings: dict[str, Any] = {name: place.file(name) for name in ("path", "mended")}
    reader = {"count": count, "until": place.file(until)} if until else {"count": count}
    reading = node("Held" if until else "Numbers", settings=reader)
    work = {
        **node("", replicas=replicas, settings={**settings, "modulus": 10, "kill": kill}),
        "use": OWN + "Strict",
    }
    route = {"route": "key"} if replicas > 1 else {}
    return place.topology(
        {"read": reading, "work": work}, [link("read.numbers -> work.numbers", **route)]
    )


def dead_letters(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowkit", "dead-letters", *arguments]
    done = subprocess.run(
        command, cwd=place.path, env=environment(place.path), capture_output=True, text=True
    )
    assert "\nTraceback (most" not in f"\n{done.stdout}\n{done.stderr}", done.stderr
    return done


def kept(place: Place) -> list[dict[str, Any]]:
    done = dead_letters(place, "ls", "trial", "--format", "json")
    # Before all replicas are ready it has never run.
    assert done.returncode == 0 or "there is no project" in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def handled(place: Place) -> dict[int, tuple[int, str]]:
    """The replica and the id of each number that was handled; none twice."""
    found: dict[int, tuple[int, str]] = {}
    for line in (place.path / "path").read_text().splitlines():
        replica, number, id = line.split()
        assert int(number) not in found, "twice"
        found[int(number)] = (int(replica), id)
    return found


def test_on_a_stopped_project(place: Place) -> None:
    topology = project(place)
    assert place.up(topology).wait().code == 4
    letters = kept(place)
    assert [bytes.fromhex(each["raw"])[0] for each in letters] == [9, 19]

    again = dead_letters(place, "replay", "trial", "--all")
    assert again.returncode == 4
    assert "ValueError: no 9 here" in again.stderr
    assert "replayed 2 dead letters: 0 done, 2 dead" in again.stdout
    assert [each["number"] for each in kept(place)] == [1, 2], "the same letters"

    place.touch("mended")
    done = dead_letters(place, "replay", str(topology), "2")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "2: done")
    assert [each["number"] for each in kept(place)] == [1]
    assert dead_letters(place, "replay", "trial", "1").returncode == 0
    assert kept(place) == []
    found = handled(place)
    assert sorted(found) == list(range(20))
    assert {found[9][1], found[19][1]} == {each["message"] for each in letters}
    # The next run reads from the beginning, and asks nothing: nothing was left behind.
    assert place.up(topology).wait().code == 0


def test_on_a_running_project(place: Place) -> None:
    """The books after it say what became of each in the end."""
    run = place.up(project(place, until="stop"))
    run.says("no 19 here")
    run.until(lambda: len(kept(place)) == 2)
    again = dead_letters(place, "replay", "trial", "1")
    assert again.returncode == 4 and "it failed again" in again.stdout
    place.touch("mended")
    done = dead_letters(place, "replay", "trial", "1")
    assert (done.returncode, done.stdout) == (
        0,
        "1: done\nreplayed 1 dead letter: 1 done, 0 dead\n",
    )
    assert [each["number"] for each in kept(place)] == [2]
    dropped = dead_letters(place, "drop", "trial", "2")
    assert dropped.stdout == "dropped 1 dead letter\n"
    place.touch("stop")
    result = run.wait()
    assert result.code == 4, "one was given up"
    entry = result.link(LINK)
    assert (entry["sent"], entry["done"], entry["dead_lettered"]) == (20, 19, 1)
    assert sorted(handled(place)) == [number for number in range(20) if number != 19]


def test_all_are_done_in_the_end(place: Place) -> None:
    run = place.up(project(place, until="stop"))
    run.until(lambda: len(kept(place)) == 2)
    place.touch("mended")
    assert dead_letters(place, "replay", "trial", "--all").returncode == 0
    place.touch("stop")
    result = run.wait()
    assert (result.code, result.report["status"]) == (0, "drained"), result.text
    entry = result.link(LINK)
    assert (entry["sent"], entry["done"], entry["dead_lettered"]) == (20, 20, 0)
    assert sorted(handled(place)) == list(range(20))


def test_letters_of_an_earlier_run(place: Place) -> None:
    """They are sent anew in the books of this one."""
    assert place.up(project(place)).wait().code == 4
    place.touch("mended")
    run = place.up(project(place, until="stop", count=5))
    run.ready()
    done = dead_letters(place, "replay", "trial", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    assert result.link(LINK)["done"] == 5 + 2


def test_a_keyed_link(place: Place) -> None:
    """Each goes to the replica that has its key."""
    count = 200
    assert place.up(project(place, replicas=3, count=count)).wait().code == 4
    letters = {each["message"]: each["replica"] for each in kept(place)}
    assert len(letters) == 20 and set(letters.values()) == {0, 1, 2}
    place.touch("mended")
    assert dead_letters(place, "replay", "trial", "--all").returncode == 0
    found = handled(place)
    assert sorted(found) == list(range(count))
    replayed = {id: replica for replica, id in found.values() if id in letters}
    assert replayed == letters


def test_they_survive_a_kill(place: Place) -> None:
    run = place.up(project(place, until="stop"))
    run.until(lambda: len(kept(place)) == 2)
    run.process.kill()
    run.process.wait()
    assert [each["number"] for each in kept(place)] == [1, 2]
    place.touch("mended")
    assert dead_letters(place, "replay", "trial", "--all").returncode == 0
    assert kept(place) == []


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_a_letter_that_kills(place: Place, running: bool) -> None:
    """It stays a dead letter, and does no harm to others."""
    topology = project(place, until="stop" if running else "", kill=True)
    run = place.up(topology)
    run.until(lambda: len(kept(place)) == 2) if running else run.wait()
    place.touch("mended")  # now they kill
    done = dead_letters(place, "replay", "trial", "1")
    assert done.returncode == 4
    assert "died while it tried" in done.stdout
    assert [each["number"] for each in kept(place)] == [1, 2]
    if running:
        run.says("killed by SIGSEGV")
        place.touch("stop")
        result = run.wait()
        assert result.code == 4
        assert result.link(LINK)["dead_lettered"] == 2
        assert result.restarts("work") == 1


def test_two_projects_of_one_name(place: Place) -> None:
    for folder in ("one", "two"):
        topology = place.topology(
            {"read": node("Numbers", settings={"count": 3}), "talk": node("Talker")},
            [link("read.numbers -> talk.numbers")],
            folder=folder,
        )
        assert place.up(topology).wait().code == 0
    done = dead_letters(place, "ls", "trial")
    assert done.returncode == 2 and "there are 2 projects 'trial'" in done.stderr
    assert dead_letters(place, "ls", "one/trial.yaml").stdout == "no dead letters\n"
