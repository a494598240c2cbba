"""info: show what a knowledge base holds."""

from __future__ import annotations

from typing import Any

import click

from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import as_json, kb_option

__all__ = ["info"]


@click.command()
@kb_option
@as_json
def info(kb: str, as_json: bool) -> None:
    """Show what a knowledge base holds, how it was made, and its size on disk. Loads no model.

    \b
    Example:
      lclm-rag info --kb kb/
    """
    facts = _facts(kb)
    if as_json:
        say_json(facts)
        return
    for name, value in facts.items():
        if name == "advice" and value is None:
            continue
        is_count = isinstance(value, int) and not isinstance(value, bool)
        shown = f"{value:,}" if is_count else value
        say(f"{name.replace('_', ' '):24}{shown}")


def _facts(kb: str) -> dict[str, Any]:
    from lclm_rag.config import read_settings
    from lclm_rag.indexing.advice import index_advice
    from lclm_rag.storage import open_folder
    from lclm_rag.store import LatentStore
    from lclm_rag.store.writer import uncommitted_entries

    folder = open_folder(kb)
    settings = read_settings(folder)
    store = LatentStore.open(folder / "store")
    layout, totals, size = store.layout, store.manifest.totals, store.manifest.bytes
    return {
        "path": kb,
        "version": store.version,
        "documents": store.count_documents(),
        "passages": len(store),
        "source_tokens": totals.tokens,
        "latents": totals.latents,
        "fragments": store.manifest.fragments,
        "uncommitted_passages": sum(e.rows for e in uncommitted_entries(store.folder, layout)),
        "store_bytes": size,
        "bytes_per_source_token": round(size / totals.tokens, 1) if totals.tokens else None,
        "checkpoint": settings.checkpoint,
        "fingerprint": layout.fingerprint,
        "compression_ratio": layout.compression_ratio,
        "codec": layout.codec,
        "space": layout.space,
        "width": layout.width,
        "passage_tokens": settings.passage_tokens,
        "contextual_headers": settings.contextual_headers,
        "frame": _frame_name(settings.frame),
        "passage_index": settings.qdrant_url or "embedded (Qdrant Edge)",
        "language": settings.language,
        "words": settings.words,
        "retrieval": f"BM25 + {settings.embedder}" if settings.embedder else "BM25",
        "advice": index_advice(len(store), settings.qdrant_url),
    }


def _frame_name(frame: str | dict[str, Any] | None) -> str:
    if frame is None:
        return "the checkpoint's"
    return frame if isinstance(frame, str) else str(frame["name"])
