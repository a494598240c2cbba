"""A question that follows others: what is searched for, and the turns that the decoder sees."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import replace

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import Completion, said
from lclm_rag.prompting import ChatMessage, PromptTemplate, SoftPrompt
from lclm_rag.prompting.chat import chat_ids
from lclm_rag.prompting.frames import fill
from lclm_rag.prompting.template import HistoryTurn, plain_ids
from lclm_rag.querying.query import Query

__all__ = ["FollowUp", "follow_up", "turns_within"]

FollowUp = Generator[SoftPrompt, Completion, Query]
"""Yields a prompt, or none; is sent its completion, and returns the question with what is searched for."""

_JOINED = 3
"""Questions of the user that are joined with the new one, for a decoder that cannot rewrite it."""

# A rule for English: what refers to the turns before. Joined with them, other questions would be understood
# worse than alone.
_REFERS = re.compile(
    r"\b(?:its?|they|them|their|theirs|there|he|him|his|she|hers?|this|that|these|those|one|ones|same|former"
    r"|latter|then|else|too|also)\b|^\W*(?:and|or|but|so|why|what about|how about)\b",
    re.IGNORECASE,
)


def follow_up(
    checkpoint: Checkpoint, template: PromptTemplate, query: Query, budget: int
) -> FollowUp:
    """Make a question that can be understood alone, and so be searched for.

    A decoder whose frame knows conversations writes it. For others the user's last questions are joined with
    one that refers to them, by a rule for English; and so they are if the decoder writes nothing or does not
    come to an end.

    Args:
        checkpoint: The checkpoint.
        template: The template of the knowledge base's prompts.
        query: The question, with the conversation before it.
        budget: Most decoder positions of a prompt.

    Yields:
        The prompt that asks for the question.

    Returns:
        The same question, with `search`.
    """
    asked = [words for role, words in query.history if role == "user"][-_JOINED:]
    joined = replace(query, search=" ".join([*asked, query.question]))
    if not query.history:
        return query
    if not template.frame.history:
        return joined if asked and _REFERS.search(query.question) else query
    plain = replace(template, system="", tools=())
    overhead = len(
        chat_ids(checkpoint, plain, [("user", query.question + template.frame.follow_up)])
    )
    turns, _ = turns_within(template, plain_turns(query.history), budget - overhead)
    words = fill(
        template.frame.follow_up,
        turns="".join(template.turn_words(turn) for turn in turns),
        question=query.question,
    )
    prompt = SoftPrompt(chat_ids(checkpoint, plain, [("user", words)]))
    completion = yield prompt
    written = said(checkpoint, prompt, completion).strip("\"'“” \n")
    if not written or completion.finish_reason != "stop":
        return joined
    return replace(query, search=written.splitlines()[-1])


def plain_turns(history: Sequence[ChatMessage]) -> list[HistoryTurn]:
    """The turns of a conversation as words."""
    return [HistoryTurn(role, words) for role, words in history]


def turns_within(
    template: PromptTemplate, turns: Sequence[HistoryTurn], budget: int
) -> tuple[list[HistoryTurn], int]:
    """Leave out the oldest turns until the others fit.

    Args:
        template: The template of the prompt.
        turns: The turns, oldest first.
        budget: Most decoder positions that they may take.

    Returns:
        The turns that fit, and how many were left out.
    """
    kept: list[HistoryTurn] = []
    for turn in reversed(turns):
        if turn.latents is None:
            budget -= len(plain_ids(template.inert, template.turn_words(turn)))
        else:
            # The marks around the memory, and the words around it.
            around = template.turn_words(replace(turn, words=""))
            budget -= len(turn.latents) + 2 + len(plain_ids(template.inert, around)) + 2
        if budget < 0:
            break
        kept.insert(0, turn)
    return kept, len(turns) - len(kept)
