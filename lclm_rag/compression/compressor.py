"""The compressor: text → latents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from lclm_rag.checkpoint import Checkpoint, Space
from lclm_rag.compression.adapter import Adapter, load_adapter
from lclm_rag.compression.attention import PackedEncoder
from lclm_rag.compression.pooling import pool
from lclm_rag.compression.windows import Windows, cut_windows
from lclm_rag.errors import CheckpointError, CompressionError
from lclm_rag.own_code import load_tokenizer
from lclm_rag.torch_setup import (
    is_out_of_memory,
    load_transformers_model,
    resolve_device,
    resolve_dtype,
    to_device,
)

__all__ = ["Compressor", "longest_window", "marker_id"]

_TOKEN_BUDGET = {"cpu": 4_096, "cuda": 65_536}
"""Tokens in one encoder batch, which its memory grows with. A larger budget is not faster on either."""

_log = logging.getLogger(__name__)


class Compressor:
    """Encoder and adapter of one checkpoint.

    A text of T tokens gives ceil(T / compression_ratio) latents, window by window. Windows are packed one
    after another into batches of at most `token_budget` tokens, without padding. No window sees another, so
    the rest of the batch does not affect a text's latents. When memory runs out, the budget is halved for
    good, with a warning, and the batch is tried again.

    Make one with `from_pretrained`.

    Args:
        checkpoint: The checkpoint.
        encoder: The encoder.
        adapter: The adapter.
        token_budget: Most tokens in one encoder batch, at least 1; default 4,096 on a CPU, 65,536 on a GPU.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: PackedEncoder,
        adapter: Adapter,
        token_budget: int | None = None,
    ) -> None:
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}.")
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.adapter = adapter
        self.device = encoder.device
        self.dtype = encoder.dtype
        self.token_budget = token_budget or _TOKEN_BUDGET.get(self.device.type, 4_096)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
        compile: bool | None = None,
    ) -> Compressor:
        """Load encoder and adapter (not the decoder).

        Args:
            checkpoint: A checkpoint's folder or hub id, "english", "bundled", or a `Checkpoint`.
            device: "cpu", "cuda", "cuda:1" and so on; "auto" is CUDA if there is any.
            dtype: "float32", "bfloat16" or "float16"; "auto" is bfloat16 on CUDA and float32 on a CPU.
            token_budget: Most tokens in one encoder batch, at least 1; default 4,096 on a CPU, 65,536 on a
                GPU.
            compile: Whether to compile the encoder with torch.compile. This takes half a minute when the
                first text comes, and on a CPU it needs a C++ compiler; after that the encoder is faster by a
                sixth on a CPU and by a third on a GPU. None compiles it on a GPU once 40 million tokens have
                been read, after which it pays.

        Returns:
            The compressor.

        Raises:
            CheckpointError: When the checkpoint cannot be found or loaded, or its encoder does not let
                windows be packed.
            ValueError: When the device, the dtype or the token budget is not valid.
            LclmRagError: When CUDA is to be used in a process that was forked from one that has used it.
        """
        checkpoint = Checkpoint.open(checkpoint)
        on, kind = resolve_device(device), resolve_dtype(dtype, device)
        from transformers import AutoModel

        model = load_transformers_model(AutoModel, checkpoint.encoder_model_folder, on, kind)
        encoder = PackedEncoder(
            model,
            longest_window(checkpoint),
            causal=checkpoint.config.is_causal,
            compile=compile,
        )
        return cls(checkpoint, encoder, load_adapter(checkpoint, device, dtype), token_budget)

    def compress(self, texts: Sequence[str], space: Space = "decoder") -> list[torch.Tensor]:
        """Compress texts.

        Args:
            texts: The texts.
            space: The space of the latents.

        Returns:
            The latents of each text, [n_latents, width of `space`], in the compressor's dtype and on its
            device.

        Raises:
            ValueError: When a text is empty (has no token).
            CompressionError: When memory does not suffice for one window.
        """
        return self.compress_token_ids(self.checkpoint.encoder_token_ids(texts), space)

    def compress_token_ids(
        self,
        texts: Sequence[Sequence[int]],
        space: Space = "decoder",
    ) -> list[torch.Tensor]:
        """Compress texts that are tokenized already.

        Args:
            texts: Token ids of the encoder's tokenizer, for each text.
            space: The space of the latents.

        Returns:
            As for `compress`.

        Raises:
            ValueError: When a text has no token.
            CompressionError: When memory does not suffice for one window.
        """
        latents, counts = self.compress_together(texts, space)
        return list(latents.split(counts))

    def compress_together(
        self,
        texts: Sequence[Sequence[int]],
        space: Space = "decoder",
    ) -> tuple[torch.Tensor, list[int]]:
        """Compress tokenized texts into one tensor.

        Args:
            texts: Token ids of the encoder's tokenizer, for each text.
            space: The space of the latents.

        Returns:
            The latents of all texts, [sum of counts, width of `space`], and the number of latents of each
            text. On a GPU the latents may still be being computed, like anything that torch returns from
            there.

        Raises:
            ValueError: When a text has no token.
            CompressionError: When memory does not suffice for one window.
        """
        for index, ids in enumerate(texts):
            if not len(ids):
                raise ValueError(f"Text {index} is empty: there is nothing to compress.")
        if not texts:
            return torch.empty(0, self.checkpoint.width(space), dtype=self.dtype), []
        ratio = self.checkpoint.config.compression_ratio
        windows = cut_windows(texts, self.checkpoint.config, self._marker_id)
        parts = []
        first = 0
        while first < len(windows):
            stop = windows.pack(first, self.token_budget)
            batch = windows.part(first, stop)
            latents = self._encode_or_halve(batch)
            if latents is None:
                continue
            parts.append(latents)
            first = stop
        # Every window but a text's last holds whole groups, so the counts are those of one long window.
        counts = [-(-len(ids) // ratio) for ids in texts]
        together = torch.cat(parts)
        if space == "decoder":
            # Only now are all windows of each text there, which attention layers see together.
            together = self.project(together, counts)
        return together, counts

    def project(self, latents: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Project latents from encoder space to decoder space.

        Args:
            latents: Encoder space, [n, encoder width], text after text.
            counts: The number of latents of each text.

        Returns:
            Decoder space, [n, decoder width].
        """
        return self.adapter.project(latents, counts)

    def _encode_or_halve(self, windows: Windows) -> torch.Tensor | None:
        """None if memory ran out; then the budget is half of what was tried."""
        try:
            return self._encode(windows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tokens = len(windows.token_ids)
            if len(windows) == 1:
                raise CompressionError(
                    f"There is not enough memory on {self.device} for one window of {tokens:,} tokens; "
                    "free some, or use a smaller dtype."
                ) from error
            self.token_budget = max(1, tokens // 2)
            _log.warning(
                "Out of memory on %s with %s tokens in a batch: going on with at most %s.",
                self.device,
                f"{tokens:,}",
                f"{self.token_budget:,}",
            )
        # Only after the error is gone, because its traceback keeps tensors alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def _encode(self, windows: Windows) -> torch.Tensor:
        """Latents in encoder space, [sum of the windows' latents, encoder width]."""
        hidden = self.encoder(
            to_device(windows.token_ids, self.device),
            to_device(windows.positions(), self.device),
            windows.lengths.tolist(),
        )
        config = self.checkpoint.config
        return pool(hidden, windows, config.pooling, config.compression_ratio)

    @cached_property
    def _marker_id(self) -> int | None:
        return marker_id(self.checkpoint)


def marker_id(checkpoint: Checkpoint) -> int | None:
    """The token that stands for a latent in `eos` pooling: the encoder tokenizer's pad token.

    Args:
        checkpoint: The checkpoint.

    Returns:
        The token's id; None for other poolings.

    Raises:
        CheckpointError: When the tokenizer has no pad token.
    """
    if checkpoint.config.pooling != "eos":
        return None
    tokenizer = load_tokenizer(checkpoint.encoder_folder)
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"{checkpoint.encoder_folder}: eos pooling needs a tokenizer with a pad token."
        )
    return int(tokenizer.pad_token_id)


def longest_window(checkpoint: Checkpoint) -> int:
    """The number of positions in the longest window of a checkpoint's encoder."""
    config = checkpoint.config
    markers = config.encoder_window_size // config.compression_ratio
    marked = markers if config.pooling == "eos" else 0
    contexts = config.boundary_overlap * (1 if config.is_causal else 2)
    return contexts + config.encoder_window_size + marked
