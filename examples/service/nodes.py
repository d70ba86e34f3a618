"""The nodes of orders.yaml."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import msgspec

from flowkit import In, Node, Out, Sink, Source


class Order(msgspec.Struct, frozen=True):
    """A line of the order book. `net` is an amount in `currency`, as text: money is no float."""

    id: str
    customer: str
    net: Decimal
    currency: str


class Invoice(msgspec.Struct, frozen=True):
    """An order with what is to be paid for it, in euros."""

    order: Order
    gross: Decimal


class ReadOrders(Source):
    """The orders in a file of JSON lines; the position is the byte offset after the line."""

    orders = Out(bytes)

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, position: int | None) -> Iterator[tuple[bytes, int]]:
        with open(self.path, "rb") as file:
            file.seek(position or 0)
            while line := file.readline():
                yield line, file.tell()


class Price(Node):
    """Parse an order and work out what is to be paid: `vat` in per cent, `rates` in euros.

    What is no order, or in a currency without a rate, raises, and becomes a dead letter.
    """

    orders = In(bytes)
    invoices = Out(Invoice)

    def __init__(self, vat: Decimal, rates: dict[str, Decimal]) -> None:
        self.factor = 1 + vat / 100
        self.rates = {"EUR": Decimal(1), **rates}

    def on_orders(self, line: bytes) -> None:
        order = msgspec.json.decode(line, type=Order)
        if order.currency not in self.rates:
            raise LookupError(f"no rate for {order.currency}")
        gross = order.net * self.rates[order.currency] * self.factor
        cents = gross.quantize(Decimal("0.01"), ROUND_HALF_UP)
        self.invoices.send(Invoice(order, cents))


class Invoices(Sink):
    """A table of invoices in SQLite, each order once however often it comes.

    Up to 500 rows, or what comes within half a second, are one statement; `commit` makes one
    transaction of what was handled, and only then is it acknowledged. Whoever dies before that
    gets it again.
    """

    invoices = In(Invoice, batch=500, within="500ms")

    def __init__(self, database: Path) -> None:
        self.database = database

    def setup(self) -> None:
        self.db = sqlite3.connect(self.database)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS invoices ("
            "id TEXT PRIMARY KEY, customer TEXT NOT NULL, gross TEXT NOT NULL)"
        )

    def on_invoices(self, invoices: list[Invoice]) -> None:
        self.db.executemany(
            "INSERT INTO invoices VALUES (?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET customer = excluded.customer, gross = excluded.gross",
            [(one.order.id, one.order.customer, str(one.gross)) for one in invoices],
        )

    def commit(self) -> None:
        self.db.commit()

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
