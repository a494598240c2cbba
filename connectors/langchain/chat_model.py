"""ChatLatent: a checkpoint's decoder as a LangChain chat model, for text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, model_validator

from lclm_rag.connectors.langchain.base import renamed
from lclm_rag.connectors.langchain.tracing import usage_of
from lclm_rag.decoding import (
    Completion,
    Sampling,
    aanswer_pieces,
    all_answered,
    answer_pieces,
    answer_text,
)
from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.prompting import SoftPrompt, chat_ids

__all__ = ["ChatLatent"]

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}
_SAMPLING = {"max_tokens", "temperature", "top_p", "seed"}


class ChatLatent(BaseChatModel):
    """The decoder of a knowledge base as a chat model: text in, text out, for the other steps of a chain.

    It calls no tools. Answers from latents come from `LatentAnswer`.

    Attributes:
        knowledge_base: The knowledge base whose decoder answers, open, or its folder.
        max_tokens: Longest answer, in tokens.
        temperature: 0 is greedy.
        top_p: Share of probability to sample from.
        seed: Makes sampling repeatable.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    knowledge_base: KnowledgeBase
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = renamed(cls.__name__, given, set(cls.model_fields))
        Sampling(**{name: given[name] for name in _SAMPLING & set(given)})  # Refuses bad values.
        if isinstance(given.get("knowledge_base"), str | Path):
            given["knowledge_base"] = KnowledgeBase.open(given["knowledge_base"])
        return given

    @property
    def _llm_type(self) -> str:
        return "lclm-rag"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.knowledge_base.checkpoint.name, "max_tokens": self.max_tokens}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **own: Any,
    ) -> ChatResult:
        prompt, sampling = self._prompt(messages, stop, own)
        results = self.knowledge_base.decoder.complete([prompt], sampling)
        return self._result(prompt, all_answered(results)[0])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **own: Any,
    ) -> ChatResult:
        prompt, sampling = self._prompt(messages, stop, own)
        results = await self.knowledge_base.decoder.acomplete([prompt], sampling)
        return self._result(prompt, all_answered(results)[0])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **own: Any,
    ) -> Iterator[ChatGenerationChunk]:
        prompt, sampling = self._prompt(messages, stop, own)
        done: list[Completion] = []
        decoder = self.knowledge_base.decoder
        with closing(answer_pieces(decoder, prompt, sampling, done.append)) as pieces:
            for piece in pieces:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        yield _last(prompt, done)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **own: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        prompt, sampling = self._prompt(messages, stop, own)
        done: list[Completion] = []
        decoder = self.knowledge_base.decoder
        async with aclosing(aanswer_pieces(decoder, prompt, sampling, done.append)) as pieces:
            async for piece in pieces:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        yield _last(prompt, done)

    def _prompt(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, own: dict[str, Any]
    ) -> tuple[SoftPrompt, Sampling]:
        if stop:
            raise ValueError("ChatLatent ends its answers by itself; leave stop out.")
        own = renamed(type(self).__name__, own, _SAMPLING)
        chosen = {name: own.get(name, getattr(self, name)) for name in _SAMPLING}
        chat = [(_role(message), _words(message)) for message in messages]
        kb = self.knowledge_base
        return SoftPrompt(chat_ids(kb.checkpoint, kb.template, chat)), Sampling(**chosen)

    def _result(self, prompt: SoftPrompt, completion: Completion) -> ChatResult:
        message = AIMessage(
            answer_text(self.knowledge_base.checkpoint, prompt, completion),
            usage_metadata=usage_of(prompt.positions, len(completion.token_ids)),
            response_metadata={"finish_reason": completion.finish_reason},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


def _last(prompt: SoftPrompt, done: list[Completion]) -> ChatGenerationChunk:
    """The end of a stream, with the usage."""
    (completion,) = done
    message = AIMessageChunk(
        content="",
        usage_metadata=usage_of(prompt.positions, len(completion.token_ids)),
        response_metadata={"finish_reason": completion.finish_reason},
    )
    return ChatGenerationChunk(message=message)


def _role(message: BaseMessage) -> str:
    if message.type not in _ROLES:
        raise ValueError(f"ChatLatent takes system, human and AI messages, not {message.type!r}.")
    return _ROLES[message.type]


def _words(message: BaseMessage) -> str:
    blocks = [message.content] if isinstance(message.content, str) else message.content
    words = [block if isinstance(block, str) else block.get("text") for block in blocks]
    if any(word is None for word in words):
        raise ValueError("ChatLatent takes text only; a message has a block of another kind.")
    return "".join(map(str, words))
