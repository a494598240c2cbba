"""Needles in a haystack: RULER's eight retrieval tasks, generated from a seed at any context length.

The tasks, the sentences of the needles, the noise, the question and the counting rules are those of RULER
(Hsieh et al. 2024, https://arxiv.org/abs/2404.06654; `niah.py`, `constants.py` and `synthetic.yaml` of
https://github.com/NVIDIA/RULER). The differences:

- The "essay" haystack. RULER hides needles in Paul Graham's essays, which cannot be shipped; here it is
  made-up prose (`filler_prose`) unless a file of essays is given. Scores on made-up prose cannot be compared
  with scores on RULER's essays.
- The words of the keys (adjective-noun) are our own list. Keys and values never repeat within a context, so
  that no question has two answers by chance.
- Essays grow sentence by sentence until no further one fits; in RULER they grow by words. (The other
  haystacks grow by paragraphs and by needles, as in RULER.)
- RULER's opening sentences and its answer prefix count towards the length, as in RULER, but are not part of
  the question: a prompt made from passages and a question has no place for them. `ruler_prompt` has both.
"""

from __future__ import annotations

import itertools
import random
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.datasets.filler_prose import ADJECTIVES, NOUNS, filler_sentences
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet
from lclm_rag.types import Document

__all__ = ["NEEDLE_TASKS", "NeedleTask", "needle_questions", "ruler_prompt"]

_ANSWER_TOKENS = 128
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
# Keyed by whether the question has one answer. Scores depend on the wording, which is RULER's.
_OPENING = {
    True: "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.",
    False: "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.",
}
_QUESTION = {
    True: "What is the special magic {kind} for {query} mentioned in the provided text?",
    False: "What are all the special magic {kind} for {query} mentioned in the provided text?",
}
_ANSWER_PREFIX = {
    True: " The special magic {kind} for {query} mentioned in the provided text is",
    False: " The special magic {kind} for {query} mentioned in the provided text are",
}
# 40 depths from 0 to 1, in whole hundredths.
_DEPTHS = tuple(round(100 * i / 39) / 100 for i in range(40))


@dataclass(frozen=True)
class NeedleTask:
    """What is hidden in which haystack.

    Attributes:
        haystack: "noise" is one paragraph repeated, "essay" is prose, "needle" is needles that no question is
            about.
        key: What the keys are made of.
        value: What the values are made of.
        keys: How many keys there are.
        values: How many needles each key has.
        queries: How many of the keys the question is about.
    """

    haystack: Literal["noise", "essay", "needle"]
    key: Literal["words", "uuids"] = "words"
    value: Literal["numbers", "uuids"] = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLE_TASKS: Mapping[str, NeedleTask] = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("essay"),
    "niah_single_3": NeedleTask("essay", value="uuids"),
    "niah_multikey_1": NeedleTask("essay", keys=4),
    "niah_multikey_2": NeedleTask("needle"),
    "niah_multikey_3": NeedleTask("needle", key="uuids", value="uuids"),
    "niah_multivalue": NeedleTask("essay", values=4),
    "niah_multiquery": NeedleTask("essay", keys=4, queries=4),
}


def needle_questions(
    count_tokens: Callable[[str], int],
    *,
    tasks: Sequence[str] = tuple(NEEDLE_TASKS),
    context_lengths: Sequence[int] = (4096,),
    questions_each: int = 10,
    seed: int = 0,
    essays: Path | None = None,
) -> EvalSet:
    """Make a set with `questions_each` questions for each task and length, each with its own document.

    The same arguments give the same set, and a larger `questions_each` only adds to it.

    Args:
        count_tokens: Counts the tokens of a text by the decoder's tokenizer.
        tasks: Names from `NEEDLE_TASKS`.
        context_lengths: The tokens that RULER's whole prompt and the answer (128) take together, as RULER
            counts.
        questions_each: Questions for each task and length, at least 1.
        seed: Seed of the keys, values and haystacks.
        essays: A UTF-8 text to hide needles in, repeated if it is too short; None for made-up prose.

    Raises:
        ValueError: When a task is unknown, `questions_each` is below 1, or the needles do not fit into a
            length.
        EvaluationError: When `essays` cannot be read.
    """
    if unknown := [name for name in tasks if name not in NEEDLE_TASKS]:
        raise ValueError(f"There is no task {unknown[0]!r}; take of {', '.join(NEEDLE_TASKS)}.")
    if questions_each < 1:
        raise ValueError("questions_each must be at least 1.")
    prose, source = _prose(essays, seed)
    questions: list[EvalQuestion] = []
    documents: list[Document] = []
    for name, length in itertools.product(dict.fromkeys(tasks), dict.fromkeys(context_lengths)):
        for index in range(questions_each):
            rng = random.Random(f"{seed}/{name}/{length}/{index}")
            hidden = _Hidden(NEEDLE_TASKS[name], rng, prose)
            category = f"{name}_{length}"
            id_ = f"{category}/{index}"
            documents.append(Document(id_, hidden.fill(count_tokens, length, name)))
            questions.append(
                EvalQuestion(
                    id=id_,
                    question=hidden.question,
                    answers=hidden.answers,
                    document_ids=(id_,),
                    category=category,
                    all_answers=True,
                    measure="contains",
                    max_tokens=_ANSWER_TOKENS,
                )
            )
    # The documents depend on the tokenizer too, so the settings hold a hash of their texts.
    texts = xxhash.xxh3_128()
    for document in documents:
        texts.update(document.text.encode("utf-8", "surrogatepass"))
    settings = {
        "seed": seed,
        "tasks": list(dict.fromkeys(tasks)),
        "context_lengths": list(dict.fromkeys(context_lengths)),
        "questions_each": questions_each,
        "essays": source,
        "texts_xxh3_128": texts.hexdigest(),
    }
    return EvalSet("ruler", questions, documents, whole_documents=True, settings=settings)


def ruler_prompt(context: str, question: str) -> str:
    """RULER's whole prompt for a needle question, including its answer prefix.

    Args:
        context: The question's document.
        question: The question, as `needle_questions` words it.
    """
    single = question.startswith("What is ")
    before = "What is the special magic " if single else "What are all the special magic "
    kind, _, query = question.removeprefix(before).partition(" for ")
    query = query.removesuffix(" mentioned in the provided text?")
    opening = _OPENING[single].format(kind=kind)
    return (
        f"{opening}\n{context}\n{question}{_ANSWER_PREFIX[single].format(kind=kind, query=query)}"
    )


class _Hidden:
    """The needles of one question and their places in a haystack of any size."""

    def __init__(
        self, task: NeedleTask, rng: random.Random, prose: Callable[[int], list[str]]
    ) -> None:
        self._task = task
        self._rng = rng
        self._drawn: set[str] = set()
        values = {
            self._new(task.key): [self._new(task.value) for _ in range(task.values)]
            for _ in range(task.keys)
        }
        needles = [self._needle(key, value) for key in values for value in values[key]]
        queries = rng.sample(list(values), task.queries)
        depths = (
            rng.sample(_DEPTHS, len(needles))
            if task.haystack == "essay"
            else [rng.random() for _ in needles]
        )
        # Inserted from the end, so that one needle does not shift the place of the next.
        self._placed = sorted(zip(depths, needles, strict=True), reverse=True)
        self.answers = tuple(value for key in queries for value in values[key])
        single = len(self.answers) == 1
        *others, last = queries
        query = f"{', '.join(others)}, and {last}" if others else last
        kind = task.value.removesuffix("s") if single else task.value
        self.question = _QUESTION[single].format(kind=kind, query=query)
        if task.haystack == "essay":
            self._haystack = prose
        else:
            self._haystack = _first_of(
                itertools.repeat(_NOISE) if task.haystack == "noise" else self._distractors()
            )

    def fill(self, count_tokens: Callable[[str], int], length: int, name: str) -> str:
        """The needles in the largest haystack with which prompt and answer take at most `length` tokens."""

        def tokens(size: int) -> int:
            prompt = ruler_prompt(self._text(size), self.question)
            return count_tokens(prompt) + _ANSWER_TOKENS

        size = _largest_size(tokens, length)
        if not size:
            raise ValueError(
                f"A context of {length} tokens is too short for {name}, which needs {tokens(1)}; ask for a "
                "longer one."
            )
        return self._text(size)

    def _text(self, size: int) -> str:
        pieces = self._haystack(size)
        for depth, needle in self._placed:
            pieces.insert(int(size * depth), needle)
        return (" " if self._task.haystack == "essay" else "\n").join(pieces)

    def _distractors(self) -> Iterator[str]:
        while True:
            yield self._needle(self._new(self._task.key), self._new(self._task.value))

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self._task.value, key=key, value=value)

    def _new(self, kind: str) -> str:
        """A key or a value that this context does not contain yet."""
        # Half of the draws are keys, so this allows about 55,000 needles: a million tokens and more.
        if len(self._drawn) > len(ADJECTIVES) * len(NOUNS):
            raise ValueError(
                "There are not enough words for as many needles; ask for less context."
            )
        while (drawn := _draw(kind, self._rng)) in self._drawn:
            pass
        self._drawn.add(drawn)
        return drawn


def _draw(kind: str, rng: random.Random) -> str:
    match kind:
        case "numbers":
            return str(rng.randint(1_000_000, 9_999_999))
        case "uuids":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _largest_size(tokens: Callable[[int], int], most: int) -> int:
    """The largest size that takes at most `most` tokens; 0 if size 1 takes more.

    Tokens must grow with the size.
    """
    fits, used = 1, tokens(1)
    if used > most:
        return 0
    too_large = most + 1
    each = max(1.0, (tokens(33) - used) / 32)
    while too_large - fits > 1:
        # Each unit of size takes about as many tokens: extrapolate to the size at which they run out.
        size = min(max(fits + int((most - used) / each), fits + 1), too_large - 1)
        needed = tokens(size)
        each = max(1.0, (needed - used) / (size - fits))
        if needed <= most:
            fits, used = size, needed
        else:
            too_large = size
    return fits


def _prose(essays: Path | None, seed: int) -> tuple[Callable[[int], list[str]], str]:
    """The prose haystack as a function of its size in sentences, and the name of its source."""
    if essays is None:
        return _first_of(filler_sentences(seed)), "made-up prose"
    try:
        raw = essays.read_bytes()
        text = " ".join(raw.decode("utf-8").split())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EvaluationError(f"{essays}: cannot be read ({reason}); check the file.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{essays}: not UTF-8; convert the file.") from error
    if not text:
        raise EvaluationError(f"{essays}: holds no text; give a file of essays.")
    sentences = re.split(r"(?<=[.!?]) ", text)
    return _first_of(itertools.cycle(sentences)), f"xxh3_128:{xxhash.xxh3_128_hexdigest(raw)}"


def _first_of(pieces: Iterator[str]) -> Callable[[int], list[str]]:
    """A function from a size to the first pieces of the iterator, as a new list at every call."""
    known: list[str] = []

    def first(size: int) -> list[str]:
        known.extend(itertools.islice(pieces, max(0, size - len(known))))
        return known[:size]

    return first
