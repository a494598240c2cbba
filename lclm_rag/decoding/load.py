"""Load a decoder by the name that `decoder=` and `--decoder` take."""

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
    """Load the decoder of a checkpoint.

    Args:
        name: "transformers", "vllm" (an engine started from this process), or a vLLM server's URL.
        checkpoint: The checkpoint.
        device: See `Compressor.from_pretrained`; ignored for a server.
        dtype: See `Compressor.from_pretrained`; ignored for a server.
        **options: For "vllm", options of `VLLMDecoder.from_pretrained` (any engine argument of vLLM); for a
            server, options of `ServerDecoder` (`model`, `api_key`, ...). "transformers" takes none.

    Returns:
        The decoder, ready to use.

    Raises:
        ValueError: When the name or an option is unknown.
        DecoderError: When the engine does not start, or no server answers.
        ImportError: When vLLM or the server's client is not installed.
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
