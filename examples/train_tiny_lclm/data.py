"""Write what the bundled checkpoint is trained on: fact sheets, and questions about them.

    python examples/train_tiny_lclm/data.py --work runs/tiny

`sheets-N.jsonl` has N fact sheets in each record and up to 12 questions about them, or asks to repeat one.
`strings-N.jsonl` has sheets with codes and UUIDs; questions about these name their passage, which is to be
asked for. `questions.jsonl` has held-out questions. No held-out name is ever trained on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lclm_rag.evaluation.datasets.exact_strings import exact_string_questions, with_exact_strings
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet, fact_sheets, held_out_questions

DOCUMENTS = (1, 2, 4, 8)
RECORDS = 8000
QUESTIONS, OF_STRINGS = 12, 8
HELD_OUT = 100
REPEATED = 0.1
WITH_STRINGS = 0.7
KINDS = ("person", "product", "place", "contract")

Record = dict[str, Any]


def sheets_together(seed: int, documents: int) -> Iterator[list[FactSheet]]:
    """Half of them are of one kind only, as retrieval by similar words tends to give."""
    rng = random.Random(seed)
    mixed = fact_sheets(rng.getrandbits(60), held_out=False)
    by_kind = [fact_sheets(rng.getrandbits(60), held_out=False, kinds=(k,)) for k in KINDS]
    while True:
        source = mixed if rng.random() < 0.5 else rng.choice(by_kind)
        yield list(itertools.islice(source, documents))


def about_sheets(rng: random.Random, sheets: list[FactSheet]) -> Record:
    """Questions evenly over sheets and kinds of fact, each fact once at most; or one passage to repeat."""
    passages = [sheet.document.text for sheet in sheets]
    if rng.random() < REPEATED:
        number = rng.randrange(len(sheets))
        asks = [{"question": f"Repeat passage {number + 1}.", "answer": passages[number]}]
        return {"passages": passages, "questions": asks}
    by_fact: dict[tuple[str, str], list[Record]] = {}
    for sheet in sheets:
        for question in sheet.questions:
            by_fact.setdefault((sheet.name, question.attribute), []).append(
                _ask(question.question, question.answer)
            )
    chosen = rng.sample(list(by_fact.values()), min(QUESTIONS, len(by_fact)))
    return {"passages": passages, "questions": [rng.choice(phrasings) for phrasings in chosen]}


def about_strings(rng: random.Random, plain: list[FactSheet]) -> Record:
    """About half of the questions ask for codes and ids, and say in which passage these are."""
    sheets = [with_exact_strings(s, rng) if rng.random() < WITH_STRINGS else s for s in plain]
    strings: list[Record] = []
    others: list[Record] = []
    for number, sheet in enumerate(sheets, start=1):
        wanted = exact_string_questions(sheet)
        strings += [{**_ask(q.question, q.answer), "number": number} for q in wanted]
        others += [_ask(q.question, q.answer) for q in sheet.questions if q not in wanted]
    chosen = rng.sample(strings, min(len(strings), OF_STRINGS // 2))
    chosen += rng.sample(others, min(len(others), OF_STRINGS - len(chosen)))
    return {"passages": [sheet.document.text for sheet in sheets], "questions": chosen}


def _ask(question: str, answer: str) -> Record:
    # With a leading space an answer has the tokens that it has inside a sentence.
    return {"question": question, "answer": f" {answer}"}


def held_out() -> Iterator[Record]:
    """Questions about names that are never trained on, each with four passages."""
    rng = random.Random(0)
    sheets = list(itertools.islice(fact_sheets(rng.getrandbits(60), held_out=True), 200))
    by_id = {sheet.document.id: sheet.document.text for sheet in sheets}
    for question in held_out_questions(HELD_OUT, sheets, 0):
        others = rng.sample([text for key, text in by_id.items() if key != question.document_id], 3)
        passages = [by_id[question.document_id], *others]
        rng.shuffle(passages)
        yield {"passages": passages, "question": question.question, "answers": [question.answer]}


def write_data(work: Path, records: int = RECORDS) -> None:
    """Write the files that are not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    _write(work / "questions.jsonl", held_out())
    for made_of, name in ((about_sheets, "sheets"), (about_strings, "strings")):
        for documents in DOCUMENTS:
            seed = f"{name} {documents}"
            rng = random.Random(seed)
            drawn = itertools.islice(sheets_together(rng.getrandbits(60), documents), records)
            _write(work / f"{name}-{documents}.jsonl", (made_of(rng, sheets) for sheets in drawn))


def _write(path: Path, records: Iterator[Record]) -> None:
    if path.is_file():
        return
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    part.rename(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--records", type=int, default=RECORDS, help="in each file")
    arguments = parser.parse_args()
    write_data(arguments.work, arguments.records)
