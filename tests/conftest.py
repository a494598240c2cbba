"""Shared, costly things: one knowledge base over the bundled checkpoint, and small random checkpoints."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Run
from forked import Forks, forks
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from lclm_rag import KnowledgeBase
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.cli.main import _run
from lclm_rag.compression import Compressor
from lclm_rag.compression.adapter import Adapter
from lclm_rag.decoding import Decoder, load_decoder
from lclm_rag.decoding.server import ServerDecoder
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.decoding.vllm import VLLMDecoder
from lclm_rag.evaluation.datasets.exact_strings import exact_string_questions, with_exact_strings
from lclm_rag.evaluation.datasets.fact_sheets import (
    FactQuestion,
    FactSheet,
    fact_sheets,
    held_out_questions,
)
from lclm_rag.prompting import PromptTemplate


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        code = _run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """The checkpoint that comes with the package."""
    return Checkpoint.open()


@pytest.fixture(scope="session")
def compressor(checkpoint: Checkpoint) -> Compressor:
    return Compressor.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def decoder(checkpoint: Checkpoint) -> TransformersDecoder:
    return TransformersDecoder.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def items_decoder(checkpoint: Checkpoint) -> Iterator[VLLMDecoder]:
    """vLLM with the latent modality. The one engine of the whole run: it takes a minute to start."""
    options = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28, "max_num_seqs": 64}
    decoder = load_decoder("vllm", checkpoint, device="cpu", **options)
    assert isinstance(decoder, VLLMDecoder)
    assert decoder.inputs == "items"
    yield decoder
    decoder.close()


@pytest.fixture(scope="session")
def mixed_decoder(items_decoder: VLLMDecoder) -> VLLMDecoder:
    """Mixed prompts, on the same engine."""
    return items_decoder.with_inputs("mixed")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Iterator[str]:
    """A real `vllm serve` on loopback, as the README starts it. The one server of the whole run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("vllm"), "serve", checkpoint.path / "decoder"]
    command += ["--enable-prompt-embeds", "--enable-prompt-tokens-details"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    command += ["--dtype", "float32", "--block-size", "32", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(2**28)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: int = 300) -> None:
    for _ in range(seconds):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, f"vllm serve ended:\n{log.read_text()[-3000:]}"
            time.sleep(1)
        else:
            return
    raise AssertionError(f"vllm serve did not answer:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def server_decoder(server_url: str, checkpoint: Checkpoint) -> Iterator[ServerDecoder]:
    decoder = load_decoder(server_url, checkpoint)
    assert isinstance(decoder, ServerDecoder)
    yield decoder
    decoder.close()


@pytest.fixture(scope="session")
def endless_question() -> str:
    """One that the bundled decoder, greedily, never stops answering."""
    return "Ω" * 30


DECODERS = ("decoder", "items_decoder", "mixed_decoder", "server_decoder")


@pytest.fixture(params=DECODERS)
def each_decoder(request: pytest.FixtureRequest) -> Decoder:
    """transformers, vLLM with latent items, vLLM with mixed prompts, a vLLM server."""
    found: Decoder = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def template(checkpoint: Checkpoint) -> PromptTemplate:
    return PromptTemplate.of(checkpoint)


@pytest.fixture(scope="session")
def sheets() -> list[FactSheet]:
    return list(itertools.islice(fact_sheets(seed=2026, held_out=True), 400))


@pytest.fixture(scope="session")
def questions(sheets: list[FactSheet]) -> list[FactQuestion]:
    return held_out_questions(100, sheets, seed=2026)


@pytest.fixture(scope="session")
def knowledge_base(
    tmp_path_factory: pytest.TempPathFactory,
    sheets: list[FactSheet],
    decoder: TransformersDecoder,
) -> Iterator[KnowledgeBase]:
    """400 fact sheets; for reading only."""
    path = tmp_path_factory.mktemp("shared") / "kb"
    with KnowledgeBase.create(path, decoder=decoder) as kb:
        kb.add(sheet.document for sheet in sheets)
        yield kb


@pytest.fixture(scope="session")
def string_sheets(sheets: list[FactSheet]) -> list[FactSheet]:
    rng = random.Random(5)
    return [with_exact_strings(sheet, rng) for sheet in sheets[:80]]


@pytest.fixture(scope="session")
def string_kb(
    tmp_path_factory: pytest.TempPathFactory,
    string_sheets: list[FactSheet],
    decoder: TransformersDecoder,
) -> Iterator[KnowledgeBase]:
    """80 fact sheets with a code of 12 characters and a UUID in each; for reading only."""
    path = tmp_path_factory.mktemp("strings") / "kb"
    with KnowledgeBase.create(path, decoder=decoder) as kb:
        kb.add(sheet.document for sheet in string_sheets)
        yield kb


@pytest.fixture(scope="session")
def string_questions(string_sheets: list[FactSheet]) -> list[FactQuestion]:
    return [exact_string_questions(sheet)[i % 4] for i, sheet in enumerate(string_sheets[:24])]


@pytest.fixture
def small_kb(
    tmp_path: Path, sheets: list[FactSheet], decoder: TransformersDecoder
) -> Iterator[KnowledgeBase]:
    """Five fact sheets, for tests that write."""
    with KnowledgeBase.create(tmp_path / "kb", decoder=decoder) as kb:
        kb.add(sheet.document for sheet in sheets[:5])
        yield kb


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Child processes for operations on a knowledge base, to be killed or to be left to run."""
    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def make_checkpoint(tmp_path: Path, checkpoint: Checkpoint) -> MakeCheckpoint:
    """A small random checkpoint with the given settings; its encoder is narrower than its decoder."""

    def make(name: str = "checkpoint", *, seed: int = 0, **settings: Any) -> Path:
        torch.manual_seed(seed)
        folder = tmp_path / name
        config = {
            "compression_ratio": 4,
            "encoder_window_size": 32,
            "pooling": "mean",
            "encoder_mask_type": "causal",
            "boundary_overlap": 0,
            "adapter_type": "mlp",
            **settings,
        }
        shape: dict[str, Any] = {
            "vocab_size": 768,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 2048,
            "eos_token_id": 2,
            "initializer_range": 0.3,
            "tie_word_embeddings": True,
        }
        encoder = Qwen3Model(Qwen3Config(hidden_size=48, intermediate_size=96, **shape))
        decoder = Qwen3ForCausalLM(Qwen3Config(hidden_size=64, intermediate_size=128, **shape))
        encoder.save_pretrained(folder / "encoder")
        decoder.save_pretrained(folder / "decoder")
        group = config["compression_ratio"] if config["pooling"] == "concat" else 1
        (folder / "adapter").mkdir()
        adapter = Adapter(48 * group, 64, 64)
        save_file(adapter.state_dict(), folder / "adapter" / "adapter.safetensors")
        for part in ("encoder", "decoder"):
            for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(checkpoint.path / part / file, folder / part / file)
        (folder / "model_config.json").write_text(json.dumps(config))
        return folder

    return make
