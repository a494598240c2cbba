"""A decoder by its name: what `decoder=` and `--decoder` take."""

from __future__ import annotations

from inspect import signature
from typing import Any

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding.decoder import Decoder

__all__ = ["DECODERS", "load_decoder"]

DECODERS = "transformers, vllm, or the URL of a vLLM server such as http://localhost:8000/v1"


def load_decoder(
    name: str, checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto", **options: Any
) -> Decoder:
    """Load what decodes for a checkpoint.

    name: "transformers", "vllm" (an engine in this process), or a vLLM server's URL. options: those of
    `VLLMDecoder.from_pretrained` (any engine argument of vLLM) or `ServerDecoder` (model, api_key, ...).
    Raises ValueError for an unknown name or option.
    """
    if name == "transformers":
        if options:
            raise ValueError(f"The transformers decoder has no option {next(iter(options))!r}.")
        from lclm_rag.decoding.transformers import TransformersDecoder

        return TransformersDecoder.from_pretrained(checkpoint, device, dtype)
    if name == "vllm":
        from lclm_rag.decoding.vllm import VLLMDecoder

        return VLLMDecoder.from_pretrained(checkpoint, device, dtype, **options)
    if name.startswith(("http://", "https://")):
        from lclm_rag.decoding.server import ServerDecoder

        known = list(signature(ServerDecoder).parameters)[2:]
        for option in options:
            if option not in known:
                raise ValueError(
                    f"A server's decoder has no option {option!r}; it has {', '.join(known)}."
                )
        return ServerDecoder(name, checkpoint, **options)
    raise ValueError(f"Unknown decoder {name!r}; use {DECODERS}.")
