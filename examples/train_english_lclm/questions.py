"""Questions by rule about the paragraphs: each answer is a span of one of the passages.

    python examples/train_english_lclm/questions.py --work runs/english

It reads `texts.jsonl` and `held_out.jsonl`, and writes `questions.jsonl` and `held_out_questions.jsonl`. The
same texts give the same questions.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from paragraphs import read_texts, write_lines
from rich.progress import track
from rules import GAPS, RULES, Asked, sentences

PER_PARAGRAPH = 3
MOST_PASSAGES = 4
GAP_SHARE = 0.4
"""How often a gap is asked for where another rule has asked already."""
NAME_SHARE = 0.4
"""How often a name is asked for: nearly every sentence has one, and many can be guessed."""


class Record(TypedDict):
    """A question as `lclm_rag.training` reads it, with the rule and the package that it is from."""

    passages: list[str]
    number: int
    question: str
    answer: str
    rule: str
    source: str


def asked_about(text: str) -> list[tuple[str, Asked]]:
    """Ask what the rules can ask about a paragraph.

    Args:
        text: The paragraph.

    Returns:
        At most `PER_PARAGRAPH` rules and questions: at most one of each rule, and no answer twice.
    """
    rng = random.Random(text)
    chosen: list[tuple[str, Asked]] = []
    for rules, share in ((RULES, 1.0), (GAPS, GAP_SHARE)):
        names = sorted(rules)
        rng.shuffle(names)
        for name in names:
            found = [asked for sentence in sentences(text) for asked in rules[name](sentence)]
            if not found or (chosen and rng.random() > share):
                continue
            if name == "name" and rng.random() > NAME_SHARE:
                continue
            asked = rng.choice(found)
            if asked.answer not in (other.answer for _, other in chosen):
                chosen.append((name, asked))
    return chosen[:PER_PARAGRAPH]


def by_source(texts: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Sort paragraphs by the package that they are from.

    Args:
        texts: The paragraphs, each with `text` and `source`.

    Returns:
        The texts of each package, in their order.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for each in texts:
        found[each["source"]].append(each["text"])
    return found


def records(text: str, source: str, beside: Sequence[str]) -> Iterator[Record]:
    """Ask about a paragraph, beside others in which the answer does not stand.

    Args:
        text: The paragraph.
        source: The package that it is from.
        beside: The paragraphs of that package.

    Yields:
        The records.
    """
    for name, asked in asked_about(text):
        rng = random.Random(f"{asked.question}\n{text}")
        others = [rng.choice(beside) for _ in range(rng.randrange(MOST_PASSAGES))]
        passages = [o for o in dict.fromkeys(others) if o != text and asked.answer not in o]
        number = rng.randint(1, len(passages) + 1)
        passages.insert(number - 1, text)
        yield {
            "passages": passages,
            "number": number,
            "question": asked.question,
            "answer": asked.answer,
            "rule": name,
            "source": source,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Make questions about the paragraphs, by rule.")
    parser.add_argument("--work", type=Path, default=Path("runs/english"))
    work: Path = parser.parse_args().work
    for source, target in (("texts", "questions"), ("held_out", "held_out_questions")):
        texts = read_texts(work, source)
        beside = by_source(texts)
        made = [
            record
            for each in track(texts, target)
            for record in records(each["text"], each["source"], beside[each["source"]])
        ]
        write_lines(work / f"{target}.jsonl", made)
        print(f"{target}: {len(made):,}")
        for name, count in Counter(record["rule"] for record in made).most_common():
            print(f"  {name:15}{count:8,}")


if __name__ == "__main__":
    main()
