"""The plugin that teaches vLLM the `latent` modality.

vLLM loads it in each of its processes, by the entry point `vllm.general_plugins` in pyproject.toml. Only
names are registered here; the models are imported where one of them is run.
"""

from __future__ import annotations

__all__ = ["LATENT_ARCHITECTURES", "MODALITY", "register"]

MODALITY = "latent"
"""The modality's name in `multi_modal_data` and `multi_modal_uuids`."""

LATENT_ARCHITECTURES = {
    "Qwen3ForCausalLM": "LatentQwen3ForCausalLM",
    "LlamaForCausalLM": "LatentLlamaForCausalLM",
}
"""Decoder architecture (as in config.json) → the class in `latent_models.py` that takes latents.

The place for the next one: name it here and write its class there."""


def register() -> None:
    """Tell vLLM's model registry where the classes are."""
    from vllm import ModelRegistry

    for name in LATENT_ARCHITECTURES.values():
        ModelRegistry.register_model(name, f"lclm_rag.decoding.vllm.latent_models:{name}")
