"""OpenTelemetry spans of questions, where its SDK is installed. They never hold text."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from lclm_rag.serving.chat import Asked
from lclm_rag.types import Answer

__all__ = ["export", "trace_question"]

_NANO = 1_000_000_000


def trace_question(
    question: Asked,
    answer: Answer | None,
    status: int,
    started: int,
    ended: int,
    headers: Mapping[str, str],
) -> None:
    """Make the span of a question that has ended, with a child for each step.

    Does nothing without OpenTelemetry.

    Args:
        question: The question.
        answer: The answer; None if there is none, because of an error or a client that went away.
        status: The HTTP status.
        started: When it came, in nanoseconds since 1970.
        ended: When it ended, in nanoseconds since 1970.
        headers: The headers of the request: they may name the span that this one belongs to.
    """
    try:
        from opentelemetry import context, propagate, trace
    except ImportError:
        return
    tracer = trace.get_tracer("lclm_rag.serving")
    span = tracer.start_span(
        f"chat {question.base.name}",
        propagate.extract(headers, context.Context()),
        trace.SpanKind.SERVER,
        _request(question),
        start_time=started,
    )
    if span.is_recording():
        if answer is not None:
            span.set_attributes(_answer(answer))
            _steps(tracer, trace.set_span_in_context(span), answer, ended)
        if status >= 400:
            span.set_attribute("error.type", str(status))
            if status >= 500:
                span.set_status(trace.StatusCode.ERROR)
    span.end(ended)


def _request(question: Asked) -> dict[str, Any]:
    """By the names of OpenTelemetry's conventions for generative AI, and names of our own."""
    query = question.query
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lclm_rag",
        "gen_ai.request.model": question.base.name,
        "gen_ai.response.model": question.base.kb.checkpoint.name,
        "gen_ai.response.id": question.id,
        "gen_ai.request.max_tokens": query.sampling.max_tokens,
        "gen_ai.request.temperature": query.sampling.temperature,
        "gen_ai.request.top_p": query.sampling.top_p,
        "lclm_rag.top_k": query.top_k,
        "lclm_rag.context": query.context,
        "lclm_rag.expand": str(query.expand),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    cut = not answer.complete and not answer.reason
    found = {
        "gen_ai.usage.input_tokens": usage.positions,
        "gen_ai.usage.output_tokens": usage.generated_tokens,
        "gen_ai.response.finish_reasons": ["length" if cut else "stop"],
        "lclm_rag.latents": usage.latents,
        "lclm_rag.source_tokens": usage.source_tokens,
        "lclm_rag.passages": len(answer.sources),
        "lclm_rag.left_out": len(answer.left_out),
        "lclm_rag.rounds": len(answer.rounds),
    }
    if usage.cached_positions is not None:
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_positions
    return found


def _steps(tracer: Any, parent: Any, answer: Answer, ended: int) -> None:
    """The steps one after the other, as `Timings` has them; they ended with the question."""
    timings = answer.timings
    before = (
        ("retrieve", timings.retrieve),
        ("load", timings.load),
        ("assemble", timings.assemble),
    )
    at = ended - int(timings.total * _NANO)
    for name, seconds in before:
        until = min(ended, at + int(seconds * _NANO))
        tracer.start_span(name, parent, start_time=at).end(until)
        at = until
    if answer.rounds:
        attributes = {"lclm_rag.first_token_seconds": timings.first_token}
        tracer.start_span("decode", parent, attributes=attributes, start_time=at).end(ended)


def export() -> Callable[[], None] | None:
    """Send spans to where OTEL_EXPORTER_OTLP_ENDPOINT says, unless the process does so already.

    Returns:
        Sends the last spans and ends; None if nothing is sent, because the variable is not set or the SDK
        with its exporter for HTTP (opentelemetry-exporter-otlp-proto-http) is not installed.
    """
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(os.environ.get(name) for name in names):
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        return None
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None  # opentelemetry-instrument has set one.
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "lclm-rag"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown
