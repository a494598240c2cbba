"""Which passages a question is answered from: the retrieved ones, or all of its documents'."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lclm_rag.evaluation.contexts import EvalContext
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet
from lclm_rag.querying.query import Query
from lclm_rag.querying.reader import Retrieved, hits_of
from lclm_rag.retrieval import field
from lclm_rag.types import Document

if TYPE_CHECKING:
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["Find", "documents_to_add", "passage_finder"]

_DOCUMENT = "eval_document"
"""Metadata key that selects the passages of one document."""

Find = Callable[[], Retrieved]
"""Finds the passages for one question, best first."""


def documents_to_add(questions: EvalSet) -> list[Document]:
    """The set's documents, with the metadata that they need in the knowledge base under evaluation."""
    if not questions.whole_documents:
        return list(questions.documents)
    return [replace(d, metadata={**d.metadata, _DOCUMENT: d.id}) for d in questions.documents]


def passage_finder(
    kb: KnowledgeBase, questions: EvalSet, context: EvalContext, top_k: int
) -> Callable[[EvalQuestion], Find]:
    """Make the function that finds the passages for a question.

    Args:
        kb: The knowledge base under evaluation.
        questions: The set, which says whether a question is answered from its whole documents.
        context: The context in which the questions are answered.
        top_k: How many passages to retrieve, if the context has no number of its own; unused if whole
            documents go into the prompt.

    Returns:
        A function from a question to a `Find`, which does the search when it is called.
    """
    if questions.whole_documents and context.has_passages:
        return lambda question: lambda: _whole_documents(kb, question, context.top_k)
    wanted = context.top_k or top_k
    return lambda question: (
        lambda: kb.reader.search(Query.of(question.question, wanted, context=context.kind))
    )


def _whole_documents(kb: KnowledgeBase, question: EvalQuestion, most: int | None) -> Retrieved:
    """The passages of a question's documents, `most` of them: those that share words with it come first."""
    started = time.perf_counter()
    keys = [
        key for document_id in question.document_ids for key in kb.find({_DOCUMENT: document_id})
    ]
    of_them = field(_DOCUMENT).is_in(list(question.document_ids))
    scores = {h.key: h.score for h in kb.index.search(question.question, len(keys), of_them)}
    ranked = sorted(keys, key=lambda key: -scores.get(key, 0.0))[:most]
    rows = kb.store.read(ranked)
    hits = hits_of(rows, [scores.get(key, 0.0) for key in ranked])
    return Retrieved(hits, rows, time.perf_counter() - started)
