"""One question on its way through a knowledge base: retrieve, load, assemble; then the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import torch

from lclm_rag.checkpoint import Space
from lclm_rag.errors import KnowledgeBaseError, NoPassagesError, PassageIndexError, StoreError
from lclm_rag.prompting import (
    AssembledPrompt,
    ChatMessage,
    Frame,
    PassageForm,
    PromptPassage,
    PromptTemplate,
    SoftPrompt,
    assemble,
    chat_frame,
    positions,
)
from lclm_rag.querying.expansion import EXPAND_TOOL, EXPANDED_FIRST, Expand, check_expand, offering
from lclm_rag.querying.grounding import wants_exact_string
from lclm_rag.retrieval import PassageIndex, as_filter
from lclm_rag.retrieval.filter_check import filter_keys
from lclm_rag.retrieval.filters import Filter, Missing
from lclm_rag.store import LatentStore, StoredPassage, decode_latents
from lclm_rag.torch_setup import resolve_dtype
from lclm_rag.types import Hit, PassageKey

if TYPE_CHECKING:
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = [
    "Asked",
    "Found",
    "GivenPassage",
    "ask",
    "assemble_chat",
    "check_keys",
    "found_rows",
    "retrieve",
    "retrieve_some",
    "unmatchable",
    "why_none",
]

_log = logging.getLogger(__name__)

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

    passages: those that were found, as latents (for the form "text", as text), best first. skimmed: the
    prompt with none of them expanded. expanded, no_room: passages that were to go in word for word, and did
    or did not. started: by `time.perf_counter`. retrieve, load, assemble: seconds.
    """

    question: str
    found: Found
    passages: list[PromptPassage]
    template: PromptTemplate
    frame: Frame
    budget: int
    skimmed: AssembledPrompt
    assembled: AssembledPrompt
    expanded: tuple[PassageKey, ...]
    no_room: tuple[PassageKey, ...]
    started: float
    retrieve: float
    load: float
    assemble: float

    @property
    def prompt(self) -> SoftPrompt:
        return self.assembled.prompt

    @cached_property
    def used(self) -> list[PromptPassage]:
        """The passages of the prompt, as they are when nothing is expanded, best first."""
        keys = set(self.skimmed.used)
        return [passage for passage in self.passages if passage.key in keys]

    @cached_property
    def ranked(self) -> list[PassageKey]:
        """Their keys, best first."""
        return [passage.key for passage in self.used]

    @cached_property
    def texts(self) -> dict[PassageKey, str]:
        """Their words, as they are pasted."""
        return {passage.key: passage.text for passage in self.used}

    def expand(self, keys: Sequence[PassageKey]) -> Asked:
        """The prompt with these of its passages word for word, best first, as far as there is room for them
        beside the latents of all others. Only what is there as latents can be expanded."""
        started = time.perf_counter()
        assembled, taken, no_room = _expanded(
            self.template, self.used, self.frame, self.budget, self.skimmed, keys
        )
        return replace(
            self,
            assembled=assembled,
            expanded=taken,
            no_room=no_room,
            assemble=self.assemble + time.perf_counter() - started,
        )


def _expanded(
    template: PromptTemplate,
    used: Sequence[PromptPassage],
    frame: Frame,
    budget: int,
    skimmed: AssembledPrompt,
    keys: Sequence[PassageKey],
) -> tuple[AssembledPrompt, tuple[PassageKey, ...], tuple[PassageKey, ...]]:
    """(the prompt with these passages as text, those that are, those for which there is no room). used: the
    passages of `skimmed`, best first."""
    room, wanted = budget - skimmed.prompt.positions, set(keys)
    kept: list[PromptPassage] = []
    taken: list[PassageKey] = []
    no_room: list[PassageKey] = []
    for passage in used:
        if passage.key in wanted and passage.latents is not None:
            growth = positions(template, passage.as_text()) - positions(template, passage)
            if growth <= room:
                room -= growth
                taken.append(passage.key)
                passage = passage.as_text()
            else:
                no_room.append(passage.key)
        kept.append(passage)
    assembled = assemble(template, kept, frame, budget, skimmed.prompt.space)
    return replace(assembled, left_out=skimmed.left_out), tuple(taken), tuple(no_room)


def ask(
    kb: KnowledgeBase,
    question: str,
    found: Callable[[], Found],
    form: PassageForm,
    space: Space,
    max_tokens: int,
    expand: Expand = "never",
) -> Asked:
    """Everything before decoding.

    found: finds the passages, best first. space: where the store keeps encoder space, "encoder" leaves the
    adapter to the decoder. expand: "model" and "tool" offer it to the decoder.
    Raises ContextLengthError where the question is too long, NoPassagesError where no passage was found,
    unless the form is "none": a decoder that is asked all the same makes something up.
    """
    check_expand(expand)
    started = time.perf_counter()
    template = kb.template
    if expand == "tool":
        template = template.with_tools(kb.checkpoint, [EXPAND_TOOL])
    elif expand == "model":
        template = replace(template, instruction=offering(template.instruction))
    frame = template.frame(question)
    budget, space = kb.context_length - max_tokens, _space(kb, space)
    # A question that is too long is refused before anything is looked for.
    assemble(template, (), frame, budget, space)
    framed = time.perf_counter()
    hits = found()
    if not hits and form != "none":
        raise NoPassagesError(f"No passage of {kb.folder} was found for this question.")
    retrieved = time.perf_counter()
    passages = _prompt_passages(kb, hits, form, space)
    loaded = time.perf_counter()
    skimmed = assemble(template, passages, frame, budget, space)
    asked = Asked(
        question=question,
        found=hits,
        passages=passages,
        template=template,
        frame=frame,
        budget=budget,
        skimmed=skimmed,
        assembled=skimmed,
        expanded=(),
        no_room=(),
        started=started,
        retrieve=retrieved - framed,
        load=loaded - retrieved,
        assemble=framed - started + time.perf_counter() - loaded,
    )
    count = _expanded_first(question, expand, len(asked.ranked))
    return asked.expand(asked.ranked[:count]) if count else asked


def _expanded_first(question: str, expand: Expand, passages: int) -> int:
    """How many of the best passages go in word for word before anything is decoded."""
    if isinstance(expand, int):
        return min(expand, passages)
    if expand == "always":
        return passages
    return EXPANDED_FIRST if expand == "auto" and wants_exact_string(question) else 0


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
    return _with_rows([(hit.key, hit.score) for hit in hits], rows)


def retrieve_some(
    kb: KnowledgeBase,
    question: str,
    top_k: int,
    filters: Filter | Mapping[str, Any] | None,
    form: PassageForm = "latents",
) -> Found:
    """As `retrieve`; NoPassagesError says why where there are none, and a log line what of the filter cannot
    hold where there are some."""
    found = retrieve(kb, question, top_k, filters, form)
    if form == "none":
        return found
    if not found:
        raise NoPassagesError(why_none(kb, filters))
    for sentence in unmatchable(kb, filters):
        _log.warning("%s", sentence)
    return found


def why_none(kb: KnowledgeBase, filters: Filter | Mapping[str, Any] | None) -> str:
    """Why there are no hits: one sentence, or one for each condition that cannot hold."""
    index, store = kb.index_and_store()
    if not len(store):
        return f"{kb.folder} has no passages in version {store.version}."
    condition = as_filter(filters)
    if sentences := unmatchable(kb, filters):
        return " ".join(sentences)
    if condition is not None and not index.has(condition):
        if (key := _missing_key(index, condition)) is not None:
            return f"No passage has the metadata key {key!r} any more."
        return "No passage matches the filter."
    which = "that matches the filter " if condition is not None else ""
    return (
        f"No passage {which}shares a word with the question; words such as who, is and the are not searched "
        "for."
    )


def check_keys(kb: KnowledgeBase, filters: Filter | Mapping[str, Any]) -> None:
    """Raise KnowledgeBaseError where a filter asks for a key, or a kind of value, that no passage has."""
    condition = as_filter(filters)
    if sentences := unmatchable(kb, condition):
        raise KnowledgeBaseError(" ".join(sentences))
    if condition is not None and (key := _missing_key(kb.index, condition)) is not None:
        raise KnowledgeBaseError(f"No passage has the metadata key {key!r} any more.")


def _missing_key(index: PassageIndex, condition: Filter) -> str | None:
    """A key of which the index knows, and which no passage has: those that had it were deleted."""
    return next((key for key in filter_keys(condition) if not index.has(~Missing(key))), None)


def unmatchable(kb: KnowledgeBase, filters: Filter | Mapping[str, Any] | None) -> list[str]:
    """Sentences on what of a filter cannot hold for any passage."""
    condition = as_filter(filters)
    index, store = kb.index_and_store()
    return index.unmatchable(condition) if condition is not None and len(store) else []


def found_rows(store: LatentStore, ranked: Sequence[tuple[PassageKey, float]]) -> Found:
    """Passages that something else has found, best first, with their scores. KeyError for one that is not in
    the store."""
    return _with_rows(ranked, store.read(key for key, _ in ranked))


def _with_rows(ranked: Sequence[tuple[PassageKey, float]], rows: Sequence[StoredPassage]) -> Found:
    return [
        (
            Hit(
                key=key,
                score=score,
                text=row.passage.text,
                start=row.passage.start,
                end=row.passage.end,
                metadata=row.passage.metadata,
            ),
            row,
        )
        for (key, score), row in zip(ranked, rows, strict=True)
    ]


def assemble_chat(
    kb: KnowledgeBase,
    messages: Sequence[ChatMessage],
    passages: Sequence[GivenPassage],
    question: str,
    expand: Expand,
    space: Space,
    max_tokens: int,
) -> AssembledPrompt:
    """Passages that something else has picked, in a chat; see `KnowledgeBase.assemble_chat`."""
    check_expand(expand)
    if expand in ("model", "tool"):
        raise ValueError(f"expand={expand!r} takes several rounds; a chat is asked once.")
    frame = chat_frame(kb.checkpoint, kb.template, messages)
    space = _space(kb, space)
    known = [passage.stored for passage in passages if passage.stored is not None]
    rows = kb.store.read(known)
    latents = dict(zip(known, _latents(kb, rows, space), strict=True))
    texts = {row.passage.key: row.passage.content for row in rows}
    given = [
        PromptPassage(p.place, p.text, None)
        if p.stored is None
        else PromptPassage(p.place, texts[p.stored], latents[p.stored])
        for p in passages
    ]
    budget = kb.context_length - max_tokens
    skimmed = assemble(kb.template, given, frame, budget, space)
    keys = set(skimmed.used)
    used = [p for p in given if p.key in keys]
    ranked = [p.key for p in used if p.latents is not None]
    best = ranked[: _expanded_first(question, expand, len(ranked))]
    return _expanded(kb.template, used, frame, budget, skimmed, best)[0] if best else skimmed


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
