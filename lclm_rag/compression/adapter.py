"""The adapter, which maps latents from encoder space to decoder space."""

from __future__ import annotations

import torch
from torch import nn

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.torch_setup import resolve_device, resolve_dtype

__all__ = ["Adapter", "load_adapter"]


class Adapter(nn.Module):
    """RMSNorm (eps 1e-6) → Linear → GELU → Linear, as in the published checkpoints.

    The parameters have the names used in `adapter/adapter.safetensors`: `norm.weight`, `fc1.*`, `fc2.*`. A
    latent's length cancels in the norm, so a codec may scale latents in encoder space freely.

    Args:
        encoder_width: Width of a latent in encoder space.
        hidden_width: Width between the two linear layers.
        decoder_width: Width of a latent in decoder space.
    """

    def __init__(self, encoder_width: int, hidden_width: int, decoder_width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(encoder_width, eps=1e-6)
        self.fc1 = nn.Linear(encoder_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, decoder_width)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Project latents that have the adapter's dtype and device.

        Args:
            latents: Encoder space, [..., encoder_width].

        Returns:
            Decoder space, [..., decoder_width], same dtype.
        """
        projected: torch.Tensor = self.fc2(nn.functional.gelu(self.fc1(self.norm(latents))))
        return projected

    @torch.inference_mode()
    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Project latents of any dtype, on any device.

        Args:
            latents: Encoder space, [n, encoder_width].

        Returns:
            Decoder space, [n, decoder_width], in the adapter's dtype and on its device.
        """
        weight = self.fc1.weight
        projected: torch.Tensor = self(latents.to(weight.device, weight.dtype))
        return projected


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

    state = load_file(checkpoint.path / "adapter" / "adapter.safetensors")
    hidden_width, encoder_width = state["fc1.weight"].shape
    adapter = Adapter(encoder_width, hidden_width, checkpoint.decoder_width)
    adapter.load_state_dict(state)
    on = resolve_device(device)
    return adapter.to(device=on, dtype=resolve_dtype(dtype, device)).eval()
