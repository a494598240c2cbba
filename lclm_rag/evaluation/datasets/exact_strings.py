"""Fact sheets with strings that latents blur: a code of 12 characters and a UUID of 36 in each.

Added to the sheets of `fact_sheets`, which stay as they are: the same seed gives the same sheets with and
without.
"""

from __future__ import annotations

import random
import re
import uuid
from dataclasses import replace

from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet

__all__ = ["RECORD_ID", "REGISTRY_CODE", "exact_string_questions", "with_exact_strings"]

REGISTRY_CODE = "registry code"
RECORD_ID = "record id"

_CODE_LENGTH = 12
_CODE_SIGNS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"

# {s}: subject, {v}: value; as the facts of `fact_sheets` are told and asked for, two ways each.
_TOLD = {
    REGISTRY_CODE: (
        "{s} is filed under the registry code {v}.",
        "The registry code of {s} is {v}.",
    ),
    RECORD_ID: ("{s} has the record id {v}.", "The record id of {s} is {v}."),
}
_ASKED = {
    REGISTRY_CODE: (
        "What is the registry code of {s}?",
        "Under which registry code is {s} filed?",
    ),
    RECORD_ID: ("What is the record id of {s}?", "Which record id does {s} have?"),
}


def with_exact_strings(sheet: FactSheet, rng: random.Random) -> FactSheet:
    """The sheet with a registry code and a record id told somewhere in its text, and asked for in two
    phrasings each, behind its other questions."""
    values = {
        REGISTRY_CODE: "".join(rng.choices(_CODE_SIGNS, k=_CODE_LENGTH)),
        RECORD_ID: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    }
    subject = f"the {sheet.name}" if sheet.kind in ("product", "contract") else sheet.name
    sentences = re.split(r"(?<=\.) ", sheet.document.text)
    questions = list(sheet.questions)
    for name, value in values.items():
        told = rng.choice(_TOLD[name]).format(s=subject, v=value)
        # Behind the sheet's opening, which names the subject.
        sentences.insert(rng.randint(1, len(sentences)), told[0].upper() + told[1:])
        questions += [
            FactQuestion(asked.format(s=subject), value, sheet.document.id, name)
            for asked in _ASKED[name]
        ]
    document = replace(sheet.document, text=" ".join(sentences))
    return replace(sheet, document=document, questions=tuple(questions))


def exact_string_questions(sheet: FactSheet) -> list[FactQuestion]:
    """Those of a sheet's questions that ask for a registry code or a record id."""
    return [q for q in sheet.questions if q.attribute in (REGISTRY_CODE, RECORD_ID)]
