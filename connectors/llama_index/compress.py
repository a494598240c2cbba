"""LatentCompressor: the step of an IngestionPipeline that writes nodes into a knowledge base."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, TransformComponent

from lclm_rag import KnowledgeBase, KnowledgeBaseError
from lclm_rag.connectors.llama_index.nodes import add_to

__all__ = ["LatentCompressor"]


class LatentCompressor(TransformComponent):
    """Compresses nodes into a knowledge base and hands them on as they came.

    Put it behind the node parser. The node's id is the reference: what any vector store, docstore or
    retriever gives back by this id, and with this text, goes in as latents (`LatentSynthesizer`). Nodes
    that the knowledge base has already cost a hash.

    knowledge_base: one, or its folder. Raises KnowledgeBaseError where `fingerprint` is given, as when it
    is made anew from `to_dict`, and the knowledge base was built by another encoder.
    """

    knowledge_base: str = Field(description="Folder of the knowledge base.")
    fingerprint: str = Field(description="Of the encoder that makes the latents.")

    _kb: KnowledgeBase = PrivateAttr()

    def __init__(
        self,
        knowledge_base: KnowledgeBase | str | Path,
        *,
        fingerprint: str | None = None,
        **component_options: Any,
    ) -> None:
        kb = knowledge_base
        if not isinstance(kb, KnowledgeBase):
            kb = KnowledgeBase.open(kb)
        found = kb.store.layout.fingerprint
        if fingerprint not in (None, found):
            raise KnowledgeBaseError(
                f"{kb.path} holds latents of an encoder with fingerprint {found}, not {fingerprint}."
            )
        own: dict[str, Any] = {"knowledge_base": str(kb.path), "fingerprint": found}
        super().__init__(**own, **component_options)
        self._kb = kb

    @classmethod
    def class_name(cls) -> str:
        return "LatentCompressor"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """As for any component, and what the store holds: a pipeline's cache may pass over this step only
        where nothing was added or deleted since."""
        return {**super().to_dict(**kwargs), "store": self._state()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> LatentCompressor:
        own = {name: data[name] for name in ("knowledge_base", "fingerprint")}
        return cls(**own, **kwargs)

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        add_to(self._kb, nodes, split=False)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return await asyncio.to_thread(self.__call__, nodes, **kwargs)

    def _state(self) -> str:
        """Changes with every version. A new store is like no other: there, nothing may be passed over."""
        manifest = self._kb.store.manifest
        newest = manifest.fragments[-1].name if manifest.fragments else uuid4().hex
        return f"{manifest.version}-{newest}"
