"""Node classes that the topologies of this directory use."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flowkit.calls import Call, Serve
from flowkit.channels import In, Out
from flowkit.node import Node, Source, every

print("imports may print")


class Event(msgspec.Struct):
    user: str
    count: int


class Row(msgspec.Struct):
    id: int
    user: str


@dataclass
class User:
    user: str


class Read(Source):
    """Lines of a file."""

    lines = Out(str)

    def __init__(self, path: Path = Path("."), limit: int = 0, loud: bool = False) -> None:
        self.path = path

    def read(self, position):
        yield "line", 1


class Parse(Node):
    """Events of lines."""

    lines = In(str)
    events = Out(Event)

    def on_lines(self, line: str) -> None:
        self.events.send(Event(line, 1))


class Store(Node):
    """Rows go nowhere."""

    rows = In(Row)

    def __init__(self, table: str, sizes: list[int] | None = None) -> None:
        self.table = table

    def on_rows(self, row: Row) -> None:
        pass


class Users(Node):
    """Takes anything that has a user."""

    users = In(User)

    def on_users(self, user: User) -> None:
        pass


class Numbers(Node):
    """Takes integers, gives text."""

    numbers = In(int)
    words = Out(str)

    def on_numbers(self, number: int) -> None:
        self.words.send(str(number))


class Pass(Node):
    """Text in, text out."""

    given = In(str)
    taken = Out(str)

    def on_given(self, text: str) -> None:
        self.taken.send(text)


class End(Node):
    """Takes text."""

    given = In(str)

    def on_given(self, text: str) -> None:
        pass


class Forgets(Node):
    """Sends what it has in memory, and does not say that it has something."""

    given = In(str)
    totals = Out(str)

    def on_given(self, text: str) -> None:
        pass

    @every("5s")
    def report(self) -> None:
        self.totals.send("total")


class Unfinished(Node, abc.ABC):
    """Not to be used as it is."""

    given = In(str)

    def on_given(self, text: str) -> None:
        pass

    @abc.abstractmethod
    def table(self) -> str: ...


class Failing(Node):
    """Its constructor raises: that is found out when it runs, not before."""

    given = In(str)

    def __init__(self) -> None:
        raise RuntimeError("no database")

    def on_given(self, text: str) -> None:
        pass


class Helper:
    """No node."""


class Asks(Node):
    """Asks for users."""

    lines = In(str)
    lookup = Call(str, User)
    other = Call(int, Row)

    async def on_lines(self, line: str) -> None:
        await self.lookup.ask(line)


class Serves(Node):
    """Answers with users, and with rows."""

    lookup = Serve(str, User)
    rows = Serve(int, Row)

    def on_lookup(self, name: str) -> User:
        return User(name)

    def on_rows(self, number: int) -> Row:
        return Row(number, "nobody")


class Events(Node):
    """Events go nowhere."""

    rows = In(Event)

    def on_rows(self, event: Event) -> None: ...
