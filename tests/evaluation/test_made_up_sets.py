"""The sets about fact sheets: what each asks, and that what is chosen on is never what is reported on."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import get_args

import pytest

import lclm_rag.cli.eval
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.datasets.fact_sheet_sets import paraphrase_set, unanswerable_set
from lclm_rag.evaluation.datasets.fact_sheets import fact_sheets
from lclm_rag.evaluation.datasets.many_sheets import joined_fact_set, near_duplicate_set
from lclm_rag.evaluation.datasets.parts import MADE_UP, Part, check_part
from lclm_rag.evaluation.datasets.sets import question_set
from lclm_rag.evaluation.measures import score
from lclm_rag.evaluation.questions import EvalSet
from lclm_rag.evaluation.retrieval import of_documents
from support.commands import Run


def texts(made: EvalSet) -> dict[str, str]:
    return {document.id: document.text for document in made.documents}


@pytest.mark.parametrize("name", MADE_UP)
def test_the_two_parts_share_no_name_and_a_seed_gives_the_same_questions(name: str) -> None:
    choose, report = (question_set(name, count=30, part=part) for part in get_args(Part))
    names = [{str(d.metadata["name"]) for d in made.documents} for made in (choose, report)]
    assert names[0]
    assert not names[0] & names[1]
    assert (choose.settings["part"], report.settings["part"]) == ("choose", "report")
    again = question_set(name, count=30)
    assert again == report
    assert len({q.id for q in again.questions}) == len(again.questions) == 30


def test_a_name_is_of_one_part_whatever_the_seed() -> None:
    drawn = {
        part: {
            sheet.name
            for seed in range(20)
            for sheet in islice(fact_sheets(seed, held_out=True, part=part), 100)
        }
        for part in get_args(Part)
    }
    assert min(map(len, drawn.values())) > 500
    assert not drawn["choose"] & drawn["report"]


@pytest.mark.parametrize("part", [None, "choose"])
def test_a_figure_from_questions_to_choose_on_is_no_figure_to_publish(part: str | None) -> None:
    settings = {"set": "exact-strings", "questions": {"seed": 1, "part": part}}
    with pytest.raises(EvaluationError, match="lclm-rag eval exact-strings --part report"):
        check_part(settings, "report")
    check_part({"set": "exact-strings", "questions": {"part": "report"}}, "report")
    check_part({"set": "ruler", "questions": {}}, "report")


def test_half_of_the_paraphrases_ask_for_the_same_in_other_words() -> None:
    made = paraphrase_set(200)
    trained, other = made.questions[::2], made.questions[1::2]
    assert [q.answers for q in trained] == [q.answers for q in other]
    assert {q.category for q in trained} == {"as trained"}
    assert {q.category for q in other} == {"in other words"}
    taught = {
        question.question
        for sheet in islice(fact_sheets(2026, held_out=True, part="report"), 400)
        for question in sheet.questions
    }
    assert all(q.question in taught for q in trained)
    assert not any(q.question in taught for q in other)
    names = {str(d.id): str(d.metadata["name"]) for d in made.documents}
    assert all(names[q.document_ids[0]] in q.question for q in other)


def test_the_first_hit_is_the_wrong_one_in_a_third_and_the_right_one_is_beside_it(
    checkpoint: Checkpoint,
) -> None:
    made = near_duplicate_set(150)
    with of_documents(made.documents, checkpoint) as searched:
        found = searched.index.search_all([q.question for q in made.questions], 4)
    ranks = [
        [hit.key.document_id for hit in hits].index(q.document_ids[0])
        for q, hits in zip(made.questions, found, strict=True)
    ]
    wrong = sum(rank > 0 for rank in ranks) / len(ranks)
    assert 0.22 < wrong < 0.45
    assert max(ranks) < 4
    alone = [r for q, r in zip(made.questions, ranks, strict=True) if q.category == "alone"]
    assert alone == [0] * len(alone)


def test_a_twin_states_other_values_of_the_same_facts() -> None:
    made = near_duplicate_set(40)
    found = texts(made)
    for question in made.questions:
        (document_id,) = question.document_ids
        assert question.answers[0] in found[document_id]
        words = Counter(re.findall(r"\w+", document_id))
        others = [i for i in found if i != document_id and Counter(re.findall(r"\w+", i)) == words]
        assert len(others) == (question.category == "with a twin")
        # A colour or a number of months may be that of both by chance; a name or a date hardly is.
        if others and len(question.answers[0]) > 9:
            assert question.answers[0] not in found[others[0]]


def test_joined_facts_are_in_as_many_sheets_as_the_category_says() -> None:
    made = joined_fact_set(120)
    found = texts(made)
    counts = Counter(q.category for q in made.questions)
    shapes = [f"{what} {each}" for what in ("list", "compare") for each in (2, 4, 8)]
    assert counts == dict.fromkeys(shapes, 20)
    for question in made.questions:
        what, each = question.category.split()
        assert len(set(question.document_ids)) == int(each)
        if what == "list":
            pairs = list(zip(question.answers, question.document_ids, strict=True))
            assert all(answer in found[document] for answer, document in pairs)
            assert score(question, ", ".join(question.answers))["score"] == 1
            assert 0 < score(question, question.answers[0])["score"] < 1
        else:
            assert question.answers[0] in question.classes
            assert score(question, f"It is {question.answers[0]}.")["score"] == 1
            assert score(question, " ".join(question.classes))["score"] == 1 / int(each)


def test_what_is_compared_has_one_that_is_highest_or_lowest() -> None:
    made = joined_fact_set(60)
    found = texts(made)
    populations = {
        document: int(number[1].replace(",", ""))
        for document, text in found.items()
        if (number := re.search(r"has ([\d,]+) inhabitants|population of .* is ([\d,]+)", text))
        and number[1]
    }
    asked = [q for q in made.questions if "population: " in q.question]
    for question in asked:
        if all(document in populations for document in question.document_ids):
            values = [populations[document] for document in question.document_ids]
            best = max(values) if "highest" in question.question else min(values)
            right = question.document_ids[values.index(best)]
            assert question.answers[0].lower() == right


def test_half_of_the_questions_have_no_answer_in_any_sheet() -> None:
    made = unanswerable_set(100)
    stated = {
        (sheet.document.id, q.question)
        for sheet in islice(fact_sheets(2026, held_out=True, part="report"), 400)
        for q in sheet.questions
    }
    asked = {question for _, question in stated}
    by_category = Counter(q.category for q in made.questions)
    assert by_category == {"unanswerable": 50, "answerable": 50}
    for question in made.questions:
        assert (question.question in asked) == (question.category == "answerable")
        if question.category == "unanswerable":
            assert score(question, "That is not stated.")["score"] == 1
            assert score(question, "12 March 1980")["score"] == 0
            assert question.document_ids == ()


def test_the_part_is_chosen_at_the_shell(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[EvalSet] = []

    def not_run(questions: EvalSet, *_: object) -> None:
        asked.append(questions)
        raise EvaluationError("Enough.")

    monkeypatch.setattr(lclm_rag.cli.eval, "_run", not_run)
    command = ["eval", "unanswerable", "--count", "2", "--out", tmp_path]
    assert [run(*command, *more)[0] for more in ((), ("--part", "choose"))] == [1, 1]
    assert [made.settings["part"] for made in asked] == ["report", "choose"]
    assert run(*command, "--part", "best")[0] == 2
