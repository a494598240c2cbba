"""Does the check of answers (`ground`) report what no source has, and nothing else?

\b
    python benchmarks/grounding.py      # seconds; no model

`grounding.jsonl`, beside this file, holds 200 answers in five languages, written for this: half of them say
what their sources say, the others hold one number, code, link or quotation that no source has. Answers are
as a decoder writes them, thoughts included. A pair is judged as a careful reader would judge it, so some are
beyond a check of strings: numbers in words, sums, units that are not the source's.

Counted are strings and answers. Precision: how many of those reported are false. Recall: how many of the
false ones are reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from shared import machine, write_results

from lclm_rag.querying.grounding import ground

PAIRS = Path(__file__).with_name("grounding.jsonl")
LANGUAGES = ("en", "de", "fr", "zh", "ar")


@dataclass(frozen=True)
class Pair:
    """kind: what the answer holds. missing: its strings that no source has, however written."""

    language: str
    kind: str
    question: str
    answer: str
    sources: list[str]
    missing: list[str]


@dataclass(frozen=True)
class Counts:
    """Of all pairs, or of those in one language. The first six count strings, the last three answers."""

    language: str
    pairs: int
    false: int
    reported: int
    rightly_reported: int
    false_reported: int
    answers_false: int
    answers_reported: int
    answers_rightly_reported: int


@dataclass(frozen=True)
class Mistake:
    """A pair on which the check is wrong: what it should report, and what it reports."""

    language: str
    kind: str
    answer: str
    missing: list[str]
    reported: list[str]


def read_pairs() -> list[Pair]:
    """The committed pairs."""
    lines = PAIRS.read_text("utf-8").splitlines()
    return [Pair(**json.loads(line)) for line in lines]


def reported(pair: Pair) -> list[str]:
    """What the check reports of a pair."""
    return list(ground(pair.answer, pair.question, pair.sources).missing)


def same(one: str, other: str) -> bool:
    """Whether two strings of an answer are the same but for what is around them: "5" and "5 %"."""
    inner, outer = sorted((one, other), key=len)
    return re.search(rf"(?<!\d){re.escape(inner)}(?!\d)", outer) is not None


def count(language: str, pairs: Sequence[Pair]) -> Counts:
    alarms = [reported(pair) for pair in pairs]
    both = list(zip(pairs, alarms, strict=True))
    return Counts(
        language=language,
        pairs=len(pairs),
        false=sum(len(pair.missing) for pair in pairs),
        reported=sum(len(found) for found in alarms),
        rightly_reported=sum(
            any(same(string, false) for false in pair.missing)
            for pair, found in both
            for string in found
        ),
        false_reported=sum(
            any(same(string, false) for string in found)
            for pair, found in both
            for false in pair.missing
        ),
        answers_false=sum(bool(pair.missing) for pair in pairs),
        answers_reported=sum(bool(found) for found in alarms),
        answers_rightly_reported=sum(bool(pair.missing and found) for pair, found in both),
    )


def mistakes(pairs: Sequence[Pair]) -> list[Mistake]:
    wrong = []
    for pair in pairs:
        found = reported(pair)
        missed = [f for f in pair.missing if not any(same(f, string) for string in found)]
        if missed or any(not any(same(s, f) for f in pair.missing) for s in found):
            wrong.append(Mistake(pair.language, pair.kind, pair.answer, pair.missing, found))
    return wrong


@click.command(help=__doc__)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="benchmarks/results/grounding",
    show_default=True,
)
def main(out: Path) -> None:
    pairs = read_pairs()
    counts = [count("all", pairs)]
    counts += [count(name, [p for p in pairs if p.language == name]) for name in LANGUAGES]
    for row in counts:
        click.echo(
            f"{row.language:4} strings: precision {row.rightly_reported}/{row.reported}, "
            f"recall {row.false_reported}/{row.false}; answers: precision "
            f"{row.answers_rightly_reported}/{row.answers_reported}, "
            f"recall {row.answers_rightly_reported}/{row.answers_false}"
        )
    wrong = mistakes(pairs)
    for mistake in wrong:
        click.echo(f"{mistake.language} {mistake.kind}: {mistake.missing} {mistake.reported}")
    write_results(out, {**machine(), "mistakes": [vars(m) for m in wrong]}, counts)


if __name__ == "__main__":
    main()
