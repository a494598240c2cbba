"""LatentQueryEngine: LlamaIndex's own retriever query engine, put together over a knowledge base."""

from __future__ import annotations

from pathlib import Path

from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.tools import QueryEngineTool

from lclm_rag import KnowledgeBase
from lclm_rag.connectors.llama_index.llm import LatentLLM
from lclm_rag.connectors.llama_index.retriever import LatentRetriever
from lclm_rag.connectors.llama_index.synthesizer import LatentSynthesizer
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
        similarity_top_k: int = DEFAULT_TOP_K,
    ) -> LatentQueryEngine:
        """knowledge_base: one, or its folder. For anything else, give the parts: a `LatentRetriever` and a
        `LatentSynthesizer`."""
        kb = knowledge_base
        if not isinstance(kb, KnowledgeBase):
            kb = KnowledgeBase.open(kb)
        return cls(LatentRetriever(kb, similarity_top_k), LatentSynthesizer(LatentLLM(kb)))

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
