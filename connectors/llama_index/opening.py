"""The knowledge base of an index: given open, opened by its folder, or opened again by a second run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_rag import KnowledgeBase, KnowledgeBaseError
from lclm_rag.config import is_knowledge_base
from lclm_rag.connectors.llama_index.arguments import refuse_others
from lclm_rag.connectors.llama_index.embeddings import embedder_to_open
from lclm_rag.storage import open_folder
from lclm_rag.store import newest_version

__all__ = ["CREATE_OPTIONS", "OPEN_OPTIONS", "has_version", "opened", "reopened"]

CREATE_OPTIONS = set(inspect.signature(KnowledgeBase.create).parameters) - {"path", "resume"}
OPEN_OPTIONS = set(inspect.signature(KnowledgeBase.open).parameters) - {"path"}


def opened(
    taker: str, knowledge_base: KnowledgeBase | str | Path | None, options: dict[str, Any]
) -> KnowledgeBase:
    """The knowledge base that an index is to have.

    Args:
        taker: The name of the index's class, for messages.
        knowledge_base: The knowledge base, open, or its folder.
        options: For a folder: arguments of `KnowledgeBase.open`, and embed_model. None for one that is open.

    Raises:
        ValueError: When it is neither.
        TypeError: When an option is unknown, or has no meaning here.
    """
    if isinstance(knowledge_base, KnowledgeBase):
        refuse_others(taker, options, {"knowledge_base", "nodes", "objects", "transformations"})
        return knowledge_base
    if not isinstance(knowledge_base, str | Path):
        raise ValueError(
            f"{taker} needs a knowledge base to keep its nodes in: {taker}.from_documents(documents, path), "
            f"or {taker}(KnowledgeBase.create(path), nodes)."
        )
    embed_model = options.pop("embed_model", None)
    refuse_others(taker, options, OPEN_OPTIONS)
    embedder = options.pop("embedder", None) or embedder_to_open(knowledge_base, embed_model)
    return KnowledgeBase.open(knowledge_base, embedder=embedder, **options)


def has_version(path: str | Path) -> bool:
    """Whether there is a knowledge base with a commit."""
    folder = open_folder(path)
    return is_knowledge_base(folder) and newest_version(folder / "store") > 0


def reopened(path: str | Path, options: Mapping[str, Any]) -> KnowledgeBase:
    """Open a knowledge base that exists by the options for creating it.

    Args:
        path: The folder.
        options: Arguments of `KnowledgeBase.create`; those that are not None.

    Raises:
        KnowledgeBaseError: When it was made with other options.
    """
    embedder = options["embedder"]
    is_object = embedder is not None and not isinstance(embedder, str | Path)
    opening = {
        k: v for k, v in options.items() if k in OPEN_OPTIONS and k not in ("embedder", "frame")
    }
    kb = KnowledgeBase.open(path, embedder=embedder if is_object else None, **opening)
    has = {**vars(kb.store.layout), **vars(kb.settings)}
    for name in sorted(CREATE_OPTIONS - OPEN_OPTIONS):
        wanted = options.get(name)
        if wanted not in (None, "auto") and has.get(name) != wanted:
            kb.close()
            raise KnowledgeBaseError(
                f"{path} was made with {name}={has.get(name)!r}, not {wanted!r}; leave {name} out, or build "
                "anew in another folder."
            )
    return kb
