"""SoftPrompt → the prompt dicts that vLLM's engine takes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from lclm_rag.decoding.vllm.plugin import MODALITY
from lclm_rag.errors import PromptError
from lclm_rag.prompting.soft_prompt import SoftPrompt

__all__ = ["identifier", "item_prompt", "mixed_prompt", "token_prompt"]


def token_prompt(prompt: SoftPrompt) -> dict[str, Any]:
    """The engine's prompt for a soft prompt without latents: plain token ids."""
    return {"prompt_token_ids": prompt.token_ids, **_salt(prompt)}


def mixed_prompt(prompt: SoftPrompt, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """The engine's prompt with both token ids and embeddings, and a mask that tells them apart.

    Args:
        prompt: The soft prompt; its latents must be in decoder space.
        width: The decoder's width.
        dtype: The dtype of the embeddings.

    Returns:
        `prompt_token_ids` and `prompt_is_token_ids`, of one entry for each position, and `prompt_embeds`
        [positions, width]. The rows of text stay zero: vLLM hashes them into the cache key, and without the
        mask it would take them for embeddings. The mask is not in the key (vllm #56655),
        but rows of text are always zero and those of latents never, so no two of our prompts share one.
    """
    embeds = torch.zeros(prompt.positions, width, dtype=dtype)
    is_token = [True] * prompt.positions
    for span, latents in zip(prompt.spans, prompt.latents, strict=True):
        end = span.start + span.length
        embeds[span.start : end] = latents
        is_token[span.start : end] = [False] * span.length
    return {
        "prompt_token_ids": prompt.token_ids,
        "prompt_embeds": embeds,
        "prompt_is_token_ids": is_token,
        **_salt(prompt),
    }


def item_prompt(
    prompt: SoftPrompt, *, placeholder: int, most_latents: int, fingerprint: str
) -> dict[str, Any]:
    """The engine's prompt with latents as items of the `latent` modality.

    Args:
        prompt: The soft prompt; its latents may be in either space, and are passed on unchanged.
        placeholder: The id of the token that stands for an item.
        most_latents: The most latents in one item; a longer span becomes several items.
        fingerprint: The checkpoint's fingerprint, which becomes part of the items' identifiers.

    Returns:
        `prompt_token_ids`, with one placeholder for each item, and the items with their identifiers.

    Raises:
        PromptError: When the text has a placeholder outside the spans. vLLM fills the placeholders with the
            items one by one, so that this one would take another's item.
    """
    token_ids: list[int] = []
    items: list[tuple[torch.Tensor, bool]] = []
    end = 0
    for span, latents in zip(prompt.spans, prompt.latents, strict=True):
        token_ids += _text(prompt, end, span.start, placeholder)
        for part in latents.split(most_latents):
            token_ids.append(placeholder)
            items.append((part.detach().cpu().contiguous(), prompt.space == "encoder"))
        end = span.start + span.length
    token_ids += _text(prompt, end, prompt.positions, placeholder)
    return {
        "prompt_token_ids": token_ids,
        "multi_modal_data": {MODALITY: items},
        "multi_modal_uuids": {
            MODALITY: [identifier(part, prompt.space, fingerprint) for part, _ in items]
        },
        **_salt(prompt),
    }


def _salt(prompt: SoftPrompt) -> dict[str, str]:
    return {"cache_salt": prompt.cache_salt} if prompt.cache_salt else {}


def _text(prompt: SoftPrompt, start: int, end: int, placeholder: int) -> list[int]:
    ids = prompt.token_ids[start:end]
    if placeholder in ids:
        raise PromptError(
            f"The prompt has the placeholder token at position {start + ids.index(placeholder)}, outside "
            "its memory spans."
        )
    return ids


def identifier(latents: torch.Tensor, space: str, fingerprint: str) -> str:
    """The identifier under which vLLM caches an item. Equal latents share it, even across passages.

    Args:
        latents: The item's latents [n, width], contiguous and on the CPU.
        space: The latents' space, "encoder" or "decoder".
        fingerprint: The checkpoint's fingerprint.

    Returns:
        A SHA-256 hash, in hex, of the latents' bytes, dtype and shape, the space and the fingerprint.
    """
    digest = hashlib.sha256(f"{fingerprint} {space} {latents.dtype} {latents.shape}".encode())
    digest.update(latents.view(torch.uint8).numpy().data)
    return digest.hexdigest()
