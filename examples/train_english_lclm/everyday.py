"""Everyday texts made up of `everyday.txt`, and questions about them as people ask them.

    python examples/train_english_lclm/everyday.py --work runs/english

The questions that `questions.py` makes by rule ask for gaps and for what follows "is" or "because";
hardly one asks how much, how long, where or whom. These do, up to eight about the same passages, which costs
little more than one. It writes `everyday.jsonl`, with paragraphs of `texts.jsonl` among the passages. The
same texts and seed give the same questions. A question of the files that the checkpoint is measured by is
never made.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from paragraphs import read_lines, read_texts, write_lines
from rich.progress import track

HERE = Path(__file__).parent
MEASURED_BY = ("evaluation.jsonl", "notes.jsonl", "fresh_notes.jsonl")
RECORDS = 40_000
MOST_PASSAGES = 4
MOST_QUESTIONS = 8
_ARTICLE = re.compile(r"\b([Aa])(?= [aeio])")
_SLOT = re.compile(r"\{([A-Za-z]+)(?:\.(\w+))?\}")


class Asked(TypedDict):
    """A question, and the number of the passage that answers it."""

    question: str
    answer: str
    number: int


class Record(TypedDict):
    """Passages and questions as `lclm_rag.training` reads them: what the questions share is computed once."""

    passages: list[str]
    questions: list[Asked]
    source: str


@dataclass
class Fact:
    """A fact in its wordings, and what can be asked about it."""

    wordings: list[str]
    questions: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Genre:
    """A kind of text."""

    name: str
    openings: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)


def read_genres(path: Path) -> tuple[list[Genre], dict[str, list[str]]]:
    """Read the kinds of text.

    Args:
        path: A file as `everyday.txt`, which says how it is made.

    Returns:
        The kinds of text, and the lists: what each name may stand for.

    Raises:
        ValueError: On a line that has no place.
    """
    genres: list[Genre] = []
    lists: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        mark, rest = line[:1], line[1:].strip()
        if not line or mark == "#":
            continue
        if mark == "[":
            genres.append(Genre(rest.rstrip("]")))
        elif mark == "=":
            name, _, values = rest.partition(": ")
            lists[name] = values.split(", ")
        elif mark == "^":
            genres[-1].openings = rest.split(" | ")
        elif mark == "-":
            genres[-1].facts.append(Fact(rest.split(" | ")))
        elif mark == "?":
            asked, _, answer = rest.partition(" => ")
            fact = genres[-1].facts[-1]
            fact.questions += [
                (question, answer.split(" | ")[0]) for question in asked.split(" | ")
            ]
        else:
            raise ValueError(f"{path.name}: a line begins with none of # = [ ^ - ?: {line!r}.")
    return genres, lists


def _number(rng: random.Random) -> str:
    value = rng.choice([rng.randint(11, 99), rng.randint(100, 999), rng.randint(1000, 99_999)])
    return f"{value:,}" if rng.random() < 0.3 else str(value)


def _small(rng: random.Random) -> str:
    words = "two three four five six seven eight nine ten eleven twelve".split()
    return rng.choice(words) if rng.random() < 0.4 else str(rng.randint(2, 30))


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=rng.randint(1, 3)))


DRAWN: dict[str, Callable[[random.Random], str]] = {
    "day": lambda rng: str(rng.randint(1, 28)),
    "hour": lambda rng: str(rng.randint(1, 12)),
    "letters": _letters,
    "minute": lambda rng: f"{rng.randrange(0, 60, 5):02d}",
    "number": _number,
    "small": _small,
    "tenth": lambda rng: str(rng.randint(0, 9)),
    "version": lambda rng: ".".join(str(rng.randint(0, 19)) for _ in range(rng.choice([2, 3]))),
    "whole": lambda rng: str(rng.randint(2, 99)),
    "year": lambda rng: str(rng.randint(1420, 2025)),
}
"""How a value is drawn that is in no list."""

_AS_THEY_ARE = {
    "code",
    "command",
    "email",
    "option",
    "path",
    "program",
    "variable",
    "version",
    "word",
}
"""What keeps its small letter where it begins a sentence."""


def drawn(kind: str, lists: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Draw a value.

    Args:
        kind: Of what kind: a name of the lists, or one of `DRAWN`.
        lists: What each name may stand for, in which other names may stand in braces.
        rng: Draws it.

    Returns:
        The value.
    """
    if kind in DRAWN:
        return DRAWN[kind](rng)
    return _SLOT.sub(lambda match: drawn(match.group(1), lists, rng), rng.choice(lists[kind]))


@dataclass(frozen=True)
class Text:
    """A text, and the questions that it answers."""

    text: str
    asked: list[tuple[str, str]]


def make_text(genre: Genre, lists: Mapping[str, Sequence[str]], rng: random.Random) -> Text:
    """Make up a text.

    Args:
        genre: What kind it is.
        lists: What each name may stand for.
        rng: Draws it.

    Returns:
        The text with the questions about each of its facts; each answer stands in it, letter by letter, once.
    """
    whole: dict[str, str] = {}
    taken: set[str] = set()

    def filled(template: str, own: dict[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            kind, label = match.group(1), match.group(2)
            values = whole if label else own
            key = f"{kind.lower()}.{label}" if label else kind.lower()
            if key not in values:
                tried = (drawn(kind.lower(), lists, rng) for _ in range(50))
                values[key] = next(
                    (each for each in tried if each not in taken), drawn(kind.lower(), lists, rng)
                )
                taken.add(values[key])
            shown = values[key]
            begins = match.start() == 0 and kind not in _AS_THEY_ARE
            return shown[0].upper() + shown[1:] if begins or kind[0].isupper() else shown

        return _ARTICLE.sub(r"\1n", _SLOT.sub(value, template))

    opening, lines = "", list[str]()
    asked: list[tuple[str, str]] = []
    if genre.openings and rng.random() < 0.7:
        opening = filled(rng.choice(genre.openings), {}) + rng.choice(["\n", "\n\n"])
    for fact in rng.sample(genre.facts, k=min(len(genre.facts), rng.randint(2, 6))):
        own: dict[str, str] = {}
        lines.append(filled(rng.choice(fact.wordings), own))
        for question, answer in fact.questions:
            shown = filled(question, own)
            asked.append((shown[0].upper() + shown[1:], filled("\0" + answer, own)[1:]))
    text = rng.choice([" ", " ", " ", "\n", "\n- ", "\n\n"]).join(lines)
    text = opening + text
    spans: list[tuple[str, str]] = []
    for question, answer in asked:
        at = text.lower().find(answer.lower())
        if (
            at >= 0
            and text.lower().count(answer.lower()) == 1
            and answer.lower() not in question.lower()
        ):
            spans.append((question, text[at : at + len(answer)]))
    return Text(text, spans)


def asked_elsewhere(path: Path) -> set[str]:
    """Read the questions that must not be made.

    Args:
        path: A file of questions, as `evaluation.jsonl`.

    Returns:
        The questions, in lower case.
    """
    return {each["question"].lower() for each in read_lines(path)}


def make_record(
    passages: Sequence[str], questions: Sequence[Asked], source: str, rng: random.Random
) -> Record:
    """Make a record.

    Args:
        passages: The passages.
        questions: Questions about them; of more than `MOST_QUESTIONS` some are drawn.
        source: By what program it is made.
        rng: Draws the questions and their order.

    Returns:
        The record.
    """
    asked = rng.sample(questions, min(len(questions), MOST_QUESTIONS))
    return Record(passages=list(passages), questions=asked, source=source)


def make_records(
    genres: Sequence[Genre],
    lists: Mapping[str, Sequence[str]],
    paragraphs: Sequence[str],
    count: int,
    seed: int,
) -> list[Record]:
    """Make up passages with questions.

    Args:
        genres: The kinds of text.
        lists: What each name may stand for.
        paragraphs: Paragraphs that lie beside the made-up ones.
        count: How many records.
        seed: Of the draw.

    Returns:
        Passages with the questions about the made-up ones among them, which are of different kinds, so that
        one does not answer what is asked about another.
    """
    rng = random.Random(seed)
    never = {asked for name in MEASURED_BY for asked in asked_elsewhere(HERE / name)}
    records: list[Record] = []
    for _ in track(range(count), description="Everyday questions"):
        kinds = rng.sample(genres, MOST_PASSAGES)
        passages, questions = list[str](), list[Asked]()
        for kind in kinds[: rng.choice([1, 1, 2, 2, 3, MOST_PASSAGES])]:
            if passages and rng.random() < 0.5:
                passages.append(rng.choice(paragraphs))
                continue
            text = make_text(kind, lists, rng)
            passages.append(text.text)
            asked = [each for each in text.asked if each[0].lower() not in never]
            rng.shuffle(asked)
            # One for each answer: a text says some things that can be asked in several ways.
            for answer, question in {answer: question for question, answer in asked}.items():
                questions.append(Asked(question=question, answer=answer, number=len(passages)))
        if questions:
            places = rng.sample(range(len(passages)), len(passages))
            for each in questions:
                each["number"] = places.index(each["number"] - 1) + 1
            shown = [passages[place] for place in places]
            records.append(make_record(shown, questions, "everyday", rng))
    return records


def write_records(
    doc: str, name: str, make: Callable[[Sequence[str], int], Sequence[Record]]
) -> None:
    """Carry out a program that makes records of paragraphs.

    Args:
        doc: The program's docstring; `--help` shows its first line.
        name: The file in the work folder that it writes, without ".jsonl".
        make: Makes the records of the paragraphs and a seed.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="the folder of texts.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    records = make([each["text"] for each in read_texts(options.work)], options.seed)
    write_lines(options.work / f"{name}.jsonl", records)
    asked = sum(len(record["questions"]) for record in records)
    print(f"{name}: {len(records):,}, with {asked:,} questions")


def main() -> None:
    genres, lists = read_genres(HERE / "everyday.txt")
    write_records(
        __doc__ or "",
        "everyday",
        lambda paragraphs, seed: make_records(genres, lists, paragraphs, RECORDS, seed),
    )


if __name__ == "__main__":
    main()
