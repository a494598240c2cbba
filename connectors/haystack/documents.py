"""What the Haystack components share: the knowledge base, and the conversion of documents."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from haystack import Document, default_from_dict, default_to_dict

from lclm_rag.connectors.haystack.filters import to_filter
from lclm_rag.decoding import Completion, Outcome, all_answered, answer_text
from lclm_rag.errors import NoPassagesError
from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.prompting import PASSAGES, PromptPassage, SoftPrompt
from lclm_rag.querying.expansion import Expand
from lclm_rag.retrieval import Filter
from lclm_rag.types import Hit, PassageKey

__all__ = [
    "Json",
    "Options",
    "OverKnowledgeBase",
    "note_completion",
    "prompt_of",
    "with_reply",
    "without_reply",
]

Json = dict[str, Any]
Options = Json | None


class OverKnowledgeBase:
    """A component over a knowledge base; it closes the knowledge base only if it opened it."""

    def _take(self, knowledge_base: KnowledgeBase | str | Path, **parameters: Any) -> None:
        self._kb = knowledge_base if isinstance(knowledge_base, KnowledgeBase) else None
        parameters["knowledge_base"] = str(knowledge_base) if self._kb is None else self._kb
        self._parameters = parameters

    @property
    def kb(self) -> KnowledgeBase:
        """The knowledge base, opened when it is first needed."""
        if self._kb is None:
            named, options = self._parameters["knowledge_base"], self._parameters["open_options"]
            self._kb = KnowledgeBase.open(named, **(options or {}))
        return self._kb

    def warm_up(self) -> None:
        """Open the knowledge base."""
        self.kb  # noqa: B018

    def close(self) -> None:
        """Close the knowledge base if this component opened it."""
        if self._kb is not None and self._kb is not self._parameters["knowledge_base"]:
            self._kb.close()
            self._kb = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy opens the knowledge base for itself when it needs it; one that was given open is shared."""
        given = self._parameters["knowledge_base"]
        memo[id(given)] = given
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            is_own = name == "_kb" and value is not given
            setattr(copied, name, None if is_own else deepcopy(value, memo))
        return copied

    def to_dict(self) -> Json:
        """The component as Haystack saves it in a pipeline."""
        return default_to_dict(self, **self._parameters)

    @classmethod
    def from_dict(cls, data: Json) -> Any:
        """Make the component from what `to_dict` gave."""
        return default_from_dict(cls, data)

    def _retrieve(self, query: str, top_k: int | None, filters: Options) -> Json:
        top_k = self._parameters["top_k"] if top_k is None else top_k
        hits = self.kb.retrieve(query, top_k, self._filter(filters))
        return {"documents": [_document(hit) for hit in hits]}

    def _filter(self, filters: Options) -> Filter | None:
        return to_filter(self._parameters["filters"] if filters is None else filters)


def _document(hit: Hit) -> Document:
    """A passage as a Haystack document, whose id is the passage's key, "report#3"."""
    meta = {**hit.metadata, **hit.place()}
    return Document(str(hit.key), hit.text, meta=meta, score=hit.score)


def prompt_of(
    kb: KnowledgeBase, query: str, documents: Sequence[Document], expand: Expand, max_tokens: int
) -> tuple[SoftPrompt, Json]:
    """Make the prompt that the knowledge base itself would make of these documents.

    Args:
        kb: The knowledge base.
        query: The question.
        documents: The documents, best first.
        expand: Which of the passages with latents go in verbatim, as for `KnowledgeBase.stream`.
        max_tokens: Room to leave for the answer, in tokens.

    Returns:
        The prompt, and the generator's output apart from the reply: the documents that the prompt had room
        for, and meta.

    Raises:
        NoPassagesError: When there are no documents.
        ValueError: When the query is empty, or a document has no text.
    """
    if not query.strip():
        raise ValueError("The query is empty.")
    if not documents:
        raise NoPassagesError("There are no documents to answer from.")
    by_passage = {_passage(document, kb): document for document in documents}
    chat = [("user", kb.template.words(PASSAGES, query))]
    made = kb.assemble_chat(
        chat, list(by_passage), question=query, expand=expand, max_tokens=max_tokens
    )
    used, left_out = (
        [document for passage, document in by_passage.items() if passage.key in keys]
        for keys in (made.used, made.left_out)
    )
    usage = {"positions": made.prompt.positions, "latents": made.prompt.latent_count}
    meta = {"usage": usage, "left_out": [document.id for document in left_out]}
    return made.prompt, {"documents": used, "meta": [meta]}


def without_reply(reason: str) -> Json:
    """The output of a generator that had no documents to answer from and decoded nothing."""
    usage = {"positions": 0, "latents": 0, "generated_tokens": 0}
    meta = {"usage": usage, "left_out": [], "finish_reason": "no_passages", "reason": reason}
    return {"replies": [""], "documents": [], "meta": [meta]}


def with_reply(
    kb: KnowledgeBase, prompt: SoftPrompt, decoded: Sequence[Outcome], output: Json
) -> Json:
    """The output of a generator, made from the decoder's completion of its prompt.

    Args:
        kb: The knowledge base.
        prompt: The prompt.
        decoded: The decoder's result for it.
        output: The output without the reply, as `prompt_of` gives it; its meta is completed in place.

    Raises:
        PromptError: When the decoder refused the prompt.
        DecoderError: When the decoder failed, or was closed.
    """
    (completion,) = all_answered(decoded)
    note_completion(output, completion)
    return {"replies": [answer_text(kb.checkpoint, prompt, completion)], **output}


def note_completion(output: Json, completion: Completion) -> None:
    """Complete the meta of a generator's output by what the decoder made."""
    (meta,) = output["meta"]
    meta["finish_reason"] = completion.finish_reason
    meta["usage"]["generated_tokens"] = len(completion.token_ids)


def _passage(document: Document, knowledge_base: KnowledgeBase) -> PromptPassage:
    """The document as a prompt's passage; as latents if it is an unchanged passage of the knowledge base.

    Raises ValueError if the document has no text.
    """
    if document.content is None:
        raise ValueError(f"Haystack document {document.id} has no text.")
    meta = document.meta
    key = PassageKey(meta.get("passage_document_id", ""), meta.get("passage_ordinal", 0))
    if knowledge_base.holds(key, document.content):
        return PromptPassage(key, document.content, stored=key)
    return PromptPassage(PassageKey(document.id, 0), document.content, stored=None)
