"""What it takes to precompress a corpus, worked out before anything is compressed: tokens, latents, bytes,
FLOPs and hours on a GPU. Loads no model and no torch.

`lclm_rag.estimate.serving` goes on to the questions, `lclm_rag.estimate.machines` to the machines.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lclm_rag.checkpoint import Checkpoint, ModelConfig, Space
from lclm_rag.chunking.splitting import split_document
from lclm_rag.estimate.shapes import LclmShape
from lclm_rag.store.codecs import CODECS, latent_bytes
from lclm_rag.types import Document

__all__ = [
    "BYTES_PER_TOKEN",
    "PEAK_TFLOPS",
    "CorpusSize",
    "Split",
    "StorePlan",
    "equal_passages",
    "gpu_hours",
    "measure_corpus",
    "plan_store",
    "split_by_bytes",
    "split_by_tokenizer",
]

BYTES_PER_TOKEN = 4.5
"""Bytes of UTF-8 that one token of Qwen3's tokenizer stands for in English prose, about. Code, tables and
most other languages have fewer."""

PEAK_TFLOPS: Mapping[str, float] = {
    "H200 SXM": 989,
    "H100 SXM": 989,
    "L40S": 362,
    "A100": 312,
    "RTX 4090": 165,
    "L4": 121,
}
"""Peak 10^12 FLOP/s of the tensor cores in bfloat16 with float32 sums, without sparsity.

From NVIDIA's data sheets of each ("BFLOAT16 Tensor Core"; those of H200, H100 and L4 give twice as
much "with sparsity"), and for the RTX 4090 from the Ada architecture white paper, appendix A.
"""

_ROW_BYTES = 105
"""Key, span, hash and offsets of a passage in the store, measured: 101 to 112 on stores of 170 to 1,200
passages. (A fragment of 64 MiB has 3 kB besides, which are left out.)"""


# --- corpora --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorpusSize:
    """A corpus, split into passages.

    text_bytes: UTF-8 of the documents. beside_bytes: UTF-8 of what stands in the rows of the store beside the
    text: id and metadata, which each passage of a document repeats, and headers.
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


def split_by_bytes(passage_tokens: int, bytes_per_token: float = BYTES_PER_TOKEN) -> Split:
    """Tokens guessed from the bytes of a text, in passages that are full but for the last.

    Fast, and needs no tokenizer. A build ends passages where a sentence or paragraph ends, and so makes
    some more of them: the same tokens, a few more rows.
    """
    _check_bytes_per_token(bytes_per_token)

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


def equal_passages(
    passages: int, passage_tokens: int, bytes_per_token: float = BYTES_PER_TOKEN
) -> CorpusSize:
    """A corpus that is not at hand: passages of one length, each a document of its own, with 64 bytes of id
    and metadata. ValueError where bytes_per_token is not a number above 0."""
    _check_bytes_per_token(bytes_per_token)
    text_bytes = round(passages * passage_tokens * bytes_per_token)
    return CorpusSize(passages, text_bytes, 64 * passages, {passage_tokens: passages})


def _check_bytes_per_token(bytes_per_token: float) -> None:
    if not 0 < bytes_per_token < math.inf:
        raise ValueError(f"bytes_per_token must be a number above 0, not {bytes_per_token}.")


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


# --- what it takes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class StorePlan:
    """What one way of building the store takes.

    width: numbers in a latent. flops: of the encoder, and in decoder space of the adapter. bytes: of the
    store with each codec, with the text, without the passage index.
    """

    checkpoint: str
    compression_ratio: int
    space: Space
    width: int
    latents: int
    flops: int
    bytes: Mapping[str, int]


def plan_store(size: CorpusSize, shape: LclmShape, space: Space) -> StorePlan:
    """What a checkpoint makes of a corpus, with every codec there is."""
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
    width = shape.width(space)
    codecs: Sequence[Any] = CODECS
    rows = size.text_bytes + size.beside_bytes + size.passages * _ROW_BYTES
    return StorePlan(
        checkpoint=shape.name,
        compression_ratio=config.compression_ratio,
        space=space,
        width=width,
        latents=latents,
        flops=flops,
        bytes={codec: rows + latents * latent_bytes(codec, width) for codec in codecs},
    )


def _window_lengths(tokens: int, config: ModelConfig) -> Iterator[int]:
    """Positions of each window of a passage: as `lclm_rag.compression.windows.cut_windows` cuts them."""
    for start in range(0, tokens, config.encoder_window_size):
        own = min(config.encoder_window_size, tokens - start)
        markers = -(-own // config.compression_ratio) if config.pooling == "eos" else 0
        yield min(start, config.boundary_overlap) + own + markers


def gpu_hours(flops: int, utilization: float) -> dict[str, float]:
    """Hours that one GPU of each kind takes. utilization: share of its peak that is reached."""
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization is a share, more than 0 and at most 1, not {utilization}.")
    return {name: flops / (peak * 1e12 * utilization) / 3600 for name, peak in PEAK_TFLOPS.items()}
