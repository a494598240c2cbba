"""LatentQueryEngine: LlamaIndex's own retriever query engine, put together over a knowledge base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.tools import QueryEngineTool
from llama_index.core.vector_stores import MetadataFilters

from lclm_rag import KnowledgeBase
from lclm_rag.connectors.llama_index.llm import LatentLLM
from lclm_rag.connectors.llama_index.retriever import LatentRetriever
from lclm_rag.connectors.llama_index.synthesizer import LatentSynthesizer
from lclm_rag.querying.expansion import Expand
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["LatentQueryEngine"]


class LatentQueryEngine(RetrieverQueryEngine):
    """`RetrieverQueryEngine` as it is; `from_knowledge_base` puts the parts together."""

    @classmethod
    def class_name(cls) -> str:
        return "LatentQueryEngine"

    @classmethod
    def from_knowledge_base(
        cls,
        knowledge_base: KnowledgeBase | str | Path,
        *,
        llm: LatentLLM | None = None,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        text_qa_template: BasePromptTemplate | None = None,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        expand: Expand = "auto",
    ) -> LatentQueryEngine:
        """knowledge_base: one, or its folder. llm: with other sampling, say; default greedy, 256 tokens.
        expand: as for `LatentSynthesizer`."""
        kb = knowledge_base
        if not isinstance(kb, KnowledgeBase):
            kb = KnowledgeBase.open(kb)
        return cls(
            LatentRetriever(kb, similarity_top_k, filters, callback_manager),
            LatentSynthesizer(
                llm or LatentLLM(kb),
                text_qa_template,
                streaming,
                callback_manager,
                expand=expand,
            ),
            list(node_postprocessors or []),
            callback_manager,
        )

    def as_tool(self, name: str, description: str) -> QueryEngineTool:
        """For agents and routers: an engine that gives whole answers, whatever this one does.

        A tool asks a streamed answer for its text while the event loop waits for the tool.
        """
        engine = self
        synthesizer = self._response_synthesizer
        if isinstance(synthesizer, LatentSynthesizer) and synthesizer.streaming:
            engine = LatentQueryEngine(
                self._retriever,
                synthesizer.without_streaming(),
                self._node_postprocessors,
                self.callback_manager,
            )
        return QueryEngineTool.from_defaults(engine, name=name, description=description)
