"""The tokens of a text and of its stretches, from one tokenization of the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from lclm_rag.types import Passage

__all__ = ["TextTokens"]

_CHUNK = 1 << 14
"""The characters of a text that are tokenized by themselves, beside its other chunks, on all cores."""

_OVERLAP = 512
"""The characters that a chunk shares with the next one: enough for some words."""

_AT_ONCE = 1 << 19
"""The characters of a text that are tokenized ahead."""

_EDGE = 64
"""The characters of a stretch, at each end, that are tokenized again: enough for some words."""

_AGREEING = 2
"""The words that must be the same in two tokenizations, one after another, to take the rest as the same.

A tokenizer splits a text into words first; it looks ahead by a character or so, and never back.
"""

_ANSWERS = 8
"""The last answers that are remembered."""

Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class _Tokens:
    """Tokens, one after another: their ids, where each begins in the text, and whether a word does."""

    ids: Ints
    starts: Ints
    begins: Flags

    @classmethod
    def of(cls, encoding: Encoding, shift: int) -> _Tokens:
        """From an encoding of a text that begins `shift` characters after the beginning of the whole."""
        n = len(encoding)
        spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * n)
        starts = spans[::2] + shift
        words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
        begins = np.ones(n, np.bool_)
        begins[1:] = words[1:] != words[:-1]
        # Several tokens may share a character; a word that begins in the middle of one is no place to cut.
        begins[1:] &= starts[1:] > starts[:-1]
        if (starts[1:] < starts[:-1]).any():
            begins[:] = False
        return cls(np.fromiter(encoding.ids, np.int64, n), starts, begins)

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, stop: int | None = None) -> _Tokens:
        return _Tokens(self.ids[first:stop], self.starts[first:stop], self.begins[first:stop])

    @staticmethod
    def joined(parts: Sequence[_Tokens]) -> _Tokens:
        return _Tokens(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.begins for part in parts]),
        )

    def word_at(self, position: int) -> int | None:
        """The index of the token with which a word begins at a position; None if none does."""
        index = int(np.searchsorted(self.starts, position))
        if index < len(self) and self.starts[index] == position and self.begins[index]:
            return index
        return None


class _Stretch(NamedTuple):
    """The tokens of a stretch: its own first ones, those of the text [first, stop), its own last ones."""

    head: _Tokens
    first: int
    stop: int
    tail: _Tokens

    def __len__(self) -> int:
        return len(self.head) + self.stop - self.first + len(self.tail)


class TextTokens:
    """The tokens of stretches of a text, as if each were tokenized by itself, from front to back.

    The text is tokenized once, in chunks. The first and last words of a stretch are tokenized again, because
    tokens depend on what stands beside them; once both tokenizations have had some words in common, the rest
    is taken from that of the text. Where they have none, the stretch is tokenized by itself.

    Args:
        text: The text.
        tokenizer: The tokenizer.
    """

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self._text = text
        self._tokenizer = tokenizer
        nothing = np.zeros(0, np.int64)
        self._tokens = _Tokens(nothing, nothing, np.zeros(0, np.bool_))
        self._chunks = 0  # That are tokenized.
        self._covered = 0  # Up to where the tokens are those of the text.
        self._torn: list[int] = []  # Where two chunks had no words in common.
        self._kept = 0  # No stretch before this position is asked for any more.
        # The last answers: a passage is asked for again after the next one has been found.
        self._heads: dict[tuple[str, int], tuple[_Tokens, int] | None] = {}
        self._tails: dict[int, tuple[int, _Tokens] | None] = {}

    @classmethod
    def of_all(cls, texts: Sequence[str], tokenizer: Tokenizer) -> list[TextTokens]:
        """The tokens of many texts, of which the first ones are computed together, on all cores.

        Args:
            texts: The texts.
            tokenizer: The tokenizer.

        Returns:
            The tokens of each.
        """
        made = [cls(text, tokenizer) for text in texts]
        chunks = [list(each._next_chunks()) for each in made]
        encoded = iter(_encoded(tokenizer, list(chain.from_iterable(chunks))))
        for each, own in zip(made, chunks, strict=True):
            each._take([next(encoded) for _ in own])
        return made

    # --- what is asked --------------------------------------------------------------------------------

    def nth(self, prefix: str, start: int, end: int, n: int) -> int | None:
        """Find where a token of a stretch begins.

        Args:
            prefix: What stands before the stretch, and is tokenized with it.
            start: Where the stretch begins in the text.
            end: Where it ends (exclusive).
            n: The number of the token, from 0, those of the prefix included.

        Returns:
            The token's place in the text, before `start` if it is one of the prefix; None if there are no
            more than `n` tokens.
        """
        end = min(end, len(self._text))
        self._cover(end)
        if (place := self._far_from_the_end(prefix, start, end, n)) is not None:
            return place
        stretch = self._stretch(prefix, start, end)
        if n >= len(stretch):
            return None
        if n < len(stretch.head):
            return int(stretch.head.starts[n])
        n -= len(stretch.head)
        inner = stretch.stop - stretch.first
        if n < inner:
            return int(self._tokens.starts[stretch.first + n])
        return int(stretch.tail.starts[n - inner])

    def ids(self, passage: Passage) -> list[int]:
        """Give the token ids of a passage's content, after which nothing before its end is asked for.

        Args:
            passage: A passage of the text.

        Returns:
            The ids, those of the header included.
        """
        prefix = f"{passage.header}\n" if passage.header else ""
        self._cover(passage.end)
        head, first, stop, tail = self._stretch(prefix, passage.start, passage.end)
        self._kept = passage.end
        return [*head.ids.tolist(), *self._tokens.ids[first:stop].tolist(), *tail.ids.tolist()]

    # --- how it is found ------------------------------------------------------------------------------

    def _far_from_the_end(self, prefix: str, start: int, end: int, n: int) -> int | None:
        """Where token n begins, if it is so far from the end that how the text goes on does not matter."""
        if (begun := self._begun(prefix, start)) is None:
            return None
        head, first = begun
        at = first + n - len(head)
        last = int(np.searchsorted(self._tokens.starts, end)) - 1
        if not first <= at < last or self._is_torn(first, last):
            return None
        if np.count_nonzero(self._tokens.begins[at + 1 : last]) <= 2 * _AGREEING:
            return None
        return int(self._tokens.starts[at])

    def _stretch(self, prefix: str, start: int, end: int) -> _Stretch:
        begun = ended = None
        if end - start > 2 * _EDGE or (start == 0 and end == len(self._text)):
            begun, ended = self._begun(prefix, start), self._ended(end)
        if begun is not None and ended is not None:
            (head, first), (stop, tail) = begun, ended
            if first <= stop and not self._is_torn(first, stop):
                return _Stretch(head, first, stop, tail)
        (alone,) = self._encode(prefix + self._text[start:end], shift=start - len(prefix))
        return _Stretch(alone, 0, 0, alone.part(0, 0))

    def _begun(self, prefix: str, start: int) -> tuple[_Tokens, int] | None:
        """The first tokens of a stretch, and the token of the text with which it goes on; None if unknown."""
        if (prefix, start) not in self._heads:
            _make_room(self._heads)
            self._heads[prefix, start] = self._find_begun(prefix, start)
        return self._heads[prefix, start]

    def _find_begun(self, prefix: str, start: int) -> tuple[_Tokens, int] | None:
        if not prefix and start == 0:
            return self._tokens.part(0, 0), 0
        for size in (_EDGE, 4 * _EDGE):
            end = min(start + size, len(self._text))
            (alone,) = self._encode(prefix + self._text[start:end], shift=start - len(prefix))
            # The last words may be others because the stretch was cut there.
            words = np.flatnonzero(alone.begins)[:-_AGREEING]
            if end == len(self._text):
                words = np.append(np.flatnonzero(alone.begins), len(alone))
            words = words[alone.starts[words[words < len(alone)]].searchsorted(start) :]
            if (found := _agreement(self._tokens, alone, words)) is not None:
                own, index = found
                return alone.part(0, own), index
        return None

    def _ended(self, end: int) -> tuple[int, _Tokens] | None:
        """Up to which token of the text a stretch has the text's, and its last tokens; None if unknown."""
        if end not in self._tails:
            _make_room(self._tails)
            self._tails[end] = self._find_ended(end)
        return self._tails[end]

    def _find_ended(self, end: int) -> tuple[int, _Tokens] | None:
        tokens = self._tokens
        if end == len(self._text):
            return len(tokens), tokens.part(0, 0)
        for size in (_EDGE, 4 * _EDGE):
            before = int(np.searchsorted(tokens.starts, end - size))
            words = np.flatnonzero(tokens.begins[:before][-4 * _EDGE :])
            if not len(words):
                continue
            begin = int(tokens.starts[max(0, before - 4 * _EDGE) + words[-1]])
            (alone,) = self._encode(self._text[begin:end], shift=begin)
            # The first word may be another because the text was cut there.
            words = np.flatnonzero(alone.begins)[1 : 4 * _AGREEING]
            if (found := _agreement(tokens, alone, words)) is not None:
                own, index = found
                return index, alone.part(own)
        return None

    def _is_torn(self, first: int, stop: int) -> bool:
        if not self._torn or first >= stop:
            return False
        starts = self._tokens.starts
        return any(starts[first] < place <= starts[stop - 1] for place in self._torn)

    def _encode(self, *texts: str, shift: int) -> list[_Tokens]:
        return [_Tokens.of(each, shift) for each in _encoded(self._tokenizer, texts)]

    # --- the text's own tokens ------------------------------------------------------------------------

    def _cover(self, end: int) -> None:
        """Tokenize the text up to a position and some words further."""
        while self._covered < min(end + _OVERLAP, len(self._text)):
            self._forget()
            self._take(_encoded(self._tokenizer, list(self._next_chunks())))

    def _forget(self) -> None:
        """Drop the tokens that no stretch needs any more."""
        index = int(np.searchsorted(self._tokens.starts, self._kept - _OVERLAP))
        if index:
            self._tokens = self._tokens.part(index)
            self._torn = [place for place in self._torn if place >= self._kept - _OVERLAP]
            self._heads.clear()
            self._tails.clear()

    def _next_chunks(self) -> Iterator[str]:
        first = self._chunks * _CHUNK
        for begin in range(first, min(first + _AT_ONCE, len(self._text)), _CHUNK):
            yield self._text[begin : begin + _CHUNK + _OVERLAP]

    def _take(self, encoded: Sequence[Encoding]) -> None:
        """Add the next chunks' tokens to those before."""
        parts = [self._tokens]
        for encoding in encoded:
            begin = self._chunks * _CHUNK
            chunk = _Tokens.of(encoding, begin)
            if begin:
                parts[-1], chunk = self._at_common_words(parts[-1], chunk, begin)
            parts.append(chunk)
            self._chunks += 1
        self._tokens = _Tokens.joined(parts)
        self._covered = min(self._chunks * _CHUNK, len(self._text))

    def _at_common_words(
        self, before: _Tokens, after: _Tokens, begin: int
    ) -> tuple[_Tokens, _Tokens]:
        """Cut two overlapping chunks where they have the same words."""
        # Neither the first words of a chunk are to be trusted, nor the last ones.
        words = np.flatnonzero(after.begins & (after.starts < begin + _OVERLAP - _EDGE))
        if (found := _agreement(before, after, words[_AGREEING:])) is not None:
            first, index = found
            return before.part(0, index), after.part(first)
        self._torn.append(begin)
        index = int(np.searchsorted(before.starts, begin))
        return before.part(0, index), after


def _agreement(tokens: _Tokens, other: _Tokens, words: Ints) -> tuple[int, int] | None:
    """Where two tokenizations have the same words.

    Args:
        tokens: The one.
        other: The other.
        words: The tokens with which words of the other begin, as far as they can be trusted.

    Returns:
        The first such word's token in the other, and in the one; None if there is none.
    """
    for first, stop in zip(words, words[_AGREEING:], strict=False):
        index = tokens.word_at(int(other.starts[first]))
        if index is None:
            continue
        there = tokens.part(index, index + int(stop - first))
        here = other.part(int(first), int(stop))
        if np.array_equal(here.ids, there.ids) and np.array_equal(here.starts, there.starts):
            return int(first), index
    return None


def _make_room(answers: dict[Any, Any]) -> None:
    while len(answers) >= _ANSWERS:
        del answers[next(iter(answers))]


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    # Not `encode`, which holds the GIL.
    return tokenizer.encode_batch(list(texts), add_special_tokens=False)
