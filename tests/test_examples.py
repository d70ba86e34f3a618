"""Every topology in ``topologies/`` and every program in ``examples/`` does what it says."""

from __future__ import annotations

import io
import json
import keyword
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from examples import fanout, quickstart, wordcount
from tests.conftest import Eventually
from tests.e2e.harness import ROOT, Place, Result, environment

TOPOLOGIES = ROOT / "topologies"
MOTIVATION = ROOT / "examples" / "motivation"


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def up(place: Place, name: str, *options: str, **env: str) -> Result:
    """Run a topology of the repository to its end; everything is done and nothing is lost."""
    result = place.up(TOPOLOGIES / f"{name}.yaml", *options, env=env).wait()
    result.check_drained()
    for link in result.report["links"]:
        assert link["sent"] == link["done"] > 0, link
    return result


def drawing(path: Path) -> str:
    """The comment at the head of a topology."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines[: lines.index("")])


@pytest.mark.parametrize("path", sorted(TOPOLOGIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_topology_says_what_it_does_and_draws_it(path: Path) -> None:
    head = drawing(path)
    assert f"flowkit up topologies/{path.name}" in head
    assert "--" in head and ">" in head
    for node in re.findall(r"^  (\w+):$", path.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"\b{node}\b", head), f"{node} is not in the drawing"


# ---------------------------------------------------------------------------- quickstart

BROKEN = {
    "not_closed.py": b'before = 1\ntext = """never closed\nafter = 2\n',
    "bracket.py": b"before = (1,\n",
    "indent.py": b"if before:\n        inner = 1\n    wrong = 2\nafter = 3\n",
    "cookie.py": b"# -*- coding: no-such-encoding -*-\nbefore = 1\n",
    "latin.py": "# -*- coding: latin-1 -*-\ncafé = 1\n".encode("latin-1"),
    "not_utf8.py": b"before = 1\nname = '\xff'\nafter = 2\n",
    "nul.py": b"before = 1\nname\0 = 2\n",
    "bom.py": b"\xef\xbb\xbfmarked = 1\n",
    "crlf.py": b"lines = 1\r\nlines += 1\r\n",
    "no_newline.py": b"last = first",
    "empty.py": b"",
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A directory of Python files, some broken, some where they are easily overlooked."""
    root = tmp_path / "sources"
    (root / "package" / "tests").mkdir(parents=True)
    for name, content in BROKEN.items():
        (root / name).write_bytes(content)
    for number in range(12):
        text = f"def function_{number}(self, match):\n    return self.value + match\n"
        (root / "package" / f"module_{number}.py").write_text(9 * number * text)
    (root / "package" / "tests" / "test_it.py").write_text("größe = 'not a name' # nor this\n")
    (root / "package" / "notes.txt").write_text("nothing = 1\n")
    (root / "dangling.py").symlink_to("nowhere.py")
    (root / "directory.py").mkdir()
    return root


def counted(path: str | Path) -> dict[str, int]:
    return json.loads(Path(path).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.mark.e2e
@pytest.mark.parametrize("options", [(), ("--in-process",)], ids=["processes", "in process"])
def test_the_quickstart_counts_what_a_plain_loop_counts(
    place: Place, sources: Path, options: tuple[str, ...]
) -> None:
    result = up(place, "quickstart", *options, ROOT=str(sources), OUT=place.file("names.json"))
    expected = quickstart.count_files(str(sources))
    found = counted(place.file("names.json"))
    assert found == expected
    assert list(found) == sorted(found)
    assert result.link("list.files -> tokenize.files")["sent"] == len(BROKEN) + 13
    assert result.link("tokenize.names -> count.names")["sent"] == expected.total()
    assert not [name for name in os.listdir(place.path) if "names.json." in name]


@pytest.mark.e2e
def test_the_quickstart_prints_a_table_with_bars(place: Place, sources: Path) -> None:
    result = up(place, "quickstart", ROOT=str(sources), OUT=place.file("names.json"))
    expected = quickstart.count_files(str(sources))
    *rows, last = result.printed("show.0")
    ranking = sorted(expected.items(), key=lambda item: (-item[1], item[0]))[:20]
    assert [tuple(row.split()[:2]) for row in rows] == [(n, f"{c:,}") for n, c in ranking]
    assert len({row.index(row.split()[2]) for row in rows}) == 1, "the bars begin in one column"
    assert max(row.count("█") for row in rows) == rows[0].count("█") == 32
    assert last.startswith(f"{len(expected):,} identifiers, {expected.total():,} uses")


@pytest.mark.e2e
def test_the_bars_are_ascii_where_the_locale_is(place: Place, sources: Path) -> None:
    result = up(place, "quickstart", ROOT=str(sources), OUT=place.file("o"), LANG="C", LC_ALL="C")
    first, *_ = result.printed("show.0")
    assert first.endswith(" " + 32 * "#")
    assert "\\u" not in result.out


def many_modules(root: Path, count: int, size: int = 900) -> Path:
    """A directory of modules that take a while to read."""
    root.mkdir()
    for number in range(count):
        text = f"name_{number} = shared(other.name_{number % 7}, value)\n" * size
        (root / f"module_{number}.py").write_text(text)
    return root


def check_counts_in_spite_of_deaths(place: Place, result: Result, root: str) -> None:
    assert result.code == 0, result.text
    assert counted(place.file("names.json")) == quickstart.count_files(root)
    for link in result.report["links"]:
        assert link["sent"] == link["done"] + link["superseded"], link
        assert link["in_flight"] == 0, link
    assert result.total("redelivered") > 0, "what the dead had in hand was delivered again"
    assert not any(node["lost_state"] for node in result.report["nodes"])


@pytest.mark.e2e
@pytest.mark.parametrize(
    "modules", [300, pytest.param(0, id="standard library", marks=pytest.mark.slow)]
)
@pytest.mark.timeout(300)
def test_a_tokenizer_killed_every_300_ms_changes_no_count(
    place: Place, tmp_path: Path, modules: int
) -> None:
    root = str(many_modules(tmp_path / "many", modules, 300)) if modules else ""
    run = place.up(
        TOPOLOGIES / "quickstart.yaml", env={"ROOT": root, "OUT": place.file("names.json")}
    )
    run.until(lambda: run.handled("tokenize.0") > 3)
    kills = 0
    while run.process.poll() is None:
        pid = run.replicas().get(f"tokenize.{kills % 2}")
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            kills += 1
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(0.3)
    result = run.wait()
    print(f"{kills} kills, {result.restarts('tokenize')} restarts")
    check_counts_in_spite_of_deaths(place, result, root)
    assert kills >= result.restarts("tokenize") > 1


@pytest.mark.e2e
def test_killed_tokenizers_change_no_count(place: Place, tmp_path: Path) -> None:
    root = many_modules(tmp_path / "many", 80)
    run = place.up(
        TOPOLOGIES / "quickstart.yaml",
        env={"ROOT": str(root), "OUT": place.file("names.json")},
    )
    for number in range(3):
        name = f"tokenize.{number % 2}"
        # In the middle of its work: it has handled something, and much more is waiting.
        run.until(lambda name=name: run.handled(name) > 3)
        run.kill(name)
        run.says(f"{name} was killed by SIGKILL", times=number // 2 + 1)
    result = run.wait()
    check_counts_in_spite_of_deaths(place, result, str(root))
    assert result.restarts("tokenize") == 3


@pytest.mark.e2e
def test_a_killed_counter_is_reported_as_lost_state(place: Place, sources: Path) -> None:
    for number in range(40):
        (sources / f"more_{number}.py").write_text("name = other + name\n" * 2000)
    run = place.up(
        TOPOLOGIES / "quickstart.yaml",
        env={"ROOT": str(sources), "OUT": place.file("names.json")},
    )
    run.until(lambda: run.handled("count.0") > 0)
    run.kill("count.0")
    result = run.wait()
    expected = quickstart.count_files(str(sources))
    found = counted(place.file("names.json"))
    assert result.replica("count.0")["lost_state"]
    assert "count.0 died 1 time and lost what it held in memory" in result.out
    assert found.keys() <= expected.keys()
    assert sum(found.values()) < expected.total(), "it forgot what it had counted"
    assert all(found[name] <= expected[name] for name in found), "and nothing was doubled"


@pytest.mark.e2e
@pytest.mark.parametrize(
    "env", [{"ROOT": "no/such/place"}, {"OUT": "no/such/place/x.json"}], ids=["ROOT", "OUT"]
)
def test_the_quickstart_says_at_once_what_it_cannot_read_or_write(
    place: Place, env: dict[str, str]
) -> None:
    result = place.up(TOPOLOGIES / "quickstart.yaml", env=env).wait()
    assert result.code == 2, result.text
    assert "no/such/place" in result.out


def test_the_standard_library_comes_without_its_tests() -> None:
    found = [Path(path).parts for path in quickstart.python_files()]
    assert ("asyncio", "events.py") in {parts[-2:] for parts in found}
    assert len(found) > 300
    # Below the library itself: what it is called is no concern of ours.
    top = len(Path(os.__file__).parent.parts)
    inner = {part for parts in found for part in parts[top:]}
    assert not inner & {"test", "tests", "idle_test", "site-packages", "dist-packages"}


def test_identifiers_are_names_that_are_no_keywords(tmp_path: Path) -> None:
    path = tmp_path / "it.py"
    path.write_text(
        "async def match(self):  # comment\n    return 'text' + self.x if None else _\n"
    )
    assert list(quickstart.identifiers(str(path))) == ["match", "self", "self", "x", "_"]
    every = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.NAME
    ]
    assert {word for word in every if keyword.iskeyword(word)} == {
        *("async", "def", "return", "if", "None", "else")
    }


def test_of_a_broken_file_counts_what_comes_before_the_error(sources: Path) -> None:
    first = {name: next(quickstart.identifiers(str(sources / name)), "") for name in BROKEN}
    assert first["not_closed.py"] == first["bracket.py"] == first["indent.py"] == "before"
    assert first["latin.py"] == "café"
    assert first["cookie.py"] == first["empty.py"] == ""
    assert (first["bom.py"], first["crlf.py"], first["no_newline.py"]) == (
        *("marked", "lines", "last"),
    )


def test_a_source_goes_on_from_a_position(sources: Path) -> None:
    source = quickstart.ListFiles(str(sources))
    everything = list(source.read(None))
    assert source.length() == len(everything)
    assert everything[5:] == list(source.read(everything[4][1]))


def test_the_table_fits_what_it_shows() -> None:
    assert quickstart.table([]) == []
    assert quickstart.table([("a", 1600), ("long", 800), ("rare", 1)], width=4) == [
        "a        1,600 ████",
        "long       800 ██",
        "rare         1 ▏",
    ]


# ---------------------------------------------------------------------------- word count


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "more").mkdir(parents=True)
    (root / "one.txt").write_text("The cat saw the dog.\nIt didn't run, the cat.\n")
    (root / "more" / "two.txt").write_bytes(b"the end\r\nno newline \xff here")
    (root / "picture.png").write_bytes(b"PNG\0 the the the")
    (root / ".hidden").write_text("the the the\n")
    (root / "empty.txt").touch()
    return root


@pytest.mark.e2e
def test_wordcount_counts_the_words_of_a_directory(place: Place, texts: Path) -> None:
    result = up(place, "wordcount", CORPUS=str(texts))
    assert [line.split() for line in result.printed("show.0")] == [
        ["4", "the"],
        ["2", "cat"],
        *(["1", word] for word in "didn't dog end here it newline no run saw".split()),
    ]
    assert result.link("read.lines -> split.lines")["sent"] == 4
    assert result.link("split.words -> count.words")["sent"] == 15


def test_lines_go_on_from_a_position_in_any_file(texts: Path) -> None:
    read = wordcount.ReadLines(str(texts))
    everything = list(read.read(None))
    lines = [line for many, _ in everything for line in many.messages]
    assert len(everything) == 2 and len(lines) == 4
    _, position = everything[0]
    rest = [line for many, _ in read.read(position) for line in many.messages]
    assert rest == lines[2:]


def test_totals_that_come_later_replace_the_earlier_ones() -> None:
    show = wordcount.Show(top=2)
    show.on_totals({"a": 1, "b": 2})
    show.on_totals({"c": 9})
    show.on_totals({"a": 7, "b": 2})
    assert show.ranking() == [("c", 9), ("a", 7)]


def test_a_count_reports_on_a_timer_and_at_the_end() -> None:
    count = wordcount.Count(top=1)
    for word in ["be", "to", "be"]:
        count.on_words(word)
    count.report()
    count.finish()
    assert count.totals.sent == [{"be": 2}, {"be": 2}]


# ---------------------------------------------------------------------------- fan-out


@pytest.mark.e2e
def test_both_consumers_of_a_fan_out_get_every_file(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "files"
    (root / "sub").mkdir(parents=True)
    contents = {
        "a.txt": "same",
        "b.txt": "same",
        "sub/c.md": "same",
        "d.md": "other one",
        "e": "twice!",
        "sub/f.txt": "twice!",
        "g.txt": "",
        "h.txt": "",
    }
    for name, content in contents.items():
        (root / name).write_text(content)
    result = up(place, "fanout", ROOT=str(root))
    assert result.printed("sizes.0") == [
        "           14 bytes in      5 files: .txt",
        "           13 bytes in      2 files: .md",
        "            6 bytes in      1 files: (none)",
    ]
    assert result.printed("twins.0") == [
        f"4 bytes each: {root}/a.txt, {root}/b.txt, {root}/sub/c.md",
        f"6 bytes each: {root}/e, {root}/sub/f.txt",
        "14 bytes are there more than once",
    ]
    assert result.link("walk.files -> sizes.files")["done"] == len(contents)
    assert result.link("walk.files -> hash.files")["done"] == len(contents)
    assert result.link("hash.digests -> twins.digests")["done"] == len(contents) - 2


def test_a_walk_goes_on_from_a_position(texts: Path) -> None:
    walk = fanout.Walk(str(texts))
    everything = list(walk.read(None))
    assert walk.length() == len(everything) == 4
    assert list(walk.read(3)) == everything[3:]


# ---------------------------------------------------------------------------- motivation

LINES = ["hello", "größe", "", "x" * 100_000, "done"]
SHOUTED = [line.upper() for line in LINES]

WRITER = """
from flowkit import In, Node

class Write(Node):
    lines = In(str)

    def __init__(self, path: str) -> None:
        self.file = open(path, "w", encoding="utf-8")

    def on_lines(self, line: str) -> None:
        self.file.write(line)

    def teardown(self) -> None:
        self.file.close()
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[object]:
    """Starts a program of the motivation; it is killed in the end, since it has none itself."""
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(MOTIVATION / name), *arguments]
        running.append(subprocess.Popen(command, env=environment(tmp_path)))
        return running[-1]

    yield start
    for process in running:
        assert process.poll() is None, "it ended by itself"
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_the_program_in_plain_sockets(program: object, eventually: Eventually) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = probe.getsockname()[1]
        probe.close()
        target.settimeout(20)
        program("with_sockets.py", str(listen), str(target.getsockname()[1]))  # type: ignore[operator]
        result, _ = target.accept()
        with result, eventually(lambda: _connect(listen)) as lines:
            result.settimeout(20)
            bodies = [line.encode() for line in LINES]
            stream = b"".join(struct.pack("!I", len(body)) + body for body in bodies)
            for at in range(0, len(stream), 30_011):  # as TCP may cut it
                lines.sendall(stream[at : at + 30_011])
            with result.makefile("rb") as file:
                found = [file.read(struct.unpack("!I", file.read(4))[0]) for _ in LINES]
            assert [body.decode() for body in found] == SHOUTED


def _connect(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=20)
    except ConnectionRefusedError:
        return None


@pytest.mark.parametrize("name", ["with_poller.py", "with_stream.py"])
def test_the_program_in_zeromq(program: object, place: Place, name: str) -> None:
    context = zmq.Context()
    lines, shouted = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    for end in (lines, shouted):
        end.linger, end.sndtimeo, end.rcvtimeo = 0, 20_000, 20_000
    try:
        listen, target = f"ipc://{place.file('in')}", f"ipc://{place.file('out')}"
        shouted.bind(target)
        program(name, listen, target)  # type: ignore[operator]
        lines.connect(listen)
        for line in LINES:
            lines.send_string(line)
        assert [shouted.recv_string() for _ in LINES] == SHOUTED
    finally:
        lines.close()
        shouted.close()
        context.term()


@pytest.mark.e2e
def test_the_program_in_flowkit(place: Place) -> None:
    Path(place.file("writer.py")).write_text(WRITER)
    text = "".join(line + "\n" for line in LINES)
    Path(place.file("lines.txt")).write_text(text, encoding="utf-8")
    topology = {
        "read": {"use": "examples.wordcount:ReadLines", "with": {"root": place.file("lines.txt")}},
        "shout": {"use": "examples.motivation.with_flowkit:Shout"},
        "write": {"use": "writer:Write", "with": {"path": place.file("shouted.txt")}},
    }
    links = [
        {"from": "read.lines", "to": "shout.lines"},
        {"from": "shout.shouted", "to": "write.lines"},
    ]
    place.up(place.topology(topology, links)).wait().check_drained()
    assert Path(place.file("shouted.txt")).read_text(encoding="utf-8") == text.upper()


def test_each_program_is_shorter_than_the_one_before() -> None:
    names = ["with_sockets.py", "with_poller.py", "with_stream.py", "with_flowkit.py"]
    lengths = [len((MOTIVATION / name).read_text().splitlines()) for name in names]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == 4
    assert Counter(lengths)[lengths[-1]] == 1


# ---------------------------------------------------------------------------- queues


def test_the_program_with_a_queue_before_and_after() -> None:
    examples = ROOT / "examples"
    before, after = (
        (examples / name).read_text().splitlines() for name in ("mp_before.py", "mp_after.py")
    )
    assert [line for line in after[3:] if line not in before] == [
        "from multiprocessing import Process",
        "from flowkit.mp import Queue",
    ]
    for name in ("mp_before.py", "mp_after.py"):
        done = subprocess.run(
            [sys.executable, str(examples / name), "2000"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stderr, done.returncode) == ("", 0)
        assert re.fullmatch(
            r"2,000 messages in \d+\.\d\d s: [\d,]+ messages per second\n", done.stdout
        )
