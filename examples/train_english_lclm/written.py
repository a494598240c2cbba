"""Put notes of `written.jsonl` beside one another and beside paragraphs, and ask about them.

    python examples/train_english_lclm/written.py --work runs/english

`everyday.py` fills templates, and `questions.py` and `spans.py` ask by rule. Here notes and questions were
written one by one, as people write and ask. This program writes `written.jsonl` into the work folder:
passages, with up to eight questions. The same texts and seed give the same records.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everyday import MOST_PASSAGES, Asked, Record, make_record, write_records
from paragraphs import read_lines
from rich.progress import track

HERE = Path(__file__).parent
ROUNDS = 20
"""How often each note comes, every time beside others and with other questions."""


def make_records(
    notes: Sequence[dict[str, Any]], paragraphs: Sequence[str], rounds: int, seed: int
) -> list[Record]:
    """Group notes, and sample questions about them.

    Args:
        notes: Each with its `text` and its `questions`, which have `question` and `answer`.
        paragraphs: Paragraphs that lie beside some of them.
        rounds: How often each note comes.
        seed: Of the draw.

    Returns:
        The records. Each has a note or more, in a random order, and at most `MOST_PASSAGES` passages.
    """
    rng = random.Random(seed)
    records: list[Record] = []
    for _ in track(range(rounds), description="Written notes"):
        left = rng.sample(notes, len(notes))
        while left:
            group: list[dict[str, Any]] = [left.pop()]
            for _ in range(rng.choice([0, 0, 1, 1, 2, MOST_PASSAGES - 1])):
                if left and rng.random() < 0.6:
                    group.append(left.pop())
                else:
                    group.append({"text": rng.choice(paragraphs), "questions": []})
            rng.shuffle(group)
            asked = [
                Asked(question=each["question"], answer=each["answer"], number=number)
                for number, note in enumerate(group, 1)
                for each in note["questions"]
            ]
            passages = [note["text"] for note in group]
            records.append(make_record(passages, asked, "written", rng))
    return records


def main() -> None:
    notes = read_lines(HERE / "written.jsonl")
    write_records(
        __doc__ or "",
        "written",
        lambda paragraphs, seed: make_records(notes, paragraphs, ROUNDS, seed),
    )


if __name__ == "__main__":
    main()
