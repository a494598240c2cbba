"""`POST /v1/chat/completions`: questions in OpenAI's form, answers with citations."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from lclm_rag.decoding import Sampling
from lclm_rag.prompting import Context
from lclm_rag.querying.expansion import Expand
from lclm_rag.querying.query import Query
from lclm_rag.retrieval import Filter
from lclm_rag.serving.bases import ServedBase
from lclm_rag.serving.errors import ClientGone, RequestError, body_of
from lclm_rag.serving.filters import Filters, both, parsed_filters
from lclm_rag.serving.limits import Limits
from lclm_rag.serving.ranking import RankingFields, ranking_of
from lclm_rag.types import DEFAULT_TOP_K, Answer, Hit, PassageKey

__all__ = ["Asked", "ChatRequest", "ask", "asked", "events", "reply", "unless_gone"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Part(BaseModel):
    """A part of a message; only text is answered."""

    type: str
    text: str | None = None


class Message(BaseModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """What a stream says besides the answer."""

    include_usage: bool = False


class ChatRequest(RankingFields):
    """The body of a request, as OpenAI's clients send it, with fields of our own.

    Fields that clients send and that change nothing here, such as `user`, are left alone. Those that would
    change the answer and cannot are refused.
    """

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = None
    stop: str | list[str] | None = None
    tools: list[Any] | None = None
    logprobs: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    # Fields of our own.
    top_k: int = Field(DEFAULT_TOP_K, ge=1)
    filters: Filters = None
    expand: Expand | list[str] = "auto"
    context: Context = "latents"
    compress_history: bool = False


_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "stop": (None, [], ""),
    "tools": (None, []),
    "logprobs": (None, False),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
}
"""Fields that are not supported, with the values that change nothing."""


@dataclass(frozen=True)
class Asked:
    """A question that is to be answered.

    Attributes:
        base: The knowledge base.
        query: The question and its options.
        id: The id of the answer.
        created: When the question came, in seconds since 1970.
        came: The same, on a clock that never jumps.
        not_turns: How many messages before the question are no turns of a conversation, such as the system's.
        bound: Whether the client's key binds it by a filter, which is not for the client to know.
    """

    base: ServedBase
    query: Query
    id: str
    created: int
    came: float
    not_turns: int = 0
    bound: bool = False


def asked(
    base: ServedBase,
    body: ChatRequest,
    limits: Limits,
    bound: Filter | None,
    reranker: str | None = None,
) -> Asked:
    """Check a request.

    Args:
        base: The knowledge base that it names.
        body: The request.
        limits: What a client may ask for.
        bound: The filter that every question of this client is bound by.
        reranker: The cross-encoder of this service, if it has one.

    Returns:
        The question.

    Raises:
        RequestError: When the request asks for what is not supported or not allowed.
        ValueError: When a value is not valid.
    """
    for name, harmless in _UNSUPPORTED.items():
        if getattr(body, name) not in harmless:
            raise RequestError(400, f"{name} is not supported here; leave it out.", param=name)
    max_tokens = body.max_completion_tokens or body.max_tokens or min(512, limits.max_tokens)
    for name, value, most in (
        ("max_tokens", max_tokens, limits.max_tokens),
        ("top_k", body.top_k, limits.top_k),
        ("messages", len(body.messages), limits.messages),
    ):
        if value > most:
            raise RequestError(
                400, f"{name} is {value:,}; at most {most:,} are allowed.", param=name
            )
    if body.messages[-1].role != "user":
        raise RequestError(400, "The last message must be the user's question.", param="messages")
    question = _words(body.messages[-1])
    if len(question) > limits.question:
        raise RequestError(
            400,
            f"The question has {len(question):,} characters; at most {limits.question:,} are allowed.",
            param="messages",
        )
    own = parsed_filters(body.filters)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
    )
    filters = both(own, bound)
    before = body.messages[:-1]
    history = [(m.role, _words(m)) for m in before if m.role in ("user", "assistant")]
    query = Query.of(
        question,
        body.top_k,
        filters,
        body.context,
        _expand(body.expand),
        sampling,
        history,
        body.compress_history,
        **ranking_of(body, limits, reranker),
    )
    return Asked(
        base,
        query,
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        came=time.perf_counter(),
        not_turns=len(before) - len(history),
        bound=bound is not None,
    )


def _expand(expand: Expand | list[str]) -> Expand:
    """What goes in verbatim; passages as `citation` names them, "doc#0"."""
    if not isinstance(expand, list):
        return expand
    keys = [name.rpartition("#") for name in expand]
    alien = next(
        (name for name, key in zip(expand, keys, strict=True) if not key[2].isdecimal()), None
    )
    if alien is not None:
        raise RequestError(
            400, f"expand names passages as document#number, not {alien!r}.", param="expand"
        )
    return tuple(PassageKey(document, int(number)) for document, _, number in keys)


def _words(message: Message) -> str:
    parts = message.content if isinstance(message.content, list) else []
    alien = next((part.type for part in parts if part.type != "text" or part.text is None), None)
    if alien is not None:
        raise RequestError(
            400,
            f"A message holds a part of type {alien!r}; only text is answered.",
            param="messages",
        )
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text or "" for part in parts)


async def ask(question: Asked) -> Answer:
    """Answer a question as a whole."""
    answer = await question.base.kb.aquery(**_arguments(question.query))
    return _discreet(question, answer)


def _arguments(query: Query) -> dict[str, Any]:
    """The arguments of `KnowledgeBase.query` that make up a question."""
    names: tuple[str, ...] = ("question", "top_k", "filters", "context", "expand", "sampling")
    names += ("history", "compress_history", "rerank", "mmr", "neighbours")
    return {name: getattr(query, name) for name in names}


def _discreet(question: Asked, answer: Answer) -> Answer:
    """The answer, telling nobody of the folder, and a bound client nothing of hidden passages."""
    if question.bound and answer.no_passages:
        return replace(answer, reason="No passage was found.")
    folder = str(question.base.kb.folder)
    return replace(answer, reason=answer.reason.replace(folder, question.base.name))


def reply(question: Asked, answer: Answer) -> dict[str, Any]:
    """The response to a question that is not streamed."""
    message = {"role": "assistant", "content": answer.text or answer.reason, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _finish_reason(answer),
    }
    return {
        **_head(question, "chat.completion"),
        "choices": [choice],
        "usage": usage_of(answer),
        **_evidence(question, answer),
    }


async def events(
    question: Asked, include_usage: bool, observed: Callable[[Answer | Exception], None]
) -> AsyncGenerator[dict[str, Any]]:
    """The events of a streamed answer.

    The first has the retrieved passages, so that a page can show them while words arrive; the last one the
    citations, and the usage unless it is to come in an event of its own.

    Args:
        question: The question.
        include_usage: Whether the usage comes in an event of its own, as OpenAI's clients ask for it.
        observed: Takes the answer, or the error that ends the stream.

    Yields:
        Events of sse-starlette.
    """
    answers = question.base.kb.astream_answer(**_arguments(question.query))

    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        head = _head(question, "chat.completion.chunk")
        return {"data": _json({**head, "choices": [choice], **more})}

    done: list[Answer] = []
    try:
        async with aclosing(answers):
            async for piece in answers:
                if isinstance(piece, str):
                    yield event({"content": piece})
                elif isinstance(piece, Answer):
                    done.append(_discreet(question, piece))
                    observed(done[0])
                else:
                    first = {"role": "assistant", "content": ""}
                    yield event(first, retrieved=[citation(hit) for hit in piece])
        (answer,) = done
        if not answer.text and answer.reason:
            yield event({"content": answer.reason})
        usage = usage_of(answer)
        more = {} if include_usage else {"usage": usage}
        yield event({}, _finish_reason(answer), **_evidence(question, answer), **more)
        if include_usage:
            head = _head(question, "chat.completion.chunk")
            yield {"data": _json({**head, "choices": [], "usage": usage})}
    except Exception as error:
        observed(error)
        status, body = body_of(error)
        if status >= 500:
            _log.exception("A streamed answer failed.")
        yield {"data": _json(body)}
    yield {"data": "[DONE]"}


def citation(hit: Hit, verbatim: bool = False) -> dict[str, Any]:
    """A passage as clients get it.

    Args:
        hit: The passage.
        verbatim: Whether the decoder read it as text, and not as latents.

    Returns:
        The passage; `span` is [start, end) in characters of the document, and covers its `neighbours` too.
    """
    return {
        "document": hit.key.document_id,
        "passage": hit.key.ordinal,
        "span": [hit.start, hit.end],
        "neighbours": [key.ordinal for key in hit.neighbours],
        "text": hit.text,
        "score": hit.score,
        "metadata": dict(hit.metadata),
        "verbatim": verbatim,
    }


def usage_of(answer: Answer) -> dict[str, Any]:
    """What an answer took, as OpenAI's clients read it: tokens are the decoder's positions."""
    usage = answer.usage
    return {
        "prompt_tokens": usage.positions,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.positions + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_positions},
        "latents": usage.latents,
        "source_tokens": usage.source_tokens,
    }


def _evidence(question: Asked, answer: Answer) -> dict[str, Any]:
    verbatim = set(answer.expanded)
    return {
        "citations": [citation(hit, hit.key in verbatim) for hit in answer.sources],
        "left_out": [str(key) for key in answer.left_out],
        "history": {
            "searched": next((r.reply for r in answer.rounds if r.purpose == "follow_up"), None),
            "left_out": answer.history_left_out + question.not_turns,
        },
        "grounding": asdict(answer.grounding),
        "reason": answer.reason,
        "timings": asdict(answer.timings),
    }


def _head(question: Asked, kind: str) -> dict[str, Any]:
    return {
        "id": question.id,
        "object": kind,
        "created": question.created,
        "model": question.base.name,
    }


def _finish_reason(answer: Answer) -> str:
    return "stop" if answer.complete or answer.reason else "length"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work for a client, and end it if the client goes away.

    Args:
        request: The client's request, whose body has been read.
        work: The work.

    Returns:
        What the work returns.

    Raises:
        ClientGone: When the client has gone away.
    """

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(until_gone())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
