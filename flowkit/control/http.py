"""What a supervisor answers over HTTP: figures for machines, and nothing that changes anything.

::

    /metrics          Prometheus, or OpenMetrics       /api/v1/status    everything, as JSON
    /healthz          200 while the project is well    /api/v1/report    the books of the run
    /readyz           200 when every replica is there  /api/v1/verdict   what limits

Pure: a request goes in, an answer comes out. Requests that name a foreign host are to be refused: a
web page that makes its own name point here (DNS rebinding) is shown nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from flowkit.status import Status


class Reported(Protocol):
    def as_dict(self) -> dict[str, Any]: ...


class Figured(Protocol):
    """What is served: a supervisor."""

    def status(self) -> Status: ...

    def report(self) -> Reported: ...

    def histograms(self) -> Mapping[tuple[str, int], tuple[Sequence[int], Sequence[int]]]: ...


class Answer(NamedTuple):
    """A response, before it is one."""

    code: int
    kind: str
    body: bytes


TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


def answer(source: Figured, method: str, path: str, accept: str = "") -> Answer:
    """What a request for `path` is answered with."""
    if method not in ("GET", "HEAD"):
        return refusal(405, f"{method} is not possible: everything here is for reading")
    route = ROUTES.get(path.rstrip("/") or "/")
    if route is None:
        return refusal(404, f"there is no {path}; there are {', '.join(ROUTES)}")
    return route(source, accept)


def refusal(code: int, text: str) -> Answer:
    return _json({"error": text}, code)


def _json(data: object, code: int = 200) -> Answer:
    return Answer(code, JSON, msgspec.json.encode(data) + b"\n")


def _index(source: Figured, accept: str) -> Answer:
    status = source.status()
    lines = [f"flowkit {status.version} · {status.project} · {status.state}", "", *ROUTES]
    return Answer(200, TEXT, "\n".join([*lines, ""]).encode())


def _metrics(source: Figured, accept: str) -> Answer:
    from flowkit.control.exporter import Histograms, export

    histograms = {key: Histograms(*rows) for key, rows in source.histograms().items()}
    body, kind = export(source.status(), histograms, accept)
    return Answer(200, kind, body)


def _health(source: Figured, accept: str) -> Answer:
    status = source.status()
    well = status.state in ("starting", "running", "draining", "drained")
    text = "ok" if well else f"{status.state}: {status.reason}"
    return Answer(200 if well else 503, TEXT, f"{text}\n".encode())


def _readiness(source: Figured, accept: str) -> Answer:
    status = source.status()
    if status.ready and status.state == "running":
        return Answer(200, TEXT, b"ready\n")
    missing = [one.name for one in status.replicas if one.state in ("pending", "starting")]
    text = f"waiting for {', '.join(missing)}" if missing else status.state
    return Answer(503, TEXT, f"{text}\n".encode())


def _status(source: Figured, accept: str) -> Answer:
    return _json(source.status())


def _report(source: Figured, accept: str) -> Answer:
    return _json(source.report().as_dict())


def _verdict(source: Figured, accept: str) -> Answer:
    said = source.status().verdict
    return _json({**msgspec.structs.asdict(said), "text": said.text})


ROUTES = {
    "/": _index,
    "/metrics": _metrics,
    "/healthz": _health,
    "/readyz": _readiness,
    "/api/v1/status": _status,
    "/api/v1/report": _report,
    "/api/v1/verdict": _verdict,
}


def may_ask(host: str, names: Iterable[str]) -> bool:
    """Whether a request may name `host` (with or without a port): an address, which nobody else can
    have made point here, or one of `names`."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.rstrip(".") in {one.lower() for one in names}
    return True
