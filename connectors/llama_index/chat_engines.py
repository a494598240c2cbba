"""LlamaIndex's chat engines with a context, answering from latents.

The engines are LlamaIndex's own: history, condensing of questions, postprocessors, streaming. They build a
synthesizer for each turn, from the history; here it is one that takes latents.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import ChatMode

from lclm_rag.connectors.llama_index.llm import LatentLLM
from lclm_rag.connectors.llama_index.synthesizer import LatentSynthesizer

__all__ = [
    "LatentCondensePlusContextChatEngine",
    "LatentContextChatEngine",
    "make_chat_engine",
]


def _with_latents(engine: Any, theirs: Any, streaming: bool) -> Any:
    """A synthesizer with the prompt of the one that the engine built. Typed Any: the engines promise a
    CompactAndRefine, and call nothing of it but `synthesize`."""
    llm = engine._llm
    if not isinstance(llm, LatentLLM):
        raise ValueError(f"{type(engine).__name__} decodes latents: its llm must be a LatentLLM.")
    template = theirs.get_prompts()["text_qa_template"]
    return LatentSynthesizer(llm, template, streaming, engine.callback_manager)


def make_chat_engine(
    chat_mode: ChatMode,
    llm: LatentLLM,
    retriever: BaseRetriever,
    query_engine: BaseQueryEngine,
    **options: Any,
) -> Any:
    """LlamaIndex's chat engine of that mode, with latents where it has a context. options: the engine's."""
    if chat_mode == ChatMode.SIMPLE:
        return SimpleChatEngine.from_defaults(llm=llm, **options)
    if chat_mode == ChatMode.CONDENSE_QUESTION:
        return CondenseQuestionChatEngine.from_defaults(
            query_engine=query_engine, llm=llm, **options
        )
    if chat_mode == ChatMode.CONTEXT:
        return LatentContextChatEngine.from_defaults(retriever=retriever, llm=llm, **options)
    if chat_mode in (ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.BEST):
        return LatentCondensePlusContextChatEngine.from_defaults(
            retriever=retriever, llm=llm, **options
        )
    raise ValueError(
        f"There is no chat mode {chat_mode.value!r}; give the tool of as_query_engine().as_tool(…) to an "
        "agent of llama_index.core.agent.workflow."
    )


class LatentContextChatEngine(ContextChatEngine):
    """Retrieves for each message; passages stand in the system message, history after it."""

    def _get_response_synthesizer(
        self, chat_history: list[ChatMessage], streaming: bool = False
    ) -> Any:
        theirs = super()._get_response_synthesizer(chat_history, streaming)
        return _with_latents(self, theirs, streaming)


class LatentCondensePlusContextChatEngine(CondensePlusContextChatEngine):
    """As `LatentContextChatEngine`; retrieves for a question condensed from the whole conversation."""

    def _get_response_synthesizer(
        self, chat_history: list[ChatMessage], streaming: bool = False
    ) -> Any:
        theirs = super()._get_response_synthesizer(chat_history, streaming)
        return _with_latents(self, theirs, streaming)
