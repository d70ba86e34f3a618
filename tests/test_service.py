"""The service of examples/service: its nodes alone, and the whole of it."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from examples.service.nodes import Invoice, Invoices, Order, Price
from tests.conftest import Eventually
from tests.e2e.harness import ROOT, Place, environment


def order(number: int, **facts: object) -> dict[str, object]:
    return {"id": f"o{number}", "customer": "ann", "net": "10.00", "currency": "EUR", **facts}


# ---------------------------------------------------------------------------- nodes alone


def test_prices() -> None:
    price = Price(Decimal(20), {"USD": Decimal("0.5")})
    price.on_orders(json.dumps(order(1, net="0.99")).encode())
    price.on_orders(json.dumps(order(2, net="3", currency="USD")).encode())
    assert [str(one.gross) for one in price.invoices.sent] == ["1.19", "1.80"]
    with pytest.raises(LookupError, match="no rate for CHF"):
        price.on_orders(json.dumps(order(3, currency="CHF")).encode())
    with pytest.raises(ValueError, match="net"):
        price.on_orders(b'{"id": "x", "customer": "y", "net": "much", "currency": "EUR"}')


def test_an_order_that_comes_twice_is_there_once(tmp_path: Path) -> None:
    sink = Invoices(tmp_path / "db")
    sink.setup()
    first = Order("o1", "ann", Decimal(1), "EUR")
    sink.on_invoices([Invoice(first, Decimal(1)), Invoice(first, Decimal(1))])
    sink.on_invoices([Invoice(first, Decimal(2))])
    sink.commit()
    sink.teardown()
    assert rows(tmp_path / "db") == {"o1": "2"}


def rows(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT id, gross FROM invoices"))


# ---------------------------------------------------------------------------- the service


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def start(place: Place, **env: str) -> subprocess.Popen[str]:
    files = {"ORDERS": place.file("orders.jsonl"), "INVOICES": place.file("invoices.db")}
    return subprocess.Popen(
        [sys.executable, "-m", "examples.service"],
        cwd=ROOT,
        env=environment(place.path, **(files | env)),
        stderr=subprocess.PIPE,
        text=True,
    )


def write(place: Place, count: int, *more: dict[str, object]) -> None:
    lines = [json.dumps(one) for one in [*map(order, range(count)), *more]]
    Path(place.file("orders.jsonl")).write_text("\n".join(lines) + "\n")


@pytest.mark.e2e
def test_killed_and_started_again_it_has_every_invoice_once(
    place: Place, eventually: Eventually
) -> None:
    write(place, 8_000)
    database = Path(place.file("invoices.db"))

    def begun() -> bool:
        try:
            return database.exists() and bool(rows(database))
        except sqlite3.OperationalError:  # it is being made
            return False

    service = start(place)
    eventually(begun, 60)
    service.send_signal(signal.SIGKILL)
    service.communicate(timeout=60)
    write(place, 8_000, order(1, currency="CHF", id="odd"))
    _, said = (service := start(place)).communicate(timeout=60)
    assert service.returncode == 4, said
    assert "1 dead letters" in said and "Traceback" not in said.partition("LookupError")[0]
    found = rows(database)
    assert found == {f"o{number}": "11.90" for number in range(8_000)}


@pytest.mark.e2e
def test_settings_that_are_missing_are_named(place: Place) -> None:
    service = start(place, ORDERS="")
    _, said = service.communicate(timeout=60)
    assert service.returncode == 2
    assert "the file of orders" in said and "Traceback" not in said
