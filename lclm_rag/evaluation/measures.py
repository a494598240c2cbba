"""The rules by which an answer is scored.

Every rule gives a share from 0 to 1. Sources:

- exact_match, f1: SQuAD's evaluation script (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250).
- no_answer: SQuAD 2.0's questions without an answer (Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822).
- rouge_l: ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013), by the package rouge-score.
- contains: RULER (Hsieh et al. 2024, https://arxiv.org/abs/2404.06654), `string_match_all` if the question
  asks for all answers, else `string_match_part`.
- number: GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168), as it is commonly scored for chat
  models.
- choice: LongHealth (Adams et al. 2024, https://arxiv.org/abs/2401.14490), a letter.
- verbatim: ours, for strings that must be copied sign by sign.
- The others: LongBench (Bai et al. 2023, https://arxiv.org/abs/2308.14508), `metrics.py` and `eval.py`.
"""

from __future__ import annotations

import re
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from difflib import SequenceMatcher
from functools import cache
from importlib import import_module
from typing import Any, cast, get_args

from lclm_rag.evaluation.questions import EvalQuestion, Measure

__all__ = [
    "check_answers",
    "check_measure",
    "choice",
    "classification",
    "code_similarity",
    "contains",
    "exact_match",
    "f1_zh",
    "no_answer",
    "number",
    "retrieval",
    "rouge_l",
    "rouge_l_zh",
    "score",
    "share_of_numbers",
    "token_f1",
    "verbatim",
]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
)
_LETTER_FIRST = re.compile(r"[\s*(\[]*([A-H])(?=[\s*]*(?:[).\]:,;]|$|\n))")
_LETTER_CHOSEN = re.compile(r"(?i:answer(?: is)?|(?:option|choice) is)[\s:*(\[]+([A-H])\b")
# "A" before a word in lower case is an article.
_LETTER_ALONE = re.compile(r"\b(A(?! [a-z])|[B-H])\b")
# What LongBench drops from Chinese words: ASCII punctuation, the same in full width, and the marks below.
_PUNCTUATION_ZH = re.compile(
    r"[\s!-/:-@\[-`{-~！-－／：-＠［-｀｛-～"
    r"\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\u3001-\u3003\u300b-\u3011\u3014-\u301f"
    r"\u3030\u303e\u303f\ufe4f\uff5f-\uff64]"
)
_REFUSAL = re.compile(
    r"(?i)\b(?:unanswerable|unknown|no (?:answer|information|such|mention)"
    r"|cannot (?:be )?(?:answer|tell|say|know)"
    r"|(?:don['’]t|do not|doesn['’]t|does not) (?:know|say|mention|state|give)"
    r"|not (?:stated|mentioned|given|provided|specified|found|available|known|in the))"
)
_PARAGRAPH = re.compile(r"(?:Paragraph |段落)([0-9]+)")


def exact_match(answer: str, expected: str) -> bool:
    """Whether both texts have the same words; case, punctuation and articles are ignored, as SQuAD does it.

    So 4.3 equals 43: take `verbatim` where a sign decides.
    """
    return _words(answer) == _words(expected)


def verbatim(answer: str, expected: str) -> bool:
    """Whether the texts are equal, ignoring case, white space and full stops at the end."""

    def plain(text: str) -> str:
        return " ".join(text.casefold().split()).rstrip(".")

    return plain(answer) == plain(expected)


def no_answer(answer: str, expected: str = "") -> bool:
    """Whether the answer is empty or says that there is none, in English ("not stated", "I don't know").

    Args:
        answer: The generated answer.
        expected: Not looked at: any way of saying so is right.
    """
    return not answer.strip() or _REFUSAL.search(answer) is not None


def token_f1(answer: str, expected: str) -> float:
    """The F1 score of the words in both texts; 1 if neither has a word.

    Case, punctuation and articles are ignored.
    """
    return _shared_f1(_words(answer), _words(expected))


def contains(answer: str, expected: str) -> bool:
    """Whether the answer contains the expected text, ignoring case."""
    return expected.lower() in answer.lower()


def number(answer: str, expected: str) -> bool:
    """Whether the last numbers of both texts are equal, as 1,200 and $1200.00 are; False without a number."""
    last = _last_number(answer)
    return last is not None and last == _last_number(expected)


def choice(answer: str, expected: str) -> bool:
    """Whether the answer chooses the expected letter, A to H.

    The letter that counts is the one that the answer begins with ("B", "(B) ...", "**B.** ..."); else the
    last one that follows "answer", "answer is", "option is" or "choice is"; else the only one that stands
    alone in the answer.
    """
    if first := _LETTER_FIRST.match(answer):
        return first.group(1) == expected.strip()
    if chosen := _LETTER_CHOSEN.findall(answer):
        return bool(chosen[-1] == expected.strip())
    return set(_LETTER_ALONE.findall(answer)) == {expected.strip()}


def classification(answer: str, expected: str, classes: Sequence[str]) -> float:
    """1 divided by the number of classes that the answer names; 0 if the expected one is not among them.

    Case counts. A class whose name is part of the expected one's does not count as named.

    Args:
        answer: The generated answer.
        expected: The right class.
        classes: The names of all classes, the right one among them.

    Returns:
        A share from 0 to 1.
    """
    named = [c for c in classes if c in answer and (c == expected or c not in expected)]
    return 1 / len(named) if expected in named else 0.0


def share_of_numbers(answer: str, expected: str) -> float:
    """The share of the answer's numbers (runs of digits) that equal the expected one; 0 without a number."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(expected.strip()) / len(numbers) if numbers else 0.0


def retrieval(answer: str, expected: str) -> float:
    """The share of the answer's numbers that equal the expected paragraph's.

    Args:
        answer: The generated answer.
        expected: The right paragraph, such as "Paragraph 7" or "段落7".

    Returns:
        A share from 0 to 1, as `share_of_numbers` gives it.

    Raises:
        ValueError: When `expected` names no paragraph.
    """
    named = _PARAGRAPH.search(expected)
    if named is None:
        raise ValueError(f"{expected!r} names no paragraph; write it as 'Paragraph 7' or '段落7'.")
    return share_of_numbers(answer, named.group(1))


def code_similarity(answer: str, expected: str) -> float:
    """How similar the answer's first line of code is to the expected line, in whole hundredths.

    The first line of code is the first line without a backtick, "#" or "//".
    """
    lines = answer.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(m in line for m in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, code, expected).ratio()) / 100


def f1_zh(answer: str, expected: str) -> float:
    """The F1 score of the Chinese words in both texts, ignoring case and punctuation.

    Raises:
        ImportError: When jieba is not installed.
    """
    return _shared_f1(_words_zh(answer), _words_zh(expected))


def rouge_l(answer: str, expected: str) -> float:
    """The F1 score of ROUGE-L over the texts' words, without stemming, as the package rouge-score gives it.

    LongBench's own figures come from another package (`rouge` 1.0.1), which compares sentence by sentence and
    gives somewhat higher ones.

    Raises:
        ImportError: When rouge-score is not installed.
    """
    return float(_rouge(_any_words).score(expected, answer)["rougeL"].fmeasure)


def rouge_l_zh(answer: str, expected: str) -> float:
    """`rouge_l` over Chinese words.

    Raises:
        ImportError: When jieba or rouge-score is not installed.
    """
    return float(_rouge(_words_zh).score(expected, answer)["rougeL"].fmeasure)


def score(question: EvalQuestion, answer: str) -> dict[str, float]:
    """Score an answer to a question by its own measure and those that all questions have.

    Args:
        question: The question with its expected answers. If it has several, the score is the best over them,
            or their mean if it asks for all of them (`all_answers`).
        answer: The generated answer.

    Returns:
        "exact_match", "verbatim", "f1", "contains" and "score" (the question's own measure), each from 0
        to 1.

    Raises:
        ValueError: When the question has no answers.
        ImportError: When a package that the measure needs is missing.
    """
    if not question.answers:
        raise ValueError(f"Question {question.id!r} has no answers; there is nothing to score by.")
    rules = {
        "exact_match": exact_match,
        "verbatim": verbatim,
        "f1": token_f1,
        "contains": contains,
        "score": _rule(question),
    }
    scores = {}
    for name, rule in rules.items():
        each = [float(rule(answer, expected)) for expected in question.answers]
        scores[name] = sum(each) / len(each) if question.all_answers else max(each)
    return scores


def check_measure(measure: str) -> Measure:
    """Return the measure after checking that it exists and can be computed here.

    Args:
        measure: The name of a measure, one of `Measure`.

    Raises:
        ValueError: When there is no such measure.
        ImportError: When a package that the measure needs is missing.
    """
    if measure not in get_args(Measure):
        names = ", ".join(get_args(Measure))
        raise ValueError(f"There is no measure {measure!r}; take one of {names}.")
    if measure.endswith("_zh"):
        _segmenter()
    if measure.startswith("rouge"):
        _rouge(_any_words)
    return cast(Measure, measure)


def check_answers(question: EvalQuestion) -> None:
    """Check that the question's measure can score an answer as right.

    Raises:
        ValueError: When by its measure no answer to the question could be right: a choice without a letter, a
            number without digits, a class that is not among the classes; or when any answer could: an exact
            match with nothing but articles and punctuation.
    """
    if question.measure == "exact_match" and not all(map(_words, question.answers)):
        raise ValueError(
            "an exact match ignores punctuation and articles, and an answer has nothing else; take the "
            "measure 'verbatim'."
        )
    if question.measure not in ("choice", "number", "count", "retrieval", "classification"):
        return
    rule = _rule(question)
    if not any(rule(expected, expected) for expected in question.answers):
        raise ValueError(
            f"by the measure {question.measure!r} no answer is right where {question.answers[0]!r} is "
            "expected; mend the answer or take another measure."
        )


def _rule(question: EvalQuestion) -> Callable[[str, str], float]:
    if question.measure == "classification":
        return lambda answer, expected: classification(
            _first_line(answer), expected, question.classes
        )
    return _RULES[question.measure]


def _first_line(answer: str) -> str:
    """The first line: LongBench scores no more on tasks with examples, which models tend to continue."""
    return answer.lstrip("\n").split("\n")[0]


_RULES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "verbatim": verbatim,
    "no_answer": no_answer,
    "f1": token_f1,
    "contains": contains,
    "number": number,
    "choice": choice,
    "f1_first_line": lambda answer, expected: token_f1(_first_line(answer), expected),
    "f1_zh": f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_first_line": lambda answer, expected: rouge_l(_first_line(answer), expected),
    "rouge_l_zh": rouge_l_zh,
    "retrieval": retrieval,
    "count": share_of_numbers,
    "code_similarity": code_similarity,
}


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _any_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _words_zh(text: str) -> list[str]:
    bare = (_PUNCTUATION_ZH.sub("", word.lower()) for word in _cut(text))
    return [word for word in bare if word]


def _shared_f1(answer: Sequence[str], expected: Sequence[str]) -> float:
    if not answer or not expected:
        return float(len(answer) == len(expected))
    shared = (Counter(answer) & Counter(expected)).total()
    return 2 * shared / (len(answer) + len(expected))


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace("$", "").replace(",", "")) if numbers else None


class _Tokenizer:
    """As rouge-score takes one; its own knows no letters but a to z."""

    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self.tokenize = tokenize


@cache
def _rouge(tokenize: Callable[[str], list[str]]) -> Any:
    try:
        rouge_scorer = import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise ImportError(
            "ROUGE needs the package rouge-score: pip install 'lclm-rag[eval]'."
        ) from error
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Tokenizer(tokenize))


@cache
def _segmenter() -> Any:
    try:
        jieba = import_module("jieba")
    except ImportError as error:
        raise ImportError(
            "Scoring by Chinese words needs jieba: pip install 'lclm-rag[eval]'."
        ) from error
    jieba.setLogLevel("WARNING")
    segmenter = jieba.Tokenizer()
    # jieba's cache is a marshal file in the shared temporary folder, where other users could have written it.
    with tempfile.TemporaryDirectory() as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    return segmenter


def _cut(text: str) -> list[str]:
    return list(_segmenter().cut(text, cut_all=False))
