"""Skim, then expand: what the decoder is offered, and what it replies.

The decoder sees numbered passages as latents and may ask for some of them verbatim, in a chat that only
grows. It replies in words, "EXPAND: 3, 5" or "ANSWER: …", or calls a tool: the frame's own, or `EXPAND_TOOL`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lclm_rag.prompting.chat import ChatMessage
from lclm_rag.prompting.frames import Frame, fill
from lclm_rag.types import PassageKey

__all__ = [
    "EXPANDED_AGAIN",
    "EXPANDED_FIRST",
    "EXPAND_TOOL",
    "Expand",
    "Given",
    "check_expand",
    "next_messages",
    "tool_offered",
]

Expand = Literal["auto", "never", "always", "model", "tool"] | int | tuple[PassageKey, ...]
"""Which passages go into a prompt verbatim.

- "never": none.
- "always": all that were retrieved.
- A number: that many of the best.
- Keys of passages: those, if they are among the retrieved.
- "auto": the best one if the question asks for an exact string. If the answer holds strings that its sources
  do not, the best three, and the question is decoded once more. The new answer replaces the first if its
  sources lack fewer of its strings; an empty one never does, nor one that was cut for one that was not.
- "model": those that the decoder asks for, as its frame has it: in words, or by the frame's tool.
- "tool": those for which the decoder calls a tool: the frame's own, or one that takes numbers.

The prompt's budget limits all of them: passages that do not fit verbatim stay as latents.
"""

EXPANDED_FIRST = 1
"""With "auto": how many passages are verbatim if the question asks for an exact string."""
EXPANDED_AGAIN = 3
"""With "auto": how many passages are verbatim if an answer holds strings that its sources do not."""

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
    elif isinstance(expand, tuple):
        alien = next((key for key in expand if not isinstance(key, PassageKey)), None)
        if alien is not None:
            raise ValueError(f"expand takes keys of passages, PassageKey(…), not {alien!r}.")
    elif expand not in ("auto", "never", "always", "model", "tool"):
        raise ValueError(
            f"Unknown expand {expand!r}; use auto, never, always, model, tool, or a number of passages; or, "
            "from a program, their keys."
        )


def tool_offered(frame: Frame, expand: Expand) -> dict[str, Any] | None:
    """The tool by which a decoder asks for passages.

    Args:
        frame: The frame of its prompts.
        expand: "model" or "tool".

    Returns:
        The frame's tool; if it has none, `EXPAND_TOOL` for "tool", and None for "model", which asks in words.
    """
    if frame.expansion.tool is not None:
        return {"type": "function", "function": frame.expansion.tool}
    return EXPAND_TOOL if expand == "tool" else None


@dataclass(frozen=True)
class Given:
    """What a decoder gets for its request.

    Attributes:
        passages: Number and text of each passage that it asked for and may read.
        refused: Number of each other passage that it asked for, and the sentence that says why not.
        unreadable: Whether it made a call that cannot be read.
        question: The question.
        left: How many rounds of expansion are left after this one.
        last: Whether nothing more can be expanded.
        reminded: Whether it did not ask, although the frame demands it.
    """

    passages: tuple[tuple[int, str], ...]
    refused: tuple[tuple[int, str], ...]
    question: str
    left: int
    last: bool
    unreadable: bool = False
    reminded: bool = False


def next_messages(frame: Frame, given: Given, *, by_tool: bool) -> list[ChatMessage]:
    """Word the messages that give a decoder what it asked for.

    Args:
        frame: The frame of its prompts.
        given: What it gets.
        by_tool: Whether it asked by calling a tool.

    Returns:
        The messages. A frame's own tool gets one result for each passage, which is the bare text.
    """
    expansion = frame.expansion
    if by_tool and expansion.tool is not None:
        results = sorted([*given.passages, *given.refused])
        if given.unreadable:
            name = fill(expansion.name, number=1)
            results.append(
                (0, f"This call cannot be read. Call {expansion.tool['name']}, as for {name}.")
            )
        return [("tool", words) for _, words in results]
    passages = expansion.given_between.join(
        fill(expansion.given_passage, number=number, text=text) for number, text in given.passages
    )
    refused = "".join(f"{sentence}\n" for _, sentence in given.refused)
    if given.unreadable:
        refused += "This request cannot be read: give the numbers of passages.\n"
    if by_tool:
        return [("tool", refused + passages)]
    words = fill(
        expansion.given,
        passages=passages,
        left=fill(expansion.left, left=given.left) if given.left else "",
        no_more=expansion.no_more if given.last else "",
        question=given.question,
    )
    return [("user", refused + (expansion.remind if given.reminded else "") + words)]
