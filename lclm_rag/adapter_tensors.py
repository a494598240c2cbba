"""The tensors of an adapter's file: their names and shapes, from the settings of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lclm_rag.errors import CheckpointError

__all__ = ["attention_config", "attention_tensors", "mlp_tensors"]

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")

_OTHERS = (
    "attention_bias",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
)


def attention_config(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Take from a model's config.json what its attention layers in an adapter are made from.

    Args:
        config: The config.json of the encoder or the decoder.
        part: What to call it in an error: "encoder" or "decoder".

    Returns:
        The settings that decide a layer's shape and what it computes.

    Raises:
        CheckpointError: When the model is no Qwen3, has sliding windows, or its config lacks a size.
    """
    kind = config.get("model_type")
    if kind != "qwen3" or config.get("use_sliding_window"):
        what = f"a model of type {kind}" if kind != "qwen3" else "a Qwen3 with sliding windows"
        raise CheckpointError(
            f"The {part} is {what}; attention layers in the adapter are supported with Qwen3, without "
            "sliding windows."
        )
    for name in _SIZES:
        if name not in config:
            raise CheckpointError(f"The {part}'s config.json has no {name}.")
    # 128 is what transformers takes if a Qwen3's config says nothing.
    return {"head_dim": 128} | {n: config[n] for n in (*_SIZES, *_OTHERS) if n in config}


def mlp_tensors(encoder: int, hidden: int, decoder: int) -> dict[str, list[int]]:
    """The shapes of the MLP's tensors.

    Args:
        encoder: Width of a latent in encoder space.
        hidden: Width between the two linear layers.
        decoder: Width of a latent in decoder space.

    Returns:
        Name → shape.
    """
    return {
        "norm.weight": [encoder],
        "fc1.weight": [hidden, encoder],
        "fc1.bias": [hidden],
        "fc2.weight": [decoder, hidden],
        "fc2.bias": [decoder],
    }


def attention_tensors(config: Mapping[str, Any], layers: int) -> dict[str, list[int]]:
    """The shapes of the attention layers' tensors.

    Args:
        config: What `attention_config` returns.
        layers: The number of layers.

    Returns:
        Name → shape.
    """
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    matrices = {
        "self_attn.q_proj": [queries, width],
        "self_attn.k_proj": [keys, width],
        "self_attn.v_proj": [keys, width],
        "self_attn.o_proj": [width, queries],
        "mlp.gate_proj": [inner, width],
        "mlp.up_proj": [inner, width],
        "mlp.down_proj": [width, inner],
    }
    one = {f"{name}.weight": shape for name, shape in matrices.items()}
    one |= {f"self_attn.{name}_norm.weight": [head] for name in "qk"}
    one |= {f"{name}_layernorm.weight": [width] for name in ("input", "post_attention")}
    if config.get("attention_bias"):
        one |= {
            f"{name}.bias": [shape[0]]
            for name, shape in matrices.items()
            if name.startswith("self_attn")
        }
    return {
        f"attention_layers.{i}.decoder_layer.{name}": shape
        for i in range(layers)
        for name, shape in one.items()
    }
