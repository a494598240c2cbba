"""What a decoder replies: a request for passages, or an answer."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass

from lclm_rag.prompting.thinking import spoken

__all__ = ["MARKS", "REQUESTS", "Reply", "mentioned", "parse_reply", "without_mark"]

MARKS = ("ANSWER:", "FINAL:")
"""What frames have decoders write before an answer."""
REQUESTS = ("<tool_call", "<|tool_call", "<function_call", "EXPAND")
"""How requests for passages begin, in every frame."""


@dataclass(frozen=True)
class Reply:
    """What a decoder replied: passages to expand or, if it asks for none, an answer.

    Attributes:
        numbers: Passages to expand, by number, each once.
        unknown: Numbers that it gave and no passage has.
        answer: The answer; "" if it asks to expand.
        unreadable: Whether it made a call of a tool that gives no number of a passage.
    """

    numbers: tuple[int, ...]
    unknown: tuple[int, ...]
    answer: str
    unreadable: bool = False

    @property
    def asks(self) -> bool:
        """Whether it is a request, and no answer."""
        return bool(self.numbers or self.unknown or self.unreadable)


# Full-width forms are read as the letters, digits and signs that they stand for; places stay the same.
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {
    ord(wide): narrow for wide, narrow in zip("、。【】〔〕「」　", ',.[][]"" ', strict=True)
}
_CALL = r"(?:tool|function)_calls?\|?>"
_TOOL_CALL = re.compile(rf"<\|?{_CALL}(.*?)(?:<\|?/{_CALL}|(?=<\|?{_CALL})|\Z)", re.DOTALL)
_FENCED = re.compile(r"```(?:json|tool_call|python)?\s*(\{.*?\}|\[.*?\])\s*```", re.DOTALL)
_LABEL = (
    r"(?i:(?:passage|chunk|segment|document|doc|excerpt|section|item|memory|seg)s?[\s_]*"
    r"(?:ids?|numbers?)?|memories|numbers?|nos?\b\.?|ids?)"
)
_AND = r"(?i:and|or|plus)\b"
_ITEM = (
    rf"(?:{_LABEL}[\s_#:.=\-]*)*[#<\[({{\"'`]*(?:{_LABEL}[\s_#:\-]*)?\d+"
    rf"(?:\s*(?:[-–—]|(?:to|through)\b)\s*(?:{_LABEL}[\s_#]*)?\d+)?[\])}}>\"'`]*"
)
_ITEMS = rf"{_ITEM}(?:[\s,;&#/+|]*(?:{_AND}[\s#\[(]*)*{_ITEM})*"
# Matches "EXPAND: 3, 5", "expand(3)", "**EXPAND** [3] and [5]", "Expand chunks 3-5.", "EXPAND: seg_3": the
# word, and numbers with what they are called. Only after a colon or a bracket may more words follow in the
# line, and in lower case the word must begin the line: "They expand 3 stores" is no request.
_PUT = r"[\s:*_`=(\[{#<>\"'\-–→]*(?:(?i:the|these|this|following)\b[\s:]*)*"
_WHICH = rf"(?>{_ITEMS})|(?i:all)\b(?:\s*{_LABEL})?"
_EXPAND = re.compile(
    rf"(?:(?<!\w)EXPAND\s*[*_`]*\s*[:(\[]|(?<!\w)expand\(){_PUT}(?P<called>{_WHICH})(?!\w)"
    rf"|(?:^[\W_]*(?i:expand)|(?<!\w)EXPAND)\b{_PUT}(?P<listed>{_WHICH})"
    rf"(?=[\])}}>\s*_`.,;!]*(?:$|[^\w\s]))",
    re.MULTILINE,
)
_LABELLED = re.compile(rf"{_LABEL}[\s_#:\-]*\d+")
_UNREADABLE = re.compile(r"^[\W_]*EXPAND\s*[*_`]*\s*:", re.MULTILINE)
_ANSWER = re.compile(
    r"(?:^[\W_]*(?i:final[ _]answer|answer|final)|(?<!\w)(?:FINAL[ _])?(?:ANSWER|FINAL))"
    r"\s*[*_`]*\s*(?::|-|–|=)[*_`]*",
    re.MULTILINE,
)


def parse_reply(text: str, passages: int) -> Reply:
    """Read a decoder's reply.

    Decoders write "EXPAND: 3, 5", "expand(3)", "**EXPAND:** chunks 3-5", "EXPAND: seg_3", or a tool call as
    JSON, with or without `<tool_call>`; and an answer after "ANSWER:" or "FINAL:", or without either.
    Thoughts do not count, and full-width signs are as good as others. If there are several of these, the last
    one counts. Anything else is an answer. A tool call is never part of an answer.

    Args:
        text: The reply.
        passages: How many passages the prompt has.

    Returns:
        The passages that it asks for, or its answer.
    """
    said = spoken(text).strip()
    narrow = said.translate(_NARROW)
    calls = _tool_calls(said)
    requested = [(start, numbers) for start, _, numbers in calls if numbers]
    for match in _EXPAND.finditer(narrow):
        if not any(start <= match.start() < end for start, end, _ in calls):
            written = match["called"] or match["listed"]
            if _LABELLED.match(written):  # "EXPAND: Chunk 7 (Tides), Chunk 9 (Bees)"
                line = narrow[match.end() :].partition("\n")[0]
                written += ", " + ", ".join(_LABELLED.findall(line))
            requested.append((match.start(), _listed(written, passages)))
    answers = [(m.start(), m.end()) for m in _ANSWER.finditer(narrow)]
    last_asked = max((start for start, _ in requested), default=-1)
    last_answer = max(answers, default=(-1, 0))
    if last_asked < 0 or last_answer[0] > last_asked:
        answer = said
        for start, end, _ in reversed(calls):
            if start >= last_answer[1]:
                answer = answer[:start] + answer[end:]
        answer = (
            (answer[last_answer[1] :] if answers else answer).strip().removesuffix("**").strip()
        )
        if not answers and _UNREADABLE.search(answer.translate(_NARROW)):
            return Reply((), (), "", unreadable=True)
        return Reply((), (), answer, unreadable=bool(calls) and not answer)
    # Calls in a row, "EXPAND(3) EXPAND(5)", are one request; an answer between them begins a new one.
    since = max((start for start, _ in answers if start < last_asked), default=-1)
    numbers = dict.fromkeys(n for start, found in requested if start > since for n in found)
    known = tuple(n for n in numbers if 1 <= n <= passages)
    return Reply(known, tuple(n for n in numbers if n not in known), "")


def without_mark(text: str) -> str:
    """An answer without thoughts, and without the mark before it, such as "FINAL:"."""
    text = spoken(text).strip()
    for mark in MARKS:
        if text.translate(_NARROW).startswith(mark):
            text = text[len(mark) :]
    return text.strip()


def mentioned(text: str, passages: int) -> list[int]:
    """The numbers of passages that a reply mentions anywhere, at most five; no parts of codes."""
    numbers = dict.fromkeys(int(n) for n in re.findall(r"(?<![\w-])\d{1,3}(?![\w-])", text))
    return [n for n in numbers if 1 <= n <= passages][:5]


def _tool_calls(text: str) -> list[tuple[int, int, list[int]]]:
    """Where each call of a tool begins and ends, and the passages that it asks for."""
    found = []
    for match in _TOOL_CALL.finditer(text) or ():
        found.append((match.start(), match.end(), _call_numbers(match[1])))
    if not found:
        for match in _FENCED.finditer(text):
            if (numbers := _json_numbers(match[1])) is not None:
                found.append((match.start(), match.end(), numbers))
    if not found and text[:2] == "{'" and (numbers := _json_numbers(text)) is not None:
        found.append((0, len(text), numbers))
    if not found and text[:1] in ("{", "["):
        start = 0
        while text[start : start + 1] in ("{", "["):
            try:
                _, end = json.JSONDecoder().raw_decode(text, start)
            except ValueError:
                break
            if (numbers := _json_numbers(text[start:end])) is None:
                break
            found.append((start, end, numbers))
            start = end + len(text[end:]) - len(text[end:].lstrip(" \n,;"))
    return found


def _call_numbers(written: str) -> list[int]:
    """The passages of a call in `<tool_call>`, as JSON or as some decoders write it otherwise."""
    if (numbers := _json_numbers(written)) is not None:
        return numbers
    name = re.search(r"(?i)\bexpand\b", written)
    return _listed(written[name.end() :], 0) if name else []


def _json_numbers(written: str) -> list[int] | None:
    """The passages that calls written as JSON ask for; None if this is no call."""
    try:
        value = json.loads(written)
    except ValueError:
        try:
            value = ast.literal_eval(written.strip())  # As Python writes it.
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    calls = value if isinstance(value, list) and value else [value]
    numbers: list[int] = []
    for call in calls:
        if not isinstance(call, dict):
            return None
        call = call["function"] if isinstance(call.get("function"), dict) else call
        if call and set(call) <= {"segment_id", "segment_ids", "passages"}:
            call = {"name": "expand", "arguments": call}  # Only what it asks for.
        name = call.get("name", call.get("tool"))
        if not isinstance(name, str):
            return None
        if name.lower() == "expand":
            numbers += _values(call.get("arguments", call.get("parameters", {})))
    return numbers


def _values(value: object) -> list[int]:
    """The numbers in a call's arguments, in whatever shape they are."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [value]
    if isinstance(value, dict):
        return [n for each in value.values() for n in _values(each)]
    if isinstance(value, list):
        return [n for each in value for n in _values(each)]
    if isinstance(value, str):
        try:
            nested = json.loads(value)
        except ValueError:
            return _listed(value, 0)
        return _values(nested) if isinstance(nested, dict | list | int) else []
    return []


_LONGEST_RANGE = 100
_RANGE = re.compile(r"(\d+)(?:\s*(?:[-–—]|(?:to|through)\b)\s*(?:[a-zA-Z]+[\s_#]*)?(\d+))?")


def _listed(numbers: str, passages: int) -> list[int]:
    """The numbers in a list such as "3, 5-7": 3, 5, 6, 7. "all" is 1 to `passages`."""
    found: list[int] = []
    for match in _RANGE.finditer(numbers):
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if first <= last < first + _LONGEST_RANGE:
            found += range(first, last + 1)
        else:
            found += [first, last]
    if not found and numbers.lower().startswith("all"):
        found = list(range(1, passages + 1))
    return found
