"""Examples: what the records of training data say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["COLUMNS", "Ask", "Chat", "Example", "MarkedText", "Questions", "Text", "example_of"]

COLUMNS = "text passages question answer number questions messages tools compression_prompt target".split()
"""The fields that are read of a record."""

_ONLY_TEXT = "NA_string_only"


@dataclass(frozen=True)
class Text:
    """A text."""

    text: str


@dataclass(frozen=True)
class Ask:
    """A question, and its answer.

    Attributes:
        question: The question.
        answer: The answer, or the reply that is distilled; learned as it is written, spaces included.
        number: Which passage is to be asked for, from 1; None answers without.
    """

    question: str
    answer: str
    number: int | None = None


@dataclass(frozen=True)
class Questions:
    """Passages, and what is asked about them.

    Attributes:
        passages: The passages, in their order in the prompt. A knowledge base puts passages in the order of
            documents, not of relevance, and so should a data set.
        asks: The questions, at least one. Each is a prompt of its own; what they have in common, which is all
            but question and answer, is computed once.
    """

    passages: tuple[str, ...]
    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class Chat:
    """A chat, with `<|memory_start|>…<|memory_end|>` in the contents of its messages.

    Attributes:
        messages: The messages, as chat templates take them.
        tools: The tools, in the format of OpenAI's API.
        last_only: Whether only the last of the assistant's turns is learned.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    last_only: bool = False


@dataclass(frozen=True)
class MarkedText:
    """A text with `<|memory_start|>…<|memory_end|>` in it, without a chat around it."""

    text: str


Example = Text | Questions | Chat | MarkedText


def example_of(record: Mapping[str, Any]) -> Example:
    """Read a record.

    A record has `text`; or `passages`, `question`, `answer` and perhaps `number`, or in their place
    `questions`, a list of objects that have these three; or `messages` and perhaps `tools`, both also as JSON
    in a text. The rows of leonli66/stage3-final-mixture-20260910-raw are either
    like the last, or have `compression_prompt` (messages) and `target` (the last turn of the assistant, which
    alone is learned; "NA_string_only" if the first message is a text without a chat).

    Args:
        record: The record; other fields are not read, and null is as if a field were missing.

    Returns:
        The example.

    Raises:
        ValueError: When it is none of these; the message says what is wrong.
    """
    if record.get("messages") is not None:
        tools = _parsed(record.get("tools"), "tools") if record.get("tools") != "" else None
        given = () if tools is None else _dicts(tools, "tools")
        return Chat(_dicts(record["messages"], "messages"), given)
    if record.get("passages") is not None:
        passages, questions = record["passages"], record.get("questions")
        if not isinstance(passages, list) or not all(isinstance(p, str) for p in passages):
            raise ValueError("passages is not a list of texts.")
        asked = (dict(record),) if questions is None else _dicts(questions, "questions")
        if not asked:
            raise ValueError("questions is an empty list.")
        return Questions(tuple(passages), tuple(_ask(each, len(passages)) for each in asked))
    if record.get("compression_prompt") is not None:
        prompt = _dicts(record["compression_prompt"], "compression_prompt")
        if record.get("target") == _ONLY_TEXT:
            return MarkedText(_text(prompt[0] if prompt else {}, "content"))
        said = {"role": "assistant", "content": _text(record, "target")}
        return Chat((*prompt, said), last_only=True)
    if record.get("text") is None:
        raise ValueError("It has neither text, nor passages, nor messages.")
    return Text(_text(record, "text"))


def _ask(record: Mapping[str, Any], passages: int) -> Ask:
    number = record.get("number")
    whole = isinstance(number, int) and not isinstance(number, bool)
    if number is not None and not (whole and 1 <= number <= passages):
        raise ValueError(f"number is {number!r}; the passages are 1 to {passages}.")
    return Ask(_text(record, "question"), _text(record, "answer"), number)


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {'missing' if value is None else 'not a text, or blank'}.")
    return value


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name} is a text, but not JSON: {error}.") from error


def _dicts(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    found = _parsed(value, name)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError(f"{name} is not a list of objects.")
    # Tables have null where a message lacks what another has.
    return tuple({k: v for k, v in each.items() if v is not None} for each in found)
