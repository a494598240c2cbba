"""Decoding with vLLM, in process; and the plugin that gives vLLM a `latent` modality."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lclm_rag.decoding.vllm.decoder import VLLMDecoder

__all__ = ["VLLMDecoder"]


def __getattr__(name: str) -> Any:
    # vLLM imports this package in all of its processes for the plugin alone.
    if name != "VLLMDecoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lclm_rag.decoding.vllm.decoder import VLLMDecoder

    return VLLMDecoder
