"""The components: a retriever and a generator, over one KnowledgeBase.

knowledge_base is its folder, opened when first needed with `open_options` (those of `KnowledgeBase.open`);
or one that is open, which cannot be saved with a pipeline. A saved pipeline is loaded with
`Pipeline.loads(text, allowed_modules=["lclm_rag.*"])`.
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
from lclm_rag.decoding import Sampling, astripped, stripped
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

    A document's id is the passage's key, "report#3". Beside the passage's own meta stand
    passage_document_id, passage_ordinal, and passage_start and passage_end (characters of the document).
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
        return self._retrieve(query, top_k, filters)

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, top_k: int | None = None, filters: Options = None
    ) -> Json:
        return await asyncio.to_thread(self._retrieve, query, top_k, filters)


@component
class LatentGenerator(OverKnowledgeBase):
    """Answers a query from the documents that it is given; where it is given none, it retrieves them.

    Documents of a LatentRetriever go into the prompt as latents, others as text. `documents` are those for
    which the prompt had room; `meta` has the ids of the others, "left_out", and the usage.
    sampling: the arguments of `Sampling`, {"max_tokens": 64}. expand: which of the latents' passages go in
    verbatim, as for `KnowledgeBase.stream`. Without any document nothing is decoded: the reply is empty,
    and `meta` has the finish_reason "no_passages" and the reason.
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
        callback = select_streaming_callback(None, streaming_callback, requires_async=False)
        try:
            prompt, output = self._prepare(query, documents, top_k, filters)
        except NoPassagesError as error:
            return without_reply(str(error))
        if callback is None:
            return with_reply(self.kb.decoder.complete([prompt], self._sampling), output)
        text = ""
        for piece in stripped(self.kb.decoder.stream(prompt, self._sampling)):
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
        callback = select_streaming_callback(None, streaming_callback, requires_async=True)
        try:
            prompt, output = await asyncio.to_thread(
                self._prepare, query, documents, top_k, filters
            )
        except NoPassagesError as error:
            return without_reply(str(error))
        if callback is None:
            return with_reply(await self.kb.decoder.acomplete([prompt], self._sampling), output)
        text = ""
        async with aclosing(self.kb.decoder.astream(prompt, self._sampling)) as stream:
            async for piece in astripped(stream):
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
