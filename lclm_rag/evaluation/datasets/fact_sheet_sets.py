"""Sets of questions about made-up fact sheets, without and with exact strings."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from lclm_rag.evaluation.datasets.exact_strings import (
    RECORD_ID,
    REGISTRY_CODE,
    exact_string_questions,
    with_exact_strings,
)
from lclm_rag.evaluation.datasets.fact_sheets import (
    FactQuestion,
    FactSheet,
    fact_sheets,
    held_out_questions,
)
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet

__all__ = ["exact_string_set", "fact_sheet_set"]

_DOCUMENTS = 400


def fact_sheet_set(count: int = 500, seed: int = 2026) -> EvalSet:
    """Make a set of `count` questions about 400 made-up fact sheets, evenly over 27 kinds of fact.

    Raises:
        ValueError: When 400 sheets answer fewer than `count` questions.
    """
    sheets = _sheets(seed)
    questions = held_out_questions(count, sheets, seed)
    return _set("fact-sheets", sheets, questions, count, seed, max_tokens=32)


def exact_string_set(count: int = 500, seed: int = 2026) -> EvalSet:
    """Make a set of `count` questions about the same sheets, with a 12-character code and a UUID in each.

    Half of the questions ask for these strings, the other half for the other facts.

    Raises:
        ValueError: When 400 sheets answer fewer questions than that.
    """
    rng = random.Random(f"exact strings {seed}")
    plain = _sheets(seed)
    sheets = [with_exact_strings(sheet, rng) for sheet in plain]
    # One question about each string, in one of its phrasings.
    strings = [
        rng.choice(list(phrasings))
        for sheet in sheets
        for _, phrasings in _by_attribute(exact_string_questions(sheet))
    ]
    half = count // 2
    if half > len(strings):
        raise ValueError(
            f"The {len(sheets)} fact sheets have {len(strings)} such strings, not {half}."
        )
    questions = rng.sample(strings, half) + held_out_questions(count - half, plain, seed)
    rng.shuffle(questions)
    return _set("exact-strings", sheets, questions, count, seed, max_tokens=64)


def _by_attribute(
    questions: Sequence[FactQuestion],
) -> Iterator[tuple[str, Iterator[FactQuestion]]]:
    return itertools.groupby(questions, key=lambda q: q.attribute)


def _sheets(seed: int) -> list[FactSheet]:
    return list(itertools.islice(fact_sheets(seed, held_out=True), _DOCUMENTS))


def _category(question: FactQuestion, name: str) -> str:
    if name == "exact-strings" and question.attribute not in (REGISTRY_CODE, RECORD_ID):
        return "other facts"
    return question.attribute


def _set(
    name: str,
    sheets: Sequence[FactSheet],
    questions: Sequence[FactQuestion],
    count: int,
    seed: int,
    max_tokens: int,
) -> EvalSet:
    return EvalSet(
        name=name,
        questions=[
            EvalQuestion(
                id=str(number),
                question=q.question,
                answers=(q.answer,),
                document_ids=(q.document_id,),
                category=_category(q, name),
                max_tokens=max_tokens,
            )
            for number, q in enumerate(questions, start=1)
        ],
        documents=[sheet.document for sheet in sheets],
        whole_documents=False,
        settings={"count": count, "seed": seed, "documents": len(sheets)},
    )
