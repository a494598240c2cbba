"""What a decoder thinks before it answers: it is no part of the answer, and asks for nothing."""

from __future__ import annotations

__all__ = ["TAGS", "Spoken", "opens_thought", "spoken"]

_TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
}
"""How families of models write it: what begins a thought, and what ends it."""

TAGS = frozenset({*_TAGS, *_TAGS.values()})
"""All tags around thoughts."""


def spoken(reply: str, *, thinking: bool = False) -> str:
    """A reply without its thoughts.

    A thought that does not end goes on to the end of the reply. If the first tag is one that ends a thought,
    the reply began inside of it: some chat templates write the beginning of the thought themselves.

    Args:
        reply: The reply.
        thinking: Whether it is known to begin inside a thought.

    Returns:
        What is outside of thoughts.
    """
    opening, _ = _first(reply, list(_TAGS))
    closing, _ = _first(reply, list(_TAGS.values()))
    strip = Spoken(thinking=thinking or (closing >= 0 and (opening < 0 or closing < opening)))
    return strip(reply) + strip.end()


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends with the beginning of a thought."""
    return prompt.rstrip().endswith(tuple(_TAGS))


class Spoken:
    """Called with each piece of a reply, it returns what is outside of thoughts.

    Args:
        thinking: Whether the reply begins inside a thought.

    Attributes:
        thinking: Whether the reply is inside a thought by now.
    """

    def __init__(self, *, thinking: bool = False) -> None:
        self.thinking = thinking
        self._held = ""

    def __call__(self, piece: str) -> str:
        """Read on, and say what is plainly outside of thoughts by then."""
        self._held += piece
        said = ""
        while True:
            tags = list(_TAGS.values() if self.thinking else _TAGS)
            place, tag = _first(self._held, tags)
            if place < 0:
                break
            said += "" if self.thinking else self._held[:place]
            self._held = self._held[place + len(tag) :]
            self.thinking = not self.thinking
        # The end of what is there may be the beginning of a tag.
        keep = max(
            size
            for size in range(max(map(len, tags)))
            if any(size < len(tag) and self._held.endswith(tag[:size]) for tag in tags)
        )
        done = len(self._held) - keep
        said += "" if self.thinking else self._held[:done]
        self._held = self._held[done:]
        return said

    def end(self) -> str:
        """What was held back and is no tag, now that the reply is whole."""
        held, self._held = self._held, ""
        return "" if self.thinking else held


def _first(text: str, tags: list[str]) -> tuple[int, str]:
    """The place of the first tag, and the tag; -1 if there is none."""
    found = [(text.find(tag), tag) for tag in tags]
    return min([(place, tag) for place, tag in found if place >= 0], default=(-1, ""))
