"""Made-up questions come in two parts: one to choose on, one to report on.

A rule, a codec or a threshold that was picked on some questions looks better on them than it is. So whatever
is chosen is chosen on the part "choose", and every figure that is published comes from the part "report". A
checksum of each made-up name assigns it to one part, so the two share no name, for any seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lclm_rag.errors import EvaluationError

__all__ = ["MADE_UP", "Part", "check_part"]

Part = Literal["choose", "report"]
"""What the questions are for."""

MADE_UP = (
    "exact-strings",
    "fact-sheets",
    "paraphrases",
    "near-duplicates",
    "joined-facts",
    "unanswerable",
)
"""The sets about fact sheets, which have both parts."""


def check_part(settings: Mapping[str, Any], part: Part) -> None:
    """Check that a run asked made-up questions of that part; other sets have no parts and pass.

    Args:
        settings: The settings in a run's report.
        part: "report" for a figure that is published, "choose" for one by which something is chosen.

    Raises:
        EvaluationError: When it asked others.
    """
    asked = settings["questions"].get("part")
    if settings["set"] in MADE_UP and asked != part:
        other = "none" if asked is None else repr(asked)
        raise EvaluationError(
            f"{settings['set']} was asked with the part {other}, where {part!r} is needed: "
            f"lclm-rag eval {settings['set']} --part {part}."
        )
