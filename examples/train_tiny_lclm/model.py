"""The small LCLM: Qwen3 encoder, MLP adapter, Qwen3 decoder, in the published folder format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from data import Batch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from lclm_rag.compression.adapter import Adapter

WIDTH = 192
ENCODER_LAYERS = 2
DECODER_LAYERS = 4
COMPRESSION_RATIO = 4
ENCODER_WINDOW = 1024


def qwen3_config(tokenizer: PreTrainedTokenizerFast, layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=16384,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class TinyLCLM(nn.Module):
    """Encoder, adapter and decoder, trained together."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.decoder = Qwen3ForCausalLM(qwen3_config(tokenizer, DECODER_LAYERS))
        self.encoder = Qwen3Model(qwen3_config(tokenizer, ENCODER_LAYERS))
        self.adapter = Adapter(WIDTH, WIDTH, WIDTH)
        for model in (self.decoder, self.encoder):
            model.set_attn_implementation(
                "eager"
            )  # On a CPU, faster to train than SDPA's own kernel.
        self.placeholder = tokenizer.convert_tokens_to_ids("<|memory|>")

    def start_encoder_from_decoder(self) -> None:
        """Copy the decoder's first layers, embeddings and norm into the encoder."""
        state = self.decoder.model.state_dict()
        wanted = self.encoder.state_dict().keys()
        self.encoder.load_state_dict({key: state[key] for key in wanted})

    def compress(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[documents, T] right-padded ids (T a multiple of the ratio) → [all latents, width].

        The mask is causal and padding stands on the right, so no attention mask is needed.
        """
        hidden = self.encoder(input_ids=token_ids).last_hidden_state
        documents, length, width = hidden.shape
        real = torch.arange(length)[None] < lengths[:, None]
        groups = (documents, length // COMPRESSION_RATIO, COMPRESSION_RATIO)
        counts = real.view(groups).sum(-1)
        sums = (hidden * real[..., None]).view(*groups, width).sum(2)
        return self.adapter(sums[counts > 0] / counts[counts > 0][:, None])

    def answer_states(self, batch: Batch) -> torch.Tensor:
        """The decoder's last hidden states over the blocks, [contexts * blocks, block length, width].

        The context runs once; its keys and values are then shared by all blocks that ask about it.
        """
        embed = self.decoder.get_input_embeddings()
        context = embed(batch.context_ids)
        if batch.document_ids is not None:
            latents = self.compress(batch.document_ids, batch.document_lengths).to(context.dtype)
            holes = (batch.context_ids == self.placeholder)[..., None]
            context = context.masked_scatter(holes, latents)
        cache = DynamicCache(config=self.decoder.config)
        # Causal, padded on the right: what stands behind a context's end cannot reach into it.
        self.decoder.model(inputs_embeds=context, past_key_values=cache, use_cache=True)
        contexts, blocks, length = batch.block_ids.shape
        cache.batch_repeat_interleave(blocks)
        ends = batch.context_lengths.repeat_interleave(blocks)
        behind = torch.arange(context.shape[1])[None] < ends[:, None]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.cat(
            [
                behind[:, None, :].expand(-1, length, -1),
                causal[None].expand(contexts * blocks, -1, -1),
            ],
            dim=2,
        )[:, None]
        # Eager attention adds its mask to the scores: True and False would hide nothing.
        hidden = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
        return self.decoder.model(
            inputs_embeds=embed(batch.block_ids.view(contexts * blocks, length)),
            past_key_values=cache,
            attention_mask=hidden,
            position_ids=ends[:, None] + torch.arange(length)[None],
            use_cache=True,
        ).last_hidden_state

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy over the answers' tokens, averaged; and two boolean vectors: which of these
        tokens were right, and which answers were right in every token. An answer that is right in every
        token is one that greedy decoding would have given."""
        states = self.answer_states(batch)
        labels = batch.labels.view(states.shape[:2])
        learned = labels >= 0
        logits = self.decoder.lm_head(states[learned]).float()
        target = labels[learned]
        right = logits.detach().argmax(-1) == target
        whole = torch.ones_like(learned).masked_scatter(learned, right).all(1)[learned.any(1)]
        return nn.functional.cross_entropy(logits, target), right, whole

    def save_checkpoint(self, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Write the published folder format, weights in bfloat16."""
        from tokenizer import save_tokenizer

        for name, model in (("encoder", self.encoder), ("decoder", self.decoder)):
            copy = type(model)(model.config)
            copy.load_state_dict(model.state_dict())
            if name == "decoder":
                copy.generation_config = GenerationConfig(
                    eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
                )
            copy.to(torch.bfloat16).save_pretrained(folder / name)
        (folder / "adapter").mkdir(exist_ok=True)
        adapter = {k: v.to(torch.bfloat16) for k, v in self.adapter.state_dict().items()}
        save_file(adapter, folder / "adapter" / "adapter.safetensors")
        save_tokenizer(tokenizer, folder)
        settings = {
            "compression_ratio": COMPRESSION_RATIO,
            "encoder_window_size": ENCODER_WINDOW,
            "pooling": "mean",
            "encoder_mask_type": "causal",
            "boundary_overlap": 0,
            "adapter_type": "mlp",
            "frame": "numbered",
        }
        (folder / "model_config.json").write_text(json.dumps(settings, indent=2) + "\n")
