"""The components: a retriever and a generator over one `KnowledgeBase`.

A saved pipeline is loaded with `Pipeline.loads(text, allowed_modules=["lclm_rag.*"])`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import fields
from pathlib import Path
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.dataclasses import (
    ComponentInfo,
    StreamingCallbackT,
    StreamingChunk,
    select_streaming_callback,
)
from haystack.utils import deserialize_callable, serialize_callable

from lclm_rag.connectors.haystack.documents import (
    Json,
    Options,
    OverKnowledgeBase,
    note_completion,
    prompt_of,
    with_reply,
    without_reply,
)
from lclm_rag.decoding import Completion, Sampling, aanswer_pieces, answer_pieces
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
        generation_kwargs: The arguments of `Sampling`, such as {"max_tokens": 64}.
        open_options: Arguments of `KnowledgeBase.open` for a folder.
        expand: Which of the passages with latents go in verbatim, as for `KnowledgeBase.stream`.
        streaming_callback: Called with a `StreamingChunk` for each piece of text as it is generated.

    Raises:
        ValueError: When `generation_kwargs` has an unknown name or an invalid value.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase | str | Path,
        top_k: int = DEFAULT_TOP_K,
        filters: Options = None,
        generation_kwargs: Options = None,
        open_options: Options = None,
        expand: Expand = "auto",
        streaming_callback: StreamingCallbackT | None = None,
    ) -> None:
        self._take(knowledge_base, top_k=top_k, filters=filters, open_options=open_options)
        _sampling(generation_kwargs)  # Refuses bad values.
        self._parameters["generation_kwargs"] = self._generation = generation_kwargs
        self._parameters["expand"] = self._expand = expand
        self._parameters["streaming_callback"] = self._callback = streaming_callback

    def to_dict(self) -> Json:
        """The component as Haystack saves it in a pipeline; the callback must be a function of a module."""
        callback = None if self._callback is None else serialize_callable(self._callback)
        return default_to_dict(self, **{**self._parameters, "streaming_callback": callback})

    @classmethod
    def from_dict(cls, data: Json) -> Any:
        """Make the component from what `to_dict` gave."""
        parameters = dict(data["init_parameters"])
        if name := parameters.get("streaming_callback"):
            parameters["streaming_callback"] = deserialize_callable(name)
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    @component.output_types(replies=list[str], documents=list[Document], meta=list[Json])
    def run(
        self,
        query: str,
        documents: Documents = None,
        streaming_callback: StreamingCallbackT | None = None,
        top_k: int | None = None,
        filters: Options = None,
        generation_kwargs: Options = None,
    ) -> Json:
        """Answer a query.

        Args:
            query: The question.
            documents: The documents to answer from, best first; None to retrieve them.
            streaming_callback: In place of the component's own.
            top_k: How many passages to retrieve if no documents are given; by default the component's own.
            filters: Haystack filters for that, in place of the component's own.
            generation_kwargs: Arguments of `Sampling` for this query, over the component's own.

        Returns:
            "replies": the answer. "documents": the documents that the prompt had room for. "meta": the usage,
            the ids of the documents that it had no room for ("left_out"), and the finish_reason.

        Raises:
            ValueError: When the query is empty, a document has no text, or `generation_kwargs` has an unknown
                name or an invalid value.
            FilterError: When a filter cannot be translated.
        """
        callback = select_streaming_callback(
            self._callback, streaming_callback, requires_async=False
        )
        sampling = _sampling(self._generation, generation_kwargs)
        try:
            prompt, output = self._prepare(query, documents, sampling, top_k, filters)
        except NoPassagesError as error:
            return without_reply(str(error))
        decoder = self.kb.decoder
        if callback is None:
            return with_reply(self.kb, prompt, decoder.complete([prompt], sampling), output)
        text, done = "", list[Completion]()
        for piece in answer_pieces(decoder, prompt, sampling, done.append):
            callback(self._chunk(piece, start=not text))
            text += piece
        callback(self._end(done, output, start=not text))
        return {"replies": [text], **output}

    @component.output_types(replies=list[str], documents=list[Document], meta=list[Json])
    async def run_async(
        self,
        query: str,
        documents: Documents = None,
        streaming_callback: StreamingCallbackT | None = None,
        top_k: int | None = None,
        filters: Options = None,
        generation_kwargs: Options = None,
    ) -> Json:
        """`run` for event loops; takes and returns the same, and the callback may be asynchronous."""
        callback = select_streaming_callback(
            self._callback, streaming_callback, requires_async=True
        )
        sampling = _sampling(self._generation, generation_kwargs)
        try:
            prompt, output = await asyncio.to_thread(
                self._prepare, query, documents, sampling, top_k, filters
            )
        except NoPassagesError as error:
            return without_reply(str(error))
        decoder = self.kb.decoder
        if callback is None:
            return with_reply(self.kb, prompt, await decoder.acomplete([prompt], sampling), output)
        text, done = "", list[Completion]()
        async with aclosing(aanswer_pieces(decoder, prompt, sampling, done.append)) as pieces:
            async for piece in pieces:
                await _called(callback, self._chunk(piece, start=not text))
                text += piece
        await _called(callback, self._end(done, output, start=not text))
        return {"replies": [text], **output}

    def _chunk(self, text: str, **place: Any) -> StreamingChunk:
        return StreamingChunk(
            text, component_info=ComponentInfo.from_component(self), index=0, **place
        )

    def _end(self, done: list[Completion], output: Json, start: bool) -> StreamingChunk:
        """The last chunk of a stream, without text; what the decoder made is noted in the output."""
        (completion,) = done
        note_completion(output, completion)
        return self._chunk("", start=start, finish_reason=completion.finish_reason)

    def _prepare(
        self, query: str, passed: Documents, sampling: Sampling, *chosen: Any
    ) -> tuple[SoftPrompt, Json]:
        documents = passed
        if documents is None:
            documents = self._retrieve(query, *chosen)["documents"]
            if not documents:
                raise NoPassagesError(self.kb.why_no_passages(self._filter(chosen[1])))
        return prompt_of(self.kb, query, documents, self._expand, sampling.max_tokens)


async def _called(callback: Any, chunk: StreamingChunk) -> None:
    if (pending := callback(chunk)) is not None:
        await pending


def _sampling(*given: Options) -> Sampling:
    """How an answer is decoded, by generation_kwargs of which later ones override earlier ones."""
    chosen: Json = {name: value for options in given for name, value in (options or {}).items()}
    known = [field.name for field in fields(Sampling)]
    if alien := next((name for name in chosen if name not in known), None):
        raise ValueError(f"generation_kwargs takes {', '.join(known)}; not {alien!r}.")
    return Sampling(**chosen)
