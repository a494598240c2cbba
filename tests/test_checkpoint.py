"""A checkpoint is checked when it is opened; what is wrong is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import CheckpointError
from support.checkpoints import MakeCheckpoint


def test_the_bundled_checkpoint_is_small_and_has_the_published_form(checkpoint: Checkpoint) -> None:
    files = [path for path in checkpoint.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10 * 2**20
    assert checkpoint.encoder_config["architectures"] == ["Qwen3Model"]
    assert checkpoint.decoder_config["architectures"] == ["Qwen3ForCausalLM"]
    assert json.loads((checkpoint.path / "model_config.json").read_text()) == {
        "compression_ratio": 4,
        "encoder_window_size": 1024,
        "pooling": "mean",
        "encoder_mask_type": "causal",
        "boundary_overlap": 0,
        "adapter_type": "mlp",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling 'max' is not supported"),
        (
            {"encoder_mask_type": "bidirectional"},
            "encoder_mask_type 'bidirectional' is not supported",
        ),
        ({"adapter_type": "mlp_attn"}, "adapter_type 'mlp_attn' is not supported"),
        ({"compression_ratio": 0}, "compression_ratio must be a whole number"),
        ({"encoder_window_size": 30}, "not a multiple of"),
    ],
)
def test_a_setting_that_is_not_supported_is_refused_by_name(
    make_checkpoint: MakeCheckpoint, settings: dict[str, Any], message: str
) -> None:
    folder = make_checkpoint()
    path = folder / "model_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "missing",
    [
        "model_config.json",
        "encoder/config.json",
        "encoder/tokenizer.json",
        "adapter/adapter.safetensors",
        "decoder/config.json",
    ],
)
def test_a_missing_file_is_named(make_checkpoint: MakeCheckpoint, missing: str) -> None:
    folder = make_checkpoint()
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        Checkpoint.open(folder)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_missing_weights_are_named(make_checkpoint: MakeCheckpoint, part: str) -> None:
    folder = make_checkpoint()
    (folder / part / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{part} has no .*safetensors"):
        Checkpoint.open(folder)


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_an_adapter_of_the_wrong_shape_or_kind_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    adapter = folder / "adapter" / "adapter.safetensors"
    whole = adapter.read_bytes()
    for change, message in (
        (lambda t: t.update({"fc2.bias": torch.zeros(7)}), r"fc2.bias has shape \[7\]"),
        (lambda t: t.pop("norm.weight"), "lacks the tensor norm.weight"),
        (lambda t: t.update({"attention.q": torch.zeros(2)}), "unknown tensor attention.q"),
    ):
        adapter.write_bytes(whole)
        change_tensors(adapter, change)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.open(folder)


def test_a_tensor_missing_from_the_weights_is_never_filled_with_noise(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder = make_checkpoint()
    change_tensors(
        folder / "encoder" / "model.safetensors", lambda t: t.pop("layers.1.mlp.up_proj.weight")
    )
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        Compressor.from_pretrained(folder, device="cpu")
    change_tensors(
        folder / "decoder" / "model.safetensors",
        lambda t: t.update({"model.norm.weight": torch.zeros(3)}),
    )
    with pytest.raises(CheckpointError, match="decoder"):
        TransformersDecoder.from_pretrained(folder, device="cpu")


def test_a_decoder_without_memory_tokens_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    path = folder / "decoder" / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("<|memory|>", "<|pad_9|>"), "utf-8")
    with pytest.raises(CheckpointError, match=r"no token <\|memory\|>"):
        Checkpoint.open(folder)


def test_a_missing_decoder_tokenizer_says_which_one_to_fetch(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder = make_checkpoint()
    (folder / "decoder" / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"hf download Qwen/Qwen3-4B-Instruct-2507 tokenizer\.json"
    ):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["no/such/folder/here", "./nothing", "nothing"])
def test_a_name_that_is_no_folder_and_no_hub_id_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint folder"):
        Checkpoint.open(name)


def test_a_hub_id_that_cannot_be_fetched_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open("nobody/no-such-checkpoint")
    assert "nobody/no-such-checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_what_changes_a_latent(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    before = Checkpoint.open(folder)

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert Checkpoint.open(copy).fingerprint("decoder") == before.fingerprint("decoder")

    change_tensors(
        folder / "decoder" / "model.safetensors", lambda t: t["model.norm.weight"].add_(1)
    )
    assert Checkpoint.open(folder).fingerprint("decoder") == before.fingerprint("decoder")

    change_tensors(folder / "adapter" / "adapter.safetensors", lambda t: t["fc1.bias"].add_(1))
    adapted = Checkpoint.open(folder)
    assert adapted.fingerprint("encoder") == before.fingerprint("encoder")
    assert adapted.fingerprint("decoder") != before.fingerprint("decoder")

    change_tensors(folder / "encoder" / "model.safetensors", lambda t: t["norm.weight"].add_(1))
    assert Checkpoint.open(folder).fingerprint("encoder") != before.fingerprint("encoder")
