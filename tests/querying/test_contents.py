"""What a knowledge base holds: documents, fields of metadata, tables; and many questions at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lclm_rag import (
    ContextLengthError,
    Document,
    KnowledgeBase,
    KnowledgeBaseError,
    MetadataField,
    PassageKey,
    field,
)
from lclm_rag.decoding import Decoder
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion
from lclm_rag.store.fragment import Fragment

LONG = "# Reeds\n\n" + " ".join(
    f"Reed number {n} bends in the wind of the lake." for n in range(90)
)
DOCUMENTS = [
    Document("reeds", LONG, {"lang": "en", "year": 2001, "tags": ["lake", "wind"]}),
    Document("moss", "Moss covers the north face.", {"lang": "de", "year": "2002", "note": None}),
    Document("été", "L'été est court.", {"draft": True, 'odd."key"': 1.5}),
]


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder) -> Iterator[KnowledgeBase]:
    path = tmp_path_factory.mktemp("contents") / "kb"
    with KnowledgeBase.create(path, passage_tokens=128, decoder=decoder) as made:
        made.add(DOCUMENTS[:2])
        made.add(DOCUMENTS[2:])
        yield made


@pytest.fixture
def no_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading latents is an error."""

    def read(*_: object) -> None:
        raise AssertionError("Latents were read.")

    monkeypatch.setattr(Fragment, "_encoded", read)


@pytest.mark.usefixtures("no_latents")
def test_documents_are_listed_with_their_sizes_and_metadata(kb: KnowledgeBase) -> None:
    found = {d.id: d for d in kb.documents()}
    assert list(found) == list(kb) == ["reeds", "moss", "été"]
    for document in DOCUMENTS:
        stored = found[document.id]
        assert stored.characters == len(document.text)
        assert stored.metadata == document.metadata
    assert found["moss"].passages == 1
    assert found["reeds"].passages == len(kb) - 2 > 2
    totals = kb.store.manifest.totals
    assert sum(d.tokens for d in found.values()) == totals.tokens
    assert sum(d.latents for d in found.values()) == totals.latents


@pytest.mark.usefixtures("no_latents")
def test_documents_are_listed_by_filter(kb: KnowledgeBase) -> None:
    assert [d.id for d in kb.documents({"lang": ["en", "de"]})] == ["moss", "reeds"]
    assert [d.id for d in kb.documents(field("year") >= 2000)] == ["reeds"]
    assert list(kb.documents({"lang": "fr"})) == []


def test_a_misspelt_key_in_a_listing_is_reported(
    kb: KnowledgeBase, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(kb.documents({"language": "en"})) == []
    assert "No passage has the metadata key 'language'" in caplog.text


@pytest.mark.usefixtures("no_latents")
def test_a_document_comes_back_as_it_was_added(kb: KnowledgeBase) -> None:
    assert [kb.get(d.id) for d in DOCUMENTS] == DOCUMENTS
    assert kb.get("nettles") is None
    assert "reeds" in kb
    assert "nettles" not in kb
    assert PassageKey("reeds", 0) not in kb


@pytest.mark.usefixtures("no_latents")
def test_fields_of_metadata_are_told_with_kinds_and_numbers_of_documents(
    kb: KnowledgeBase,
) -> None:
    assert {f.name: (f.kinds, f.documents) for f in kb.metadata_fields() if f.name != "note"} == {
        "draft": (("boolean",), 1),
        "lang": (("string",), 2),
        'odd."key"': (("number",), 1),
        "tags": (("string",), 1),
        "year": (("number", "string"), 2),
    }


def test_fields_follow_what_is_added_and_deleted(small_kb: KnowledgeBase) -> None:
    before = small_kb.metadata_fields()
    assert [f.name for f in before] == ["kind", "name"]
    small_kb.add([Document("x", "A new one.", {"colour": "red"})])
    assert MetadataField("colour", ("string",), 1) in small_kb.metadata_fields()
    small_kb.delete(["x"])
    assert small_kb.metadata_fields() == before


@pytest.mark.usefixtures("no_latents")
def test_passages_come_as_a_table(kb: KnowledgeBase) -> None:
    table = kb.to_arrow()
    assert table.num_rows == len(kb)
    rows = [row for row in table.to_pylist() if row["document_id"] == "reeds"]
    assert [row["ordinal"] for row in rows] == list(range(len(rows)))
    assert "".join(row["text"] for row in rows) == LONG
    assert all(LONG[row["start"] : row["end"]] == row["text"] for row in rows)
    assert pa.compute.sum(table["tokens"]).as_py() == kb.store.manifest.totals.tokens
    assert set(kb.to_arrow({"lang": "de"})["document_id"].to_pylist()) == {"moss"}
    assert kb.to_arrow({"lang": "fr"}).schema == table.schema


def test_latents_come_with_the_table_on_request(kb: KnowledgeBase) -> None:
    table = kb.to_arrow(latents=True)
    frame = kb.to_pandas(latents=True)
    assert list(frame["metadata"])[:1] == [DOCUMENTS[0].metadata]
    for i, row in enumerate(table.to_pylist()):
        key = PassageKey(row["document_id"], row["ordinal"])
        expected = kb.store.read([key])[0].latents.float().numpy()
        np.testing.assert_array_equal(np.array(row["latents"], np.float32), expected)
        np.testing.assert_array_equal(frame["latents"][i], expected)
    assert "latents" not in kb.to_pandas()


def test_an_empty_or_closed_knowledge_base_has_answers_too(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        assert list(kb) == list(kb.documents()) == kb.metadata_fields() == []
        assert kb.to_arrow(latents=True).num_rows == len(kb.to_pandas(latents=True)) == 0
        assert kb.retrieve(["a", "b"]) == [[], []]
    for ask in (kb.documents, kb.metadata_fields, kb.to_arrow, lambda: "x" in kb, kb.__iter__):
        with pytest.raises(KnowledgeBaseError, match="is closed; open it again"):
            ask()


# --- many questions ------------------------------------------------------------------------------------


def test_a_list_of_questions_finds_what_each_finds_alone(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    asked = [q.question for q in questions[:6]]
    found = knowledge_base.retrieve(asked, 3, {"kind": "person"})
    assert found == [knowledge_base.retrieve(q, 3, {"kind": "person"}) for q in asked]
    assert asyncio.run(knowledge_base.aretrieve(asked, 3, {"kind": "person"})) == found
    assert asyncio.run(knowledge_base.aretrieve(asked[0], 3)) == knowledge_base.retrieve(
        asked[0], 3
    )
    assert knowledge_base.retrieve([]) == knowledge_base.query([]) == []


def test_a_list_of_questions_is_answered_in_one_batch(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*(q.question for q in questions[:4]), "zyxwvut?"]
    alone = [knowledge_base.query(q, 2) for q in asked]
    batches: list[int] = []
    decoder = knowledge_base.decoder
    complete = decoder.complete

    def counted(prompts, sampling):  # type: ignore[no-untyped-def]
        batches.append(len(prompts))
        return complete(prompts, sampling)

    monkeypatch.setattr(decoder, "complete", counted)
    answers = knowledge_base.query(asked, 2)
    assert batches[0] == 4
    assert [a.text for a in answers] == [a.text for a in alone]
    assert [a.sources for a in answers] == [a.sources for a in alone]
    assert [a.no_passages for a in answers] == [False] * 4 + [True]
    again = asyncio.run(knowledge_base.aquery(asked, 2))
    assert [a.text for a in again] == [a.text for a in alone]


def test_a_bad_question_of_many_is_named_before_any_is_decoded(
    knowledge_base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knowledge_base.decoder, "complete", None)
    with pytest.raises(ValueError, match=r"^Question 2: The question is empty\.$"):
        knowledge_base.query(["Who?", " "])
    with pytest.raises(ValueError, match=r"^Question 1: A question is a string, not int\.$"):
        knowledge_base.retrieve([3])  # type: ignore[list-item]
    with pytest.raises(ContextLengthError, match=r"^Question 2: The question takes"):
        knowledge_base.query(["Who?", "why " * 20_000])


def test_documents_are_added_from_an_event_loop(small_kb: KnowledgeBase) -> None:
    report = asyncio.run(small_kb.aadd([Document("new", "A heron stands still.")]))
    assert report.added == 1
    assert asyncio.run(small_kb.aretrieve("heron"))[0].key == PassageKey("new", 0)
