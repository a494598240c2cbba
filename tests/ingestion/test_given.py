"""What `add` takes for documents, and what it says of what is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.ingestion.given import as_documents

VELUN = Document("velun", "The mayor of Velun is Gedul Gizel.", {"lang": "en"})
AS_DICT = {"id": "velun", "text": VELUN.text, "metadata": {"lang": "en"}}


@pytest.mark.parametrize("given", [VELUN, AS_DICT, [VELUN], (AS_DICT,), {"velun": VELUN}.values()])
def test_one_document_or_many_are_taken_as_objects_or_as_dicts(given: Any) -> None:
    assert list(as_documents(given)) == [VELUN]  # type: ignore[arg-type]


def test_metadata_may_be_left_out() -> None:
    given: list[Any] = [{"id": "a", "text": "x"}, {"id": "b", "text": "y", "metadata": None}]
    assert list(as_documents(given)) == [Document("a", "x"), Document("b", "y")]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("velun.txt", r"not as a str; lclm_rag\.connectors\.corpora reads files\."),
        (Path("velun.txt"), r"not as a PosixPath; "),
        (None, "not as a NoneType"),
        (["velun.txt"], "^Document 1 is a str; give Document"),
        ([VELUN, 7], "^Document 2 is an int; give Document"),
        ([VELUN, ("id", "text")], "^Document 2 is a tuple"),
        (
            {"id": "a", "content": "x"},
            r"^The document \('a'\) has the key 'content'; a document has id, text",
        ),
        ([VELUN, {"text": "x"}], "^Document 2 has no 'id'; a document needs id and text"),
        ([{"id": "a"}], r"^Document 1 \('a'\) has no 'text'"),
        ([{"id": "a", "text": "x", "year": 2020}], "has the key 'year'; .* belongs into metadata"),
        ({"id": 7, "text": "x"}, "A document id must be a non-empty string, not 7"),
    ],
)
def test_what_is_no_document_is_named_before_any_work(
    small_kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch, given: Any, message: str
) -> None:
    def no_work(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was worked on")

    monkeypatch.setattr(small_kb, "_compress", no_work)
    with pytest.raises(ValueError, match=message):
        small_kb.add(given)


def test_a_stream_is_read_as_it_is_used() -> None:
    def stream() -> Iterator[Any]:
        yield AS_DICT
        yield 7
        raise AssertionError("read on")

    documents = iter(as_documents(stream()))  # type: ignore[arg-type]
    assert next(documents) == VELUN
    with pytest.raises(ValueError, match=r"^Document 2 is an int"):
        next(documents)
