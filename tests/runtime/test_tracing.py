"""Trace contexts travel with messages through every kind of handler, with and without spans."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flowkit import In, Meta, Node, Out
from flowkit.channels import Outbox
from flowkit.codecs import encode_extras
from flowkit.runtime import spans, tracing
from flowkit.runtime.tracing import Trace, context_of, contexts_of, is_valid, stamp
from tests.runtime.stage import Part, numbers


def parent(number: int, span: int = 1) -> str:
    """A valid traceparent of trace `number`."""
    return f"00-{number:032x}-{span:016x}-01"


class Begin(Node):
    """Sends (number, headers) pairs; `headers` None: without any."""

    out = Out(int)

    def __init__(
        self, messages: list[tuple[int, dict[str, str] | None]], key: bool = False
    ) -> None:
        self.messages = messages
        self.key = key

    async def run(self) -> None:
        for number, headers in self.messages:
            await self.out.room()
            self.out.send(number, key=number if self.key else None, headers=headers)


def end(into: list[tuple[int, dict[str, str]]]) -> type[Node]:
    class End(Node):
        x = In(int)

        def on_x(self, message: int, meta: Meta) -> None:
            into.append((message, dict(meta.headers)))

    return End


# -- what is valid -------------------------------------------------------------------------------

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (GOOD, True),
        (GOOD[:-2] + "00", True),
        ("cc" + GOOD[2:], True),  # a later version
        ("cc" + GOOD[2:] + "-what-comes", True),
        (GOOD + "-more", False),
        (GOOD + "\n", False),
        ("ff" + GOOD[2:], False),
        (GOOD.upper(), False),
        (GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), False),
        (GOOD.replace("00f067aa0ba902b7", "0" * 16), False),
        (GOOD[:-1], False),
        (GOOD.replace("-", "_"), False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_valid_traceparents(text: str, valid: bool) -> None:
    assert is_valid(text) is valid
    assert (context_of({"traceparent": text}) is not None) is valid


def test_the_state_goes_with_the_parent() -> None:
    state = {"tracestate": "a=b", "other": "x"}
    assert context_of(state) is None
    assert context_of({"traceparent": GOOD, **state}) == {"traceparent": GOOD, "tracestate": "a=b"}
    assert context_of({}) is None and context_of(None) is None


def batch(headers: list[dict[str, str] | None] | None, keys: list[Any] | None = None) -> Any:
    count = len(headers or keys or [])
    extras = encode_extras(keys, headers)
    return SimpleNamespace(extras=extras, count=count, terms=SimpleNamespace(name="a.x -> b.y"))


def test_the_mark_tells_whether_to_look() -> None:
    assert tracing.MARK not in batch(None, ["trace", "parent"] * 20).extras
    assert tracing.MARK not in batch([{"a": "b"}, None]).extras
    one = batch([None, {"traceparent": GOOD}, {"traceparent": "bad"}])
    assert tracing.MARK in one.extras
    assert contexts_of(one, [0, 1, 2]) == [None, {"traceparent": GOOD}, None]
    assert contexts_of(one, [0, 2]) is None


def test_equal_contexts_are_one() -> None:
    same = batch([{"traceparent": GOOD, "n": str(n)} for n in range(5)])
    trace = Trace(contexts_of(same, range(5)))
    assert trace.uniform == {"traceparent": GOOD} and trace.each is None
    mixed = Trace(contexts_of(batch([None, {"traceparent": GOOD}]), range(2)))
    assert mixed.uniform is None
    assert [mixed.context(0), mixed.context(1)] == [None, {"traceparent": GOOD}]
    assert mixed.of_list([0]) is None
    assert mixed.of_list([0, 1]) == {"traceparent": GOOD}


def test_what_the_author_said_stands() -> None:
    context = {"traceparent": GOOD, "tracestate": "a=b"}
    box = Outbox()
    for headers in (None, {"a": "1"}, {"traceparent": "mine", "b": "2"}, {"tracestate": "old"}):
        if headers is not None:
            box.annotate(None, headers)
        box.messages.append(0)
    box.messages.append(0)
    stamp([box], [1], context)
    _, _, stamped = box.take()
    assert stamped == [
        None,  # before the mark
        {"a": "1", **context},
        {"traceparent": "mine", "b": "2"},
        context,
        context,
    ]
    stamp([box], [0], context)
    assert box.headers is None  # nothing was sent, so nothing is said


# -- through nodes -------------------------------------------------------------------------------


def plain() -> type[Node]:
    class Plain(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message)
            self.out.send(-message, headers={"traceparent": "mine"})

    return Plain


def coroutine() -> type[Node]:
    class Coroutine(Node):
        x = In(int, concurrency=4)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            self.out.send(message)
            self.out.send(-message, headers={"traceparent": "mine"})

    return Coroutine


def with_meta() -> type[Node]:
    class WithMeta(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int, meta: Meta) -> None:
            assert meta.headers.get("n") == str(message)
            self.out.send(message)
            self.out.send(-message, headers={"traceparent": "mine"})

    return WithMeta


@pytest.mark.parametrize("kind", [plain, coroutine, with_meta])
@pytest.mark.parametrize("state", [False, True])
def test_each_message_carries_its_trace_on(
    kind: Callable[[], type[Node]], state: bool, play: Any
) -> None:
    sent: list[tuple[int, dict[str, str] | None]] = []
    for number in range(1, 200):
        headers = {"n": str(number)}
        if number % 3 == 0:
            headers["traceparent"] = parent(number)
            if state:
                headers["tracestate"] = f"v={number}"
        elif number % 3 == 1:
            headers["traceparent"] = "broken"
        sent.append((number, headers))
    got: list[tuple[int, dict[str, str]]] = []
    play(
        {"a": Part(Begin, {"messages": sent}), "b": kind(), "c": kind2(kind), "d": end(got)},
        ["a.out -> b.x", "b.out -> c.x", "c.out -> d.x"],
    )
    assert len(got) == 398
    for number, headers in got:
        if number < 0:
            assert headers == {"traceparent": "mine"}
        elif number % 3 == 0:
            expected = {"traceparent": parent(number)}
            assert headers == {**expected, **({"tracestate": f"v={number}"} if state else {})}
        else:
            assert headers == {}


def kind2(kind: Callable[[], type[Node]]) -> type[Node]:
    """A second node of the kind, that passes on what it gets."""
    if kind is coroutine:

        class AlsoCoroutine(Node):
            x = In(int)
            out = Out(int)

            async def on_x(self, message: int, meta: Meta) -> None:
                mine = meta.headers.get("traceparent") == "mine"
                self.out.send(message, headers={"traceparent": "mine"} if mine else None)

        return AlsoCoroutine

    class Also(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int, meta: Meta) -> None:
            mine = meta.headers.get("traceparent") == "mine"
            self.out.send(message, headers={"traceparent": "mine"} if mine else None)

    return Also


def test_a_trace_of_a_whole_batch_keeps_the_fast_path(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowkit.runtime.inlet import PlainInlet

    ones = 0
    one = PlainInlet._one

    def count(self: Any, *arguments: Any) -> None:
        nonlocal ones
        ones += self.shop.node.node == "b"
        one(self, *arguments)

    monkeypatch.setattr(PlainInlet, "_one", count)
    headers = {"traceparent": parent(7)}
    got: list[tuple[int, dict[str, str]]] = []

    class Pass(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message)

    sent = [(n, headers) for n in range(500)]
    play(
        {"a": Part(Begin, {"messages": sent}), "b": Pass, "c": end(got)},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    assert [found for _, found in got] == [headers] * 500
    assert ones == 1  # the very first message of a node is always looked at alone


def test_a_failed_message_takes_no_trace_away(play: Any) -> None:
    """What a handler sent before it failed is cut off with its headers; the others keep theirs."""

    class Fails(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message)
            if message % 5 == 0:
                raise ValueError(message)

    got: list[tuple[int, dict[str, str]]] = []
    sent = [(n, {"traceparent": parent(n + 1)}) for n in range(50)]
    play(
        {"a": Part(Begin, {"messages": sent}), "b": Fails, "c": end(got)},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    assert got == [(n, {"traceparent": parent(n + 1)}) for n in range(50) if n % 5]


@pytest.mark.parametrize("within", [None, "5ms"])
def test_a_list_carries_on_its_first_trace(within: str | None, play: Any) -> None:
    class Lists(Node):
        x = In(int, batch=10, within=within)
        out = Out(list)

        def on_x(self, messages: list[int]) -> None:
            self.out.send(messages)

    got: list[tuple[list[int], dict[str, str]]] = []

    class End(Node):
        x = In(list)

        def on_x(self, message: list[int], meta: Meta) -> None:
            got.append((message, dict(meta.headers)))

    sent: list[tuple[int, dict[str, str] | None]] = [
        (n, {"traceparent": parent(n)} if n % 4 == 3 else None) for n in range(100)
    ]
    play(
        {"a": Part(Begin, {"messages": sent}), "b": Lists, "c": End},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    assert sum(len(messages) for messages, _ in got) == 100
    for messages, headers in got:
        first = next((n for n in messages if n % 4 == 3), None)
        assert headers == ({} if first is None else {"traceparent": parent(first)})


def test_keys_and_order_stay(play: Any) -> None:
    got: list[tuple[int, dict[str, str]]] = []

    class Pass(Node):
        x = In(int, concurrency=8)
        out = Out(int)

        async def on_x(self, message: int) -> None:
            self.out.send(message, key=message)

    sent = [(n, {"traceparent": parent(n + 1)}) for n in range(300)]
    play(
        {
            "a": Part(Begin, {"messages": sent, "key": True}),
            "b": Part(Pass, replicas=2),
            "c": Part(end(got), replicas=2),
        },
        [{"text": "a.out -> b.x", "route": "key"}, {"text": "b.out -> c.x", "route": "key"}],
    )
    assert sorted(n for n, _ in got) == list(range(300))
    assert all(headers == {"traceparent": parent(n + 1)} for n, headers in got)


def test_batches_without_headers_are_not_looked_at(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("nothing is traced")

    monkeypatch.setattr(tracing, "contexts_of", never)
    monkeypatch.setattr(tracing, "stamp", never)

    class Pass(Node):
        x = In(int)
        out = Out(int)

        def on_x(self, message: int) -> None:
            self.out.send(message, key=message)

    got: list[tuple[int, dict[str, str]]] = []
    play(
        {"a": numbers(100), "b": Pass, "c": end(got)},
        ["a.out -> b.x", {"text": "b.out -> c.x", "route": "key"}],
    )
    assert [headers for _, headers in got] == [{}] * 100


# -- what the environment says -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_spans_are_made_when_the_environment_asks(environ: dict[str, str], wanted: bool) -> None:
    assert spans.wanted(environ) is wanted


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    tracer, close = spans.set_up("p", "n", 0, first=True)
    close()
    assert tracer is None
    assert "pip install 'flowkit[otel]'" in caplog.text
    caplog.clear()
    assert spans.set_up("p", "n", 1, first=False)[0] is None
    assert not caplog.text


def test_a_child_imports_no_opentelemetry_unless_asked() -> None:
    code = (
        "import sys; from flowkit.runtime import child, spans;"
        "assert spans.set_up('p', 'n', 0, True)[0] is None;"
        "assert spans.of_application('n', 0) is None;"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    clean = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean, timeout=60)
