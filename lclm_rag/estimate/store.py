"""A corpus, and what its store takes: tokens, latents, FLOPs to make them, bytes with each codec."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lclm_rag.checkpoint import Checkpoint, ModelConfig, Space
from lclm_rag.chunking.splitting import split_document
from lclm_rag.chunking.tokens import TextTokens
from lclm_rag.estimate.devices import Gpu
from lclm_rag.estimate.shapes import LclmShape
from lclm_rag.store.codecs import CODECS, CodecName, latent_bytes
from lclm_rag.types import Document

__all__ = [
    "BYTES_PER_TOKEN",
    "COMPILED_AFTER",
    "CorpusSize",
    "StorePlan",
    "encoder_utilization",
    "equal_passages",
    "measure_corpus",
    "plan_store",
    "split_by_bytes",
    "split_by_tokenizer",
]

BYTES_PER_TOKEN = 4.5
"""Approximate bytes of UTF-8 per token of Qwen3's tokenizer, in English prose.

Code, tables and most other languages have fewer.
"""

_ROW_BYTES = 105
"""Key, span, hash and offsets of a passage in the store, in bytes.

Measured: 101 to 112 on stores of 170 to 1,200 passages. (A fragment of 64 MiB has 3 kB besides, which are
left out.)
"""

_KEY_BYTES = 16
"""The record of a passage in the key runs, in bytes."""


COMPILED_AFTER = 40_000_000
"""Tokens after which a build compiles the encoder by itself (`lclm_rag.compression.attention`)."""

_UTILIZATION, _COMPILED = 0.3, 0.4
"""Shares of a GPU's peak that the encoder reaches, before and after it is compiled.

Computed from the bytes that its kernels move on an H100 and the rate of its matrix products there; not
measured yet.
"""


@dataclass(frozen=True)
class CorpusSize:
    """The size of a corpus.

    Attributes:
        documents: Number of documents.
        text_bytes: UTF-8 of the documents' texts.
        beside_bytes: UTF-8 of what the rows of the store hold besides the text: id and metadata, which each
            passage of a document repeats, and headers.
        passage_lengths: For each length in tokens (headers included), how many passages have it.
    """

    documents: int
    text_bytes: int
    beside_bytes: int
    passage_lengths: Mapping[int, int]

    @property
    def passages(self) -> int:
        """Number of passages."""
        return sum(self.passage_lengths.values())

    @property
    def tokens(self) -> int:
        """Tokens of all passages, headers included."""
        return sum(tokens * count for tokens, count in self.passage_lengths.items())


Split = Callable[[Document], Iterable[tuple[int, int]]]
"""Maps a document to the tokens of each of its passages and the bytes of the passage's header."""


def split_by_bytes(passage_tokens: int, bytes_per_token: float) -> Split:
    """Guess tokens from the bytes of a text, in passages that are full except for the last.

    A build ends passages at the end of a sentence or paragraph instead: the same tokens, a few more rows.

    Args:
        passage_tokens: Tokens in a full passage.
        bytes_per_token: Bytes of UTF-8 per token.

    Returns:
        The function that splits a document.
    """

    def split(document: Document) -> Iterator[tuple[int, int]]:
        tokens = math.ceil(_utf8_bytes(document.text) / bytes_per_token)
        for start in range(0, tokens, passage_tokens):
            yield min(passage_tokens, tokens - start), 0

    return split


def split_by_tokenizer(
    checkpoint: Checkpoint, passage_tokens: int, *, contextual_headers: bool = False
) -> Split:
    """Split as a build does, and count the tokens that the encoder reads.

    Args:
        checkpoint: The checkpoint whose encoder tokenizer counts.
        passage_tokens: Most tokens in a passage.
        contextual_headers: Whether passages have headers.

    Returns:
        The function that splits a document.
    """

    def split(document: Document) -> Iterator[tuple[int, int]]:
        (tokens,) = TextTokens.of_all([document.text], checkpoint.encoder_tokenizer)
        for passage in split_document(
            document,
            checkpoint.token_offsets,
            passage_tokens,
            contextual_headers=contextual_headers,
            tokens=tokens,
        ):
            yield len(tokens.ids(passage)), _utf8_bytes(passage.header)

    return split


def measure_corpus(documents: Iterable[Document], split: Split) -> CorpusSize:
    """Read all documents and add up their sizes. Memory does not grow with their number.

    Args:
        documents: The documents.
        split: Splits a document, as from `split_by_bytes` or `split_by_tokenizer`.

    Returns:
        The size of the corpus.
    """
    count = text_bytes = beside_bytes = 0
    lengths: Counter[int] = Counter()
    for document in documents:
        count += 1
        text_bytes += _utf8_bytes(document.text)
        metadata = json.dumps(dict(document.metadata), ensure_ascii=False)
        repeated = _utf8_bytes(document.id) + _utf8_bytes(metadata)
        for tokens, header_bytes in split(document):
            lengths[tokens] += 1
            beside_bytes += repeated + header_bytes
    return CorpusSize(count, text_bytes, beside_bytes, dict(sorted(lengths.items())))


def equal_passages(passages: int, passage_tokens: int, bytes_per_token: float) -> CorpusSize:
    """The size of a corpus that is only described by numbers.

    Its passages have one length, and each is a document with 64 bytes of id and metadata.

    Args:
        passages: Number of passages.
        passage_tokens: Tokens in each.
        bytes_per_token: Bytes of UTF-8 per token.

    Returns:
        The size of the corpus.
    """
    text_bytes = round(passages * passage_tokens * bytes_per_token)
    return CorpusSize(passages, text_bytes, 64 * passages, {passage_tokens: passages})


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def encoder_utilization(tokens: int) -> float:
    """The share of a GPU's peak that a build reaches, on average.

    Args:
        tokens: The tokens that it reads, at least 1.

    Returns:
        0.3 for a short build, near 0.4 for a long one.
    """
    before = min(tokens, COMPILED_AFTER)
    return tokens / (before / _UTILIZATION + (tokens - before) / _COMPILED)


@dataclass(frozen=True)
class StorePlan:
    """What the store of a corpus takes.

    Attributes:
        checkpoint: The checkpoint's name.
        compression_ratio: Source tokens per latent.
        space: The space of the latents.
        width: Numbers in a latent.
        latents: Number of latents.
        bytes: Bytes of the store with each codec, text included, passage index not included.
        flops: FLOPs of the encoder, and in decoder space of the adapter.
        gpu_hours: Hours that these FLOPs take on one GPU, by the GPU's name.
        gpu_cost: What these hours cost, in dollars, by the GPU's name.
    """

    checkpoint: str
    compression_ratio: int
    space: Space
    width: int
    latents: int
    bytes: Mapping[CodecName, int]
    flops: int
    gpu_hours: Mapping[str, float]
    gpu_cost: Mapping[str, float]


def plan_store(
    size: CorpusSize, shape: LclmShape, space: Space, gpus: Iterable[Gpu], utilization: float
) -> StorePlan:
    """Estimate what the store of a corpus takes, with every codec.

    Args:
        size: The corpus.
        shape: The checkpoint's sizes.
        space: The space of the latents.
        gpus: The GPUs to estimate hours and costs for.
        utilization: Share of a GPU's peak that is reached, as for `Gpu.hours`.

    Returns:
        The plan.
    """
    config = shape.config
    latents = latent_pairs = positions = pairs = 0
    for tokens, count in size.passage_lengths.items():
        own = -(-tokens // config.compression_ratio)
        latents += count * own
        latent_pairs += count * own**2
        for length in _window_lengths(tokens, config):
            positions += count * length
            # With a causal mask a position sees itself and those before it in its window.
            pairs += count * (length * (length + 1) // 2 if config.is_causal else length**2)
    flops = shape.encoder.flops(positions, pairs)
    if space == "decoder":
        flops += shape.adapter_flops(latents, latent_pairs)
    width = shape.encoder_width if space == "encoder" else shape.decoder_width
    hours = {gpu: gpu.hours(flops, utilization) for gpu in gpus}
    rows = size.text_bytes + size.beside_bytes + size.passages * (_ROW_BYTES + _KEY_BYTES)
    return StorePlan(
        checkpoint=shape.name,
        compression_ratio=config.compression_ratio,
        space=space,
        width=width,
        latents=latents,
        bytes={codec: rows + latents * latent_bytes(codec, width) for codec in CODECS},
        flops=flops,
        gpu_hours={gpu.name: spent for gpu, spent in hours.items()},
        gpu_cost={gpu.name: spent * gpu.dollars_per_hour for gpu, spent in hours.items()},
    )


def _window_lengths(tokens: int, config: ModelConfig) -> Iterator[int]:
    """Positions of each window of a passage, cut as `lclm_rag.compression.windows.cut_windows` does."""
    for start in range(0, tokens, config.encoder_window_size):
        own = min(config.encoder_window_size, tokens - start)
        markers = -(-own // config.compression_ratio) if config.pooling == "eos" else 0
        after = 0 if config.is_causal else min(tokens - start - own, config.boundary_overlap)
        yield min(start, config.boundary_overlap) + own + after + markers
