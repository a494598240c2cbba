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
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from lclm_rag import Document, KnowledgeBaseError, Passage, PassageKey, field
from lclm_rag.knowledge_base import KnowledgeBase

__all__ = [
    "REF_DOC_ID",
    "add_to",
    "delete_nodes",
    "documents_of",
    "find_node",
    "from_node",
    "known_key",
    "node_of",
    "ref_doc_id_of",
    "ref_doc_infos",
    "split_passage",
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
    # A postprocessor may have given the node another text than was compressed.
    keys = _keys(node.node_id)
    return next((key for key in keys if knowledge_base.holds(key, _text(node))), None)


def node_of(passage: Passage, knowledge_base: KnowledgeBase) -> BaseNode:
    """Convert a passage of a knowledge base to a node that is related to its neighbours."""
    document_id, ordinal = passage.key
    around = (PassageKey(document_id, ordinal - 1), PassageKey(document_id, ordinal + 1))
    return to_node(passage, [key for key in around if key in knowledge_base.store])


def find_node(node_id: str, knowledge_base: KnowledgeBase) -> BaseNode | None:
    """The node with an id; None if the knowledge base has none."""
    store = knowledge_base.store
    keys = [key for key in _keys(node_id) if key in store]
    nodes = (node_of(row.passage, knowledge_base) for row in store.read(keys))
    return next((node for node in nodes if node.node_id == node_id), None)


def documents_of(ref_doc_ids: Iterable[str], knowledge_base: KnowledgeBase) -> list[str]:
    """The knowledge base's documents that are, or are nodes of, these LlamaIndex documents."""
    wanted = sorted(set(ref_doc_ids))
    own = (i for i in wanted if knowledge_base.store.document_hash(i) is not None)
    nodes = (key.document_id for key in knowledge_base.find(field(REF_DOC_ID).is_in(wanted)))
    return list(dict.fromkeys([*own, *nodes]))


def split_passage(node_ids: Iterable[str], knowledge_base: KnowledgeBase) -> str | None:
    """The first id that is a passage of a document that the knowledge base has split; None if none is."""
    store = knowledge_base.store
    candidates = (i for i in node_ids if store.document_hash(i) is None)
    return next((i for i in candidates if find_node(i, knowledge_base) is not None), None)


def delete_nodes(node_ids: Iterable[str], knowledge_base: KnowledgeBase) -> None:
    """Delete nodes in one version; without ids nothing is done.

    Args:
        node_ids: The nodes' ids.
        knowledge_base: The knowledge base.

    Raises:
        KnowledgeBaseError: When there is no such node, or it is a passage of a document that the knowledge
            base has split.
    """
    wanted = list(dict.fromkeys(node_ids))
    if split := split_passage(wanted, knowledge_base):
        document_id = split.rpartition("#")[0]
        raise KnowledgeBaseError(
            f"{split!r} is a passage of {document_id!r}, which the knowledge base has split; delete it "
            f"whole: delete_ref_doc({document_id!r})."
        )
    if gone := next((i for i in wanted if find_node(i, knowledge_base) is None), None):
        raise KnowledgeBaseError(f"There is no node {gone!r} in {knowledge_base.path}.")
    if wanted:
        knowledge_base.delete(wanted)


def ref_doc_infos(passages: Iterable[Passage]) -> dict[str, RefDocInfo]:
    """The nodes and metadata of each LlamaIndex document that has one of these passages, by its id."""
    found: dict[str, RefDocInfo] = {}
    for passage in passages:
        node = to_node(passage)
        info = found.setdefault(ref_doc_id_of(passage), RefDocInfo(metadata=node.metadata))
        info.node_ids.append(node.node_id)
    return found


def _keys(node_id: str) -> list[PassageKey]:
    """The keys that the passage of a node may have."""
    document_id, _, ordinal = node_id.rpartition("#")
    keys = [PassageKey(node_id, 0)]
    if document_id and ordinal.isdecimal():
        keys.append(PassageKey(document_id, int(ordinal)))
    return keys


def _text(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.NONE)
