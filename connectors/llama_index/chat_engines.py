"""LlamaIndex's chat engines with a context, answering from latents.

The engines are LlamaIndex's own: history, condensing of questions, postprocessors, streaming. For each turn
they build a synthesizer from the history; these subclasses replace it by one that takes latents.
"""

from __future__ import annotations

import inspect
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

from lclm_rag.connectors.llama_index.arguments import refuse_others
from lclm_rag.connectors.llama_index.llm import LatentLLM
from lclm_rag.connectors.llama_index.synthesizer import LatentSynthesizer

__all__ = [
    "LatentCondensePlusContextChatEngine",
    "LatentContextChatEngine",
    "make_chat_engine",
]


def _with_latents(engine: Any, theirs: Any, streaming: bool) -> Any:
    """A synthesizer for latents, with the prompt of the synthesizer that the engine built.

    The return type is Any: the engines expect a CompactAndRefine, but call only its `synthesize`.
    """
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
    """Make LlamaIndex's chat engine for a chat mode; it takes latents if that engine has a context.

    Args:
        chat_mode: LlamaIndex's chat mode.
        llm: The LLM that decodes.
        retriever: Retrieves for the engines with a context.
        query_engine: Answers in the mode "condense_question".
        **options: Options of LlamaIndex's engine.

    Raises:
        ValueError: When there is no chat engine for that mode.
        TypeError: When the engine has no such option.
    """
    engine: Any
    own: dict[str, Any]
    if chat_mode == ChatMode.SIMPLE:
        engine, own = SimpleChatEngine, {}
    elif chat_mode == ChatMode.CONDENSE_QUESTION:
        engine, own = CondenseQuestionChatEngine, {"query_engine": query_engine}
    elif chat_mode == ChatMode.CONTEXT:
        engine, own = LatentContextChatEngine, {"retriever": retriever}
    elif chat_mode in (ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.BEST):
        engine, own = LatentCondensePlusContextChatEngine, {"retriever": retriever}
    else:
        raise ValueError(
            f"There is no chat mode {chat_mode.value!r}; give the tool of as_query_engine().as_tool(…) to an "
            "agent of llama_index.core.agent.workflow."
        )
    # LlamaIndex's engines ignore what they do not know.
    known = set(inspect.signature(engine.from_defaults).parameters) - {"kwargs", "llm", *own}
    refuse_others(f"as_chat_engine({chat_mode.value!r})", options, known)
    return engine.from_defaults(llm=llm, **own, **options)


class LatentContextChatEngine(ContextChatEngine):
    """Retrieves for each message; the passages are in the system message, followed by the history.

    Use it like LlamaIndex's `ContextChatEngine`, with a `LatentLLM` as `llm`.
    """

    def _get_response_synthesizer(
        self, chat_history: list[ChatMessage], streaming: bool = False
    ) -> Any:
        theirs = super()._get_response_synthesizer(chat_history, streaming)
        return _with_latents(self, theirs, streaming)


class LatentCondensePlusContextChatEngine(CondensePlusContextChatEngine):
    """Like `LatentContextChatEngine`, but retrieves for a question condensed from the whole conversation.

    Use it like LlamaIndex's `CondensePlusContextChatEngine`, with a `LatentLLM` as `llm`.
    """

    def _get_response_synthesizer(
        self, chat_history: list[ChatMessage], streaming: bool = False
    ) -> Any:
        theirs = super()._get_response_synthesizer(chat_history, streaming)
        return _with_latents(self, theirs, streaming)
