"""The words of a text, the same for passages and questions, whatever the language and the way it is typed.

`WORDS` names what `normal_words` does. Whoever repeats it, and hands the result to Qdrant's BM25 with the
whitespace tokenizer and the index's language, gets the same sparse vectors:

1. Text: a soft hyphen and the white space after it go, as do other invisible characters (a zero-width space
   is a space); ©, ®, ™ and ℠ become spaces; then NFKC.
2. Words: runs of letters, marks and digits; each emoji is a word, without its skin tone.
3. Lower case, for Turkish and Azerbaijani with the dotted and the dotless I; decimal digits become 0 to 9.
4. Scripts without spaces between words. Chinese and Japanese: each pair of characters, and each Chinese
   character. Thai, Lao, Khmer and Burmese: each pair of letters with their marks. So it is in two kinds of
   scripts with spaces, whose words have many endings and no stemmer. Korean: each pair of syllables of a
   word. Hindi and the others of India: the word, without nuktas, unless it is a stop word, and each pair of
   its letters with their marks. Of words of two or three syllables or letters also the first.
5. Words in other scripts: a stop word of the language goes. The others go on in full case folding (ß becomes
   ss) and without accents: marks of Latin, Greek, Hebrew and Arabic letters go, as do the dots of ё, stress
   marks, while й and ї keep theirs; letters such as ø and æ become o and ae; the forms of alef,
   yeh and kaf become one each, and tatweels go. In French, Spanish and Turkish, where accents tell endings
   apart, a word with accents goes on in both forms. In German ae, oe and ue, as umlauts are typed without the
   key, become a, o and u, as umlauts do.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import qdrant_edge
import regex

__all__ = ["LANGUAGES", "WORDS", "bm25_config", "is_stop_word", "normal_words"]

WORDS = "lclm-words-1"
"""The name of what `normal_words` does. Another rule needs another name: the indexes hold its words."""

_WITHOUT_LISTS = ("hindi", "korean", "thai", "none")
_HINDI = set(
    "और का की के को में से पर है हैं था थी थे हो होता होती होते ने कि यह वह ये वे इस उस इन उन एक भी तो ही या जो "
    "लिए साथ तक कौन क्या कब कहाँ कहां किस किसने किसका किसकी किसके कितने कितना कितनी कैसे क्यों हुआ हुई हुए".split()
)
LANGUAGES = (
    "arabic azerbaijani basque bengali catalan chinese danish dutch english finnish french german greek "
    "hebrew hindi hungarian indonesian italian japanese kazakh korean nepali norwegian portuguese romanian "
    "russian slovene spanish swedish tajik thai turkish none"
).split()
"""The languages of which stop words are known, mostly endings too, those that need neither, and "none"."""

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_GONE = regex.compile(r"\u00ad\s*|(?!\u200b)\p{Cf}")
_SPACES = str.maketrans(dict.fromkeys("\u200b©®™℠", " "))
_TOKEN = regex.compile(r"[\p{L}\p{M}\p{N}]+|\p{RI}{2}|\p{Extended_Pictographic}")
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ー"
_INDIC = "".join(
    rf"\p{{{script}}}"
    for script in "Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu Kannada Malayalam Sinhala".split()
)
_RUN = regex.compile(
    rf"(?P<cjk>[{_CJK}]+)|(?P<hangul>\p{{Hangul}}+)|(?P<unspaced>\p{{Line_Break=SA}}+)"
    rf"|(?P<indic>(?:[{_INDIC}]\p{{M}}*)+)"
    rf"|(?P<word>[^{_CJK}\p{{Hangul}}\p{{Line_Break=SA}}{_INDIC}]+)"
)
_HAN = regex.compile(r"\p{Han}")
_ACCENTS = regex.compile(
    r"(?<=[\p{Latin}\p{Greek}\p{Hebrew}\p{Arabic}\p{N}]\p{M}*)\p{M}+|(?<=[аеиоуыэюя])[\u0300\u0301\u0308]+"
    r"|\u093c"
)
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th", "ħ": "h", "ı": "i"}
    | {"ٱ": "ا", "ى": "ي", "ی": "ي", "ے": "ي", "ک": "ك", "ہ": "ه", "ە": "ه", "ـ": "", "ँ": "ं"}
)
_SHORT = 3
_DOTTED_I = str.maketrans({"I": "ı", "İ": "i"})
_TYPED_UMLAUTS = re.compile(r"[ao]e|(?<![aeiouyq])ue")
_WITH_DOTTED_I = ("turkish", "azerbaijani")
_ACCENTS_TELL_ENDINGS = ("french", "spanish", "turkish")


def normal_words(text: str, language: str) -> str:
    """The words of a text as BM25 takes them; see the head of this module.

    Args:
        text: The text of a passage, or a question: valid Unicode.
        language: One of `LANGUAGES`.

    Returns:
        The words, with spaces in between.
    """
    if text.isascii():
        words = _ASCII_WORD.findall(text)
        if not _changes_ascii(language):
            return " ".join(words)
    else:
        words = _TOKEN.findall(_normal(text))
    return " ".join(filter(None, (_word(word, language) for word in words)))


def bm25_config(language: str, **parameters: Any) -> qdrant_edge.Bm25Config:
    """The settings of Qdrant's BM25 for the words of `normal_words`.

    Args:
        language: One of `LANGUAGES`.
        **parameters: `k`, `b` and `avg_len`.

    Raises:
        ValueError: When the language is unknown.
    """
    if language not in LANGUAGES:
        raise ValueError(f"unknown language; use one of {', '.join(LANGUAGES)}")
    words = qdrant_edge.TokenizerType.Whitespace
    if language in _WITHOUT_LISTS:
        left_out = qdrant_edge.StopwordsSet(custom=_HINDI if language == "hindi" else set())
        return qdrant_edge.Bm25Config(
            tokenizer=words,
            stemmer=qdrant_edge.DisabledStemmer(),
            stopwords=left_out,
            **parameters,
        )
    return qdrant_edge.Bm25Config(tokenizer=words, language=language, **parameters)


@lru_cache(maxsize=50_000)
def is_stop_word(word: str, language: str) -> bool:
    """Whether a word in lower case is one of the language's stop words, by Qdrant's list."""
    return not _model(language).embed_query(word).indices


@cache
def _model(language: str) -> qdrant_edge.Bm25:
    return qdrant_edge.Bm25(bm25_config(language))


def _changes_ascii(language: str) -> bool:
    return language == "german" or language in _WITH_DOTTED_I


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", _GONE.sub("", text).translate(_SPACES))


@lru_cache(maxsize=200_000)
def _word(word: str, language: str) -> str:
    """The words that stand for one word of a text, with spaces in between; "" for a stop word."""
    if word.isascii() and not _changes_ascii(language):
        return word
    lower = (word.translate(_DOTTED_I) if language in _WITH_DOTTED_I else word).lower()
    lower = "".join(str(unicodedata.decimal(c, c)) for c in lower)
    return " ".join(part for run in _RUN.finditer(lower) for part in _parts(run, language))


def _parts(run: regex.Match[str], language: str) -> Iterator[str]:
    text: str = run[0]
    match run.lastgroup:
        case "cjk":
            yield from _pairs(list(text))
            if len(text) > 1:
                yield from _HAN.findall(text)
        case "hangul":
            yield from _pairs_and_beginning(list(text))
        case "unspaced":
            yield from _pairs(regex.findall(r"\X", text))
        case "indic" if not is_stop_word(text, language):
            folded = _without_accents(text)
            yield folded
            yield from (
                p for p in _pairs_and_beginning(regex.findall(r"\X", folded)) if p != folded
            )
        case "word" if not is_stop_word(text, language):
            folded = _without_accents(text)
            if language == "german":
                folded = _TYPED_UMLAUTS.sub(lambda found: found[0][:-1], folded)
            if folded != text and language in _ACCENTS_TELL_ENDINGS:
                yield text
            yield folded


def _pairs(characters: list[str]) -> list[str]:
    """Each two neighbours; a single character alone."""
    if len(characters) == 1:
        return characters
    return [a + b for a, b in pairwise(characters)]


def _pairs_and_beginning(characters: list[str]) -> list[str]:
    """The pairs, and of a short word also its beginning, so that it meets itself with an ending."""
    pairs = _pairs(characters)
    return [*pairs, characters[0]] if 1 < len(characters) <= _SHORT else pairs


def _without_accents(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed)).translate(_LETTERS)
