"""A checkpoint is checked when it is opened; what is wrong is named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.decoding.server import embedding_table
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import CheckpointError
from support.checkpoints import MakeCheckpoint, as_lora
from support.hub import LocalHub


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
        "frame": "numbered",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling 'max' is not supported"),
        ({"encoder_mask_type": "prefix"}, "encoder_mask_type 'prefix' is not supported"),
        ({"adapter_type": "attn"}, "adapter_type 'attn' is not supported"),
        ({"num_adapter_layers": 0}, "num_adapter_layers must be a whole number"),
        (
            {"adapter_type": "attn_mlp", "pooling": "concat"},
            "adapter_type 'attn_mlp' does not go with pooling 'concat'",
        ),
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


@pytest.mark.parametrize("kind", ["attn_mlp", "mlp_attn"])
def test_every_tensor_of_the_adapters_attention_layers_is_checked(
    make_checkpoint: MakeCheckpoint, kind: str
) -> None:
    folder = make_checkpoint(adapter_type=kind, num_adapter_layers=2)
    adapter = folder / "adapter" / "adapter.safetensors"
    whole = adapter.read_bytes()
    names = [name for name in load_file(adapter) if name.startswith("attention_layers")]
    assert len(names) == 2 * 11
    for name in names:
        adapter.write_bytes(whole)
        change_tensors(adapter, lambda t, name=name: t.pop(name))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=f"lacks the tensor {name} of an adapter of type"):
            Checkpoint.open(folder)
        adapter.write_bytes(whole)
        change_tensors(adapter, lambda t, name=name: t.update({name: t[name][:-1]}))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=f"{name} has shape"):
            Checkpoint.open(folder)
    adapter.write_bytes(whole)
    write_settings(folder / "model_config.json", num_adapter_layers=1)
    with pytest.raises(CheckpointError, match=r"unknown tensor attention_layers\.1"):
        Checkpoint.open(folder)
    write_settings(folder / "model_config.json", num_adapter_layers=2)
    part = "encoder" if kind == "attn_mlp" else "decoder"
    write_settings(folder / part / "config.json", use_sliding_window=True)
    with pytest.raises(CheckpointError, match=f"The {part} is a Qwen3 with sliding windows"):
        Checkpoint.open(folder)
    write_settings(folder / part / "config.json", model_type="llama")
    with pytest.raises(CheckpointError, match=f"The {part} is a model of type llama"):
        Checkpoint.open(folder)


def write_settings(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


# --- folders --------------------------------------------------------------------------------------


def test_older_folder_names_are_found(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    before = Checkpoint.open(folder)
    prints = before.fingerprint("decoder"), before.decoder_fingerprint
    chat_template = before.chat_tokenizer.chat_template
    for new, old in (("encoder", "embedder"), ("adapter", "projectors"), ("decoder", "llm")):
        (folder / new).rename(folder / old)
    older = Checkpoint.open(folder)
    assert (older.fingerprint("decoder"), older.decoder_fingerprint) == prints
    assert older.chat_tokenizer.chat_template == chat_template
    Compressor.from_pretrained(older, device="cpu").compress(["some text"])
    TransformersDecoder.from_pretrained(older, device="cpu")
    (folder / "encoder").mkdir()
    with pytest.raises(CheckpointError, match="two folders for the encoder, encoder and embedder"):
        Checkpoint.open(folder)


def test_of_the_checkpoints_of_a_training_run_the_newest_counts(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for seed in (9, 10):
        make_checkpoint(f"run/checkpoint_{seed}", seed=seed)
    (tmp_path / "run" / "checkpoint_final").mkdir()
    opened = Checkpoint.open(tmp_path / "run")
    assert opened.path.name == "checkpoint_10"
    assert opened.lasting_name == str(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"model_config\.json is missing"):
        Checkpoint.open(tmp_path)


# --- LoRA weights ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "added": 8},
        {"added": 8},
        {"trainable_token_indices": [3, 4, 5]},
    ],
    ids=str,
)
@torch.inference_mode()
def test_a_decoder_of_lora_weights_is_merged_once(
    make_checkpoint: MakeCheckpoint, cache: Path, options: dict[str, Any]
) -> None:
    folder = make_checkpoint()
    with torch.inference_mode(False):
        wanted = as_lora(folder, "decoder", task_type="CAUSAL_LM", **options)
    checkpoint = Checkpoint.open(folder)
    assert not cache.exists()
    decoder = TransformersDecoder.from_pretrained(checkpoint, device="cpu")
    ids = torch.arange(1, 40)[None]
    torch.testing.assert_close(
        decoder.model(input_ids=ids).logits, wanted(input_ids=ids).logits, atol=1e-4, rtol=1e-4
    )
    assert checkpoint.vocabulary == 768 + options.get("added", 0)
    # The table that a server is sent rows of is the merged one, too.
    table = wanted.get_input_embeddings()(torch.tensor([3]))
    torch.testing.assert_close(embedding_table(checkpoint)[3:4], table)
    (merged,) = (cache / "merged").iterdir()
    written = (merged / "model.safetensors").stat().st_mtime_ns
    assert Checkpoint.open(folder).decoder_model_folder == merged
    assert (merged / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in (cache / "merged").iterdir()] == [merged.name]


def test_lora_weights_answer_and_compress_like_any(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(adapter_type="mlp_attn")
    texts = [list(range(6, 90)), [7, 8, 9]]
    before = Compressor.from_pretrained(folder, device="cpu").compress_token_ids(texts)
    plain = Checkpoint.open(folder)
    prints = plain.fingerprint("encoder"), plain.decoder_fingerprint
    as_lora(folder, "decoder", base="base")
    encoder = as_lora(folder, "encoder", base="other", task_type="FEATURE_EXTRACTION")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.fingerprint("encoder") != prints[0]
    assert checkpoint.decoder_fingerprint != prints[1]
    after = Compressor.from_pretrained(checkpoint, device="cpu").compress_token_ids(texts)
    assert not torch.allclose(after[0], before[0], atol=1e-2)
    encoder.merge_and_unload().save_pretrained(folder / "merged")
    for name in ("encoder/adapter_model.safetensors", "encoder/adapter_config.json"):
        (folder / name).unlink()
    for path in (folder / "merged").iterdir():
        path.rename(folder / "encoder" / path.name)
    merged = Compressor.from_pretrained(folder, device="cpu").compress_token_ids(texts)
    for a, b in zip(after, merged, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_lora_weights_that_cannot_be_merged_are_refused(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint()
    as_lora(folder, "decoder")
    lora = folder / "decoder" / "adapter_model.safetensors"
    whole, a_layer = (
        lora.read_bytes(),
        "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight",
    )
    for change, message in (
        (lambda t: t.pop(a_layer), r"layers\.1\.mlp\.down_proj\.lora_B\..*is missing"),
        (
            lambda t: t.update({"base_model.model.x": torch.ones(1)}),
            "no place for base_model.model.x",
        ),
        (lambda t: t.update({a_layer: torch.ones(2, 2)}), "do not fit ../base: .*size mismatch"),
    ):
        lora.write_bytes(whole)
        change_tensors(lora, change)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=message) as caught:
            TransformersDecoder.from_pretrained(folder, device="cpu")
        assert "\n" not in str(caught.value)
    lora.write_bytes(whole)

    settings = folder / "decoder" / "adapter_config.json"
    write_settings(settings, base_model_name_or_path="nowhere")
    with pytest.raises(CheckpointError, match=r"belong to nowhere, which is not to be had"):
        Checkpoint.open(folder)
    write_settings(settings, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json does not name the base"):
        Checkpoint.open(folder)
    write_settings(settings, base_model_name_or_path=str(folder / "base"))

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"need peft: pip install 'lclm-rag\[lora\]'"):
        TransformersDecoder.from_pretrained(folder, device="cpu")
    monkeypatch.undo()

    shutil.copy(folder / "base" / "model.safetensors", folder / "decoder")
    with pytest.raises(CheckpointError, match="both LoRA weights and weights of its own"):
        Checkpoint.open(folder)


def test_lora_weights_without_embeddings_for_the_memory_tokens_are_refused(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder = make_checkpoint()
    base = AutoModelForCausalLM.from_pretrained(folder / "decoder")
    base.resize_token_embeddings(4, mean_resizing=False)  # <|memory|> is token 4.
    base.save_pretrained(folder / "decoder")
    as_lora(folder, "decoder")
    with pytest.raises(CheckpointError, match=r"<\|memory\|> has no embedding, neither in ../base"):
        TransformersDecoder.from_pretrained(folder, device="cpu")


# --- the hub --------------------------------------------------------------------------------------


def test_a_build_fetches_no_weights_of_the_decoder(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(adapter_type="mlp_attn")
    (folder / "README.md").write_text("Not needed.")
    hub = LocalHub(monkeypatch, tmp_path / "hub", {"me/lclm": folder})
    checkpoint = Checkpoint.open("me/lclm")
    Compressor.from_pretrained(checkpoint, device="cpu").compress(["some text"])
    weights = "me/lclm: decoder/model.safetensors"
    assert weights not in hub.fetched
    assert {"me/lclm: decoder/config.json", "me/lclm: decoder/tokenizer.json"} < set(hub.fetched)
    assert "me/lclm: README.md" not in hub.fetched
    assert checkpoint.fingerprint("decoder") == Checkpoint.open(folder).fingerprint("decoder")

    before = len(hub.fetched)
    TransformersDecoder.from_pretrained(checkpoint, device="cpu")
    assert hub.fetched[before:] == [weights]
    fresh = Checkpoint.open("me/lclm")
    assert fresh.decoder_fingerprint == Checkpoint.open(folder).decoder_fingerprint
    assert len(hub.fetched) == before + 1


def test_weights_that_the_hub_lacks_are_named_when_the_decoder_is_loaded(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint()
    (folder / "decoder" / "model.safetensors").unlink()
    hub = LocalHub(monkeypatch, tmp_path / "hub", {"me/lclm": folder})
    checkpoint = Checkpoint.open("me/lclm")
    with pytest.raises(CheckpointError, match=r"decoder has no \*\.safetensors file"):
        TransformersDecoder.from_pretrained(checkpoint, device="cpu")
    hub.models.clear()
    with pytest.raises(
        CheckpointError, match=r"of me/lclm could not be fetched .*401 Client Error\."
    ):
        TransformersDecoder.from_pretrained(checkpoint, device="cpu")


def test_the_base_of_lora_weights_is_fetched_when_the_decoder_is_loaded(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint()
    as_lora(folder, "decoder")
    write_settings(folder / "decoder" / "adapter_config.json", base_model_name_or_path="me/base")
    (folder / "base").rename(tmp_path / "base")
    models = {"me/lclm": folder, "me/base": tmp_path / "base"}
    hub = LocalHub(monkeypatch, tmp_path / "hub", models)
    checkpoint = Checkpoint.open("me/lclm")
    assert checkpoint.decoder_width == 64
    assert not any(name.endswith("adapter_model.safetensors") for name in hub.fetched)
    assert "me/base: model.safetensors" not in hub.fetched
    TransformersDecoder.from_pretrained(checkpoint, device="cpu")
    assert "me/base: model.safetensors" in hub.fetched


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
