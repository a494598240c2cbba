"""Fact sheets with strings that latents blur: a code of 12 characters and a UUID of 36 in each.

Added to the sheets of `fact_sheets`, which stay as they are: the same seed gives the same sheets with and
without. The sentences and questions are in `exact_strings.toml`.
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
    """The sheet with a registry code and a record id somewhere in its text, and with two questions about each
    behind its others."""
    values = {
        REGISTRY_CODE: "".join(rng.choices(_DATA["code_signs"], k=_CODE_LENGTH)),
        RECORD_ID: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    }
    subject = f"the {sheet.name}" if sheet.kind in ("product", "contract") else sheet.name
    sentences = re.split(r"(?<=\.) ", sheet.document.text)
    questions = list(sheet.questions)
    for name, value in values.items():
        sentence = rng.choice(_DATA[name]["sentences"]).format(s=subject, v=value)
        # Behind the sheet's opening, which names the subject.
        sentences.insert(rng.randint(1, len(sentences)), sentence[0].upper() + sentence[1:])
        questions += [
            FactQuestion(template.format(s=subject), value, sheet.document.id, name)
            for template in _DATA[name]["questions"]
        ]
    document = replace(sheet.document, text=" ".join(sentences))
    return replace(sheet, document=document, questions=tuple(questions))


def exact_string_questions(sheet: FactSheet) -> list[FactQuestion]:
    """Those of a sheet's questions that ask for a registry code or a record id."""
    return [q for q in sheet.questions if q.attribute in (REGISTRY_CODE, RECORD_ID)]
