"""Spans of OpenTelemetry for the batches that a replica handles: the extra ``flowkit[otel]``.

A child process sets OpenTelemetry up when the environment (the topology's ``env:`` is part of it)
asks for it, as it does everywhere: `OTEL_TRACES_EXPORTER`, or an endpoint in
`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, and not `OTEL_SDK_DISABLED`.
All else that OTEL_* variables say is left to the SDK. In an application's own process the
application's tracer provider is used, if it has set one.

A span is named ``process NODE.CHANNEL``, is of kind CONSUMER, and has the attributes of the
semantic conventions for messaging. It is linked to the spans of its messages, and is the child of
the first of them if they all belong to one trace.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from flowkit.runtime.tracing import TRACEPARENT, TRACESTATE, Context, Trace, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger("flowkit.tracing")

LINKS = 128
"""Links of a span at most: what the SDK keeps unless it is told otherwise."""

FLUSH = 3.0
"""Seconds that the last spans get to leave a process that ends."""

NONE = "none"


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for spans."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter != NONE
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environ.get(name, "").strip() for name in names)


def set_up(project: str, node: str, replica: int, first: bool) -> tuple[Tracer | None, Closer]:
    """The tracer of a child process, if the environment asks for one, and how to end it.

    `first`: say so if that is not possible; of many replicas one is enough.
    """
    if not wanted(os.environ):
        return None, _nothing
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider):  # the node's own module has not set one
            provider = _provider(project, node, f"{node}.{replica}")
            trace.set_tracer_provider(provider)
    except Exception as error:
        if first:
            hint = ""
            if isinstance(error, ImportError):
                hint = ": pip install 'flowkit[otel]'"
            log.warning("the environment asks for traces, but %s%s", error, hint)
        return None, _nothing
    return Spans(provider, f"{node}.{replica}", node), lambda: _close(provider)


def of_application(node: str, replica: int) -> Tracer | None:
    """The tracer of an application that has set OpenTelemetry up in this process, if it has."""
    trace = sys.modules.get("opentelemetry.trace")
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if trace is None or sdk is None:
        return None
    provider = trace.get_tracer_provider()
    if not isinstance(provider, sdk.TracerProvider):
        return None
    return Spans(provider, f"{node}.{replica}", node)


Closer = Callable[[], None]


def _nothing() -> None:
    return None


def _close(provider: TracerProvider) -> None:
    """Send what is left, for so long and no longer: a collector may be away."""
    flush = threading.Thread(target=provider.force_flush, name="flowkit spans", daemon=True)
    flush.start()
    flush.join(FLUSH)


def _provider(project: str, node: str, instance: str) -> TracerProvider:
    """A provider that exports to where the environment says."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    facts = {"service.instance.id": instance}
    said = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in said:
        facts |= {"service.name": node, "service.namespace": project}
    provider = TracerProvider(resource=Resource.create(facts))
    for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        if name.strip():
            provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())()))
    return provider


def _exporter(name: str) -> Callable[[], Any]:
    """The exporter that is installed under `name`. Raises ImportError if there is none."""
    from importlib.metadata import entry_points

    names = [name]
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", ""
        )
        names = ["otlp_proto_http", "otlp_proto_grpc"]
        if protocol == "grpc":
            names.reverse()
    for one in names:
        for found in entry_points(group="opentelemetry_traces_exporter", name=one):
            made: Callable[[], Any] = found.load()
            return made
    raise ImportError(f"there is no exporter '{name}' of OpenTelemetry")


class Spans:
    """Makes the spans of one replica."""

    def __init__(self, provider: Any, client: str, node: str) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        from flowkit import __version__

        self._trace = trace
        self._tracer = provider.get_tracer("flowkit", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._client = client
        self._node = node

    def begin(
        self, channel: str, count: int, contexts: Sequence[Context | None] | None, merged: bool
    ) -> Trace:
        trace = self._trace
        distinct: dict[str, Context] = {}
        for context in contexts or ():
            if context is not None:
                distinct.setdefault(context[TRACEPARENT], context)
        traces = {traceparent.split("-")[1] for traceparent in distinct}
        parents = {
            name: self._propagator.extract(dict(context))
            for name, context in islice(distinct.items(), LINKS)
        }
        first = next(iter(parents.values()), None)
        destination = f"{self._node}.{channel}"
        span = self._tracer.start_span(
            f"process {destination}",
            # An empty context, or a span that is current by chance would become the parent.
            context=first if len(traces) == 1 else trace.set_span_in_context(trace.INVALID_SPAN),
            kind=trace.SpanKind.CONSUMER,
            links=[
                trace.Link(trace.get_current_span(parent).get_span_context())
                for parent in parents.values()
            ],
            attributes={
                "messaging.system": "flowkit",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": destination,
                "messaging.batch.message_count": count,
                "messaging.client.id": self._client,
            },
        )
        own: dict[str, str] | None = None
        if merged or len(traces) <= 1:
            own = {}
            self._propagator.inject(own, trace.set_span_in_context(span))
            own = {name: own[name] for name in (TRACEPARENT, TRACESTATE) if own.get(name)}
            if not traces and not span.get_span_context().trace_flags.sampled:
                own = None  # nobody has asked for this trace, and nobody keeps it
        return _SpanTrace(span, contexts, own)


class _SpanTrace(Trace):
    """A batch in hand that is a span."""

    def __init__(
        self, span: Any, contexts: Sequence[Context | None] | None, own: Context | None
    ) -> None:
        super().__init__(contexts)
        if own is not None:
            self.uniform, self.each = own, None
        self._span = span

    def enter(self) -> Any:
        from opentelemetry import context, trace

        return context.attach(trace.set_span_in_context(self._span))

    def exit(self, token: Any) -> None:
        from opentelemetry import context

        context.detach(token)

    def failed(self, error: BaseException) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.record_exception(error)
        self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        self._span.set_attribute("error.type", type(error).__qualname__)

    def end(self) -> None:
        self._span.end()
