"""Answer questions about notes with a checkpoint, each from latents, latents and expansion, text and nothing.

    lclm-rag train export runs/english/run runs/english/checkpoint
    python examples/train_english_lclm/measure.py --checkpoint runs/english/checkpoint \
        --out examples/train_english_lclm/notes_answers.json

Once with the note that has the answer given, once with the best four of all notes, found by words. The file
has every answer, and the shares with intervals.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from rich.progress import track

from lclm_rag import Answer, Document, KnowledgeBase, field
from lclm_rag.evaluation.intervals import wilson_interval
from lclm_rag.evaluation.measures import contains, exact_match

HERE = Path(__file__).parent
Context = Literal["latents", "text", "none"]
Expand = Literal["never", "auto"]

WAYS: dict[str, tuple[Context, Expand]] = {
    "latents": ("latents", "never"),
    "latents, expanded": ("latents", "auto"),
    "text": ("text", "never"),
    "nothing": ("none", "never"),
}


@dataclass(frozen=True)
class Asked:
    """An answer and its scores.

    Attributes:
        passages: "given" or "top 4".
        way: One of `WAYS`.
        genre: Of the note.
        question: The question.
        expected: The answers that count.
        answer: What was answered.
        contained: Whether it contains one of them.
        exact: Whether it is one of them, by SQuAD's rule.
        positions: Of the prompt; of the last one if there were several.
        first_token: Seconds to the first token of the first round; None if nothing was decoded.
    """

    passages: str
    way: str
    genre: str
    question: str
    expected: Sequence[str]
    answer: str
    contained: bool
    exact: bool
    positions: int
    first_token: float | None


def answers(kb: KnowledgeBase, rows: Sequence[Mapping[str, Any]]) -> Iterator[Asked]:
    """Answer every question in every way.

    Args:
        kb: The notes, each with its text as metadata `note`, by number.
        rows: The lines of the file of questions, each with `note`.

    Yields:
        The answers.
    """
    for given in (True, False):
        for way, (context, expand) in WAYS.items():
            for row in track(rows, description=f"{'given' if given else 'top 4'}: {way}"):
                answer = kb.query(
                    row["question"],
                    1 if given else 4,
                    field("note") == row["note"] if given else None,
                    context=context,
                    expand=expand,
                )
                yield scored(answer, row, "given" if given else "top 4", way)


def scored(answer: Answer, row: Mapping[str, Any], passages: str, way: str) -> Asked:
    """Score an answer.

    Args:
        answer: The answer.
        row: The question's line.
        passages: "given" or "top 4".
        way: One of `WAYS`.

    Returns:
        The answer with its scores.
    """
    return Asked(
        passages,
        way,
        row["genre"],
        row["question"],
        row["answers"],
        answer.text,
        any(contains(answer.text, expected) for expected in row["answers"]),
        any(exact_match(answer.text, expected) for expected in row["answers"]),
        answer.usage.positions,
        answer.timings.first_token,
    )


def summary(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Sum the scores up.

    Args:
        asked: The answers.

    Returns:
        For each kind of passages and way: n, the shares with Wilson's 95% intervals, the mean of the
        positions and the median time to the first token in milliseconds.
    """
    groups: dict[tuple[str, str], list[Asked]] = defaultdict(list)
    for each in asked:
        groups[each.passages, each.way].append(each)
    rows: list[dict[str, Any]] = []
    for (passages, way), group in groups.items():
        row: dict[str, Any] = {"passages": passages, "way": way, "n": len(group)}
        for name in ("contained", "exact"):
            right = sum(getattr(each, name) for each in group)
            row[name] = [right / len(group), *wilson_interval(right, len(group))]
        times = [each.first_token for each in group if each.first_token is not None]
        row["positions"] = mean(each.positions for each in group)
        row["first_token_ms"] = 1000 * median(times) if times else None
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--questions", type=Path, default=HERE / "notes.jsonl")
    parser.add_argument("--codec", default="int4")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.questions.read_text(encoding="utf-8").splitlines()]
    numbers = {
        text: number
        for number, text in enumerate(dict.fromkeys(row["passages"][0] for row in rows))
    }
    for row in rows:
        row["note"] = numbers[row["passages"][0]]
    with (
        tempfile.TemporaryDirectory() as folder,
        KnowledgeBase.create(
            Path(folder) / "kb", checkpoint=options.checkpoint, codec=options.codec
        ) as kb,
    ):
        kb.add(
            [Document(f"note-{number}", text, {"note": number}) for text, number in numbers.items()]
        )
        asked = list(answers(kb, rows))
    found = {
        "checkpoint": Path(options.checkpoint).name,
        "codec": options.codec,
        "summary": summary(asked),
    }
    found["answers"] = [vars(each) for each in asked]
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in found["summary"]:
        print(row)


if __name__ == "__main__":
    main()
