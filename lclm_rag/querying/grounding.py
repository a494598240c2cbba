"""Strings that must be exact: finding them, looking them up in sources, and questions that want one.

Latents blur what cannot be guessed from its neighbors. The paper (arXiv 2606.09659) says of its 16×
checkpoints that names and codes of more than about 8 characters come back as near misses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lclm_rag.types import Grounding

__all__ = ["exact_strings", "ground", "wants_exact_string"]


_QUOTED = re.compile(r'"([^"\n]+)"|“([^”\n]+)”|«([^»\n]+)»|`([^`\n]+)`')
_LINK = re.compile(r"https?://[^\s<>\"]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# The signs may be part of a code or a number; at its ends they belong to the sentence.
_WITH_DIGIT = re.compile(r"[\w.,:/\\#+\-–]*\d[\w.,:/\\#+\-–%]*")
_CAPITALS = re.compile(r"(?<!\w)[A-Z][A-Z-]{5,}(?!\w)")
_PASSAGE_MARK = re.compile(r"\[\d+(?:\s*,\s*\d+)*\]")
_LIST_NUMBER = re.compile(r"^\s*\d+[.)]\s", re.MULTILINE)
_THOUSANDS = re.compile(r"(?<=\d)[,\u00a0\u202f](?=\d{3}(?!\d))")
_AT_ENDS = ".,:;!?-–/\\+"


def exact_strings(text: str) -> list[str]:
    """Find the quoted strings, links, mail addresses, numbers and codes of a text.

    A code is a word with a digit in it, or one of at least six capitals. Passage marks such as [2] and the
    numbers of list items do not count.

    Args:
        text: The text.

    Returns:
        The strings in the order of the text, each once.
    """
    blank = _LIST_NUMBER.sub(_spaces, _PASSAGE_MARK.sub(_spaces, text))
    found: list[tuple[int, str]] = []
    for pattern in (_QUOTED, _LINK, _WITH_DIGIT, _CAPITALS):
        for match in pattern.finditer(blank):
            whole = next((g for g in match.groups() if g is not None), match.group())
            string = whole.strip() if pattern is _QUOTED else whole.strip(_AT_ENDS)
            if string:
                found.append((match.start(), string))
        # Parts of a string that was found are not searched for other strings.
        blank = pattern.sub(_spaces, blank)
    return list(dict.fromkeys(string for _, string in sorted(found)))


def _spaces(match: re.Match[str]) -> str:
    return " " * len(match.group())


def ground(answer: str, question: str, sources: Iterable[str]) -> Grounding:
    """Look up an answer's exact strings in the text of its sources.

    Strings that are in the question already are not looked up: they come from there. Numbers match with or
    without thousands separators, strings of several words in any case and spacing, and everything else
    exactly.

    Args:
        answer: The answer.
        question: The question.
        sources: The texts of the sources.

    Returns:
        The strings that the sources have, and those that they do not.
    """
    texts = [_plain(text) for text in sources]
    requested = _plain(question)
    found: list[str] = []
    missing: list[str] = []
    for string in exact_strings(answer):
        if _stands_in(string, requested):
            continue
        there = any(_stands_in(string, text) for text in texts)
        (found if there else missing).append(string)
    return Grounding(tuple(found), tuple(missing))


def _plain(text: str) -> str:
    return " ".join(text.split())


def _stands_in(string: str, text: str) -> bool:
    string = _plain(string)
    if _holds(string, text):
        return True
    if " " in string:
        return _holds(string.casefold(), text.casefold())
    return _holds(_THOUSANDS.sub("", string), _THOUSANDS.sub("", text))


def _holds(string: str, text: str) -> bool:
    """Whether the string occurs as a whole: "12" is not in "3128", nor "1.5" in "21.57"."""
    before = r"(?<!\w)(?<!\d[.,])" if string[:1].isalnum() else ""
    after = r"(?!\w)(?![.,]\d)" if string[-1:].isalnum() else ""
    return re.search(before + re.escape(string) + after, text) is not None


# Words for the kinds of strings that latents blur. Everyday numbers (prices, dates, counts) are not among
# them because they survive; see docs/decisions/expansion.md.
_WANTED = re.compile(
    r"""\b(?:
        codes? | ids? | identifiers? | uuids? | guids? | serials? | keys? | hash(?:es)? | checksums?
        | tokens? | passwords? | passphrases? | pins? | ibans? | isbns? | dois? | vins? | skus?
        | urls? | links? | e-?mails? | addresse?s? | (?:licen[cs]e|number)\ plates?
        | references? | numbers?(?!\ of\b) | versions?
        | exact(?:ly)? | verbatim | literal(?:ly)? | word\ for\ word | wording | quot(?:e|es|ed|ation)
        | spell(?:ed|ing|s)? | spelt
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_MADE_OF_BOTH = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])[A-Za-z0-9][\w\-./:]{5,}")


def wants_exact_string(question: str) -> bool:
    """Decide whether a question (in English) wants an exact string.

    Args:
        question: The question.

    Returns:
        Whether it asks for a code, an id or an exact wording, or contains one itself.
    """
    return bool(
        _WANTED.search(question)
        or _QUOTED.search(question)
        or _LINK.search(question)
        or _MADE_OF_BOTH.search(question)
    )
