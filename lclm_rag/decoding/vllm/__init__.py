"""Decoding with vLLM's engine, and the plugin that gives vLLM a `latent` modality."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lclm_rag.decoding.vllm.decoder import VLLMDecoder

__all__ = ["VLLMDecoder"]


def __getattr__(name: str) -> Any:
    # All of vLLM's processes import this package, only for the plugin; they must not import the decoder.
    if name != "VLLMDecoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lclm_rag.decoding.vllm.decoder import VLLMDecoder

    return VLLMDecoder
