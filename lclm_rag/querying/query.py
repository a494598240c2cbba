"""One question, and how to answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lclm_rag.decoding import Sampling
from lclm_rag.prompting import ChatMessage, Context
from lclm_rag.querying.expansion import Expand, check_expand
from lclm_rag.retrieval import Filter, as_filter
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["Query"]


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

    @property
    def searched(self) -> str:
        """What is searched for."""
        return self.search or self.question

    @classmethod
    def of(
        cls,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
        history: Sequence[ChatMessage] = (),
        compress_history: bool = False,
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

        Returns:
            The checked question.

        Raises:
            ValueError: When an argument is not valid.
        """
        if context not in get_args(Context):
            raise ValueError(f"Unknown context {context!r}; use {', '.join(get_args(Context))}.")
        if not question.strip():
            raise ValueError("The question is empty.")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}.")
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
        )


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
        if words.strip():
            turns.append((role, words))
    return tuple(turns)
