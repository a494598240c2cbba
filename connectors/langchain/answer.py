"""LatentAnswer: a Runnable that answers questions from a knowledge base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableLambda, RunnableSerializable
from langchain_core.runnables.config import RunnableConfig

from lclm_rag.connectors.langchain.base import OverKnowledgeBase, renamed
from lclm_rag.connectors.langchain.documents import to_passage
from lclm_rag.connectors.langchain.filters import Filters, to_filter
from lclm_rag.connectors.langchain.tracing import ModelCall, amodel_call, model_call, usage_of
from lclm_rag.decoding import (
    Completion,
    Sampling,
    aanswer_pieces,
    all_answered,
    answer_pieces,
    answer_text,
)
from lclm_rag.prompting import PASSAGES, SoftPrompt
from lclm_rag.querying.expansion import Expand
from lclm_rag.types import Answer

__all__ = ["LatentAnswer"]

Request = str | dict[str, Any]

_QUESTION = ("question", "input")


class LatentAnswer(OverKnowledgeBase, RunnableSerializable[Request, str]):
    """Takes a question and gives the text of the answer; a stream gives it in pieces as they are generated.

    The question is a string, or a dict with "question" (or "input") and, for this question only, "top_k",
    "filters", "expand" or "sampling"; `invoke` and `bind` take these as well. It retrieves by itself, unless
    the dict has "context", a list of LangChain documents, best first: it then answers from these, from
    latents where they are passages of the knowledge base. `with_sources()` gives the whole `Answer`.

    Tracers see one model call for each answer, with its usage.

    Attributes:
        knowledge_base: The knowledge base to answer from, open, or its folder.
        top_k: How many passages to retrieve; may be called `k`.
        filters: Conditions on metadata, as `to_filter` takes them.
        expand: Which passages go into the prompt verbatim, as for `KnowledgeBase.query`; for a stream or a
            context, as for `KnowledgeBase.stream`.
        sampling: How the answer is decoded, as for `KnowledgeBase.query`.
    """

    filters: Filters = None
    expand: Expand = "auto"
    sampling: Sampling | None = None

    def with_sources(self) -> Runnable[Request, Answer]:
        """The same as a Runnable that gives the `Answer`: text, sources, usage, timings.

        It retrieves by itself; its question has no "context".
        """
        return RunnableLambda(self._query, self._aquery, name="LatentAnswerWithSources")

    def invoke(self, input: Request, config: RunnableConfig | None = None, **own: Any) -> str:
        """Answer a question as `KnowledgeBase.query` does.

        Args:
            input: The question, as the class describes it.
            config: LangChain's configuration of the call.
            **own: "top_k", "filters", "expand" or "sampling" for this call; they override those of `input`.

        Returns:
            The text of the answer.

        Raises:
            ValueError: When an argument is unknown, the question is not a string, or the context is no list
                of documents.
        """

        def text(request: Request, run_manager: Any) -> str:
            arguments = self._arguments(request, own)
            with model_call(run_manager, arguments["question"]) as call:
                if "context" in arguments:
                    prompt, sampling = self._prompt(**arguments)
                    results = self.knowledge_base.decoder.complete([prompt], sampling)
                    self._note(call, prompt, all_answered(results)[0])
                else:
                    _note_answer(call, self.knowledge_base.query(**arguments))
            return call.text

        return self._call_with_config(text, input, config)

    async def ainvoke(
        self, input: Request, config: RunnableConfig | None = None, **own: Any
    ) -> str:
        """`invoke` for event loops."""

        async def text(request: Request, run_manager: Any) -> str:
            arguments = self._arguments(request, own)
            async with amodel_call(run_manager, arguments["question"]) as call:
                if "context" in arguments:
                    prompt, sampling = await asyncio.to_thread(self._prompt, **arguments)
                    results = await self.knowledge_base.decoder.acomplete([prompt], sampling)
                    self._note(call, prompt, all_answered(results)[0])
                else:
                    _note_answer(call, await self.knowledge_base.aquery(**arguments))
            return call.text

        return await self._acall_with_config(text, input, config)

    def stream(
        self, input: Request, config: RunnableConfig | None = None, **own: Any
    ) -> Iterator[str]:
        """Answer a question as `KnowledgeBase.stream` does.

        Args:
            input: The question, as the class describes it.
            config: LangChain's configuration of the call.
            **own: As for `invoke`.

        Yields:
            Pieces of the answer's text as they are generated.

        Raises:
            ValueError: As for `invoke`, or when `expand` is "model" or "tool".
        """

        def pieces(inputs: Iterator[Request], run_manager: Any) -> Iterator[str]:
            for request in inputs:
                arguments = self._arguments(request, own)
                with model_call(run_manager, arguments["question"]) as call:
                    for piece in self._pieces(call, arguments):
                        call.text += piece
                        yield piece

        yield from self._transform_stream_with_config(iter([input]), pieces, config)

    async def astream(
        self, input: Request, config: RunnableConfig | None = None, **own: Any
    ) -> AsyncIterator[str]:
        """`stream` for event loops."""

        async def inputs() -> AsyncIterator[Request]:
            yield input

        async def pieces(inputs: AsyncIterator[Request], run_manager: Any) -> AsyncIterator[str]:
            async for request in inputs:
                arguments = self._arguments(request, own)
                async with amodel_call(run_manager, arguments["question"]) as call:
                    stream = await self._apieces(call, arguments)
                    async with aclosing(stream):
                        async for piece in stream:
                            call.text += piece
                            yield piece

        stream = self._atransform_stream_with_config(inputs(), pieces, config)
        async with aclosing(stream):  # type: ignore[type-var]
            async for piece in stream:
                yield piece

    # --- the steps -------------------------------------------------------------------------------

    def _pieces(self, call: ModelCall, arguments: dict[str, Any]) -> Iterator[str]:
        if "context" not in arguments:
            return self.knowledge_base.stream(**arguments)
        prompt, sampling = self._prompt(**arguments)
        decoder = self.knowledge_base.decoder
        return answer_pieces(decoder, prompt, sampling, _usage_into(call, prompt))

    async def _apieces(self, call: ModelCall, arguments: dict[str, Any]) -> Any:
        if "context" not in arguments:
            return self.knowledge_base.astream(**arguments)
        prompt, sampling = await asyncio.to_thread(self._prompt, **arguments)
        decoder = self.knowledge_base.decoder
        return aanswer_pieces(decoder, prompt, sampling, _usage_into(call, prompt))

    def _query(self, request: Request, run_manager: Any, **own: Any) -> Answer:
        arguments = self._without_context(request, own)
        with model_call(run_manager, arguments["question"]) as call:
            answer: Answer = self.knowledge_base.query(**arguments)
            _note_answer(call, answer)
        return answer

    async def _aquery(self, request: Request, run_manager: Any, **own: Any) -> Answer:
        arguments = self._without_context(request, own)
        async with amodel_call(run_manager, arguments["question"]) as call:
            answer: Answer = await self.knowledge_base.aquery(**arguments)
            _note_answer(call, answer)
        return answer

    def _prompt(
        self,
        question: str,
        context: list[Document],
        expand: Expand,
        sampling: Sampling | None,
        **_: Any,
    ) -> tuple[SoftPrompt, Sampling]:
        """The prompt that the knowledge base itself would make of these documents."""
        kb, sampling = self.knowledge_base, sampling or Sampling()
        made = kb.assemble_chat(
            [("user", kb.template.words(PASSAGES, question))],
            [to_passage(document, number, kb) for number, document in enumerate(context)],
            question=question,
            expand=expand,
            max_tokens=sampling.max_tokens,
        )
        return made.prompt, sampling

    def _note(self, call: ModelCall, prompt: SoftPrompt, completion: Completion) -> None:
        call.text = answer_text(self.knowledge_base.checkpoint, prompt, completion)
        _usage_into(call, prompt)(completion)

    def _without_context(self, request: Request, own: Mapping[str, Any]) -> dict[str, Any]:
        arguments = self._arguments(request, own)
        if "context" in arguments:
            raise ValueError("with_sources() retrieves by itself; leave the context out.")
        return arguments

    def _arguments(self, request: Request, own: Mapping[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            "top_k": self.top_k,
            "filters": self.filters,
            "expand": self.expand,
            "sampling": self.sampling,
        }
        named = {**(request if isinstance(request, dict) else {"question": request}), **own}
        named = renamed(type(self).__name__, named, {*_QUESTION, "context", *defaults})
        if "input" in named:
            named.setdefault("question", named.pop("input"))
        if not isinstance(named.get("question"), str) or "input" in named:
            raise ValueError(
                'LatentAnswer takes a string, or a dict with the string "question" (or "input").'
            )
        if not named["question"].strip():
            raise ValueError("The question is empty.")
        context = named.get("context", [Document("")])
        if not isinstance(context, list) or not all(isinstance(d, Document) for d in context):
            raise ValueError(
                "The context of a LatentAnswer is a list of LangChain documents, which it puts into the "
                f"prompt itself, not a {type(context).__name__}; give what the retriever returns."
            )
        if not context:
            raise ValueError("The context has no documents to answer from.")
        named = {**defaults, **named}
        return {**named, "filters": to_filter(named["filters"])}


def _usage_into(call: ModelCall, prompt: SoftPrompt) -> Callable[[Completion], None]:
    def note(completion: Completion) -> None:
        call.usage = usage_of(prompt.positions, len(completion.token_ids))

    return note


def _note_answer(call: ModelCall, answer: Answer) -> None:
    call.text = answer.text
    call.usage = usage_of(answer.usage.positions, answer.usage.generated_tokens)
