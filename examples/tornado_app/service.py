"""The web service: it runs the topology, feeds it, and shows what comes of it.

==============  ====================================================================================
POST /clicks    ``{"user": "ann", "page": "/shop/tea"}`` is answered when the click is done: in the
                database, and shown. 503 with Retry-After if there is too much to do, or the project
                is not there; a client tries again with the same ``id``. 422 if it was given up
GET /live       a WebSocket that tells of every visit, and of the project's health each second
GET /health     the project's health: 200 if it is ready, else 503
GET /           a page that shows all this
==============  ====================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from pathlib import Path
from typing import Any

import msgspec
from tornado.ioloop import PeriodicCallback
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

import flowkit
from examples.tornado_app.nodes import Click, Feed, Live, Visit
from flowkit.errors import DeadLettered

HERE = Path(__file__).parent
TOPOLOGY = HERE / "clicks.yaml"

PENDING = 500
"""Clicks that may be on their way at once; whoever comes then is asked to try again."""

PATIENCE = 10.0
"""Seconds that a request waits for its click to be done."""

BACKLOG = 1 << 20
"""Bytes that may wait for a viewer who does not read; then he is let go."""

POLICY = "default-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss:; img-src data:"


class Posted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST. Without an `id` it is given one."""

    user: str
    page: str
    id: str = ""


class Clicks(RequestHandler):
    """Takes a click, and answers when it is done."""

    site: Site

    def initialize(self, site: Site) -> None:
        self.site = site

    async def post(self) -> None:
        try:
            posted = msgspec.json.decode(self.request.body, type=Posted)
        except msgspec.MsgspecError as error:
            return self.answer(400, error=str(error))
        click = Click(posted.id or uuid.uuid4().hex, posted.user, posted.page)
        if self.site.pending >= self.site.limit:
            return self.later(click, "too many clicks are on their way")
        self.site.pending += 1
        try:
            async with asyncio.timeout(PATIENCE):
                await self.site.feed.clicks.deliver(click)
        except DeadLettered as error:
            self.answer(422, id=click.id, error=str(error))
        except flowkit.FlowkitError as error:
            self.later(click, str(error))
        except TimeoutError:
            self.later(click, f"it was not done within {PATIENCE:g} s, and may still be")
        else:
            self.answer(200, id=click.id)
        finally:
            self.site.pending -= 1

    def later(self, click: Click, why: str) -> None:
        """Ask the client to post the same click again, in a moment."""
        self.set_header("Retry-After", "1")
        self.answer(503, id=click.id, error=why)

    def answer(self, status: int, **facts: str) -> None:
        self.set_status(status)
        self.write(facts)


class Health(RequestHandler):
    """How the project is."""

    def initialize(self, site: Site) -> None:
        self.site = site

    def get(self) -> None:
        health = self.site.health()
        self.set_status(200 if health["ready"] else 503)
        self.write(health)


class Viewer(WebSocketHandler):
    """Somebody who looks at the page."""

    def initialize(self, site: Site) -> None:
        self.site = site
        self.waiting = 0

    def open(self, *_: str) -> None:
        self.site.live.viewers.add(self.show)
        self.say({"health": self.site.health()})
        self.beat = PeriodicCallback(lambda: self.say({"health": self.site.health()}), 1000)
        self.beat.start()

    def on_close(self) -> None:
        self.site.live.viewers.discard(self.show)
        self.beat.stop()

    def show(self, visit: Visit) -> None:
        self.say({"visit": visit})

    def say(self, what: object) -> None:
        text = msgspec.json.encode(what).decode()
        self.waiting += len(text)
        if self.waiting > BACKLOG:
            self.close(1013, "too slow")
            return
        asyncio.ensure_future(self.send(text))

    async def send(self, text: str) -> None:
        with contextlib.suppress(WebSocketClosedError):
            await self.write_message(text)
        self.waiting -= len(text)


class Page(RequestHandler):
    def get(self) -> None:
        self.set_header("Content-Security-Policy", POLICY)
        self.write((HERE / "page.html").read_bytes())


class Site:
    """The service without its socket: `application` answers from `start` to `stop`.

    `limit` is how many clicks may be on their way at once. Other `options` are those of a
    `flowkit.Supervisor`.
    """

    def __init__(self, limit: int = PENDING, **options: Any) -> None:
        self.limit = limit
        self.pending = 0
        self.feed, self.live = Feed(), Live()
        self.project = flowkit.Supervisor(TOPOLOGY, **options)
        self._running = contextlib.AsyncExitStack()
        site = {"site": self}
        self.application = Application(
            [
                ("/", Page),
                ("/clicks", Clicks, site),
                ("/health", Health, site),
                ("/live", Viewer, site),
            ],
            websocket_ping_interval=20,
        )

    async def start(self) -> None:
        """Run the project, with the two nodes that live here."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.project)
            await stack.enter_async_context(flowkit.attach(self.live, self.project))
            await stack.enter_async_context(flowkit.attach(self.feed, self.project))
            self._running = stack.pop_all()

    async def stop(self) -> None:
        """Let all be done that was taken, and end."""
        await self._running.aclose()

    def health(self) -> dict[str, Any]:
        """What /health says."""
        status = self.project.status()
        return {
            "ready": status.ready and all(one.state != "absent" for one in status.replicas),
            "state": status.state,
            "pending": self.pending,
            "verdict": status.verdict.text,
            "replicas": {one.name: one.state for one in status.replicas},
            "restarts": sum(one.restarts for one in status.replicas),
        }
