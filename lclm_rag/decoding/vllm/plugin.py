"""The plugin that teaches vLLM the `latent` modality.

vLLM loads it in each of its processes, through the entry point `vllm.general_plugins` in pyproject.toml. Only
names are registered here; a process imports the models when it runs one of them.
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

To support another architecture, add it here and write its class there.
"""


def register() -> None:
    """Register the classes, by name, in vLLM's model registry."""
    from vllm import ModelRegistry

    for name in LATENT_ARCHITECTURES.values():
        ModelRegistry.register_model(name, f"lclm_rag.decoding.vllm.latent_models:{name}")
