"""LatentQueryEngine: LlamaIndex's own retriever query engine, assembled for a knowledge base."""

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
    """LlamaIndex's `RetrieverQueryEngine`; `from_knowledge_base` assembles it."""

    @classmethod
    def class_name(cls) -> str:
        """The name that identifies the class in saved components."""
        return "LatentQueryEngine"

    @classmethod
    def from_knowledge_base(
        cls,
        knowledge_base: KnowledgeBase | str | Path,
        *,
        similarity_top_k: int = DEFAULT_TOP_K,
    ) -> LatentQueryEngine:
        """Make a query engine with default parts.

        For anything else, construct it from a `LatentRetriever` and a `LatentSynthesizer`.

        Args:
            knowledge_base: An open knowledge base, or the folder of one.
            similarity_top_k: How many passages to retrieve.

        Returns:
            The query engine.
        """
        kb = knowledge_base
        if not isinstance(kb, KnowledgeBase):
            kb = KnowledgeBase.open(kb)
        return cls(LatentRetriever(kb, similarity_top_k), LatentSynthesizer(LatentLLM(kb)))

    def as_tool(self, name: str, description: str) -> QueryEngineTool:
        """A tool for agents and routers, which gives whole answers even if this engine streams.

        With a streamed answer, a tool would wait for the text while the event loop waits for the tool.

        Args:
            name: The tool's name.
            description: What the agent reads about the tool.
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
