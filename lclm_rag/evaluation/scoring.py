"""Score a knowledge base in one context after another, on questions with known answers."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lclm_rag.decoding import Sampling, all_answered
from lclm_rag.errors import NoPassagesError
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion
from lclm_rag.evaluation.measures import exact_match
from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.prompting import Context, SoftPrompt
from lclm_rag.querying.rounds import step

__all__ = ["ContextScore", "recall", "score_context"]

_AT_ONCE = 50
_TIMED = 20


@dataclass(frozen=True)
class ContextScore:
    """The results of one context.

    Attributes:
        context: The context.
        exact_match: The share of right answers, 0 to 1.
        positions: The mean number of prompt positions.
        first_token: The median time to the first token in seconds, over `_TIMED` questions, one at a time.
        answers: The generated answers, in the questions' order; "" if nothing was retrieved.
    """

    context: Context
    exact_match: float
    positions: float
    first_token: float
    answers: list[str]


def recall(kb: KnowledgeBase, questions: Sequence[FactQuestion], top_k: int) -> float:
    """The share of questions whose document is among the passages retrieved.

    Args:
        kb: The knowledge base.
        questions: The questions, at least one.
        top_k: How many passages to retrieve for each question.
    """
    hits = sum(
        q.document_id in {hit.key.document_id for hit in kb.retrieve(q.question, top_k)}
        for q in questions
    )
    return hits / len(questions)


def score_context(
    kb: KnowledgeBase,
    questions: Sequence[FactQuestion],
    context: Context,
    top_k: int,
    on_progress: Callable[[int], None] = lambda count: None,
) -> ContextScore:
    """Answer all questions greedily in one context, and time the first ones one at a time.

    Args:
        kb: The knowledge base.
        questions: The questions, at least one.
        context: What the passages go into the prompt as.
        top_k: How many passages to retrieve for each question.
        on_progress: Called with the number of questions answered since the last call.

    Raises:
        NoPassagesError: When nothing is retrieved for any of the questions.
    """
    sampling = Sampling(max_tokens=32)
    # Questions without passages are not decoded; their answers stay empty.
    answers = [""] * len(questions)
    prompts: dict[int, SoftPrompt] = {}
    for i, q in enumerate(questions):
        rounds = kb.rounds(q.question, top_k, context=context, expand="never", sampling=sampling)
        first = step(rounds, None)
        if isinstance(first, SoftPrompt):
            prompts[i] = first
    if not prompts:
        raise NoPassagesError(f"Nothing was found in {kb.folder} for any of the questions.")
    # Timing comes first, while a prefix cache holds none of the prompts.
    one = Sampling(max_tokens=1)
    timed = itertools.islice(prompts.values(), _TIMED)
    alone = [all_answered(kb.decoder.complete([p], one))[0] for p in timed]
    on_progress(len(questions) - len(prompts))
    numbers = list(prompts)
    for start in range(0, len(numbers), _AT_ONCE):
        batch = numbers[start : start + _AT_ONCE]
        completions = all_answered(kb.decoder.complete([prompts[i] for i in batch], sampling))
        for i, completion in zip(batch, completions, strict=True):
            answers[i] = completion.text.strip()
        on_progress(len(batch))
    right = [exact_match(a, q.answer) for a, q in zip(answers, questions, strict=True)]
    return ContextScore(
        context=context,
        exact_match=sum(right) / len(right),
        positions=statistics.mean(prompt.positions for prompt in prompts.values()),
        first_token=statistics.median(completion.first_token for completion in alone),
        answers=answers,
    )
