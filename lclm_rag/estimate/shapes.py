"""Sizes of encoders and decoders, and what follows from them: FLOPs, bytes of weights and of KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lclm_rag.checkpoint import Checkpoint, ModelConfig, Space
from lclm_rag.errors import CheckpointError

__all__ = ["PUBLISHED", "PUBLISHED_DECODER", "DecoderShape", "LclmShape", "TransformerShape"]


@dataclass(frozen=True)
class TransformerShape:
    """What the FLOPs of an encoder or a decoder depend on: a transformer with grouped heads and a gated MLP
    (Qwen, Llama, Mistral). Names as in transformers' config.json."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any], part: str = "encoder") -> TransformerShape:
        """From the config.json of a checkpoint's part. CheckpointError where it lacks a size."""
        try:
            heads = int(config["num_attention_heads"])
            return cls(
                num_hidden_layers=int(config["num_hidden_layers"]),
                hidden_size=int(config["hidden_size"]),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                intermediate_size=int(config["intermediate_size"]),
            )
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
        attention = self.hidden_size * (2 * queries + 2 * keys)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * (attention + mlp)

    def flops(self, tokens: int, pairs: int) -> int:
        """FLOPs of one forward pass, without the output layer.

        A token costs 2 FLOPs for each matrix parameter (multiply and add); a pair of query and key that
        attention looks at, in each layer and head, 2 * head_dim for the score and 2 * head_dim for the
        weighted sum. Norms, rotations and the softmax are left out: below 1% in the published models.
        """
        heads = self.num_hidden_layers * self.num_attention_heads
        return 2 * self.matrix_parameters * tokens + 4 * heads * self.head_dim * pairs


@dataclass(frozen=True)
class DecoderShape:
    """What a prompt costs the decoder. vocabulary: rows of its output layer. context_length: positions that
    it takes at most, prompt and answer together."""

    transformer: TransformerShape
    vocabulary: int
    context_length: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> DecoderShape:
        """Raises CheckpointError where its config.json lacks a size."""
        return cls(
            transformer=TransformerShape.of(checkpoint.decoder_config, "decoder"),
            vocabulary=int(checkpoint.decoder_config["vocab_size"]),
            context_length=checkpoint.context_length,
        )

    @property
    def output_flops(self) -> int:
        """FLOPs of the output layer for one position: a prompt needs it at its end only."""
        return 2 * self.transformer.hidden_size * self.vocabulary

    @property
    def weight_bytes(self) -> int:
        """In bfloat16. An embedding table that is not also the output layer is left out."""
        output = self.transformer.hidden_size * self.vocabulary
        return 2 * (self.transformer.matrix_parameters + output)

    @property
    def kv_bytes(self) -> int:
        """KV cache of one position, in bfloat16: a key and a value for each layer and KV head."""
        heads = self.transformer.num_hidden_layers * self.transformer.num_key_value_heads
        return heads * 2 * self.transformer.head_dim * 2


@dataclass(frozen=True)
class LclmShape:
    """The sizes of one checkpoint. adapter_width: between the adapter's two layers."""

    name: str
    config: ModelConfig
    encoder: TransformerShape
    encoder_width: int
    adapter_width: int
    decoder_width: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LclmShape:
        return cls(
            name=checkpoint.name,
            config=checkpoint.config,
            encoder=TransformerShape.of(checkpoint.encoder_config),
            encoder_width=checkpoint.encoder_width,
            adapter_width=checkpoint.adapter_width,
            decoder_width=checkpoint.decoder_width,
        )

    def width(self, space: Space) -> int:
        """Numbers in a latent."""
        return self.encoder_width if space == "encoder" else self.decoder_width

    @property
    def adapter_flops(self) -> int:
        """FLOPs that the adapter takes for a latent: two matrices."""
        return 2 * self.adapter_width * (self.encoder_width + self.decoder_width)


def _published(ratio: int) -> LclmShape:
    # Sizes of Qwen/Qwen3-Embedding-0.6B and Qwen/Qwen3-4B-Instruct-2507 (config.json of each); windows,
    # pooling and adapter of arXiv 2606.09659.
    return LclmShape(
        name=f"latent-context/0.6b-4b-LCLM-{ratio}x",
        config=ModelConfig(
            compression_ratio=ratio,
            encoder_window_size=1024,
            pooling="mean",
            encoder_mask_type="causal",
            boundary_overlap=0,
            adapter_type="mlp",
        ),
        encoder=TransformerShape(
            num_hidden_layers=28,
            hidden_size=1024,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=3072,
        ),
        encoder_width=1024,
        adapter_width=2560,
        decoder_width=2560,
    )


PUBLISHED = tuple(_published(ratio) for ratio in (4, 8, 16))
"""The published checkpoints; their sizes differ in nothing but the ratio."""

PUBLISHED_DECODER = DecoderShape(
    transformer=TransformerShape(
        num_hidden_layers=36,
        hidden_size=2560,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=9728,
    ),
    vocabulary=151_936,
    context_length=262_144,
)
"""Of all three: config.json of Qwen/Qwen3-4B-Instruct-2507."""
