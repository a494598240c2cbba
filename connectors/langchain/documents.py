"""LangChain's documents, converted to those of a knowledge base and back, and to passages of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from langchain_core.documents import Document as LangChainDocument

from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.prompting import PromptPassage
from lclm_rag.types import Document, Hit, PassageKey

__all__ = ["from_hit", "to_documents", "to_passage"]


def to_documents(
    documents: Iterable[LangChainDocument], id_key: str | None = None
) -> Iterator[Document]:
    """Convert LangChain documents to those that `KnowledgeBase.add` takes.

    Args:
        documents: LangChain documents, each with an id, or with the metadata `id_key`.
        id_key: The metadata key to take for the id of a document that has none, such as "source"; its value
            must be another one in each document.

    Yields:
        A document for each.

    Raises:
        ValueError: When one has no id, as many loaders leave it, and no metadata `id_key` either: documents
            are told apart by their ids.
    """
    for number, document in enumerate(documents, start=1):
        found = document.id or (document.metadata.get(id_key) if id_key else None)
        if not found:
            without = f" and no metadata {id_key!r}" if id_key else ""
            raise ValueError(
                f"LangChain document {number} has no id{without}; set `id` on each document, or give the "
                "id_key of a metadata value that tells them apart."
            )
        yield Document(str(found), document.page_content, document.metadata)


def from_hit(hit: Hit) -> LangChainDocument:
    """A hit as a LangChain document, whose id is the passage's key, "report#3"."""
    place = {**hit.place(), "passage_score": hit.score}
    return LangChainDocument(hit.text, id=str(hit.key), metadata={**hit.metadata, **place})


def to_passage(
    document: LangChainDocument, number: int, knowledge_base: KnowledgeBase
) -> PromptPassage:
    """The document as a prompt's passage; as latents if it is an unchanged passage of the knowledge base.

    Args:
        document: The document.
        number: Its place among the documents.
        knowledge_base: The knowledge base.
    """
    metadata, text = document.metadata, document.page_content
    key = PassageKey(metadata.get("passage_document_id", ""), metadata.get("passage_ordinal", 0))
    if knowledge_base.holds(key, text):
        return PromptPassage(key, text, stored=key)
    return PromptPassage(PassageKey(document.id or f"document {number}", 0), text)
