"""Fictional fact sheets and questions about them, generated from a seed.

The bundled checkpoint is trained and scored on them. No model can know their contents beforehand: every name,
code, number and date is drawn at random. The training part and the held-out part share no name. The words and
sentences are in `fact_sheets.toml`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lclm_rag.evaluation.datasets.data_files import read_data
from lclm_rag.evaluation.datasets.draws import Draw
from lclm_rag.evaluation.datasets.parts import Part
from lclm_rag.types import Document

__all__ = ["FactQuestion", "FactSheet", "fact_sheets", "held_out_questions", "make_sheet"]


@dataclass(frozen=True)
class _Attribute:
    """How one kind of fact is drawn, stated and asked about ({s}: subject, {v}: value, {n}: name)."""

    name: str
    value: Callable[[Draw], str]
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class _Kind:
    name: Callable[[Draw], str]
    opening: tuple[str, ...]
    later: tuple[str, ...]
    """How later sentences refer to the subject; {n} is the name."""
    filler: tuple[str, ...]
    attributes: tuple[_Attribute, ...]


def _kind(spec: Mapping[str, Any]) -> _Kind:
    return _Kind(
        name=getattr(Draw, spec["name"]),
        opening=tuple(spec["opening"]),
        later=tuple(spec["later"]),
        filler=tuple(spec["filler"]),
        attributes=tuple(
            _Attribute(
                name=attribute["name"],
                value=getattr(Draw, attribute["value"]),
                sentences=tuple(attribute["sentences"]),
                questions=tuple(attribute["questions"]),
            )
            for attribute in spec["attributes"]
        ),
    )


_KINDS = {name: _kind(spec) for name, spec in read_data("fact_sheets")["kinds"].items()}


@dataclass(frozen=True)
class FactQuestion:
    """A question whose answer stands verbatim in one fact sheet."""

    question: str
    answer: str
    document_id: str
    attribute: str
    """Kind and attribute, such as "person/badge code", by which errors can be grouped."""


@dataclass(frozen=True)
class FactSheet:
    """One document with all questions that it answers (two phrasings for each fact).

    `unstated` are the questions that its kind of sheet may answer and this one does not.
    """

    document: Document
    name: str
    kind: str
    questions: tuple[FactQuestion, ...]
    unstated: tuple[FactQuestion, ...] = ()


def make_sheet(draw: Draw, kind: str, name: str = "", stated: Sequence[str] = ()) -> FactSheet:
    """Draw one sheet.

    Args:
        draw: Draws names, values and phrasings.
        kind: The kind of subject.
        name: The subject's name; "" to draw one.
        stated: The attributes that the sheet states, by their names; () to draw some.
    """
    rng, spec = draw.rng, _KINDS[kind]
    name = name or spec.name(draw)
    document_id = name.lower().replace(" ", "-")
    if stated:
        wanted = [attribute for attribute in spec.attributes if attribute.name in stated]
        attributes = rng.sample(wanted, len(wanted))
    else:
        attributes = rng.sample(spec.attributes, rng.randint(2, len(spec.attributes)))
    sentences: list[str] = []
    questions: list[FactQuestion] = []
    for attribute in attributes:
        value = attribute.value(draw)
        subject = rng.choice(spec.later).format(n=name)
        sentence = rng.choice(attribute.sentences).format(s=subject, v=value)
        sentences.append(sentence[0].upper() + sentence[1:])
        for template in attribute.questions:
            questions.append(
                FactQuestion(
                    question=template.format(n=name),
                    answer=value,
                    document_id=document_id,
                    attribute=f"{kind}/{attribute.name}",
                )
            )
    for filler in rng.sample(spec.filler, rng.randint(0, 2)):
        sentences.insert(rng.randint(0, len(sentences)), filler)
    text = " ".join([rng.choice(spec.opening).format(n=name), *sentences])
    document = Document(id=document_id, text=text, metadata={"kind": kind, "name": name})
    unstated = tuple(
        FactQuestion(template.format(n=name), "", document_id, f"{kind}/{attribute.name}")
        for attribute in spec.attributes
        if attribute not in attributes
        for template in attribute.questions
    )
    return FactSheet(document, name, kind, tuple(questions), unstated)


def fact_sheets(
    seed: int,
    *,
    held_out: bool,
    kinds: tuple[str, ...] = tuple(_KINDS),
    part: Part | None = None,
) -> Iterator[FactSheet]:
    """An endless stream of fact sheets; the same arguments give the same sheets.

    Args:
        seed: Seed of the names, values and phrasings.
        held_out: False for the part that the bundled checkpoint was trained on, True for the part it never
            saw.
        kinds: The kinds of subject to draw from; all by default.
        part: Of the held-out part, only names to choose on or to report on; None for both.

    Yields:
        Fact sheets, whose document ids never repeat.
    """
    draw = Draw(random.Random(seed if part is None else f"{part} {seed}"), held_out, part)
    seen: set[str] = set()
    while True:
        sheet = make_sheet(draw, draw.rng.choice(kinds))
        if sheet.document.id not in seen:
            seen.add(sheet.document.id)
            yield sheet


def held_out_questions(count: int, sheets: list[FactSheet], seed: int) -> list[FactQuestion]:
    """Draw different questions about fact sheets, evenly over the kinds of fact.

    Args:
        count: How many questions.
        sheets: The fact sheets.
        seed: Seed of the draw.

    Raises:
        ValueError: When the sheets answer fewer than `count` questions.
    """
    rng = random.Random(seed)
    by_attribute: dict[str, list[FactQuestion]] = {}
    for sheet in sheets:
        for question in sheet.questions:
            by_attribute.setdefault(question.attribute, []).append(question)
    for questions in by_attribute.values():
        rng.shuffle(questions)
    available = sum(len(q) for q in by_attribute.values())
    if available < count:
        raise ValueError(
            f"The {len(sheets)} fact sheets answer {available} questions, not {count}."
        )
    chosen: list[FactQuestion] = []
    while len(chosen) < count:
        for attribute in sorted(by_attribute):
            if by_attribute[attribute] and len(chosen) < count:
                chosen.append(by_attribute[attribute].pop())
    rng.shuffle(chosen)
    return chosen
