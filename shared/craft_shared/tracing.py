"""Traces (OpenTelemetry): spans, and how a trace goes over HTTP from the client to the server.

Off unless the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`, or the same for traces
alone); nothing of OpenTelemetry is imported until then, and it need not be installed. All else is
set by OpenTelemetry's own variables. A span's attributes are few and are written here and where it
is made: no key, no text and no name of a client's is among them.

Sources: OpenTelemetry, "Environment Variable Specification" and "Semantic conventions for HTTP
spans"; W3C Trace Context.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

Kind = Literal["INTERNAL", "CLIENT", "SERVER"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_tracer: Any = None


class TracingUnavailable(Exception):  # noqa: N818 - named after what happened
    """Traces are asked for and cannot be sent; the message is one line."""


class Span:
    """A part of a trace while it lasts."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def note(self, attributes: Mapping[str, str | int]) -> None:
        """Adds attributes."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """Names it by what is known only now."""
        if self._span is not None:
            self._span.update_name(name)


def wanted() -> bool:
    """Whether the environment asks for traces."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    none = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return not off and not none and any(os.environ.get(name) for name in _ENDPOINTS)


@contextmanager
def tracing(service: str) -> Iterator[None]:
    """Sends the block's spans, the last ones at its end, if the environment asks for it.

    Args:
        service: what the process is called unless OTEL_SERVICE_NAME names it.

    Raises:
        TracingUnavailable: the extra `otel` is not installed.
    """
    global _tracer
    if not wanted():
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailable(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and OpenTelemetry is not installed: "
            "pip install 'craftbox[otel]', or unset the variable"
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("craftbox")
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


def span(
    name: str,
    kind: Kind = "INTERNAL",
    *,
    carrier: Mapping[str, str] | None = None,
) -> AbstractContextManager[Span]:
    """A span that lasts as long as the block, and notes the kind of error that ends it.

    Args:
        name: of few different ones.
        kind: of the span.
        carrier: headers in lower case that may name the span's parent, in the place of the span
            around it.
    """
    return nullcontext(Span()) if _tracer is None else _span(name, kind, carrier)


@contextmanager
def _span(name: str, kind: Kind, carrier: Mapping[str, str] | None) -> Iterator[Span]:
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = None if carrier is None else TraceContextTextMapPropagator().extract(carrier)
    with _tracer.start_as_current_span(
        name,
        parent,
        SpanKind[kind],
        # Messages and tracebacks may hold what a client wrote.
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        try:
            yield Span(made)
        except BaseException as error:
            made.set_status(Status(StatusCode.ERROR))
            made.set_attribute("error.type", type(error).__name__)
            raise


def parent_headers() -> dict[str, str]:
    """What a request carries so that its server's spans are parts of the present one."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers
