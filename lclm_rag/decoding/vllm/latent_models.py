"""Decoders that take passages' latents as items of a separate modality.

A prompt for these models has one placeholder token (`<|memory|>`) for each item, the items' latents in
`multi_modal_data["latent"]`, and their identifiers in `multi_modal_uuids["latent"]`. vLLM caches items by
identifier: it does not send an item to the engine again if the engine already holds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from lclm_rag.compression.adapter import Adapter
from lclm_rag.decoding.vllm.plugin import MODALITY

__all__ = ["LatentLlamaForCausalLM", "LatentQwen3ForCausalLM"]


# --- the model ----------------------------------------------------------------------------------


class LatentInputs(nn.Module, SupportsMultiModal):  # type: ignore[misc]
    """Adds the adapter, and latents as embeddings, to one of vLLM's decoders.

    The adapter runs here, in the engine, for encoder-space items; decoder-space items are used unchanged.
    `engine._latent_overrides` writes `hf_config.lclm`, which has the adapter's folder and its shape. An
    adapter with attention layers sees one item at a time: `VLLMDecoder` makes each of them a whole passage.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        settings = vllm_config.model_config.hf_config.lclm
        self.adapter = Adapter(**settings["adapter_shape"])
        self.secondary_weights = [
            DefaultModelLoader.Source(settings["adapter"], revision=None, prefix="adapter.")
        ]

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return None  # Prompts come as token ids, with their placeholders in place.

    def get_language_model(self) -> Any:
        return self.model

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """The embeddings of items, one tensor [n, width of the decoder] for each.

        Args:
            **kwargs: `latents`, one tensor [n, width] for each item, and `in_encoder_space`, one boolean for
                each item.

        Returns:
            The embeddings, in the order of the items.
        """
        weight = self.adapter.fc1.weight
        items = [latents.to(weight.device, weight.dtype) for latents in kwargs["latents"]]
        through = [bool(flag) for flag in kwargs["in_encoder_space"]]
        behind = [item for item, flag in zip(items, through, strict=True) if flag]
        if behind:
            # All items at once: one passage has too few latents to keep a GPU busy.
            counts = [len(item) for item in behind]
            projected = iter(self.adapter(torch.cat(behind), counts).split(counts))
            items = [
                next(projected) if flag else item for item, flag in zip(items, through, strict=True)
            ]
        return items

    # Without this the decoder's own method, which takes only token ids, would come first in the MRO.
    embed_input_ids = SupportsMultiModal.embed_input_ids


# --- how vLLM reads items -----------------------------------------------------------------------


class LatentInfo(BaseProcessingInfo):  # type: ignore[misc]
    def get_data_parser(self) -> MultiModalDataParser:
        return LatentParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        return {MODALITY: self.settings["item_latents"]}

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.get_hf_config().lclm
        return settings


class LatentParser(MultiModalDataParser):  # type: ignore[misc]
    def _get_subparsers(self) -> Mapping[str, Any]:
        return {MODALITY: LatentItems}


class LatentItems(ModalityDataItems[Sequence[Any], Any]):  # type: ignore[misc]
    """Items as (latents [n, width], in encoder space?); None for an item sent only as its identifier."""

    def __init__(self, data: Sequence[tuple[torch.Tensor, bool] | None]) -> None:
        super().__init__(data, MODALITY)

    def get_count(self) -> int:
        return len(self.data)

    def get(self, index: int) -> tuple[torch.Tensor, bool] | None:
        item: tuple[torch.Tensor, bool] | None = self.data[index]
        return item

    def get_processor_data(self) -> Mapping[str, object]:
        # vLLM would take a single None for "no items".
        return {"items": [item for item in self.data if item is not None]}

    def get_passthrough_data(self) -> Mapping[str, object]:
        return {}  # Data that is passed through would not be cached.


class LatentDummyInputs(BaseDummyInputsBuilder[LatentInfo]):  # type: ignore[misc]
    """The items with which vLLM measures memory: of the greatest length, in encoder space."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return str(self.info.settings["placeholder"]) * mm_counts.get(MODALITY, 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> dict[str, Any]:
        settings = self.info.settings
        latents = torch.ones(settings["item_latents"], settings["adapter_shape"]["encoder_width"])
        return {MODALITY: [(latents, True)] * mm_counts.get(MODALITY, 0)}


class LatentProcessor(BaseMultiModalProcessor[LatentInfo]):  # type: ignore[misc]
    """Puts each item in the place of its placeholder. No Hugging Face processor is involved."""

    def _apply_hf_processor_main(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        items: Iterable[tuple[torch.Tensor, bool]] = ()
        if MODALITY in mm_items:
            items = mm_items[MODALITY].get_processor_data()["items"]
        return BatchFeature(
            {
                "latents": [latents for latents, _ in items],
                "in_encoder_space": [torch.tensor(flag) for _, flag in items],
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "latents": MultiModalFieldConfig.batched(MODALITY),
            "in_encoder_space": MultiModalFieldConfig.batched(MODALITY, keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptReplacement]:
        token = self.info.settings["placeholder_id"]

        def placeholders(index: int) -> list[int]:
            latents, _ = mm_items[MODALITY][index]
            return [token] * len(latents)

        return [PromptReplacement(MODALITY, [token], placeholders)]


_takes_latents = MULTIMODAL_REGISTRY.register_processor(
    LatentProcessor, info=LatentInfo, dummy_inputs=LatentDummyInputs
)


@_takes_latents
class LatentQwen3ForCausalLM(LatentInputs, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3, the decoder of the published checkpoints."""


@_takes_latents
class LatentLlamaForCausalLM(LatentInputs, LlamaForCausalLM):  # type: ignore[misc]
    """Llama, and other models with its architecture name."""
