"""Causal attention inside each window of a packed batch.

It works with any model for which transformers lets the attention be chosen. No window sees another, and
nothing is padded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from lclm_rag.errors import CheckpointError

__all__ = ["PackedEncoder"]

_NAME = "lclm_packed"


class PackedEncoder:
    """An encoder that reads windows one after another, as [positions], without padding.

    On CUDA in half precision it uses the flash-attention kernel for sequences of different lengths that torch
    ships. Elsewhere it uses torch's scaled_dot_product_attention, window by window. Everything that is not
    attention (nine tenths of the work at the published shape) runs over all positions at once in both cases.

    Args:
        model: A transformers model; its attention is replaced.
        longest: Positions of the longest window.
        compile: Whether to compile the model's layers with torch.compile.

    Raises:
        CheckpointError: When the model does not let windows be packed.
    """

    def __init__(self, model: Any, longest: int, *, compile: bool = False) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(_NAME, _attention)
        self.model = model
        self.longest = longest
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        half = self.dtype in (torch.bfloat16, torch.float16)
        on_gpu = self.device.type == "cuda"
        # The kernel needs Ampere or newer.
        self._fused = on_gpu and half and torch.cuda.get_device_capability(self.device) >= (8, 0)
        self._check()
        if compile:
            # Layer by layer: all layers are alike, so the code is compiled once and not once per layer.
            for part in getattr(model, "layers", [model]):
                part.compile(dynamic=True)

    @torch.inference_mode()
    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        """Encode packed windows.

        Args:
            token_ids: int64 [positions], on the encoder's device.
            positions: int64 [positions], on the encoder's device: each position's place in its window.
            lengths: How many positions each window has.

        Returns:
            The last hidden states, [positions, width].
        """
        # As a tensor, because torch.compile would compile again for each new list of numbers.
        windows: dict[str, Any] = {"window_lengths": torch.tensor(lengths)}
        if self._fused:
            ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).pin_memory()
            windows = {
                "cu_seq_lens_q": ends.to(self.device, non_blocking=True),
                "max_length_q": self.longest,
            }
        hidden: torch.Tensor = self.model(
            input_ids=token_ids[None], position_ids=positions[None], use_cache=False, **windows
        ).last_hidden_state
        return hidden[0]

    @torch.inference_mode()
    def _check(self) -> None:
        """Check that two packed windows give what each gives alone with the model's own attention.

        Whatever else an architecture adds to attention (soft caps, sinks, states that run on) would silently
        make wrong latents.
        """
        model, lengths = self.model, [7, 5]
        ids = torch.arange(1, 13, device=self.device) % model.config.vocab_size
        model.set_attn_implementation("eager")  # The implementation that leaves nothing out.
        alone = [
            model(input_ids=part[None], use_cache=False).last_hidden_state[0]
            for part in ids.split(lengths)
        ]
        try:
            model.set_attn_implementation(_NAME)
            positions = torch.cat([torch.arange(n, device=self.device) for n in lengths])
            packed = self(ids, positions, lengths)
        except (ValueError, TypeError, KeyError) as error:
            raise self._refusal() from error
        expected = torch.cat(alone).float()
        # Rounding alone is below 1e-5 in float32, and around 1% in bfloat16.
        allowed = 1e-3 if self.dtype == torch.float32 else 0.05
        if not (packed.float() - expected).norm() <= allowed * expected.norm():
            raise self._refusal()

    def _refusal(self) -> CheckpointError:
        return CheckpointError(
            f"The encoder's architecture, {type(self.model).__name__}, cannot read windows one behind the "
            "other; use one with plain causal attention, such as Qwen3, Llama or Mistral."
        )


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    window_lengths: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Packed attention, with the signature that transformers calls.

    Query, key and value are [1, heads, positions, head_dim]; key and value have fewer heads if these are
    grouped. The result is [1, positions, heads, head_dim].
    """
    if cu_seq_lens_q is not None:
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
        return _flash(q, k, v, scaling, sliding_window, cu_seq_lens_q, max_length_q)[None], None
    if window_lengths is None:
        raise ValueError("packed attention needs to know where the windows end")
    out = _window_by_window(query, key, value, scaling, sliding_window, window_lengths)
    return out.transpose(1, 2), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # It reads the tensor's values.
def _window_by_window(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    lengths: torch.Tensor,
) -> torch.Tensor:
    sizes = lengths.tolist()
    parts = [each.split(sizes, 2) for each in (query, key, value)]
    windows = [
        _one_window(q, k, v, scaling, sliding_window) for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(windows, 2)


def _one_window(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Causal attention in one window; [1, heads, positions, head_dim] → the same shape."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    return scaled_dot_product_attention(
        query, key, value, seen.triu(1 - sliding_window), scale=scaling, enable_gqa=True
    )


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    ends: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """Flash attention; [positions, heads, head_dim] → the same. ends: int32 [windows + 1], from 0."""
    # The kernel itself is called: `torch.nn.attention.varlen`, which wraps it, has a different signature in
    # each of torch 2.10, 2.11 and 2.12, and does not exist in 2.9. The kernel takes grouped heads directly.
    remaining = None if sliding_window is None else sliding_window - 1
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        ends,
        ends,
        longest,
        longest,
        0.0,  # dropout
        True,  # causal
        False,  # no mask for debugging
        scale=scaling,
        window_size_left=remaining,
        window_size_right=None if remaining is None else 0,
    )[0]
    return out
