"""Questions about any words of the paragraphs, several to a record: what stands in a gap, or after a phrase.

    python examples/train_english_lclm/spans.py --work runs/english

It reads `texts.jsonl` and writes `spans.jsonl`. The rules of `rules.py` ask only where a sentence has a form
that they know; here nearly every sentence is asked about, so that the decoder learns to find its way in prose
of any kind. The same texts give the same questions.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paragraphs import read_texts, write_lines
from questions import by_source
from rich.progress import track
from rules import Asked, sentences
from start import FUNCTION_WORDS

MOST_PASSAGES = 3
MOST_QUESTIONS = 8
PER_PARAGRAPH = 5
LONGEST = 4
"""The most words of an answer, an article before them not counted."""
ARTICLES = set("the a an his her its their our your my no every each".split())
BEFORE = ARTICLES | set(
    "of to in for from with as at on into onto over under about by called between after before along across "
    "behind beside near within without towards among around against until since".split()
)
"""Words that a noun often follows; after others a span may be anything, and is asked for less often."""
OTHER_SHARE = 0.3
_FUNCTION = set(FUNCTION_WORDS) | BEFORE
_WORD = re.compile(r"\S+")
_ENDS = tuple(",.;:!?)”\"'’")


def _bare(word: str) -> str:
    return word.strip(",.;:!?()“”\"'‘’").lower()


def spans(sentence: str) -> Iterator[tuple[int, int]]:
    """Find spans of a sentence that an answer can be: runs of words that are no function words.

    Args:
        sentence: The sentence.

    Yields:
        Where each begins and ends.
    """
    run: list[re.Match[str]] = []
    for word in [*_WORD.finditer(sentence), None]:
        if word is not None and _bare(word[0]) not in _FUNCTION:
            run.append(word)
            if not word[0].endswith(_ENDS):
                continue
        if 1 <= len(run) <= LONGEST:
            start = run[0].start()
            yield start, start + len(sentence[start : run[-1].end()].rstrip("".join(_ENDS)))
        run = []


def asked_about(text: str) -> list[Asked]:
    """Ask about spans of a paragraph that stand in it once.

    Args:
        text: The paragraph.

    Returns:
        At most `PER_PARAGRAPH` questions.
    """
    rng = random.Random(f"spans {text}")
    found: list[Asked] = []
    for sentence in sentences(text):
        for start, end in spans(sentence):
            answer, left = sentence[start:end], sentence[:start].split()
            right = [] if sentence[end:].startswith(_ENDS) else sentence[end:].split()
            if text.count(answer) != 1 or not 3 <= len(answer) <= 40 or not answer[0].isalnum():
                continue
            if left and _bare(left[-1]) not in BEFORE and rng.random() > OTHER_SHARE:
                continue
            if left and left[-1].lower() in ARTICLES and rng.random() < 0.5:
                answer = f"{left.pop()} {answer}"
            if (question := _question(left, right, rng)) is not None:
                found.append(Asked(question, answer))
    rng.shuffle(found)
    return found[:PER_PARAGRAPH]


def _question(left: Sequence[str], right: Sequence[str], rng: random.Random) -> str | None:
    """Ask for what stands between two parts of a sentence; None if they say too little."""
    before = _before(left, rng.randint(4, 10))
    after = _after(right, rng.randint(3, 8))
    telling = [w for w in (*before, *after) if _bare(w) not in _FUNCTION]
    if len(telling) < 2:
        return None
    form = rng.random()
    if form < 0.5:
        words = " ".join([*before, rng.choice(["what", "what", "what", "who", "which"]), *after])
        return words[0].upper() + words[1:].rstrip(",.;:!?") + "?"
    if form < 0.65:
        return f"Which words are missing: {' '.join([*before, '___', *after])}"
    if form < 0.85 and len(before) >= 3:
        return f"What comes after “{' '.join(before[-4:])}”?"
    rng.shuffle(telling)
    return f"{' '.join(_bare(word) for word in telling[:4])}: what?"


def _before(words: Sequence[str], most: int) -> list[str]:
    """The last words, at most so many, and none of the clause before."""
    found: list[str] = []
    for word in words[: -most - 1 : -1]:
        if word.endswith(_ENDS):
            break
        found.insert(0, word)
    return found


def _after(words: Sequence[str], most: int) -> list[str]:
    """The first words, at most so many, and none of the clause that follows."""
    found: list[str] = []
    for word in words[:most]:
        found.append(word)
        if word.endswith(_ENDS):
            break
    return found


def records(text: str, source: str, beside: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Ask about a paragraph and, in the same record, about others beside it.

    Args:
        text: The paragraph.
        source: The package that it is from.
        beside: The paragraphs of that package.

    Yields:
        The record, if there is anything to ask.
    """
    rng = random.Random(f"record {text}")
    others = [rng.choice(beside) for _ in range(rng.randrange(MOST_PASSAGES))]
    passages = list(dict.fromkeys([text, *others]))
    rng.shuffle(passages)
    asked = [
        {"question": each.question, "answer": each.answer, "number": number}
        for number, passage in enumerate(passages, start=1)
        for each in asked_about(passage)
        if sum(each.answer in other for other in passages) == 1
    ]
    rng.shuffle(asked)
    if asked:
        yield {"passages": passages, "questions": asked[:MOST_QUESTIONS], "source": source}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make questions about any words of the paragraphs."
    )
    parser.add_argument("--work", type=Path, default=Path("runs/english"))
    work: Path = parser.parse_args().work
    texts = read_texts(work)
    beside = by_source(texts)
    made = [
        record
        for each in track(texts, "spans")
        for record in records(each["text"], each["source"], beside[each["source"]])
    ]
    write_lines(work / "spans.jsonl", made)
    print(f"spans: {len(made):,}, with {sum(len(each['questions']) for each in made):,} questions")


if __name__ == "__main__":
    main()
