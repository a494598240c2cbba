"""Advice on when to move from an embedded index to a server.

This module imports nothing, so that `lclm-rag info` can use it without loading an index engine.
"""

from __future__ import annotations

__all__ = ["EMBEDDED_UP_TO", "index_advice"]

EMBEDDED_UP_TO = 300_000
"""The number of passages up to which an embedded index is recommended.

Measured by `python benchmarks/index_scale.py` on two busy cores, after `lclm-rag compact`. At 300,000
passages a search takes 1 ms with BM25 alone (3 ms with dense vectors). A process that adds one document takes
5 s (15 s), and for that time 0.8 GiB of disk (1.7 GiB), because it copies the index and publishes it. At a
million passages this process takes 18 s and 2.6 GiB; with dense vectors 57 s and 4.6 GiB, and a search takes
100 ms until the graph is built, which took 16 minutes at 300,000 already.
"""


def index_advice(passages: int, qdrant_url: str | None) -> str | None:
    """Advice for a knowledge base with too many passages for an embedded index.

    Args:
        passages: The number of passages.
        qdrant_url: The URL of the Qdrant server; None if the index is embedded.

    Returns:
        A sentence, or None if the index suits the number of passages.
    """
    if qdrant_url is not None or passages <= EMBEDDED_UP_TO:
        return None
    return (
        f"Above {EMBEDDED_UP_TO:,} passages a Qdrant server is recommended (lclm-rag reindex --qdrant-url): "
        "each process that adds or deletes something copies the whole embedded index, and each that "
        "searches holds it in memory."
    )
