"""How questions are answered in each context, from retrieval to the journal's records.

For our own decoder, an answer is a generator that yields prompts and is sent their completions, so that many
questions can be decoded together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lclm_rag.decoding import Completion, Decoder, Sampling, said
from lclm_rag.decoding.decoder import end_token_ids
from lclm_rag.errors import (
    CheckpointError,
    DecoderError,
    EvaluationError,
    NoPassagesError,
    PromptError,
)
from lclm_rag.evaluation.contexts import EvalContext
from lclm_rag.evaluation.journal import AnswerRecord
from lclm_rag.evaluation.passages import Find, passage_finder
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet
from lclm_rag.prompting import Frame, SoftPrompt, assemble, positions
from lclm_rag.prompting.markup import (
    memory_regions,
    parse_markup,
    without_marks,
    without_memories,
)
from lclm_rag.querying.grounding import ground
from lclm_rag.querying.prompts import QueryPrompt
from lclm_rag.querying.query import Query
from lclm_rag.querying.reader import Retrieved
from lclm_rag.querying.rounds import answer as answer_in_rounds
from lclm_rag.store import StoredPassage
from lclm_rag.torch_setup import resolve_device, resolve_dtype
from lclm_rag.types import Grounding, PassageKey, Timings

if TYPE_CHECKING:
    from lclm_rag.evaluation.baselines.kv_presses import PressedDecoder
    from lclm_rag.evaluation.baselines.llmlingua import TextCompressor
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["Runner", "runner"]

Runner = Callable[[Sequence[EvalQuestion]], list[AnswerRecord]]
"""Answers several questions in one context, decoded together; all must have the same `max_tokens`."""

Steps = Generator[SoftPrompt, Completion, AnswerRecord]
"""Yields prompts, is sent the completion of each, and returns the journal's record."""


def runner(
    kb: KnowledgeBase,
    questions: EvalSet,
    context: EvalContext,
    top_k: int,
    kvpress: Path | None,
    resources: ExitStack,
) -> Runner:
    """Make the function that answers questions in a context.

    Args:
        kb: The knowledge base.
        questions: The set, of which any number of questions may be answered later.
        context: The context.
        top_k: How many passages to retrieve for each question.
        kvpress: The environment of `kvpress_environment`, for a context with a press.
        resources: Closes what is loaded here.

    Returns:
        A `Runner`; everything it needs is loaded.

    Raises:
        EvaluationError: When the context cannot be evaluated on these questions.
    """

    def together(steps: Callable[[EvalQuestion], Steps]) -> Runner:
        return lambda batch: _decode_together(kb.decoder, batch, context, [steps(q) for q in batch])

    if any(q.prompt for q in questions.questions):
        if context.press or context.lingua is not None or context.expand != "never":
            raise EvaluationError(
                f"The questions of {questions.name} bring their own prompts, without passages: "
                f"{context.name} cannot be had for them; closed-book, text and latents can."
            )
        return together(lambda q: _own_prompt(kb, q, context))
    _require_protocol(kb, context)
    find = passage_finder(kb, questions, context, top_k)
    if context.press:
        pressed = resources.enter_context(_pressed_decoder(kb, context, kvpress))
        return lambda batch: [_pressed(kb, q, find(q), context, pressed) for q in batch]
    if context.lingua is not None:
        compressor = _text_compressor(kb, context.lingua)
        return together(lambda q: _cut_by_lingua(kb, q, find(q), context, compressor))
    return together(lambda q: _query(kb, q, find(q), context))


def _require_protocol(kb: KnowledgeBase, context: EvalContext) -> None:
    """Raise EvaluationError if the decoder cannot be offered passages as the context wants it."""
    if context.expand in ("model", "tool"):
        query = Query.of("?", context=context.kind, expand=context.expand)
        try:
            kb.prompt_builder(kb.decoder.space, context.frame).require_room(query)
        except CheckpointError as error:
            raise EvaluationError(f"{context.name} cannot be had: {error}") from error


def _pressed_decoder(
    kb: KnowledgeBase, context: EvalContext, kvpress: Path | None
) -> PressedDecoder:
    from lclm_rag.evaluation.baselines.kv_presses import PressedDecoder

    if kvpress is None:
        raise EvaluationError(
            f"{context.name} needs an environment of its own. Make one: python -m "
            "lclm_rag.evaluation.baselines.kvpress_environment DIR; then give it as --kvpress DIR."
        )
    return PressedDecoder(
        kvpress,
        kb.checkpoint.decoder_model_folder,
        context.press,
        device=str(resolve_device(kb.device)),
        dtype=str(resolve_dtype(kb.dtype, kb.device)).removeprefix("torch."),
    )


def _text_compressor(kb: KnowledgeBase, model: str) -> TextCompressor:
    from lclm_rag.evaluation.baselines.llmlingua import PUBLISHED_MODEL, TextCompressor

    tokenizer = kb.checkpoint.inert_decoder_tokenizer
    return TextCompressor(tokenizer, model or PUBLISHED_MODEL, device=kb.device)


# --- contexts that our own decoder answers, many questions together -------------------------------


def _decode_together(
    decoder: Decoder,
    batch: Sequence[EvalQuestion],
    context: EvalContext,
    steps: Sequence[Steps],
) -> list[AnswerRecord]:
    """Decode all prompts of a round at once, round by round; a refused prompt is an answer with an error."""
    sampling = Sampling(max_tokens=batch[0].max_tokens)
    answers: dict[int, AnswerRecord] = {}
    completions: dict[int, Completion | None] = dict.fromkeys(range(len(steps)))
    while completions:
        prompts: dict[int, SoftPrompt] = {}
        for i, completion in completions.items():
            try:
                step = steps[i]
                prompts[i] = next(step) if completion is None else step.send(completion)
            except StopIteration as finished:
                answers[i] = finished.value
            except PromptError as error:
                answers[i] = AnswerRecord(context.name, batch[i].id, "", error=str(error))
            except NoPassagesError:
                answers[i] = _nothing_found(batch[i], context)
        completions = {}
        decoded = decoder.complete(list(prompts.values()), sampling) if prompts else []
        for i, result in zip(prompts, decoded, strict=True):
            if isinstance(result, PromptError):
                answers[i] = AnswerRecord(context.name, batch[i].id, "", error=str(result))
            elif isinstance(result, DecoderError):
                raise result  # A score must not tell of a server that was away.
            else:
                completions[i] = result
    return [answers[i] for i in range(len(batch))]


def _query(kb: KnowledgeBase, question: EvalQuestion, find: Find, context: EvalContext) -> Steps:
    """Answer as `KnowledgeBase.query` does."""
    sampling = Sampling(max_tokens=question.max_tokens)
    query = Query.of(
        question.question, context=context.kind, expand=context.expand, sampling=sampling
    )
    builder = kb.prompt_builder(kb.decoder.space, context.frame)
    builder.require_room(query)
    retrieved = _in_memory_of(context.frame, kb, find())
    answer = yield from answer_in_rounds(builder, query, retrieved)
    return AnswerRecord(
        context.name,
        question.id,
        answer.text,
        **_found(question, _ranked(retrieved, [hit.key for hit in answer.sources]), context),
        grounded=_grounded(answer.grounding) if context.has_passages else None,
        positions=answer.usage.positions,
        computed=sum(r.positions - (r.cached_positions or 0) for r in answer.rounds),
        peak_positions=answer.usage.positions,
        rounds=len(answer.rounds),
        expanded=len(answer.expanded),
        left_out=len(answer.left_out),
        first_token=_until_first_token(answer.timings),
    )


def _until_first_token(timings: Timings) -> float:
    """From the question on: a passage that must be read and projected first has its price."""
    return timings.retrieve + timings.load + timings.assemble + timings.first_token


def _cut_by_lingua(
    kb: KnowledgeBase,
    question: EvalQuestion,
    find: Find,
    context: EvalContext,
    compressor: TextCompressor,
) -> Steps:
    """Answer from the passages as text, each cut to as many positions as its latents take."""
    with_latents = _with_latents(kb, question, find, context)
    template = with_latents.template
    started = time.perf_counter()
    cut = [
        replace(p.as_text(), text=compressor.compress(p.text, positions(template, p)).text)
        for p in with_latents.used
    ]
    prepared = time.perf_counter() - started
    assembled = assemble(template, cut, with_latents.ends, with_latents.budget)
    prompt = assembled.prompt
    completion = yield prompt
    text = said(kb.checkpoint, prompt, completion)
    return AnswerRecord(
        context.name,
        question.id,
        text,
        **_found(question, with_latents.ranked, context),
        grounded=_grounded(ground(text, question.question, with_latents.texts.values())),
        positions=prompt.positions,
        computed=prompt.positions - (completion.cached_positions or 0),
        peak_positions=prompt.positions,
        rounds=1,
        left_out=len(with_latents.skimmed.left_out) + len(assembled.left_out),
        first_token=with_latents.retrieved.seconds + prepared + completion.first_token,
        prepared=prepared,
    )


def _with_latents(
    kb: KnowledgeBase, question: EvalQuestion, find: Find, context: EvalContext
) -> QueryPrompt:
    """The prompt with latents; it sets how many positions the other contexts may take."""
    sampling = Sampling(max_tokens=question.max_tokens)
    query = Query.of(question.question, expand="never", sampling=sampling)
    builder = kb.prompt_builder("decoder", context.frame)
    builder.require_room(query)
    return builder.build(query, _in_memory_of(context.frame, kb, find()))


def _in_memory_of(frame: Frame | None, kb: KnowledgeBase, retrieved: Retrieved) -> Retrieved:
    """The same passages, compressed anew if the frame has more inside the memory than the store's latents."""
    if frame is None or frame.memory == kb.stored_frame.memory:
        return retrieved
    read = [frame.memory.replace("{text}", row.passage.content) for row in retrieved.rows]
    token_ids = kb.checkpoint.encoder_token_ids(read)
    latents = kb.compressor.compress_token_ids(token_ids, kb.store.layout.space) if read else []
    rows = [
        StoredPassage.encode(
            row.passage, len(ids), row.document_hash, row.last, vectors, kb.store.layout
        )
        for row, ids, vectors in zip(retrieved.rows, token_ids, latents, strict=True)
    ]
    return replace(retrieved, rows=rows)


def _own_prompt(kb: KnowledgeBase, question: EvalQuestion, context: EvalContext) -> Steps:
    """Answer from a prompt that the set brings, with its context as latents, as text, or left out."""
    started = time.perf_counter()
    prompt = _marked(kb, question.prompt, context)
    before = time.perf_counter() - started
    completion = yield prompt
    text = said(kb.checkpoint, prompt, completion)
    regions = memory_regions(question.prompt)
    return AnswerRecord(
        context.name,
        question.id,
        text,
        grounded=_grounded(ground(text, "", regions)) if context.has_passages else None,
        positions=prompt.positions,
        computed=prompt.positions - (completion.cached_positions or 0),
        peak_positions=prompt.positions,
        rounds=1,
        first_token=before + completion.first_token,
    )


def _marked(kb: KnowledgeBase, rendered: str, context: EvalContext) -> SoftPrompt:
    if context.kind == "text":
        rendered = without_marks(rendered)
    elif context.kind == "none":
        rendered = without_memories(rendered)
    parsed = parse_markup(rendered, kb.checkpoint, kb.template)
    if not parsed.memories:
        return parsed.with_latents([], "decoder")
    space = kb.decoder.space
    return parsed.with_latents(kb.compressor.compress_token_ids(parsed.memories, space), space)


# --- contexts that a worker in another environment answers ----------------------------------------


def _pressed(
    kb: KnowledgeBase,
    question: EvalQuestion,
    find: Find,
    context: EvalContext,
    decoder: PressedDecoder,
) -> AnswerRecord:
    """Answer from the KV cache of the pasted passages, cut to as many positions as their latents take."""
    try:
        with_latents = _with_latents(kb, question, find, context)
        pasted = [p.as_text() for p in with_latents.used]
        ends = with_latents.ends
        assembled = assemble(with_latents.template, pasted, ends, with_latents.budget)
        prompt, after = assembled.prompt, len(ends.after)
        answer = decoder.answer(
            prompt.token_ids[:-after],
            ends.after,
            with_latents.prompt.positions - after,
            question.max_tokens,
            stop_ids=end_token_ids(kb.checkpoint),
        )
    except PromptError as error:
        return AnswerRecord(context.name, question.id, "", error=str(error))
    except NoPassagesError:
        return _nothing_found(question, context)
    decoded = kb.checkpoint.chat_tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    text = str(decoded).strip()
    return AnswerRecord(
        context.name,
        question.id,
        text,
        **_found(question, with_latents.ranked, context),
        grounded=_grounded(ground(text, question.question, with_latents.texts.values())),
        positions=round(answer.kept) + after,
        computed=prompt.positions,
        peak_positions=prompt.positions,
        rounds=1,
        left_out=len(with_latents.skimmed.left_out) + len(assembled.left_out),
        first_token=with_latents.retrieved.seconds + answer.first_token,
        peak_memory=answer.peak_memory,
    )


# --- fields of the record that all contexts share -------------------------------------------------


def _nothing_found(question: EvalQuestion, context: EvalContext) -> AnswerRecord:
    """An empty answer, which is what `KnowledgeBase.query` gives without passages."""
    return AnswerRecord(context.name, question.id, "", **_found(question, [], context))


def _ranked(retrieved: Retrieved, used: Sequence[PassageKey]) -> list[PassageKey]:
    """The passages of the prompt, best first."""
    return [hit.key for hit in retrieved.hits if hit.key in set(used)]


def _found(
    question: EvalQuestion, ranked: Sequence[PassageKey], context: EvalContext
) -> dict[str, Any]:
    """The fields of the record on what was retrieved; `ranked`: the passages, best first."""
    if not question.document_ids or not context.has_passages:
        return {}
    wanted = set(question.document_ids)
    found = [key.document_id for key in ranked]
    return {
        "hit": bool(wanted.intersection(found)),
        "recall": len(wanted.intersection(found)) / len(wanted),
        "recall_at_1": len(wanted.intersection(found[:1])) / len(wanted),
    }


def _grounded(grounding: Grounding) -> bool | None:
    return grounding.complete if grounding.found or grounding.missing else None
