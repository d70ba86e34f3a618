"""The nodes of clicks.yaml: two run in the web service, two in processes of their own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing

from msgspec import Struct

from flowkit import In, Node, Out, Sink


class Click(Struct, frozen=True):
    """What a client posts. Its `id` makes it the same click when it is posted again."""

    id: str
    user: str
    page: str


class Visit(Struct, frozen=True):
    """A click, and what was found out about it."""

    click: Click
    section: str


class Feed(Node):
    """Where the request handlers put what they get; the web service attaches it."""

    clicks = Out(Click)


class Enrich(Node):
    """Finds out the section of a page. A look-up takes `lookup` seconds; twenty run at once."""

    clicks = In(Click, concurrency=20)
    visits = Out(Visit)

    def __init__(self, lookup: float = 0.0) -> None:
        self.lookup = lookup

    async def on_clicks(self, click: Click) -> None:
        if "\0" in click.page:
            raise ValueError(f"no page is called {click.page!r}")
        await asyncio.sleep(self.lookup)
        section = click.page.strip("/").partition("/")[0] or "home"
        self.visits.send(Visit(click, section))


class Store(Sink):
    """Keeps every visit once, in SQLite: acknowledged when the transaction is on disk."""

    visits = In(Visit, batch=200)

    def __init__(self, path: str) -> None:
        self.db = sqlite3.connect(path)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS visits"
            " (id TEXT PRIMARY KEY, user TEXT, page TEXT, section TEXT)"
        )

    def on_visits(self, visits: list[Visit]) -> None:
        rows = [(one.click.id, one.click.user, one.click.page, one.section) for one in visits]
        # A visit comes again when somebody died, or a client tried again: it is there already.
        self.db.executemany("INSERT OR IGNORE INTO visits VALUES (?, ?, ?, ?)", rows)

    def commit(self) -> None:
        self.db.commit()

    def teardown(self) -> None:
        self.db.close()


class Live(Node):
    """Shows visits to whoever looks; the web service attaches it. What it is given is shown by
    calling each of `viewers`."""

    visits = In(Visit)

    def __init__(self) -> None:
        self.viewers: set[Callable[[Visit], None]] = set()

    def on_visits(self, visit: Visit) -> None:
        for show in list(self.viewers):
            show(visit)


def stored(path: str) -> set[str]:
    """The ids of the clicks that are kept in the database at `path`."""
    with closing(sqlite3.connect(path)) as db:
        return {id for (id,) in db.execute("SELECT id FROM visits")}
