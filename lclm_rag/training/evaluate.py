"""What counts, measured during training: answers generated from latents, from text and from nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lclm_rag.compression.attention import PACKED
from lclm_rag.decoding import Sampling, all_answered, said
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import CorpusError
from lclm_rag.evaluation.measures import contains, exact_match
from lclm_rag.prompting import Context, PromptPassage, PromptTemplate, SoftPrompt, assemble
from lclm_rag.prompting.replies import without_mark
from lclm_rag.training.model import TrainedLCLM
from lclm_rag.types import PassageKey

__all__ = ["CONTEXTS", "Question", "evaluate", "read_questions"]

CONTEXTS: tuple[Context, ...] = ("latents", "text", "none")
_AT_ONCE = 16


@dataclass(frozen=True)
class Question:
    """A question with known answers.

    Attributes:
        passages: The passages, in the order of the prompt.
        question: The question.
        answers: The answers that count as right.
    """

    passages: tuple[str, ...]
    question: str
    answers: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """Read questions from JSON lines with `passages`, `question`, and `answers` or `answer`.

    Args:
        path: The file.

    Returns:
        The questions.

    Raises:
        CorpusError: When the file cannot be read, or a line is not a question; the message names the line.
    """
    questions = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            answers = record.get("answers") or [record["answer"]]
            made = Question(tuple(record["passages"]), record["question"], tuple(answers))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorpusError(
                f"{path}, line {number}: this is no question with passages and an answer."
            ) from error
        questions.append(made)
    if not questions:
        raise CorpusError(f"{path} has no questions.")
    return questions


def evaluate(
    model: TrainedLCLM,
    template: PromptTemplate,
    questions: Sequence[Question],
    *,
    contexts: Sequence[Context] = CONTEXTS,
    max_tokens: int = 48,
) -> dict[str, dict[str, float]]:
    """Answer questions greedily from each context, and compare the answers with those that are right.

    Args:
        model: The model.
        template: The template of its decoder's prompts.
        questions: The questions; at least one.
        contexts: The contexts.
        max_tokens: The most tokens of an answer.

    Returns:
        For each context: `exact`, the share of answers that match; `contains`, the share of those that
        contain a right answer; and `positions`, those of the prompts, on average.
    """
    found: dict[str, dict[str, float]] = {}
    model.write_memory_rows()
    with _plain_attention(model):
        decoder = TransformersDecoder(model.checkpoint, model.decoder)
        budget = decoder.context_length - max_tokens
        for context in contexts:
            prompts = [_prompt(model, template, q, context, budget) for q in questions]
            answers: list[str] = []
            for start in range(0, len(prompts), _AT_ONCE):
                some = prompts[start : start + _AT_ONCE]
                completions = all_answered(decoder.complete(some, Sampling(max_tokens)))
                spoken = zip(some, completions, strict=True)
                answers += [without_mark(said(model.checkpoint, p, c)) for p, c in spoken]
            pairs = list(zip(answers, questions, strict=True))
            found[context] = {
                "exact": _share(any(exact_match(a, r) for r in q.answers) for a, q in pairs),
                "contains": _share(any(contains(a, r) for r in q.answers) for a, q in pairs),
                "positions": sum(p.positions for p in prompts) / len(prompts),
            }
    return found


@torch.no_grad()
def _prompt(
    model: TrainedLCLM, template: PromptTemplate, question: Question, context: Context, budget: int
) -> SoftPrompt:
    passages = [] if context == "none" else list(question.passages)
    latents: Sequence[torch.Tensor | None] = [None] * len(passages)
    if context == "latents":
        latents = model.compress(model.checkpoint.encoder_token_ids(passages))
    given = [
        PromptPassage(PassageKey(f"{number:06}", 0), text, vectors)
        for number, (text, vectors) in enumerate(zip(passages, latents, strict=True))
    ]
    if not passages:
        template = template.closed_book(model.checkpoint)
    return assemble(template, given, template.ends(question.question), budget).prompt


@contextmanager
def _plain_attention(model: TrainedLCLM) -> Iterator[None]:
    """The decoder with the attention that generates, in place of the packed one."""
    decoder: Any = model.decoder
    decoder.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        decoder.set_attn_implementation(PACKED)


def _share(right: Iterator[bool]) -> float:
    each = list(right)
    return sum(each) / len(each)
