"""One form for texts that differ only in how they are written, so that strings can be compared.

White space, dashes, digits of any script, separators of thousands, invisible characters, ligatures, the
space before a unit: none of them makes another string.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import regex

__all__ = ["CODE", "UNITS", "NormalText", "normal_text", "words"]

CODE = r"\p{Lu}\p{Ll}\p{Lt}\p{Nd}"
"""Characters that codes are made of, for a class of a pattern: digits, and letters that have a case.

Letters without case stand beside a number without a space, as in "12345人", and are no part of it.
"""
_QUOTES = r"\p{Quotation_Mark}`´ʹʺʻʼʽ′″‴׳״《》〈〉❛❜❝❞"
"""Quotation marks and apostrophes, for a class of a pattern."""

_UNITS = """
%, ‰, km 公里 千米 كم, m 米 م, cm 厘米 سم, mm 毫米 مم, nm, mi, ft, ha, km2 平方公里, m2 平方米, m3 立方米,
kg 公斤 千克 كغ كجم, g 克 غ, mg 毫克 ملغ, μg ug mcg 微克, t 吨, lb lbs, oz, l 升 لتر, ml 毫升 مل, cl, dl,
h 小时, min 分钟, s, ms, w, kw 千瓦, kwh, mw, gw, hp, ps ch, v 伏, kv, mah, hz, khz, mhz, ghz,
kb, mb, gb, tb, kib, mib, gib, tib, °c, °f, k, bar, pa, hpa, kpa, mpa, db, kcal, kj, mph, kmh,
bn, mio, mrd, eur, usd, gbp, chf
"""
UNITS = {written: names[0] for names in map(str.split, _UNITS.split(",")) for written in names}
"""Symbols of units in small letters, with the unit that each stands for. Words such as "metres" are none."""

_ATTACHED = "|".join(sorted(UNITS.keys() - {"%", "‰", "°c", "°f"}, key=len, reverse=True))
_ORDINAL = "st|nd|rd|th|er|re|ère|e|ème|eme|ième"
_SPACE_IN_NUMBERS = "\u00a0\u2007\u2008\u2009\u200a\u202f"
_NUMBER_BEFORE = rf"(?<=(?<![{CODE}]|[\p{{Lu}}\p{{Ll}}][-._/:])\d+(?:[.,]\d+)?)"
_HOUR_BEFORE = rf"(?<=(?<![{CODE}:.,/-])\d\d?)"


class NormalText(NamedTuple):
    """A text in its normal form.

    Attributes:
        text: The normal form.
        origins: For each of its characters, where it comes from in the original; and the original's length.
    """

    text: str
    origins: tuple[int, ...]


def _nfkc(match: regex.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match[0])


def _white(match: regex.Match[str]) -> str:
    return "\n" if "\n" in match[0] or "\r" in match[0] or "\u2028" in match[0] else " "


_STEPS: list[tuple[regex.Pattern[str], str | Callable[[regex.Match[str]], str]]] = [
    (regex.compile(pattern), replacement)
    for pattern, replacement in (
        # Soft hyphens, zero-width spaces and joiners, marks of direction.
        (r"[\p{Default_Ignorable_Code_Point}\p{Cf}]+", ""),
        # These would become letters or digits of the string before them: footnotes, powers, fractions, signs.
        (r"(?<=\p{Ll}{4}|\p{Lo}|\p{P})[⁰¹²³⁴-⁹]+", ""),
        (r"(?<=\p{Nd})(?=[⁰¹²³⁴-⁹])", "^"),
        (r"(?<=\p{Nd})(?=[¼-¾⅐-⅞])", " "),
        (r"(?<=\p{Nd})[ªº]", ""),
        (r"[™℠®©№]", " "),
        # Only a separator of thousands does not let a line break here.
        (
            rf"(?<=(?<!\p{{Nd}}|\p{{Nd}}[.,])\p{{Nd}}{{1,3}})[{_SPACE_IN_NUMBERS}٬'’ʼ](?=\p{{Nd}}{{3}}(?!\p{{Nd}}))",
            "",
        ),
        # The sign of an accent would become a space with an accent.
        (r"(?=\P{ASCII}|.\p{M})(?![´¨¯¸˘-˝])\X", _nfkc),
        # Python may not know the newest scripts.
        (r"(?![0-9])\p{Nd}", lambda match: str(unicodedata.decimal(match[0], " "))),
        (r"(?!-)[\p{Dash}]", "-"),
        (r"[\s\x1c-\x1f]+", _white),
        ("٪", "%"),
        (r"(?<=\d)٫(?=\d)", "."),
        (r"(?<=\d)[،٬](?=\d)", ","),
        (r"(?<=\d)(?: [-~] |[~]|--+)(?=\d)", "-"),
        # Markdown: strong words, and signs that are meant as they are.
        (r"\*\*+|\\(?=[_*#])", ""),
        (r"(?<=\d)(?<!(?<!\d)0) ?[x×✕] ?(?=\d)", "×"),
        # "20 h 30", "14.30 Uhr" and "14点30分" are times too.
        (rf"{_HOUR_BEFORE} ?[hH点點时時] ?(?=[0-5]\d(?![{CODE}]))", ":"),
        (rf"{_HOUR_BEFORE}\.(?=[0-5]\d ?Uhr)", ":"),
        # "10km" and "11e", but no part of a code.
        (
            rf"{_NUMBER_BEFORE}(?=(?:{_ORDINAL}|(?i:{_ATTACHED}))"
            rf"(?![{CODE}]|[-._:/][\p{{Lu}}\p{{Ll}}]{{0,20}}\d))",
            " ",
        ),
        (r"(?<![\p{L}\d])(EUR|USD|GBP|CHF|JPY|CNY|RMB|INR|US\$|Rs)(?=\d)", lambda m: f"{m[1]} "),
    )
]


def normal_text(text: str) -> NormalText:
    """Bring a text into its normal form.

    Args:
        text: The text.

    Returns:
        The normal form, and where it comes from.
    """
    normal = NormalText(text, tuple(range(len(text) + 1)))
    for pattern, replacement in _STEPS:
        normal = _replaced(normal, pattern, replacement)
    return normal


def _replaced(
    normal: NormalText,
    pattern: regex.Pattern[str],
    replacement: str | Callable[[regex.Match[str]], str],
) -> NormalText:
    parts: list[str] = []
    origins: list[int] = []
    done = 0
    for match in pattern.finditer(normal.text):
        new = replacement if isinstance(replacement, str) else replacement(match)
        parts += (normal.text[done : match.start()], new)
        origins += normal.origins[done : match.start()]
        origins += [normal.origins[match.start()]] * len(new)
        done = match.end()
    if not parts:
        return normal
    text = "".join(parts) + normal.text[done:]
    return NormalText(text, (*origins, *normal.origins[done:]))


_NOT_WORDS = regex.compile(rf"(?:[^\p{{L}}\p{{M}}\p{{N}}]|[{_QUOTES}])+")
_THOUSANDS = regex.compile(r"(?<=(?<!\d)\d{1,3})[ ,.](?=\d{3}(?!\d))")
_NO_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_BESIDE_THEM = regex.compile(rf"(?<={_NO_SPACES}) | (?={_NO_SPACES})")
_VOWEL_SIGNS = regex.compile(r"[\u0640\u064b-\u0652\u0670\u0591-\u05c7]+")


def words(normal: str) -> str:
    """The words of a text alone: without case, punctuation, and signs for vowels that may be left out.

    Args:
        normal: The text, in its normal form.

    Returns:
        The words, with a space between two if their script has one.
    """
    bare = _VOWEL_SIGNS.sub("", _THOUSANDS.sub("", normal)).casefold()
    return str(_BESIDE_THEM.sub("", _NOT_WORDS.sub(" ", bare)).strip())
