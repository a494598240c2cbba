"""Decoding: SoftPrompt → Completion."""

from lclm_rag.decoding.answers import aanswer_pieces, answer_pieces, answer_text, said
from lclm_rag.decoding.decoder import Completion, Decoder, Outcome, Sampling, all_answered
from lclm_rag.decoding.load import load_decoder

__all__ = [
    "Completion",
    "Decoder",
    "Outcome",
    "Sampling",
    "aanswer_pieces",
    "all_answered",
    "answer_pieces",
    "answer_text",
    "load_decoder",
    "said",
]
