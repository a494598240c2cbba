"""How much of what the bundled checkpoint is asked was in its training? Nothing is decoded.

    python benchmarks/held_out.py      # seconds

Fact sheets to report on, against as many of the training part as `--sheets` says: subjects by their names;
answers that are names; answers that are numbers, dates, codes or one of a list of choices, which are drawn
alike in both parts and so come again, under the same attribute; and phrasings of questions, without the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
from shared import machine, write_results

from lclm_rag.evaluation.datasets.data_files import read_data
from lclm_rag.evaluation.datasets.fact_sheet_sets import fact_sheet_set, paraphrase_set
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet, fact_sheets

NAMES = {"word", "person", "company", "product", "agreement"}
"""Values that are made-up names."""


@dataclass(frozen=True)
class Seen:
    """of: how many different ones there are in the questions; seen: how many of them in the training part."""

    what: str
    of: int
    seen: int


def phrasing(question: str, name: str) -> str:
    return question.replace(name, "{n}")


def asked(sheets: list[FactSheet]) -> tuple[set[str], set[str]]:
    """Names of subjects, and phrasings."""
    names = {sheet.name for sheet in sheets}
    return names, {phrasing(q.question, s.name) for s in sheets for q in s.questions}


@click.command(help=__doc__)
@click.option("--sheets", default=20_000, show_default=True, help="Of the training part.")
@click.option("--out", default="benchmarks/results/held_out", show_default=True, type=Path)
def main(sheets: int, out: Path) -> None:
    trained = list(islice(fact_sheets(1, held_out=False), sheets))
    names, phrasings = asked(trained)
    answers = {(q.attribute, q.answer) for sheet in trained for q in sheet.questions}
    named = {
        f"{kind}/{attribute['name']}"
        for kind, spec in read_data("fact_sheets")["kinds"].items()
        for attribute in spec["attributes"]
        if attribute["value"] in NAMES
    }
    made = fact_sheet_set()
    subjects = {str(document.metadata["name"]) for document in made.documents}
    of_names = {(q.category, q.answers[0]) for q in made.questions if q.category in named}
    of_values = {(q.category, q.answers[0]) for q in made.questions if q.category not in named}
    by_id = {document.id: str(document.metadata["name"]) for document in made.documents}
    ways = {phrasing(q.question, by_id[q.document_ids[0]]) for q in made.questions}
    other = {
        phrasing(q.question, by_id[q.document_ids[0]])
        for q in paraphrase_set().questions
        if q.category == "in other words"
    }
    results = [
        Seen("names of subjects", len(subjects), len(subjects & names)),
        Seen("answers that are names", len(of_names), len(of_names & answers)),
        Seen("answers that are numbers, codes, dates or choices", len(of_values), len(of_values & answers)),
        Seen("phrasings of `fact-sheets`", len(ways), len(ways & phrasings)),
        Seen("phrasings of `paraphrases`, in other words", len(other), len(other & phrasings)),
    ]  # fmt: skip
    write_results(out, {"machine": machine(), "sheets": sheets, "set": made.settings}, results)
    for result in results:
        print(f"{result.what:52}{result.of:>6}{result.seen:>6}{result.seen / result.of:>8.1%}")


if __name__ == "__main__":
    main()
