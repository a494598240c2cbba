"""Sets for which the best passage is not enough: it is the wrong one, or the facts are in several.

- near-duplicates: people and contracts of which many have a twin with the words of its name in another order
  ("Gedul Gizel", "Gizel Gedul"), about whom the same is stated. Search by words cannot tell them apart, so
  the first hit is the wrong one in about a third.
- joined-facts: one fact of each of two, four or eight sheets, to be listed or compared.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence

from lclm_rag.evaluation.datasets.draws import Draw
from lclm_rag.evaluation.datasets.fact_sheet_sets import DOCUMENTS, as_set
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet, fact_sheets, make_sheet
from lclm_rag.evaluation.datasets.parts import Part
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet

__all__ = ["joined_fact_set", "near_duplicate_set"]

_WITH_TWIN = 2 / 3
"""The share of questions whose subject has a twin; the first hit is wrong for half of these."""

_SHEETS_EACH = (2, 4, 8)
"""How many sheets a question joins."""

_QUANTITIES = {
    "person": ("salary",),
    "product": ("price", "weight", "warranty"),
    "place": ("population", "founded", "elevation"),
    "contract": ("amount", "term"),
}
"""Attributes that can be compared, by kind of sheet."""

_CALLED = {"founded": "founding year", "launch": "launch month", "signed": "signing date"}
"""How a question calls attributes whose names are no nouns for their values."""


def near_duplicate_set(count: int = 500, seed: int = 2026, part: Part = "report") -> EvalSet:
    """Make a set of `count` questions of which two in three have a twin of their sheet beside it.

    Args:
        count: How many questions; each is about another sheet.
        seed: Seed of the sheets and questions.
        part: "choose" to choose something by the answers, "report" to publish a figure.
    """
    draw = Draw(random.Random(f"near-duplicates {part} {seed}"), held_out=True, part=part)
    sheets: dict[str, FactSheet] = {}
    questions: list[EvalQuestion] = []
    while len(questions) < count:
        sheet = make_sheet(draw, draw.rng.choice(("person", "contract")))
        twin_name = _swapped(sheet.name)
        ids = {sheet.document.id, _id(twin_name)}
        # A twin's name must be of the same part, too.
        if len(ids) < 2 or ids & sheets.keys() or not draw.may_draw(twin_name):
            continue
        asked = draw.rng.choice(sheet.questions)
        pair = [sheet]
        has_twin = draw.rng.random() < _WITH_TWIN
        if has_twin:
            stated = [q.attribute.partition("/")[2] for q in sheet.questions]
            pair.append(make_sheet(draw, sheet.kind, twin_name, stated))
        sheets |= {one.document.id: one for one in pair}
        questions.append(
            EvalQuestion(
                id="",
                question=asked.question,
                answers=(asked.answer,),
                document_ids=(asked.document_id,),
                category="with a twin" if has_twin else "alone",
                max_tokens=32,
            )
        )
    drawn = draw.rng.sample(list(sheets.values()), len(sheets))
    return as_set("near-duplicates", drawn, questions, seed, part)


def joined_fact_set(count: int = 500, seed: int = 2026, part: Part = "report") -> EvalSet:
    """Make a set of `count` questions that ask for one fact of two, four or eight sheets each.

    Half of them ask for all of these facts (the score is the share that was given), the other half for the
    subject of which it is the highest or lowest (the score is shared among the subjects that are named).

    Args:
        count: How many questions.
        seed: As for `near_duplicate_set`.
        part: As for `near_duplicate_set`.
    """
    rng = random.Random(f"joined facts {seed}")
    sheets = list(itertools.islice(fact_sheets(seed, held_out=True, part=part), DOCUMENTS))
    shapes = itertools.cycle(itertools.product(_SHEETS_EACH, (_to_list, _to_compare)))
    questions = [make(rng, sheets, each) for each, make in itertools.islice(shapes, count)]
    return as_set("joined-facts", sheets, questions, seed, part)


def _to_list(rng: random.Random, sheets: Sequence[FactSheet], each: int) -> EvalQuestion:
    kind = rng.choice(tuple(_QUANTITIES))
    stated = {q.attribute for s in sheets if s.kind == kind for q in s.questions}
    attribute = rng.choice(sorted(stated))
    subjects = rng.sample(list(_stating(sheets, attribute)), each)
    named_as = _called(attribute.partition("/")[2])
    return EvalQuestion(
        id="",
        question=f"State the {named_as} of each: {_series([s for s, _ in subjects], 'and')}.",
        answers=tuple(value for _, value in subjects),
        document_ids=tuple(sheet.document.id for sheet, _ in subjects),
        category=f"list {each}",
        all_answers=True,
        measure="contains",
        max_tokens=24 * each,
    )


def _to_compare(rng: random.Random, sheets: Sequence[FactSheet], each: int) -> EvalQuestion:
    kind = rng.choice(tuple(_QUANTITIES))
    attribute = rng.choice(_QUANTITIES[kind])
    highest = rng.random() < 0.5
    pick = max if highest else min
    while True:
        subjects = rng.sample(list(_stating(sheets, f"{kind}/{attribute}")), each)
        amounts = [_amount(value) for _, value in subjects]
        if amounts.count(pick(amounts)) == 1:
            break
    names = [sheet.name for sheet, _ in subjects]
    which = f"Which has the {'highest' if highest else 'lowest'} {_called(attribute)}"
    return EvalQuestion(
        id="",
        question=f"{which}: {_series([s for s, _ in subjects], 'or')}?",
        answers=(names[amounts.index(pick(amounts))],),
        document_ids=tuple(sheet.document.id for sheet, _ in subjects),
        category=f"compare {each}",
        measure="classification",
        classes=tuple(names),
        max_tokens=32,
    )


def _stating(sheets: Sequence[FactSheet], attribute: str) -> Iterator[tuple[FactSheet, str]]:
    """The sheets that state the attribute, each with its value."""
    for sheet in sheets:
        value = next((q.answer for q in sheet.questions if q.attribute == attribute), None)
        if value is not None:
            yield sheet, value


def _amount(value: str) -> float:
    """The number of a value such as "12,000 euros" or "4.3 kg"."""
    return float(re.sub(r"[^\d.]", "", value))


def _called(attribute: str) -> str:
    return _CALLED.get(attribute, attribute)


def _series(sheets: Sequence[FactSheet], word: str) -> str:
    names = [f"the {s.name}" if s.kind in ("product", "contract") else s.name for s in sheets]
    return f"{', '.join(names[:-1])} {word} {names[-1]}"


def _swapped(name: str) -> str:
    """Gedul Gizel as Gizel Gedul, the Velun-Kator agreement as the Kator-Velun agreement."""
    if name.endswith(" agreement"):
        one, other = name.removesuffix(" agreement").split("-")
        return f"{other}-{one} agreement"
    return " ".join(reversed(name.split()))


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")
