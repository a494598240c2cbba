"""LangChain: a retriever, and a Runnable that answers questions, over one `KnowledgeBase`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

try:
    from langchain_core.documents import Document as LangChainDocument
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable, RunnableLambda, RunnableSerializable
    from langchain_core.runnables.config import RunnableConfig
except ImportError as error:
    raise ImportError(
        "lclm_rag.connectors.langchain needs LangChain: pip install 'lclm-rag[langchain]'."
    ) from error

from pydantic import ConfigDict

from lclm_rag.decoding import Sampling
from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.querying.expansion import Expand
from lclm_rag.retrieval import Filter
from lclm_rag.types import DEFAULT_TOP_K, Answer, Document, Hit

__all__ = ["LatentAnswer", "LatentRetriever", "to_documents"]

Filters = Filter | dict[str, Any] | list[str] | str | None
Request = str | dict[str, Any]


class LatentRetriever(BaseRetriever):
    """The best passages for a question, best first, as LangChain documents.

    A document's id is the passage's key, "report#3". Its metadata is the passage's own, with
    passage_document_id, passage_ordinal, passage_start and passage_end (characters of the document) and
    passage_score added. `invoke` and `bind` also take `top_k` and `filters` for a single call.

    Attributes:
        knowledge_base: The knowledge base to retrieve from.
        top_k: How many passages to retrieve.
        filters: Conditions on metadata, as for `KnowledgeBase.retrieve`.
    """

    knowledge_base: KnowledgeBase
    top_k: int = DEFAULT_TOP_K
    filters: Filters = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: Any = None, **own: Any
    ) -> list[LangChainDocument]:
        arguments = {"top_k": self.top_k, "filters": self.filters, **own}
        return [_document(hit) for hit in self.knowledge_base.retrieve(query, **arguments)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: Any = None, **own: Any
    ) -> list[LangChainDocument]:
        return await asyncio.to_thread(self._get_relevant_documents, query, **own)


class LatentAnswer(RunnableSerializable[Request, str]):
    """Takes a question and gives the text of the answer; a stream gives it in pieces as they are generated.

    It retrieves by itself. The question is a string, or a dict with "question" and, for this question only,
    "top_k", "filters", "expand" or "sampling"; `invoke` and `bind` take these as well. `with_sources()` gives
    the whole `Answer`.

    Attributes:
        knowledge_base: The knowledge base to answer from.
        top_k: How many passages to retrieve.
        filters: Conditions on metadata, as for `KnowledgeBase.query`.
        expand: Which passages go into the prompt verbatim, as for `KnowledgeBase.query`; for a stream, as for
            `KnowledgeBase.stream`.
        sampling: How the answer is decoded, as for `KnowledgeBase.query`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    knowledge_base: KnowledgeBase
    top_k: int = DEFAULT_TOP_K
    filters: Filters = None
    expand: Expand = "auto"
    sampling: Sampling | None = None

    def with_sources(self) -> Runnable[Request, Answer]:
        """The same as a Runnable that gives the `Answer`: text, sources, usage, timings."""
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
            ValueError: When an argument is unknown, or the question is not a string.
        """
        return self._call_with_config(lambda a: self._query(a, **own).text, input, config)

    async def ainvoke(
        self, input: Request, config: RunnableConfig | None = None, **own: Any
    ) -> str:
        """`invoke` for event loops."""

        async def text(request: Request) -> str:
            return (await self._aquery(request, **own)).text

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
            ValueError: When an argument is unknown, the question is not a string, or `expand` is "model" or
                "tool".
        """

        def pieces(inputs: Iterator[Request]) -> Iterator[str]:
            for request in inputs:
                yield from self.knowledge_base.stream(**self._arguments(request, own))

        yield from self._transform_stream_with_config(iter([input]), pieces, config)

    async def astream(
        self, input: Request, config: RunnableConfig | None = None, **own: Any
    ) -> AsyncIterator[str]:
        """`stream` for event loops."""

        async def inputs() -> AsyncIterator[Request]:
            yield input

        async def pieces(inputs: AsyncIterator[Request]) -> AsyncIterator[str]:
            async for request in inputs:
                stream = self.knowledge_base.astream(**self._arguments(request, own))
                async with aclosing(stream):  # type: ignore[type-var]  # It is a generator.
                    async for piece in stream:
                        yield piece

        stream = self._atransform_stream_with_config(inputs(), pieces, config)
        async with aclosing(stream):  # type: ignore[type-var]
            async for piece in stream:
                yield piece

    def _query(self, request: Request, **own: Any) -> Answer:
        answer: Answer = self.knowledge_base.query(**self._arguments(request, own))
        return answer

    async def _aquery(self, request: Request, **own: Any) -> Answer:
        answer: Answer = await self.knowledge_base.aquery(**self._arguments(request, own))
        return answer

    def _arguments(self, request: Request, own: Mapping[str, Any]) -> dict[str, Any]:
        named = {**(request if isinstance(request, dict) else {"question": request}), **own}
        defaults = {
            "top_k": self.top_k,
            "filters": self.filters,
            "expand": self.expand,
            "sampling": self.sampling,
        }
        if alien := next((key for key in named if key not in {"question", *defaults}), None):
            raise ValueError(f"LatentAnswer takes question, {', '.join(defaults)}; not {alien!r}.")
        if not isinstance(named.get("question"), str):
            raise ValueError('LatentAnswer takes a string, or a dict with the string "question".')
        return {**defaults, **named}


def to_documents(documents: Iterable[LangChainDocument]) -> Iterator[Document]:
    """Convert LangChain documents to those that `KnowledgeBase.add` takes.

    Args:
        documents: LangChain documents, each with an id.

    Yields:
        A document for each.

    Raises:
        ValueError: When one has no id, as many loaders leave it: documents are told apart by their ids.
    """
    for number, document in enumerate(documents, start=1):
        if not document.id:
            raise ValueError(f"LangChain document {number} has no id; set `id` on each document.")
        yield Document(document.id, document.page_content, document.metadata)


def _document(hit: Hit) -> LangChainDocument:
    place = {**hit.place(), "passage_score": hit.score}
    return LangChainDocument(hit.text, id=str(hit.key), metadata={**hit.metadata, **place})
