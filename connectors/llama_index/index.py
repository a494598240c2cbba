"""LatentIndex: a knowledge base with the interface of LlamaIndex's own indexes."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core import Settings
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.embeddings.utils import EmbedType
from llama_index.core.indices.managed.base import BaseManagedIndex
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.ingestion import run_transformations
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import BaseNode, Document, IndexNode, TransformComponent
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.utils import get_tqdm_iterable
from llama_index.core.vector_stores import MetadataFilters

from lclm_rag import KnowledgeBase, KnowledgeBaseError, field
from lclm_rag.connectors.llama_index.arguments import refuse_others
from lclm_rag.connectors.llama_index.chat_engines import make_chat_engine
from lclm_rag.connectors.llama_index.embeddings import embedder_to_create
from lclm_rag.connectors.llama_index.llm import LatentLLM
from lclm_rag.connectors.llama_index.nodes import (
    REF_DOC_ID,
    add_to,
    delete_nodes,
    documents_of,
    ref_doc_infos,
    to_document,
    to_node,
)
from lclm_rag.connectors.llama_index.opening import (
    CREATE_OPTIONS,
    has_version,
    opened,
    reopened,
)
from lclm_rag.connectors.llama_index.query_engine import LatentQueryEngine
from lclm_rag.connectors.llama_index.retriever import LatentRetriever
from lclm_rag.connectors.llama_index.storage import (
    LatentStruct,
    storage_context_of,
)
from lclm_rag.connectors.llama_index.synthesizer import LatentSynthesizer
from lclm_rag.prompting import Order
from lclm_rag.querying.expansion import Expand
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["LatentIndex"]

_logger = logging.getLogger(__name__)

_RETRIEVING = {"doc_ids", "node_ids", "vector_store_query_mode", "mmr_threshold"}


class LatentIndex(BaseManagedIndex):
    """Documents in a knowledge base: retrieved by Qdrant, answered from their latents.

    Without `transformations`, the knowledge base splits documents as `lclm-rag build` does; a document
    replaces one of the same id. With `transformations` (node parsers, extractors, …), these make the nodes,
    and each node is compressed whole. Only the text is compressed, not the metadata. Documents and nodes
    without text are left out, with a warning.

    Adding and deleting make one atomic version of the store each; replacing nodes makes two. Everything is
    in the knowledge base: `docstore` and `vector_store` show what it holds, and `storage_context.persist`
    writes only where it is, so that `load_index_from_storage` opens it.

    Args:
        knowledge_base: The knowledge base, open, or its folder. It stays open until it, or the index, is
            closed with `close`.
        nodes: Nodes to insert at once.
        objects: LlamaIndex's IndexNodes to insert at once.
        transformations: LlamaIndex's transformations from documents to nodes; None to let the knowledge base
            split documents.
        callback_manager: LlamaIndex's callback manager; by default that of its settings, whenever it is set.
        show_progress: Whether to show progress bars.
        storage_context: A storage context whose docstore holds further nodes, such as the parents of those
            that are inserted.
        index_struct: In place of a knowledge base: what LlamaIndex has stored of one.
        **options: For a folder, as for `from_path`.

    Raises:
        ValueError: When there is no knowledge base, or the storage context has a vector store of its own.
        TypeError: When an argument is unknown, or has no meaning here.
    """

    index_struct_cls = LatentStruct

    def __init__(
        self,
        knowledge_base: KnowledgeBase | str | Path | None = None,
        nodes: Sequence[BaseNode] | None = None,
        *,
        objects: Sequence[IndexNode] | None = None,
        transformations: list[TransformComponent] | None = None,
        callback_manager: CallbackManager | None = None,
        show_progress: bool = False,
        storage_context: StorageContext | None = None,
        index_struct: LatentStruct | None = None,
        **options: Any,
    ) -> None:
        if knowledge_base is None and index_struct is not None:
            knowledge_base = index_struct.path
        kb = opened(type(self).__name__, knowledge_base, options)
        self._own_callback_manager = callback_manager
        summary = f"lclm-rag knowledge base {kb.path}"
        super().__init__(
            index_struct=index_struct or LatentStruct(summary=summary, path=str(_lasting(kb.path))),
            storage_context=storage_context_of(kb, storage_context),
            show_progress=show_progress,
            # Must not be empty: LlamaIndex would fall back to its settings, a SentenceSplitter.
            transformations=transformations or [_as_they_are],
        )
        self.knowledge_base = kb
        self._transformations = transformations or []
        self._embed_model: BaseEmbedding | None = None  # LlamaIndex's retrievers look for it.
        self._latent_llm_of_index = LatentLLM(kb, callback_manager=self._callback_manager)
        if given := [*(nodes or []), *(objects or [])]:
            self.insert_nodes(given)

    def __reduce__(self) -> tuple[Any, ...]:
        made = (self.knowledge_base, self._transformations, self._show_progress)
        return _again, (type(self), *made)

    @property
    def _callback_manager(self) -> CallbackManager:
        # Looked up each time, because Settings.callback_manager may be set after the index is made.
        return self._own_callback_manager or Settings.callback_manager

    @_callback_manager.setter
    def _callback_manager(self, manager: CallbackManager) -> None:
        """LlamaIndex's constructor sets what it finds in its settings; that is not our own."""

    @property
    def llm(self) -> LatentLLM:
        """The decoder as a LlamaIndex LLM."""
        self._latent_llm_of_index.callback_manager = self._callback_manager
        return self._latent_llm_of_index

    @property
    def vector_store(self) -> Any:
        """The knowledge base as a vector store of LlamaIndex."""
        return self._vector_store

    @classmethod
    def from_documents(  # type: ignore[override]  # A knowledge base needs a path.
        cls,
        documents: Iterable[Document],
        path: str | Path,
        *,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        storage_context: StorageContext | None = None,
        embed_model: EmbedType | None = None,
        exist_ok: bool = False,
        **options: Any,
    ) -> LatentIndex:
        """Compress documents into a new knowledge base at `path`.

        If the call fails or is interrupted, what was compressed stays, and the same call continues from
        there. If nothing was compressed, nothing is left in `path`.

        Retrieval is by words and by the vectors of `embed_model`, or of `Settings.embed_model` if that was
        set; without either by words alone (BM25).

        Args:
            documents: LlamaIndex's documents.
            path: The folder of the new knowledge base.
            show_progress: Whether to show progress bars.
            callback_manager: LlamaIndex's callback manager.
            transformations: LlamaIndex's transformations from documents to nodes; None to let the knowledge
                base split documents.
            storage_context: As for the class.
            embed_model: LlamaIndex's embedding model for hybrid retrieval. `from_path` needs it, too.
            exist_ok: Whether to bring the documents up to date in the knowledge base that `path` already
                holds. Other documents in it stay.
            **options: As for `KnowledgeBase.create`: checkpoint, codec, space, passage_tokens, embedder,
                decoder, device, ….

        Returns:
            The index, with all documents.

        Raises:
            KnowledgeBaseError: When there is a knowledge base already and `exist_ok` is False, or it was made
                with other options.
            TypeError: When an option is unknown, or has no meaning here.
        """
        refuse_others(f"{cls.__name__}.from_documents", options, CREATE_OPTIONS)
        options["embedder"] = embedder_to_create(embed_model, options.get("embedder"))
        made: dict[str, Any] = {
            "transformations": transformations,
            "callback_manager": callback_manager,
            "show_progress": show_progress,
            "storage_context": storage_context,
        }
        if has_version(path):
            if not exist_ok:
                raise KnowledgeBaseError(
                    f"{path} is a knowledge base already: {cls.__name__}.from_path({str(path)!r}) opens it, "
                    "and from_documents(…, exist_ok=True) brings these documents up to date in it."
                )
            index = cls(reopened(path, options), **made)
            with index._callback_manager.as_trace("index_construction"):
                index._replace(list(documents))
            return index
        kb = KnowledgeBase.create(path, resume=True, **options)
        try:
            index = cls(kb, **made)
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
        show_progress: bool = False,
        storage_context: StorageContext | None = None,
        **options: Any,
    ) -> LatentIndex:
        """Open an existing knowledge base, no matter what built it.

        Args:
            path: The folder of the knowledge base.
            transformations: LlamaIndex's transformations for documents that are added later; None to let the
                knowledge base split them.
            callback_manager: LlamaIndex's callback manager.
            show_progress: Whether to show progress bars.
            storage_context: As for the class.
            **options: As for `KnowledgeBase.open`; and embed_model, the embedding model of LlamaIndex that
                the knowledge base was made with; by default `Settings.embed_model`, if it is that one.

        Returns:
            The index.

        Raises:
            TypeError: When an option is unknown, or has no meaning here.
        """
        return cls(
            path,
            transformations=transformations,
            callback_manager=callback_manager,
            show_progress=show_progress,
            storage_context=storage_context,
            **options,
        )

    def close(self) -> None:
        """Close the knowledge base."""
        self.knowledge_base.close()

    # --- reading --------------------------------------------------------------------------------

    def as_retriever(
        self,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        verbose: bool = False,
        **options: Any,
    ) -> BaseRetriever:
        """A retriever over the knowledge base.

        Args:
            similarity_top_k: How many passages to retrieve.
            filters: LlamaIndex's metadata filters, which Qdrant applies.
            verbose: Whether the retriever prints what it does.
            **options: doc_ids, node_ids, vector_store_query_mode and mmr_threshold, as for `LatentRetriever`.

        Raises:
            ValueError: As for `LatentRetriever`.
            TypeError: When an option is unknown, or has no meaning here.
        """
        known = _RETRIEVING | {"similarity_top_k", "filters", "verbose"}
        refuse_others(f"{type(self).__name__}.as_retriever", options, known)
        return LatentRetriever(
            self.knowledge_base,
            similarity_top_k,
            filters,
            self._callback_manager,
            self._object_map,
            verbose,
            **options,
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
        **options: Any,
    ) -> LatentQueryEngine:
        """A query engine over the knowledge base.

        Args:
            llm: A `LatentLLM`, for example with other sampling; None for the index's own.
            similarity_top_k: How many passages to retrieve.
            filters: LlamaIndex's metadata filters, which Qdrant applies.
            node_postprocessors: LlamaIndex's postprocessors for the retrieved nodes.
            text_qa_template: As for `LatentSynthesizer`.
            response_mode: "compact" or "simple_summarize", which both mean one pass; "no_text" and
                "context_only", which decode nothing.
            response_synthesizer: Replaces the `LatentSynthesizer`. As in LlamaIndex, it brings its own llm,
                text_qa_template and streaming, and also its own expand and order: these arguments are then
                ignored.
            streaming: Whether answers are streamed.
            verbose: Whether the retriever prints what it does.
            expand: As for `LatentSynthesizer`.
            order: As for `LatentSynthesizer`.
            **options: As for `as_retriever`.

        Raises:
            ValueError: When `response_mode` needs several passes, `llm` is not a `LatentLLM`, or an argument
                of `as_retriever` is invalid.
            TypeError: When an option is unknown, or has no meaning here.
        """
        taken = inspect.signature(type(self).as_query_engine).parameters
        known = _RETRIEVING | set(taken) - {"self", "options"}
        refuse_others(f"{type(self).__name__}.as_query_engine", options, known)
        synthesizer = response_synthesizer
        if synthesizer is None and response_mode in _UNDECODED:
            synthesizer = _UNDECODED[response_mode](
                llm=self._latent_llm(llm), callback_manager=self._callback_manager
            )
        elif synthesizer is None and response_mode in ("compact", "simple_summarize"):
            synthesizer = LatentSynthesizer(
                self._latent_llm(llm),
                text_qa_template,
                streaming,
                self._callback_manager,
                expand=expand,
                order=order,
            )
        elif synthesizer is None:
            raise ValueError(
                f"Latents are answered from in one pass, not by response_mode {response_mode!r}; for that, "
                "give text to the same model: get_response_synthesizer(llm=index.llm, response_mode=…)."
            )
        return LatentQueryEngine(
            self.as_retriever(similarity_top_k, filters, verbose, **options),
            synthesizer,
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
                context_template (or context_prompt), node_postprocessors, …; and those of `as_retriever`.

        Raises:
            ValueError: When there is no such chat mode, or `llm` is not a `LatentLLM`.
            TypeError: When an option is unknown, or has no meaning here.
        """
        llm = self._latent_llm(llm)
        retrieving = {k: engine_options.pop(k) for k in _RETRIEVING & set(engine_options)}
        engine = make_chat_engine(
            ChatMode(chat_mode),
            llm,
            self.as_retriever(similarity_top_k, filters, **retrieving),
            self.as_query_engine(
                llm,
                similarity_top_k=similarity_top_k,
                filters=filters,
                streaming=streaming,
                **retrieving,
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
        return ref_doc_infos(row.passage for row in self.knowledge_base.store.passages())

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
            delete_from_docstore: Ignored; the docstore shows the knowledge base.
            **delete_kwargs: Ignored.
        """
        gone = documents_of([ref_doc_id], self.knowledge_base)
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
            delete_from_docstore: Ignored; the docstore shows the knowledge base.
            **delete_kwargs: Ignored.

        Raises:
            KnowledgeBaseError: When one of them does not exist, or is such a passage.
        """
        delete_nodes(node_ids, self.knowledge_base)

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
        before = documents_of((d.id_ for d in documents), self.knowledge_base)
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


def _lasting(path: str | Path) -> str | Path:
    """The path, valid from any working directory, or the URL."""
    return path.resolve() if isinstance(path, Path) else path


def _again(
    cls: type[LatentIndex], knowledge_base: KnowledgeBase, transformations: Any, shown: bool
) -> LatentIndex:
    """What unpickling calls."""
    return cls(knowledge_base, transformations=transformations, show_progress=shown)


_UNDECODED: dict[str, Any] = {"no_text": NoText, "context_only": ContextOnly}


# LlamaIndex finds the class by this name when it loads an index; it has no function for it.
INDEX_STRUCT_TYPE_TO_INDEX_CLASS[LatentStruct.get_type()] = LatentIndex


def _as_they_are(nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
    return nodes
