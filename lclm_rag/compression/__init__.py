"""Text → latents: windows, encoder, pooling, adapter."""

from lclm_rag.compression.compressor import Compressor

__all__ = ["Compressor"]
