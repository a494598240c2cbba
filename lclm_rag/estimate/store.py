"""A corpus, and what its store takes: tokens, latents, FLOPs to make them, bytes with each codec."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lclm_rag.checkpoint import Checkpoint, ModelConfig, Space
from lclm_rag.chunking.splitting import split_document
from lclm_rag.estimate.devices import Gpu
from lclm_rag.estimate.shapes import LclmShape
from lclm_rag.store.codecs import CODECS, CodecName, latent_bytes
from lclm_rag.types import Document

__all__ = [
    "BYTES_PER_TOKEN",
    "CorpusSize",
    "StorePlan",
    "equal_passages",
    "measure_corpus",
    "plan_store",
    "split_by_bytes",
    "split_by_tokenizer",
]

BYTES_PER_TOKEN = 4.5
"""Bytes of UTF-8 that one token of Qwen3's tokenizer stands for in English prose, about. Code, tables and
most other languages have fewer."""

_ROW_BYTES = 105
"""Key, span, hash and offsets of a passage in the store, measured: 101 to 112 on stores of 170 to 1,200
passages. (A fragment of 64 MiB has 3 kB besides, which are left out.)"""


@dataclass(frozen=True)
class CorpusSize:
    """text_bytes: UTF-8 of the documents. beside_bytes: UTF-8 of what the rows of the store hold beside the
    text: id and metadata, repeated by each passage of a document, and headers.
    passage_lengths: how many passages there are of each length in tokens, headers included.
    """

    documents: int
    text_bytes: int
    beside_bytes: int
    passage_lengths: Mapping[int, int]

    @property
    def passages(self) -> int:
        return sum(self.passage_lengths.values())

    @property
    def tokens(self) -> int:
        return sum(tokens * count for tokens, count in self.passage_lengths.items())


Split = Callable[[Document], Iterable[tuple[int, int]]]
"""document -> tokens of each of its passages, and the bytes of its header."""


def split_by_bytes(passage_tokens: int, bytes_per_token: float) -> Split:
    """Tokens guessed from the bytes of a text, in passages that are full but for the last. A build ends
    passages where a sentence or paragraph ends: the same tokens, a few more rows."""

    def split(document: Document) -> Iterator[tuple[int, int]]:
        tokens = math.ceil(_utf8_bytes(document.text) / bytes_per_token)
        for start in range(0, tokens, passage_tokens):
            yield min(passage_tokens, tokens - start), 0

    return split


def split_by_tokenizer(
    checkpoint: Checkpoint, passage_tokens: int, *, contextual_headers: bool = False
) -> Split:
    """The passages that a build makes, with the tokens that the encoder reads."""
    tokenizer = checkpoint.encoder_tokenizer

    def offsets(text: str) -> list[tuple[int, int]]:
        return list(tokenizer.encode(text, add_special_tokens=False).offsets)

    def split(document: Document) -> Iterator[tuple[int, int]]:
        for passage in split_document(
            document, offsets, passage_tokens, contextual_headers=contextual_headers
        ):
            tokens = len(tokenizer.encode(passage.content, add_special_tokens=False))
            yield tokens, _utf8_bytes(passage.header)

    return split


def measure_corpus(documents: Iterable[Document], split: Split) -> CorpusSize:
    """Read all documents. Memory does not grow with them."""
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
    """A corpus that is not at hand: passages of one length, each a document of its own, with 64 bytes of id
    and metadata."""
    text_bytes = round(passages * passage_tokens * bytes_per_token)
    return CorpusSize(passages, text_bytes, 64 * passages, {passage_tokens: passages})


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class StorePlan:
    """width: numbers in a latent. bytes: of the store with each codec, with the text, without the passage
    index. flops: of the encoder, and in decoder space of the adapter; gpu_hours, gpu_cost (dollars): theirs
    on one GPU, by its name."""

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
    """What a checkpoint makes of a corpus, with every codec there is. utilization: as in `Gpu.hours`."""
    config = shape.config
    latents = positions = pairs = 0
    for tokens, count in size.passage_lengths.items():
        latents += count * -(-tokens // config.compression_ratio)
        for length in _window_lengths(tokens, config):
            positions += count * length
            # Causal: a position looks at itself and at those before it in its window.
            pairs += count * (length * (length + 1) // 2)
    flops = shape.encoder.flops(positions, pairs)
    if space == "decoder":
        flops += shape.adapter_flops * latents
    width = shape.encoder_width if space == "encoder" else shape.decoder_width
    hours = {gpu: gpu.hours(flops, utilization) for gpu in gpus}
    rows = size.text_bytes + size.beside_bytes + size.passages * _ROW_BYTES
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
    """Positions of each window of a passage: as `lclm_rag.compression.windows.cut_windows` cuts them."""
    for start in range(0, tokens, config.encoder_window_size):
        own = min(config.encoder_window_size, tokens - start)
        markers = -(-own // config.compression_ratio) if config.pooling == "eos" else 0
        yield min(start, config.boundary_overlap) + own + markers
