"""The made-up corpus: repeatable, answerable, and nothing held out is ever trained on."""

from __future__ import annotations

import itertools

import pytest
import xxhash

from lclm_rag.evaluation.datasets.fact_sheets import FactSheet, fact_sheets, held_out_questions


def take(seed: int, count: int, *, held_out: bool) -> list[FactSheet]:
    return list(itertools.islice(fact_sheets(seed, held_out=held_out), count))


def test_the_same_seed_gives_the_same_sheets() -> None:
    assert take(5, 50, held_out=True) == take(5, 50, held_out=True)
    assert take(5, 50, held_out=True) != take(6, 50, held_out=True)


def test_the_sheets_are_those_that_the_bundled_checkpoint_was_scored_on() -> None:
    """Its figures hold for these texts: no word and no template may change its place."""
    sheets = take(2026, 400, held_out=True)
    content = xxhash.xxh3_128()
    for sheet in sheets:
        content.update(f"{sheet.document.id}\n{sheet.document.text}\n".encode())
    for question in held_out_questions(500, sheets, seed=2026):
        content.update(f"{question.question}\n{question.answer}\n".encode())
    assert content.hexdigest() == "f1061c507d3259b8a61b34755aa5924e"


def test_held_out_entities_appear_nowhere_in_training() -> None:
    held_out = {sheet.name for sheet in take(2026, 400, held_out=True)}
    trained = take(1, 5000, held_out=False)
    assert not held_out & {sheet.name for sheet in trained}
    answers = {q.answer for s in trained for q in s.questions if q.attribute.endswith("/mayor")}
    held_answers = {
        q.answer
        for s in take(2026, 400, held_out=True)
        for q in s.questions
        if q.attribute.endswith("/mayor")
    }
    assert held_answers
    assert not held_answers & answers


def test_every_answer_stands_in_its_document_and_names_are_unique() -> None:
    sheets = take(7, 500, held_out=True)
    assert len({sheet.document.id for sheet in sheets}) == 500
    for sheet in sheets:
        for question in sheet.questions:
            assert question.answer in sheet.document.text
            assert sheet.name in question.question
            assert question.document_id == sheet.document.id


def test_questions_are_different_and_spread_over_the_kinds_of_fact() -> None:
    sheets = take(2026, 400, held_out=True)
    questions = held_out_questions(500, sheets, seed=1)
    assert len({q.question for q in questions}) == 500
    assert len({q.attribute for q in questions}) == 27
    with pytest.raises(ValueError, match="answer"):
        held_out_questions(10**6, sheets, seed=1)
