"""SoftPrompt → Completion."""

from lclm_rag.decoding.decoder import Completion, Decoder, Sampling, stripped

__all__ = ["Completion", "Decoder", "Sampling", "stripped"]
