"""Makes an answer's text from its tokens, as they come, in the same way for every decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting.thinking import TAGS

__all__ = ["Detokenizer", "hidden_tokens"]


def hidden_tokens(checkpoint: Checkpoint, ends: Iterable[int]) -> frozenset[int]:
    """The tokens that no text shows: special ones, and those that end an answer.

    Tags around thoughts are shown, special or not: without them nobody could tell thought from answer.

    Args:
        checkpoint: The decoder's checkpoint.
        ends: The tokens that end an answer.

    Returns:
        Their ids.
    """
    added = checkpoint.decoder_tokenizer.get_added_tokens_decoder()
    special = {id for id, token in added.items() if token.special and token.content not in TAGS}
    return frozenset({*special, *ends})


class Detokenizer:
    """Called with the next tokens, it returns the text that they complete.

    Args:
        tokenizer: The decoder's tokenizer.
        hidden: The tokens to leave out, as `hidden_tokens` gives them.

    Attributes:
        text: All text until now.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._stream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self.text = ""

    def __call__(self, ids: Sequence[int]) -> str:
        """Take the next tokens, and return the text up to the last whole character."""
        text = ""
        for id in ids:
            if id not in self._hidden:
                self._ids.append(id)
                text += self._stream.step(self._tokenizer, id) or ""
        self.text += text
        return text

    def end(self) -> str:
        """What was held back: part of a character, which is shown as U+FFFD."""
        whole = str(self._tokenizer.decode(self._ids, skip_special_tokens=False))
        rest = whole.removeprefix(self.text) if whole.startswith(self.text) else ""
        self.text += rest
        return rest

    def all(self, ids: Sequence[int]) -> str:
        """The text of a whole answer."""
        return self(ids) + self.end()
