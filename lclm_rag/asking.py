"""One question on its way through a knowledge base: retrieve, load, assemble; then the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch

from lclm_rag.answer import Answer, Hit, Timings, Usage
from lclm_rag.checkpoint import Space
from lclm_rag.decoding import Completion, all_answered
from lclm_rag.documents import PassageKey
from lclm_rag.errors import PromptError, StoreError
from lclm_rag.prompting import (
    AssembledPrompt,
    ChatMessage,
    PassageForm,
    PromptPassage,
    SoftPrompt,
    assemble,
    chat_frame,
)
from lclm_rag.retrieval import PassageIndexError, as_filter
from lclm_rag.retrieval.filters import Filter
from lclm_rag.store import StoredPassage, decode_latents
from lclm_rag.torch_setup import resolve_dtype

if TYPE_CHECKING:
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["Asked", "Found", "GivenPassage", "ask", "assemble_chat", "retrieve"]

Found = list[tuple[Hit, StoredPassage]]


@dataclass(frozen=True)
class GivenPassage:
    """A passage that something else has picked.

    place: names it among the prompt's passages and gives it its place among them. stored: its key in the
    store, where it goes in as latents; None: it goes in as `text`.
    """

    place: PassageKey
    text: str
    stored: PassageKey | None


@dataclass(frozen=True)
class Asked:
    """A question with its prompt, ready to be decoded.

    started: by `time.perf_counter`. retrieve, load, assemble: seconds.
    """

    question: str
    found: Found
    assembled: AssembledPrompt
    started: float
    retrieve: float
    load: float
    assemble: float

    @property
    def prompt(self) -> SoftPrompt:
        return self.assembled.prompt

    def answer(self, decoded: Sequence[Completion | PromptError]) -> Answer:
        """The answer, from what a decoder gave for `prompt`. Raises the PromptError where it refused."""
        (completion,) = all_answered(decoded)
        used = set(self.assembled.used)
        tokens = {row.passage.key: row.tokens for _, row in self.found}
        return Answer(
            question=self.question,
            text=completion.text.strip(),
            sources=[hit for hit, _ in self.found if hit.key in used],
            left_out=list(self.assembled.left_out),
            complete=completion.finish_reason == "stop",
            usage=Usage(
                positions=self.prompt.positions,
                latents=self.prompt.latent_count,
                source_tokens=sum(tokens[span.key] for span in self.prompt.spans if span.key),
                generated_tokens=len(completion.token_ids),
                cached_positions=completion.cached_positions,
            ),
            timings=Timings(
                retrieve=self.retrieve,
                load=self.load,
                assemble=self.assemble,
                first_token=completion.first_token,
                total=time.perf_counter() - self.started,
            ),
        )


def ask(
    kb: KnowledgeBase,
    question: str,
    top_k: int,
    filters: Filter | Mapping[str, Any] | None,
    form: PassageForm,
    space: Space,
    max_tokens: int,
) -> Asked:
    """Everything before decoding.

    space: where the store keeps encoder space, "encoder" leaves the adapter to the decoder.
    """
    started = time.perf_counter()
    found = retrieve(kb, question, top_k, filters, form)
    retrieved = time.perf_counter()
    space = _space(kb, space)
    passages = _prompt_passages(kb, found, form, space)
    loaded = time.perf_counter()
    budget = kb.context_length - max_tokens
    assembled = assemble(kb.template, passages, kb.template.frame(question), budget, space)
    return Asked(
        question=question,
        found=found,
        assembled=assembled,
        started=started,
        retrieve=retrieved - started,
        load=loaded - retrieved,
        assemble=time.perf_counter() - loaded,
    )


def retrieve(
    kb: KnowledgeBase,
    question: str,
    top_k: int,
    filters: Filter | Mapping[str, Any] | None,
    form: PassageForm = "latents",
) -> Found:
    """Hits, best first, each with its row of the store; none for the form "none"."""
    if form not in get_args(PassageForm):
        raise ValueError(f"Unknown form {form!r}; use {', '.join(get_args(PassageForm))}.")
    if not question.strip():
        raise ValueError("The question is empty.")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}.")
    if form == "none":
        return []
    condition = as_filter(filters)
    while True:
        index, store = kb.index_and_store()
        try:
            hits = index.search(question, top_k, condition)
            rows = store.read(hit.key for hit in hits)
        except (PassageIndexError, KeyError) as error:
            # Another thread, or another process where the index is on a server, may have made a new version
            # meanwhile: then that one is asked.
            if kb.index_and_store()[1] is store and not kb.follow_server():
                if isinstance(error, PassageIndexError):
                    raise
                raise StoreError(
                    f"The passage index names a passage that is not in the store: {error.args[0]} Run "
                    "lclm-rag verify."
                ) from error
        else:
            if kb.index_and_store()[1] is store:
                break
    return [
        (
            Hit(
                key=hit.key,
                score=hit.score,
                text=row.passage.text,
                start=row.passage.start,
                end=row.passage.end,
                metadata=row.passage.metadata,
            ),
            row,
        )
        for hit, row in zip(hits, rows, strict=True)
    ]


def assemble_chat(
    kb: KnowledgeBase,
    messages: Sequence[ChatMessage],
    passages: Sequence[GivenPassage],
    space: Space,
    max_tokens: int,
) -> AssembledPrompt:
    """Passages that something else has picked, in a chat; see `KnowledgeBase.assemble_chat`."""
    frame = chat_frame(kb.checkpoint, kb.template, messages)
    space = _space(kb, space)
    known = [passage.stored for passage in passages if passage.stored is not None]
    latents = dict(zip(known, _latents(kb, kb.store.read(known), space), strict=True))
    given = [
        PromptPassage(p.place, p.text, None if p.stored is None else latents[p.stored])
        for p in passages
    ]
    return assemble(kb.template, given, frame, kb.context_length - max_tokens, space)


def _space(kb: KnowledgeBase, wanted: Space) -> Space:
    """Encoder space only where the store keeps it."""
    return "encoder" if wanted == kb.store.layout.space == "encoder" else "decoder"


def _latents(
    kb: KnowledgeBase, rows: Sequence[StoredPassage], space: Space
) -> Sequence[torch.Tensor]:
    stored = decode_latents(rows, resolve_dtype(kb.dtype, kb.device))
    return stored if space == kb.store.layout.space or not rows else _project(kb, stored)


def _prompt_passages(
    kb: KnowledgeBase, found: Found, form: PassageForm, space: Space
) -> list[PromptPassage]:
    rows = [row for _, row in found]
    latents: Sequence[torch.Tensor | None] = [None] * len(rows)
    if form == "latents":
        latents = _latents(kb, rows, space)
    return [
        PromptPassage(row.passage.key, row.passage.content, vectors)
        for row, vectors in zip(rows, latents, strict=True)
    ]


def _project(kb: KnowledgeBase, latents: list[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Encoder space → decoder space, all passages at once."""
    projected = kb.adapter.project(torch.cat(latents))
    return list(projected.split([len(vectors) for vectors in latents]))
