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
        self.encoder = AutoModel.from_pretrained(
            folder / "encoder", attn_implementation="eager", **options
        ).eval()
        self.decoder = AutoModelForCausalLM.from_pretrained(folder / "decoder", **options).eval()
        self.encoder_tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
        self.decoder_tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
        adapter = load_file(folder / "adapter" / "adapter.safetensors")
        self.adapter = {name: tensor.float() for name, tensor in adapter.items()}

    @torch.inference_mode()
    def encode(self, ids: list[int]) -> torch.Tensor:
        """Encoder space: [latents, encoder width]."""
        window, overlap = self.settings["encoder_window_size"], self.settings["boundary_overlap"]
        bidirectional = self.settings["encoder_mask_type"] == "bidirectional"
        latents: list[torch.Tensor] = []
        for start in range(0, len(ids), window):
            end = start + window
            before = ids[max(0, start - overlap) : start]
            after = ids[end : end + overlap] if bidirectional else []
            latents += self._encode_window(before, ids[start:end], after)
        return torch.stack(latents)

    def _encode_window(
        self, before: list[int], own: list[int], after: list[int]
    ) -> list[torch.Tensor]:
        ratio, pooling = self.settings["compression_ratio"], self.settings["pooling"]
        groups = [range(i, min(i + ratio, len(own))) for i in range(0, len(own), ratio)]
        sequence = before + own + after
        if pooling == "eos":
            sequence = sequence + [self.encoder_tokenizer.pad_token_id] * len(groups)
        hidden = self._hidden_states(sequence)
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

    def _hidden_states(self, sequence: list[int]) -> torch.Tensor:
        """The encoder's last hidden states, [tokens, width].

        What a position may not see has minus infinity added to its score. A mask is always given: without
        one transformers would make a causal one.
        """
        n = len(sequence)
        hidden_from = torch.zeros(n, n)
        if self.settings["encoder_mask_type"] == "causal":
            hidden_from[torch.arange(n)[None] > torch.arange(n)[:, None]] = -torch.inf
        given = {"input_ids": torch.tensor([sequence]), "attention_mask": hidden_from[None, None]}
        states: torch.Tensor = self.encoder(**given).last_hidden_state[0]
        return states

    @torch.inference_mode()
    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Decoder space, from all latents of one passage."""
        kind = self.settings["adapter_type"]
        layers = range(0 if kind == "mlp" else self.settings.get("num_adapter_layers", 1))
        if kind == "attn_mlp":
            for i in layers:
                latents = self._attend(
                    latents, f"attention_layers.{i}.decoder_layer.", self.encoder
                )
        latents = self._mlp(latents)
        if kind == "mlp_attn":
            for i in layers:
                latents = self._attend(
                    latents, f"attention_layers.{i}.decoder_layer.", self.decoder
                )
        return latents

    def _mlp(self, latents: torch.Tensor) -> torch.Tensor:
        """RMSNorm, Linear, GELU, Linear."""
        normed = rms_norm(latents, self.adapter["norm.weight"], 1e-6)
        hidden = normed @ self.adapter["fc1.weight"].T + self.adapter["fc1.bias"]
        hidden = torch.nn.functional.gelu(hidden)
        return hidden @ self.adapter["fc2.weight"].T + self.adapter["fc2.bias"]

    def _attend(self, latents: torch.Tensor, prefix: str, like: torch.nn.Module) -> torch.Tensor:
        """A layer of Qwen3 over all latents, latent by latent and head by head; nothing is hidden."""
        weights = {
            name.removeprefix(prefix).removesuffix(".weight"): tensor
            for name, tensor in self.adapter.items()
            if name.startswith(prefix)
        }
        eps, size = like.config.rms_norm_eps, like.config.head_dim
        heads, kv_heads = like.config.num_attention_heads, like.config.num_key_value_heads
        theta = like.config.rope_parameters["rope_theta"]

        normed = rms_norm(latents, weights["input_layernorm"], eps)
        queries, keys, values = (normed @ weights[f"self_attn.{x}_proj"].T for x in "qkv")
        attended = torch.zeros(len(latents), heads * size)
        for head in range(heads):
            mine = slice(head * size, (head + 1) * size)
            group = head // (heads // kv_heads)
            theirs = slice(group * size, (group + 1) * size)
            q = rms_norm(queries[:, mine], weights["self_attn.q_norm"], eps)
            k = rms_norm(keys[:, theirs], weights["self_attn.k_norm"], eps)
            q = torch.stack([rotated(x, place, theta) for place, x in enumerate(q)])
            k = torch.stack([rotated(x, place, theta) for place, x in enumerate(k)])
            for place in range(len(latents)):
                shares = torch.softmax(k @ q[place] / size**0.5, 0)
                attended[place, mine] = shares @ values[:, theirs]
        latents = latents + attended @ weights["self_attn.o_proj"].T

        normed = rms_norm(latents, weights["post_attention_layernorm"], eps)
        gate = torch.nn.functional.silu(normed @ weights["mlp.gate_proj"].T)
        inner = gate * (normed @ weights["mlp.up_proj"].T)
        return latents + inner @ weights["mlp.down_proj"].T

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


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotated(vector: torch.Tensor, place: int, theta: float) -> torch.Tensor:
    """RoPE: coordinates i and i + n/2 are one pair, turned by an angle that grows with the place."""
    half = len(vector) // 2
    angles = torch.tensor([place / theta ** (i / half) for i in range(half)])
    a, b = vector[:half], vector[half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])
