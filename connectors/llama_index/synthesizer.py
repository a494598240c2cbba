"""LatentSynthesizer: takes any retriever's nodes and a question, and decodes an answer from latents."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE

from lclm_rag.connectors.llama_index.llm import LatentLLM
from lclm_rag.prompting import PASSAGES, Order
from lclm_rag.querying.expansion import Expand

__all__ = ["LatentSynthesizer"]


class LatentSynthesizer(BaseSynthesizer):
    """Answers in one pass; nodes that the knowledge base knows go in as latents, others as text.

    A node is known if its id and its text are those of a passage in the store.
    `response.extra` reports what became of each node: lists of node ids under "latents", "text" and
    "left_out" (no room in the decoder's context), and "usage". For a stream it is complete once the stream
    has ended. A warning says, once, when no node could go in as latents.

    Args:
        llm: A `LatentLLM` over the knowledge base.
        text_qa_template: A prompt with {context_str} and {query_str}; by default the prompt that the
            knowledge base itself uses.
        streaming: Whether answers are streamed.
        callback_manager: LlamaIndex's callback manager; by default that of `llm`.
        empty_response: The answer if there are no nodes; by default LlamaIndex's own.
        expand: Which of the known nodes go in verbatim, as for `KnowledgeBase.stream`: "auto", the best one
            if the question asks for an exact string; "never"; "always"; or a number, so many of the best.
            They are listed under "text".
        order: The order of the nodes in the prompt, as for `KnowledgeBase.open`; "given" keeps that of
            postprocessors such as LongContextReorder. Default: that of the knowledge base.
    """

    def __init__(
        self,
        llm: LatentLLM,
        text_qa_template: BasePromptTemplate | None = None,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        empty_response: str | None = None,
        expand: Expand = "auto",
        order: Order | None = None,
    ) -> None:
        super().__init__(
            llm=llm,
            callback_manager=callback_manager or llm.callback_manager,
            streaming=streaming,
            empty_response=empty_response,
        )
        self._latent_llm = llm
        self._expand, self._order = expand, order
        self._text_qa_template = text_qa_template or _default_template(llm)

    @classmethod
    def class_name(cls) -> str:
        """The name that identifies the class in saved components."""
        return "LatentSynthesizer"

    @property
    def streaming(self) -> bool:
        """Whether answers are streamed."""
        return self._streaming

    def without_streaming(self) -> LatentSynthesizer:
        """The same synthesizer, but with whole answers."""
        return LatentSynthesizer(
            self._latent_llm,
            self._text_qa_template,
            callback_manager=self._callback_manager,
            empty_response=self._empty_response,
            expand=self._expand,
            order=self._order,
        )

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._text_qa_template}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        if "text_qa_template" in prompts_dict:
            self._text_qa_template = prompts_dict["text_qa_template"]

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer a question from nodes.

        Args:
            query: The question.
            nodes: The nodes, best first.
            additional_source_nodes: More nodes to list as the response's sources.
            **response_kwargs: Values for other variables of the template.

        Returns:
            The response, whose `extra` reports what became of each node.

        Raises:
            ValueError: When the question contains `PASSAGES`, the mark for the place of the passages.
        """
        report: dict[str, Any] = {}
        response = super().synthesize(
            query, nodes, additional_source_nodes, nodes_=nodes, report_=report, **response_kwargs
        )
        return _with(response, report)

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """`synthesize` for event loops."""
        report: dict[str, Any] = {}
        response = await super().asynthesize(
            query, nodes, additional_source_nodes, nodes_=nodes, report_=report, **response_kwargs
        )
        return _with(response, report)

    def get_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        nodes_: Sequence[NodeWithScore] = (),
        report_: dict[str, Any] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """Answer a question; called by `synthesize`.

        Args:
            query_str: The question.
            text_chunks: Ignored; the nodes' texts.
            nodes_: The nodes, which `synthesize` passes on.
            report_: Filled with what became of each node.
            **response_kwargs: Values for other variables of the template.

        Returns:
            The answer's text, or its pieces if answers are streamed.
        """
        messages = self._messages(query_str, response_kwargs)
        report = {} if report_ is None else report_
        if self._streaming:
            return _texts(
                self._latent_llm.stream_chat(messages, **self._chat_options(query_str, nodes_)),
                report,
            )
        return _text(
            self._latent_llm.chat(messages, **self._chat_options(query_str, nodes_)), report
        )

    async def aget_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        nodes_: Sequence[NodeWithScore] = (),
        report_: dict[str, Any] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """`get_response` for event loops."""
        messages = self._messages(query_str, response_kwargs)
        report = {} if report_ is None else report_
        if self._streaming:
            options = self._chat_options(query_str, nodes_)
            return _atexts(await self._latent_llm.astream_chat(messages, **options), report)
        return _text(
            await self._latent_llm.achat(messages, **self._chat_options(query_str, nodes_)), report
        )

    def _chat_options(self, question: str, nodes: Sequence[NodeWithScore]) -> dict[str, Any]:
        return {
            "nodes": nodes,
            "question": question,
            "expand": self._expand,
            "order": self._order,
        }

    def _messages(self, query_str: str, template_values: dict[str, Any]) -> Any:
        if PASSAGES in query_str:
            raise ValueError(f"The question holds {PASSAGES!r}, which marks the place of passages.")
        return self._latent_llm._get_messages(
            self._text_qa_template, context_str=PASSAGES, query_str=query_str, **template_values
        )


def _default_template(llm: LatentLLM) -> PromptTemplate:
    return PromptTemplate(llm.words("{context_str}", "{query_str}"))


def _text(response: ChatResponse, report: dict[str, Any]) -> str:
    _note(response, report)
    return response.message.content or ""


def _texts(
    responses: Generator[ChatResponse, None, None], report: dict[str, Any]
) -> Generator[str, None, None]:
    for response in responses:
        _note(response, report)
        if response.delta:
            yield response.delta


async def _atexts(
    responses: AsyncGenerator[ChatResponse, None], report: dict[str, Any]
) -> AsyncGenerator[str, None]:
    async for response in responses:
        _note(response, report)
        if response.delta:
            yield response.delta


def _note(response: ChatResponse, report: dict[str, Any]) -> None:
    if response.raw is not None:
        report.update(response.raw["passages"], usage=response.raw["usage"])


def _with(response: RESPONSE_TYPE, report: dict[str, Any]) -> RESPONSE_TYPE:
    # Not in `metadata`, whose keys are node ids; LlamaIndex's responses have no place for more.
    response.extra = report  # type: ignore[union-attr]
    return response
