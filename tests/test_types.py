"""Documents: what they may hold, and when they count as changed."""

from __future__ import annotations

import pytest

from lclm_rag import Document


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "text"), "document id"),
        (("a", "  \n"), "'a' is empty"),
        (("a", "text", {"when": {0: 2}}), "'when' of document 'a' holds a key of type int"),
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


def test_the_content_hash_sees_the_whole_of_a_long_text() -> None:
    text = "é" * 3_000_000
    changed = text[:2_900_000] + "e" + text[2_900_001:]
    assert Document("d", text).content_hash() != Document("d", changed).content_hash()
    assert Document("d", "1 {}x").content_hash() != Document("d", "x", {}).content_hash()
