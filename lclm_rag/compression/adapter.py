"""The adapter, which maps latents from encoder space to decoder space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lclm_rag.checkpoint import AdapterType, Checkpoint
from lclm_rag.compression.attention import PACKED, packing, register
from lclm_rag.torch_setup import resolve_device, resolve_dtype

__all__ = ["Adapter", "load_adapter"]


class Adapter(nn.Module):
    """An MLP, and attention layers before it (`attn_mlp`) or after it (`mlp_attn`).

    The MLP is RMSNorm (eps 1e-6) → Linear → GELU → Linear. An attention layer is Qwen3's decoder layer, of
    the encoder's shape before the MLP and of the decoder's after it. It has no causal mask: each latent of a
    passage sees all others of that passage, at positions 0, 1, 2 and so on, and no other passage. All of it
    is computed in the adapter's dtype; the paper's own code computes attention layers in bfloat16 even if
    their weights are float32.

    The parameters have the names used in `adapter/adapter.safetensors`: `norm.weight`, `fc1.*`, `fc2.*` and
    `attention_layers.*`. With `mlp` and `mlp_attn` a latent's length cancels in the norm, so that latents in
    encoder space may be scaled freely. With `attn_mlp` it does not, because the layers' residual connections
    keep it.

    Args:
        encoder_width: Width of a latent in encoder space.
        hidden_width: Width between the two linear layers.
        decoder_width: Width of a latent in decoder space.
        adapter_type: "mlp", "attn_mlp" or "mlp_attn".
        num_layers: The number of attention layers; not used by "mlp".
        attention_config: What the attention layers are made from, as in a Qwen3 model's config.json.
    """

    def __init__(
        self,
        encoder_width: int,
        hidden_width: int,
        decoder_width: int,
        adapter_type: AdapterType = "mlp",
        num_layers: int = 1,
        attention_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.adapter_type = adapter_type
        self.norm = nn.RMSNorm(encoder_width, eps=1e-6)
        self.fc1 = nn.Linear(encoder_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, decoder_width)
        if adapter_type != "mlp":
            self._config = _layer_config(attention_config or {}, num_layers)
            self.attention_layers = nn.ModuleList(
                _AttentionLayer(self._config, number) for number in range(num_layers)
            )

    def forward(self, latents: torch.Tensor, counts: Sequence[int] | None = None) -> torch.Tensor:
        """Project latents that have the adapter's dtype and device.

        Args:
            latents: Encoder space, [n, encoder_width], passage after passage.
            counts: The number of latents of each passage; None if all are of one.

        Returns:
            Decoder space, [n, decoder_width], same dtype.
        """
        counts = [len(latents)] if counts is None else counts
        if self.adapter_type == "attn_mlp":
            latents = self._attend(latents, counts)
        latents = self.fc2(nn.functional.gelu(self.fc1(self.norm(latents))))
        if self.adapter_type == "mlp_attn":
            latents = self._attend(latents, counts)
        return latents

    @torch.inference_mode()
    def project(self, latents: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Project latents of any dtype, on any device.

        Args:
            latents: Encoder space, [n, encoder_width], passage after passage.
            counts: The number of latents of each passage: attention layers see one passage at a time.

        Returns:
            Decoder space, [n, decoder_width], in the adapter's dtype and on its device.
        """
        weight = self.fc1.weight
        projected: torch.Tensor = self(latents.to(weight.device, weight.dtype), counts)
        return projected

    def _attend(self, latents: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

        if not len(latents):
            return latents
        row = latents[None]
        positions = torch.cat([torch.arange(n) for n in counts])[None].to(latents.device)
        # Made anew, because a buffer of this module would lose its float32 in a half-precision adapter.
        rotary = Qwen3RotaryEmbedding(self._config).to(latents.device)
        rotations = rotary(row, positions)
        passages = packing(
            counts, max(counts), latents.device, latents.dtype, self._config, causal=False
        )
        for layer in self.attention_layers:
            row = layer(row, position_embeddings=rotations, **passages)
        return row[0]


class _AttentionLayer(nn.Module):
    """One layer, under the name that it has in the published files."""

    def __init__(self, config: Any, number: int) -> None:
        from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

        super().__init__()
        self.decoder_layer = Qwen3DecoderLayer(config, number)

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.decoder_layer(*args, **options)


def _layer_config(settings: Mapping[str, Any], layers: int) -> Any:
    from transformers import Qwen3Config

    register()
    config = Qwen3Config(**settings, num_hidden_layers=layers)
    config._attn_implementation = PACKED
    return config


def load_adapter(checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto") -> Adapter:
    """Load a checkpoint's adapter, whose shapes were checked when the checkpoint was opened.

    Args:
        checkpoint: The checkpoint.
        device: As for `resolve_device`.
        dtype: As for `resolve_dtype`.

    Returns:
        The adapter, in eval mode.

    Raises:
        ValueError: When the device or dtype is not valid.
    """
    from safetensors.torch import load_file

    adapter = Adapter(**checkpoint.adapter_shape)
    adapter.load_state_dict(load_file(checkpoint.adapter_file))
    on = resolve_device(device)
    return adapter.to(device=on, dtype=resolve_dtype(dtype, device)).eval()
