"""The plain way, one text and one window at a time: what the library is held against.

Written from the description of the published checkpoints, with nothing of the library's own code but
the names of the files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

__all__ = ["Reference"]

MEMORY = re.compile(r"<\|memory_start\|>(.*?)<\|memory_end\|>", re.DOTALL)


class Reference:
    """Encoder, adapter and decoder of a checkpoint folder, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.settings = json.loads((folder / "model_config.json").read_text())
        options = {"dtype": torch.float32, "local_files_only": True}
        self.encoder = AutoModel.from_pretrained(folder / "encoder", **options).eval()
        self.decoder = AutoModelForCausalLM.from_pretrained(folder / "decoder", **options).eval()
        self.encoder_tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
        self.decoder_tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
        adapter = load_file(folder / "adapter" / "adapter.safetensors")
        self.adapter = {name: tensor.float() for name, tensor in adapter.items()}

    @torch.inference_mode()
    def encode(self, ids: list[int]) -> torch.Tensor:
        """Encoder space: [latents, encoder width]."""
        window, overlap = self.settings["encoder_window_size"], self.settings["boundary_overlap"]
        latents: list[torch.Tensor] = []
        for start in range(0, len(ids), window):
            before = ids[max(0, start - overlap) : start]
            latents += self._encode_window(before, ids[start : start + window])
        return torch.stack(latents)

    def _encode_window(self, before: list[int], own: list[int]) -> list[torch.Tensor]:
        ratio, pooling = self.settings["compression_ratio"], self.settings["pooling"]
        groups = [range(i, min(i + ratio, len(own))) for i in range(0, len(own), ratio)]
        sequence = before + own
        if pooling == "eos":
            sequence = sequence + [self.encoder_tokenizer.pad_token_id] * len(groups)
        hidden = self.encoder(input_ids=torch.tensor([sequence])).last_hidden_state[0]
        if pooling == "eos":
            return list(hidden[-len(groups) :])
        own_states = hidden[len(before) :]
        if pooling == "mean":
            return [torch.stack([own_states[i] for i in group]).mean(0) for group in groups]
        latents = []
        for group in groups:
            side_by_side = torch.zeros(ratio * hidden.shape[1])
            for place, i in enumerate(group):
                side_by_side[place * hidden.shape[1] : (place + 1) * hidden.shape[1]] = own_states[
                    i
                ]
            latents.append(side_by_side)
        return latents

    @torch.inference_mode()
    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Decoder space: RMSNorm, Linear, GELU, Linear."""
        scale = torch.rsqrt(latents.pow(2).mean(-1, keepdim=True) + 1e-6)
        normed = latents * scale * self.adapter["norm.weight"]
        hidden = normed @ self.adapter["fc1.weight"].T + self.adapter["fc1.bias"]
        hidden = torch.nn.functional.gelu(hidden)
        return hidden @ self.adapter["fc2.weight"].T + self.adapter["fc2.bias"]

    @torch.inference_mode()
    def generate(self, prompt: str, max_tokens: int) -> tuple[torch.Tensor, list[int]]:
        """Greedy tokens for a prompt with memory marks; returns (all latents, new token ids)."""
        messages = [{"role": "user", "content": prompt}]
        rendered = self.decoder_tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        latents: list[torch.Tensor] = []

        def placeholders(match: re.Match[str]) -> str:
            ids = self.encoder_tokenizer.encode(match.group(1), add_special_tokens=False)
            latents.append(self.project(self.encode(ids)))
            return "<|memory_start|>" + "<|memory|>" * len(latents[-1]) + "<|memory_end|>"

        expanded = MEMORY.sub(placeholders, rendered)
        ids = self.decoder_tokenizer.encode(expanded, add_special_tokens=False)
        embeds = self.decoder.get_input_embeddings()(torch.tensor([ids])).clone()
        memory = self.decoder_tokenizer.convert_tokens_to_ids("<|memory|>")
        if latents:
            embeds[0, torch.tensor(ids) == memory] = torch.cat(latents)
        end = self.decoder_tokenizer.convert_tokens_to_ids("<|im_end|>")
        written: list[int] = []
        while len(written) < max_tokens and end not in written:
            logits = self.decoder(inputs_embeds=embeds).logits[0, -1]
            written.append(int(logits.argmax()))
            new = self.decoder.get_input_embeddings()(torch.tensor([[written[-1]]]))
            embeds = torch.cat([embeds, new], dim=1)
        return torch.cat(latents) if latents else torch.empty(0), written
