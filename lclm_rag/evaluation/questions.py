"""The input of an evaluation: questions with known answers, and the documents they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lclm_rag.types import Document

__all__ = ["EvalQuestion", "EvalSet", "Measure"]

Measure = Literal[
    "exact_match",
    "verbatim",
    "no_answer",
    "f1",
    "contains",
    "number",
    "choice",
    "f1_first_line",
    "f1_zh",
    "rouge_l",
    "rouge_l_first_line",
    "rouge_l_zh",
    "classification",
    "retrieval",
    "count",
    "code_similarity",
]
"""The rule by which an answer is scored (see `lclm_rag.evaluation.measures`)."""


@dataclass(frozen=True)
class EvalQuestion:
    """A question with known answers.

    Attributes:
        id: Identifies the question within its set.
        question: The question as text.
        answers: Each is right by itself; with `all_answers`, the question asks for all of them.
        document_ids: The documents that contain the answer; () if they are not known.
        category: Results are also reported by category; "" for none.
        all_answers: Whether the question asks for all of `answers`; the score is then the share that was
            given.
        prompt: The whole prompt in the markup of `lclm-rag generate` (the context between memory marks),
            already rendered as a chat, for sets that bring their own prompts; "" if the library makes the
            prompt from question and passages.
        measure: The measure of this question's headline score.
        max_tokens: Longest answer, in tokens.
        classes: For the measure "classification": what an answer may name, the right classes among them.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    document_ids: tuple[str, ...] = ()
    category: str = ""
    all_answers: bool = False
    prompt: str = ""
    measure: Measure = "exact_match"
    max_tokens: int = 64
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvalSet:
    """Questions, and the documents they are about.

    Attributes:
        name: The set's name on the command line.
        questions: The questions, in order.
        documents: What goes into the knowledge base; () if a knowledge base is given, or if the questions
            bring their own prompts.
        whole_documents: If true, all passages of a question's documents go into its prompt, in their order;
            else passages are retrieved.
        settings: What the set was made from (seed, length, a file's hash), so that runs over different
            questions can be told apart.
    """

    name: str
    questions: Sequence[EvalQuestion]
    documents: Sequence[Document]
    whole_documents: bool
    settings: Mapping[str, Any]
