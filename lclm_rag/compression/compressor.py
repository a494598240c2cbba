"""The compressor: text → latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lclm_rag.batching import batches_by_size
from lclm_rag.checkpoint import Checkpoint, Space
from lclm_rag.compression.adapter import Adapter, load_adapter
from lclm_rag.compression.pooling import pool
from lclm_rag.compression.windows import Window, cut_windows
from lclm_rag.errors import CheckpointError
from lclm_rag.torch_setup import load_transformers_model, resolve_device, resolve_dtype

__all__ = ["Compressor"]

_TOKEN_BUDGET = {"cpu": 8_192, "cuda": 65_536}
"""Padded tokens in one encoder batch."""


class Compressor:
    """Encoder and adapter of one checkpoint.

    A text of T tokens gives ceil(T / compression_ratio) latents, window by window. What else is in the
    batch does not matter: masks are causal and padding stands on the right, so no position ever sees it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: torch.nn.Module,
        adapter: Adapter,
        token_budget: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.adapter = adapter
        self.device = next(encoder.parameters()).device
        self.dtype = next(encoder.parameters()).dtype
        self.token_budget = token_budget or _TOKEN_BUDGET.get(self.device.type, 8_192)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
    ) -> Compressor:
        """Load encoder and adapter (not the decoder).

        device: "cpu", "cuda", "cuda:1", ...; "auto" is CUDA where there is one.
        dtype: "float32", "bfloat16", "float16"; "auto" is bfloat16 on CUDA, float32 on a CPU.
        """
        checkpoint = Checkpoint.open(checkpoint)
        on, kind = resolve_device(device), resolve_dtype(dtype, device)
        from transformers import AutoModel

        encoder = load_transformers_model(AutoModel, checkpoint.path / "encoder", on, kind)
        return cls(checkpoint, encoder, load_adapter(checkpoint, device, dtype), token_budget)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Encoder token ids; special tokens in the texts are only letters."""
        tokenizer = self.checkpoint.encoder_tokenizer
        return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def compress(self, texts: Sequence[str], space: Space = "decoder") -> list[torch.Tensor]:
        """Latents of each text, [n_latents, width of `space`], on the compressor's device and dtype.

        Raises ValueError where a text is empty (has no token).
        """
        return self.compress_token_ids(self.tokenize(texts), space)

    def compress_token_ids(
        self,
        texts: Sequence[Sequence[int]],
        space: Space = "decoder",
        on_progress: Callable[[int], None] = lambda tokens: None,
    ) -> list[torch.Tensor]:
        """As `compress`, for texts already tokenized by the encoder's tokenizer.

        `on_progress` is called after each batch with the source tokens that it held.
        """
        for index, ids in enumerate(texts):
            if not len(ids):
                raise ValueError(f"Text {index} is empty: there is nothing to compress.")
        config = self.checkpoint.config
        windows = cut_windows(texts, config, self._marker_id)
        of_window: list[torch.Tensor] = [torch.empty(0)] * len(windows)
        sizes = [len(window.token_ids) for window in windows]
        for batch in batches_by_size(sizes, self.token_budget):
            members = [windows[i] for i in batch]
            latents = self._encode(members)
            if space == "decoder":
                latents = self.project(latents)
            split = latents.split([window.latents for window in members])
            for index, part in zip(batch, split, strict=True):
                of_window[index] = part
            on_progress(sum(window.tokens for window in members))
        grouped: list[list[torch.Tensor]] = [[] for _ in texts]
        for window, part in zip(windows, of_window, strict=True):
            grouped[window.text].append(part)
        return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in grouped]

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Encoder space [n, encoder width] → decoder space [n, decoder width]."""
        return self.adapter.project(latents)

    @torch.inference_mode()
    def _encode(self, windows: list[Window]) -> torch.Tensor:
        length = max(len(window.token_ids) for window in windows)
        padded = [w.token_ids + [0] * (length - len(w.token_ids)) for w in windows]
        ids = torch.tensor(padded).to(self.device)
        hidden = self.encoder(input_ids=ids, use_cache=False).last_hidden_state
        config = self.checkpoint.config
        return pool(hidden, windows, config.pooling, config.compression_ratio)

    @cached_property
    def _marker_id(self) -> int | None:
        """The token that stands for a latent in `eos` pooling: the encoder tokenizer's pad token."""
        if self.checkpoint.config.pooling != "eos":
            return None
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(
            self.checkpoint.path / "encoder", local_files_only=True
        )
        if tokenizer.pad_token_id is None:
            raise CheckpointError(
                f"{self.checkpoint.path / 'encoder'}: eos pooling needs a tokenizer with a pad token."
            )
        return int(tokenizer.pad_token_id)
