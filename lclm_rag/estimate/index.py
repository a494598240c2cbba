"""What the passage index takes: memory, disk, cores and Qdrant servers.

Constants were measured by benchmarks/estimate_constants.py, unless another source is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lclm_rag.estimate.store import CorpusSize
from lclm_rag.indexing.advice import EMBEDDED_UP_TO

__all__ = ["SERVER_CORES", "IndexPlan", "plan_index"]

_TERMS_PER_TOKEN = 0.3
"""BM25 terms (different stems, no stop words) in a passage per token, at 4.5 bytes a token.

149 and 155 in passages of 2,304 bytes of English prose (package descriptions; this project's documents).
Shorter passages repeat fewer words: 33 to 36 in 400 bytes, 0.38 per token.
"""

_INDEX_BYTES_PER_TERM, _VECTOR_BYTES_PER_TERM, _PAYLOAD_BYTES, _ID_BYTES = 5.6, 7.7, 300, 29
"""Bytes on disk for each point, or for each term of a point.

They are those of the inverted index, of the sparse vectors that it was made from, of payload and rest (an id
of 28 characters, no metadata), and of id and version. From the files of `EdgeIndex` (qdrant-edge-py 0.9.0)
after `optimize`: 50,000 points of 79 terms, and of 195. That is 1,380 bytes for a point of 79 terms; on
300,000 points with three fields of metadata benchmarks/index_scale.py measured 1,410.
"""

_OVERHEAD = 1.5
"""Qdrant's own rule: number of vectors · dimensions · 4 bytes · 1.5; the same for payloads.

The extra half is for indexes, versions and segments that are rewritten.
https://qdrant.tech/documentation/guides/capacity-planning/
"""

_SEARCH_SECONDS_PER_TERM = 3e-11
"""Seconds of one core, for one question of six words, per point and term that points have.

BM25 goes through the whole list of each word. The value is the slope in benchmarks/index_scale.py (p50, no
filter, optimized): 0.38 and 2.65 ms on 100,000 and 1,000,000 points of 79 terms. Far beyond a million points
it is a guess. Dense vectors are not included, and grow only with the logarithm.
"""

SERVER_CORES = 16  # A choice: one core per 4 GiB of a server's 64 GiB.
_CLUSTER_NODES = 3
"""Fewest nodes of a replicated cluster, so that it keeps working without one of them.

https://qdrant.tech/documentation/guides/distributed_deployment/
"""


@dataclass(frozen=True)
class IndexPlan:
    """What the passage index takes.

    Attributes:
        ram_bytes: Memory of one copy: inverted index, ids and dense vectors.
        disk_bytes: Disk of one copy, everything included.
        cores: Cores that the questions keep busy.
        nodes: Qdrant servers, replicas included, with enough memory and cores.
        embedded: Whether the index embedded in the process is enough.
    """

    ram_bytes: int
    disk_bytes: int
    cores: float
    nodes: int
    embedded: bool


def plan_index(
    size: CorpusSize, dense_width: int, per_second: float, node_bytes: float, replicas: int
) -> IndexPlan:
    """Estimate what the passage index takes.

    Args:
        size: The corpus; it must have passages.
        dense_width: Numbers in a dense vector (float32); 0 for BM25 alone.
        per_second: Questions per second.
        node_bytes: Memory of each server.
        replicas: Copies of the index; they share the questions.

    Returns:
        The plan.
    """
    terms = _TERMS_PER_TOKEN * size.tokens / size.passages
    point_ram = _INDEX_BYTES_PER_TERM * terms + _ID_BYTES + 4 * dense_width
    ram = _OVERHEAD * size.passages * point_ram
    disk = ram + _OVERHEAD * size.passages * (_VECTOR_BYTES_PER_TERM * terms + _PAYLOAD_BYTES)
    cores = per_second * size.passages * terms * _SEARCH_SECONDS_PER_TERM
    least = _CLUSTER_NODES if replicas > 1 else 1
    return IndexPlan(
        ram_bytes=round(ram),
        disk_bytes=round(disk),
        cores=cores,
        nodes=max(least, math.ceil(max(replicas * ram / node_bytes, cores / SERVER_CORES))),
        embedded=size.passages <= EMBEDDED_UP_TO,
    )
