"""What the bundled checkpoint can read: the fact sheets that it was trained on, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.types import Hit

__all__ = ["BUNDLED_IS_USED", "NOISE", "is_noise"]

BUNDLED_IS_USED = (
    "No --checkpoint given: using the bundled tiny-lclm-4x, which answers from made-up fact sheets "
    "only."
)

NOISE = (
    "The bundled checkpoint answers from made-up fact sheets only, and none of these sources is one: what it "
    "says of them is noise. For your own documents: lclm-rag doctor --install english, then lclm-rag build "
    "CORPUS --kb DIR --checkpoint english"
)

_SHARE = 0.25
"""Sentences of a source that must be a sheet's. Of sheets all are; of a README or a letter, none or one."""

_LONGEST = 200
"""Characters of a sheet's sentence, with room to spare."""


def is_noise(checkpoint: Checkpoint, sources: Sequence[Hit]) -> bool:
    """Whether an answer is noise, because the bundled checkpoint was asked and no source is a fact sheet.

    Its 3 million parameters have seen the sentences of `fact_sheets.toml` and `exact_strings.toml`, filled
    with drawn names and values, and no other text. So it can answer only if a source has such sentences.

    Args:
        checkpoint: The checkpoint that answered.
        sources: The answer's sources.

    Returns:
        False for other checkpoints, and for an answer without sources.
    """
    from lclm_rag.checkpoint import BUNDLED

    if checkpoint.name != BUNDLED or not sources:
        return False
    return not any(_is_sheet(hit.text) for hit in sources)


def _is_sheet(text: str) -> bool:
    lines = [line.strip("#*-> \t") for line in re.split(r"(?<=[.!?])\s+|\n+", text)]
    sentences = [line for line in lines if line]
    known = sum(len(each) <= _LONGEST and bool(_sheets().fullmatch(each)) for each in sentences)
    return known >= _SHARE * len(sentences) > 0


@cache
def _sheets() -> re.Pattern[str]:
    """Matches one sentence of a fact sheet."""
    from lclm_rag.evaluation.datasets.data_files import read_data

    templates: list[str] = []
    for kind in read_data("fact_sheets")["kinds"].values():
        templates += [*kind["opening"], *kind["filler"]]
        for attribute in kind["attributes"]:
            templates += attribute["sentences"]
    for strings in read_data("exact_strings").values():
        templates += strings["sentences"] if isinstance(strings, dict) else []
    filled = [
        re.sub(r"\\\{[snv]\\\}", lambda _: r"\S+(?: \S+){0,5}", re.escape(each.removesuffix(".")))
        for each in templates
    ]
    return re.compile(rf"(?:{'|'.join(filled)})\.?", re.IGNORECASE)
