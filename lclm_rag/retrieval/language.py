"""The language of texts, told by their script and then by their stop words. Needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import regex

from lclm_rag.retrieval.words import LANGUAGES, is_stop_word

__all__ = ["AUTO", "check_language", "detect_language"]

AUTO = "auto"
"""Instead of a language: that of the text that is added first, as `detect_language` tells it."""

_SAMPLE = 200_000  # characters
_COMMONEST = 300  # words
_CLEAR = 0.12
"""The least share of stop words in a text of the language; below, the text is of another one, or no prose."""

_SCRIPTS = {
    "Hangul": ("korean",),
    "Thai": ("thai",),
    "Greek": ("greek",),
    "Hebrew": ("hebrew",),
    "Bengali": ("bengali",),
    "Devanagari": ("hindi", "nepali"),
    "Arabic": ("arabic",),
    "Cyrillic": ("russian", "kazakh", "tajik"),
    # Where two have as many stop words in a text, the first counts.
    "Latin": tuple(
        "english spanish french german portuguese italian dutch swedish norwegian danish finnish turkish "
        "indonesian romanian hungarian catalan basque slovene azerbaijani".split()
    ),
}
_OF_SCRIPT = {name: regex.compile(rf"\p{{{name}}}") for name in [*_SCRIPTS, "Han"]}
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_WORD = regex.compile(r"[\p{L}\p{M}]+")
# No language of which there are stop words here has these letters: those of Persian and Urdu, of Ukrainian,
# Belarusian and Serbian, and of Polish, Czech and Vietnamese.
_OTHER_LETTERS = regex.compile(
    "[پچژگیکہے]|[їєґўјљњћђџѓќ]|[ąęłżźćńěřůďťơưạảấầẩậắằặẹẻẽếềểệỉịọỏốồổộớờợụủứừửữựỳỵỷỹ]"
)
_OTHER_SHARE = 0.01
# Languages with few stop words, which their letters tell.
_TELLING = {
    "azerbaijani": regex.compile("ə"),
    "turkish": regex.compile("[ığ]"),
    "hungarian": regex.compile("[őű]"),
    "kazakh": regex.compile("[әғқңұһ]"),
}
_TELLING_SHARE = 0.005


def check_language(language: str) -> None:
    """Check that a language is one that can be chosen.

    Args:
        language: "auto", or one of `LANGUAGES`.

    Raises:
        ValueError: When it is not.
    """
    if language not in (AUTO, *LANGUAGES):
        raise ValueError(f"Unknown language {language!r}; use auto, {', '.join(LANGUAGES)}.")


def detect_language(texts: Iterable[str]) -> str:
    """The language that most of the text is in.

    Args:
        texts: The texts; the first 200,000 characters count.

    Returns:
        One of `LANGUAGES`: "none" for a language without stop words here, and "english" for letters of the
        Latin script that are no prose in any language known here, such as tables of names.
    """
    sample = _head(texts)
    counts = {name: len(pattern.findall(sample)) for name, pattern in _OF_SCRIPT.items()}
    kana = len(_KANA.findall(sample))
    # A Chinese character says as much as several letters.
    counts["Han"] = 3 * (counts["Han"] + kana)
    script = max(counts, key=lambda name: counts[name])
    if not counts[script]:
        return "none" if _WORD.search(sample) else "english"
    if script == "Han":
        return "japanese" if 3 * kana > counts["Han"] / 10 else "chinese"
    languages = _SCRIPTS[script]
    if len(_OTHER_LETTERS.findall(sample.lower())) > _OTHER_SHARE * counts[script]:
        return "none"
    for language, letters in _TELLING.items():
        if len(letters.findall(sample.lower())) > _TELLING_SHARE * counts[script]:
            return language
    if script in ("Hangul", "Thai", "Greek", "Hebrew", "Bengali"):
        return languages[0]
    words = Counter(_WORD.findall(sample.lower())).most_common(_COMMONEST)
    total = sum(count for _, count in words)
    shares = {
        language: sum(count for word, count in words if is_stop_word(word, language)) / total
        for language in languages
    }
    best = max(shares, key=lambda language: shares[language])
    if shares[best] >= _CLEAR:
        return best
    return "english" if script == "Latin" else "none"


def _head(texts: Iterable[str]) -> str:
    parts: list[str] = []
    length = 0
    for text in texts:
        parts.append(text)
        length += len(text)
        if length >= _SAMPLE:
            break
    return "\n".join(parts)[:_SAMPLE].encode("utf-8", "replace").decode()
