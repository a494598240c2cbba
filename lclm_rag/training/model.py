"""The three parts of an LCLM, trained together on packed batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from lclm_rag.checkpoint import MEMORY_END, MEMORY_START, Checkpoint
from lclm_rag.compression.adapter import load_adapter
from lclm_rag.compression.attention import PACKED, PackedEncoder, packing
from lclm_rag.compression.compressor import longest_window, marker_id
from lclm_rag.compression.pooling import pool
from lclm_rag.compression.windows import Windows, cut_windows
from lclm_rag.torch_setup import load_transformers_model, seeded
from lclm_rag.training.packing import Batch, Row

__all__ = ["PARTS", "Losses", "Part", "TrainedLCLM"]

Part = Literal["encoder", "adapter", "decoder"]
PARTS: tuple[Part, ...] = ("encoder", "adapter", "decoder")


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        tokens: [learned] the loss of each learned token, in nats: cross-entropy, or, where a teacher gives a
            distribution, the divergence from it.
        right: bool [learned]: whether greedy decoding would have chosen the token.
    """

    tokens: torch.Tensor
    right: torch.Tensor


class TrainedLCLM(nn.Module):
    """Encoder, adapter and decoder of a checkpoint, with gradients.

    The decoder reads blocks one after another, without padding, as the encoder reads windows: no block sees
    another, so that a packed block gives the loss and the gradient that it gives alone.

    Args:
        checkpoint: The checkpoint to start from; LoRA weights are merged first.
        device: Where to compute.
        dtype: The dtype of the weights.

    Attributes:
        compute_dtype: The dtype that the models compute in, which autocast makes another than that of the
            weights.
        touched: The names of the parameters that were ever trained.

    Raises:
        CheckpointError: When a part cannot be loaded, or its architecture does not let rows be packed.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import AutoModel, AutoModelForCausalLM

        self.checkpoint = checkpoint
        config = checkpoint.config
        self.encoder = load_transformers_model(
            AutoModel, checkpoint.encoder_model_folder, device, dtype
        )
        self.adapter = load_adapter(checkpoint, str(device), str(dtype).removeprefix("torch."))
        self.decoder = load_transformers_model(
            AutoModelForCausalLM, checkpoint.decoder_model_folder, device, dtype
        )
        # Both are checked: packed, they must give what they give alone.
        PackedEncoder(self.encoder, longest_window(checkpoint), causal=config.is_causal)
        PackedEncoder(self.decoder.base_model, checkpoint.context_length)
        self.decoder.config._attn_implementation = PACKED
        self.compute_dtype = dtype
        self.touched: set[str] = set()
        self.marker_id = marker_id(checkpoint)
        self.placeholder = checkpoint.placeholder_id
        tokenizer, table = checkpoint.decoder_tokenizer, self.decoder.get_input_embeddings().weight
        marks = (MEMORY_START, MEMORY_END)
        self._memory_ids = [int(tokenizer.token_to_id(token) or 0) for token in marks]
        # Apart from the table, which then needs neither gradient nor moments while the decoder stands still.
        self.memory_rows = nn.Parameter(table.detach()[self._memory_ids].clone())
        self.memory_rows.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.adapter.fc1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.adapter.fc1.weight.dtype

    def latents(self, row: Row) -> torch.Tensor:
        """Compress the memories of a row.

        Args:
            row: A row with memories.

        Returns:
            Decoder space, [latents, decoder width], memory after memory.
        """
        assert row.windows is not None
        return self._compressed(row.windows, row.latents)

    def compress(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Compress texts.

        Args:
            texts: Encoder token ids of each text; none is empty.

        Returns:
            Decoder space, [latents, decoder width], for each text.
        """
        config = self.checkpoint.config
        counts = [-(-len(ids) // config.compression_ratio) for ids in texts]
        windows = cut_windows(texts, config, self.marker_id)
        return list(self._compressed(windows, counts).split(counts))

    def _compressed(self, windows: Windows, counts: list[int]) -> torch.Tensor:
        config, lengths = self.checkpoint.config, windows.lengths.tolist()
        hidden = self.encoder(
            input_ids=torch.from_numpy(windows.token_ids).to(self.device)[None],
            position_ids=torch.from_numpy(windows.positions()).to(self.device)[None],
            use_cache=False,
            **packing(
                lengths,
                max(lengths),
                self.device,
                self.compute_dtype,
                self.encoder.config,
                causal=config.is_causal,
            ),
        ).last_hidden_state[0]
        pooled = pool(hidden, windows, config.pooling, config.compression_ratio)
        projected: torch.Tensor = self.adapter(pooled, counts)
        return projected

    def logits(self, row: Row) -> torch.Tensor:
        """What the decoder expects at the learned tokens of a row.

        Args:
            row: The row.

        Returns:
            [learned, vocabulary], float32.
        """
        token_ids = row.token_ids.to(self.device)
        embeds = self.decoder.get_input_embeddings()(token_ids)
        if "memory_rows" in self.touched:
            for memory_row, token_id in zip(self.memory_rows, self._memory_ids, strict=True):
                others = token_ids.ne(token_id)[:, None]
                embeds = embeds.where(others, memory_row.to(embeds.dtype))
        if row.windows is not None:
            latents = self.latents(row).to(embeds.dtype)
            embeds = embeds.index_copy(0, row.holes.to(self.device), latents)
        expected: torch.Tensor = self.decoder(
            inputs_embeds=embeds[None],
            position_ids=row.positions.to(self.device)[None],
            use_cache=False,
            # A token is expected from the position before it.
            logits_to_keep=row.learned.to(self.device) - 1,
            **packing(
                row.lengths,
                max(row.lengths),
                self.device,
                self.compute_dtype,
                self.decoder.config,
                causal=True,
                seen=row.seen,
            ),
        ).logits[0]
        return expected.float()

    def forward(self, batch: Batch) -> Losses:
        """Compute the loss of each learned token.

        Args:
            batch: The batch.

        Returns:
            The losses.
        """
        logits = self.logits(batch.row)
        target = batch.row.token_ids[batch.row.learned].to(self.device)
        losses = cross_entropy(logits, target, reduction="none")
        if batch.teacher is not None:
            with torch.no_grad():
                taught = self.logits(batch.teacher).log_softmax(-1)
            which = batch.taught.to(self.device)
            student = logits[which].log_softmax(-1)
            divergence = kl_div(student, taught, reduction="none", log_target=True).sum(-1)
            losses = losses.index_copy(0, which, divergence)
        return Losses(losses, logits.detach().argmax(-1) == target)

    # --- what is trained ----------------------------------------------------------------------------

    def train_only(
        self,
        parts: Sequence[Part],
        lora: Mapping[Part, int] | None = None,
        *,
        embeddings: bool = True,
    ) -> None:
        """Let gradients reach some parts, and the embeddings of the memory tokens in any case.

        If the decoder's own weights are not trained, the rows of `<|memory_start|>` and `<|memory_end|>` are
        trained in place of those of its embedding table.

        Args:
            parts: The parts.
            lora: The rank of LoRA weights that are trained in place of a part's own, by part; they are added
                when they are first named.
            embeddings: Whether the embedding tables of encoder and decoder are trained with them.

        Raises:
            ValueError: When there is no such part, or a part that has LoRA weights is to be trained without.
            ImportError: When peft is not installed, and LoRA weights are to be added.
        """
        lora = lora or {}
        for part in parts:
            if part not in PARTS:
                raise ValueError(f"Unknown part {part!r}; use {', '.join(PARTS)}.")
        for part in PARTS:
            model = getattr(self, part)
            if part in lora:
                _add_lora(model, lora[part])
            elif part in parts and _has_lora(model):
                raise ValueError(f"The {part} has LoRA weights; train these on.")
            model.requires_grad_(part in parts and part not in lora)
            for name, parameter in model.named_parameters():
                if part in lora and "lora_" in name:
                    parameter.requires_grad_(True)
        if not embeddings:
            for model in (self.encoder, self.decoder):
                model.get_input_embeddings().requires_grad_(False)
        whole = "decoder" in parts and "decoder" not in lora and embeddings
        if whole:  # The table is trained from here on, with what the rows have learned.
            self.write_memory_rows()
            self.touched.discard("memory_rows")
        self.memory_rows.requires_grad_(not whole)
        self.touched |= {name for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def write_memory_rows(self) -> None:
        """Put the embeddings of the memory tokens that were trained apart into the decoder's table."""
        if "memory_rows" in self.touched:
            table = self.decoder.get_input_embeddings().weight
            table[self._memory_ids] = self.memory_rows.to(table.dtype)

    def compressing_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that make latents: those of encoder and adapter."""
        yield from self.encoder.parameters()
        yield from self.adapter.parameters()

    @contextmanager
    def gradient_checkpointing(self) -> Iterator[None]:
        """Compute activations again in the backward pass instead of keeping them."""
        for model in (self.encoder, self.decoder):
            model.train()  # transformers checkpoints only then; there is no dropout that it would switch on.
            model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            for model in (self.encoder, self.decoder):
                model.gradient_checkpointing_disable()
                model.eval()

    # --- writing ------------------------------------------------------------------------------------

    def save(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the weights into a checkpoint folder that has everything else already.

        Configuration files keep all but the dtype: transformers would refuse to write some, and an
        evaluation has changed that of generation.

        Args:
            folder: A copy of the checkpoint that was started from.
            dtype: The dtype of the files.
        """
        from safetensors.torch import save_file

        self.write_memory_rows()
        for name, model in (("encoder", self.encoder), ("decoder", self.decoder)):
            # Of tensors that are tied, the first one is written: an embedding table, and no head.
            tied: dict[int, str] = {}
            state = {
                key: value.to(dtype).contiguous()
                for key, value in _merged(model).items()
                if tied.setdefault(value.data_ptr(), key) == key
            }
            save_file(state, folder / name / "model.safetensors", {"format": "pt"})
            config = json.loads((folder / name / "config.json").read_text("utf-8"))
            config |= {"dtype": str(dtype).removeprefix("torch.")}
            config.pop("torch_dtype", None)
            (folder / name / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        adapter = {k: v.to(dtype).contiguous() for k, v in self.adapter.state_dict().items()}
        (folder / "adapter").mkdir(exist_ok=True)
        save_file(adapter, folder / "adapter" / "adapter.safetensors")


def _has_lora(model: nn.Module) -> bool:
    return any("lora_" in name for name, _ in model.named_parameters())


def _add_lora(model: nn.Module, rank: int) -> None:
    """Put LoRA weights beside every linear layer but the head. They change nothing until they are trained."""
    if _has_lora(model):
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'lclm-rag[lora]'.") from error
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name
    }
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(names), lora_dropout=0.0)
    # Their random start is the same each time, so that a training can be repeated.
    with seeded(next(model.parameters()).device):
        inject_adapter_in_model(config, model)


def _merged(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model, with LoRA weights added to those that they change."""
    changes = {
        f"{name}.weight": module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    state = {}
    for key, value in model.state_dict().items():
        if "lora_" not in key:
            plain = key.replace(".base_layer.", ".")
            state[plain] = value + changes[plain] if plain in changes else value
    return state
