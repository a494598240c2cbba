"""What a service counts, for Prometheus. No label is ever a client's string."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lclm_rag.serving.bases import ServedBase
from lclm_rag.types import Answer

__all__ = ["Metrics", "first_token"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_POSITIONS = tuple(2**power for power in range(6, 18))  # 64 to 131,072.


class Metrics:
    """The counters of one application, in a registry of their own.

    Args:
        bases: The knowledge bases.
        in_flight: Tells how many questions are worked on or wait.
    """

    def __init__(self, bases: Mapping[str, ServedBase], in_flight: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self._answered_at: dict[str, float] = {}
        self._requests = Counter(
            "lclm_rag_requests",
            "Requests that ended.",
            ("method", "route", "base", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "lclm_rag_request_seconds",
            "Seconds from a request to the end of its response.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        Gauge(
            "lclm_rag_questions_in_flight",
            "Questions and searches that are worked on or wait.",
            registry=registry,
        ).set_function(in_flight)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, meaning, ("base",), buckets=buckets, registry=registry)

        def counter(name: str, meaning: str) -> Counter:
            return Counter(name, meaning, ("base",), registry=registry)

        self._first_token = histogram(
            "lclm_rag_first_token_seconds",
            "Seconds from a question to the first token of its answer.",
            _SECONDS,
        )
        self._positions = histogram(
            "lclm_rag_prompt_positions", "Decoder positions of a prompt.", _POSITIONS
        )
        self._cached = counter(
            "lclm_rag_cached_positions", "Prompt positions that a prefix cache already held."
        )
        self._latents = counter("lclm_rag_latents", "Prompt positions that are latents.")
        self._source = counter("lclm_rag_source_tokens", "Source tokens that latents stand for.")
        self._saved = counter(
            "lclm_rag_positions_saved", "Source tokens less the latents that stand for them."
        )
        self._generated = counter("lclm_rag_generated_tokens", "Tokens that the decoder wrote.")
        self._answers = Counter(
            "lclm_rag_answers",
            "Answers: complete, cut, no_passages (nothing was found) or no_answer.",
            ("base", "result"),
            registry=registry,
        )
        version = Gauge(
            "lclm_rag_base_version",
            "The version of a knowledge base that is served.",
            ("base",),
            registry=registry,
        )
        for name, base in bases.items():
            version.labels(name).set_function(partial(_version, base))
            for each in (self._cached, self._latents, self._source, self._saved, self._generated):
                each.labels(name)  # 0 from the start: a rate needs a first value.
            for result in ("complete", "cut", "no_passages", "no_answer"):
                self._answers.labels(name, result)

    def request(self, method: str, route: str, base: str, status: int, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            method: The HTTP method; unknown ones count as "other".
            route: The template of its route, or "other".
            base: The name of its knowledge base; empty if it has none.
            status: The HTTP status.
            seconds: How long it took.
        """
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, base, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answered(self, base: str, answer: Answer) -> None:
        """Count an answer.

        Args:
            base: The name of the knowledge base.
            answer: The answer.
        """
        self._answers.labels(base, _result(answer)).inc()
        if answer.no_passages:
            return
        self._answered_at[base] = time.monotonic()
        usage = answer.usage
        self._first_token.labels(base).observe(first_token(answer))
        self._positions.labels(base).observe(usage.positions)
        self._cached.labels(base).inc(usage.cached_positions or 0)
        self._latents.labels(base).inc(usage.latents)
        self._source.labels(base).inc(usage.source_tokens)
        self._saved.labels(base).inc(max(0, usage.source_tokens - usage.latents))
        self._generated.labels(base).inc(usage.generated_tokens)

    def answered_at(self, base: str) -> float:
        """When a decoder last answered from a knowledge base, as `time.monotonic()`; -inf if never."""
        return self._answered_at.get(base, -math.inf)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def first_token(answer: Answer) -> float:
    """Seconds from the question to the answer's first token.

    Args:
        answer: The answer.

    Returns:
        The seconds; retrieval, latents and prompt are in them.
    """
    timings = answer.timings
    return timings.retrieve + timings.load + timings.assemble + timings.first_token


def _version(base: ServedBase) -> int:
    return base.kb.store.version


def _result(answer: Answer) -> str:
    if answer.no_passages:
        return "no_passages"
    if answer.reason:
        return "no_answer"
    return "complete" if answer.complete else "cut"
