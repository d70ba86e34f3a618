"""The HTTP server: what it answers, to whom, and where it listens."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from flowkit.control.door import Door, Listening, listen, listen_somewhere
from flowkit.control.http import ROUTES, answer, may_ask
from flowkit.control.web import CONNECTIONS, LARGEST
from flowkit.errors import OperatorError
from flowkit.histogram import CELLS
from flowkit.status import Status
from tests.conftest import Eventually
from tests.figures import replica, status


class Books:
    def as_dict(self) -> dict[str, Any]:
        return {"project": "clicks", "exit": 0}


class Shown:
    """Something that can be asked."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def status(self) -> Status:
        return status(**self.facts)

    def report(self) -> Books:
        return Books()

    def histograms(self) -> Mapping[tuple[str, int], tuple[Sequence[int], Sequence[int]]]:
        return {("parse", 0): ([0] * CELLS, [0] * CELLS)}


# ---------------------------------------------------------------------------- answers


def test_everything_as_json() -> None:
    said = answer(Shown(), "GET", "/api/v1/status")
    assert (said.code, said.kind) == (200, "application/json")
    assert msgspec.json.decode(said.body, type=Status) == status()
    # What a program without flowkit sees.
    plain = json.loads(said.body)
    assert plain["links"][0]["from"] == "read.lines" and plain["replicas"][2]["busy"] == 0.97


def test_the_report_and_the_verdict() -> None:
    assert json.loads(answer(Shown(), "GET", "/api/v1/report").body) == Books().as_dict()
    said = json.loads(answer(Shown(), "GET", "/api/v1/verdict").body)
    assert (said["bottleneck"], said["kind"], said["waits"]) == ("store", "sink", "parse")
    assert said["text"].startswith("bottleneck: store (busy 97 %; parse waited 61 % of the time)")


def test_metrics() -> None:
    said = answer(Shown(), "GET", "/metrics")
    assert said.code == 200 and b"\nflowkit_project_ready{" in said.body
    assert answer(Shown(), "GET", "/metrics", "application/openmetrics-text").body.endswith(
        b"# EOF\n"
    )


@pytest.mark.parametrize(
    ("state", "reason", "code", "body"),
    [
        ("starting", "", 200, b"ok\n"),
        ("running", "", 200, b"ok\n"),
        ("draining", "", 200, b"ok\n"),
        ("failed", "parse.0 was given up", 503, b"failed: parse.0 was given up\n"),
    ],
)
def test_health(state: str, reason: str, code: int, body: bytes) -> None:
    said = answer(Shown(state=state, reason=reason), "GET", "/healthz")
    assert (said.code, said.body) == (code, body)


def test_readiness() -> None:
    assert answer(Shown(), "GET", "/readyz")[::2] == (200, b"ready\n")
    starting = [replica("a"), replica("b", state="starting"), replica("b", 1, state="pending")]
    said = answer(Shown(ready=False, state="starting", replicas=starting), "GET", "/readyz")
    assert (said.code, said.body) == (503, b"waiting for b.0, b.1\n")
    said = answer(Shown(state="draining"), "GET", "/readyz")
    assert (said.code, said.body) == (503, b"draining\n")


def test_the_index_names_what_there_is() -> None:
    text = answer(Shown(), "GET", "/").body.decode()
    assert text.startswith("flowkit 0.1.0 · clicks · running\n")
    assert all(route in text for route in ROUTES)


@pytest.mark.parametrize("path", ["/nothing", "/api/v1", "/metrics/x", "//metrics", "/../metrics"])
def test_there_is_no_such_place(path: str) -> None:
    said = answer(Shown(), "GET", path)
    assert said.code == 404 and "/api/v1/status" in json.loads(said.body)["error"]


def test_a_slash_at_the_end_does_no_harm() -> None:
    assert answer(Shown(), "GET", "/healthz/").code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
def test_it_is_for_reading(method: str) -> None:
    assert answer(Shown(), method, "/api/v1/status").code == 405


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8787", "127.0.0.1", "localhost:8787", "LOCALHOST", "localhost.", "[::1]:8787",
     "[::1]", "::1", "192.168.1.7:80", "here"],
)  # fmt: skip
def test_who_may_be_asked(host: str) -> None:
    assert may_ask(host, {"localhost", "here"})


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8787", "localhost.evil.example", "127.0.0.1.evil", "", ":"],
)
def test_who_points_his_own_name_here_is_told_nothing(host: str) -> None:
    assert not may_ask(host, {"localhost", "here"})


# ---------------------------------------------------------------------------- where it listens


def test_the_usual_port_or_any() -> None:
    first = listen_somewhere()
    assert first is not None
    try:
        second = listen_somewhere()
        assert second is not None
        second.close()
        assert second.port != first.port and first.host == second.host == "127.0.0.1"
        assert second.url == f"http://127.0.0.1:{second.port}"
    finally:
        first.close()


@pytest.mark.parametrize("where", ["0", "127.0.0.1:0", "localhost:0"])
def test_a_place_to_listen(where: str) -> None:
    listening = listen(where)
    listening.close()
    assert listening.port > 0


def test_all_interfaces_if_told_so() -> None:
    listening = listen("0.0.0.0:0")
    listening.close()
    assert listening.bound.fileno() == -1
    assert listening.url == f"http://{socket.gethostname()}:{listening.port}"


@pytest.mark.parametrize(
    ("where", "text", "hint"),
    [
        ("127.0.0.1:70000", "'70000' is no port", "HOST:PORT"),
        ("127.0.0.1:http", "'http' is no port", "HOST:PORT"),
        ("", "'' is no port", "HOST:PORT"),
        ("127.0.0.1:", "'' is no port", "HOST:PORT"),
        (":8787", "names no host", "0.0.0.0:8787"),
        ("192.0.2.1:0", "cannot listen on 192.0.2.1:0 for HTTP", ""),
    ],
)
def test_no_place_to_listen(where: str, text: str, hint: str) -> None:
    with pytest.raises(OperatorError, match=text.replace("(", r"\(")) as caught:
        listen(where)
    assert hint in caught.value.hint


def test_a_port_that_is_taken() -> None:
    taken = listen("0")
    try:
        with pytest.raises(OperatorError, match="Address already in use") as caught:
            listen(str(taken.port))
        assert "--no-http" in caught.value.hint
    finally:
        taken.close()


# ---------------------------------------------------------------------------- the server


@asynccontextmanager
async def served(source: Any) -> AsyncIterator[Listening]:
    listening = listen("0")
    door = Door(listening)
    door.bind()
    door.open(source)
    try:
        yield listening
    finally:
        await door.close()


async def talk(port: int, request: bytes) -> bytes:
    """Send bytes and read until the other side has closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


def get(path: str, host: str = "127.0.0.1", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def test_it_serves() -> None:
    async def main() -> None:
        async with served(Shown()) as listening:
            head, _, body = (await talk(listening.port, get("/api/v1/status"))).partition(
                b"\r\n\r\n"
            )
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"X-Content-Type-Options: nosniff" in head and b"no-store" in head
            assert msgspec.json.decode(body, type=Status) == status()
            head = await talk(listening.port, get("/healthz", method="HEAD"))
            assert head.startswith(b"HTTP/1.1 200 ") and head.endswith(b"\r\n\r\n")
            assert b"Content-Length: 3\r\n" in head
            refused = await talk(listening.port, get("/metrics", method="POST"))
            assert refused.startswith(b"HTTP/1.1 405 ") and b"Allow: GET, HEAD" in refused
            foreign = await talk(listening.port, get("/metrics", "evil.example"))
            assert foreign.startswith(b"HTTP/1.1 403 ") and b"flowkit_" not in foreign
            assert b"'evil.example'" in foreign

    asyncio.run(main())


def test_a_bug_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Shown):
        def status(self) -> Status:
            raise RuntimeError("oh")

    async def main() -> None:
        async with served(Broken()) as listening:
            said = await talk(listening.port, get("/api/v1/status"))
            assert said.startswith(b"HTTP/1.1 500 ") and b"oh" not in said

    asyncio.run(main())
    assert "RuntimeError: oh" in caplog.text


@pytest.mark.parametrize(
    "noise",
    [
        b"\x00\xff" * 200,
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET /" + b"x" * (2 * LARGEST) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
    ],
    ids=["bytes", "no-host", "long", "body"],
)
def test_noise_is_survived(noise: bytes) -> None:
    async def main() -> None:
        async with served(Shown()) as listening:
            try:
                said = await talk(listening.port, noise + b"\r\n\r\n")
            except ConnectionError:
                said = b""
            assert not said.startswith(b"HTTP/1.1 200")
            well = await talk(listening.port, get("/healthz"))
            assert well.startswith(b"HTTP/1.1 200 ")

    asyncio.run(main())


def test_a_flood_of_connections_is_bounded(eventually: Eventually) -> None:
    async def main() -> None:
        async with served(Shown()) as listening:
            crowd = [
                await asyncio.open_connection("127.0.0.1", listening.port)
                for _ in range(CONNECTIONS + 20)
            ]
            try:
                # Those above the limit are closed, the others kept.
                await eventually.on_loop(lambda: sum(reader.at_eof() for reader, _ in crowd) == 20)
            finally:
                for _, writer in crowd:
                    writer.close()
                    await writer.wait_closed()

            async def answered() -> bool:
                try:
                    return b" 200 " in await talk(listening.port, get("/healthz"))
                except ConnectionError:
                    return False

            await eventually.on_loop(answered)

    asyncio.run(main())


def test_who_is_connected_does_not_hold_up_the_end() -> None:
    async def main() -> None:
        async with served(Shown()) as listening:
            reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())
