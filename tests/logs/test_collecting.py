"""Records on their way from handlers to a collector, over real sockets."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from flowkit.cli import collect
from flowkit.errors import OperatorError, TransportError
from flowkit.logs import Collector, Entry, Handler
from flowkit.logs import handler as handlers

KEY = b"a key of some length"
LOCAL = "tcp://127.0.0.1:*"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.collecting")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    for each in list(logger.handlers):
        logger.removeHandler(each)
        each.close()


def take(collector: Collector, count: int) -> list[Entry]:
    entries = collector.entries()
    return [next(entries) for _ in range(count)]


def test_records_arrive_as_they_were_logged(logger: logging.Logger) -> None:
    with Collector(LOCAL, KEY) as collector:
        logger.addHandler(Handler(collector.endpoint, KEY, logging.INFO))
        logger.debug("not this")
        logger.info("%s and \ud800", "text")
        try:
            raise ValueError("broken")
        except ValueError:
            logger.exception("oh")
        first, second = take(collector, 2)
    assert (first.record.text, first.record.level) == ("text and \\ud800", logging.INFO)
    assert first.record.logger == "tests.collecting" and first.pid == os.getpid()
    assert (first.number, second.number, first.stream) == (1, 2, second.stream)
    assert "ValueError: broken" in second.record.traceback


def test_a_forked_child_has_a_stream_of_its_own(logger: logging.Logger) -> None:
    with Collector(LOCAL, KEY) as collector:
        handler = Handler(collector.endpoint, KEY)
        logger.addHandler(handler)
        logger.info("parent")
        (first,) = take(collector, 1)

        def child() -> None:
            logger.info("child")
            handler.close()

        fork: Any = multiprocessing.get_context("fork")
        process = fork.Process(target=child)
        process.start()
        process.join()
        (second,) = take(collector, 1)
        logger.info("parent again")
        (third,) = take(collector, 1)
        assert (second.record.text, second.pid) == ("child", process.pid)
        process.close()
    assert first.stream == third.stream != second.stream
    assert (first.number, second.number, third.number) == (1, 1, 2)


def test_nobody_waits_for_a_collector_and_what_is_skipped_is_told(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(handlers, "WAITING", 5)
    address = f"ipc://{tmp_path}/s"
    handler = Handler(address, KEY)
    logger.addHandler(handler)
    for number in range(12):
        logger.info("%d", number)
    assert handler.skipped == 7
    with Collector(address, KEY) as collector:
        assert [entry.record.text for entry in take(collector, 5)] == list("01234")
        logger.info("later")
        (later,) = take(collector, 1)
        assert (later.record.text, later.skipped, later.number) == ("later", 7, 6)
        assert collector.verifier.missing == 0


def test_a_forged_record_is_told_once_and_counted(logger: logging.Logger) -> None:
    complaints: list[str] = []
    with Collector(LOCAL, KEY, complaints.append) as collector, zmq.Context() as context:
        with context.socket(zmq.PUSH) as push:
            push.connect(collector.endpoint)
            for _ in range(3):
                push.send_multipart([b"forged", bytes(32)])
            push.send(b"GET / HTTP/1.1")
            push.close(linger=5000)
        context.term()  # all of it is there, or on its way in order
        logger.addHandler(Handler(collector.endpoint, KEY))
        entries = collector.entries()
        logger.info("true")
        assert next(entries).record.text == "true"
        while sum(collector.verifier.refused.values()) < 4:
            logger.info("more")
            next(entries)
    assert complaints == ["bad signature", "malformed"]


def test_an_address_that_cannot_be_bound() -> None:
    with Collector(LOCAL, KEY) as collector:
        with pytest.raises(TransportError, match="cannot listen at tcp://127"):
            Collector(collector.endpoint, KEY)


@pytest.mark.parametrize("port", ["99999", "65536", "-1", "five"])
def test_a_port_that_is_none_is_refused_at_once(port: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    with pytest.raises(ValueError, match=rf"cannot listen at {address}: it .*; pass one like"):
        Collector(address, KEY)
    with pytest.raises(ValueError, match=rf"cannot connect to {address}: it .*; pass one like"):
        Handler(address, KEY)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "tcp://*:5555"])
def test_a_handler_is_told_which_peer(address: str) -> None:
    with pytest.raises(ValueError, match="name the host and the port of the peer"):
        Handler(address, KEY)


@pytest.mark.e2e
def test_a_port_that_is_none_is_not_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_LOG_KEY", "0123456789abcdef")
    with pytest.raises(OperatorError, match="ports go up to 65535"):
        collect.collect("tcp://127.0.0.1:99999", None, lambda line: True, None)


def test_the_command_shows_what_comes_until_it_is_interrupted(
    logger: logging.Logger, tmp_path: Path
) -> None:
    environ = {**os.environ, "FLOWKIT_LOG_KEY": KEY.decode()}
    command = [sys.executable, "-m", "flowkit", "logs", "--listen", LOCAL, "--format", "json"]
    with subprocess.Popen(
        [*command, "--level", "warning"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        begin = re.fullmatch(r"listening at (tcp://\S+)\n", process.stderr.readline())
        assert begin
        logger.addHandler(Handler(begin[1], KEY))
        logger.info("not shown")
        logger.warning("shown")
        shown = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (shown["text"], shown["level"], shown["pid"]) == ("shown", "WARNING", os.getpid())
    assert (out, err, process.returncode) == ("", "1 record shown\n", 0)
