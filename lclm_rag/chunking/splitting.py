"""Documents → passages: stretches with a limited number of encoder tokens, cut where the text allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from lclm_rag.chunking.headings import Headings
from lclm_rag.chunking.tokens import TextTokens
from lclm_rag.types import Document, Passage, PassageKey

__all__ = ["TokenOffsets", "split_document"]

TokenOffsets = Callable[[str], Sequence[tuple[int, int]]]
"""Maps a text to the character span of each of its tokens, in order."""

NthToken = Callable[[str, int, int, int], int | None]
"""Where a token of a stretch of the text begins, as `TextTokens.nth` finds it."""

Span = tuple[int, int, str]
"""Start and end of a passage, and its header."""

_PARAGRAPH = re.compile(r"\n\s*\n\s*")
_SENTENCE = re.compile(
    r"""
    [.!?…؟۔।॥]
    (?<! \b (?: Mr | Ms | Dr | St | No | vs | Jr | Sr ) \. )
    (?<! \b (?: Mrs | Gen | Col | Rev | Fig | Vol ) \. )
    (?<! \b Prof \. )
    (?<! \b [A-Z] \. )  # the initials of a name
    ["'”’»)\]]* \s+
    | [。！？｡．]+ ["'”’」』）】]* \s*  # scripts that put no space between sentences
    """,
    re.VERBOSE,
)
_LINE = re.compile(r"\n\s*")
_WORD = re.compile(r"\s+")
_INK = re.compile(r"\S")


def split_document(
    document: Document,
    token_offsets: TokenOffsets,
    passage_tokens: int,
    *,
    contextual_headers: bool = False,
    tokens: TextTokens | None = None,
) -> Iterator[Passage]:
    """Split a document into passages of at most `passage_tokens` encoder tokens, one after another.

    A passage ends, by preference, before a Markdown heading, or after a paragraph, a sentence, a line or a
    word: at the last one in the second half of what fits, of the first kind in this list that occurs there.
    If none occurs, it ends after a whole character as a reader sees it (a letter with its accents, a flag). A
    heading goes with the text below it.

    Passages follow each other without gap or overlap, so that their texts joined give the document's text.
    Only white space may make a passage longer than the limit, because a passage is never blank.

    With contextual headers each passage has a header, "Title > Heading > Heading below it": the document's
    metadata `title`, then the headings above. The header counts towards `passage_tokens` and may take up to
    half of them; if it would take more, its outermost parts are left out.

    Args:
        document: The document.
        token_offsets: Gives the character span of each token of a text.
        passage_tokens: Most tokens in a passage, its header included.
        contextual_headers: Whether passages have headers.
        tokens: The tokens of the document's text, which spare `token_offsets` all but the headers.

    Yields:
        The passages, in order.

    Raises:
        ValueError: When `passage_tokens` is smaller than what one character takes.
    """
    if passage_tokens < 1:
        raise ValueError(f"passage_tokens must be at least 1, not {passage_tokens}.")
    title = document.metadata.get("title") if contextual_headers else None
    titles = [" ".join(title.split())] if isinstance(title, str) and title.strip() else []
    headings = Headings(document.text)

    last: tuple[list[str], str] = ([], "")

    def header(start: int) -> str:
        nonlocal last
        parts = [*titles, *headings.path(start)] if contextual_headers else []
        if parts != last[0]:
            last = (parts, _shortened(parts, token_offsets, passage_tokens // 2))
        return last[1]

    nth = _nth_by_offsets(document.text, token_offsets) if tokens is None else tokens.nth
    spans = _spans(document.text, header, headings, nth, passage_tokens)
    for ordinal, (start, end, above) in enumerate(_join_blank(document.text, spans)):
        yield Passage(
            key=PassageKey(document.id, ordinal),
            start=start,
            end=end,
            text=document.text[start:end],
            metadata=document.metadata,
            header=above,
        )


def _nth_by_offsets(text: str, token_offsets: TokenOffsets) -> NthToken:
    def nth(prefix: str, start: int, end: int, n: int) -> int | None:
        offsets = token_offsets(prefix + text[start:end])
        return start + offsets[n][0] - len(prefix) if n < len(offsets) else None

    return nth


def _spans(
    text: str,
    header: Callable[[int], str],
    headings: Headings,
    nth: NthToken,
    passage_tokens: int,
) -> Iterator[Span]:
    start = 0
    reach = passage_tokens * 6
    while start < len(text):
        above = header(start)
        prefix = f"{above}\n" if above else ""
        end, fitted = _next_bound(text, start, reach, prefix, headings, nth, passage_tokens)
        yield start, end, above
        start = end
        # The next passage is likely as long; looking much further would tokenize text in vain.
        reach = fitted + fitted // 4 + 16


def _next_bound(
    text: str,
    start: int,
    reach: int,
    prefix: str,
    headings: Headings,
    nth: NthToken,
    passage_tokens: int,
) -> tuple[int, int]:
    """Find where the passage that begins at `start`, below `prefix`, ends.

    Args:
        text: The whole text.
        start: Where the passage begins.
        reach: How many characters to look at first.
        prefix: The header, with a line break; empty if there is none.
        headings: The text's headings.
        nth: Finds where tokens begin.
        passage_tokens: Most tokens in a passage.

    Returns:
        The end (exclusive) as a position in the text, and how many characters would have fitted.
    """
    # A character that several tokens share (byte-level tokens) is never cut.
    while (too_far := nth(prefix, start, start + reach, passage_tokens)) is None:
        if start + reach >= len(text):
            return len(text), len(text) - start
        reach *= 2
    piece = text[start : start + reach]
    limit = too_far - start
    if limit <= 0:
        raise _too_small(passage_tokens, piece[:1])
    end = _best_end(piece, start, limit, headings)
    # A text cut elsewhere may tokenize a little longer: shrink until it fits.
    while nth(prefix, start, start + end, passage_tokens) is not None:
        if end == 1:
            raise _too_small(passage_tokens, piece[:1])
        end = _best_end(piece, start, end - 1, headings)
    return start + end, limit


def _too_small(passage_tokens: int, character: str) -> ValueError:
    return ValueError(
        f"passage_tokens is {passage_tokens}, but one character of {character!r} takes more tokens "
        "than that; use a larger passage_tokens."
    )


def _best_end(piece: str, start: int, limit: int, headings: Headings) -> int:
    """Where to end in piece[:limit], which begins at `start` of the text; from 1 to `limit`."""
    heading = headings.last_between(start + limit // 2, start + limit)
    end = heading - start if heading is not None else _preferred_break(piece, limit)
    # The text below a heading is in the next passage, so the heading goes there too, with the headings right
    # above it; unless these are many (a table of contents, a text that marks its comments with #).
    before = end
    while (heading := headings.left_alone(start, start + before)) is not None:
        before = heading - start
        if before < limit // 4:
            return end
    return before


def _preferred_break(piece: str, limit: int) -> int:
    """The best place to end in the second half of piece[:limit]; from 1 to `limit`."""
    for pattern in (_PARAGRAPH, _SENTENCE, _LINE, _WORD):
        ends = [match.end() for match in pattern.finditer(piece, limit // 2, limit)]
        if pattern is _SENTENCE:
            # "e.g. this", "3.5 approx. three": a sentence does not begin with a small letter.
            ends = [end for end in ends if not piece[end : end + 1].islower()]
        if ends:
            return _whole_character(piece, ends[-1])
    return _whole_character(piece, limit)


def _whole_character(piece: str, end: int) -> int:
    """The last position up to `end` that is not inside what a reader sees as one character.

    Characters longer than 64 code points (letters under towers of accents) are cut anywhere.
    """
    if piece[end - 1 : end + 1].isascii() and piece[end - 1 : end + 1] != "\r\n":
        return end
    import regex

    begin = max(0, end - 64)
    last = begin
    for match in regex.finditer(r"\X", piece, pos=begin):
        if match.end() > end:
            break
        last = match.end()
    return last if last > begin else end


def _join_blank(text: str, spans: Iterator[Span]) -> Iterator[Span]:
    """Join passages that are only white space to the one before (the first joins the next)."""
    held: Span | None = None
    held_blank = False
    for start, end, header in spans:
        blank = not _INK.search(text, start, end)
        if held is None:
            held, held_blank = (start, end, header), blank
        elif held_blank:
            held, held_blank = (held[0], end, header), blank
        elif blank:
            held = (held[0], end, held[2])
        else:
            yield held
            held = (start, end, header)
    if held is not None:
        yield held


def _shortened(parts: list[str], token_offsets: TokenOffsets, most_tokens: int) -> str:
    """The parts as one line of at most `most_tokens` tokens; the outermost parts are dropped first."""
    while parts:
        header = " > ".join(parts)
        # No tokenizer's tokens are this long on average, so a header far too long is not tokenized.
        if len(header) <= most_tokens * 24 and len(token_offsets(f"{header}\n")) <= most_tokens:
            return header
        parts = parts[1:]
    return ""
