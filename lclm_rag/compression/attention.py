"""Attention inside each window of a packed batch, causal or over the whole window.

It works with any model for which transformers lets the attention be chosen. No window sees another, and
nothing is padded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from lclm_rag.compression.norms import fuse_norms
from lclm_rag.errors import CheckpointError
from lclm_rag.printable import first_line
from lclm_rag.torch_setup import is_out_of_memory

__all__ = ["PACKED", "PackedEncoder", "Seen", "packing", "register"]

_log = logging.getLogger(__name__)

_COMPILED_AFTER = 40_000_000
"""Positions after which compiling pays on a GPU: it takes about as long as it saves on so many.

An H100 reads them in two minutes.
"""

PACKED = "lclm_packed"
"""The name under which transformers knows the packed attention, once it is registered."""


@dataclass(frozen=True)
class Seen:
    """What windows see that begin alike, and share their beginning.

    Attributes:
        places: int64 [seen]: the places in the row that each window sees, window after window; the last ones
            are its own.
        lengths: How many places each window sees.
    """

    places: torch.Tensor
    lengths: Sequence[int]


def register() -> None:
    """Make the packed attention known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, _attention)


def packing(
    lengths: Sequence[int],
    longest: int,
    device: torch.device,
    dtype: torch.dtype,
    config: Any,
    *,
    causal: bool,
    seen: Seen | None = None,
) -> dict[str, Any]:
    """Say how a row is packed: the arguments that a model of transformers hands on to the packed attention.

    Args:
        lengths: How many positions each window has.
        longest: The most positions that a window can have.
        device: Where the model is.
        dtype: The dtype of its weights.
        config: Its config, for the shape of its heads.
        causal: Whether a position sees only those before it.
        seen: What each window sees; None if each sees itself.

    Returns:
        The arguments.
    """
    shared: dict[str, Any] = {}
    if seen is not None:
        shared = {"seen": seen.places.to(device), "max_length_k": max(seen.lengths)}
    if _has_kernel(device, dtype, config):
        if seen is not None:
            shared["cu_seq_lens_k"] = _ends(seen.lengths, device)
        ends = _ends(lengths, device)
        return {"cu_seq_lens_q": ends, "max_length_q": longest, "causal": causal, **shared}
    if seen is not None:
        shared["seen_lengths"] = torch.tensor(seen.lengths)
    # As a tensor, because torch.compile would compile again for each new list of numbers.
    return {
        "window_lengths": torch.tensor(lengths),
        "max_length_q": longest,
        "causal": causal,
        **shared,
    }


def _ends(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).pin_memory()
    return ends.to(device, non_blocking=True)


def _has_kernel(device: torch.device, dtype: torch.dtype, config: Any) -> bool:
    """Whether torch's flash-attention kernel runs there: in half precision, on Ampere or newer."""
    half = dtype in (torch.bfloat16, torch.float16)
    if not half or device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    grouped = getattr(config, "num_key_value_heads", None) or heads
    return _kernel_works(device, dtype, heads, int(grouped), int(width))


@cache
def _kernel_works(
    device: torch.device, dtype: torch.dtype, heads: int, grouped: int, width: int
) -> bool:
    """Whether the kernel gives what attention window by window gives; if it does not, that is said once.

    Not every build of torch has it, and not every width of a head is in it.
    """
    lengths = [7, 1, 5]
    random = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(1, n, sum(lengths), width, generator=random).to(dtype)
        for n in (heads, grouped, grouped)
    ]
    own = torch.tensor(lengths)
    query, key, value = (row[0].transpose(0, 1).to(device) for row in rows)
    ends = torch.tensor([0, 7, 8, 13], dtype=torch.int32).to(device)
    reason = ""
    for causal in (True, False):
        q, k, v = (row.float() for row in rows)
        expected = _window_by_window(q, k, v, None, None, (own, own), causal)[0].transpose(0, 1)
        try:
            found = _flash(query, key, value, None, None, (ends, ends), (7, 7), causal)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            break
        # Rounding is below 1%.
        if not (found.float().cpu() - expected).norm() <= 0.02 * expected.norm():
            reason = "what it computes is wrong"
    if not reason:
        return True
    _log.warning(
        "torch's flash attention does not work on %s (%s): windows are read one by one, which is slower.",
        device,
        reason,
    )
    return False


class PackedEncoder:
    """An encoder that reads windows one after another, as [positions], without padding.

    On CUDA in half precision it uses the flash-attention kernel for sequences of different lengths that torch
    ships. Elsewhere it uses torch's scaled_dot_product_attention, window by window. Everything that is not
    attention (nine tenths of the work at the published shape) runs over all positions at once in both cases.

    Args:
        model: A transformers model; its attention is replaced.
        longest: Positions of the longest window.
        causal: Whether a position sees only those before it; False: all of its window.
        compile: Whether to compile the model's layers with torch.compile. None: on a GPU, after so many
            positions that it pays.

    Raises:
        CheckpointError: When the model does not let windows be packed.
    """

    def __init__(
        self, model: Any, longest: int, *, causal: bool = True, compile: bool | None = False
    ) -> None:
        register()
        self.model = model
        self.longest = longest
        self.causal = causal
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._check()
        fuse_norms(model)
        later = compile is None and self.device.type == "cuda"
        self._until_compiled = _COMPILED_AFTER if later else None
        self._tries_compiled = False
        if compile:
            self._compile()

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
        windows = packing(
            lengths, self.longest, self.device, self.dtype, self.model.config, causal=self.causal
        )
        arguments = {"position_ids": positions[None], **windows}
        self._compile_if_it_pays(len(token_ids))
        if not self._tries_compiled:
            return _hidden(self.model, token_ids, **arguments)
        try:
            hidden = _hidden(self.model, token_ids, **arguments)
        except Exception as error:  # torch's compilers raise many types.
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            _log.warning("The encoder cannot be compiled here (%s): it goes on without.", reason)
            for part in self._parts:
                part._compiled_call_impl = None
            hidden = _hidden(self.model, token_ids, **arguments)
        self._tries_compiled = False
        return hidden

    @property
    def _parts(self) -> Iterable[Any]:
        """What is compiled: layer by layer, because all are alike and are compiled once for all."""
        parts: Iterable[Any] = getattr(self.model, "layers", [self.model])
        return parts

    def _compile(self) -> None:
        for part in self._parts:
            part.compile(dynamic=True)

    def _compile_if_it_pays(self, positions: int) -> None:
        if self._until_compiled is None:
            return
        self._until_compiled -= positions
        if self._until_compiled <= 0:
            _log.info(
                "The encoder is being compiled, which takes half a minute, as there is much to read."
            )
            self._until_compiled = None
            self._tries_compiled = True
            self._compile()

    @torch.inference_mode()
    def _check(self) -> None:
        """Check that two packed windows give what each gives alone with the model's own attention.

        Whatever else an architecture adds to attention (soft caps, sinks, states that run on) would silently
        make wrong latents. In float32 such a thing shows, as rounding alone is below 1e-5; in half precision
        rounding may be above 5%, if the weights of norms are uneven. The kernel is checked by itself.
        """
        lengths = [7, 5]
        model = _in_float32(self.model)
        ids = torch.arange(1, 13, device=model.device) % model.config.vocab_size
        model.set_attn_implementation("eager")  # The implementation that leaves nothing out.
        alone = [self._alone(model, part) for part in ids.split(lengths)]
        shorter = ids[: lengths[0] - 1]
        if not self.causal and torch.equal(alone[0][0], self._alone(model, shorter)[0]):
            raise CheckpointError(
                f"The encoder's architecture, {type(model).__name__}, keeps its causal mask; it cannot have "
                "encoder_mask_type bidirectional."
            )
        try:
            for each in {id(each): each for each in (model, self.model)}.values():
                each.set_attn_implementation(PACKED)
            positions = torch.cat([torch.arange(n, device=model.device) for n in lengths])
            windows = packing(
                lengths,
                self.longest,
                model.device,
                torch.float32,
                model.config,
                causal=self.causal,
            )
            packed = _hidden(model, ids, position_ids=positions[None], **windows)
        except (ValueError, TypeError, KeyError) as error:
            raise self._refusal() from error
        expected = torch.cat(alone)
        if not (packed - expected).norm() <= 1e-3 * expected.norm():
            raise self._refusal()

    def _alone(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """What a model gives for one window with its own attention, [positions, width]."""
        # With `attention_mask=None` transformers would make a causal one: nothing else turns that off for
        # all implementations. This one, added to the scores, hides nothing.
        shape = (1, 1, len(ids), len(ids))
        mask = None if self.causal else torch.zeros(shape, device=ids.device)
        return _hidden(model, ids, attention_mask=mask)

    def _refusal(self) -> CheckpointError:
        return CheckpointError(
            f"The encoder's architecture, {type(self.model).__name__}, cannot read windows one behind the "
            "other; use one with plain causal attention, such as Qwen3, Llama or Mistral."
        )


def _hidden(model: Any, token_ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """A model's last hidden states of one row of tokens, [positions, width]."""
    hidden: torch.Tensor = model(
        input_ids=token_ids[None], use_cache=False, **arguments
    ).last_hidden_state
    return hidden[0]


def _in_float32(model: Any) -> Any:
    """The model itself if it is in float32, else a copy that is, on the CPU: a GPU may lack room for it."""
    if model.dtype == torch.float32:
        return model
    # What `deepcopy` takes as copied already, by the id of the original.
    copies: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        copy = tensor.detach().to(
            "cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype
        )
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        copies[id(tensor)] = torch.nn.Parameter(copy, requires_grad=False) if is_parameter else copy
    return deepcopy(model, copies)


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
    seen: torch.Tensor | None = None,
    seen_lengths: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_k: int = 0,
    causal: bool = True,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Packed attention, with the signature that transformers calls.

    Query, key and value are [1, heads, positions, head_dim]; key and value have fewer heads if these are
    grouped. The result is [1, positions, heads, head_dim].
    """
    if sliding_window is not None and not causal:
        if sliding_window < max_length_q:
            # transformers' implementations differ by one position here.
            raise CheckpointError(
                f"The encoder sees at most {sliding_window} positions at once, fewer than a window's "
                f"{max_length_q}; that is not supported with encoder_mask_type bidirectional."
            )
        sliding_window = None
    if seen is not None:
        key, value = key.index_select(2, seen), value.index_select(2, seen)
    if cu_seq_lens_q is not None:
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
        ends = (cu_seq_lens_q, cu_seq_lens_q if cu_seq_lens_k is None else cu_seq_lens_k)
        longest = (max_length_q, max_length_k or max_length_q)
        out = _flash(q, k, v, scaling, sliding_window, ends, longest, causal)
        return out[None], None
    if window_lengths is None:
        raise ValueError("packed attention needs to know where the windows end")
    if seen_lengths is None:
        seen_lengths = window_lengths
    lengths = (window_lengths, seen_lengths)
    out = _window_by_window(query, key, value, scaling, sliding_window, lengths, causal)
    return out.transpose(1, 2), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # It reads the tensor's values.
def _window_by_window(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    lengths: tuple[torch.Tensor, torch.Tensor],
    causal: bool,
) -> torch.Tensor:
    own, seen = (each.tolist() for each in lengths)
    parts = [query.split(own, 2), key.split(seen, 2), value.split(seen, 2)]
    windows = [
        _one_window(q, k, v, scaling, sliding_window, causal)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(windows, 2)


def _one_window(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Attention in one window, whose own positions are the last that it sees.

    [1, heads, positions, head_dim] → the same shape.
    """
    own, length = query.shape[2], key.shape[2]
    if own == length and (sliding_window is None or length <= sliding_window):
        return scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scaling, enable_gqa=True
        )
    before = length - own
    seen = torch.ones(own, length, dtype=torch.bool, device=query.device).tril(before)
    if sliding_window is not None:
        seen = seen.triu(before + 1 - sliding_window)
    return scaled_dot_product_attention(query, key, value, seen, scale=scaling, enable_gqa=True)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    ends: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    causal: bool,
) -> torch.Tensor:
    """Flash attention; [positions, heads, head_dim] → the same.

    Of the windows, and of what they see: ends, int32 [windows + 1], from 0; and the most positions. Where a
    window sees more than itself, the kernel takes its own positions as the last ones.
    """
    # The kernel itself is called: `torch.nn.attention.varlen`, which wraps it, has a different signature in
    # each of torch 2.10, 2.11 and 2.12, and does not exist in 2.9. The kernel takes grouped heads directly.
    remaining = None if sliding_window is None else sliding_window - 1
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        *ends,
        *longest,
        0.0,  # dropout
        causal,
        False,  # no mask for debugging
        scale=scaling,
        window_size_left=remaining,
        window_size_right=None if remaining is None else 0,
    )[0]
    return out
