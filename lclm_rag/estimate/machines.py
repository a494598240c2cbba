"""The machines behind a knowledge base: the store's files, GPUs for compressing, the passage index, and what
gives out first. Plain formulas over the constants of the library; `lclm_rag.estimate.limits` compares them.

What is measured here is measured by benchmarks/estimate_constants.py, where nothing else is said, on two busy
CPU cores with Python 3.11; times differed by half between runs: read them as orders of magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lclm_rag.estimate.store import CorpusSize, StorePlan, gpu_hours
from lclm_rag.store.codecs import CodecName
from lclm_rag.store.writer import FRAGMENT_BYTES, FRAGMENT_TOKENS

__all__ = [
    "INDEX_FORMS",
    "SERVER_CORES",
    "Compressing",
    "IndexPlan",
    "StoreFiles",
    "plan_compressing",
    "plan_files",
    "plan_index",
    "terms_of",
]

# --- the store ------------------------------------------------------------------------------------

_MANIFEST_BYTES = 320
"""JSON of one fragment in a manifest (`store.manifest.pack_entry`)."""

_MANIFEST_SECONDS = 30e-6
"""To read one fragment's entry; to write it, with each commit, takes as long."""

_KEYS_SECONDS = 30e-6
"""To read the key hashes of one fragment on a local disk."""

_SORT_SECONDS = 0.4e-6
"""To sort one key hash among 10 million (`LatentStore._sorted_hashes`)."""

_ENTRY_MEMORY = 2_230
"""Bytes of memory at most while one fragment's entry is read, the JSON being there in several copies: what a
process grew by that read 100,000."""

_KEY_MEMORY, _KEY_HELD = 48, 16
"""Bytes of memory for one passage, at most while the key hashes are sorted (hash, fragment, row, order, most
of them twice), and from then on: what a process grew by that sorted 5 million."""

_WRITE_SECONDS, _WRITE_SECONDS_PER_BYTE = 90e-6, 4e-9
"""One writer, one passage, and each byte of it: checksums, Arrow, SHA-256, sync."""


@dataclass(frozen=True)
class StoreFiles:
    """The store on disk, and what a process that opens it needs.

    row_bytes: of a passage, text and latents included. fragments: as a build that can be resumed writes them;
    compacted: after `lclm-rag compact`. manifest_bytes: of one version. opening_seconds, on a local disk, and
    opening_memory: until the first key is found; held_memory: from then on. write_seconds: of one writer.
    """

    bytes: int
    row_bytes: float
    fragments: int
    compacted: int
    manifest_bytes: int
    opening_seconds: float
    opening_memory: int
    held_memory: int
    write_seconds: float


def plan_files(size: CorpusSize, plan: StorePlan, codec: CodecName) -> StoreFiles:
    """A fragment is full at 64 MiB, or at 2^19 source tokens, whichever comes first (`store.writer`)."""
    total = plan.bytes[codec]
    compacted = math.ceil(total / FRAGMENT_BYTES)
    fragments = max(compacted, math.ceil(size.tokens / FRAGMENT_TOKENS))
    return StoreFiles(
        bytes=total,
        row_bytes=total / size.passages,
        fragments=fragments,
        compacted=compacted,
        manifest_bytes=_MANIFEST_BYTES * fragments,
        opening_seconds=(_MANIFEST_SECONDS + _KEYS_SECONDS) * fragments
        + _SORT_SECONDS * size.passages,
        opening_memory=_ENTRY_MEMORY * fragments + _KEY_MEMORY * size.passages,
        held_memory=_KEY_HELD * size.passages,
        write_seconds=_WRITE_SECONDS * size.passages + _WRITE_SECONDS_PER_BYTE * total,
    )


# --- compressing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compressing:
    """By the deadline. gpus: encoders, each one Ray actor. tokens_per_second: what readers have to split and
    tokenize. written_bytes_per_second: what is written. cost: of the GPU hours alone."""

    flops: int
    gpu_hours: float
    gpus: int
    tokens_per_second: float
    written_bytes_per_second: float
    cost: float


def plan_compressing(
    size: CorpusSize,
    plan: StorePlan,
    codec: CodecName,
    *,
    gpu: str,
    utilization: float,
    deadline_hours: float,
    gpu_hour_price: float,
) -> Compressing:
    hours = gpu_hours(plan.flops, utilization)[gpu]
    seconds = deadline_hours * 3600
    return Compressing(
        flops=plan.flops,
        gpu_hours=hours,
        gpus=max(1, math.ceil(hours / deadline_hours)),
        tokens_per_second=size.tokens / seconds,
        written_bytes_per_second=plan.bytes[codec] / seconds,
        cost=hours * gpu_hour_price,
    )


# --- the passage index ----------------------------------------------------------------------------

_TERMS_PER_TOKEN = 0.3
"""BM25 terms (different stems, no stop words) of a passage for each of its tokens, at 4.5 bytes a token. 149
and 155 in passages of 2,304 bytes of English prose (package descriptions; this project's documents); shorter
passages repeat fewer words: 33 to 36 in 400 bytes, 0.38 a token."""

_INDEX_BYTES_PER_TERM = 5.6
_VECTOR_BYTES_PER_TERM = 7.7
_PAYLOAD_BYTES = 300
_ID_BYTES = 29
"""Bytes on disk for each point, or each term of one: the inverted index, the sparse vectors that it was made
from, payload and rest (an id of 28 characters, no metadata), id and version. From the files of `EdgeIndex`
(qdrant-edge-py 0.9.0) after `optimize`: 50,000 points of 79 terms, and of 195. That is 1,380 bytes for a
point of 79 terms; on 300,000 with three fields of metadata benchmarks/index_scale.py has 1,410."""

_FILL_SECONDS_PER_TERM = 1.3e-6
"""One process, BM25 and upsert into `EdgeIndex`: 4,000 points of 195 terms a second. Dense vectors, and a
server's time, come on top."""

_OVERHEAD = 1.5
"""Qdrant's own rule: number of vectors · dimensions · 4 bytes · 1.5, the half for indexes, versions and
segments that are rewritten; the same for payloads. https://qdrant.tech/documentation/guides/capacity-planning/"""

_GRAPH_BYTES = 128
"""Of the HNSW graph for each point: 2 m links of 4 bytes with Qdrant's m = 16. In the rule it is part of the
half, which is too small for it where vectors are quantized."""

_SEARCH_SECONDS_PER_TERM = 3e-11
"""Of one core, for one question of six words: for each point and each term that points have, because BM25
looks through the whole list of each word. The slope in benchmarks/index_scale.py: 0.38 and 2.65 ms (p50, no
filter, optimized) on 100,000 and 1,000,000 points of 79 terms; words as frequent as in English without stop
words. Far beyond a million points it is a guess. Dense vectors come on top, and grow with the logarithm
only."""

SERVER_CORES = 16
"""A choice: a core for 4 GiB of a server's 64."""

_CLUSTER_NODES = 3
"""A replicated cluster has at least so many nodes, so that it goes on without one of them.
https://qdrant.tech/documentation/guides/distributed_deployment/"""

INDEX_FORMS = {"float32": 32, "int8": 8, "binary": 1}
"""Bits of memory for each number of a dense vector. With int8 (scalar quantization) and binary, the vectors
in float32 stay on disk, to score candidates again.
https://qdrant.tech/documentation/guides/quantization/"""


@dataclass(frozen=True)
class IndexPlan:
    """The passage index, its dense vectors in one form, or BM25 alone.

    ram_bytes: inverted index, ids, and dense vectors of that form; disk_bytes: everything. Both of one copy.
    cores: kept busy by the questions. nodes: Qdrant servers, replicas included, with memory and cores for
    that. shards: one for each node. fill_seconds: of one process.
    """

    form: str
    points: int
    ram_bytes: int
    disk_bytes: int
    cores: float
    nodes: int
    shards: int
    fill_seconds: float


def terms_of(passage_tokens: float) -> float:
    """BM25 terms of a passage."""
    return _TERMS_PER_TOKEN * passage_tokens


def plan_index(
    size: CorpusSize,
    dense_width: int,
    questions_per_second: float,
    *,
    node_bytes: float,
    replicas: int,
) -> list[IndexPlan]:
    """For each form of the dense vectors; BM25 alone where `dense_width` is 0. Replicas hold copies and share
    the questions."""
    terms = terms_of(size.tokens / size.passages)
    words_ram = _INDEX_BYTES_PER_TERM * terms + _ID_BYTES
    words_disk = words_ram + _VECTOR_BYTES_PER_TERM * terms + _PAYLOAD_BYTES
    cores = questions_per_second * size.passages * terms * _SEARCH_SECONDS_PER_TERM
    plans = []
    for form, bits in INDEX_FORMS.items() if dense_width else [("BM25 alone", 0)]:
        vector = dense_width * bits / 8
        quantized = 0.0 if bits in (0, 32) else vector + _GRAPH_BYTES
        ram = _OVERHEAD * size.passages * (words_ram + (quantized or vector))
        disk = _OVERHEAD * size.passages * (words_disk + 4 * dense_width + quantized)
        least = _CLUSTER_NODES if replicas > 1 else 1
        nodes = max(replicas * ram / node_bytes, cores / SERVER_CORES)
        servers = max(least, math.ceil(nodes))
        plans.append(
            IndexPlan(
                form=form,
                points=size.passages,
                ram_bytes=round(ram),
                disk_bytes=round(disk),
                cores=cores,
                nodes=servers,
                shards=servers,
                fill_seconds=_FILL_SECONDS_PER_TERM * terms * size.passages,
            )
        )
    return plans
