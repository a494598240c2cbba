"""Sets about made-up fact sheets: facts, exact strings, facts in other words, facts that are left out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lclm_rag.evaluation.datasets.data_files import read_data
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
from lclm_rag.evaluation.datasets.parts import Part
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet

__all__ = [
    "DOCUMENTS",
    "as_set",
    "exact_string_set",
    "fact_sheet_set",
    "paraphrase_set",
    "unanswerable_set",
]

DOCUMENTS = 400
"""How many fact sheets a set is about."""


def fact_sheet_set(count: int = 500, seed: int = 2026, part: Part = "report") -> EvalSet:
    """Make a set of `count` questions about 400 made-up fact sheets, evenly over 27 kinds of fact.

    Args:
        count: How many questions.
        seed: Seed of the sheets and questions.
        part: "choose" to choose something by the answers, "report" to publish a figure.

    Raises:
        ValueError: When 400 sheets answer fewer than `count` questions.
    """
    sheets = _sheets(seed, part)
    questions = [_asked(q, q.attribute) for q in held_out_questions(count, sheets, seed)]
    return as_set("fact-sheets", sheets, questions, seed, part)


def exact_string_set(count: int = 500, seed: int = 2026, part: Part = "report") -> EvalSet:
    """Make a set of `count` questions about the same sheets, with a 12-character code and a UUID in each.

    Half of the questions ask for these strings, the other half for the other facts.

    Args:
        count: How many questions.
        seed: As for `fact_sheet_set`.
        part: As for `fact_sheet_set`.

    Raises:
        ValueError: When 400 sheets answer fewer questions than that.
    """
    rng = random.Random(f"exact strings {seed}")
    plain = _sheets(seed, part)
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
    drawn = rng.sample(strings, half) + held_out_questions(count - half, plain, seed)
    rng.shuffle(drawn)
    questions = [
        _asked(
            q,
            q.attribute if q.attribute in (REGISTRY_CODE, RECORD_ID) else "other facts",
            max_tokens=64,
        )
        for q in drawn
    ]
    return as_set("exact-strings", sheets, questions, seed, part)


def paraphrase_set(count: int = 500, seed: int = 2026, part: Part = "report") -> EvalSet:
    """Make a set of `count` questions, half as the bundled checkpoint was trained, half in other words.

    Both halves ask for the same facts, of the sheets of `fact_sheet_set`.

    Args:
        count: How many questions.
        seed: As for `fact_sheet_set`.
        part: As for `fact_sheet_set`.

    Raises:
        ValueError: When 400 sheets answer fewer than `count` / 2 questions.
    """
    rng = random.Random(f"paraphrases {seed}")
    phrasings = read_data("paraphrases")
    sheets = _sheets(seed, part)
    names = {sheet.document.id: sheet.name for sheet in sheets}
    questions = []
    for question in held_out_questions(-(-count // 2), sheets, seed):
        kind, _, attribute = question.attribute.partition("/")
        other = rng.choice(phrasings[kind][attribute]).format(n=names[question.document_id])
        questions.append(_asked(question, "as trained"))
        questions.append(_asked(question, "in other words", text=other))
    return as_set("paraphrases", sheets, questions[:count], seed, part)


def unanswerable_set(count: int = 500, seed: int = 2026, part: Part = "report") -> EvalSet:
    """Make a set of `count` questions about 400 sheets, half of which ask for what no sheet states.

    These name a subject that has a sheet, and a fact that others of its kind have. Right is to say that there
    is no answer, or nothing (the measure "no_answer").

    Args:
        count: How many questions.
        seed: As for `fact_sheet_set`.
        part: As for `fact_sheet_set`.

    Raises:
        ValueError: When 400 sheets leave fewer than `count` / 2 facts unstated.
    """
    rng = random.Random(f"unanswerable {seed}")
    sheets = _sheets(seed, part)
    unstated = [rng.choice(sheet.unstated) for sheet in sheets if sheet.unstated]
    half = count // 2
    if half > len(unstated):
        raise ValueError(f"{len(unstated)} of the fact sheets leave a fact out, not {half}.")
    questions = [
        EvalQuestion(
            id="",
            question=q.question,
            answers=("not stated",),
            category="unanswerable",
            measure="no_answer",
            max_tokens=32,
        )
        for q in rng.sample(unstated, half)
    ]
    questions += [_asked(q, "answerable") for q in held_out_questions(count - half, sheets, seed)]
    rng.shuffle(questions)
    return as_set("unanswerable", sheets, questions, seed, part)


def as_set(
    name: str,
    sheets: Sequence[FactSheet],
    questions: Sequence[EvalQuestion],
    seed: int,
    part: Part,
) -> EvalSet:
    """A set of these questions, numbered, about these sheets."""
    return EvalSet(
        name=name,
        questions=[replace(q, id=str(number)) for number, q in enumerate(questions, start=1)],
        documents=[sheet.document for sheet in sheets],
        whole_documents=False,
        settings={
            "count": len(questions),
            "seed": seed,
            "part": part,
            "documents": len(sheets),
        },
    )


def _asked(
    question: FactQuestion, category: str, *, text: str = "", max_tokens: int = 32
) -> EvalQuestion:
    """text: the question in other words; "" for its own."""
    return EvalQuestion(
        id="",
        question=text or question.question,
        answers=(question.answer,),
        document_ids=(question.document_id,),
        category=category,
        max_tokens=max_tokens,
    )


def _by_attribute(
    questions: Sequence[FactQuestion],
) -> Iterator[tuple[str, Iterator[FactQuestion]]]:
    return itertools.groupby(questions, key=lambda q: q.attribute)


def _sheets(seed: int, part: Part) -> list[FactSheet]:
    return list(itertools.islice(fact_sheets(seed, held_out=True, part=part), DOCUMENTS))
