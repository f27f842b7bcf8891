"""Traces (OpenTelemetry): instrumentation of httpx and SQLAlchemy, sent to a collector.

Off unless the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`, or the same for traces
alone); nothing of OpenTelemetry is imported until then, and it need not be installed. All else is
set by OpenTelemetry's own variables. `craft_server.app` adds the instrumentation of ASGI.

Source: OpenTelemetry, "Environment Variable Specification".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REQUEST_ID = "craft.request_id"

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class TracingUnavailable(Exception):  # noqa: N818 - named after what happened
    """Traces are asked for and cannot be sent; the message is one line."""


def wanted() -> bool:
    """Whether the environment asks for traces."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    none = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return not off and not none and any(os.environ.get(name) for name in _ENDPOINTS)


@contextmanager
def tracing(service: str, *, database: bool = False) -> Iterator[None]:
    """Traces the block's HTTP calls, and sends its last spans at its end, if traces are wanted.

    Args:
        service: the process's name unless OTEL_SERVICE_NAME names it.
        database: whether to trace statements of databases that are opened in the block.

    Raises:
        TracingUnavailable: the extra `otel` is not installed.
    """
    if not wanted():
        yield
        return
    # The present names of attributes, not those of before 2023.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
    try:
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import get_tracer_provider

        instrumented: list[Any] = [HTTPXClientInstrumentor()]
        if database:
            from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

            instrumented.append(SQLAlchemyInstrumentor())
        provider = get_tracer_provider()
        if not isinstance(provider, TracerProvider):
            provider = _provider(service)
    except ImportError as error:
        raise TracingUnavailable(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and OpenTelemetry is not installed: "
            "pip install 'craftbox[otel]', or unset the variable"
        ) from error
    for each in instrumented:
        # They name no version that came after them; `tests/e2e/metering/test_traces.py` tries ours.
        each.instrument(
            request_hook=_add_request_id,
            async_request_hook=_add_request_id_async,
            skip_dep_check=True,
        )
    try:
        yield
    finally:
        for each in instrumented:
            each.uninstrument()
        provider.force_flush()


def _provider(service: str) -> Any:
    """Makes the process's provider of tracers, which sends spans over OTLP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import set_tracer_provider

    name = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    set_tracer_provider(provider)
    return provider


def _add_request_id(span: Any, request: Any) -> None:
    given = request.headers.get("X-Request-Id")
    if given is not None:
        span.set_attribute(REQUEST_ID, given)


async def _add_request_id_async(span: Any, request: Any) -> None:
    _add_request_id(span, request)
