"""Sizes of encoders and decoders, and what follows: FLOPs, bytes of weights and of KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lclm_rag.checkpoint import Checkpoint, ModelConfig
from lclm_rag.errors import CheckpointError

__all__ = ["PUBLISHED", "PUBLISHED_DECODER", "DecoderShape", "LclmShape", "TransformerShape"]


@dataclass(frozen=True)
class TransformerShape:
    """The sizes that determine the FLOPs of an encoder or a decoder.

    They describe a transformer with grouped heads and a gated MLP (Qwen, Llama, Mistral).

    Attributes:
        num_hidden_layers: As in transformers' config.json.
        hidden_size: As in transformers' config.json.
        num_attention_heads: As in transformers' config.json.
        num_key_value_heads: As in transformers' config.json.
        head_dim: As in transformers' config.json.
        intermediate_size: As in transformers' config.json.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any], part: str = "encoder") -> TransformerShape:
        """Read the sizes from a config.

        Args:
            config: The config.json of a checkpoint's encoder or decoder.
            part: What to call it in an error: "encoder" or "decoder".

        Returns:
            The sizes.

        Raises:
            CheckpointError: When the config lacks a size.
        """
        try:
            layers, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
            heads = int(config["num_attention_heads"])
            kv_heads = int(config.get("num_key_value_heads") or heads)
            head_dim = int(config.get("head_dim") or width // heads)
            return cls(layers, width, heads, kv_heads, head_dim, int(config["intermediate_size"]))
        except KeyError as error:
            raise CheckpointError(
                f"The {part}'s config.json has no {error.args[0]}; only {part}s shaped like Qwen or "
                "Llama can be estimated."
            ) from error

    @property
    def matrix_parameters(self) -> int:
        """Parameters that each token is multiplied with: no embeddings, no norms."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        rows = 2 * queries + 2 * keys + 3 * self.intermediate_size
        return self.num_hidden_layers * self.hidden_size * rows

    def flops(self, tokens: int, pairs: int) -> int:
        """FLOPs of one forward pass, without the output layer.

        A token costs 2 FLOPs per matrix parameter (multiply and add). A pair of query and key that attention
        looks at costs, in each layer and head, 2 * head_dim for the score and 2 * head_dim for the weighted
        sum. Norms, rotations and the softmax are left out: below 1% in the published models.

        Args:
            tokens: Tokens in the pass.
            pairs: Pairs of query and key that attention looks at.

        Returns:
            The number of FLOPs.
        """
        heads = self.num_hidden_layers * self.num_attention_heads
        return 2 * self.matrix_parameters * tokens + 4 * heads * self.head_dim * pairs


@dataclass(frozen=True)
class DecoderShape:
    """The sizes that determine what a prompt costs the decoder.

    Attributes:
        transformer: The sizes of its layers.
        vocabulary: Rows of its output layer.
        context_length: Most positions, prompt and answer together.
    """

    transformer: TransformerShape
    vocabulary: int
    context_length: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> DecoderShape:
        """Read the sizes of a checkpoint's decoder.

        Args:
            checkpoint: The checkpoint.

        Returns:
            The sizes.

        Raises:
            CheckpointError: When the decoder's config.json lacks a size.
        """
        config = checkpoint.decoder_config
        transformer = TransformerShape.of(config, "decoder")
        return cls(transformer, int(config["vocab_size"]), checkpoint.context_length)

    @property
    def output_flops(self) -> int:
        """FLOPs of the output layer for one position; a prompt needs it only at its end."""
        return 2 * self.transformer.hidden_size * self.vocabulary

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in bfloat16, without an embedding table that is not also the output layer."""
        output = self.transformer.hidden_size * self.vocabulary
        return 2 * (self.transformer.matrix_parameters + output)

    @property
    def kv_bytes(self) -> int:
        """KV cache of one position, in bfloat16: a key and a value for each layer and KV head."""
        heads = self.transformer.num_hidden_layers * self.transformer.num_key_value_heads
        return heads * 2 * self.transformer.head_dim * 2


@dataclass(frozen=True)
class LclmShape:
    """The sizes of one checkpoint.

    Attributes:
        name: The checkpoint's name.
        config: Its `model_config.json`.
        encoder: The sizes of its encoder.
        encoder_width: Width of a latent before the adapter.
        adapter_width: Width between the adapter's two linear layers.
        decoder_width: Width of a latent after the adapter.
        adapter_attention: The sizes of the adapter's attention layers; None if it has none.
    """

    name: str
    config: ModelConfig
    encoder: TransformerShape
    encoder_width: int
    adapter_width: int
    decoder_width: int
    adapter_attention: TransformerShape | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LclmShape:
        """Read the sizes of a checkpoint.

        Args:
            checkpoint: The checkpoint.

        Returns:
            The sizes.

        Raises:
            CheckpointError: When the encoder's config.json lacks a size.
        """
        attention = checkpoint.adapter_shape["attention_config"]
        layers = {"num_hidden_layers": checkpoint.config.num_adapter_layers}
        return cls(
            checkpoint.name,
            checkpoint.config,
            TransformerShape.of(checkpoint.encoder_config),
            checkpoint.encoder_width,
            checkpoint.adapter_width,
            checkpoint.decoder_width,
            TransformerShape.of(attention | layers) if attention else None,
        )

    def adapter_flops(self, latents: int, pairs: int) -> int:
        """FLOPs that the adapter takes: two matrices, and its attention layers if it has any.

        Args:
            latents: The number of latents.
            pairs: Pairs of latents of the same passage.

        Returns:
            The number of FLOPs.
        """
        attention = self.adapter_attention
        flops = 2 * self.adapter_width * (self.encoder_width + self.decoder_width) * latents
        return flops if attention is None else flops + attention.flops(latents, pairs)


PUBLISHED = tuple(
    LclmShape(
        f"latent-context/0.6b-4b-LCLM-{ratio}x",
        ModelConfig(ratio, 1024, "mean", "causal", 0, "mlp"),
        TransformerShape(28, 1024, 16, 8, 128, 3072),
        encoder_width=1024,
        adapter_width=2560,
        decoder_width=2560,
    )
    for ratio in (4, 8, 16)
)
"""The published checkpoints, which differ only in the compression ratio.

Sizes: config.json of Qwen/Qwen3-Embedding-0.6B; windows, pooling and adapter: arXiv 2606.09659.
"""

PUBLISHED_DECODER = DecoderShape(TransformerShape(36, 2560, 32, 8, 128, 9728), 151_936, 262_144)
"""The decoder of all three. Sizes: config.json of Qwen/Qwen3-4B-Instruct-2507."""
