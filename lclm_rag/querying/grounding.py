"""Strings that must be exact: finding them, looking them up in sources, and questions that want one.

Latents blur what cannot be guessed from its neighbors. The paper (arXiv 2606.09659) says of its 16×
checkpoints that names and codes of more than about 8 characters come back as near misses.

Answers and sources are compared in their normal form (`normal_text`), string by string: a number by what it
may mean, a link as a whole, a code as a whole, a quotation by its words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import regex

from lclm_rag.prompting.thinking import spoken
from lclm_rag.querying.normal_text import CODE, UNITS, NormalText, normal_text, words
from lclm_rag.types import Grounding

__all__ = ["exact_strings", "ground", "wants_exact_string"]


# --- finding strings --------------------------------------------------------------------------------

_DOUBLE_QUOTED = (
    r'"([^"\n]+)"|[“”]([^“”\n]+)”|„([^“”„\n]+)["“”]|«([^«»\n]+)»|»([^«»\n]+)«|‹([^‹›\n]+)›|›([^‹›\n]+)‹'
    r"|`([^`\n]+)`|「([^「」\n]+)」|『([^『』\n]+)』|《([^《》\n]+)》|〝([^〝〞〟\n]+)[〞〟]"
)
# An apostrophe is no quotation mark: one that opens begins a word, and one that closes ends it.
_SINGLE_QUOTED = (
    r"(?<![\p{L}\p{N}])(?:‘([^‘\n]{2,200}?)’|‚([^‚\n]{2,200}?)[‘’]|'([^\s'](?:[^'\n]|'(?=\p{L})){0,200}[^\s'])')"
    r"(?![\p{L}\p{N}])"
)
_QUOTED = regex.compile(f"{_DOUBLE_QUOTED}|{_SINGLE_QUOTED}")
_LINK_CHARACTER = r"(?:[!#$%&()*+,./:;=?@_~\-]|[\p{Lu}\p{Ll}\p{Lt}\p{M}\p{N}])"
_MAIL = rf"(?<![{CODE}_.+\-])[{CODE}_.+\-]++@[{CODE}\-]++(?:\.[{CODE}\-]++)++"
_LINK = regex.compile(rf"(?i:(?:https?|ftp)://|(?<![{CODE}@.-])www\.){_LINK_CHARACTER}+|{_MAIL}")
# Groups of digits, as in telephone numbers, accounts and "12 345".
_GROUPS = regex.compile(
    rf"(?<![{CODE}]|[{CODE}][-._/]|\d[,:])\+?(?:\p{{Lu}}{{2}}(?=\d\d ))?\d+(?: \d[\d-]*)*(?: \d+)(?:[.,]\d+)?"
    rf"(?![{CODE}]|[-.,:_/\\]+[{CODE}])"
)
# Signs may be inside a code or a number; at its ends they belong to the sentence.
_OCTETS = rf"(?<=(?<![{CODE}])[\dA-Fa-f]{{2}}):(?=[\dA-Fa-f]{{2}}(?![{CODE}]))"  # 00:1A:2B
_DRIVE = rf"(?:(?<![{CODE}])[A-Za-z]:\\+)?"
_RUN = regex.compile(rf"{_DRIVE}[{CODE}]+(?:(?:[-._/\\]+|(?<=\d)[,:](?=\d)|{_OCTETS})[{CODE}]+)*")
_CAPITALS = regex.compile(rf"(?<![{CODE}])\p{{Lu}}[\p{{Lu}}-]{{4,}}\p{{Lu}}(?![{CODE}])")
_ABBREVIATION = regex.compile(r"^[\p{Lu}\p{Ll}]+\.(?=\d)")

_SOME = r"\d{1,2}(?:-\d{1,2})?"
_AND = r"(?:and|und|et|or|oder|ou|&|和|及|与|或|و)"
_LIST = rf"{_SOME}(?:\s*[,;、،]\s*{_SOME})*(?:\s*,?\s*{_AND}\s*{_SOME})?"
_ENDS = rf"(?![{CODE}%]|[.,:]\d)"
_ONE = (
    r"passage|source|document|doc|chunk|segment|seg|excerpt|snippet|reference|ref|context|memory|citation"
    r"|Quelle|Dokument|Textstelle|Auszug|Ausschnitt|Textabschnitt|Kontext|Fundstelle|extrait|contexte"
)
_MANY = (
    r"passages|passagen|sources|documents|docs|chunks|segments|excerpts|snippets|references|refs|contexts"
    r"|memories|citations|Quellen|Dokumente|Dokumenten|Textstellen|Auszüge|Auszügen|Ausschnitte|Ausschnitten"
    r"|Textabschnitte|Textabschnitten|Segmente|Segmenten|Fundstellen|extraits|contextes"
)
# These name parts of documents too, so they need a word before them.
_ACCORDING = r"according\s+to|as\s+per|laut|gemäß|selon|d['’]après"
_PART = r"sections?|paragraphs?|Abschnitte?n?|Abs[aä]tze?n?|Absatz|paragraphes?"
_REFERENCE = regex.compile(
    rf"""
    [\[【〔]\^?\s*(?:(?:{_ONE}|{_MANY})[\s_]*)?[#]?{_LIST}(?:†[^\]】]*)?\s*[\]】〕]
    | \(\s*{_SOME}(?:\s*[,;、،]\s*{_SOME})+\s*\)
    | \(\s*{_SOME}\s*\)(?=\s*(?:[.!?。؟]|\n|\Z))
    | (?<![{CODE}])(?:{_MANY})[\s_]*{_LIST}{_ENDS}
    | (?<![{CODE}])(?:{_ONE}|(?:{_ACCORDING})\s+(?:(?:the|dem|der|den|la|le|les)\s+)?(?:{_PART}))
      [\s_]*(?:no\.?|nr\.?|number|n°|\#|:)?\s*[(\[]?{_SOME}[)\]]?{_ENDS}
    | 第\s*\d{{1,2}}(?:\s*(?:[、,，至到~-]|{_AND})\s*第?\d{{1,2}})*\s*个?(?:段落|段|篇|份|文档|片段|资料)
    | (?:段落|片段|资料|文档|来源|文献|材料|参考|引用)\s*[#:]?\s*{_LIST}{_ENDS}
    | (?:لل|بال|وال|فال|كال|ال|ل|ب)?(?:مقاطع|مقطع|فقرات|فقرة|مصادر|مصدر|وثيقة|وثائق|مستندات|مستند|مقتطف|مرجع)
      (?:ين|ان)?\s*(?:رقم\s*)?{_LIST}{_ENDS}
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_ITEM = regex.compile(
    r"^[ \t#>*•-]*(?:step|schritt|étape|الخطوة|步骤|第)?\s*\(?(\d{1,2})(?:[.):、]|步|\s-\s)(?!\d)",
    regex.MULTILINE | regex.IGNORECASE,
)

Kind = Literal["quotation", "link", "groups", "code", "capitals"]


@dataclass(frozen=True)
class _String:
    """A string of an answer: in its normal form, and as it is written."""

    kind: Kind
    text: str
    start: int
    end: int


def exact_strings(text: str) -> list[str]:
    """Find the quoted strings, links, mail addresses, numbers and codes of a text.

    A code is a word with a digit in it, or one of at least six capitals. References to passages, such as
    [2] and "passage 2", and the numbers of list items do not count.

    Args:
        text: The text.

    Returns:
        The strings in the order of the text, each once.
    """
    normal = normal_text(text)
    strings = _strings(normal.text)
    return list(dict.fromkeys(_written(text, normal, s.start, s.end) for s in strings))


def _written(original: str, normal: NormalText, start: int, end: int) -> str:
    """A part of the normal form as the original has it."""
    written = original[normal.origins[start] : normal.origins[end]]
    return str(regex.sub(r"^[\s\p{Cf}]+|[\s\p{Cf}*\\]+$", "", written))


def _strings(text: str) -> list[_String]:
    """The strings of a text that is in its normal form, in their order."""
    blank = _REFERENCE.sub(_spaces, _without_item_numbers(text))
    found: list[_String] = []
    for match in _QUOTED.finditer(blank):
        group = next(i for i, content in enumerate(match.groups(), 1) if content is not None)
        start, end = _trimmed(blank, match.start(group), match.end(group), " ,.;:!?…،؛؟、。")
        if start < end:
            found.append(_String("quotation", text[start:end], start, end))
    # Parts of a string that was found are not searched for other strings.
    blank = _QUOTED.sub(_spaces, blank)
    for start, end in _links(blank):
        found.append(_String("link", text[start:end], start, end))
        blank = blank[:start] + " " * (end - start) + blank[end:]
    for match in _GROUPS.finditer(blank):
        # Looked at where it stands: in "9.5 12 265" there may be other numbers.
        grouped = _THOUSANDS.match(blank, match.start())
        if _is_long(match[0]) or (grouped and grouped.end() == match.end()):
            found.append(_String("groups", match[0], match.start(), match.end()))
            blank = blank[: match.start()] + " " * len(match[0]) + blank[match.end() :]
    for match in _RUN.finditer(blank):
        if regex.search(r"\d", match[0]):
            start = match.start()
            # "Nr.5" and "Art.5" are numbers; "L.121-3" too.
            if abbreviation := _ABBREVIATION.match(match[0]):
                start += abbreviation.end()
            end = match.end() + (text[match.end() : match.end() + 1] in ("%", "‰"))
            found.append(_String("code", text[start : match.end()], start, end))
    blank = _RUN.sub(lambda m: _spaces(m) if regex.search(r"\d", m[0]) else m[0], blank)
    for match in _CAPITALS.finditer(blank):
        found.append(_String("capitals", match[0], match.start(), match.end()))
    return sorted(found, key=lambda string: string.start)


def _spaces(match: regex.Match[str]) -> str:
    return " " * len(match[0])


def _without_item_numbers(text: str) -> str:
    """The text with spaces for the numbers 1, 2, 3 … at the starts of lines; other numbers stay."""
    last = 0
    for match in _ITEM.finditer(text):
        number = int(match[1])
        if number in (1, last + 1):
            text = text[: match.start()] + _spaces(match) + text[match.end() :]
            last = number
    return text


def _trimmed(text: str, start: int, end: int, signs: str) -> tuple[int, int]:
    content = text[start:end]
    start += len(content) - len(content.lstrip(" \n"))
    return start, start + len(content.strip(" \n").rstrip(signs))


def _links(text: str) -> Iterator[tuple[int, int]]:
    """Where links and mail addresses are, without the punctuation of the sentence behind them."""
    for match in _LINK.finditer(text):
        link = match[0]
        while True:
            shorter = link.rstrip(".,:;!?*_~-&")
            if shorter.endswith(")") and shorter.count("(") < shorter.count(")"):
                shorter = shorter[:-1]
            shorter = shorter.removesuffix("(")
            if shorter == link:
                break
            link = shorter
        yield match.start(), match.start() + len(link)


# --- looking them up --------------------------------------------------------------------------------


def ground(answer: str, question: str, sources: Iterable[str]) -> Grounding:
    """Look up an answer's exact strings in the text of its sources.

    How a string is written makes no difference: its white space, quotation marks, dashes, digits, separators
    of thousands and invisible characters. Codes and links are found as a whole only, and in their case; in
    quotations, case and punctuation do not count. A number is not found where another unit follows it. In
    "1.234" the separator may be one of thousands or of decimals.

    Strings that are in the question already are not looked up: they come from there. Thoughts of the decoder
    (`<think>`) are no part of the answer.

    Args:
        answer: The answer.
        question: The question.
        sources: The texts of the sources.

    Returns:
        The strings that the sources have, and those that they do not.
    """
    answer = spoken(answer)
    normal = normal_text(answer)
    texts = [_Text(normal_text(text).text) for text in sources]
    requested = _Text(normal_text(question).text)
    found: dict[str, None] = {}
    missing: dict[str, None] = {}
    for string in _strings(normal.text):
        if _has(requested, string, normal.text):
            continue
        there = any(_has(text, string, normal.text) for text in texts)
        start, end = string.start, string.end
        if not there and any(_has(text, string, "") for text in texts):
            # Only the sign or the unit is another.
            start -= normal.text[start - 1 : start] == "-"
            end = _unit(normal.text, string.start + len(string.text))[1]
        written = _written(answer, normal, start, end)
        (found if there else missing)[written] = None
    return Grounding(tuple(s for s in found if s not in missing), tuple(missing))


@dataclass(frozen=True)
class _Number:
    """A number in a text: all that its digits may mean, whether it is negative, and the unit behind it."""

    readings: frozenset[str]
    negative: bool
    unit: str | None


class _Text:
    """A text in which strings are looked up, in its normal form."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def numbers(self) -> list[_Number]:
        grouped = _THOUSANDS.finditer(self.text)
        plain = _NUMBER.finditer(self.text)
        return [
            _Number(
                _readings(match[1]),
                _negative(self.text, match.start()),
                _unit(self.text, match.end())[0],
            )
            for match in (*grouped, *plain)
        ]

    @cached_property
    def links(self) -> set[str]:
        return {_link(self.text[start:end]) for start, end in _links(self.text)}

    @cached_property
    def runs(self) -> set[str]:
        found = [m[0] for m in _RUN.finditer(self.text) if regex.search(r"\d", m[0])]
        return {_of_hour(each) for run in found for each in (run, _ABBREVIATION.sub("", run))}

    @cached_property
    def words(self) -> str:
        return words(self.text)


_NUMBER = regex.compile(
    rf"(?<![{CODE}]|\d[.,])(?:[vV]\.?)?(\d++(?:[.,]\d++)*+)(?![{CODE}]|-(?:rc|alpha|beta|dev|pre))"
)
"""A number, or a version."""
_THOUSANDS = regex.compile(
    rf"(?<![{CODE}]|\d[.,]|\d )(\d{{1,3}}(?: \d{{3}})++(?:[.,]\d++)?+)(?![{CODE}])"
)
"""A number with spaces as separators. The same digits may be several numbers."""
_NEGATIVE = regex.compile(
    rf"(?:(?<![{CODE})\]%°]|\d )-|(?<![{CODE}])(?i:minus|moins) |零下|负|سالب |ناقص )\Z"
)
_UNIT = regex.compile(
    rf" ?({'|'.join(sorted(map(regex.escape, UNITS), key=len, reverse=True))})(?![{CODE}])",
    regex.IGNORECASE,
)


def _readings(digits: str) -> frozenset[str]:
    """What a number may mean: "1,234.5" is 1234.5, and "1.234" may be 1234 or 1.234."""
    parts = regex.split(r"[ .,]", digits)
    signs = regex.findall(r"[ .,]", digits)
    grouped = 1 <= len(parts[0]) <= 3 and parts[0] != "0" and all(len(p) == 3 for p in parts[1:])
    if not signs:
        return frozenset([digits])
    if len(set(signs)) == 1:
        whole = {"".join(parts)} if grouped else set()
        if len(parts) == 2:
            return frozenset(whole | ({".".join(parts)} if signs != [" "] else set()))
        # Dates and versions: "05.11.2023" is "5.11.2023".
        return frozenset(whole | {".".join(part.lstrip("0") or "0" for part in parts)})
    if signs[-1] not in signs[:-1] and len(set(signs)) == 2:
        return frozenset(["".join(parts[:-1]) + "." + parts[-1]])
    return frozenset([digits])


def _negative(text: str, start: int) -> bool:
    return _NEGATIVE.search(text, max(0, start - 8), start) is not None


def _unit(text: str, end: int) -> tuple[str | None, int]:
    """The unit behind a number that ends there, and where the unit ends."""
    match = _UNIT.match(text, end)
    return (UNITS[match[1].casefold()], match.end()) if match else (None, end)


def _link(link: str) -> str:
    """A link so that those to the same place are the same."""
    scheme, separator, rest = link.rpartition("://")
    host, slash, path = rest.partition("/")
    return scheme.lower() + separator + host.lower() + (slash + path).rstrip("/")


def _has(text: _Text, string: _String, answer: str) -> bool:
    """Whether a text has a string of an answer; with "" for the answer, whatever the unit is."""
    if string.kind == "quotation":
        return _has_quotation(text, string.text)
    if string.kind == "link":
        link = _link(string.text)
        return any(link in (each, each.rpartition("://")[2]) for each in text.links)
    if string.kind == "capitals":
        return _stands_in(string.text, text.text)
    negative = _negative(answer, string.start) if answer else None
    unit = _unit(answer, string.start + len(string.text))[0] if answer else None
    return _has_code(text, string.text, negative, unit)


def _has_quotation(text: _Text, quotation: str) -> bool:
    """Whether a text has the words of a quotation, and the strings in it as they are."""
    inner = _strings(quotation)
    if len(inner) == 1 and (inner[0].start, inner[0].end) == (0, len(quotation)):
        return _has(text, inner[0], quotation)
    parts = [words(part) for part in regex.split(r"[\[(]?\s*(?:\.\.\.|…)\s*[\])]?", quotation)]
    if not any(parts):
        return quotation in text.text
    there = all(_stands_in(part, text.words) for part in parts)
    return there and all(_has(text, string, quotation) for string in inner)


def _stands_in(part: str, text: str) -> bool:
    """Whether a text has a part, neither end of it inside a word or a number."""
    start = text.find(part)
    while start >= 0:
        end = start + len(part)
        begun = start > 0 and _INSIDE.match(text, start - 1)
        if not part or not (begun or _INSIDE.match(text, end - 1)):
            return True
        start = text.find(part, start + 1)
    return False


_INSIDE = regex.compile(rf"[{CODE}]{{2}}")


def _has_code(text: _Text, code: str, negative: bool | None, unit: str | None) -> bool:
    """Whether a text has a number or a code; `negative` is None if the sign makes no difference."""
    if match := _THOUSANDS.fullmatch(code) or _NUMBER.fullmatch(code):
        readings = _readings(match[1])
        if any(
            readings & number.readings
            and negative in (None, number.negative)
            and (unit is None or number.unit in (None, unit))
            for number in text.numbers
        ):
            return True
    elif any(_holds(run, _of_hour(code)) for run in _as_case(text.runs, _of_hour(code))):
        return True
    if _is_long(code) and _has_digits(text, code):
        return True
    if pair := _PAIR.fullmatch(code):
        # 1,5-2,5 is 1.5-2.5
        first, second = (regex.sub("[.,]", "[.,]", number) for number in pair.groups())
        pattern = rf"(?<![{CODE}]){first}(?![{CODE}])\D{{1,15}}(?<![{CODE}]){second}(?![{CODE}])"
        return regex.search(pattern, text.text) is not None
    if "/" in code and {"digit", "letter"} <= _shape(code):
        # "A4/A5" may also be "A4 or A5".
        parts = code.split("/")
        if all(_shape(part) == _shape(parts[0]) for part in parts):
            return all(_has_code(text, part, negative, None) for part in parts)
    # In "10-day", "2,5-Zimmer-Wohnung" and "pre-2019" the rest is words.
    core = _WORDS_AROUND.sub("", code)
    return core != code and _has_code(text, core, negative, None)


_PAIR = regex.compile(r"(\d+(?:[.,:]\d+)*)[-/](\d+(?:[.,:]\d+)*)")
"""A range: "2019-2020" may also be "from 2019 to 2020"."""
_WORDS_AROUND = regex.compile(
    r"^(?i:pre|post|mid|non|anti|ca)-(?=\d)|(?:(?<=^[^-]*\d[^-]*)-\p{Lu}?\p{Ll}{2,}(?:-\p{Lu}?\p{Ll}+)*)$"
)
_ANY_CASE = regex.compile(r"(?=.{8})[\dA-Fa-f]+(?:[-:][\dA-Fa-f]+)*|\p{Lu}?\p{Ll}{2,}-\d+")
"""UUIDs and hashes; and names such as Covid-19."""


def _of_hour(run: str) -> str:
    """A time without the zero of its hour."""
    return str(regex.sub(r"(?<![\d:.,/])0(?=\d:\d\d)", "", run))


def _as_case(runs: set[str], code: str) -> Iterator[str]:
    """The runs of a text that may hold a code, in the code's case where it makes no difference."""
    any_case = _ANY_CASE.fullmatch(code) is not None
    for run in runs:
        if code in run:
            yield run
        elif any_case and run.casefold() == code.casefold():
            yield code


def _holds(run: str, code: str) -> bool:
    """Whether a run of letters, digits and signs has a code as a whole, beside words or other codes."""
    start = run.find(code)
    while start >= 0:
        if _apart(run[:start][::-1], code) and _apart(run[start + len(code) :], code, behind=True):
            return True
        start = run.find(code, start + 1)
    return False


_WORDS_BESIDE = regex.compile(r"[-._/\\]+(?:\p{Lu}?\p{Ll}+|\p{Ll}+\p{Lu}?)(?:[-._/\\]+\p{L}+)*")


def _apart(beside: str, code: str, *, behind: bool = False) -> bool:
    """Whether what is beside a code is no part of it. What is before it comes backwards."""
    if not beside:
        return True
    sign = beside[0]
    if sign not in "-._/\\:,":
        return False
    if sign in "/\\":
        if "/" in code or "\\" in code:
            return False
        # The last part of a path is whole; "A4" of "A4/A5" too, but not "AB-1" of "AB-1/7".
        part = regex.match(r"[^/\\]*", beside, pos=1)[0]
        return not behind or _shape(part) == _shape(code) or _is_word(part)
    if sign == "-" and regex.fullmatch(r"[\d:/.]+", code):
        return "-" not in code and _shape(regex.match(r"[^-]*", beside, pos=1)[0]) == _shape(code)
    return sign not in ":," and _WORDS_BESIDE.fullmatch(beside) is not None


def _is_word(part: str) -> bool:
    return regex.fullmatch(r"\p{Lu}?\p{Ll}+", part) is not None


def _shape(part: str) -> set[str]:
    return {"digit" if c.isdigit() else "letter" if c.isalpha() else c for c in part}


def _is_long(code: str) -> bool:
    """Whether it is a telephone number, an account or the like, which people group as they please."""
    digits = len(regex.findall(r"\d", code))
    return digits >= 8 and regex.fullmatch(r"\+?(?:\p{Lu}{2})?\d[\d ./-]*", code) is not None


def _has_digits(text: _Text, code: str) -> bool:
    """Whether a text has the same digits, grouped in any way."""
    plain = regex.sub(r"[ ./+-]", "", code)
    pattern = r"[ ./()-]{0,2}".join(plain)
    return regex.search(rf"(?<![{CODE}]){pattern}(?![{CODE}]|[-.]\d)", text.text) is not None


# --- questions --------------------------------------------------------------------------------------

# Words for the kinds of strings that latents blur. Everyday numbers (prices, dates, counts) are not among
# them because they survive; see docs/decisions/expansion.md.
_WANTED = regex.compile(
    r"""\b(?:
        codes? | ids? | identifiers? | uuids? | guids? | serials? | keys? | hash(?:es)? | checksums?
        | tokens? | passwords? | passphrases? | pins? | ibans? | isbns? | dois? | vins? | skus?
        | urls? | links? | e-?mails? | addresse?s? | (?:licen[cs]e|number)\ plates?
        | references? | numbers?(?!\ of\b) | versions?
        | exact(?:ly)? | verbatim | literal(?:ly)? | word\ for\ word | wording | quot(?:e|es|ed|ation)
        | spell(?:ed|ing|s)? | spelt
    )\b""",
    regex.IGNORECASE | regex.VERBOSE,
)
_MADE_OF_BOTH = regex.compile(r"(?=\S*\d)(?=\S*[A-Za-z])[A-Za-z0-9][\w\-./:]{5,}")


def wants_exact_string(question: str) -> bool:
    """Decide whether a question (in English) wants an exact string.

    Args:
        question: The question.

    Returns:
        Whether it asks for a code, an id or an exact wording, or contains one itself.
    """
    return bool(
        _WANTED.search(question)
        or regex.search(_DOUBLE_QUOTED, question)
        or _LINK.search(question)
        or _MADE_OF_BOTH.search(question)
    )
