"""The components: a retriever and a generator over one `KnowledgeBase`.

A saved pipeline is loaded with `Pipeline.loads(text, allowed_modules=["lclm_rag.*"])`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

from haystack import Document, component
from haystack.dataclasses import StreamingCallbackT, StreamingChunk, select_streaming_callback

from lclm_rag.connectors.haystack.documents import (
    Json,
    Options,
    OverKnowledgeBase,
    prompt_of,
    with_reply,
    without_reply,
)
from lclm_rag.decoding import Sampling, aanswer_pieces, answer_pieces
from lclm_rag.errors import NoPassagesError
from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.prompting import SoftPrompt
from lclm_rag.querying.expansion import Expand
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["LatentGenerator", "LatentRetriever"]

Documents = list[Document] | None


@component
class LatentRetriever(OverKnowledgeBase):
    """The best passages for a query, best first.

    A document's id is the passage's key, "report#3". Its meta is the passage's own, with passage_document_id,
    passage_ordinal, passage_start and passage_end (characters of the document) added.

    Args:
        knowledge_base: The folder of a knowledge base, which is opened when it is first needed, or an open
            `KnowledgeBase`. With an open one, the pipeline cannot be saved.
        top_k: How many passages to retrieve.
        filters: Haystack filters, as `to_filter` takes them.
        open_options: Arguments of `KnowledgeBase.open` for a folder.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase | str | Path,
        top_k: int = DEFAULT_TOP_K,
        filters: Options = None,
        open_options: Options = None,
    ) -> None:
        self._take(knowledge_base, top_k=top_k, filters=filters, open_options=open_options)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None, filters: Options = None) -> Json:
        """Retrieve passages.

        Args:
            query: What to search for.
            top_k: How many passages to retrieve; by default the component's own.
            filters: Haystack filters in place of the component's own.

        Returns:
            "documents": the passages, best first.

        Raises:
            FilterError: When a filter cannot be translated.
        """
        return self._retrieve(query, top_k, filters)

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, top_k: int | None = None, filters: Options = None
    ) -> Json:
        """`run` for event loops; takes and returns the same."""
        return await asyncio.to_thread(self._retrieve, query, top_k, filters)


@component
class LatentGenerator(OverKnowledgeBase):
    """Answers a query from the documents that it is given; without documents, it retrieves them itself.

    Documents of a `LatentRetriever` go into the prompt as latents, others as text. If there is no document,
    nothing is decoded: the reply is empty, and `meta` has the finish_reason "no_passages" and the reason.

    Args:
        knowledge_base: The folder of a knowledge base, which is opened when it is first needed, or an open
            `KnowledgeBase`. With an open one, the pipeline cannot be saved.
        top_k: How many passages to retrieve if no documents are given.
        filters: Haystack filters for that, as `to_filter` takes them.
        sampling: The arguments of `Sampling`, such as {"max_tokens": 64}.
        open_options: Arguments of `KnowledgeBase.open` for a folder.
        expand: Which of the passages with latents go in verbatim, as for `KnowledgeBase.stream`.

    Raises:
        ValueError: When a value in `sampling` is invalid.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase | str | Path,
        top_k: int = DEFAULT_TOP_K,
        filters: Options = None,
        sampling: Options = None,
        open_options: Options = None,
        expand: Expand = "auto",
    ) -> None:
        self._take(knowledge_base, top_k=top_k, filters=filters, open_options=open_options)
        self._parameters["sampling"], self._sampling = sampling, Sampling(**(sampling or {}))
        self._parameters["expand"] = self._expand = expand

    @component.output_types(replies=list[str], documents=list[Document], meta=list[Json])
    def run(
        self,
        query: str,
        documents: Documents = None,
        streaming_callback: StreamingCallbackT | None = None,
        top_k: int | None = None,
        filters: Options = None,
    ) -> Json:
        """Answer a query.

        Args:
            query: The question.
            documents: The documents to answer from, best first; None to retrieve them.
            streaming_callback: Called with a `StreamingChunk` for each piece of text as it is generated.
            top_k: How many passages to retrieve if no documents are given; by default the component's own.
            filters: Haystack filters for that, in place of the component's own.

        Returns:
            "replies": the answer. "documents": the documents that the prompt had room for. "meta": the usage,
            the ids of the documents that it had no room for ("left_out"), and, without streaming, the
            finish_reason.

        Raises:
            ValueError: When the query is empty, or a document has no text.
            FilterError: When a filter cannot be translated.
        """
        callback = select_streaming_callback(None, streaming_callback, requires_async=False)
        try:
            prompt, output = self._prepare(query, documents, top_k, filters)
        except NoPassagesError as error:
            return without_reply(str(error))
        if callback is None:
            return with_reply(
                self.kb, prompt, self.kb.decoder.complete([prompt], self._sampling), output
            )
        text = ""
        for piece in answer_pieces(self.kb.decoder, prompt, self._sampling):
            text += piece
            callback(StreamingChunk(piece))
        return {"replies": [text], **output}

    @component.output_types(replies=list[str], documents=list[Document], meta=list[Json])
    async def run_async(
        self,
        query: str,
        documents: Documents = None,
        streaming_callback: StreamingCallbackT | None = None,
        top_k: int | None = None,
        filters: Options = None,
    ) -> Json:
        """`run` for event loops; takes and returns the same, and the callback may be asynchronous."""
        callback = select_streaming_callback(None, streaming_callback, requires_async=True)
        try:
            prompt, output = await asyncio.to_thread(
                self._prepare, query, documents, top_k, filters
            )
        except NoPassagesError as error:
            return without_reply(str(error))
        if callback is None:
            return with_reply(
                self.kb, prompt, await self.kb.decoder.acomplete([prompt], self._sampling), output
            )
        text = ""
        async with aclosing(aanswer_pieces(self.kb.decoder, prompt, self._sampling)) as pieces:
            async for piece in pieces:
                text += piece
                if (pending := callback(StreamingChunk(piece))) is not None:
                    await pending
        return {"replies": [text], **output}

    def _prepare(self, query: str, passed: Documents, *chosen: Any) -> tuple[SoftPrompt, Json]:
        documents = passed
        if documents is None:
            documents = self._retrieve(query, *chosen)["documents"]
            if not documents:
                raise NoPassagesError(self.kb.why_no_passages(self._filter(chosen[1])))
        return prompt_of(self.kb, query, documents, self._expand, self._sampling.max_tokens)
