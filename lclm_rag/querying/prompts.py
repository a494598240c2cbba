"""Hits and a question → the prompt for the decoder, and the same prompt with some passages verbatim."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import torch

from lclm_rag.checkpoint import Checkpoint, Space
from lclm_rag.errors import ContextLengthError, NoPassagesError
from lclm_rag.prompting import (
    AssembledPrompt,
    ChatMessage,
    Order,
    PromptEnds,
    PromptPassage,
    PromptTemplate,
    SoftPrompt,
    assemble,
    chat_ends,
    check_order,
    positions,
)
from lclm_rag.prompting.template import HistoryTurn
from lclm_rag.querying.conversation import FollowUp, follow_up, plain_turns, turns_within
from lclm_rag.querying.expansion import EXPANDED_FIRST, Expand, check_expand, tool_offered
from lclm_rag.querying.grounding import wants_exact_string
from lclm_rag.querying.query import Query
from lclm_rag.querying.reader import Retrieved
from lclm_rag.store import LatentStore, StoredPassage, decode_latents
from lclm_rag.types import PassageKey

__all__ = ["PromptBuilder", "QueryPrompt"]

_log = logging.getLogger(__name__)

Compress = Callable[[Sequence[str], Space], Sequence[torch.Tensor]]
Project = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class QueryPrompt:
    """A question with its prompt, ready to be decoded.

    Attributes:
        query: The question and its options.
        retrieved: The hits.
        passages: The retrieved passages as they are in the prompt when nothing is expanded, best first.
        template: The fixed parts of the prompt.
        ends: What comes before and after the passages.
        budget: Most decoder positions in the prompt.
        order: The order of the passages in the prompt.
        skimmed: The prompt with nothing expanded.
        assembled: The prompt to decode.
        load: Seconds that decoding the latents took.
        assemble: Seconds that building the prompt took.
        expanded: Passages that are verbatim in the prompt.
        no_room: Passages that should be verbatim, but do not fit.
        history_left_out: Turns of the conversation for which there was no room, the oldest.
    """

    query: Query
    retrieved: Retrieved
    passages: list[PromptPassage]
    template: PromptTemplate
    ends: PromptEnds
    budget: int
    order: Order
    skimmed: AssembledPrompt
    assembled: AssembledPrompt
    load: float
    assemble: float
    expanded: tuple[PassageKey, ...] = ()
    no_room: tuple[PassageKey, ...] = ()
    history_left_out: int = 0

    @property
    def prompt(self) -> SoftPrompt:
        """The soft prompt to decode."""
        return self.assembled.prompt

    @cached_property
    def used(self) -> list[PromptPassage]:
        """The passages that fit into the prompt, best first."""
        keys = set(self.skimmed.used)
        return [passage for passage in self.passages if passage.key in keys]

    @cached_property
    def ranked(self) -> list[PassageKey]:
        """The keys of `used`, best first."""
        return [passage.key for passage in self.used]

    @cached_property
    def texts(self) -> dict[PassageKey, str]:
        """The texts of `used`, as they are pasted."""
        return {passage.key: passage.text for passage in self.used}

    def expand(self, keys: Sequence[PassageKey]) -> QueryPrompt:
        """Put some of the passages in verbatim.

        They are taken best first, as long as they fit beside the latents of all others. Only passages that
        are in as latents can be expanded.

        Args:
            keys: The passages.

        Returns:
            The question with the new prompt.
        """
        started = time.perf_counter()
        assembled, taken, no_room = _expanded(
            self.template, self.used, self.ends, self.budget, self.order, self.skimmed, keys
        )
        return replace(
            self,
            assembled=assembled,
            expanded=taken,
            no_room=no_room,
            assemble=self.assemble + time.perf_counter() - started,
        )


@dataclass(frozen=True)
class PromptBuilder:
    """What a prompt depends on besides its question and passages.

    Attributes:
        checkpoint: The checkpoint.
        template: The fixed parts of every prompt.
        context_length: Decoder positions, those of the answer included.
        space: The space in which the decoder prefers latents.
        dtype: The dtype that stored latents are decoded to.
        cache_salt: As in `SoftPrompt`; one for each knowledge base.
        order: The order of passages in prompts.
        compress: Makes latents of texts, in encoder space or decoder space.
        project: Maps latents, with the number of each passage, from encoder space to decoder space.
    """

    checkpoint: Checkpoint
    template: PromptTemplate
    context_length: int
    space: Space
    dtype: torch.dtype
    cache_salt: str
    order: Order
    compress: Compress = field(repr=False)
    project: Project = field(repr=False)

    def require_room(self, query: Query) -> None:
        """Check that the question alone fits, before anything is searched.

        Args:
            query: The question and its options.

        Raises:
            ContextLengthError: When the question is too long.
        """
        template = self._template(query.expand)
        assemble(
            template, (), template.ends(self._asked(query)), self._budget(query.sampling.max_tokens)
        )

    def build(self, query: Query, retrieved: Retrieved) -> QueryPrompt:
        """Build the prompt for a question.

        Args:
            query: The question and its options.
            retrieved: The hits.

        Returns:
            The question with its prompt.

        Raises:
            ContextLengthError: When the question alone, or with the best passage, does not fit.
            NoPassagesError: When there are no hits and the context is not "none": a decoder that is asked all
                the same makes something up.
            CheckpointError: When `query.expand` is "tool" and the decoder's chat template does not support
                tools.
        """
        if not retrieved.hits and query.context != "none":
            raise NoPassagesError("No passage was found for this question.")
        started = time.perf_counter()
        rows = retrieved.rows
        space = self._space(rows)
        latents: Sequence[torch.Tensor | None] = [None] * len(rows)
        if query.context == "latents":
            latents = self._latents(rows, space)
        passages = [
            PromptPassage(row.passage.key, row.passage.content, vectors)
            for row, vectors in zip(rows, latents, strict=True)
        ]
        loaded = time.perf_counter()
        template, budget = self._template(query.expand), self._budget(query.sampling.max_tokens)
        if query.context == "none":
            template = template.closed_book(self.checkpoint)
        history, history_left_out = self._history(query, template, space)
        ends = template.ends(self._asked(query), history)
        try:
            skimmed = assemble(template, passages, ends, budget, space, self.cache_salt, self.order)
        except ContextLengthError as error:
            if not query.neighbours:
                raise
            raise ContextLengthError(f"{error} Or ask with fewer neighbours.") from error
        prompt = QueryPrompt(
            query=query,
            retrieved=retrieved,
            passages=passages,
            template=template,
            ends=ends,
            budget=budget,
            order=self.order,
            skimmed=skimmed,
            assembled=skimmed,
            load=loaded - started,
            assemble=time.perf_counter() - loaded,
            history_left_out=history_left_out,
        )
        verbatim = _expanded_first(prompt.ranked, query.searched, query.expand)
        prompt = prompt.expand(verbatim) if verbatim else prompt
        longest = template.frame.trained_positions
        if longest is not None and prompt.prompt.positions + query.sampling.max_tokens > longest:
            _warn_of_length(template.frame.name, longest)
        return prompt

    def build_chat(
        self,
        messages: Sequence[ChatMessage],
        passages: Sequence[PromptPassage],
        store: LatentStore,
        *,
        question: str,
        expand: Expand,
        max_tokens: int,
        order: Order | None = None,
    ) -> AssembledPrompt:
        """Build the prompt of a chat around passages that the caller has picked.

        Args:
            messages: As for `KnowledgeBase.assemble_chat`.
            passages: As for `KnowledgeBase.assemble_chat`.
            store: The store that holds the latents of `stored` passages.
            question: What `expand="auto"` judges by.
            expand: Which passages go in verbatim; not "model" or "tool".
            max_tokens: Positions to leave for the answer.
            order: The order of the passages in the prompt; None is that of other prompts.

        Returns:
            The prompt, with the keys of the passages that are in it and of those that did not fit.

        Raises:
            ValueError: When `messages` or `expand` are not valid.
            ContextLengthError: When the messages alone, or with the best passage, do not fit.
            CheckpointError: When the decoder's chat template does not take the messages.
            KeyError: When a `stored` key is not in the store.
        """
        check_expand(expand)
        if expand in ("model", "tool"):
            raise ValueError(f"expand={expand!r} takes several rounds; a chat is decoded once.")
        ends = chat_ends(self.checkpoint, self.template, messages)
        loaded, space = self._loaded(passages, store)
        budget = self._budget(max_tokens)
        order = order or self.order
        check_order(order)
        skimmed = assemble(self.template, loaded, ends, budget, space, self.cache_salt, order)
        keys = set(skimmed.used)
        used = [p for p in loaded if p.key in keys]
        ranked = [p.key for p in used if p.latents is not None]
        verbatim = _expanded_first(ranked, question, expand)
        if not verbatim:
            return skimmed
        return _expanded(self.template, used, ends, budget, order, skimmed, verbatim)[0]

    def _loaded(
        self, passages: Sequence[PromptPassage], store: LatentStore
    ) -> tuple[list[PromptPassage], Space]:
        """The passages, with latents and text from the store for those that it has."""
        rows = store.read(p.stored for p in passages if p.stored is not None)
        space = self._space(rows)
        latents = iter(zip(rows, self._latents(rows, space), strict=True))
        loaded = []
        for passage in passages:
            if passage.stored is not None:
                row, vectors = next(latents)
                passage = replace(passage, text=row.passage.content, latents=vectors)
            loaded.append(passage)
        return loaded, space

    def _template(self, expand: Expand) -> PromptTemplate:
        """The template, with the offer to expand if the decoder decides."""
        if expand not in ("model", "tool"):
            return self.template
        return self.template.offering(self.checkpoint, tool_offered(self.template.frame, expand))

    def follow_up(self, query: Query) -> FollowUp:
        """See `conversation.follow_up`."""
        return follow_up(
            self.checkpoint, self.template, query, self._budget(query.sampling.max_tokens)
        )

    def _asked(self, query: Query) -> str:
        """What the decoder is asked: all of it, if it does not see the turns before."""
        return query.question if self.template.frame.history else query.searched

    def _history(
        self, query: Query, template: PromptTemplate, space: Space
    ) -> tuple[list[HistoryTurn], int]:
        """The turns that go into the prompt, the older ones as latents if that is wanted; how many do not."""
        if not template.frame.history:
            return [], 0
        turns = plain_turns(query.history)
        older = turns[:-_KEPT_AS_WORDS] if query.compress_history else []
        if older:
            latents = self.compress([turn.words for turn in older], space)
            turns[: len(older)] = [
                replace(turn, latents=found) for turn, found in zip(older, latents, strict=True)
            ]
        room = self._budget(query.sampling.max_tokens) // _HISTORY_SHARE
        return turns_within(template, turns, room)

    def _budget(self, max_tokens: int) -> int:
        """The most positions of a prompt: what an answer of `max_tokens` leaves of the context."""
        if max_tokens >= self.context_length:
            raise ContextLengthError(
                f"max_tokens is {max_tokens:,}, which leaves no room for a prompt in the "
                f"{self.context_length:,} positions of the decoder; ask for a shorter answer."
            )
        return self.context_length - max_tokens

    def _space(self, rows: Sequence[StoredPassage]) -> Space:
        """Encoder space only if the store keeps it and the decoder takes it."""
        stored = {row.layout.space for row in rows}
        return "encoder" if self.space == "encoder" and stored == {"encoder"} else "decoder"

    def _latents(self, rows: Sequence[StoredPassage], space: Space) -> Sequence[torch.Tensor]:
        stored = decode_latents(rows, self.dtype)
        if not rows or rows[0].layout.space == space:
            return stored
        # Project the latents of all passages at once.
        counts = [len(vectors) for vectors in stored]
        return list(self.project(torch.cat(stored), counts).split(counts))


_HISTORY_SHARE = 4
"""A conversation takes at most one of so many positions of a prompt."""

_KEPT_AS_WORDS = 2
"""The last turns of a conversation, which are never compressed: the last question and its answer."""


@cache  # Once for each frame, and not with each question.
def _warn_of_length(frame: str, longest: int) -> None:
    _log.warning(
        "A prompt and its answer take more than the %s positions that decoders of the frame %s were trained "
        "on; answers may get worse. Use a smaller top_k.",
        f"{longest:,}",
        frame,
    )


def _expanded(
    template: PromptTemplate,
    used: Sequence[PromptPassage],
    ends: PromptEnds,
    budget: int,
    order: Order,
    skimmed: AssembledPrompt,
    keys: Sequence[PassageKey],
) -> tuple[AssembledPrompt, tuple[PassageKey, ...], tuple[PassageKey, ...]]:
    """Put some passages into a prompt as text.

    Returns the prompt, the passages that are text in it, and those that do not fit. `used` holds the passages
    of `skimmed`, best first.
    """
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
    first = skimmed.prompt
    assembled = assemble(template, kept, ends, budget, first.space, first.cache_salt, order)
    return replace(assembled, left_out=skimmed.left_out), tuple(taken), tuple(no_room)


def _expanded_first(
    ranked: Sequence[PassageKey], question: str, expand: Expand
) -> Sequence[PassageKey]:
    """Which of the passages, given best first, are verbatim in the first prompt."""
    if isinstance(expand, tuple):
        return [key for key in ranked if key in expand]
    if isinstance(expand, int):
        return ranked[:expand]
    if expand == "always":
        return ranked
    return ranked[:EXPANDED_FIRST] if expand == "auto" and wants_exact_string(question) else []
