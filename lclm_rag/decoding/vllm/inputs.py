"""SoftPrompt → what vLLM's engine takes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from lclm_rag.decoding.vllm.plugin import MODALITY
from lclm_rag.errors import PromptError
from lclm_rag.prompting.soft_prompt import SoftPrompt

__all__ = ["identifier", "item_prompt", "mixed_prompt", "token_prompt"]


def token_prompt(prompt: SoftPrompt) -> dict[str, Any]:
    """A prompt without latents: plain tokens."""
    return {"prompt_token_ids": prompt.token_ids}


def mixed_prompt(prompt: SoftPrompt, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Token ids and embeddings in one, told apart by a mask; latents in decoder space.

    `prompt_embeds` is [positions, width]. Rows for text stay zero: vLLM hashes them into the cache key,
    and without the mask it would take them for embeddings.
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
    }


def item_prompt(
    prompt: SoftPrompt, *, placeholder: int, most_latents: int, fingerprint: str
) -> dict[str, Any]:
    """Token ids with one placeholder an item, and the items: the `latent` modality.

    A span of more than `most_latents` becomes several items. Latents go in as they are stored.
    Raises PromptError where a placeholder stands outside the spans: items are laid in one by one.
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
    }


def _text(prompt: SoftPrompt, start: int, end: int, placeholder: int) -> list[int]:
    ids = prompt.token_ids[start:end]
    if placeholder in ids:
        raise PromptError(
            f"The prompt has the placeholder token at position {start + ids.index(placeholder)}, outside "
            "its memory spans."
        )
    return ids


def identifier(latents: torch.Tensor, space: str, fingerprint: str) -> str:
    """What vLLM knows an item by: a hash of the latents' content, dtype and shape, their space, and the
    checkpoint's fingerprint. Equal latents have it whatever passage they come from."""
    digest = hashlib.sha256(f"{fingerprint} {space} {latents.dtype} {latents.shape}".encode())
    digest.update(latents.view(torch.uint8).numpy().data)
    return digest.hexdigest()
