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
from lclm_rag.connectors.llama_index.arguments import refuse_others
from lclm_rag.connectors.llama_index.nodes import add_to

__all__ = ["LatentCompressor"]


class LatentCompressor(TransformComponent):
    """Compresses nodes into a knowledge base and passes them on unchanged.

    Put it after the node parser. Nodes are recognized by their id: what any vector store, docstore or
    retriever returns under this id and with this text goes into the prompt as latents (`LatentSynthesizer`).
    Nodes that are already in the knowledge base cost only a hash.

    Args:
        knowledge_base: An open knowledge base, or the folder of one.
        fingerprint: The fingerprint that its encoder must have, as when the component is made again from
            `to_dict`; None for any.
        **component_options: Options of `TransformComponent`.

    Raises:
        KnowledgeBaseError: When the knowledge base was built by an encoder with another fingerprint.
        TypeError: When an option is unknown.
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
        refuse_others(type(self).__name__, component_options, set(type(self).model_fields))
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
        """The name that identifies the class in saved components."""
        return "LatentCompressor"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The component as a dict, with the state of the store.

        The state is part of it so that a pipeline's cache skips this step only if nothing was added or
        deleted since.
        """
        return {**super().to_dict(**kwargs), "store": self._state()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> LatentCompressor:
        """Make the component again from `to_dict`; the encoder must be the same."""
        own = {name: data[name] for name in ("knowledge_base", "fingerprint")}
        return cls(**own, **kwargs)

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Compress nodes; those without text are left out with a warning.

        Args:
            nodes: The nodes.
            **kwargs: Ignored.

        Returns:
            The same nodes.
        """
        add_to(self._kb, nodes, split=False)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do the same for event loops."""
        return await asyncio.to_thread(self.__call__, nodes, **kwargs)

    def _state(self) -> str:
        """A string that changes with every version of the store.

        A new store has a state that equals no other, so nothing is skipped for it.
        """
        manifest = self._kb.store.manifest
        return f"{manifest.version}-{manifest.digest if manifest.fragments else uuid4().hex}"
