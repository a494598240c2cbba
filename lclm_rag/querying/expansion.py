"""Skim, then expand: what the decoder is offered, and what it replies.

The decoder sees numbered passages as latents and may ask for some of them verbatim, in a chat that only
grows. It replies in words, "EXPAND: 3, 5" or "ANSWER: …", or calls a tool (`EXPAND_TOOL`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "EXPANDED_AGAIN",
    "EXPANDED_FIRST",
    "EXPAND_TOOL",
    "MAX_ROUNDS",
    "Expand",
    "Reply",
    "check_expand",
    "offering",
    "parse_reply",
    "tool_result",
    "verbatim_turn",
]

Expand = Literal["auto", "never", "always", "model", "tool"] | int
"""Which passages go into a prompt verbatim.

- "never": none.
- "always": all that were retrieved.
- A number: that many of the best.
- "auto": the best one if the question asks for an exact string. If the answer holds strings that its sources
  do not, the best three, and the question is decoded once more.
- "model": those that the decoder asks for in words.
- "tool": those for which the decoder calls the tool.

The prompt's budget limits all of them: passages that do not fit verbatim stay as latents.
"""

EXPANDED_FIRST = 1
"""With "auto": how many passages are verbatim if the question asks for an exact string."""
EXPANDED_AGAIN = 3
"""With "auto": how many passages are verbatim if an answer holds strings that its sources do not."""

MAX_ROUNDS = 3
"""Most prompts for one question with "model" and "tool"; the last offers no more expansion."""

EXPAND_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "expand",
        "description": "Read passages word for word. Use it before an answer that must be exact: codes, "
        "names, numbers, quotations.",
        "parameters": {
            "type": "object",
            "properties": {
                "passages": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 1},
                    "description": "The numbers of the passages, as they stand in front of them.",
                }
            },
            "required": ["passages"],
        },
    },
}
"""The tool, in the format of OpenAI's API, which chat templates take too."""

_OFFER = (
    "Reply ANSWER: and the answer. To read passages word for word first, reply EXPAND: and their "
    "numbers."
)
_NO_MORE = "Nothing more can be expanded. Reply ANSWER: and the answer."


def check_expand(expand: Expand) -> None:
    """Check a value of `Expand`.

    Args:
        expand: The value.

    Raises:
        ValueError: When it is not one of the possible values.
    """
    if isinstance(expand, int) and not isinstance(expand, bool):
        if expand < 0:
            raise ValueError(f"expand counts passages; it cannot be {expand}.")
    elif expand not in ("auto", "never", "always", "model", "tool"):
        raise ValueError(
            f"Unknown expand {expand!r}; use auto, never, always, model, tool, or a number of passages."
        )


def offering(instruction: str) -> str:
    """Add to an instruction what the decoder may reply.

    The instruction is at the head of the prompt. The question stays at its end, next to the reply, as in
    every other prompt.

    Args:
        instruction: The instruction.

    Returns:
        The instruction with the offer to expand passages.
    """
    return f"{instruction} {_OFFER}"


def verbatim_turn(passages: Sequence[tuple[int, str]], question: str, last: bool) -> str:
    """Word the user's next turn: passages verbatim, and the question again.

    Args:
        passages: Number and text of each passage.
        question: The question.
        last: Whether nothing more can be expanded after this turn; then the turn says so.

    Returns:
        The turn's words.
    """
    no_more = f"{_NO_MORE}\n" if last else ""
    return f"Word for word:\n{tool_result(passages)}{no_more}\nQuestion: {question}"


def tool_result(passages: Sequence[tuple[int, str]]) -> str:
    """Word the result of a call of `EXPAND_TOOL`.

    Args:
        passages: Number and text of each passage.

    Returns:
        The passages, one per line, each after its number.
    """
    return "".join(f"[{number}] {text}\n" for number, text in passages)


@dataclass(frozen=True)
class Reply:
    """What a decoder replied: passages to expand or, if it asks for none, an answer.

    Attributes:
        numbers: Passages to expand, by number, each once.
        unknown: Numbers that it gave and no passage has.
        answer: The answer; "" if it asks to expand.
    """

    numbers: tuple[int, ...]
    unknown: tuple[int, ...]
    answer: str


_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)
_NUMBERS = r"\d+(?:\s*(?:[-–]|to)\s*\d+)?"
# Matches "EXPAND: 3, 5", "expand(3)", "**EXPAND** [3] and [5]", "Expand passages 3-5.": the word, and nothing
# but numbers to the end of the line or within the brackets. In lower case inside a sentence it is ignored.
_EXPAND = re.compile(
    rf"(?:^[\W_]*(?i:expand)|(?<!\w)EXPAND)\b[\s:*_`=(\[{{#]*"
    rf"(?:(?i:passages?|numbers?|nos?\.?|memor(?:y|ies))[\s:*_`=(\[{{#]*)?"
    rf"(?P<numbers>{_NUMBERS}(?:[\s,;&#\[\]()]+(?:(?:and|passages?)\b[\s#\[(]*)*{_NUMBERS})*)"
    rf"(?=[\])}}\s*_`.,;!]*(?:$|[^\w\s]))",
    re.MULTILINE,
)
_ANSWER = re.compile(
    r"(?:^[\W_]*(?i:answer)|(?<!\w)ANSWER)\s*[*_`]*\s*(?::|-|–|=)[*_`]*", re.MULTILINE
)


def parse_reply(text: str, passages: int) -> Reply:
    """Read a decoder's reply.

    Decoders write "EXPAND: 3, 5", "expand(3)", "**EXPAND:** passages 3-5", or a tool call as JSON, with or
    without `<tool_call>`; and an answer after "ANSWER:" or without it. Thoughts in `<think>` do not count. If
    there are several of these, the last one counts. Anything else is an answer.

    Args:
        text: The reply.
        passages: How many passages the prompt has.

    Returns:
        The passages that it asks for, or its answer.
    """
    spoken = _THOUGHT.sub("", text).strip()
    requested = list(_tool_calls(spoken))
    requested += [(m.start(), _listed(m.group("numbers"))) for m in _EXPAND.finditer(spoken)]
    answers = [(m.start(), m.end()) for m in _ANSWER.finditer(spoken)]
    last_asked = max((start for start, _ in requested), default=-1)
    last_answer = max(answers, default=(-1, 0))
    if last_asked < 0 or last_answer[0] > last_asked:
        answer = spoken[last_answer[1] :] if answers else spoken
        return Reply((), (), answer.strip().removesuffix("**").strip())
    # Calls in a row, "EXPAND(3) EXPAND(5)", are one request; an answer between them begins a new one.
    since = max((start for start, _ in answers if start < last_asked), default=-1)
    numbers = dict.fromkeys(n for start, found in requested if start > since for n in found)
    known = tuple(n for n in numbers if 1 <= n <= passages)
    return Reply(known, tuple(n for n in numbers if n not in known), "")


def _tool_calls(text: str) -> Iterator[tuple[int, list[int]]]:
    """Where each call of the tool begins, and the passages it asks for."""
    calls = [(m.start(), m.group(1)) for m in _TOOL_CALL.finditer(text)]
    if not calls and text.startswith("{"):
        calls = [(0, text)]
    for start, written in calls:
        try:
            call = json.loads(written)
        except ValueError:
            continue
        if not isinstance(call, dict) or call.get("name") != "expand":
            continue
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _json_or_empty(arguments)
        wanted = arguments.get("passages", []) if isinstance(arguments, dict) else []
        listed = wanted if isinstance(wanted, list) else [wanted]
        numbers = [int(n) for n in map(str, listed) if n.strip().isdecimal()]
        if numbers:
            yield start, numbers


def _json_or_empty(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


_LONGEST_RANGE = 100


def _listed(numbers: str) -> list[int]:
    """The numbers in a list such as "3, 5-7": 3, 5, 6, 7."""
    found: list[int] = []
    for match in re.finditer(r"(\d+)(?:\s*(?:[-–]|to)\s*(\d+))?", numbers):
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if first <= last < first + _LONGEST_RANGE:
            found += range(first, last + 1)
        else:
            found += [first, last]
    return found
