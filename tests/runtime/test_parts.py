"""The small parts that a replica is run with: its description, its counters, its output, its
transport's frames."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowkit import In, Node, Out, every
from flowkit.errors import DeclarationError, SettingsError
from flowkit.importing import NotImportable
from flowkit.protocol.ledger import ROW, Flow
from flowkit.runtime import child, runner, shared, spec
from flowkit.runtime.books import ReplicaBooks
from flowkit.runtime.output import LINE, TAIL, Output
from flowkit.runtime.shared import GAUGES, SharedRows
from flowkit.transport.memory import MemoryTransport
from flowkit.wire import Data, Heartbeat, encode
from tests.runtime.stage import Part, collect, link, make_plan, numbers

# -- what a replica is told ----------------------------------------------------------------------


class Takes(Node):
    """Takes settings."""

    x = In(int)
    out = Out(int)

    def __init__(self, top: int, name: str = "x") -> None:
        self.top = top
        self.name = name

    def on_x(self, message: int) -> None: ...


def description(directory: Path, **changes: Any) -> spec.ReplicaSpec:
    plan = make_plan(
        {"a": numbers(1), "b": Part(Takes, settings={"top": 3}, replicas=2), "c": collect([])},
        ["a.out -> b.x", link("b.out -> c.x", route="key", by="id", delivery="at-most-once")],
        directory,
    )
    facts: dict[str, Any] = {
        "project": plan.project,
        "run": "run",
        "token": "token",
        "node": plan.node("b"),
        "replica": 1,
        "incarnation": 3,
        "inputs": [plan.links[0]],
        "outputs": [plan.links[1]],
        "control": "memory://control-1",
        "run_directory": str(directory),
        "books": "",
        "journals": str(directory),
        "store": str(directory / "db"),
    }
    return spec.ReplicaSpec(**{**facts, **changes})


def test_a_description_survives_the_way_to_another_process(tmp_path: Path) -> None:
    one = description(tmp_path)
    assert spec.decode(spec.encode(one)) == one
    assert one.name == "b.1"


def test_what_the_core_learns_of_it(tmp_path: Path) -> None:
    one = description(tmp_path)
    mine = one.identity()
    assert (mine.node, mine.replica, mine.incarnation, mine.origin) == ("b", 1, 3, 2)
    terms = spec.terms_of(one.outputs[0])
    assert (terms.name, terms.route, terms.lossy) == ("b.out -> c.x", "key", True)
    assert (terms.producers, terms.consumers) == (2, 1)


def test_a_node_is_built_from_its_description(tmp_path: Path) -> None:
    node = child.build(description(tmp_path))
    assert isinstance(node, Takes) and (node.top, node.name) == (3, "x")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"use": "nowhere:Node"}, NotImportable),
        ({"use": "stage_classes:Nothing"}, NotImportable),
        ({"use": "json:JSONDecoder"}, DeclarationError),
        ({"settings": {"top": "three"}}, SettingsError),
        ({"settings": {}}, SettingsError),
        ({"settings": {"top": 3, "bottom": 1}}, SettingsError),
    ],
)
def test_what_cannot_be_built(tmp_path: Path, changes: Any, error: type[Exception]) -> None:
    one = description(tmp_path)
    with pytest.raises(error):
        child.build(msgspec.structs.replace(one, node=msgspec.structs.replace(one.node, **changes)))


# -- counters that outlive their process ---------------------------------------------------------


def test_what_is_written_at_one_end_is_read_at_the_other(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    reader = SharedRows(path, 2, create=True)
    writer = SharedRows(str(path))
    assert len(reader.books) == 2 and path.stat().st_size == 8 * (GAUGES + 2 * ROW)
    writer.gauges[shared.HANDLED] = 5
    writer.books[1].sent(7, own=True)
    writer.close()
    assert reader.gauges[shared.HANDLED] == 5
    assert (reader.books[0].read().sent, reader.books[1].read().sent) == (0, 7)
    path.unlink()
    assert reader.books[1].read().own_unsettled == 7
    reader.close()


def test_rows_are_made_once_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SharedRows(tmp_path / "rows", 1)
    SharedRows(tmp_path / "rows", 1, create=True).close()
    with pytest.raises(FileExistsError):
        SharedRows(tmp_path / "rows", 1, create=True)


# -- what a replica prints -----------------------------------------------------------------------


def printed(write: Any, close: bool = True) -> tuple[list[bytes], str]:
    """What `write(descriptor)` prints, line by line, and the last lines."""
    lines: list[bytes] = []

    async def main() -> str:
        output = Output(lines.append, pytest.fail)
        write(output.writer)
        os.close(output.writer)
        while close and output._open:
            await asyncio.sleep(0)
        output.close()
        output.close()
        return output.last_lines

    return lines, asyncio.run(main())


@pytest.mark.parametrize("close", [True, False])
def test_lines_come_one_by_one_and_the_last_one_without_its_end(close: bool) -> None:
    lines, last = printed(lambda fd: os.write(fd, b"one\n\ntwo\r\nthr\xffee"), close)
    assert lines == [b"one", b"", b"two\r", b"thr\xffee"]
    assert last == "one\n\ntwo\r\nthr�ee"


def test_nothing_printed() -> None:
    assert printed(lambda fd: None) == ([], "")


def test_only_the_last_lines_are_kept() -> None:
    lines, last = printed(lambda fd: os.write(fd, b"".join(b"%d\n" % n for n in range(1000))))
    assert len(lines) == 1000
    assert last.split("\n") == [str(number) for number in range(1000 - TAIL, 1000)]


def test_a_line_without_an_end_is_cut() -> None:
    def write(fd: int) -> None:
        thread = threading.Thread(target=lambda: os.write(fd, b"x" * 500_000))
        thread.start()
        threads.append(thread)

    threads: list[threading.Thread] = []
    lines: list[bytes] = []

    async def main() -> None:
        output = Output(lines.append, pytest.fail)
        write(output.writer)
        while sum(map(len, lines)) < 400_000:
            await asyncio.sleep(0)
        threads[0].join()
        os.close(output.writer)
        output.close()

    asyncio.run(main())
    assert b"".join(lines) == b"x" * 500_000
    assert max(map(len, lines)) <= 2 * LINE


def test_a_pipe_that_somebody_else_keeps_full_does_not_hold_the_loop() -> None:
    """A process that the replica had started prints on after its end."""
    code = "import os\nwhile True: os.write(1, b'y\\n' * 30_000)"
    count = 0

    def line(_: bytes) -> None:
        nonlocal count
        count += 1

    async def main() -> None:
        output = Output(line, pytest.fail)
        with subprocess.Popen([sys.executable, "-c", code], stdout=output.writer) as other:
            os.close(output.writer)
            while not count:
                await asyncio.sleep(0)
            output.drain()
            assert other.poll() is None
            output.close()
            assert other.wait() != 0  # nobody reads what it prints

    asyncio.run(main())


# -- frames that make no sense -------------------------------------------------------------------

NONSENSE: list[list[bytes]] = [
    [b"", b""],
    [b"one part"],
    [b"x" * 56, b"body"],
    [b"fk" + bytes(54), b""],
    [b"a", b"b", b"c"],
    encode(Heartbeat(99, 1)),
    encode(Data(7, 1, bytes(16), 0, 1, 1, 0, b"\x91\x01")),
]


def test_nonsense_on_the_sockets_of_a_project_does_no_harm(
    stage: Any, on_loop: Any, caplog: Any
) -> None:
    """Strangers on the links and on the control socket: dropped, and the stream goes on."""
    got: list[int] = []

    class Pass(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message)

    async def run() -> Any:
        async with stage(
            {"a": numbers(3000), "b": Part(Pass, replicas=2), "c": collect(got)},
            ["a.out -> b.x", "b.out -> c.x"],
        ) as built:
            await built.all_ready.wait()
            hub = built.supervisor._transport.hub
            transport = MemoryTransport(hub)
            answers: list[Any] = []
            lines = [transport.connect(one, answers.append) for one in list(hub._bindings)]
            assert len(lines) == 4
            for round in range(20):
                for line in lines:
                    for parts in NONSENSE:
                        line.send(parts)
                while len(got) < 100 * round:
                    await asyncio.sleep(0)
            report = await built.wait()
            transport.close()
            return report, answers

    report, answers = on_loop(run())
    assert sorted(got) == list(range(3000)) and report.exit == 0
    assert answers, "a stranger is told that it has no session"
    assert [node.restarts for node in report.nodes] == [0, 0, 0, 0]


def test_links_that_break_lose_and_double_nothing(
    stage: Any, on_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told; it is found out when one end speaks next."""
    monkeypatch.setattr(runner, "TICK", 0.02)
    got: list[int] = []

    class Pass(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message)

    async def run() -> Any:
        async with stage(
            {"a": numbers(5000), "b": Pass, "c": collect(got)}, ["a.out -> b.x", "b.out -> c.x"]
        ) as built:
            for count in (200, 900):
                while len(got) < count:
                    await asyncio.sleep(0)
                hub = built.supervisor._transport.hub
                cut = [one for one in list(hub._bindings) if "control" not in one]
                assert sum(hub.cut(one) for one in cut) == 2
            return await built.wait()

    report = on_loop(run())
    assert sorted(got) == list(range(5000))
    assert report.exit == 0 and report.balanced


# -- alive, and stuck ----------------------------------------------------------------------------


def test_a_handler_that_gets_nothing_done_is_named_with_its_stack(
    stage: Any, on_loop: Any, eventually: Any, caplog: Any
) -> None:
    go = asyncio.Event()

    class Stuck(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            await self.waits_for_somebody()

        async def waits_for_somebody(self) -> None:
            await go.wait()

        @every(0.01)
        def idle(self) -> None: ...

    async def run() -> Any:
        built = stage({"a": numbers(1), "b": Stuck}, ["a.out -> b.x"], watchdog=0.05)
        async with built:
            await eventually.on_loop(lambda: "finished none" in caplog.text)
            go.set()
            return await built.wait()

    assert on_loop(run()).exit == 0
    assert "b.0 has had messages in hand for 0.05 s" in caplog.text
    assert "waits_for_somebody" in caplog.text and "a.0 has had" not in caplog.text


@pytest.mark.parametrize("high", [False, True])
def test_the_message_in_hand_is_known_after_a_death(tmp_path: Path, high: bool) -> None:
    """Also if its id has the highest bits of its halves set: the cells hold signed numbers."""
    identity = bytes([255 if high else 0] * 16)
    writer = SharedRows(tmp_path / "rows", 1, create=True)
    assert shared.in_hand(writer.gauges) is None
    shared.note_care(writer.gauges, 0, identity)
    assert shared.in_hand(writer.gauges) is None, "no message was begun"
    writer.gauges[shared.CARE[3]] = 0
    assert shared.in_hand(writer.gauges) == (0, identity, 0)
    writer.gauges[shared.CARE[3]] = 7
    assert shared.in_hand(writer.gauges) == (0, identity, 7)
    shared.done_care(writer.gauges)
    assert shared.in_hand(writer.gauges) is None
    writer.close()


@pytest.mark.parametrize("concurrency", [None, 1, 8])
@pytest.mark.parametrize("batch", [None, 10])
def test_messages_that_came_again_are_noted_one_by_one(
    stage: Any, on_loop: Any, concurrency: int | None, batch: int | None
) -> None:
    """While a handler runs over a message that may have killed, the message stands in the gauges;
    and no other handler runs beside it."""
    noted: list[tuple[int, Any]] = []
    got: list[int] = []
    inside = 0
    stuck = asyncio.Event()

    def look(node: Any, message: int) -> None:
        one = built.supervisor._books["b", 0].in_hand()
        noted.append((message, one))

    class Plain(Node):
        x = In(int, batch=batch)

        def on_x(self, message: Any) -> None:
            for one in message if batch else [message]:
                look(self, one)
                got.append(one)

    class Later(Node):
        x = In(int, batch=batch, concurrency=concurrency or 1)

        async def on_x(self, message: Any) -> None:
            nonlocal inside
            if not stuck.is_set():
                stuck.set()
                await asyncio.Event().wait()
            inside += 1
            for one in message if batch else [message]:
                look(self, one)
                assert noted[-1][1] is None or inside == 1
                await asyncio.sleep(0)
                got.append(one)
            inside -= 1

    async def run() -> Any:
        nonlocal built
        node = Later if concurrency else Plain
        built = stage({"a": numbers(300), "b": node}, ["a.out -> b.x"])
        async with built:
            while not (stuck.is_set() if concurrency else got):
                await asyncio.sleep(0)
            built.crash("b.0")
            return await built.wait()

    built: Any = None
    report = on_loop(run())
    assert set(got) == set(range(300)) and report.exit == 0
    assert [node.restarts for node in report.nodes] == [0, 1]
    careful = [one for _, one in noted if one is not None]
    assert len(set(careful)) == len(careful)
    if concurrency:
        assert careful, "what the dead one had in hand came again, carefully"


# -- what links do beside their books ------------------------------------------------------------


def test_flows_are_summed_over_incarnations_whose_links_change(tmp_path: Path) -> None:
    books = ReplicaBooks([3, 5], [], replayed=False)
    assert books.flows() == {3: Flow(), 5: Flow()}
    books.open(tmp_path / "first", 1.0, [3, 5])
    assert books.rows is not None
    books.rows.books[0].sent(1, own=True, size=10)
    books.rows.books[1].held_up(2.0, window=True)
    books.rows.books[1].flows(queued=7, credit=1)
    books.rows.gauges[shared.HANDLED] = 4
    books.rows.gauges[shared.QUEUE] = 4
    books.open(tmp_path / "second", 2.0, [5, 9])
    assert books.rows is not None
    books.rows.books[0].held_up(1.0, window=False)
    books.rows.books[1].sent(1, own=True, size=100)
    books.rows.gauges[shared.HANDLED] = 5
    expected = {
        3: Flow(sent_bytes=10),
        5: Flow(full_ns=3_000_000_000, window_ns=2_000_000_000),
        9: Flow(sent_bytes=100),
    }
    assert books.flows() == expected
    # Counters add up; how things stood is of the one that lives.
    assert (books.now()[shared.HANDLED], books.now()[shared.QUEUE]) == (9, 0)
    books.close(3.0, dead=False)
    assert books.flows() == expected and books.now()[shared.HANDLED] == 9
