"""The weights of a start: embeddings of the memory tokens, the encoder's layers, the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lclm_rag.compression.adapter import Adapter
from lclm_rag.errors import CheckpointError

__all__ = [
    "embed_memory_tokens",
    "first_layers",
    "identity_adapter",
    "quiet_layers",
    "start_adapter",
    "usual_norm",
]

_NOISE = 0.1
"""What tells memory tokens apart, next to the usual norm of an embedding."""

_SHARE = 0.05
"""What a quiet projection adds, next to the token embeddings."""


@torch.no_grad()
def embed_memory_tokens(model: Any, ids: Sequence[int], added: Sequence[int]) -> None:
    """Give the memory tokens embeddings, in the decoder's input and in its head.

    Added tokens get the mean of all embeddings, plus small noise. Renamed ones keep theirs; only if two of
    them are alike, as tokens are that were never trained, small noise is added to them.

    Args:
        model: The decoder; its embeddings grow as needed.
        ids: The ids of the memory tokens.
        added: Those of them that were added.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    tables = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    for table in tables:
        known = table[: min(rows, *added)] if added else table
        noise = torch.randn(len(ids), table.shape[1])
        noise *= _NOISE * known.float().norm(dim=1).median() / table.shape[1] ** 0.5
        if added:
            table[list(ids)] = (known.float().mean(0) + noise).to(table.dtype)
        elif _alike(table[list(ids)]):
            table[list(ids)] += noise.to(table.dtype)


def _alike(rows: torch.Tensor) -> bool:
    """Whether two of these vectors are (nearly) the same."""
    rows = rows.float()
    apart = torch.pdist(rows).min()
    return bool(apart < _NOISE / 2 * rows.norm(dim=1).max())


@torch.no_grad()
def usual_norm(model: Any) -> float:
    """The median norm of a model's token embeddings, as they enter its first layer."""
    embeddings = model.get_input_embeddings()
    ids = torch.arange(embeddings.weight.shape[0])
    norms = torch.cat([embeddings(part).float().norm(dim=1) for part in ids.split(8192)])
    return float(norms.median())


def first_layers(model: Any, layers: int) -> Any:
    """Make an encoder of a decoder: its embeddings, first layers and final norm. The decoder is used up.

    Args:
        model: The decoder.
        layers: The number of layers.

    Returns:
        The encoder, of the decoder's architecture without a head.

    Raises:
        ValueError: When the decoder has fewer layers.
        CheckpointError: When its architecture has no list of layers.
    """
    base = model.base_model
    there = getattr(base, "layers", None)
    if base is model or not isinstance(there, nn.ModuleList):
        raise CheckpointError(
            f"{type(model).__name__} has no list of layers to make an encoder of; give an encoder, or a "
            "decoder such as Qwen3, Llama or Mistral."
        )
    if layers > len(there):
        raise ValueError(
            f"layers must be at most {len(there)}, as many as there are; not {layers}."
        )
    base.layers = there[:layers]
    base.config.num_hidden_layers = layers
    if getattr(base.config, "layer_types", None):
        base.config.layer_types = base.config.layer_types[:layers]
    return base


@torch.no_grad()
def quiet_layers(encoder: Any, vocabulary: int) -> None:
    """Scale down what an encoder's layers add, so that its hidden states are nearly the token embeddings.

    The output projections of each layer are scaled so that each adds at most a twentieth of the embeddings'
    norm, measured on random tokens at the place in a window where it adds most. The final norm's weight
    becomes 1.

    Args:
        encoder: The encoder.
        vocabulary: Tokens are drawn from those with ids below this.

    Raises:
        CheckpointError: When the hidden states are not the token embeddings then, as with architectures that
            have more norms.
    """
    ids = torch.randint(vocabulary, (16, 32))
    embeddings = encoder.get_input_embeddings()(ids).float()
    usual = embeddings.norm(dim=-1).mean(0)  # For each place in a window.

    def turn_down(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        share = (output.float().norm(dim=-1).mean(0) / usual).max()
        factor = _SHARE / max(float(share), _SHARE)
        for parameter in module.parameters():
            parameter *= factor
        return output * factor

    projections = [
        module
        for name, module in encoder.named_modules()
        if name.endswith(("o_proj", "down_proj")) and isinstance(module, nn.Linear)
    ]
    hooks = [module.register_forward_hook(turn_down) for module in projections]
    encoder(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    norm = getattr(encoder, "norm", None)
    if norm is not None:
        norm.weight.fill_(1)
    hidden = encoder(input_ids=ids, use_cache=False).last_hidden_state.float()
    alike = torch.cosine_similarity(hidden, embeddings, dim=-1).mean()
    if norm is None or not alike > 0.9:
        raise CheckpointError(
            f"{type(encoder).__name__} cannot be made to hand on its token embeddings, which identity=True "
            "needs; use an architecture such as Qwen3, Llama or Mistral, or identity=False."
        )


@torch.no_grad()
def start_adapter(adapter: Adapter, norm: float) -> None:
    """Initialise an adapter so that its latents have about the norm of token embeddings.

    The norm's weight is 1, biases are 0. fc1 is normal with variance 1 / its input's width, so that what the
    norm hands on keeps its size. fc2 is normal, and scaled so that random latents have the wanted norm after
    it. Attention layers begin as the identity: their output projections are 0, their other matrices normal
    with standard deviation 0.02.

    Args:
        adapter: The adapter.
        norm: The wanted norm.
    """
    for name, parameter in adapter.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0 if name.endswith("bias") else 1)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        elif name.startswith("attention_layers"):
            parameter.normal_(0, 0.02)
        else:
            parameter.normal_(0, parameter.shape[1] ** -0.5)
    inputs = adapter.norm(torch.randn(1024, adapter.fc1.in_features))
    latents = adapter.fc2(nn.functional.gelu(adapter.fc1(inputs)))
    adapter.fc2.weight *= norm / latents.norm(dim=1).mean()


@torch.no_grad()
def identity_adapter(width: int, ratio: int, norm: float) -> Adapter:
    """Make an adapter that is a linear map: a latent is the sum of its group's hidden states, each rotated.

    It is exact, because GELU(x) - GELU(-x) = x. The first of a group is not rotated, each other one by an
    orthogonal matrix of its own, so that the order of the tokens is kept.

    Args:
        width: Width of a hidden state, and of a latent.
        ratio: Hidden states in a group, which `concat` pooling puts side by side.
        norm: The norm that latents get.

    Returns:
        The adapter.
    """
    adapter = Adapter(ratio * width, 2 * width, width)
    one = torch.eye(width)
    rotations = [one] + [nn.init.orthogonal_(torch.empty(width, width)) for _ in range(ratio - 1)]
    # The adapter's norm makes of a group a vector of norm sqrt(ratio * width).
    map_ = torch.cat(rotations, 1) * (norm / (ratio * width) ** 0.5)
    adapter.norm.weight.fill_(1)
    adapter.fc1.weight.copy_(torch.cat([map_, -map_]))
    adapter.fc2.weight.copy_(torch.cat([one, -one], 1))
    adapter.fc1.bias.zero_()
    adapter.fc2.bias.zero_()
    return adapter
