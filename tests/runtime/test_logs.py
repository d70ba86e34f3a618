"""Log records on their way: bounded, counted, heard once, also of a process that is dead."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowkit import Node, every
from flowkit.control.watcher import Logging
from flowkit.control.words import Words
from flowkit.errors import OperatorError
from flowkit.protocol import control
from flowkit.protocol.control import Record
from flowkit.runtime import logs
from flowkit.runtime.blackbox import HALF, LARGEST, BlackBox
from flowkit.runtime.logs import Courier, ReplicaContext, line_of, parse_line, record_of
from flowkit.runtime.output import Output
from tests.runtime.stage import collect, make_plan, numbers


def entry(text: str = "text", level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    return logging.getLogger("some.logger").makeRecord(
        "some.logger", level, __file__, 1, text, (), more.get("exc_info"), sinfo=more.get("stack")
    )


def said(number: int, text: str = "") -> control.Said:
    return control.Said(1, number, Record(0.0, logging.INFO, "", text or str(number)))


# -- the black box -------------------------------------------------------------------------------


def test_a_box_keeps_the_newest(tmp_path: Path) -> None:
    box = BlackBox(tmp_path / "box", create=True)
    assert box.read() == []
    for number in range(3000):
        box.write(b"record %04d" % number + b"." * 50)
        if number % 100 == 0:
            reader = BlackBox(tmp_path / "box")
            found = sorted(int(record[7:11]) for record in reader.read())
            reader.close()
            assert found == list(range(found[0], number + 1))
            assert found[0] == 0 or len(found) * 65 > HALF - 200
    box.close()


def test_a_box_takes_the_largest_record(tmp_path: Path) -> None:
    box = BlackBox(tmp_path / "box", create=True)
    for byte in (b"a", b"b", b"c"):
        box.write(byte * LARGEST)
    assert sorted(record[:1] for record in box.read()) == [b"b", b"c"]
    box.close()


def test_what_a_death_left_half_written_is_not_there(tmp_path: Path) -> None:
    box = BlackBox(tmp_path / "box", create=True)
    box.write(b"one")
    box._map[7 + 4 : 7 + 4 + 3] = b"two"  # the length would have come last
    assert box.read() == [b"one"]
    box._map[7 : 7 + 4] = b"\xff\xff\xff\xff"  # nor is nonsense believed
    assert box.read() == [b"one"]
    box.close()


# -- records -------------------------------------------------------------------------------------


def test_level_name_time_and_traceback_are_apart_from_the_text() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = record_of(entry("it failed", logging.ERROR, exc_info=sys.exc_info()))
    assert (record.level, record.logger, record.text) == (logging.ERROR, "some.logger", "it failed")
    assert record.traceback.startswith("Traceback") and "ValueError: no" in record.traceback
    assert record_of(entry(stack="Stack: here")).traceback == "Stack: here"


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\x00" * 1_000_000, "🙂" * 1_000_000])
def test_a_record_has_a_limit_whatever_it_holds(text: str) -> None:
    record = record_of(entry(f"begin {text} end"))
    assert record.text.startswith("begin") and record.text.endswith("end")
    assert "characters left out" in record.text
    (data,) = control.encode(control.Said(2**31, 2**40, record))
    assert max(len(data), len(line_of(record))) <= LARGEST


def test_a_record_on_a_line_survives() -> None:
    record = Record(1.5, logging.WARNING, "a.b", "two\nlines \ud800".replace("\ud800", "?"), "tb\n")
    assert parse_line(line_of(record).rstrip(b"\n")) == record
    for line in (b"plain", b"", b"\x1e", b"\x1enot json", b'\x1e{"time": 1}'):
        assert parse_line(line) is None
    assert record_of(entry("lone \ud800")).text == "lone \\ud800"


def test_records_between_lines_of_the_output() -> None:
    lines: list[bytes] = []
    records: list[Record] = []
    record = Record(1.0, logging.ERROR, "x", "logged", "Traceback\n  here")

    async def main() -> str:
        output = Output(lines.append, records.append)
        os.write(output.writer, b"one\nhalf a line" + line_of(record) + b"\x1enonsense\nlast\n")
        os.close(output.writer)
        output.close()
        output.remember(records[0])
        return output.last_lines

    last = asyncio.run(main())
    assert lines == [b"one", b"half a line", b"\x1enonsense", b"last"]
    assert records == [record]
    assert last.endswith("last\nlogged\nTraceback\n  here")


# -- the courier ---------------------------------------------------------------------------------


class Line:
    """Collects what a courier sends."""

    def __init__(self) -> None:
        self.said: list[control.Said] = []
        self.threads: set[int] = set()

    def send(self, parts: list[bytes]) -> bool:
        message = control.from_replica(parts)
        assert isinstance(message, control.Said)
        self.said.append(message)
        self.threads.add(threading.get_ident())
        return True

    @property
    def texts(self) -> list[str]:
        return [one.record.text for one in self.said]


@contextmanager
def errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Record]]:
    """What goes to stderr."""
    found: list[Record] = []
    monkeypatch.setattr(logs, "write", found.append)
    yield found


def test_before_and_after_the_connection_stderr_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()

    async def main() -> None:
        courier = Courier("work.0")
        courier.handle(entry("early"))
        courier.connect(line.send)
        courier.handle(entry("connected"))
        courier.handle(entry("work.0: named twice"))
        courier.heard(2)
        await courier.disconnect(0.0)
        courier.handle(entry("late"))
        courier.close()

    with errors(monkeypatch) as written:
        asyncio.run(main())
    assert line.texts == ["connected", "named twice"]
    assert [one.sequence for one in line.said] == [1, 2]
    assert [record.text for record in written] == ["early", "late"]


def test_what_is_too_much_is_skipped_counted_and_told() -> None:
    line = Line()

    async def main() -> Courier:
        courier = Courier("work.0")
        courier.connect(line.send)
        for number in range(3000):
            courier.handle(entry(f"{number} {'x' * 1000}"))
        return courier

    courier = asyncio.run(main())
    sent = len(line.said)
    assert courier._bytes <= logs.ORDINARY < courier._bytes + 2000
    assert 0 < sent < 3000
    courier.handle(entry("danger", logging.ERROR))  # finds room where others do not
    courier.heard(sent // 4)
    assert line.texts[sent:] == ["danger"]
    courier.heard(sent)  # room again, for more than one
    told = f"{3000 - sent:,} log records were skipped: more was logged than the supervisor could"
    assert line.texts[sent:] == ["danger", f"{told} take"]
    courier.handle(entry("afterwards"))
    assert line.texts[-1] == "afterwards"
    assert [one.sequence for one in line.said] == list(range(1, len(line.said) + 1))
    courier.close()


def test_leaving_waits_until_all_is_heard() -> None:
    line = Line()

    async def main() -> None:
        courier = Courier("work.0")
        courier.connect(line.send)
        courier.handle(entry())
        leaving = asyncio.ensure_future(courier.disconnect(10.0))
        await asyncio.sleep(0)
        assert not leaving.done()
        courier.heard(1)
        await leaving
        courier.close()

    asyncio.run(asyncio.wait_for(main(), 5.0))


def test_a_supervisor_that_does_not_answer_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        courier = Courier("work.0")
        courier.connect(Line().send)
        for _ in range(3000):
            courier.handle(entry("x" * 1000))
        await courier.disconnect(0.01)
        courier.close()

    with errors(monkeypatch) as written:
        asyncio.run(main())
    (record,) = written
    assert "log records were skipped" in record.text and record.level == logging.WARNING


def test_threads_leave_the_sending_to_the_loop() -> None:
    line = Line()

    async def main() -> None:
        courier = Courier("work.0")
        courier.connect(line.send)
        await asyncio.gather(
            *(asyncio.to_thread(courier.handle, entry(f"{number}")) for number in range(20))
        )
        while len(line.said) < 20:
            await asyncio.sleep(0)
        courier.close()

    asyncio.run(asyncio.wait_for(main(), 10.0))
    assert line.threads == {threading.get_ident()}
    assert sorted(map(int, line.texts)) == list(range(20))
    assert [one.sequence for one in line.said] == list(range(1, 21))


def test_a_message_that_does_not_format_harms_nobody(capfd: Any) -> None:
    courier = Courier("work.0")
    record = entry("%d apples")
    record.args = ("no number",)
    courier.handle(record)
    courier.close()
    assert "Logging error" in capfd.readouterr().err


def test_a_forked_process_writes_to_stderr(capfd: Any) -> None:
    line = Line()

    async def main() -> None:
        courier = Courier("work.0")
        courier.connect(line.send)
        courier._process = -1  # what it is in a fork
        courier.handle(entry("from a fork"))
        courier.close()

    asyncio.run(main())
    assert not line.said
    assert json.loads(capfd.readouterr().err.lstrip("\x1e"))["text"] == "from a fork"


# -- the supervisor's side -----------------------------------------------------------------------


class Desk:
    """`Words` and what it passes on."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str]] = []
        self.told: list[tuple[Any, Any]] = []
        self.words = Words(
            lambda key, record: self.records.append((f"{key[0]}.{key[1]}", record.text)),
            lambda key, message: self.told.append((key, message)),
        )


def test_a_turn_of_records_is_answered_once(tmp_path: Path) -> None:
    desk = Desk()

    async def main() -> None:
        desk.words.expect(("a", 0), 1, tmp_path / "box")
        for number in (1, 2, 3):
            desk.words.said(("a", 0), said(number))
        desk.words.said(("b", 0), said(1))  # nobody knows it
        desk.words.said(("a", 0), control.Said(2, 4, said(4).record))  # another incarnation
        await asyncio.sleep(0)
        desk.words.close()

    asyncio.run(main())
    assert desk.records == [("a.0", "1"), ("a.0", "2"), ("a.0", "3")]
    assert desk.told == [(("a", 0), control.Heard(3))]
    assert not (tmp_path / "box").exists()


def test_what_a_dead_one_had_not_got_across_is_read_from_its_box(tmp_path: Path) -> None:
    desk = Desk()

    async def main() -> None:
        desk.words.expect(("a", 0), 1, tmp_path / "box")
        box = BlackBox(tmp_path / "box")
        for number in range(1, 6):
            box.write(control.encode(said(number))[0])
        desk.words.said(("a", 0), said(1))
        desk.words.said(("a", 0), said(2))
        box.close()
        desk.words.gone(("a", 0))
        desk.words.said(("a", 0), said(3))  # was still on its way

    asyncio.run(main())
    assert [text for _, text in desk.records] == ["1", "2", "3", "4", "5"]


def test_what_is_lost_is_told(tmp_path: Path) -> None:
    desk = Desk()
    desk.words.expect(("a", 0), 1, tmp_path / "box")
    box = BlackBox(tmp_path / "box")
    for number in range(1, 3001):
        box.write(control.encode(said(number, f"{number} {'x' * 100}"))[0])
    box.close()
    desk.words.gone(("a", 0))
    texts = [text for _, text in desk.records]
    lost = 3000 - (len(texts) - 1)
    assert texts[0] == f"{lost:,} log records were lost with the process"
    assert [int(text.split()[0]) for text in texts[1:]] == list(range(lost + 1, 3001))


def test_levels_hold_for_who_comes_later(tmp_path: Path) -> None:
    desk = Desk()
    plan = make_plan({"split": numbers(1), "count": collect([])}, [], tmp_path)
    words = desk.words
    words.set_level(plan, "split", None, "debug", "")
    words.set_level(plan, "split", 0, logging.ERROR, "noisy")
    assert desk.told == [
        (("split", 0), control.SetLevel("", logging.DEBUG)),
        (("split", 0), control.SetLevel("noisy", logging.ERROR)),
    ]
    assert words.levels(("split", 0)) == {"": logging.DEBUG, "noisy": logging.ERROR}
    assert words.levels(("split", 1)) == {"": logging.DEBUG}
    assert words.levels(("count", 0)) == {}
    desk.told.clear()
    words.ready(("split", 1))  # it was being started meanwhile
    assert desk.told == [(("split", 1), control.SetLevel("", logging.DEBUG))]
    words.set_level(plan, "split", None, "INFO", "noisy")  # the last word counts
    assert words.levels(("split", 0)) == {"": logging.DEBUG, "noisy": logging.INFO}


@pytest.mark.parametrize(
    ("node", "replica", "level", "text"),
    [
        ("splt", None, "DEBUG", "there is no node 'splt'; did you mean 'split'?"),
        ("split", 1, "DEBUG", "there is no replica split.1; there is split.0"),
        ("split", -1, "DEBUG", "there is no replica split.-1; there is split.0"),
        ("split", 0, "DEBG", "'DEBG' is no log level; did you mean 'DEBUG'?"),
        ("split", 0, -3, "'-3' is no log level"),
        ("split", 0, True, "'True' is no log level"),
    ],
)
def test_levels_of_nothing(
    node: str, replica: int | None, level: Any, text: str, tmp_path: Path
) -> None:
    plan = make_plan({"split": numbers(1)}, [], tmp_path)
    with pytest.raises(OperatorError) as caught:
        Desk().words.set_level(plan, node, replica, level, "")
    assert "; ".join(filter(None, (str(caught.value), caught.value.hint))).startswith(text)


# -- in process ----------------------------------------------------------------------------------


def test_nothing_is_configured_in_an_application(play: Any, stage: Any, on_loop: Any) -> None:
    """But a record knows its replica, also where replicas call each other's callbacks."""
    seen: list[tuple[Any, Any, Any]] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            node, replica = record.__dict__["node"], record.__dict__["replica"]
            seen.append((record.getMessage(), node, replica))

    log = logging.getLogger("test.words")
    handler = Keeps()
    handler.addFilter(ReplicaContext())
    log.addHandler(handler)
    log.setLevel(logging.INFO)

    def talking(into: list[int], name: str) -> type[Node]:
        base = collect(into)

        class Talks(base):  # type: ignore[misc, valid-type]
            def setup(self) -> None:
                log.info(name)

            def on_x(self, message: int) -> None:
                log.info(name)

            async def finish(self) -> None:
                log.info(name)

            @every("1ms")
            def tick(self) -> None:
                log.info(name)

        return Talks

    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogRecordFactory())
    try:
        play(
            {"a": numbers(20), "b": talking([], "b"), "c": talking([], "c")},
            ["a.out -> b.x", "a.out -> c.x"],
        )
        log.info("outside")
    finally:
        log.removeHandler(handler)
    assert (list(root.handlers), root.level, logging.getLogRecordFactory()) == before
    assert {(text, node, replica) for text, node, replica in seen} == {
        ("b", "b", 0),
        ("c", "c", 0),
        ("outside", "", None),
    }

    async def main() -> None:
        async with stage({"a": numbers(1), "b": collect([])}, ["a.out -> b.x"]) as project:
            with pytest.raises(OperatorError, match="in this process"):
                project.supervisor.set_level("a", None, "DEBUG")
            await project.wait()

    on_loop(main())


def test_the_watcher_that_logs_keeps_what_a_record_is(caplog: Any) -> None:
    watcher = Logging()
    logging.getLogger("quiet").setLevel(logging.ERROR)
    with caplog.at_level(logging.DEBUG):
        watcher.record(
            "work.3", Record(1000.25, logging.WARNING, "lib.part", "50 %", "Traceback x")
        )
        watcher.record("work.3", Record(1.0, logging.INFO, "quiet", "not wanted"))
    (record,) = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("lib.part", 30, "50 %")
    assert (record.node, record.replica, record.created) == ("work", 3, 1000.25)
    assert "Traceback x" in caplog.text
