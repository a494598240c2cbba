"""LlamaIndex's documents and nodes, converted to documents and passages of a knowledge base and back.

A LlamaIndex document that this library splits becomes a document of the knowledge base; its passages come
back as nodes with the id "<document id>#<ordinal>". A node that something else has made becomes a document
with one passage, under its own id, and comes back unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from lclm_rag import Document, Passage, PassageKey
from lclm_rag.knowledge_base import KnowledgeBase

__all__ = [
    "REF_DOC_ID",
    "add_to",
    "from_node",
    "known_key",
    "ref_doc_id_of",
    "to_document",
    "to_node",
]

REF_DOC_ID = "ref_doc_id"
"""Metadata key for the id of the document that a node is part of, as in LlamaIndex's vector stores.

Filters may use it.
"""

_logger = logging.getLogger(__name__)

_NODE = "_node"
"""Metadata key for everything that a node has besides its text and metadata."""


def to_document(document: BaseNode) -> Document:
    """A LlamaIndex document, to be split by this library; only its text is compressed."""
    return Document(document.node_id, _text(document), document.metadata)


def from_node(node: BaseNode) -> Document:
    """A node, to be added with `split=False`; only its text is compressed, not its metadata."""
    kept: dict[str, Any] = doc_to_json(node)
    data = kept["__data__"]
    for name in ("text", "text_resource", "metadata", "embedding"):
        data.pop(name, None)
    metadata = {**node.metadata, _NODE: kept}
    if node.ref_doc_id is not None:
        metadata[REF_DOC_ID] = node.ref_doc_id
    return Document(node.node_id, _text(node), metadata)


def add_to(knowledge_base: KnowledgeBase, items: Iterable[BaseNode], *, split: bool) -> set[str]:
    """Add LlamaIndex documents or nodes to a knowledge base, in one version.

    Items without text are left out, as LlamaIndex's node parsers do, with a warning that names them.

    Args:
        knowledge_base: The knowledge base.
        items: The documents or nodes.
        split: Whether the items are documents that this library splits; if not, each is one passage.

    Returns:
        The ids of the items added.
    """
    written: set[str] = set()

    def documents() -> Iterator[Document]:
        for item in items:
            if _text(item).strip():
                written.add(item.node_id)
                yield to_document(item) if split else from_node(item)
            else:
                _logger.warning("%s has no text; it is left out.", item.node_id)

    stream = documents()
    if (first := next(stream, None)) is not None:
        knowledge_base.add(chain([first], stream), split=split)
    return written


def to_node(passage: Passage, siblings: Iterable[PassageKey] = ()) -> BaseNode:
    """Convert a passage to a node.

    Args:
        passage: The passage.
        siblings: Keys of passages of the same document that exist; the neighbours among them get related.
    """
    metadata = {k: v for k, v in passage.metadata.items() if k not in (_NODE, REF_DOC_ID)}
    kept: Any = passage.metadata.get(_NODE)
    if kept is not None:
        node: BaseNode = json_to_doc(kept)
        node.metadata = metadata
        node.set_content(passage.text)
        return node
    document_id, ordinal = passage.key
    relationships: dict[NodeRelationship, Any] = {
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document_id)
    }
    for kind, neighbour in (
        (NodeRelationship.PREVIOUS, PassageKey(document_id, ordinal - 1)),
        (NodeRelationship.NEXT, PassageKey(document_id, ordinal + 1)),
    ):
        if neighbour in siblings:
            relationships[kind] = RelatedNodeInfo(node_id=str(neighbour))
    return TextNode(
        id_=str(passage.key),
        text=passage.text,
        metadata=metadata,
        start_char_idx=passage.start,
        end_char_idx=passage.end,
        relationships=relationships,
    )


def ref_doc_id_of(passage: Passage) -> str:
    """The id of the LlamaIndex document that a passage is part of; a node without one is its own."""
    return str(passage.metadata.get(REF_DOC_ID, passage.key.document_id))


def known_key(node: BaseNode, knowledge_base: KnowledgeBase) -> PassageKey | None:
    """The key of the passage that a node is; None if the store lacks it, or has it with another text."""
    document_id, _, ordinal = node.node_id.rpartition("#")
    keys = [PassageKey(node.node_id, 0)]
    if document_id and ordinal.isdecimal():
        keys.append(PassageKey(document_id, int(ordinal)))
    # A postprocessor may have given the node another text than was compressed.
    return next((key for key in keys if knowledge_base.holds(key, _text(node))), None)


def _text(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.NONE)
