"""From documents to answers: what a user of the library gets."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lclm_rag import (
    ContextLengthError,
    Document,
    KnowledgeBase,
    KnowledgeBaseError,
    PassageKey,
    Sampling,
    StoreError,
    field,
)
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
from lclm_rag.evaluation.measures import exact_match
from lclm_rag.evaluation.scoring import recall, score_context
from lclm_rag.indexing import embedded
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.ingestion import passages as steps
from lclm_rag.retrieval import EdgeIndex
from lclm_rag.store import CODECS, CodecName
from support.checkpoints import MakeCheckpoint


@pytest.mark.slow
def test_questions_are_answered_from_latents_nearly_as_well_as_from_text(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    latents = score_context(knowledge_base, questions, "latents", 4)
    text = score_context(knowledge_base, questions, "text", 4)
    nothing = score_context(knowledge_base, questions, "none", 4)
    assert recall(knowledge_base, questions, 4) == 1.0
    assert latents.exact_match >= 0.85
    assert latents.exact_match >= text.exact_match - 0.08
    assert nothing.exact_match <= 0.1
    assert latents.positions < text.positions / 2


def test_an_answer_says_what_it_rests_on_and_what_it_cost(
    knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    question = sheets[3].questions[0]
    answer = knowledge_base.query(question.question, top_k=3)
    best = answer.sources[0]
    assert best.key == PassageKey(sheets[3].document.id, 0)
    assert best.text == sheets[3].document.text[best.start : best.end]
    assert best.metadata == sheets[3].document.metadata
    assert len(answer.sources) == 3
    assert answer.left_out == []
    rows = knowledge_base.store.read(hit.key for hit in answer.sources)
    assert answer.usage.latents == sum(len(row.latents) for row in rows)
    assert answer.usage.source_tokens == sum(row.tokens for row in rows)
    assert answer.usage.positions == knowledge_base.assemble(question.question, 3).positions
    assert answer.usage.generated_tokens >= 1
    assert 0 < answer.timings.first_token <= answer.timings.total
    json.dumps(answer.to_dict())


def test_stream_and_async_give_what_query_gives(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    question = questions[0].question
    expected = knowledge_base.query(question, 4).text
    assert "".join(knowledge_base.stream(question, 4)) == expected

    async def both() -> tuple[str, str]:
        answer = await knowledge_base.aquery(question, 4)
        return answer.text, "".join([p async for p in knowledge_base.astream(question, 4)])

    assert asyncio.run(both()) == (expected, expected)


def test_all_passages_with_some_metadata_are_found_without_a_question(
    knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    expected = sorted(PassageKey(s.document.id, 0) for s in sheets if s.kind == "person")
    assert knowledge_base.find({"kind": "person"}) == expected
    with pytest.raises(ValueError, match="Say what to find"):
        knowledge_base.find({})


def test_filters_reach_the_engine(knowledge_base: KnowledgeBase, sheets: list[FactSheet]) -> None:
    question = sheets[0].questions[0].question
    for kind in ("person", "place"):
        hits = knowledge_base.retrieve(question, 10, {"kind": kind})
        assert {hit.metadata["kind"] for hit in hits} <= {kind}
    others = knowledge_base.retrieve(question, 10, ~(field("kind") == sheets[0].kind))
    assert sheets[0].kind not in {hit.metadata["kind"] for hit in others}


@pytest.mark.slow
def test_space_and_codec_do_not_change_the_answers(
    tmp_path: Path, sheets: list[FactSheet], decoder: TransformersDecoder
) -> None:
    answers = set()
    for space in ("encoder", "decoder"):
        for codec in CODECS:
            kb = KnowledgeBase.create(
                tmp_path / f"{space}-{codec}",
                space=space,  # type: ignore[arg-type]
                codec=codec,  # type: ignore[arg-type]
                decoder=decoder,
            )
            kb.add(sheet.document for sheet in sheets[:8])
            questions = [sheet.questions[0].question for sheet in sheets[:8]]
            answers.add(tuple(kb.query(q, 2, sampling=Sampling(24)).text for q in questions))
            kb.close()
    assert len(answers) == 1


# --- changing it ---------------------------------------------------------------------------------


def test_adding_again_skips_what_is_unchanged_and_replaces_what_is_not(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    first, second = sheets[0].document, sheets[1].document
    changed = Document(first.id, "A wholly new zebra text.", {"kind": "animal"})
    relabelled = Document(second.id, second.text, {"kind": "other"})
    report = small_kb.add([changed, relabelled, sheets[2].document, sheets[9].document])
    assert (report.added, report.updated, report.unchanged) == (1, 2, 1)
    assert len(small_kb) == 6
    assert small_kb.retrieve("zebra", 1)[0].text == changed.text
    assert [h.key.document_id for h in small_kb.retrieve(second.text, 9, {"kind": "other"})] == [
        second.id
    ]
    version = small_kb.store.version
    assert small_kb.add([changed]).unchanged == 1
    assert small_kb.store.version == version


class CountedCompressor:
    """The compressor of a knowledge base, with the texts that it was given."""

    def __init__(self, kb: KnowledgeBase) -> None:
        self.texts: list[str] = []
        inner, decode = kb.compressor.compress_together, kb.checkpoint.encoder_tokenizer.decode

        def compress(token_ids: Sequence[Sequence[int]], *rest: Any) -> Any:
            self.texts += map(decode, token_ids)
            return inner(token_ids, *rest)

        kb.compressor.compress_together = compress  # type: ignore[method-assign]


def test_of_a_changed_document_only_the_passages_that_changed_are_compressed(
    tmp_path: Path, decoder: TransformersDecoder
) -> None:
    sentences = [f"Sentence number {i} tells of thing {i}. " for i in range(12)]
    with KnowledgeBase.create(tmp_path / "kb", passage_tokens=40, decoder=decoder) as kb:
        kb.add([Document("d", "".join(sentences), {"lang": "en"})])
        before = list(kb.store.passages())
        counted = CountedCompressor(kb)
        relabelled = kb.add([Document("d", "".join(sentences), {"lang": "de"})])
        assert counted.texts == []
        assert (relabelled.updated, relabelled.reused) == (1, len(before))
        assert [h.metadata for h in kb.retrieve("thing", 1, {"lang": "de"})] == [{"lang": "de"}]
        sentences[-1] = "A wholly new zebra ends it. "
        changed = kb.add([Document("d", "".join(sentences), {"lang": "de"})])
        assert all("zebra" in text for text in counted.texts)
        assert changed.reused == len(before) - 1
        assert changed.passages - changed.reused == len(counted.texts)
        after = list(kb.store.passages())
        for a, b in zip(before[:-1], after, strict=False):
            assert torch.equal(a.latents, b.latents)
        assert "".join(row.passage.text for row in after) == "".join(sentences)


def test_sync_adds_what_is_new_and_deletes_what_is_gone_in_one_version(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    changed = Document(sheets[1].document.id, "Now it tells of zebras.")
    version = small_kb.store.version
    report = small_kb.sync([sheets[0].document, changed, sheets[9].document])
    assert (report.added, report.updated, report.unchanged, report.deleted) == (1, 1, 1, 3)
    assert small_kb.store.version == version + 1
    left = {row.passage.key.document_id for row in small_kb.store.passages()}
    assert left == {sheets[i].document.id for i in (0, 1, 9)}
    assert {h.key.document_id for h in small_kb.retrieve("zebras", 3)} == {changed.id}
    kept = small_kb.sync([sheets[0].document], keep=lambda: True)
    assert (kept.deleted, len(small_kb)) == (0, 3)
    with pytest.raises(KnowledgeBaseError, match=r"None of the 3 documents .* is it another"):
        small_kb.sync([sheets[20].document])
    assert len(small_kb) == 3


def test_documents_are_deleted_by_filter(small_kb: KnowledgeBase, sheets: list[FactSheet]) -> None:
    kinds = [sheet.kind for sheet in sheets[:5]]
    small_kb.delete(filters={"kind": kinds[0]})
    assert len(small_kb) == sum(kind != kinds[0] for kind in kinds)
    with pytest.raises(KnowledgeBaseError, match=r"No document of .* matches the filter"):
        small_kb.delete(filters={"kind": kinds[0]})
    with pytest.raises(ValueError, match="either ids or filters"):
        small_kb.delete()


def test_an_earlier_version_is_asked_as_it_was(
    small_kb: KnowledgeBase, sheets: list[FactSheet], decoder: TransformersDecoder
) -> None:
    question, name = sheets[0].questions[0], sheets[0].document.id
    small_kb.delete([name])
    small_kb.compact()
    assert [m.operation for m in small_kb.versions()] == ["create", "add", "delete", "compact"]
    with KnowledgeBase.open(small_kb.path, version=1, decoder=decoder) as earlier:
        answer = earlier.query(question.question, 2)
        assert answer.sources[0].key.document_id == name
        assert exact_match(answer.text, question.answer)
        with pytest.raises(KnowledgeBaseError, match="open at version 1, for reading"):
            earlier.add([sheets[0].document])
        assert 1 in small_kb.vacuum().kept
        assert earlier.query(question.question, 2).text == answer.text
    assert small_kb.vacuum().kept == [3]
    with pytest.raises(StoreError, match="There is no version 1"):
        KnowledgeBase.open(small_kb.path, version=1)
    assert name not in {h.key.document_id for h in small_kb.retrieve(question.question, 5)}


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4"])
def test_converted_latents_answer_without_the_encoder(
    tmp_path: Path, sheets: list[FactSheet], decoder: TransformersDecoder, codec: CodecName
) -> None:
    with KnowledgeBase.create(tmp_path / "kb", codec="bf16", decoder=decoder) as kb:
        kb.add(sheet.document for sheet in sheets[:8])
        questions = [sheet.questions[0] for sheet in sheets[:8]]
        before = kb.store.manifest.bytes
        kb.compressor.encoder = None  # type: ignore[assignment]
        kb.convert(codec)
        assert (kb.store.layout.codec, kb.store.version) == (codec, 2)
        assert kb.store.manifest.bytes <= before
        right = sum(exact_match(kb.query(q.question, 2).text, q.answer) for q in questions)
        assert right >= 7
        with pytest.raises(StoreError, match=f"are {codec} already"):
            kb.convert(codec)


def test_a_build_that_failed_goes_on_where_it_stopped(
    tmp_path: Path, sheets: list[FactSheet], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [sheet.document for sheet in sheets[:30]]

    def broken() -> Iterator[Document]:
        yield from documents[:20]
        raise OSError("the drive went away")

    monkeypatch.setattr(steps, "_PASSAGES_AT_ONCE", 4)
    monkeypatch.setattr(steps, "_DOCUMENTS_AT_ONCE", 4)
    kb = KnowledgeBase.create(tmp_path / "kb")
    with pytest.raises(OSError, match="went away"), kb:
        kb.add(broken())
    assert kb.uncommitted_passages() == 20
    with KnowledgeBase.create(tmp_path / "kb", resume=True) as again:
        assert len(again) == 0
        counted = CountedCompressor(again)
        report = again.add(documents)
        assert (report.added, report.passages, report.reused) == (30, 30, 20)
        assert len(counted.texts) == 10
        assert again.uncommitted_passages() == 0
        whole = [row.latents for row in again.store.passages()]
    with KnowledgeBase.create(tmp_path / "other") as other:
        other.add(documents)
        keys = [row.passage.key for row in again.store.passages()]
        for a, b in zip(whole, other.store.read(keys), strict=True):
            torch.testing.assert_close(a, b.latents, atol=0.02, rtol=0.02)
    with pytest.raises(KnowledgeBaseError, match=r"finished already: 30 documents, version 1"):
        KnowledgeBase.create(tmp_path / "kb", resume=True)


def test_an_unfinished_build_is_gone_on_with_only_by_the_same_settings(tmp_path: Path) -> None:
    KnowledgeBase.create(tmp_path / "kb", codec="bf16").close()
    with pytest.raises(KnowledgeBaseError, match=r"begun with codec 'bf16', not 'fp16'"):
        KnowledgeBase.create(tmp_path / "kb", codec="fp16", resume=True)
    with pytest.raises(KnowledgeBaseError, match="is not empty"):
        KnowledgeBase.create(tmp_path / "kb")


def test_a_shorter_document_leaves_no_passage_behind(
    tmp_path: Path, decoder: TransformersDecoder
) -> None:
    with KnowledgeBase.create(tmp_path / "kb", passage_tokens=10, decoder=decoder) as kb:
        kb.add([Document("d", "One sentence about zebras. " * 8), Document("e", "Another text.")])
        before = len(kb)
        kb.add([Document("d", "One sentence.")])
        assert len(kb) < before
        assert {h.key for h in kb.retrieve("sentence zebras", 20)} == {PassageKey("d", 0)}


def test_deleted_documents_are_gone_and_an_unknown_id_deletes_nothing(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    name = sheets[0].document.id
    with pytest.raises(KnowledgeBaseError, match="no document 'nobody'"):
        small_kb.delete([name, "nobody"])
    assert len(small_kb) == 5
    assert small_kb.delete([name]) == 1
    assert len(small_kb) == 4
    assert name not in {h.key.document_id for h in small_kb.retrieve(sheets[0].document.text, 9)}


def test_it_is_the_same_after_closing_and_opening(
    small_kb: KnowledgeBase, sheets: list[FactSheet], decoder: TransformersDecoder
) -> None:
    question = sheets[2].questions[0].question
    before = small_kb.query(question, 2)
    small_kb.close()
    with KnowledgeBase.open(small_kb.path, decoder=decoder) as again:
        after = again.query(question, 2)
    assert (after.text, after.sources) == (before.text, before.sources)


@pytest.mark.parametrize("damage", ["lost", "behind", "interrupted"])
def test_the_passage_index_is_brought_to_the_stores_version(
    small_kb: KnowledgeBase, sheets: list[FactSheet], decoder: TransformersDecoder, damage: str
) -> None:
    """As after a crash between the store's commit and the index's."""
    small_kb.close()
    index, saved = small_kb.path / "index", small_kb.path.parent / "saved"
    shutil.copytree(index, saved)
    with KnowledgeBase.open(small_kb.path, decoder=decoder) as kb:
        kb.delete([sheets[0].document.id])
        kb.add([sheets[7].document])
    shutil.rmtree(index)
    if damage != "lost":
        shutil.copytree(saved, index)
    if damage == "interrupted":
        for file in (index / "published").rglob("index.json"):
            file.write_text("half")
    with KnowledgeBase.open(small_kb.path, decoder=decoder) as kb:
        found = {
            h.key.document_id
            for h in kb.retrieve(" ".join(s.document.text for s in sheets[:8]), 20)
        }
    assert found == {sheets[i].document.id for i in (1, 2, 3, 4, 7)}


def test_questions_are_answered_while_another_thread_writes(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    question, expected = sheets[2].questions[0].question, PassageKey(sheets[2].document.id, 0)
    done = threading.Event()

    def ask() -> int:
        asked = 0
        while not done.is_set():
            assert small_kb.retrieve(question, 3)[0].key == expected
            asked += 1
        return asked

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        try:
            for sheet in sheets[10:22]:
                small_kb.add([sheet.document])
                small_kb.delete([sheet.document.id])
        finally:
            done.set()
        assert all(future.result() > 0 for future in asking)


# --- bad input -----------------------------------------------------------------------------------


def assert_still_answers(kb: KnowledgeBase, sheets: list[FactSheet]) -> None:
    assert len(kb) == 5
    hit = kb.query(sheets[1].questions[0].question, 1).sources[0]
    assert hit.key.document_id == sheets[1].document.id


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "no documents to add"),
        ([Document("x", "one"), Document("x", "two")], "id 'x' occurs twice"),
    ],
)
def test_a_bad_corpus_changes_nothing(
    small_kb: KnowledgeBase, sheets: list[FactSheet], documents: list[Document], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_kb.add(documents)
    assert_still_answers(small_kb, sheets)


def test_a_corpus_that_fails_midway_changes_nothing(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    def broken() -> object:
        yield sheets[0].document
        yield from (sheet.document for sheet in sheets[10:300])
        raise OSError("the drive went away")

    with pytest.raises(OSError, match="drive went away"):
        small_kb.add(broken())  # type: ignore[arg-type]
    assert_still_answers(small_kb, sheets)
    assert len(list((small_kb.path / "store" / "fragments").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"context": "pictures"}, "Unknown context 'pictures'"),
    ],
)
def test_a_wrong_option_is_named(
    small_kb: KnowledgeBase, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_kb.query("Who?", **options)  # type: ignore[arg-type]


def test_a_question_longer_than_the_context_is_refused(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    with pytest.raises(ContextLengthError, match="Shorten it"):
        small_kb.query("why " * 20_000)
    with pytest.raises(ValueError, match="question is empty"):
        small_kb.query("  ")
    assert_still_answers(small_kb, sheets)


def test_passages_without_room_are_listed(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    with KnowledgeBase.create(tmp_path / "kb", make_checkpoint(), passage_tokens=600) as kb:
        kb.add(Document(f"d{i}", f"Zebra number {i}. " * 100) for i in range(4))
        answer = kb.query("zebra number", 8, context="text", sampling=Sampling(max_tokens=4))
    retrieved = [*(hit.key for hit in answer.sources), *answer.left_out]
    assert answer.left_out
    assert len(retrieved) == len(set(retrieved)) == 8
    assert answer.usage.positions <= 2048 - 4


def test_a_folder_that_is_no_knowledge_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeBaseError, match="is not a knowledge base"):
        KnowledgeBase.open(tmp_path)
    (tmp_path / "something").write_text("x")
    with pytest.raises(KnowledgeBaseError, match="is not empty"):
        KnowledgeBase.create(tmp_path)


def test_another_checkpoint_is_refused_by_both_names(
    small_kb: KnowledgeBase, make_checkpoint: MakeCheckpoint
) -> None:
    other = make_checkpoint("other-model")
    with pytest.raises(KnowledgeBaseError, match=r"built with checkpoint bundled .*other-model"):
        KnowledgeBase.open(small_kb.path, checkpoint=other)


def test_encoder_space_survives_a_new_adapter_and_decoder_space_does_not(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint()
    for space in ("encoder", "decoder"):
        with KnowledgeBase.create(tmp_path / space, folder, space=space) as kb:  # type: ignore[arg-type]
            kb.add([Document("d", "Some text.")])
    adapter = folder / "adapter" / "adapter.safetensors"
    save_file({k: v + 1 for k, v in load_file(adapter).items()}, adapter)
    with KnowledgeBase.open(tmp_path / "encoder") as kb:
        assert kb.assemble("text", 1).latent_count >= 1
    with pytest.raises(KnowledgeBaseError, match="cannot read its latents"):
        KnowledgeBase.open(tmp_path / "decoder")


@pytest.mark.parametrize("kind", ["attn_mlp", "mlp_attn"])
def test_stored_passages_do_not_see_each_other_in_the_adapter(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, sheets: list[FactSheet], kind: str
) -> None:
    import torch

    settings = {"adapter_type": kind, "encoder_mask_type": "bidirectional", "boundary_overlap": 8}
    folder = make_checkpoint(encoder_window_size=64, **settings)
    prompts = {}
    for space in ("encoder", "decoder"):
        with KnowledgeBase.create(tmp_path / space, folder, space=space, codec="fp16") as kb:  # type: ignore[arg-type]
            kb.add(sheet.document for sheet in sheets[:6])
            prompts[space] = kb.assemble("Who is the mayor?", 4)
    # One was projected passage by passage in batches of a build, the other for this question.
    assert len(prompts["encoder"].latents) > 1
    for one, other in zip(prompts["encoder"].latents, prompts["decoder"].latents, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=5e-3, rtol=5e-3)


ASK = """
import sys
from lclm_rag import KnowledgeBase
with KnowledgeBase.open(sys.argv[1]) as kb:
    print(kb.retrieve(sys.argv[2], 1)[0].key)
"""


def test_several_processes_search_one_knowledge_base(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    assert small_kb.retrieve("anything at all", 1) is not None
    questions = [sheet.questions[0].question for sheet in sheets[:3]]
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(small_kb.path), question],
            stdout=subprocess.PIPE,
            text=True,
        )
        for question in questions
    ]
    found = [process.communicate()[0].strip() for process in asking]
    assert found == [f"{sheet.document.id}#0" for sheet in sheets[:3]]


def test_prompt_latents_are_what_the_compressor_gives(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    prompt = small_kb.assemble(sheets[0].questions[0].question, 1)
    (expected,) = small_kb.compressor.compress([sheets[0].document.text])
    assert prompt.spans[0].key == PassageKey(sheets[0].document.id, 0)
    assert torch.nn.functional.cosine_similarity(prompt.latents[0], expected).min() > 0.98


def test_a_bulk_load_ends_with_one_optimized_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published twice, as what was ingested and as what was optimized: the second is what others find."""
    monkeypatch.setattr(embedded, "OPTIMIZE_FROM", 50)
    optimized = []
    inner = EdgeIndex.optimize
    monkeypatch.setattr(EdgeIndex, "optimize", lambda self: (inner(self), optimized.append(self)))
    monkeypatch.setattr(embedded, "_PUBLISH_CHANGES", 10)
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Document(f"d{i}", f"Thing number {i} is here.") for i in range(60)])
        assert len(optimized) == 1
        published = SnapshotFolder(kb.folder / "index").snapshots()
        assert [snapshot.version for snapshot in published] == [1]
        kb.add([Document("more", "One more is no bulk load.")])
        assert len(optimized) == 1


def test_it_says_what_it_is(small_kb: KnowledgeBase) -> None:
    where = f"<KnowledgeBase '{small_kb.path}': version"
    holds = "5 documents, 5 passages, checkpoint bundled"
    assert repr(small_kb) == f"{where} 1, {holds}>"
    small_kb.add({"id": "velun", "text": "The mayor of Velun is Gedul Gizel."})
    with KnowledgeBase.open(small_kb.path, version=1) as earlier:
        assert repr(earlier) == f"{where} 1, {holds}, read-only>"
    small_kb.close()
    assert repr(small_kb).endswith(
        "version 2, 6 documents, 6 passages, checkpoint bundled, closed>"
    )


def test_it_is_closed_by_async_with_and_a_pickle_opens_it_again(small_kb: KnowledgeBase) -> None:
    async def documents() -> tuple[KnowledgeBase, int]:
        async with KnowledgeBase.open(small_kb.path) as kb:
            return kb, len(kb)

    kb, passages = asyncio.run(documents())
    assert passages == 5
    with pytest.raises(KnowledgeBaseError, match="is closed; open it again"):
        kb.retrieve("x")
    with pickle.loads(pickle.dumps(kb)) as again:
        assert list(again) == list(small_kb)
    with pytest.raises(
        TypeError, match="cannot be pickled with a decoder that was given as an object"
    ):
        pickle.dumps(small_kb)
