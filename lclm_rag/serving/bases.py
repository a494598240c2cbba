"""The knowledge bases that are served: opened with one decoder, kept at their newest version."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lclm_rag.errors import LclmRagError
from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["ServedBase", "close_bases", "follow", "open_bases"]

_log = logging.getLogger(__name__)

_LOOK_AGAIN = 0.5
"""Seconds between two looks for a new version; it is to be served within a second of its commit."""


@dataclass
class ServedBase:
    """A knowledge base that is served.

    Attributes:
        name: What clients call it: the id of a model.
        kb: The knowledge base, open at the version that is served.
        opened: When it was opened, in seconds since 1970.
        writing: Held by the one request that changes it.
    """

    name: str
    kb: KnowledgeBase
    opened: int = field(default_factory=lambda: int(time.time()))
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def describe(self, *, bound: bool) -> dict[str, Any]:
        """The knowledge base as a model of OpenAI's API, with what is in it.

        Args:
            bound: Whether the client is bound by a filter: it is not told how much is hidden from it.
        """
        manifest = self.kb.store.manifest
        totals = manifest.totals
        counts = {"documents": totals.documents, "passages": totals.passages}
        return {
            "id": self.name,
            "object": "model",
            "created": self.opened,
            "owned_by": "lclm-rag",
            "version": manifest.version,
            **({} if bound else counts),
            "checkpoint": self.kb.checkpoint.name,
        }


def open_bases(
    locations: Mapping[str, str], reranker: str | None = None, **options: Any
) -> dict[str, ServedBase]:
    """Open knowledge bases to be served, and load what they need.

    Those with the same checkpoint share one decoder and one compressor.

    Args:
        locations: The folder or URL of each knowledge base, by the name that clients give it.
        reranker: The cross-encoder to load, which all of them share.
        **options: As for `KnowledgeBase.open`.

    Returns:
        The knowledge bases by name.

    Raises:
        LclmRagError: When one cannot be opened, or its decoder cannot be loaded.
        ValueError: When an option is not valid.
    """
    bases: dict[str, ServedBase] = {}
    try:
        for name, location in locations.items():
            kb = KnowledgeBase.open(location, **options)
            bases[name] = ServedBase(name, kb)
            for other in bases.values():
                if other.kb is not kb and _fingerprint(other.kb) == _fingerprint(kb):
                    kb.share_models(other.kb)
                    break
            next(iter(bases.values())).kb.reader.share_rerankers(kb.reader)
            if reranker is not None:
                kb.reader.reranker(reranker)
            kb.decoder  # noqa: B018  Fail now, and not with the first question.
            kb.index  # noqa: B018
    except BaseException:
        close_bases(bases)
        raise
    return bases


def close_bases(bases: Mapping[str, ServedBase]) -> None:
    """Close all knowledge bases, and the decoders that they loaded."""
    # Those that share a decoder before the one that loaded it.
    for base in reversed(list(bases.values())):
        base.kb.close()


def _fingerprint(kb: KnowledgeBase) -> tuple[str, str]:
    return kb.checkpoint.fingerprint("decoder"), kb.checkpoint.decoder_fingerprint


async def follow(base: ServedBase) -> None:
    """Keep a knowledge base at its newest version. Questions go on meanwhile; ends when cancelled."""
    while True:
        await asyncio.sleep(_LOOK_AGAIN)
        if base.writing.locked():
            continue  # The writer moves it.
        try:
            # With the lock, so that a writer that commits meanwhile is not followed by a move back.
            async with base.writing:
                await asyncio.to_thread(base.kb.follow)
        except (LclmRagError, OSError) as error:
            # The version before goes on being served; the next look may succeed.
            _log.warning("%s stays at version %d: %s", base.name, base.kb.store.version, error)
