"""Fact sheets with strings that latents blur: each has a code of 12 characters and a UUID of 36.

The strings are added to the sheets of `fact_sheets`; the same seed gives the same sheets with and without
them. The sentences and questions are in `exact_strings.toml`.
"""

from __future__ import annotations

import random
import re
import uuid
from dataclasses import replace

from lclm_rag.evaluation.datasets.data_files import read_data
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet

__all__ = ["RECORD_ID", "REGISTRY_CODE", "exact_string_questions", "with_exact_strings"]

REGISTRY_CODE = "registry code"
RECORD_ID = "record id"

_CODE_LENGTH = 12
_DATA = read_data("exact_strings")


def with_exact_strings(sheet: FactSheet, rng: random.Random) -> FactSheet:
    """Add a registry code and a record id to a sheet's text, and two questions about each to its questions.

    Args:
        sheet: A fact sheet; it is not changed.
        rng: Draws the strings, their phrasings and their places in the text.

    Returns:
        A new sheet, whose added questions come after the sheet's own.
    """
    values = {
        REGISTRY_CODE: "".join(rng.choices(_DATA["code_signs"], k=_CODE_LENGTH)),
        RECORD_ID: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    }
    subject = f"the {sheet.name}" if sheet.kind in ("product", "contract") else sheet.name
    sentences = re.split(r"(?<=\.) ", sheet.document.text)
    questions = list(sheet.questions)
    for name, value in values.items():
        sentence = rng.choice(_DATA[name]["sentences"]).format(s=subject, v=value)
        # After the sheet's first sentence, which names the subject.
        sentences.insert(rng.randint(1, len(sentences)), sentence[0].upper() + sentence[1:])
        questions += [
            FactQuestion(template.format(s=subject), value, sheet.document.id, name)
            for template in _DATA[name]["questions"]
        ]
    document = replace(sheet.document, text=" ".join(sentences))
    return replace(sheet, document=document, questions=tuple(questions))


def exact_string_questions(sheet: FactSheet) -> list[FactQuestion]:
    """The questions of a sheet that ask for a registry code or a record id."""
    return [q for q in sheet.questions if q.attribute in (REGISTRY_CODE, RECORD_ID)]
