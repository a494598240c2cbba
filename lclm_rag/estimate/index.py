"""What the passage index takes: memory, disk, cores and Qdrant servers.

Constants were measured by benchmarks/estimate_constants.py, where nothing else is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lclm_rag.estimate.store import CorpusSize
from lclm_rag.indexing.advice import EMBEDDED_UP_TO

__all__ = ["SERVER_CORES", "IndexPlan", "plan_index"]

_TERMS_PER_TOKEN = 0.3
"""BM25 terms (different stems, no stop words) of a passage for each of its tokens, at 4.5 bytes a token. 149
and 155 in passages of 2,304 bytes of English prose (package descriptions; this project's documents); shorter
passages repeat fewer words: 33 to 36 in 400 bytes, 0.38 a token."""

_INDEX_BYTES_PER_TERM, _VECTOR_BYTES_PER_TERM, _PAYLOAD_BYTES, _ID_BYTES = 5.6, 7.7, 300, 29
"""Bytes on disk for each point, or each term of one: the inverted index, the sparse vectors that it was made
from, payload and rest (an id of 28 characters, no metadata), id and version. From the files of `EdgeIndex`
(qdrant-edge-py 0.9.0) after `optimize`: 50,000 points of 79 terms, and of 195. That is 1,380 bytes for a
point of 79 terms; on 300,000 with three fields of metadata benchmarks/index_scale.py has 1,410."""

_OVERHEAD = 1.5
"""Qdrant's own rule: number of vectors · dimensions · 4 bytes · 1.5, the half for indexes, versions and
segments that are rewritten; the same for payloads. https://qdrant.tech/documentation/guides/capacity-planning/"""

_SEARCH_SECONDS_PER_TERM = 3e-11
"""Of one core, for one question of six words: for each point and each term that points have, because BM25
looks through the whole list of each word. The slope in benchmarks/index_scale.py (p50, no filter, optimized):
0.38 and 2.65 ms on 100,000 and 1,000,000 points of 79 terms. Far beyond a million points it is a guess. Dense
vectors come on top, and grow with the logarithm only."""

SERVER_CORES = 16  # A choice: a core for 4 GiB of a server's 64.
_CLUSTER_NODES = 3
"""A replicated cluster has at least so many nodes, so that it goes on without one of them.
https://qdrant.tech/documentation/guides/distributed_deployment/"""


@dataclass(frozen=True)
class IndexPlan:
    """ram_bytes: inverted index, ids and dense vectors; disk_bytes: everything. Both of one copy. cores: kept
    busy by the questions. nodes: Qdrant servers, replicas included, with memory and cores for that.
    embedded: whether the index in the process will do."""

    ram_bytes: int
    disk_bytes: int
    cores: float
    nodes: int
    embedded: bool


def plan_index(
    size: CorpusSize, dense_width: int, per_second: float, node_bytes: float, replicas: int
) -> IndexPlan:
    """dense_width: numbers in a dense vector (float32), 0: BM25 alone. per_second: questions. node_bytes:
    memory of each server. Replicas hold copies and share the questions. There must be passages."""
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
