"""When an index in the process is no longer the right one. Imports nothing: `lclm-rag info` asks."""

from __future__ import annotations

__all__ = ["EMBEDDED_UP_TO", "index_advice"]

EMBEDDED_UP_TO = 300_000
"""Passages. Measured by `python benchmarks/index_scale.py` on two busy cores, after `lclm-rag compact`: at
300,000 a search takes 1 ms with BM25 alone (3 ms with dense vectors), and a process that adds one document
5 s (15 s) and 0.8 GiB of disk meanwhile (1.7 GiB), because it copies the index and publishes it. At a million
it is 18 s and 2.6 GiB; with dense vectors 57 s, 4.6 GiB and 100 ms a search until the graph is built, which
took 16 minutes at 300,000 already.
"""


def index_advice(passages: int, qdrant_url: str | None) -> str | None:
    """A sentence for whoever has more passages in an embedded index than is pleasant; None for others."""
    if qdrant_url is not None or passages <= EMBEDDED_UP_TO:
        return None
    return (
        f"Above {EMBEDDED_UP_TO:,} passages a Qdrant server is recommended (lclm-rag build --qdrant-url): "
        "each process that adds or deletes something copies the whole embedded index, and each that "
        "searches holds it in memory."
    )
