"""The figures of an evaluation: means with their intervals, and differences question by question."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.intervals import Difference, mean_interval, paired_difference
from lclm_rag.evaluation.journal import AnswerRecord
from lclm_rag.evaluation.questions import EvalQuestion

__all__ = ["compare", "read_report", "summarize"]

_SEED = 0
_MEASURES = ("score", "exact_match", "verbatim", "f1", "contains")
_SOMETIMES_KNOWN = ("hit", "recall", "recall_at_1", "grounded")
_REFERENCE = "text"


def summarize(
    questions: Sequence[EvalQuestion],
    answers: Sequence[AnswerRecord],
    settings: Mapping[str, Any],
    *,
    kv_bytes_per_position: int,
    store: Mapping[str, Any],
) -> dict[str, Any]:
    """All figures of a run as JSON: by context (`modes`), by category, and each question's score.

    Every mean has its 95% interval (`lclm_rag.evaluation.intervals.mean_interval`). `differences` are paired
    differences between each context and pasted text, or the first context if pasted text was not evaluated.
    Where a bootstrap is taken, it draws documents. Contexts in which some questions are still unanswered are
    left out and listed in `unfinished`.

    Args:
        questions: The questions of the set.
        answers: The journal's records, of any number of contexts.
        settings: What the answers depend on, copied into the report.
        kv_bytes_per_position: Bytes of the decoder's KV cache for one position.
        store: Size figures of the store, copied into the report.

    Returns:
        The report, ready for `json.dumps`.
    """
    contexts: dict[str, list[AnswerRecord]] = {}
    by_id = {(a.mode, a.id): a for a in answers}
    unfinished = []
    for context in dict.fromkeys(a.mode for a in answers):
        if all((context, q.id) in by_id for q in questions):
            contexts[context] = [by_id[context, q.id] for q in questions]
        else:
            unfinished.append(context)
    as_text = (name for name in contexts if name.partition("@")[0] == _REFERENCE)
    reference = next(as_text, next(iter(contexts), None))
    scores = {name: [r.scores["score"] for r in records] for name, records in contexts.items()}
    groups = [_group(question) for question in questions]
    return {
        "settings": dict(settings),
        "store": dict(store),
        "questions": len(questions),
        "unfinished": unfinished,
        "modes": {
            context: _figures(records, groups, kv_bytes_per_position)
            for context, records in contexts.items()
        },
        "reference": reference,
        "differences": _differences(scores, reference, groups),
        "categories": _by_category(questions, scores, reference, groups),
        "answers": [_line(q, [by_id[context, q.id] for context in contexts]) for q in questions],
    }


def read_report(path: Path) -> dict[str, Any]:
    """Read a report that `lclm-rag eval` wrote.

    Args:
        path: The file `report.json` of a run.

    Raises:
        EvaluationError: When the file cannot be read or is not such a report.
    """
    try:
        report = json.loads(path.read_text("utf-8"))
        if isinstance(report, dict) and {"modes", "answers", "settings"} <= report.keys():
            return report
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path} cannot be read as a report of lclm-rag eval: {error}"
        ) from error
    raise EvaluationError(f"{path} is no report of lclm-rag eval.")


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The differences between two reports, b minus a, by context, over the questions that both have.

    Args:
        a: The report to compare with, as `read_report` gives it.
        b: The other report.

    Returns:
        The comparison, ready for `json.dumps`: the number of shared questions and of those in one report
        only, the settings that differ, and for each shared context both mean scores and their paired
        difference.

    Raises:
        EvaluationError: When the reports share no context, or no question with the same answers.
    """
    common = [context for context in a["modes"] if context in b["modes"]]
    if not common:
        raise EvaluationError(
            f"The reports have no context in common: {', '.join(a['modes'])} and {', '.join(b['modes'])}."
        )
    lines_a, lines_b = ({_key(line): line for line in r["answers"]} for r in (a, b))
    shared = [key for key in lines_a if key in lines_b]
    if not shared:
        raise EvaluationError("The reports have no question in common.")
    contexts = {}
    for context in common:
        before, after = (
            [lines[key]["modes"][context]["score"] for key in shared]
            for lines in (lines_a, lines_b)
        )
        groups = [lines_b[key].get("group", lines_b[key]["id"]) for key in shared]
        contexts[context] = {
            "a": statistics.mean(before),
            "b": statistics.mean(after),
            "difference": asdict(paired_difference(after, before, _SEED, groups)),
        }
    return {
        "questions": len(shared),
        "only_a": len(lines_a) - len(shared),
        "only_b": len(lines_b) - len(shared),
        "settings": _differing(a["settings"], b["settings"]),
        "modes": contexts,
    }


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["id"], line["question"], tuple(line["expected"])


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [a.get(name), b.get(name)]
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    }


def _figures(
    answers: Sequence[AnswerRecord], groups: Sequence[str], kv_bytes_per_position: int
) -> dict[str, Any]:
    complete = [a for a in answers if not a.error]
    seconds = [a.seconds for a in answers if a.seconds is not None]
    peaks = [a.peak_memory for a in answers if a.peak_memory is not None]
    return {
        **{name: _mean([a.scores[name] for a in answers], groups) for name in _MEASURES},
        **{
            name: _mean_known([getattr(a, name) for a in answers], groups)
            for name in _SOMETIMES_KNOWN
        },
        "positions": _plain_mean([a.positions for a in complete]),
        "computed_positions": _plain_mean([a.computed for a in complete]),
        "kv_bytes": _plain_mean([a.peak_positions * kv_bytes_per_position for a in complete]),
        "peak_memory": max(peaks, default=None),
        "rounds": _plain_mean([a.rounds for a in complete]),
        "expanded": _plain_mean([a.expanded for a in complete]),
        "left_out": _plain_mean([a.left_out for a in complete]),
        "prepared": _plain_mean([a.prepared for a in complete]),
        **_times([a.first_token for a in answers if a.first_token is not None]),
        "seconds": statistics.median(seconds) if seconds else None,
        "errors": len(answers) - len(complete),
        "first_error": next((a.error for a in answers if a.error), None),
    }


def _times(seconds: Sequence[float]) -> dict[str, Any]:
    """The median time to the first token, and the quartiles around it."""
    if len(seconds) < 2:
        return {
            "timed": len(seconds),
            "first_token": seconds[0] if seconds else None,
            "first_token_quartiles": None,
        }
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"timed": len(seconds), "first_token": middle, "first_token_quartiles": [low, high]}


def _mean(values: Sequence[float], groups: Sequence[str]) -> dict[str, float] | None:
    if not values:
        return None
    low, high = mean_interval(values, _SEED, groups)
    return {"mean": statistics.mean(values), "low": low, "high": high, "of": len(values)}


def _mean_known(values: Sequence[float | None], groups: Sequence[str]) -> dict[str, float] | None:
    """As `_mean`, of the values that are known."""
    known = {i: float(value) for i, value in enumerate(values) if value is not None}
    return _mean(list(known.values()), [groups[i] for i in known])


def _plain_mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _group(question: EvalQuestion) -> str:
    """Questions of one group are drawn together: those about one document, by the first that is named."""
    return question.document_ids[0] if question.document_ids else f"question {question.id}"


def _differences(
    scores: Mapping[str, Sequence[float]], reference: str | None, groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Each context's paired difference to the reference."""
    found: dict[str, Difference] = {
        context: paired_difference(values, scores[reference], _SEED, groups)
        for context, values in scores.items()
        if reference is not None and context != reference
    }
    return {context: asdict(difference) for context, difference in found.items()}


def _by_category(
    questions: Sequence[EvalQuestion],
    scores: Mapping[str, Sequence[float]],
    reference: str | None,
    groups: Sequence[str],
) -> dict[str, Any]:
    """For each category the number of questions, and by context the mean score and the paired difference."""
    rows: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        rows.setdefault(question.category, []).append(i)
    found = {}
    for category, of_it in sorted(rows.items()):
        part = {context: [values[i] for i in of_it] for context, values in scores.items()}
        of_groups = [groups[i] for i in of_it]
        found[category] = {
            "questions": len(of_it),
            "modes": {context: _mean(values, of_groups) for context, values in part.items()},
            "differences": _differences(part, reference, of_groups),
        }
    return found


def _line(question: EvalQuestion, answers: Sequence[AnswerRecord]) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.question,
        "category": question.category,
        "group": _group(question),
        "expected": list(question.answers),
        "modes": {
            a.mode: {
                "answer": a.answer,
                "score": a.scores["score"],
                "positions": a.positions,
                "rounds": a.rounds,
                **({"error": a.error} if a.error else {}),
            }
            for a in answers
        },
    }
