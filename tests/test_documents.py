"""Documents are split into passages that give back the exact text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_rag import Document, PassageKey
from lclm_rag.compression import Compressor
from lclm_rag.splitting import split_document


def words(text: str) -> list[tuple[int, int]]:
    """A tokenizer for which every character is a token."""
    return [(i, i + 1) for i in range(len(text))]


@settings(deadline=None)
@given(text=st.text(min_size=1).filter(str.strip), limit=st.integers(1, 40))
def test_passages_joined_are_the_document(text: str, limit: int) -> None:
    passages = list(split_document(Document("d", text), words, limit))
    assert "".join(p.text for p in passages) == text
    for i, passage in enumerate(passages):
        assert passage.key == PassageKey("d", i)
        assert passage.text == text[passage.start : passage.end]
        assert passage.text.strip()


@settings(deadline=None, max_examples=50)
@given(text=st.text(min_size=1, max_size=300).filter(str.strip), limit=st.integers(8, 64))
def test_passages_hold_at_most_the_tokens_asked_for(
    compressor: Compressor, text: str, limit: int
) -> None:
    text = " ".join(text.split())  # White space alone may make a passage longer.
    for passage in split_document(Document("d", text), compressor.token_offsets, limit):
        assert len(compressor.tokenize([passage.text])[0]) <= limit


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One two three.\n\nFour five six seven.", "One two three.\n\n"),
        ("One two three. Four five six seven.", "One two three. "),
        ("alpha beta gamma delta epsilon", "alpha beta gamma "),
        ("a" * 40, "a" * 20),
    ],
)
def test_a_passage_ends_at_a_paragraph_a_sentence_or_a_word(text: str, first: str) -> None:
    assert next(split_document(Document("d", text), words, 20)).text == first


def test_a_short_document_is_one_passage() -> None:
    (passage,) = split_document(Document("d", "Short.", {"lang": "en"}), words, 100)
    assert (passage.start, passage.end, passage.metadata) == (0, 6, {"lang": "en"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "text"), "document id"),
        (("a", "  \n"), "'a' is empty"),
        (("a", "text", {"when": {1: 2}}), "'when' of document 'a' holds a key of type int"),
        (("a", "text", {"tags": ["x", {"y"}]}), "'tags' of document 'a' holds a set"),
        (("a", None), "text of document 'a' must be a string"),
    ],
)
def test_a_document_that_cannot_be_stored_says_which_and_why(
    arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Document(*arguments)  # type: ignore[arg-type]


def test_the_content_hash_sees_text_and_metadata_but_not_their_order() -> None:
    a = Document("d", "text", {"x": 1, "y": 2})
    assert a.content_hash() == Document("other", "text", {"y": 2, "x": 1}).content_hash()
    assert a.content_hash() != Document("d", "text", {"x": 1, "y": 3}).content_hash()
    assert a.content_hash() != Document("d", "Text", {"x": 1, "y": 2}).content_hash()
