"""Decoding: SoftPrompt → Completion."""

from lclm_rag.decoding.decoder import (
    Completion,
    Decoder,
    Outcome,
    Sampling,
    all_answered,
    astripped,
    stripped,
)
from lclm_rag.decoding.load import load_decoder

__all__ = [
    "Completion",
    "Decoder",
    "Outcome",
    "Sampling",
    "all_answered",
    "astripped",
    "load_decoder",
    "stripped",
]
