"""What is asked in an evaluation: questions with known answers, and the documents they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lclm_rag.types import Document

__all__ = ["EvalQuestion", "EvalSet", "Measure"]

Measure = Literal[
    "exact_match",
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
"""By which rule an answer is right (`lclm_rag.evaluation.measures`)."""


@dataclass(frozen=True)
class EvalQuestion:
    """A question with known answers.

    id: names it within its set. answers: each by itself is right; where all_answers is set, all of them are
    asked for, and the score is the share that was given. document_ids: where the answer stands; () where that
    is not known. category: results are also given by it. prompt: the whole prompt in the markup of `lclm-rag
    generate` (context between memory marks), already rendered as a chat, for sets that bring their own; ""
    where the library makes it from question and passages. measure: the headline score of this question.
    max_tokens: longest answer. classes: what an answer may name, the right ones among them, for measure
    "classification".
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
    """Questions, and the documents to be asked about.

    name: as the command line names it. documents: what goes into the knowledge base; () where a knowledge
    base is given, or questions bring their prompts. whole_documents: all passages of a question's documents
    go into its prompt, in their order; False: passages are retrieved. settings: what the set was made from
    (seed, length, a file's hash), so that runs over other questions are told apart.
    """

    name: str
    questions: Sequence[EvalQuestion]
    documents: Sequence[Document]
    whole_documents: bool
    settings: Mapping[str, Any]
