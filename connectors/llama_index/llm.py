"""LatentLLM: a checkpoint's decoder as a LlamaIndex LLM, for text and for passages as latents."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.generic_utils import (
    achat_to_completion_decorator,
    astream_chat_to_completion_decorator,
    chat_to_completion_decorator,
    stream_chat_to_completion_decorator,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import MetadataMode, NodeWithScore

from lclm_rag import Checkpoint, Completion, KnowledgeBase, PassageKey, Sampling, SoftPrompt
from lclm_rag.connectors.llama_index.arguments import refuse_others
from lclm_rag.connectors.llama_index.nodes import known_key
from lclm_rag.decoding import (
    Decoder,
    aanswer_pieces,
    all_answered,
    answer_pieces,
    answer_text,
    load_decoder,
)
from lclm_rag.prompting import Order, PromptPassage, PromptTemplate, chat_ids
from lclm_rag.querying.expansion import Expand

__all__ = ["LatentLLM"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """A chat ready to be decoded.

    Attributes:
        prompt: The prompt.
        sampling: How the answer is decoded.
        passages: Node ids for the response's `raw`, under "latents", "text" and "left_out"; {} without nodes.
    """

    prompt: SoftPrompt
    sampling: Sampling
    passages: dict[str, list[str]]


class LatentLLM(LLM):
    """The decoder of a knowledge base, or of a checkpoint, as a LlamaIndex LLM.

    It takes chats of text, from agents, chat engines and other synthesizers. With `nodes=`, one message of
    the chat must contain `PASSAGES`; the nodes go in at that place, as latents if the knowledge base knows
    them, else as text. `expand=` and `question=`, as for `KnowledgeBase.stream`, put the best of them in
    verbatim; `order=`, as for `KnowledgeBase.open`, is their order in the prompt. The response's `raw`
    reports how each node was used, and the usage.

    Every call can override `max_tokens`, `temperature`, `top_p` and `seed`.

    Args:
        knowledge_base: An open knowledge base, or the folder of one; None to decode text only.
        checkpoint: Without a knowledge base: the checkpoint to decode with, a folder, a hub id, "english" or
            "bundled".
        decoder: The decoder as for `KnowledgeBase.open`, for a knowledge base given as a folder, or without a
            knowledge base; without one, it is loaded right away.
        max_tokens: Longest answer, in tokens.
        temperature: 0 is greedy.
        top_p: Share of probability to sample from.
        seed: Makes sampling repeatable.
        **llm_options: Options of LlamaIndex's `LLM`.

    Raises:
        ValueError: When a sampling value is invalid.
        TypeError: When an option is unknown.
    """

    knowledge_base: str | None = Field(description="Folder of the knowledge base.")
    checkpoint: str = Field(description="Folder, hub id, 'english' or 'bundled'.")
    decoder: str = Field(description="'transformers', 'vllm' or the URL of a vLLM server.")
    max_tokens: int = Field(description="Longest answer, in tokens.")
    temperature: float = Field(description="0 is greedy.")
    top_p: float = Field(description="Share of probability to sample from.")
    seed: int | None = Field(description="Makes sampling repeatable.")

    _kb: KnowledgeBase | None = PrivateAttr(default=None)
    _loaded: Decoder | None = PrivateAttr(default=None)
    _checkpoint: Checkpoint = PrivateAttr()
    _template: PromptTemplate = PrivateAttr()
    _said_text: bool = PrivateAttr(default=False)

    def __init__(
        self,
        knowledge_base: KnowledgeBase | str | Path | None = None,
        *,
        checkpoint: str = "bundled",
        decoder: str | Decoder = "transformers",
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        **llm_options: Any,
    ) -> None:
        Sampling(max_tokens, temperature, top_p, seed)  # Refuses bad values.
        own_names = set(type(self).model_fields)
        refuse_others(type(self).__name__, llm_options, own_names)
        kb = knowledge_base
        if isinstance(kb, str | Path):
            kb = KnowledgeBase.open(kb, decoder=decoder)
        loaded = None
        if kb is not None:
            opened = kb.checkpoint
        elif isinstance(decoder, str):
            opened = Checkpoint.open(checkpoint)
            loaded = load_decoder(decoder, opened)
        else:
            opened, loaded = decoder.checkpoint, decoder
        own: dict[str, Any] = {
            "knowledge_base": None if kb is None else str(kb.path),
            "checkpoint": opened.name,
            "decoder": decoder if isinstance(decoder, str) else type(decoder).__name__,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        super().__init__(**own, **llm_options)
        self._kb, self._loaded, self._checkpoint = kb, loaded, opened
        self._template = PromptTemplate.of(opened) if kb is None else kb.template

    def __reduce__(self) -> tuple[Any, ...]:
        # LlamaIndex's own pickling would leave the decoder out.
        sampling = {name: getattr(self, name) for name in _SAMPLING}
        if self._kb is not None:
            return _again, (type(self), self._kb, {}, sampling)
        if self.decoder == type(self._loaded).__name__:
            raise TypeError(
                "A LatentLLM cannot be pickled with a decoder that was given as an object; name it instead: "
                "decoder='transformers' or by a server's URL."
            )
        options = {"checkpoint": self.checkpoint, "decoder": self.decoder}
        return _again, (type(self), None, options, sampling)

    @classmethod
    def class_name(cls) -> str:
        """The name that identifies the class in saved components."""
        return "LatentLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks about a model: its context length, longest answer and name."""
        source = self._loaded if self._kb is None else self._kb  # Not `or`: an empty one is falsy.
        assert source is not None
        return LLMMetadata(
            context_window=source.context_length,
            num_output=self.max_tokens,
            is_chat_model=True,
            model_name=self.checkpoint,
        )

    def words(self, passages: str, question: str) -> str:
        """The user's turn in the knowledge base's own wording.

        Args:
            passages: The text for the place of the passages.
            question: The text for the place of the question.
        """
        return self._template.words(passages, question)

    # --- what LlamaIndex's own synthesizers call, with passages as text ---------------------------

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Answer a prompt template; a context in it is text."""
        self._say_of_text("context_str" in prompt_args)
        return super().predict(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """`predict` for event loops."""
        self._say_of_text("context_str" in prompt_args)
        return await super().apredict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> Any:
        """Answer a prompt template in pieces; a context in it is text."""
        self._say_of_text("context_str" in prompt_args)
        return super().stream(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> Any:
        """`stream` for event loops."""
        self._say_of_text("context_str" in prompt_args)
        return await super().astream(prompt, **prompt_args)

    def _say_of_text(self, is_text: bool) -> None:
        """Log once that a prompt has its passages as text, where they could be latents."""
        if is_text and self._kb is not None and not self._said_text:
            self._said_text = True
            _logger.warning(
                "No node goes into the prompt as latents, but all as text: latents are for nodes with the id "
                "and the text of a passage in %s, given to index.as_query_engine() or a LatentSynthesizer.",
                self._kb.path,
            )

    # --- chat -----------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat.

        Args:
            messages: The chat, text only.
            **kwargs: nodes, question, expand and order, as the class describes them; max_tokens,
                temperature, top_p and seed for this call.

        Returns:
            The answer; `raw` has the usage, the finish reason and what became of each node.

        Raises:
            ValueError: When a message has a block other than text, or there are nodes but no knowledge base.
            PromptError: When the decoder refuses the prompt.
        """
        return self._chat(messages, **kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat as `chat` does, in pieces.

        The last response has an empty delta, and the usage in `raw`.

        Args:
            messages: The chat, text only.
            **kwargs: As for `chat`.

        Returns:
            The responses.
        """
        return self._stream_chat(messages, **kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` for event loops."""
        return await self._achat(messages, **kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """`stream_chat` for event loops."""
        return await self._astream_chat(messages, **kwargs)

    # --- complete: a chat of one message ---------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a chat of one user message.

        Args:
            prompt: The message.
            formatted: Ignored.
            **kwargs: As for `chat`.
        """
        return chat_to_completion_decorator(self._chat)(prompt, **kwargs)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Answer a chat of one user message, in pieces."""
        return stream_chat_to_completion_decorator(self._stream_chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """`complete` for event loops."""
        return await achat_to_completion_decorator(self._achat)(prompt, **kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """`stream_complete` for event loops."""
        return await astream_chat_to_completion_decorator(self._astream_chat)(prompt, **kwargs)

    # --- the four kinds of chat, without LlamaIndex's events --------------------------------------

    def _chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        prepared = self._prepare(messages, **kwargs)
        results = self._decoder().complete([prepared.prompt], prepared.sampling)
        return self._response(prepared, all_answered(results)[0])

    async def _achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        prepared = await asyncio.to_thread(self._prepare, messages, **kwargs)
        decoder = await asyncio.to_thread(self._decoder)
        results = await decoder.acomplete([prepared.prompt], prepared.sampling)
        return self._response(prepared, all_answered(results)[0])

    def _stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        prepared = self._prepare(messages, **kwargs)
        decoder = self._decoder()

        def pieces() -> Generator[ChatResponse, None, None]:
            text = ""
            for piece in answer_pieces(decoder, prepared.prompt, prepared.sampling):
                text += piece
                yield _piece(text, piece)
            yield self._end(prepared, text)

        return pieces()

    async def _astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        prepared = await asyncio.to_thread(self._prepare, messages, **kwargs)
        decoder = await asyncio.to_thread(self._decoder)

        async def pieces() -> AsyncGenerator[ChatResponse, None]:
            text = ""
            stream = aanswer_pieces(decoder, prepared.prompt, prepared.sampling)
            async with aclosing(stream):
                async for piece in stream:
                    text += piece
                    yield _piece(text, piece)
            yield self._end(prepared, text)

        return pieces()

    def _decoder(self) -> Decoder:
        """The decoder; a knowledge base loads its own when it is first needed."""
        found = self._loaded if self._kb is None else self._kb.decoder
        assert found is not None
        return found

    def _prepare(
        self,
        messages: Sequence[ChatMessage],
        nodes: Sequence[NodeWithScore] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        question: str = "",
        expand: Expand = "never",
        order: Order | None = None,
    ) -> _Prepared:
        sampling = Sampling(
            max_tokens=self.max_tokens if max_tokens is None else max_tokens,
            temperature=self.temperature if temperature is None else temperature,
            top_p=self.top_p if top_p is None else top_p,
            seed=self.seed if seed is None else seed,
        )
        chat = [(str(message.role.value), _words(message)) for message in messages]
        if nodes is None:
            prompt = SoftPrompt(chat_ids(self._checkpoint, self._template, chat))
            return _Prepared(prompt, sampling, {})
        if self._kb is None:
            raise ValueError(
                "This LatentLLM has no knowledge base to find nodes in: LatentLLM(knowledge_base=…)."
            )
        by_node = _passages_of(nodes, self._kb)
        passages = list(by_node.values())
        assembled = self._kb.assemble_chat(
            chat,
            passages,
            question=question,
            expand=expand,
            max_tokens=sampling.max_tokens,
            order=order,
        )
        used, as_latents = set(assembled.used), {span.key for span in assembled.prompt.spans}
        placed: dict[str, list[str]] = {"latents": [], "text": [], "left_out": []}
        for node_id, passage in by_node.items():
            form = "latents" if passage.key in as_latents else "text"
            placed[form if passage.key in used else "left_out"].append(node_id)
        self._say_of_text(bool(passages) and not any(p.stored for p in passages))
        return _Prepared(assembled.prompt, sampling, placed)

    def _response(self, prepared: _Prepared, completion: Completion) -> ChatResponse:
        raw = _raw(prepared, len(completion.token_ids))
        raw["finish_reason"] = completion.finish_reason
        raw["usage"]["cached_positions"] = completion.cached_positions
        return _piece(answer_text(self._checkpoint, prepared.prompt, completion), None, raw)

    def _end(self, prepared: _Prepared, text: str) -> ChatResponse:
        """The last response of a stream, with the usage; its generated tokens are those of the text."""
        tokens = self._checkpoint.inert_decoder_tokenizer.encode(text, add_special_tokens=False)
        return _piece(text, "", _raw(prepared, len(tokens.ids)))


_SAMPLING = ("max_tokens", "temperature", "top_p", "seed")


def _again(
    cls: type[LatentLLM],
    knowledge_base: KnowledgeBase | None,
    options: dict[str, Any],
    sampling: dict[str, Any],
) -> LatentLLM:
    """What unpickling calls."""
    return cls(knowledge_base, **options, **sampling)


def _passages_of(nodes: Sequence[NodeWithScore], kb: KnowledgeBase) -> dict[str, PromptPassage]:
    """The passage of each node id, as the nodes are listed, with keys in the order of their documents."""
    best_first = {scored.node.node_id: scored.node for scored in nodes}
    reading_order = sorted(
        best_first.values(),
        key=lambda n: (n.ref_doc_id or n.node_id, getattr(n, "start_char_idx", 0) or 0, n.node_id),
    )
    places = {node.node_id: PassageKey("", i) for i, node in enumerate(reading_order)}
    by_node = {}
    for node_id, node in best_first.items():
        stored = known_key(node, kb)
        text = node.get_content(metadata_mode=MetadataMode.LLM)
        by_node[node_id] = PromptPassage(places[node_id], text, stored=stored)
    return by_node


def _words(message: ChatMessage) -> str:
    if any(block.block_type != "text" for block in message.blocks):
        raise ValueError("LatentLLM takes text only; a message has a block of another kind.")
    return message.content or ""


def _raw(prepared: _Prepared, generated: int) -> dict[str, Any]:
    prompt = prepared.prompt
    usage = {
        "prompt_tokens": prompt.positions,
        "completion_tokens": generated,
        "total_tokens": prompt.positions + generated,
        "latents": prompt.latent_count,
    }
    return {"usage": usage, "passages": prepared.passages}


def _piece(text: str, delta: str | None, raw: dict[str, Any] | None = None) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, raw=raw)
