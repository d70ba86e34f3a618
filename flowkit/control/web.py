"""The shell around `flowkit.control.http`: Tornado's HTTP server, with bounds."""

from __future__ import annotations

import logging
import socket
from http import HTTPStatus

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.iostream import IOStream

from flowkit.control.http import Answer, Figured, answer, may_ask, refusal

log = logging.getLogger("flowkit.http")

CONNECTIONS = 64
"""At once; more are closed. Each takes a file descriptor, which the links of a project need."""

IDLE = 60.0
"""Seconds that a connection may stay open without a request."""

LARGEST = 1 << 14
"""Bytes of a request, which has no body."""


class HttpServer:
    """Serves `source` on a bound socket, on the running loop; `host` is one of its names."""

    def __init__(self, source: Figured, bound: socket.socket, host: str) -> None:
        self._source = source
        self._names = {"localhost", host, socket.gethostname()}
        self._server = _Bounded(
            self._respond,
            idle_connection_timeout=IDLE,
            body_timeout=IDLE,
            max_header_size=LARGEST,
            max_body_size=LARGEST,
            max_buffer_size=4 * LARGEST,
        )
        self._server.add_socket(bound)

    async def close(self) -> None:
        """Answer nobody any more."""
        self._server.stop()
        await self._server.close_all_connections()

    def _respond(self, request: HTTPServerRequest) -> None:
        said = self._answer(request)
        headers = HTTPHeaders(
            {
                "Content-Type": said.kind,
                "Content-Length": str(len(said.body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
            }
        )
        if said.code == 405:
            headers["Allow"] = "GET, HEAD"
        connection = request.connection
        assert connection is not None
        start = ResponseStartLine("", said.code, HTTPStatus(said.code).phrase)
        connection.write_headers(start, headers, None if request.method == "HEAD" else said.body)
        connection.finish()

    def _answer(self, request: HTTPServerRequest) -> Answer:
        if not may_ask(request.host, self._names):
            return refusal(
                403, f"'{request.host}' is not what this server is called: ask for its address"
            )
        accept = request.headers.get("Accept", "")
        try:
            return answer(self._source, request.method or "", request.path, accept)
        except Exception:
            log.exception("%s could not be answered", request.path)
            return refusal(500, "this is a bug in flowkit; what the supervisor logs says more")


class _Bounded(HTTPServer):
    """Has no more than so many connections."""

    def initialize(self, *args: object, **options: object) -> None:
        super().initialize(*args, **options)  # type: ignore[arg-type]
        self._open = 0

    def handle_stream(self, stream: IOStream, address: tuple[object, ...]) -> None:
        if self._open >= CONNECTIONS:
            stream.close()
            return
        self._open += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self._open -= 1
        super().on_close(server_conn)
