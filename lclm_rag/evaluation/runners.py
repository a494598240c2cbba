"""How a question is answered in each mode: from retrieval to what is written down.

What our decoder answers is a generator, that gives prompts and takes completions, so that many questions are
decoded together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lclm_rag.answering import answering
from lclm_rag.asking import Found, ask, found_rows, retrieve
from lclm_rag.decoding import Completion, Decoder, Sampling
from lclm_rag.decoding.decoder import end_token_ids
from lclm_rag.errors import EvaluationError, NoPassagesError, PromptError
from lclm_rag.evaluation.contexts import Mode
from lclm_rag.evaluation.journal import Answered
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet
from lclm_rag.prompting import SoftPrompt, assemble, positions
from lclm_rag.prompting.markup import (
    memory_regions,
    parse_markup,
    without_marks,
    without_memories,
)
from lclm_rag.querying.grounding import ground
from lclm_rag.retrieval import field
from lclm_rag.torch_setup import resolve_device, resolve_dtype
from lclm_rag.types import Document, Grounding

if TYPE_CHECKING:
    from lclm_rag.evaluation.baselines.kv_presses import PressedDecoder
    from lclm_rag.evaluation.baselines.llmlingua import TextCompressor
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["Way", "documents_to_add", "way"]

_DOCUMENT = "eval_document"
"""Metadata key by which the passages of one document are found."""


def documents_to_add(questions: EvalSet) -> list[Document]:
    """A set's documents as they must be in the knowledge base that is asked."""
    if not questions.whole_documents:
        return list(questions.documents)
    return [replace(d, metadata={**d.metadata, _DOCUMENT: d.id}) for d in questions.documents]


Way = Callable[[Sequence[EvalQuestion]], list[Answered]]
"""Answers questions in one mode, together; their answers may take as many tokens, all of them."""


def way(
    kb: KnowledgeBase,
    questions: EvalSet,
    mode: Mode,
    top_k: int,
    kvpress: Path | None,
    open_things: ExitStack,
) -> Way:
    """How a mode answers. What it needs is loaded here, and closed with `open_things`.

    Raises EvaluationError where the mode cannot be had for these questions.
    """

    def together(steps: Callable[[EvalQuestion], Steps]) -> Way:
        return lambda batch: _decode_together(kb.decoder, batch, mode, [steps(q) for q in batch])

    if any(q.prompt for q in questions.questions):
        if mode.press or mode.lingua is not None or mode.expand != "never":
            raise EvaluationError(
                f"The questions of {questions.name} bring their own prompts, without passages: "
                f"{mode.name} cannot be had for them; closed-book, text and latents can."
            )
        return together(lambda q: _own_prompt(kb, q, mode))
    find = _finder(kb, questions.whole_documents, top_k)
    if mode.press:
        from lclm_rag.evaluation.baselines.kv_presses import PressedDecoder

        if kvpress is None:
            raise EvaluationError(
                f"{mode.name} needs an environment of its own. Make one: python -m "
                "lclm_rag.evaluation.baselines.kvpress_environment DIR; then give it as --kvpress DIR."
            )
        decoder = open_things.enter_context(
            PressedDecoder(
                kvpress,
                kb.checkpoint.path / "decoder",
                mode.press,
                device=str(resolve_device(kb.device)),
                dtype=str(resolve_dtype(kb.dtype, kb.device)).removeprefix("torch."),
            )
        )
        return lambda batch: [_pressed(kb, q, find(q, mode), mode, decoder) for q in batch]
    if mode.lingua is not None:
        from lclm_rag.evaluation.baselines.llmlingua import PUBLISHED_MODEL, TextCompressor

        lingua = TextCompressor(
            kb.checkpoint.inert_decoder_tokenizer,
            mode.lingua or PUBLISHED_MODEL,
            device=kb.device,
        )
        return together(lambda q: _cut_by_lingua(kb, q, find(q, mode), mode, lingua))
    return together(lambda q: _query(kb, q, find(q, mode), mode))


Find = Callable[[], Found]


def _finder(
    kb: KnowledgeBase, whole_documents: bool, top_k: int
) -> Callable[[EvalQuestion, Mode], Find]:
    def find(question: EvalQuestion, mode: Mode) -> Find:
        if not mode.has_passages:
            return list
        if whole_documents:
            return lambda: _whole_documents(kb, question)
        return lambda: retrieve(kb, question.question, top_k, None)

    return find


def _whole_documents(kb: KnowledgeBase, question: EvalQuestion) -> Found:
    """All passages of a question's documents: those that share words with it, best first, then the others."""
    keys = [
        key for document_id in question.document_ids for key in kb.find({_DOCUMENT: document_id})
    ]
    of_them = field(_DOCUMENT).is_in(list(question.document_ids))
    scores = {h.key: h.score for h in kb.index.search(question.question, len(keys), of_them)}
    ranked = sorted(keys, key=lambda key: -scores.get(key, 0.0))
    return found_rows(kb.store, [(key, scores.get(key, 0.0)) for key in ranked])


# --- what is decoded together ---------------------------------------------------------------------

Steps = Generator[SoftPrompt, Completion, Answered]
"""Gives prompts, takes the completion of each, and returns what is written down."""


def _decode_together(
    decoder: Decoder, batch: Sequence[EvalQuestion], mode: Mode, steps: Sequence[Steps]
) -> list[Answered]:
    """Round by round: all prompts of a round at once. A prompt that is refused is an answer with an error."""
    sampling = Sampling(max_tokens=batch[0].max_tokens)
    answers: dict[int, Answered] = {}
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
                answers[i] = Answered(mode.name, batch[i].id, "", error=str(error))
            except NoPassagesError:
                answers[i] = _nothing_found(batch[i], mode)
        completions = {}
        decoded = decoder.complete(list(prompts.values()), sampling) if prompts else []
        for i, result in zip(prompts, decoded, strict=True):
            if isinstance(result, PromptError):
                answers[i] = Answered(mode.name, batch[i].id, "", error=str(result))
            else:
                completions[i] = result
    return [answers[i] for i in range(len(batch))]


def _query(kb: KnowledgeBase, question: EvalQuestion, find: Find, mode: Mode) -> Steps:
    """As `KnowledgeBase.query`."""
    answer = yield from answering(
        kb,
        question.question,
        find,
        form=mode.form,
        space=kb.decoder.space,
        max_tokens=question.max_tokens,
        expand=mode.expand,
    )
    return Answered(
        mode.name,
        question.id,
        answer.text,
        recall=_recall(question, [hit.key.document_id for hit in answer.sources], mode),
        grounded=_grounded(answer.grounding) if mode.has_passages else None,
        positions=answer.usage.positions,
        computed=sum(r.positions - (r.cached_positions or 0) for r in answer.rounds),
        peak_positions=answer.usage.positions,
        rounds=len(answer.rounds),
        expanded=len(answer.expanded),
        left_out=len(answer.left_out),
        first_token=answer.timings.first_token,
    )


def _cut_by_lingua(
    kb: KnowledgeBase, question: EvalQuestion, find: Find, mode: Mode, lingua: TextCompressor
) -> Steps:
    """The passages as text, each cut to the positions that its latents take."""
    asked = ask(kb, question.question, find, "latents", "decoder", question.max_tokens)
    started = time.perf_counter()
    cut = [
        replace(p.as_text(), text=lingua.compress(p.text, positions(asked.template, p)).text)
        for p in asked.used
    ]
    prepared = time.perf_counter() - started
    assembled = assemble(asked.template, cut, asked.frame, asked.budget)
    prompt = assembled.prompt
    completion = yield prompt
    text = completion.text.strip()
    return Answered(
        mode.name,
        question.id,
        text,
        recall=_recall(question, [key.document_id for key in asked.ranked], mode),
        grounded=_grounded(ground(text, question.question, asked.texts.values())),
        positions=prompt.positions,
        computed=prompt.positions - (completion.cached_positions or 0),
        peak_positions=prompt.positions,
        rounds=1,
        left_out=len(asked.skimmed.left_out) + len(assembled.left_out),
        first_token=completion.first_token,
        prepared=prepared,
    )


def _own_prompt(kb: KnowledgeBase, question: EvalQuestion, mode: Mode) -> Steps:
    """A prompt that a set brings, its context as latents, as text, or left out."""
    prompt = _marked(kb, question.prompt, mode)
    completion = yield prompt
    text = completion.text.strip()
    regions = memory_regions(question.prompt)
    return Answered(
        mode.name,
        question.id,
        text,
        grounded=_grounded(ground(text, "", regions)) if mode.has_passages else None,
        positions=prompt.positions,
        computed=prompt.positions - (completion.cached_positions or 0),
        peak_positions=prompt.positions,
        rounds=1,
        first_token=completion.first_token,
    )


def _marked(kb: KnowledgeBase, rendered: str, mode: Mode) -> SoftPrompt:
    if mode.form == "text":
        rendered = without_marks(rendered)
    elif mode.form == "none":
        rendered = without_memories(rendered)
    parsed = parse_markup(rendered, kb.checkpoint, kb.template)
    if not parsed.memories:
        return parsed.with_latents([], "decoder")
    space = kb.decoder.space
    return parsed.with_latents(kb.compressor.compress_token_ids(parsed.memories, space), space)


# --- what another environment decodes -------------------------------------------------------------


def _pressed(
    kb: KnowledgeBase, question: EvalQuestion, find: Find, mode: Mode, decoder: PressedDecoder
) -> Answered:
    """The cache of the pasted passages cut to as many positions as their latents take."""
    try:
        asked = ask(kb, question.question, find, "latents", "decoder", question.max_tokens)
        pasted = [p.as_text() for p in asked.used]
        assembled = assemble(asked.template, pasted, asked.frame, asked.budget)
        text, after = assembled.prompt, asked.frame.after
        given = decoder.answer(
            text.token_ids[: -len(after)],
            after,
            asked.prompt.positions - len(after),
            question.max_tokens,
            stop_ids=end_token_ids(kb.checkpoint),
        )
    except PromptError as error:
        return Answered(mode.name, question.id, "", error=str(error))
    except NoPassagesError:
        return _nothing_found(question, mode)
    written = str(kb.checkpoint.chat_tokenizer.decode(given.token_ids, skip_special_tokens=True))
    written = written.strip()
    return Answered(
        mode.name,
        question.id,
        written,
        recall=_recall(question, [key.document_id for key in asked.ranked], mode),
        grounded=_grounded(ground(written, question.question, asked.texts.values())),
        positions=round(given.kept) + len(after),
        computed=text.positions,
        peak_positions=text.positions,
        rounds=1,
        left_out=len(asked.skimmed.left_out) + len(assembled.left_out),
        first_token=given.first_token,
        peak_memory=given.peak_memory,
    )


def _nothing_found(question: EvalQuestion, mode: Mode) -> Answered:
    """An empty answer, as `KnowledgeBase.query` gives."""
    return Answered(mode.name, question.id, "", recall=_recall(question, [], mode))


def _recall(question: EvalQuestion, found: Sequence[str], mode: Mode) -> bool | None:
    if not question.document_ids or not mode.has_passages:
        return None
    return any(document_id in found for document_id in question.document_ids)


def _grounded(grounding: Grounding) -> bool | None:
    return grounding.complete if grounding.found or grounding.missing else None
