"""The limits on what a client may ask for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for at most. More is refused, never cut.

    Attributes:
        body: Bytes of a request, uploads aside.
        upload: Bytes of an uploaded file or document.
        convert_seconds: How long the conversion of an HTML, PDF or DOCX file may take.
        convert_memory: Bytes of memory that this conversion may take.
        question: Characters of a question.
        messages: Messages of a conversation.
        top_k: Passages to retrieve.
        neighbours: Passages before and after each of them.
        max_tokens: Tokens of an answer.
        in_flight: Questions that are worked on or wait at the same time; more get status 429.
        jobs: Changes that are received, wait or are worked on at the same time; more get status 429.
        jobs_kept: Jobs that have ended and can still be asked for.
        job_wait: Seconds that a request waits for its job, if it asks to; then it gets the job as it is.
        writer_wait: Seconds that a job waits for another process that writes to the knowledge base.
    """

    body: int = 2**20
    upload: int = 64 * 2**20
    convert_seconds: float = 120.0
    convert_memory: int = 2**30
    question: int = 32_000
    messages: int = 200
    top_k: int = 64
    neighbours: int = 8
    max_tokens: int = 4096
    in_flight: int = 256
    jobs: int = 16
    jobs_kept: int = 256
    job_wait: float = 30.0
    writer_wait: float = 60.0
