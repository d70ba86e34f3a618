"""`flowkit logs --listen`: shows the signed log records of any number of processes and hosts."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from flowkit.control.logfile import timestamp
from flowkit.control.records import LogLine
from flowkit.errors import OperatorError
from flowkit.logs import Collector, Entry, keys
from flowkit.topology.addresses import address as check_address


def collect(
    address: str,
    key_file: str | None,
    wanted: Callable[[LogLine], bool],
    show: Callable[[LogLine], None] | None,
) -> None:
    """Show what comes until Ctrl-C, as text by `show`, or as JSON Lines."""
    key = keys.find(key_file)
    # ZeroMQ would listen at a port above 65535 less 65536.
    if isinstance(wrong := check_address(address), str):
        raise OperatorError(f"cannot listen at {address}: it {wrong}", "like tcp://127.0.0.1:6000")

    def complain(reason: str) -> None:
        _say(f"a record is refused: {reason}; more of the kind are counted, and not told")

    with Collector(address, key, complain) as collector:
        _say(f"listening at {collector.endpoint}")
        shown = 0
        try:
            for entry in collector.entries():
                if entry.skipped:
                    _say(f"{_name(entry)} has skipped {entry.skipped:,} records: too many at once")
                lines = list(_lines(entry))
                if wanted(lines[0]):
                    shown += 1
                    if show is None:
                        sys.stdout.write(json.dumps(_facts(entry)) + "\n")
                    else:
                        for line in lines:
                            show(line)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            pass
        verifier = collector.verifier
        counts = [f"{shown:,} record{'s' if shown != 1 else ''} shown"]
        counts += [f"{count:,} refused: {reason}" for reason, count in verifier.refused.items()]
        if verifier.missing:
            counts.append(f"{verifier.missing:,} have not come")
        _say("; ".join(counts))


def _say(text: str) -> None:
    click.echo(text, err=True)


def _name(entry: Entry) -> str:
    return f"{entry.host}.{entry.pid}"


def _lines(entry: Entry) -> Iterator[LogLine]:
    record = entry.record
    level = logging.getLevelName(record.level)
    texts = f"{record.text}\n{record.traceback}".rstrip("\n").split("\n")
    for number, text in enumerate(texts):
        yield LogLine(record.time, _name(entry), level, text, number > 0)


def _facts(entry: Entry) -> dict[str, Any]:
    record = entry.record
    return {
        "time": timestamp(record.time),
        "host": entry.host,
        "process": entry.process,
        "pid": entry.pid,
        "level": logging.getLevelName(record.level),
        "logger": record.logger,
        "text": record.text,
        **({"traceback": record.traceback} if record.traceback else {}),
    }
