"""Answer questions about notes with a checkpoint, each from latents, latents and expansion, text and nothing.

    lclm-rag train export runs/english/run runs/english/checkpoint
    python examples/train_english_lclm/measure.py --checkpoint runs/english/checkpoint \
        --out examples/train_english_lclm/notes_answers.json

Once with the note that has the answer given, once with the best four of all notes, found by words. Latents
are int4, as they are by default; those of bf16 and int8 are asked beside them. The file has every answer, the
shares with intervals, and what each codec loses and wins against bf16.
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

from paragraphs import read_lines
from rich.progress import track

from lclm_rag import Answer, Document, KnowledgeBase, field
from lclm_rag.evaluation.intervals import mcnemar, wilson_interval
from lclm_rag.evaluation.measures import contains, exact_match
from lclm_rag.store import CodecName

HERE = Path(__file__).parent
Context = Literal["latents", "text", "none"]
Expand = Literal["never", "auto"]
CODECS: tuple[CodecName, ...] = ("bf16", "int8", "int4")
USED: CodecName = "int4"

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
        codec: Of the latents.
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

    codec: CodecName
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


def answers(
    kb: KnowledgeBase, rows: Sequence[Mapping[str, Any]], codec: CodecName
) -> Iterator[Asked]:
    """Answer every question in every way; with another codec than `USED` from latents alone.

    Args:
        kb: The notes, each with its number as metadata `note`.
        rows: The lines of the file of questions, each with `note`.
        codec: That of `kb`.

    Yields:
        The answers.
    """
    for given in (True, False):
        passages = "given" if given else "top 4"
        for way, (context, expand) in WAYS.items():
            if codec != USED and way != "latents":
                continue
            for row in track(rows, description=f"{codec}, {passages}: {way}"):
                answer = kb.query(
                    row["question"],
                    1 if given else 4,
                    field("note") == row["note"] if given else None,
                    context=context,
                    expand=expand,
                )
                yield scored(answer, row, codec, passages, way)


def scored(
    answer: Answer, row: Mapping[str, Any], codec: CodecName, passages: str, way: str
) -> Asked:
    """Score an answer.

    Args:
        answer: The answer.
        row: The question's line.
        codec: Of the latents.
        passages: "given" or "top 4".
        way: One of `WAYS`.

    Returns:
        The answer with its scores.
    """
    return Asked(
        codec,
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
        For each kind of passages, way and codec: n, the shares with Wilson's 95% intervals, the mean of the
        positions and the median time to the first token in milliseconds.
    """
    rows: list[dict[str, Any]] = []
    for (passages, way, codec), group in grouped(asked).items():
        row: dict[str, Any] = {"passages": passages, "way": way, "codec": codec, "n": len(group)}
        for name in ("contained", "exact"):
            right = sum(getattr(each, name) for each in group)
            row[name] = [right / len(group), *wilson_interval(right, len(group))]
        times = [each.first_token for each in group if each.first_token is not None]
        row["positions"] = mean(each.positions for each in group)
        row["first_token_ms"] = 1000 * median(times) if times else None
        rows.append(row)
    return rows


def codec_losses(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Compare the answers from latents of each codec with those of bf16, question by question.

    Args:
        asked: The answers.

    Returns:
        For each kind of passages and codec but bf16: how many answers that contained a right one with bf16
        do not any more (lost), how many do only now (won), and the p value of McNemar's test.
    """
    groups = grouped(asked)
    rows: list[dict[str, Any]] = []
    for (passages, way, codec), group in groups.items():
        if way == "latents" and codec != CODECS[0]:
            pairs = list(zip(groups[passages, way, CODECS[0]], group, strict=True))
            lost = sum(before.contained and not after.contained for before, after in pairs)
            won = sum(after.contained and not before.contained for before, after in pairs)
            row = {"passages": passages, "codec": codec, "lost": lost, "won": won}
            rows.append({**row, "p": mcnemar(won, lost)})
    return rows


def grouped(asked: Sequence[Asked]) -> dict[tuple[str, str, CodecName], list[Asked]]:
    """The answers by kind of passages, way and codec, in the order of the questions."""
    groups: dict[tuple[str, str, CodecName], list[Asked]] = defaultdict(list)
    for each in asked:
        groups[each.passages, each.way, each.codec].append(each)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--questions", type=Path, default=HERE / "notes.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = read_lines(options.questions)
    numbers = {
        text: number
        for number, text in enumerate(dict.fromkeys(row["passages"][0] for row in rows))
    }
    for row in rows:
        row["note"] = numbers[row["passages"][0]]
    notes = [Document(f"note-{number}", text, {"note": number}) for text, number in numbers.items()]
    asked: list[Asked] = []
    for codec in CODECS:
        with (
            tempfile.TemporaryDirectory() as folder,
            KnowledgeBase.create(
                Path(folder) / "kb", checkpoint=options.checkpoint, codec=codec
            ) as kb,
        ):
            kb.add(notes)
            asked.extend(answers(kb, rows, codec))
    found: dict[str, Any] = {"checkpoint": Path(options.checkpoint).name, "summary": summary(asked)}
    found["codecs"] = codec_losses(asked)
    found["answers"] = [vars(each) for each in asked]
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in (*found["summary"], *found["codecs"]):
        print(row)


if __name__ == "__main__":
    main()
