"""A search of a knowledge base by LlamaIndex's terms: modes, document ids, node ids."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from lclm_rag import KnowledgeBase, Passage
from lclm_rag.connectors.llama_index.nodes import documents_of, node_of, split_passage
from lclm_rag.retrieval import Filter, OfDocuments

__all__ = ["narrowed", "ranking_of", "search"]

_MMR_THRESHOLD = 0.5
"""As in LlamaIndex."""


def search(
    knowledge_base: KnowledgeBase,
    question: str,
    top_k: int,
    filters: Filter | None,
    **ranking: Any,
) -> list[NodeWithScore]:
    """Retrieve passages as nodes, best first.

    Args:
        knowledge_base: The knowledge base.
        question: The question.
        top_k: How many passages to retrieve.
        filters: Keeps only passages that match; None keeps all.
        **ranking: What `ranking_of` gives.
    """
    nodes = []
    for hit in knowledge_base.retrieve(question, top_k, filters, **ranking):
        passage = Passage(hit.key, hit.start, hit.end, hit.text, hit.metadata)
        nodes.append(NodeWithScore(node=node_of(passage, knowledge_base), score=hit.score))
    return nodes


def ranking_of(
    knowledge_base: KnowledgeBase,
    mode: VectorStoreQueryMode | str,
    mmr_threshold: float | None = None,
) -> dict[str, Any]:
    """The arguments of `KnowledgeBase.retrieve` for a query mode of LlamaIndex.

    Args:
        knowledge_base: The knowledge base.
        mode: "default" is the knowledge base's way; "sparse" and "text_search" are words alone; "hybrid" and
            "mmr" need an embedder.
        mmr_threshold: For "mmr": relevance against diversity, 1 to 0.

    Raises:
        ValueError: When the mode is another, or needs an embedder and there is none.
    """
    mode = VectorStoreQueryMode(mode)
    if mode == VectorStoreQueryMode.DEFAULT:
        return {}
    if mode in (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH):
        return {"words_only": True}
    if mode not in (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.MMR):
        raise ValueError(
            f"There is no vector_store_query_mode {mode.value!r} here; use default, sparse, text_search, "
            "hybrid or mmr."
        )
    if knowledge_base.settings.embedder is None:
        raise ValueError(
            f"vector_store_query_mode {mode.value!r} needs dense vectors; {knowledge_base.path} has none, "
            "build it with embed_model=… (or embedder=…)."
        )
    if mode == VectorStoreQueryMode.HYBRID:
        return {}
    return {"mmr": _MMR_THRESHOLD if mmr_threshold is None else mmr_threshold}


def narrowed(
    knowledge_base: KnowledgeBase,
    filters: Filter | None,
    doc_ids: Collection[str] | None,
    node_ids: Collection[str] | None,
) -> Filter | None:
    """A filter that also keeps only nodes of some documents, or some nodes.

    Args:
        knowledge_base: The knowledge base.
        filters: The filter so far.
        doc_ids: Ids of LlamaIndex documents; None or none of them keeps all.
        node_ids: Ids of nodes; None or none of them keeps all.

    Raises:
        ValueError: When a node is a passage of a document that the knowledge base has split.
    """
    parts: list[Filter] = [] if filters is None else [filters]
    if doc_ids:
        parts.append(OfDocuments(tuple(documents_of(doc_ids, knowledge_base))))
    if node_ids:
        if split := split_passage(node_ids, knowledge_base):
            raise ValueError(
                f"A search cannot be narrowed to {split!r}, a passage of a document that was split; give "
                "doc_ids."
            )
        parts.append(OfDocuments(tuple(node_ids)))
    if not parts:
        return None
    whole, *others = parts
    for other in others:
        whole &= other
    return whole
