"""Answer prompts that contain `<|memory_start|>text<|memory_end|>` themselves, without store or retrieval."""

from __future__ import annotations

from collections.abc import Sequence

from lclm_rag.checkpoint import Space
from lclm_rag.compression import Compressor
from lclm_rag.decoding import Decoder, Outcome, Sampling
from lclm_rag.prompting import PromptTemplate, SoftPrompt
from lclm_rag.prompting.markup import parse_markup

__all__ = ["Prompt", "generate", "markup_prompts"]

Prompt = str | Sequence[dict[str, str]]
"""One user message, or a list of chat messages ({"role", "content"})."""


def markup_prompts(
    prompts: Sequence[Prompt], compressor: Compressor, space: Space = "decoder"
) -> list[SoftPrompt]:
    """Render prompts by the decoder's chat template and put latents where their memory regions are.

    Args:
        prompts: The prompts, with the memory markup.
        compressor: Compresses the memory regions.
        space: The space of the latents; "encoder" leaves the adapter to the decoder.

    Returns:
        A soft prompt for each prompt.

    Raises:
        ValueError: When a prompt's markup is wrong; the message gives the prompt's number, from 1.
    """
    checkpoint = compressor.checkpoint
    template = PromptTemplate.of(checkpoint)
    parsed = []
    for number, prompt in enumerate(prompts, start=1):
        messages = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        )
        rendered = checkpoint.chat_tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        try:
            parsed.append(parse_markup(str(rendered), checkpoint, template))
        except ValueError as error:
            raise ValueError(f"Prompt {number}: {error}") from error
    memories = [ids for prompt in parsed for ids in prompt.memories]
    latents = iter(compressor.compress_token_ids(memories, space) if memories else [])
    return [prompt.with_latents([next(latents) for _ in prompt.spans], space) for prompt in parsed]


def generate(
    prompts: Sequence[Prompt], compressor: Compressor, decoder: Decoder, sampling: Sampling
) -> list[Outcome]:
    """Complete prompts that contain memory markup.

    Args:
        prompts: The prompts, with the memory markup.
        compressor: Compresses the memory regions.
        decoder: Completes the prompts.
        sampling: How tokens are chosen.

    Returns:
        The outcome of each prompt, in their order, as from `Decoder.complete`.

    Raises:
        ValueError: As for `markup_prompts`.
        DecoderError: When the decoder is closed.
    """
    return decoder.complete(markup_prompts(prompts, compressor, decoder.space), sampling)
