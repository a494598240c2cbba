"""How well the passages that should be found are found, by each kind of search side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.datasets.judged import JudgedSet
from lclm_rag.evaluation.intervals import mean_interval, paired_difference
from lclm_rag.evaluation.ranking_measures import ndcg, recall, reciprocal_rank
from lclm_rag.querying.ranking import by_score
from lclm_rag.retrieval import (
    Bm25Settings,
    EdgeIndex,
    Embedder,
    IndexEntry,
    PassageIndex,
    ScoredKey,
    average_length,
    detect_language,
)
from lclm_rag.retrieval.language import AUTO, check_language
from lclm_rag.types import Document, Passage, PassageKey

if TYPE_CHECKING:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.retrieval.reranker import CrossEncoderReranker

__all__ = ["Searched", "evaluate_retrieval", "of_documents", "of_knowledge_base"]

RECALL_AT = (1, 10, 50)
"""How many documents count for each recall."""

NDCG_AT = 10

_PASSAGES = 4 * max(RECALL_AT)
"""Passages to find for a query, so that enough documents are among them."""

_RERANKED = 50
"""Passages that are looked at a second time: as many as `KnowledgeBase.retrieve` takes for ten."""


@dataclass(frozen=True)
class Searched:
    """What is searched.

    Attributes:
        index: The passage index.
        read: Reads the texts of passages as they are searched.
        dense: Whether the index has dense vectors.
        settings: What it was made with, for the report.
    """

    index: PassageIndex
    read: Callable[[Sequence[PassageKey]], list[str]]
    dense: bool
    settings: Mapping[str, Any]


def of_knowledge_base(kb: KnowledgeBase) -> Searched:
    """Search the passages of a knowledge base."""
    store = kb.store
    return Searched(
        index=kb.index,
        read=lambda keys: [passage.content for passage in store.read_texts(keys)],
        dense=kb.settings.embedder is not None,
        settings={
            "documents": store.count_documents(),
            "passages": len(store),
            "embedder": kb.settings.embedder,
        },
    )


@contextmanager
def of_documents(
    documents: Sequence[Document],
    checkpoint: Checkpoint,
    *,
    passage_tokens: int | None = None,
    language: str = AUTO,
    embedder: Embedder | None = None,
) -> Iterator[Searched]:
    """Search documents of which there is no knowledge base: nothing is compressed.

    Args:
        documents: The documents.
        checkpoint: Its tokenizer measures passages.
        passage_tokens: Most tokens of a passage; default: the checkpoint's window.
        language: The language of the words; "auto" for that of the documents.
        embedder: Makes dense vectors; None for words alone.

    Yields:
        What is searched, in a temporary folder.

    Raises:
        ValueError: When the language is unknown.
    """
    from lclm_rag.chunking.splitting import split_document

    check_language(language)
    longest = passage_tokens or checkpoint.config.encoder_window_size
    passages: dict[PassageKey, Passage] = {
        passage.key: passage
        for document in documents
        for passage in split_document(document, checkpoint.token_offsets, longest)
    }
    texts = [passage.content for passage in passages.values()]
    if language == AUTO:
        language = detect_language(texts)
    bm25 = Bm25Settings(language, average_length(texts, language))
    with tempfile.TemporaryDirectory() as folder:
        index = EdgeIndex.create(Path(folder) / "index", bm25=bm25, embedder=embedder)
        try:
            index.upsert(IndexEntry(p.key, p.content) for p in passages.values())
            index.optimize()
            yield Searched(
                index=index,
                read=lambda keys: [passages[key].content for key in keys],
                dense=embedder is not None,
                settings={
                    "documents": len(documents),
                    "passages": len(passages),
                    "passage_tokens": longest,
                    "language": language,
                    "embedder": None if embedder is None else embedder.name,
                },
            )
        finally:
            index.close()


def evaluate_retrieval(
    searched: Searched,
    judged: JudgedSet,
    rerankers: Sequence[CrossEncoderReranker] = (),
    *,
    seed: int = 2026,
    on_progress: Callable[[str, int], None] = lambda name, count: None,
) -> dict[str, Any]:
    """Search all queries in each way: words, and if there are dense vectors dense and both; each reranked.

    Args:
        searched: What is searched.
        judged: The queries, and what should be found.
        rerankers: Cross-encoders that look again at the best passages of the last of these ways.
        seed: Seed of the intervals.
        on_progress: Called with the name of the way and the number of queries done.

    Returns:
        The report, as JSON can hold it: `ways` has for each way the mean of each measure over the queries
        with its 95% interval, `differences` the same for the paired differences to the first way.

    Raises:
        EvaluationError: When the index holds none of the documents that should be found.
        PassageIndexError: When the engine fails.
    """
    search = searched.index.search_all
    ways: dict[str, Callable[[Sequence[str]], list[list[ScoredKey]]]] = {
        "bm25": lambda queries: search(queries, _PASSAGES, words_only=True)
    }
    if searched.dense:
        ways["dense"] = lambda queries: search(queries, _PASSAGES, dense_only=True)
        ways["hybrid"] = lambda queries: search(queries, _PASSAGES)
    first = list(ways)[-1]
    for reranker in rerankers:
        ways[f"{first} + {Path(reranker.name).name}"] = partial(
            _reranked, ways[first], reranker, searched
        )
    scores: dict[str, dict[str, list[float]]] = {}
    seen: set[str] = set()
    for name, way in ways.items():
        on_progress(name, 0)
        rankings: list[list[str]] = []
        for batch in _batches(list(judged.queries.values())):
            rankings += [_documents(hits) for hits in way(batch)]
            on_progress(name, len(rankings))
        seen.update(document for ranking in rankings for document in ranking)
        scores[name] = _scores(rankings, [judged.grades[query] for query in judged.queries])
    if not any(document in seen for grades in judged.grades.values() for document in grades):
        raise EvaluationError(
            "No document that should be found was found in any way; are these the ids of this knowledge base?"
        )
    return {
        "set": judged.name,
        "queries": len(judged.queries),
        "left_out": judged.left_out,
        "settings": {**searched.settings, "reranked": _RERANKED if rerankers else None},
        "ways": {
            way: {measure: _figure(values, seed) for measure, values in of_way.items()}
            for way, of_way in scores.items()
        },
        "differences": {
            way: {
                measure: asdict(paired_difference(values, scores["bm25"][measure], seed))
                for measure, values in of_way.items()
            }
            for way, of_way in scores.items()
            if way != "bm25"
        },
    }


def _reranked(
    search: Callable[[Sequence[str]], list[list[ScoredKey]]],
    reranker: CrossEncoderReranker,
    searched: Searched,
    queries: Sequence[str],
) -> list[list[ScoredKey]]:
    """The best passages in the order of the cross-encoder, then the others as they were."""
    found = search(queries)
    best = [hits[:_RERANKED] for hits in found]
    texts = [searched.read([hit.key for hit in hits]) for hits in best]
    scores = reranker.scores(queries, texts)
    return [
        by_score(first, of_first) + hits[_RERANKED:]
        for first, of_first, hits in zip(best, scores, found, strict=True)
    ]


def _documents(hits: Sequence[ScoredKey]) -> list[str]:
    """The documents of passages, each in the place of its best passage."""
    return list(dict.fromkeys(hit.key.document_id for hit in hits))


def _scores(
    rankings: Sequence[Sequence[str]], grades: Sequence[Mapping[str, int]]
) -> dict[str, list[float]]:
    pairs = list(zip(rankings, grades, strict=True))
    return {
        **{f"recall@{k}": [recall(ranked, of, k) for ranked, of in pairs] for k in RECALL_AT},
        f"nDCG@{NDCG_AT}": [ndcg(ranked, of, NDCG_AT) for ranked, of in pairs],
        "MRR": [reciprocal_rank(ranked, of) for ranked, of in pairs],
    }


def _figure(values: Sequence[float], seed: int) -> dict[str, float]:
    low, high = mean_interval(values, seed)
    return {"mean": fmean(values), "low": low, "high": high}


def _batches(queries: Sequence[str], size: int = 32) -> Iterator[Sequence[str]]:
    return (queries[start : start + size] for start in range(0, len(queries), size))
