"""Put notes of `written.jsonl` beside one another and beside paragraphs, and ask about them.

    python examples/train_english_lclm/written.py --work runs/english

`everyday.py` fills templates, and `questions.py` and `spans.py` ask by rule. Here notes and questions were
written one by one, as people write and ask. It writes `written.jsonl` into the work folder: passages, with
up to eight questions. The same texts and seed give the same records.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everyday import MOST_PASSAGES, MOST_QUESTIONS, Asked, Record
from paragraphs import write_lines
from rich.progress import track

HERE = Path(__file__).parent
ROUNDS = 20
"""How often each note comes, every time beside others and with other questions."""


def read_notes(path: Path) -> list[dict[str, Any]]:
    """Read notes.

    Args:
        path: A file of JSON lines with `text` and `questions`, a list of `question` and `answer`.

    Returns:
        The notes.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_records(
    notes: Sequence[dict[str, Any]], paragraphs: Sequence[str], rounds: int, seed: int
) -> list[Record]:
    """Group notes, and sample questions about them.

    Args:
        notes: As of `read_notes`.
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
            records.append(
                Record(
                    passages=[note["text"] for note in group],
                    questions=rng.sample(asked, min(len(asked), MOST_QUESTIONS)),
                    source="written",
                )
            )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="the folder of texts.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with (options.work / "texts.jsonl").open(encoding="utf-8") as file:
        paragraphs = [json.loads(line)["text"] for line in file]
    notes = read_notes(HERE / "written.jsonl")
    records = make_records(notes, paragraphs, ROUNDS, options.seed)
    write_lines(options.work / "written.jsonl", records)
    print(
        f"{len(records)} records of {len(notes)} notes, "
        f"with {sum(len(record['questions']) for record in records)} questions."
    )


if __name__ == "__main__":
    main()
