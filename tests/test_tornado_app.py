"""The web service of examples/tornado_app, as its clients see it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse
from tornado.httputil import url_concat
from tornado.testing import AsyncHTTPTestCase, gen_test
from tornado.web import Application
from tornado.websocket import websocket_connect

from examples.tornado_app.nodes import stored
from examples.tornado_app.service import Site
from flowkit.supervisor import Silent
from tests.conftest import Eventually
from tests.e2e.harness import ROOT, Place, environment

pytestmark = pytest.mark.e2e

eventually = Eventually()
patient = gen_test(timeout=60)  # a busy machine is not a bug


class Web(AsyncHTTPTestCase):
    """The service on a port of its own, in this process; its workers are processes beside it."""

    in_process = True
    limit = 500
    lookup = 0.0

    @pytest.fixture(autouse=True)
    def _place(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.place = Place()
        monkeypatch.setenv("FLOWKIT_RUN_DIR", self.place.file("r"))
        monkeypatch.setenv("FLOWKIT_STATE_DIR", self.place.file("s"))
        monkeypatch.setenv("CLICKS_DB", self.place.file("clicks.db"))
        monkeypatch.setenv("LOOKUP", str(self.lookup))
        monkeypatch.chdir(ROOT)
        yield
        self.place.close()

    def get_app(self) -> Application:
        self.site = Site(self.limit, in_process=self.in_process, watcher=Silent())
        self.io_loop.run_sync(self.site.start)
        return self.site.application

    def tearDown(self) -> None:
        self.io_loop.run_sync(self.site.stop)
        super().tearDown()

    @property
    def in_sink(self) -> set[str]:
        return stored(self.place.file("clicks.db"))

    async def post(self, id: str, page: str = "/shop/tea", **more: Any) -> HTTPResponse:
        body = json.dumps({"id": id, "user": "ann", "page": page, **more})
        return await self.http_client.fetch(
            self.get_url("/clicks"), method="POST", body=body, raise_error=False, request_timeout=60
        )


class TestAnswers(Web):
    limit = 3

    @patient
    async def test_a_click_is_done_when_it_is_answered(self) -> None:
        answer = await self.post("a")
        assert (answer.code, json.loads(answer.body)) == (200, {"id": "a"})
        assert self.in_sink == {"a"}
        assert (await self.post("a")).code == 200, "again is fine"
        assert self.in_sink == {"a"}

    @patient
    async def test_what_is_no_click(self) -> None:
        for body in ("", "[]", '{"user": 1, "page": "/"}', '{"user": "ann"}'):
            answer = await self.http_client.fetch(
                self.get_url("/clicks"), method="POST", body=body, raise_error=False
            )
            assert answer.code == 400, body
        answer = await self.post("b", colour="red")
        assert answer.code == 400 and "colour" in json.loads(answer.body)["error"]
        assert self.in_sink == set()

    @patient
    async def test_a_click_that_is_given_up(self) -> None:
        answer = await self.post("c", page="\0")
        assert answer.code == 422 and "dead letter" in json.loads(answer.body)["error"]
        assert self.in_sink == set()

    @patient
    async def test_the_page_and_the_health(self) -> None:
        page = await self.http_client.fetch(self.get_url("/"))
        assert b"<title>Clicks</title>" in page.body
        health = json.loads((await self.http_client.fetch(self.get_url("/health"))).body)
        assert health["ready"] and health["state"] == "running"
        assert set(health["replicas"]) == {"feed.0", "enrich.0", "enrich.1", "store.0", "live.0"}

    @patient
    async def test_results_are_shown_live(self) -> None:
        live = await websocket_connect(url_concat(self.get_url("/live").replace("http", "ws"), {}))
        first = json.loads(str(await live.read_message()))
        assert first["health"]["ready"]
        await self.post("d", page="/news/today")
        while "visit" not in (said := json.loads(str(await live.read_message()))):
            pass
        assert said["visit"]["section"] == "news" and said["visit"]["click"]["id"] == "d"
        live.close()
        await eventually.on_loop(lambda: not self.site.live.viewers)

    @patient
    async def test_without_its_project_it_asks_to_come_again(self) -> None:
        self.site.project.kill()
        await self.site.project.wait()
        answer = await self.post("e")
        assert answer.code == 503 and answer.headers["Retry-After"] == "1"
        health = await self.http_client.fetch(self.get_url("/health"), raise_error=False)
        assert health.code == 503 and json.loads(health.body)["state"] == "killed"


class TestTooMuch(Web):
    limit = 3
    lookup = 0.2

    @patient
    async def test_who_comes_when_there_is_too_much_is_asked_to_come_again(self) -> None:
        answers = await asyncio.gather(*(self.post(f"f{number}") for number in range(8)))
        codes = [answer.code for answer in answers]
        assert codes.count(200) >= 3 and codes.count(503) >= 1, codes
        done = {f"f{number}" for number, code in enumerate(codes) if code == 200}
        assert done == self.in_sink, "what was refused has not happened"
        for answer in answers:
            if answer.code == 503:
                assert answer.headers["Retry-After"] == "1"
                again = await self.post(json.loads(answer.body)["id"])
                assert again.code == 200


class TestKill(Web):
    in_process = False
    lookup = 0.02

    @patient
    async def test_a_worker_is_killed_under_two_hundred_posts(self) -> None:
        self.http_client.configure(None, max_clients=200)
        posting = [asyncio.ensure_future(self.post(f"{number}")) for number in range(200)]
        await eventually.on_loop(lambda: any(one.done() for one in posting), 30)
        victim = self.site.project.pids["enrich.0"]
        os.kill(victim, signal.SIGKILL)
        answers = await asyncio.gather(*posting)
        done = {str(number) for number, answer in enumerate(answers) if answer.code == 200}
        assert done <= self.in_sink
        assert len(done) == 200, [answer.code for answer in answers]
        report = self.site.project.report()
        assert [one.restarts for one in report.nodes if one.node == "enrich"] == [1, 0]
        assert report.links[0].entry.redelivered > 0, "the one that was killed had some in hand"

    def get_http_client(self) -> Any:
        from tornado.simple_httpclient import SimpleAsyncHTTPClient

        return SimpleAsyncHTTPClient(force_instance=True, max_clients=200)


# ---------------------------------------------------------------------------- as a program


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


@contextlib.contextmanager
def served(place: Place) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The service as a program, and its address."""
    env = environment(place.path, CLICKS_DB=place.file("clicks.db"))
    command = [sys.executable, "-m", "examples.tornado_app", "0"]
    program = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout is not None
        yield program, program.stdout.readline().strip()
    finally:
        program.kill()
        program.communicate()


def test_it_ends_in_order_when_it_is_told_to(place: Place) -> None:
    with served(place) as (program, url):
        assert url.startswith("http://127.0.0.1:")
        program.terminate()
        _, errors = program.communicate(timeout=60)
        assert program.returncode == 0, errors
        assert "Traceback" not in errors


# ---------------------------------------------------------------------------- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """A page in Chromium, driven over its debugging protocol."""

    def __init__(self, line: Any) -> None:
        self._line = line
        self._number = 0
        self.complaints: list[str] = []
        """What the page has complained of."""

    @classmethod
    async def open(cls, profile: Path, url: str) -> Browser:
        """Connect to a Chromium that runs with that profile, and show `url`."""
        file = profile / "DevToolsActivePort"
        await eventually.on_loop(lambda: file.exists() and len(file.read_text().split()) == 2, 60)
        port, path = file.read_text().split()
        browser = cls(await websocket_connect(f"ws://127.0.0.1:{port}{path}"))
        target = await browser.ask("Target.createTarget", url="about:blank")
        session = await browser.ask("Target.attachToTarget", **target, flatten=True)
        browser._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await browser.ask(f"{domain}.enable")
        await browser.ask("Page.navigate", url=url)
        return browser

    _session = ""

    async def ask(self, method: str, **facts: Any) -> Any:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": facts}
        if self._session:
            asked["sessionId"] = self._session
        await self._line.write_message(json.dumps(asked))
        while True:
            said = json.loads(await self._line.read_message())
            if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(said["params"]))
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    async def value(self, expression: str) -> Any:
        result = await self.ask("Runtime.evaluate", expression=expression, awaitPromise=True)
        return result["result"].get("value")

    async def close(self) -> None:
        """End the browser, and hear that it has gone."""
        await self.ask("Browser.close")
        while await self._line.read_message() is not None:
            pass
        self._line.close()

    async def screenshot(self) -> bytes:
        return base64.b64decode((await self.ask("Page.captureScreenshot"))["data"])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: chromium)")
def test_a_person_sees_it_live(place: Place) -> None:
    profile = place.path / "browser"
    flags = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    flags += ["--remote-debugging-port=0", "--window-size=900,800"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium's does not work for root

    async def look(url: str) -> None:
        browser = await Browser.open(profile, url)

        async def shows(expression: str) -> bool:
            return bool(await browser.value(expression))

        async def see(text: str) -> None:
            await eventually.on_loop(lambda: shows(text), 30)

        await see("document.getElementById('health').className == 'ready'")
        for page in ("/shop/tea", "/shop/pots", "/news", "<b>bold</b>"):
            await browser.value(f"document.forms[0].page.value = {json.dumps(page)}")
            await browser.value("document.forms[0].requestSubmit()")
            await see("document.getElementById('answer').textContent == 'done'")
            await browser.value("document.getElementById('answer').textContent = ''")
        await see("document.getElementById('total').textContent == '4'")
        await see("document.querySelector('#sections tr td').textContent == 'shop'")
        await see("document.getElementById('last').textContent.includes('saw <b>bold</b>')")
        if target := os.environ.get("FLOWKIT_SCREENSHOT"):
            Path(target).write_bytes(await browser.screenshot())
        assert not browser.complaints
        await browser.close()

    with served(place) as (program, url):
        assert CHROMIUM is not None
        chromium = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            asyncio.run(look(url))
            chromium.wait(30)
        finally:
            chromium.kill()
            chromium.wait()
        program.terminate()
        _, errors = program.communicate(timeout=60)
        assert program.returncode == 0, errors
    assert len(stored(place.file("clicks.db"))) == 4
