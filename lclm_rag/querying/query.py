"""One question, and how to answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

from lclm_rag.checks import check_unicode, check_whole
from lclm_rag.decoding import Sampling
from lclm_rag.errors import ContextLengthError
from lclm_rag.prompting import ChatMessage, Context
from lclm_rag.querying.expansion import Expand, check_expand
from lclm_rag.retrieval import Filter, as_filter
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["Query", "Ranking", "each_checked"]

_MOST_PASSAGES = 10**9
"""The most passages that can be asked for: the engine of the index counts in 64 bits."""

_CHARACTERS = 8
"""Characters for each position of a decoder's context. No text has as many for each token, on average."""

_CANDIDATES = 50
"""The least number of passages that are looked at a second time."""


class Ranking(TypedDict, total=False):
    """What is done with the passages that a search finds, before the best `top_k` are taken.

    The arguments that every method of `KnowledgeBase` takes that searches.

    Attributes:
        rerank: The name or the folder of a cross-encoder of sentence-transformers. It reads the question
            together with each of the best 4 x `top_k` passages (at least 50), and its scores decide. A
            passage that is longer than the model can read is scored in pieces, of which the best counts.
        mmr: How much relevance counts against diversity (maximal marginal relevance), from 0 to 1: 1 is
            relevance alone; the smaller, the less alike are the passages, by their dense vectors. They are
            picked from the best 4 x `top_k` (at least 50). Needs a knowledge base with an embedder.
        neighbours: How many passages before and after each hit come with it. Stretches of a document that
            touch become one hit, in the place of the best passage in it, so that there may be fewer hits than
            `top_k`; `Hit.neighbours` names the others.
        words_only: Whether to search by words alone (BM25) in a knowledge base that has dense vectors, too.
    """

    rerank: str | None
    mmr: float | None
    neighbours: int
    words_only: bool


@dataclass(frozen=True)
class Query:
    """The arguments of `KnowledgeBase.query`, checked.

    Attributes:
        question: The question; not empty.
        top_k: How many passages to retrieve, at least 1.
        filters: Metadata conditions; None searches all passages.
        context: What to answer from.
        expand: Which passages go in verbatim; "never" unless the context is "latents".
        sampling: How the answer is generated.
        history: The conversation before the question, oldest turn first.
        compress_history: Whether its older turns go into the prompt as latents.
        search: What is searched for, if it is not the question itself.
        rerank: As in `Ranking`.
        mmr: As in `Ranking`.
        neighbours: As in `Ranking`.
        words_only: As in `Ranking`.
    """

    question: str
    top_k: int
    filters: Filter | None
    context: Context
    expand: Expand
    sampling: Sampling
    history: tuple[ChatMessage, ...] = ()
    compress_history: bool = False
    search: str = ""
    rerank: str | None = None
    mmr: float | None = None
    neighbours: int = 0
    words_only: bool = False

    @property
    def candidates(self) -> int:
        """How many passages the index is asked for."""
        again = self.rerank is not None or self.mmr is not None
        return max(_CANDIDATES, 4 * self.top_k) if again else self.top_k

    def require_room(self, context_length: int) -> None:
        """Refuse a question that is far too long for a decoder's context, before it is searched or tokenized.

        Args:
            context_length: Positions of the context.

        Raises:
            ContextLengthError: When it is; what is a little too long shows when its tokens are counted.
        """
        characters, most = len(self.question), _CHARACTERS * context_length
        if characters > most:
            raise ContextLengthError(
                f"The question has {characters:,} characters, and the decoder's context of "
                f"{context_length:,} positions holds {most:,} at the very most. Shorten it."
            )

    @property
    def searched(self) -> str:
        """What is searched for."""
        return self.search or self.question

    @classmethod
    def of(
        cls,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
        history: Sequence[ChatMessage] = (),
        compress_history: bool = False,
        *,
        rerank: str | None = None,
        mmr: float | None = None,
        neighbours: int = 0,
        words_only: bool = False,
    ) -> Query:
        """Check the arguments of a question.

        Args:
            question: The question.
            top_k: How many passages to retrieve.
            filters: A filter, or a dict of keys that must be equal.
            context: What to answer from.
            expand: Which passages go in verbatim.
            sampling: How the answer is generated; default `Sampling()`.
            history: The conversation before the question, as (role, words), oldest turn first.
            compress_history: Whether its older turns go into the prompt as latents.
            rerank: As in `Ranking`.
            mmr: As in `Ranking`.
            neighbours: As in `Ranking`.
            words_only: As in `Ranking`.

        Returns:
            The checked question.

        Raises:
            ValueError: When an argument is not valid.
        """
        if context not in get_args(Context):
            raise ValueError(f"Unknown context {context!r}; use {', '.join(get_args(Context))}.")
        if not isinstance(question, str):
            raise ValueError(f"A question is a string, not {type(question).__name__}.")
        if not question.strip():
            raise ValueError("The question is empty.")
        check_unicode(question, "The question")
        check_whole(top_k, "top_k", 1, _MOST_PASSAGES)
        if rerank is not None and (not isinstance(rerank, str) or not rerank.strip()):
            raise ValueError(f"rerank is the name of a cross-encoder, not {rerank!r}.")
        is_number = isinstance(mmr, int | float) and not isinstance(mmr, bool)
        if mmr is not None and not (is_number and 0 <= mmr <= 1):
            raise ValueError(f"mmr is a number from 0 (diversity) to 1 (relevance), not {mmr!r}.")
        if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 0:
            raise ValueError(f"neighbours is a number of passages, 0 or more, not {neighbours!r}.")
        check_expand(expand)
        # Only latents can be expanded.
        expand = expand if context == "latents" else "never"
        return cls(
            question,
            top_k,
            as_filter(filters),
            context,
            expand,
            sampling or Sampling(),
            _checked(history),
            compress_history,
            rerank=rerank,
            mmr=mmr,
            neighbours=neighbours,
            words_only=words_only,
        )


def each_checked(questions: str | Sequence[str], check: Callable[[str], Query]) -> list[Query]:
    """Check one question, or each of several before any is worked on.

    Args:
        questions: The question or the questions.
        check: Checks one.

    Returns:
        The checked questions.

    Raises:
        ValueError: When one is not valid; the message has its number, from 1, if there are several.
    """
    if isinstance(questions, str):
        return [check(questions)]
    checked = []
    for number, question in enumerate(questions, start=1):
        try:
            checked.append(check(question))
        except ValueError as error:
            raise ValueError(f"Question {number}: {error}") from error
    return checked


def _checked(history: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    turns: list[ChatMessage] = []
    for turn in history:
        if isinstance(turn, str) or len(turn) != 2 or not all(isinstance(x, str) for x in turn):
            raise ValueError(
                f'A turn of the history is (role, words), such as ("user", "Why?"), not {turn!r:.60}.'
            )
        role, words = turn
        if role not in ("user", "assistant"):
            raise ValueError(
                f"A turn of the history is the user's or the assistant's, not {role!r:.40}."
            )
        check_unicode(words, "A turn of the history")
        if words.strip():
            turns.append((role, words))
    return tuple(turns)
