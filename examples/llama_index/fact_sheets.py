"""Made-up fact sheets as LlamaIndex documents: what the bundled checkpoint can read."""

from __future__ import annotations

from itertools import islice

from llama_index.core import Document

from lclm_rag.evaluation.datasets import fact_sheets as made_up
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet

__all__ = ["documents", "sheets"]


def sheets(kind: str | None = None, count: int = 20) -> list[FactSheet]:
    """kind: "person", "place", "product", "contract", or any."""
    found = (s for s in made_up.fact_sheets(seed=7, held_out=True) if kind in (None, s.kind))
    return list(islice(found, count))


def documents(kind: str | None = None, count: int = 20) -> list[Document]:
    return [
        Document(text=s.document.text, doc_id=s.document.id, metadata=dict(s.document.metadata))
        for s in sheets(kind, count)
    ]
