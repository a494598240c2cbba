"""LatentIndex: a knowledge base with the interface of LlamaIndex's own indexes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.indices.managed.base import BaseManagedIndex
from llama_index.core.ingestion import run_transformations
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.utils import get_tqdm_iterable
from llama_index.core.vector_stores import MetadataFilters

from lclm_rag import KnowledgeBase, field
from lclm_rag.connectors.llama_index.chat_engines import make_chat_engine
from lclm_rag.connectors.llama_index.llm import LatentLLM
from lclm_rag.connectors.llama_index.nodes import (
    REF_DOC_ID,
    add_to,
    ref_doc_id_of,
    to_document,
    to_node,
)
from lclm_rag.connectors.llama_index.query_engine import LatentQueryEngine
from lclm_rag.connectors.llama_index.retriever import LatentRetriever
from lclm_rag.connectors.llama_index.synthesizer import LatentSynthesizer
from lclm_rag.prompting import Order
from lclm_rag.querying.expansion import Expand
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["LatentIndex"]

_logger = logging.getLogger(__name__)


class LatentIndex(BaseManagedIndex):
    """Documents in a knowledge base: retrieved by Qdrant, answered from their latents.

    Without `transformations`, the knowledge base splits documents as `lclm-rag build` does; a document
    replaces one of the same id. With `transformations` (node parsers, extractors, …), these make the nodes,
    and each node is compressed whole. Only the text is compressed, not the metadata. Documents and nodes
    without text are left out, with a warning.

    Every change is one atomic version of the store. Documents are kept in the knowledge base only; the
    docstore of the storage context stays empty.

    Args:
        knowledge_base: The knowledge base; it stays open until it, or the index, is closed with `close`.
        nodes: Nodes to insert at once.
        transformations: LlamaIndex's transformations from documents to nodes; None to let the knowledge base
            split documents.
        callback_manager: LlamaIndex's callback manager.
        show_progress: Whether to show progress bars.
    """

    index_struct_cls = IndexDict

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        nodes: Sequence[BaseNode] | None = None,
        *,
        transformations: list[TransformComponent] | None = None,
        callback_manager: CallbackManager | None = None,
        show_progress: bool = False,
    ) -> None:
        super().__init__(
            index_struct=IndexDict(summary=f"lclm-rag knowledge base {knowledge_base.path}"),
            callback_manager=callback_manager,
            show_progress=show_progress,
            # Must not be empty: LlamaIndex would fall back to its settings, a SentenceSplitter.
            transformations=transformations or [_as_they_are],
        )
        self.knowledge_base = knowledge_base
        self._transformations = transformations or []
        self.llm = LatentLLM(knowledge_base, callback_manager=self._callback_manager)
        if nodes:
            self.insert_nodes(nodes)

    @classmethod
    def from_documents(  # type: ignore[override]  # A knowledge base needs a path.
        cls,
        documents: Iterable[Document],
        path: str | Path,
        *,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        **options: Any,
    ) -> LatentIndex:
        """Compress documents into a new knowledge base at `path`.

        If the call fails or is interrupted, what was compressed stays, and the same call continues from
        there. If nothing was compressed, nothing is left in `path`.

        Args:
            documents: LlamaIndex's documents.
            path: The folder of the new knowledge base.
            show_progress: Whether to show progress bars.
            callback_manager: LlamaIndex's callback manager.
            transformations: LlamaIndex's transformations from documents to nodes; None to let the knowledge
                base split documents.
            **options: As for `KnowledgeBase.create`: checkpoint, codec, space, passage_tokens, embedder,
                decoder, device, ….

        Returns:
            The index, with all documents.
        """
        kb = KnowledgeBase.create(path, resume=True, **options)
        try:
            index = cls(
                kb,
                transformations=transformations,
                callback_manager=callback_manager,
                show_progress=show_progress,
            )
            with index._callback_manager.as_trace("index_construction"):
                index._add(documents)
        except BaseException:
            if kb.abandon():
                _logger.warning(
                    "What was compressed stays in %s: the same call goes on from there.", kb.path
                )
            raise
        return index

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        transformations: list[TransformComponent] | None = None,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> LatentIndex:
        """Open an existing knowledge base, no matter what built it.

        Args:
            path: The folder of the knowledge base.
            transformations: LlamaIndex's transformations for documents that are added later; None to let the
                knowledge base split them.
            callback_manager: LlamaIndex's callback manager.
            **options: As for `KnowledgeBase.open`.

        Returns:
            The index.
        """
        kb = KnowledgeBase.open(path, **options)
        return cls(kb, transformations=transformations, callback_manager=callback_manager)

    def close(self) -> None:
        """Close the knowledge base."""
        self.knowledge_base.close()

    # --- reading --------------------------------------------------------------------------------

    def as_retriever(  # type: ignore[override]  # No **kwargs, so that a misspelt one fails.
        self,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        verbose: bool = False,
    ) -> BaseRetriever:
        """A retriever over the knowledge base.

        Args:
            similarity_top_k: How many passages to retrieve.
            filters: LlamaIndex's metadata filters, which Qdrant applies.
            verbose: Whether the retriever prints what it does.

        Raises:
            ValueError: When `similarity_top_k` is below 1, or Qdrant does not support a filter.
        """
        return LatentRetriever(
            self.knowledge_base,
            similarity_top_k,
            filters,
            self._callback_manager,
            self._object_map,
            verbose,
        )

    def as_query_engine(  # type: ignore[override]
        self,
        llm: LLM | None = None,
        *,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        text_qa_template: BasePromptTemplate | None = None,
        response_mode: str = "compact",
        response_synthesizer: BaseSynthesizer | None = None,
        streaming: bool = False,
        verbose: bool = False,
        expand: Expand = "auto",
        order: Order | None = None,
    ) -> LatentQueryEngine:
        """A query engine over the knowledge base.

        Args:
            llm: A `LatentLLM`, for example with other sampling; None for the index's own.
            similarity_top_k: How many passages to retrieve.
            filters: LlamaIndex's metadata filters, which Qdrant applies.
            node_postprocessors: LlamaIndex's postprocessors for the retrieved nodes.
            text_qa_template: As for `LatentSynthesizer`.
            response_mode: Only "compact" or "simple_summarize"; both mean one pass.
            response_synthesizer: Replaces the `LatentSynthesizer`. As in LlamaIndex, it brings its own llm,
                text_qa_template and streaming, and also its own expand and order: these arguments are then
                ignored.
            streaming: Whether answers are streamed.
            verbose: Whether the retriever prints what it does.
            expand: As for `LatentSynthesizer`.
            order: As for `LatentSynthesizer`.

        Raises:
            ValueError: When `response_mode` needs several passes, `llm` is not a `LatentLLM`, or an argument
                of `as_retriever` is invalid.
        """
        if response_mode not in ("compact", "simple_summarize"):
            raise ValueError(
                f"Latents are answered from in one pass, not by response_mode {response_mode!r}; for that, "
                "give text to the same model: get_response_synthesizer(llm=index.llm, response_mode=…)."
            )
        return LatentQueryEngine(
            self.as_retriever(similarity_top_k, filters, verbose),
            response_synthesizer
            or LatentSynthesizer(
                self._latent_llm(llm),
                text_qa_template,
                streaming,
                self._callback_manager,
                expand=expand,
                order=order,
            ),
            list(node_postprocessors or []),
            self._callback_manager,
        )

    def as_chat_engine(  # type: ignore[override]
        self,
        chat_mode: ChatMode = ChatMode.BEST,
        llm: LLM | None = None,
        *,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        streaming: bool = False,
        **engine_options: Any,
    ) -> BaseChatEngine:
        """A chat engine, as other indexes make it.

        Args:
            chat_mode: "context", "condense_plus_context" (also as "best"), "condense_question" or "simple".
            llm: A `LatentLLM`; None for the index's own.
            similarity_top_k: How many passages to retrieve.
            filters: LlamaIndex's metadata filters, which Qdrant applies.
            streaming: Whether the query engine of "condense_question" streams its answers.
            **engine_options: Options of LlamaIndex's engine: memory, chat_history, system_prompt,
                context_template (or context_prompt), node_postprocessors, ….

        Raises:
            ValueError: When there is no such chat mode, or `llm` is not a `LatentLLM`.
        """
        llm = self._latent_llm(llm)
        engine = make_chat_engine(
            ChatMode(chat_mode),
            llm,
            self.as_retriever(similarity_top_k, filters),
            self.as_query_engine(
                llm, similarity_top_k=similarity_top_k, filters=filters, streaming=streaming
            ),
            **engine_options,
        )
        engine.callback_manager = self._callback_manager
        return engine  # type: ignore[no-any-return]

    def _latent_llm(self, llm: LLM | None) -> LatentLLM:
        if llm is None:
            return self.llm
        if isinstance(llm, LatentLLM):
            return llm
        raise ValueError(
            f"Latents are read by the checkpoint's own decoder, not by {type(llm).__name__}; leave llm out, "
            "or give text to your model: RetrieverQueryEngine.from_args(index.as_retriever(), llm=…)."
        )

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The nodes and metadata of each document, by document id; reads the whole store."""
        found: dict[str, RefDocInfo] = {}
        for row in self.knowledge_base.store.passages():
            node = to_node(row.passage)
            info = found.setdefault(ref_doc_id_of(row.passage), RefDocInfo(metadata=node.metadata))
            info.node_ids.append(node.node_id)
        return found

    # --- writing --------------------------------------------------------------------------------

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Compress a document, as the class describes it.

        Args:
            document: The document.
            **insert_kwargs: Options for the transformations.
        """
        with self._callback_manager.as_trace("insert"):
            self._add([document], **insert_kwargs)

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Compress nodes; those of the same id are replaced.

        Args:
            nodes: The nodes.
            **insert_kwargs: Ignored.
        """
        with self._callback_manager.as_trace("insert_nodes"):
            self._insert(nodes, **insert_kwargs)

    def delete_ref_doc(
        self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete a document and its nodes.

        As in LlamaIndex, an unknown document only gets a warning.

        Args:
            ref_doc_id: The document's id.
            delete_from_docstore: Ignored; the docstore is empty.
            **delete_kwargs: Ignored.
        """
        gone = self._documents_of({ref_doc_id})
        if not gone:
            _logger.warning("ref_doc_id %s not found, nothing deleted.", ref_doc_id)
            return
        self.knowledge_base.delete(gone)

    def delete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete nodes.

        Args:
            node_ids: Ids of nodes. A passage of a document that the knowledge base has split cannot be
                deleted by itself; delete the whole document by `delete_ref_doc`.
            delete_from_docstore: Ignored; the docstore is empty.
            **delete_kwargs: Ignored.

        Raises:
            KnowledgeBaseError: When one of them does not exist, or is such a passage.
        """
        self.knowledge_base.delete(node_ids)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id])

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replace a document and its nodes; an unknown document is inserted.

        Args:
            document: The document.
            **update_kwargs: "insert_kwargs" holds options for the transformations.
        """
        with self._callback_manager.as_trace("update_ref_doc"):
            self._replace([document], **update_kwargs.get("insert_kwargs", {}))

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Insert new documents, and replace those whose text or metadata has changed.

        Args:
            documents: The documents.
            **update_kwargs: "insert_kwargs" holds options for the transformations.

        Returns:
            For each document whether it was new or changed.
        """
        with self._callback_manager.as_trace("refresh_ref_docs"):
            fresh = self._unchanged(documents)
            changed = [document.id_ not in fresh for document in documents]
            stale = [d for d, is_changed in zip(documents, changed, strict=True) if is_changed]
            if stale:
                self._replace(stale, **update_kwargs.get("insert_kwargs", {}))
            return changed

    def _replace(self, documents: Sequence[Document], **insert_kwargs: Any) -> None:
        before = self._documents_of({document.id_ for document in documents})
        written = self._add(documents, **insert_kwargs)
        # Delete the old nodes only after the new ones are added (in `_add` above), so that an interruption
        # leaves a document twice rather than not at all.
        gone = [document_id for document_id in before if document_id not in written]
        if gone:
            self.knowledge_base.delete(gone)

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        for node in nodes:
            self._keep_object(node)
        self._add_nodes(nodes)

    def _add(self, documents: Iterable[Document], **insert_kwargs: Any) -> set[str]:
        """Add documents; returns the ids under which they are in the knowledge base."""
        if self._transformations:
            nodes = run_transformations(
                list(documents),
                self._transformations,
                show_progress=self._show_progress,
                **insert_kwargs,
            )
            self._insert(nodes)
            return {node.node_id for node in nodes}
        shown = get_tqdm_iterable(documents, self._show_progress, "Compressing")
        return add_to(self.knowledge_base, shown, split=True)

    def _add_nodes(self, nodes: Iterable[BaseNode]) -> None:
        shown = get_tqdm_iterable(nodes, self._show_progress, "Compressing")
        add_to(self.knowledge_base, shown, split=False)

    def _keep_object(self, node: BaseNode) -> None:
        """Keep the object of an IndexNode in this process if it cannot be stored."""
        target = getattr(node, "obj", None)
        if target is not None and not isinstance(target, BaseNode):
            self._object_map[node.index_id] = target  # type: ignore[attr-defined]
            node.obj = None  # type: ignore[attr-defined]

    def _documents_of(self, ref_doc_ids: set[str]) -> list[str]:
        """The knowledge base's documents that are, or are nodes of, these LlamaIndex documents."""
        kb = self.knowledge_base
        own = (i for i in sorted(ref_doc_ids) if kb.store.document_hash(i) is not None)
        nodes = (key.document_id for key in kb.find(field(REF_DOC_ID).is_in(ref_doc_ids)))
        return list(dict.fromkeys([*own, *nodes]))

    def _unchanged(self, documents: Sequence[Document]) -> set[str]:
        """The ids of the documents that the knowledge base contains unchanged."""
        store = self.knowledge_base.store
        if not self._transformations:
            hashes = {d.id_: to_document(d).content_hash() for d in documents}
            return {i for i, content in hashes.items() if store.document_hash(i) == content}
        wanted = {document.id_: document.hash for document in documents}
        keys = self.knowledge_base.find(field(REF_DOC_ID).is_in(wanted))
        sources = (to_node(row.passage).source_node for row in store.read(keys))
        found = {source.node_id: source.hash for source in sources if source is not None}
        return {i for i, content in wanted.items() if found.get(i) == content}

    # --- the same for event loops -----------------------------------------------------------------

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """`insert` for event loops."""
        await asyncio.to_thread(self.insert, document, **insert_kwargs)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """`insert_nodes` for event loops."""
        await asyncio.to_thread(self.insert_nodes, nodes, **insert_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """`delete_nodes` for event loops."""
        await asyncio.to_thread(self.delete_nodes, node_ids)

    async def adelete_ref_doc(
        self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """`delete_ref_doc` for event loops."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """`update_ref_doc` for event loops."""
        await asyncio.to_thread(self.update_ref_doc, document, **update_kwargs)

    async def arefresh_ref_docs(
        self, documents: Sequence[Document], **update_kwargs: Any
    ) -> list[bool]:
        """`refresh_ref_docs` for event loops."""
        return await asyncio.to_thread(self.refresh_ref_docs, documents, **update_kwargs)


def _as_they_are(nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
    return nodes
