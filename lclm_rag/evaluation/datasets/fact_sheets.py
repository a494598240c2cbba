"""Fictional fact sheets and questions about them, made from a seed.

The bundled checkpoint is trained on these and scored on these, and nothing in them can be known by
heart: every name, code, number and date is drawn at random. A name belongs to the training part or to
the held-out part by its own checksum (`_is_held_out`), so the two parts share no entity, whatever the
seeds.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lclm_rag.types import Document

__all__ = ["FactQuestion", "FactSheet", "fact_sheets", "held_out_questions"]

_HELD_OUT_ONE_IN = 8

# Plain syllables, so that a small tokenizer spells each with one token or two.
_ONSETS = ["b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"]
_VOWELS = ["a", "e", "i", "o", "u"]
_CODAS = ["l", "n", "r", "s", "th"]
_MONTHS = (
    "January February March April May June July August September October November December".split()
)
_LETTERS = "ABCDEFGHJKLMNPQRSTVWXYZ"
_JOBS = """
    architect baker biologist bookbinder carpenter chemist dentist diver editor electrician engineer
    farmer geologist glazier historian jeweller judge librarian locksmith mechanic miller musician
    nurse optician painter pharmacist photographer pilot plumber printer sailor sculptor surgeon
    surveyor tailor teacher translator watchmaker weaver welder
""".split()
_COLOURS = """
    amber black blue bronze copper cream crimson green grey indigo ivory olive orange pink purple
    red silver teal violet white yellow
""".split()
_THINGS = """
    Kettle Lamp Drill Camera Heater Scale Pump Radio Printer Blender Tent Clock Sensor Mixer Router
    Speaker Saddle Desk Compass Stove
""".split()


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % _HELD_OUT_ONE_IN == 0


class _Draw:
    """Random values; every proper name comes from one part only (training or held out)."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def _syllables(self, count: int) -> str:
        word = "".join(self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) for _ in range(count))
        return (word + self.rng.choice(_CODAS)).capitalize()

    def _named(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if _is_held_out(name) == self.held_out:
                return name

    def word(self) -> str:
        return self._named(lambda: self._syllables(self.rng.choice((2, 3))))

    def person(self) -> str:
        return self._named(
            lambda: f"{self._syllables(2)} {self._syllables(self.rng.choice((2, 3)))}"
        )

    def company(self) -> str:
        suffix = self.rng.choice(("Group", "Works", "Labs", "Partners", "Trading", "Systems"))
        return f"{self.word()} {suffix}"

    def product(self) -> str:
        return f"{self.word()} {self.rng.choice(_THINGS)}"

    def agreement(self) -> str:
        return f"{self.word()}-{self.word()} agreement"

    def date(self) -> str:
        return (
            f"{self.rng.randint(1, 28)} {self.rng.choice(_MONTHS)} {self.rng.randint(1940, 2024)}"
        )

    def month(self) -> str:
        return f"{self.rng.choice(_MONTHS)} {self.rng.randint(1990, 2024)}"

    def year(self) -> str:
        return str(self.rng.randint(1100, 1990))

    def code(self) -> str:
        letters = "".join(self.rng.choices(_LETTERS, k=2))
        return f"{letters}-{self.rng.randint(1000, 9999)}"

    def digits(self) -> str:
        return str(self.rng.randint(1000, 9999))

    def postcode(self) -> str:
        return str(self.rng.randint(10000, 99999))

    def thousands(self) -> str:
        return f"{self.rng.randint(1, 99)},{self.rng.randint(0, 999):03d}"

    def euros(self) -> str:
        return f"{self.thousands()} euros"

    def price(self) -> str:
        return f"{self.rng.randint(10, 990)} euros"

    def weight(self) -> str:
        return f"{self.rng.randint(0, 40)}.{self.rng.randint(1, 9)} kg"

    def metres(self) -> str:
        return f"{self.rng.randint(10, 2900)} metres"

    def months(self) -> str:
        return f"{self.rng.randint(6, 84)} months"

    def job(self) -> str:
        return self.rng.choice(_JOBS)

    def colour(self) -> str:
        return self.rng.choice(_COLOURS)


@dataclass(frozen=True)
class _Attribute:
    """How one kind of fact is drawn, told ({s}: subject, {v}: value) and asked for ({n}: name)."""

    name: str
    value: Callable[[_Draw], str]
    told: tuple[str, ...]
    asked: tuple[str, ...]


@dataclass(frozen=True)
class _Kind:
    name: Callable[[_Draw], str]
    opening: tuple[str, ...]
    later: tuple[str, ...]
    """How the subject is called again in later sentences; {n} is the name."""
    filler: tuple[str, ...]
    attributes: tuple[_Attribute, ...]


_KINDS: dict[str, _Kind] = {
    "person": _Kind(
        name=_Draw.person,
        opening=("This is the personnel record of {n}.", "Profile: {n}.", "Staff file for {n}."),
        later=("{n}", "{n}"),
        filler=(
            "The record was checked by the office.",
            "Friends describe a calm and patient colleague.",
            "A photograph is kept on file.",
            "The next review is due in spring.",
        ),
        attributes=(
            _Attribute(
                "birth date",
                _Draw.date,
                ("{s} was born on {v}.", "The birth date of {s} is {v}."),
                ("When was {n} born?", "What is the birth date of {n}?"),
            ),
            _Attribute(
                "birthplace",
                _Draw.word,
                ("{s} grew up in {v}.", "The home town of {s} is {v}."),
                ("Where did {n} grow up?", "What is the home town of {n}?"),
            ),
            _Attribute(
                "employer",
                _Draw.company,
                ("{s} works for {v}.", "The employer of {s} is {v}."),
                ("Who does {n} work for?", "What is the employer of {n}?"),
            ),
            _Attribute(
                "job",
                _Draw.job,
                ("{s} is a trained {v}.", "By profession {s} is a {v}."),
                ("What is the profession of {n}?", "What was {n} trained as?"),
            ),
            _Attribute(
                "badge code",
                _Draw.code,
                ("{s} carries badge {v}.", "The badge code of {s} is {v}."),
                ("What is the badge code of {n}?", "Which badge does {n} carry?"),
            ),
            _Attribute(
                "extension",
                _Draw.digits,
                ("{s} can be called at extension {v}.", "The phone extension of {s} is {v}."),
                ("What is the phone extension of {n}?", "At which extension can {n} be called?"),
            ),
            _Attribute(
                "salary",
                _Draw.euros,
                ("{s} earns {v} a year.", "The yearly salary of {s} is {v}."),
                ("How much does {n} earn a year?", "What is the yearly salary of {n}?"),
            ),
        ),
    ),
    "product": _Kind(
        name=_Draw.product,
        opening=("Data sheet: {n}.", "Product notes for the {n}.", "This page describes the {n}."),
        later=("the {n}", "the {n}"),
        filler=(
            "It comes in a recycled box.",
            "Spare parts can be ordered online.",
            "Please read the manual before use.",
            "Customers praise how quiet it is.",
        ),
        attributes=(
            _Attribute(
                "maker",
                _Draw.company,
                ("{s} is made by {v}.", "The maker of {s} is {v}."),
                ("Who makes the {n}?", "What is the maker of the {n}?"),
            ),
            _Attribute(
                "price",
                _Draw.price,
                ("{s} costs {v}.", "The price of {s} is {v}."),
                ("How much does the {n} cost?", "What is the price of the {n}?"),
            ),
            _Attribute(
                "weight",
                _Draw.weight,
                ("{s} weighs {v}.", "The weight of {s} is {v}."),
                ("How much does the {n} weigh?", "What is the weight of the {n}?"),
            ),
            _Attribute(
                "model code",
                _Draw.code,
                ("{s} has the model code {v}.", "The model code of {s} is {v}."),
                ("What is the model code of the {n}?", "Which model code does the {n} have?"),
            ),
            _Attribute(
                "launch",
                _Draw.month,
                ("{s} was launched in {v}.", "The launch of {s} was in {v}."),
                ("When was the {n} launched?", "In which month was the {n} launched?"),
            ),
            _Attribute(
                "warranty",
                _Draw.months,
                ("{s} has a warranty of {v}.", "The warranty of {s} lasts {v}."),
                (
                    "How long is the warranty of the {n}?",
                    "How long does the warranty of the {n} last?",
                ),
            ),
            _Attribute(
                "colour",
                _Draw.colour,
                ("{s} is sold in {v}.", "The colour of {s} is {v}."),
                ("In which colour is the {n} sold?", "What is the colour of the {n}?"),
            ),
        ),
    ),
    "place": _Kind(
        name=_Draw.word,
        opening=("Town guide: {n}.", "Facts about the town of {n}.", "{n} is a small town."),
        later=("{n}", "the town of {n}"),
        filler=(
            "The market is held on Saturdays.",
            "Visitors like the old harbour.",
            "A bus runs every hour.",
            "The library was rebuilt after a fire.",
        ),
        attributes=(
            _Attribute(
                "population",
                _Draw.thousands,
                ("{s} has {v} inhabitants.", "The population of {s} is {v}."),
                ("How many inhabitants does {n} have?", "What is the population of {n}?"),
            ),
            _Attribute(
                "founded",
                _Draw.year,
                ("{s} was founded in {v}.", "The founding year of {s} is {v}."),
                ("When was {n} founded?", "What is the founding year of {n}?"),
            ),
            _Attribute(
                "river",
                _Draw.word,
                ("{s} lies on the river {v}.", "The river that crosses {s} is the {v}."),
                ("On which river does {n} lie?", "Which river crosses {n}?"),
            ),
            _Attribute(
                "mayor",
                _Draw.person,
                ("{s} is led by mayor {v}.", "The mayor of {s} is {v}."),
                ("Who is the mayor of {n}?", "Which mayor leads {n}?"),
            ),
            _Attribute(
                "elevation",
                _Draw.metres,
                ("{s} lies at an elevation of {v}.", "The elevation of {s} is {v}."),
                ("At which elevation does {n} lie?", "What is the elevation of {n}?"),
            ),
            _Attribute(
                "postal code",
                _Draw.postcode,
                ("{s} uses the postal code {v}.", "The postal code of {s} is {v}."),
                ("What is the postal code of {n}?", "Which postal code does {n} use?"),
            ),
        ),
    ),
    "contract": _Kind(
        name=_Draw.agreement,
        opening=("Summary of the {n}.", "Contract file: {n}.", "These are the terms of the {n}."),
        later=("the {n}", "the {n}"),
        filler=(
            "Both sides keep a signed copy.",
            "Changes must be made in writing.",
            "The usual terms of delivery apply.",
            "Disputes go to the local court.",
        ),
        attributes=(
            _Attribute(
                "supplier",
                _Draw.company,
                ("Under {s} the supplier is {v}.", "The supplier in {s} is {v}."),
                ("Who is the supplier in the {n}?", "Which supplier does the {n} name?"),
            ),
            _Attribute(
                "client",
                _Draw.company,
                ("Under {s} the client is {v}.", "The client in {s} is {v}."),
                ("Who is the client in the {n}?", "Which client does the {n} name?"),
            ),
            _Attribute(
                "amount",
                _Draw.euros,
                ("{s} is worth {v}.", "The value of {s} is {v}."),
                ("How much is the {n} worth?", "What is the value of the {n}?"),
            ),
            _Attribute(
                "signed",
                _Draw.date,
                ("{s} was signed on {v}.", "The signing date of {s} is {v}."),
                ("When was the {n} signed?", "What is the signing date of the {n}?"),
            ),
            _Attribute(
                "term",
                _Draw.months,
                ("{s} runs for {v}.", "The term of {s} is {v}."),
                ("How long does the {n} run?", "What is the term of the {n}?"),
            ),
            _Attribute(
                "reference",
                _Draw.code,
                ("{s} has the reference {v}.", "The reference number of {s} is {v}."),
                ("What is the reference number of the {n}?", "Which reference does the {n} have?"),
            ),
            _Attribute(
                "signatory",
                _Draw.person,
                ("{s} was signed by {v}.", "The signatory of {s} is {v}."),
                ("Who signed the {n}?", "Who is the signatory of the {n}?"),
            ),
        ),
    ),
}


@dataclass(frozen=True)
class FactQuestion:
    """A question whose answer stands, word for word, in one fact sheet."""

    question: str
    answer: str
    document_id: str
    attribute: str
    """Kind and attribute, such as "person/badge code": errors are read by it."""


@dataclass(frozen=True)
class FactSheet:
    """One document with every question that it answers (two phrasings for each fact)."""

    document: Document
    name: str
    kind: str
    questions: tuple[FactQuestion, ...]


def _make_sheet(draw: _Draw, kind: str) -> FactSheet:
    rng, spec = draw.rng, _KINDS[kind]
    name = spec.name(draw)
    document_id = name.lower().replace(" ", "-")
    count = rng.randint(2, len(spec.attributes))
    sentences: list[str] = []
    questions: list[FactQuestion] = []
    for attribute in rng.sample(spec.attributes, count):
        value = attribute.value(draw)
        subject = rng.choice(spec.later).format(n=name)
        sentence = rng.choice(attribute.told).format(s=subject, v=value)
        sentences.append(sentence[0].upper() + sentence[1:])
        for template in attribute.asked:
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
    return FactSheet(document=document, name=name, kind=kind, questions=tuple(questions))


def fact_sheets(
    seed: int, *, held_out: bool, kinds: tuple[str, ...] = tuple(_KINDS)
) -> Iterator[FactSheet]:
    """An endless stream of fact sheets, the same for the same arguments; document ids never repeat.

    `held_out=False` is the part that the bundled checkpoint was trained on.
    """
    draw = _Draw(random.Random(seed), held_out)
    seen: set[str] = set()
    while True:
        sheet = _make_sheet(draw, draw.rng.choice(kinds))
        if sheet.document.id not in seen:
            seen.add(sheet.document.id)
            yield sheet


def held_out_questions(count: int, sheets: list[FactSheet], seed: int) -> list[FactQuestion]:
    """`count` different questions about `sheets`, drawn evenly over the kinds of fact.

    Raises ValueError where the sheets do not answer that many.
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
