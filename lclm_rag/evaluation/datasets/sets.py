"""Sets of questions by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast, get_args

from lclm_rag.checkpoint import BUNDLED, Checkpoint
from lclm_rag.evaluation.datasets.fact_sheet_sets import (
    exact_string_set,
    fact_sheet_set,
    paraphrase_set,
    unanswerable_set,
)
from lclm_rag.evaluation.datasets.jsonl_questions import read_questions
from lclm_rag.evaluation.datasets.lclm_eval import HUB_ID, Config, lclm_eval_questions
from lclm_rag.evaluation.datasets.many_sheets import joined_fact_set, near_duplicate_set
from lclm_rag.evaluation.datasets.needles import NEEDLE_TASKS, needle_questions
from lclm_rag.evaluation.datasets.parts import MADE_UP, Part
from lclm_rag.evaluation.questions import EvalSet

__all__ = ["SETS", "check_set_name", "question_set"]

_LCLM_EVAL = "lclm-eval/"

SETS = (*MADE_UP, "ruler", *(_LCLM_EVAL + c for c in get_args(Config)))

_ABOUT_FACT_SHEETS: dict[str, Callable[[int, int, Part], EvalSet]] = {
    "exact-strings": exact_string_set,
    "fact-sheets": fact_sheet_set,
    "paraphrases": paraphrase_set,
    "near-duplicates": near_duplicate_set,
    "joined-facts": joined_fact_set,
    "unanswerable": unanswerable_set,
}


def check_set_name(name: str) -> None:
    """Check the name of a set.

    Raises:
        ValueError: When the name is neither one of `SETS` nor that of a JSONL file.
    """
    if name not in SETS and not name.endswith(".jsonl"):
        raise ValueError(f"{name!r} is no set of questions: use {', '.join(SETS)}, or FILE.jsonl.")


def question_set(
    name: str,
    *,
    count: int | None = None,
    seed: int = 2026,
    part: Part = "report",
    checkpoint: str = BUNDLED,
    context_lengths: Sequence[int] = (4096,),
    tasks: Sequence[str] = (),
    essays: Path | None = None,
    source: str | Path = HUB_ID,
) -> EvalSet:
    """Make or read the set of that name.

    Args:
        name: One of `SETS`, or the path of a user's JSONL file, to which none of the options apply.
        count: How many questions; for ruler and lclm-eval, for each task and length. None: 500 about fact
            sheets, 10 of ruler, all of lclm-eval.
        seed: Seed of generated questions.
        part: For sets about fact sheets: whether the questions are to choose something by, or to publish the
            figures.
        checkpoint: For ruler: lengths are counted by this checkpoint's decoder tokenizer.
        context_lengths: For ruler: see `needle_questions`.
        tasks: For ruler and lclm-eval: which tasks; () for all.
        essays: For ruler: see `needle_questions`.
        source: For lclm-eval: see `lclm_eval_questions`.

    Raises:
        ValueError: When there is no such set, or as the set's own function raises it.
        EvaluationError: As the set's own function raises it.
        ImportError: When a package that a measure needs is missing.
    """
    check_set_name(name)
    if name.endswith(".jsonl"):
        return read_questions(Path(name))
    if name in _ABOUT_FACT_SHEETS:
        return _ABOUT_FACT_SHEETS[name](count or 500, seed, part)
    if name == "ruler":
        tokenizer = Checkpoint.open(checkpoint).inert_decoder_tokenizer
        return needle_questions(
            lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
            tasks=tasks or tuple(NEEDLE_TASKS),
            context_lengths=context_lengths,
            questions_each=count or 10,
            seed=seed,
            essays=essays,
        )
    config = cast(Config, name.removeprefix(_LCLM_EVAL))
    return lclm_eval_questions(config, source, categories=tasks, limit=count)
