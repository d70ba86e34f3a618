"""Spans of handled batches, as an application's own tracer provider sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flowkit import In, Node, Out
from tests.runtime.stage import Part, numbers
from tests.runtime.test_tracing import Begin, end, parent

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the spans of this process go."""
    return _provide(monkeypatch, ALWAYS_ON)


def _provide(monkeypatch: pytest.MonkeyPatch, root: Any) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(root), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # It may be set once in the life of a process, which is not what tests want.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


class Pass(Node):
    x = In(int)
    out = Out(int)

    def on_x(self, message: int) -> None:
        trace.get_current_span().add_event(str(message))
        self.out.send(message)


class PassLater(Node):
    x = In(int, concurrency=4)
    out = Out(int)

    async def on_x(self, message: int) -> None:
        trace.get_current_span().add_event(str(message))
        self.out.send(message)


def ids(span: Any) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def of(exporter: InMemorySpanExporter, name: str) -> list[Any]:
    return [span for span in exporter.get_finished_spans() if span.name == f"process {name}"]


@pytest.mark.parametrize("kind", [Pass, PassLater])
def test_one_trace_through_two_nodes(kind: type[Node], exporter: Any, play: Any) -> None:
    got: list[tuple[int, dict[str, str]]] = []
    sent = [(n, {"traceparent": parent(0xABC, 0x77)}) for n in range(100)]
    play(
        {"a": Part(Begin, {"messages": sent}), "b": kind, "c": end(got)},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    first, second = of(exporter, "b.x"), of(exporter, "c.x")
    assert sum(span.attributes["messaging.batch.message_count"] for span in first) == 100
    assert {span.context.trace_id for span in first + second} == {0xABC}
    assert {span.parent.span_id for span in first} == {0x77}
    assert {link.context.span_id for span in first for link in span.links} == {0x77}
    known = {span.context.span_id for span in first}
    assert {span.parent.span_id for span in second} <= known
    assert {link.context.span_id for span in second for link in span.links} == known
    span = first[0]
    assert span.kind is SpanKind.CONSUMER and span.status.status_code is StatusCode.UNSET
    assert span.attributes["messaging.system"] == "flowkit"
    assert span.attributes["messaging.operation.type"] == "process"
    assert span.attributes["messaging.operation.name"] == "process"
    assert span.attributes["messaging.destination.name"] == "b.x"
    assert span.attributes["messaging.client.id"] == "b.0"
    # The author's own spans and events hang on it, in coroutines too.
    assert sorted(int(event.name) for one in first for event in one.events) == list(range(100))
    # Every message continues the span that it was sent in.
    assert {headers["traceparent"] for _, headers in got} == {
        f"00-{0xABC:032x}-{span:016x}-01" for span in known
    }
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("kind", [Pass, PassLater])
def test_several_traces_in_a_batch(kind: type[Node], exporter: Any, play: Any) -> None:
    """The span is linked to all of them and belongs to none; each message keeps its own."""
    got: list[tuple[int, dict[str, str]]] = []
    sent = [(n, {"traceparent": parent(n + 1, n + 1)} if n % 2 else None) for n in range(2000)]
    play(
        {"a": Part(Begin, {"messages": sent}), "b": kind, "c": end(got)},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    spans = of(exporter, "b.x")
    links = [link.context.trace_id for span in spans for link in span.links]
    assert sorted(links) == [n + 1 for n in range(2000) if n % 2]
    large = [span for span in spans if len(span.links) > 1]
    assert large and all(span.parent is None for span in large)
    assert all(span.context.trace_id > 2000 for span in large)
    single = {span.links[0].context.trace_id: span for span in spans if len(span.links) == 1}
    for number, headers in got:
        trace_id = int(headers["traceparent"][3:35], 16) if "traceparent" in headers else None
        if number % 2 and number + 1 not in single:
            assert headers == {"traceparent": parent(number + 1, number + 1)}
        elif number % 2:
            assert trace_id == number + 1


@pytest.mark.parametrize("within", [None, "5ms"])
def test_a_list_continues_its_span(within: str | None, exporter: Any, play: Any) -> None:
    class Lists(Node):
        x = In(int, batch=50, within=within)
        out = Out(int)

        async def on_x(self, messages: list[int]) -> None:
            self.out.send(len(messages))

    got: list[tuple[int, dict[str, str]]] = []
    sent = [(n, {"traceparent": parent(n + 1)}) for n in range(100)]
    play(
        {"a": Part(Begin, {"messages": sent}), "b": Lists, "c": end(got)},
        ["a.out -> b.x", "b.out -> c.x"],
    )
    spans = of(exporter, "b.x")
    assert sorted(link.context.trace_id for span in spans for link in span.links) == [
        n + 1 for n in range(100)
    ]
    assert {headers["traceparent"][:52] for _, headers in got} == {
        f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}" for span in spans
    }


def test_where_nobody_has_begun_a_trace_the_first_handler_does(exporter: Any, play: Any) -> None:
    got: list[tuple[int, dict[str, str]]] = []
    play({"a": numbers(50), "b": Pass, "c": end(got)}, ["a.out -> b.x", "b.out -> c.x"])
    first, second = of(exporter, "b.x"), of(exporter, "c.x")
    assert all(span.parent is None and not span.links for span in first)
    assert {span.parent.span_id for span in second} <= {span.context.span_id for span in first}
    assert len(got) == 50 and all("traceparent" in headers for _, headers in got)


def test_what_is_not_sampled_costs_no_headers(monkeypatch: Any, play: Any) -> None:
    exporter = _provide(monkeypatch, ALWAYS_OFF)
    got: list[tuple[int, dict[str, str]]] = []
    play({"a": numbers(50), "b": Pass, "c": end(got)}, ["a.out -> b.x", "b.out -> c.x"])
    assert not exporter.get_finished_spans()
    assert [headers for _, headers in got] == [{}] * 50


@pytest.mark.parametrize("coroutine", [False, True])
def test_a_failure_is_on_the_span(coroutine: bool, exporter: Any, play: Any) -> None:
    class Fails(Node):
        x = In(int)

        def on_x(self, message: int) -> None:
            if message == 3:
                raise KeyError("three")

    class FailsLater(Node):
        x = In(int)

        async def on_x(self, message: int) -> None:
            if message == 3:
                raise KeyError("three")

    play({"a": numbers(10), "b": FailsLater if coroutine else Fails}, ["a.out -> b.x"])
    failed = [span for span in of(exporter, "b.x") if span.status.status_code is StatusCode.ERROR]
    (span,) = failed
    assert span.attributes["error.type"] == "KeyError"
    (event,) = span.events
    assert event.name == "exception" and "three" in event.attributes["exception.message"]


@pytest.fixture(autouse=True)
def nothing_stays_current() -> Iterator[None]:
    yield
    assert not trace.get_current_span().get_span_context().is_valid
