"""lclm-rag estimate: what a build would take, against what builds take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MakeCheckpoint
from corpus_files import write_files, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from test_imports import loaded_after
from torch.utils.flop_counter import FlopCounterMode

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checkpoint import Checkpoint, ModelConfig, Pooling, Space
from lclm_rag.cli.main import _run
from lclm_rag.compression import Compressor
from lclm_rag.compression.windows import cut_windows
from lclm_rag.connectors.corpora import read_corpus
from lclm_rag.errors import CheckpointError
from lclm_rag.estimate import (
    PEAK_TFLOPS,
    CorpusSize,
    gpu_hours,
    measure_corpus,
    plan_store,
    split_by_bytes,
)
from lclm_rag.evaluation.fact_sheets import FactSheet
from lclm_rag.model_shapes import PUBLISHED, LclmShape, TransformerShape
from lclm_rag.store import CODECS, CodecName

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        code = _run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, sheets: list[FactSheet]) -> list[Path]:
    """A folder of Markdown, each of many passages, and short records with metadata."""
    texts = [sheet.document.text for sheet in sheets]
    notes = {
        f"part-{i}.md": "# Ünden\n\n" + "\n\n".join(texts[i * 20 : (i + 1) * 20]) for i in range(3)
    }
    folder = tmp_path_factory.mktemp("corpus")
    write_files(folder / "notes", notes)
    records = [
        {"id": s.document.id, "text": s.document.text, "title": f"Sheet {i}", "lang": "en"}
        for i, s in enumerate(sheets[60:100])
    ]
    return [folder / "notes", write_jsonl(folder / "sheets.jsonl", records)]


# --- against builds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "space", "passage_tokens", "headers"),
    [(CODECS[-1], "encoder", None, False), ("bf16", "decoder", 200, True)],
)
def test_an_estimate_is_what_a_build_takes(
    run: Run,
    corpus: list[Path],
    compressor: Compressor,
    tmp_path: Path,
    codec: CodecName,
    space: Space,
    passage_tokens: int | None,
    headers: bool,
) -> None:
    with KnowledgeBase.create(
        tmp_path / "kb",
        codec=codec,
        space=space,
        passage_tokens=passage_tokens,
        contextual_headers=headers,
    ) as kb:
        kb.compressor = compressor
        built = kb.add(read_corpus(corpus))
        stored = sum(entry.bytes for entry in kb.store.manifest.fragments)

    options = ["--passage-tokens", str(passage_tokens)] if passage_tokens else []
    options += ["--contextual-headers"] if headers else []
    code, out, err = run("estimate", *corpus, "--checkpoint", "bundled", *options, "--json")
    assert code == 0, err
    estimated = json.loads(out)
    (store,) = [store for store in estimated["stores"] if store["space"] == space]
    assert estimated["documents"] == built.added
    assert estimated["passages"] == built.passages
    assert estimated["source_tokens"] == built.tokens
    assert store["latents"] == built.latents
    assert store["bytes"][codec] == pytest.approx(stored, rel=0.02)
    assert estimated["bytes_per_token"] is None


# --- the published models -------------------------------------------------------------------------


def test_without_a_checkpoint_the_published_models_are_estimated(
    run: Run, corpus: list[Path]
) -> None:
    code, out, _ = run("estimate", *corpus, "--json")
    result = json.loads(out)
    sizes = [len(d.text.encode()) for d in read_corpus(corpus)]
    assert code == 0
    assert result["documents"] == len(sizes)
    assert result["text_bytes"] == sum(sizes)
    assert result["source_tokens"] == sum(math.ceil(size / 4.5) for size in sizes)
    assert (result["bytes_per_token"], result["passage_tokens"]) == (4.5, 1024)
    rows = [(s["compression_ratio"], s["space"], s["width"]) for s in result["stores"]]
    assert rows == [
        (ratio, space, width)
        for ratio in (4, 8, 16)
        for space, width in (("encoder", 1024), ("decoder", 2560))
    ]
    for store in result["stores"]:
        assert set(store["bytes"]) == set(CODECS)
        assert set(store["gpu_hours"]) == set(PEAK_TFLOPS)
        assert store["checkpoint"].endswith(f"-{store['compression_ratio']}x")


def test_the_table_says_what_was_assumed(run: Run, corpus: list[Path]) -> None:
    code, out, _ = run("estimate", *corpus, "--utilization", "0.25")
    assert code == 0
    for said in (
        "16x",
        "encoder 1024",
        "H100 SXM",
        "at 4.5 bytes a token",
        "25% of the GPU's peak",
    ):
        assert said in out
    code, out, _ = run("estimate", *corpus, "--checkpoint", "bundled")
    assert code == 0
    assert ", counted" in out
    assert "bytes a token" not in out


def test_bytes_per_token_also_goes_with_a_checkpoint(run: Run, corpus: list[Path]) -> None:
    options = ("--bytes-per-token", "2.5", "--passage-tokens", "64", "--json")
    result = json.loads(run("estimate", *corpus, "--checkpoint", "bundled", *options)[1])
    assert (result["bytes_per_token"], result["passage_tokens"]) == (2.5, 64)
    assert {s["checkpoint"] for s in result["stores"]} == {"bundled"}
    assert result["passages"] >= result["source_tokens"] / 64


def test_the_published_sizes_are_the_known_ones() -> None:
    encoder = PUBLISHED[0].encoder
    assert encoder.matrix_parameters == 440_401_920  # "0.44B non-embedding"
    one_latent = CorpusSize(1, 64, 0, {16: 1})
    encoder_space, decoder_space = (
        plan_store(one_latent, PUBLISHED[2], space) for space in ("encoder", "decoder")
    )
    assert (encoder_space.latents, encoder_space.width, decoder_space.width) == (1, 1024, 2560)
    assert decoder_space.flops - encoder_space.flops == pytest.approx(18.35e6, rel=1e-3)
    # A million English books of 100,000 tokens on one H100: some 70 hours.
    books = CorpusSize(10**6, 45 * 10**10, 0, {1024: 10**11 // 1024})
    hours = gpu_hours(plan_store(books, PUBLISHED[2], "encoder").flops, 0.4)
    assert hours["H100 SXM"] == pytest.approx(70, rel=0.1)


def test_by_bytes_every_character_counts_as_its_bytes_and_passages_are_full() -> None:
    documents = [Document("a", "ü" * 45), Document("b", "x", {"lang": "en"})]
    size = measure_corpus(documents, split_by_bytes(8, 4.5))
    assert (size.documents, size.text_bytes, size.tokens, size.passages) == (2, 91, 21, 4)
    assert size.passage_lengths == {1: 1, 4: 1, 8: 2}
    assert size.beside_bytes == 3 * len("a{}") + len('b{"lang": "en"}')


# --- formulas -------------------------------------------------------------------------------------


@given(
    length=st.integers(1, 300),
    ratio=st.sampled_from([1, 4, 16]),
    groups=st.integers(1, 4),
    overlap=st.integers(0, 70),
    pooling=st.sampled_from(["mean", "concat", "eos"]),
)
def test_windows_are_those_of_the_compressor(
    length: int, ratio: int, groups: int, overlap: int, pooling: Pooling
) -> None:
    config = ModelConfig(ratio, ratio * groups, pooling, "causal", overlap, "mlp")
    windows = cut_windows([range(length)], config, 0 if pooling == "eos" else None)
    read = [len(window.token_ids) for window in windows]
    encoder = TransformerShape(2, 48, 4, 2, 16, 96)
    shape = LclmShape("x", config, encoder, 48, 64, 64)
    plan = plan_store(CorpusSize(1, 1, 1, {length: 3}), shape, "encoder")
    assert plan.latents == 3 * sum(window.latents for window in windows)
    pairs = sum(n * (n + 1) // 2 for n in read)
    assert plan.flops == 3 * encoder.flops(sum(read), pairs)


def test_flops_are_those_that_torch_counts(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = Checkpoint.open(make_checkpoint())  # windows of 32 tokens
    compressor = Compressor.from_pretrained(checkpoint, device="cpu", dtype="float32")
    # Torch counts no fused attention on a CPU.
    compressor.encoder.set_attn_implementation("eager")  # type: ignore[operator]
    ids = torch.randint(3, 700, (96,)).tolist()
    with FlopCounterMode(display=False) as counted:
        compressor.compress_token_ids([ids], "decoder")
    shape = LclmShape.of(checkpoint)
    plan = plan_store(CorpusSize(1, 300, 0, {96: 1}), shape, "decoder")
    # It counts what the causal mask hides as well.
    hidden = shape.encoder.flops(0, 3 * (32 * 31 // 2))
    assert counted.get_total_flops() == plan.flops + hidden


def test_an_encoder_of_another_shape_is_refused() -> None:
    config = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 48}
    with pytest.raises(CheckpointError, match="has no intermediate_size"):
        TransformerShape.of(config)


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--utilization", "0"], 2, "--utilization"),
        (["--utilization", "1.5"], 2, "--utilization"),
        (["--bytes-per-token", "0"], 2, "--bytes-per-token"),
        (["--bytes-per-token", "inf"], 1, "bytes_per_token must be"),
        (["--passage-tokens", "0"], 2, "--passage-tokens"),
        (["--contextual-headers"], 2, "give --checkpoint"),
        (
            ["--contextual-headers", "--checkpoint", "bundled", "--bytes-per-token", "3"],
            2,
            "--bytes-per-token, or leave it out",
        ),
        (["--checkpoint", "./nowhere"], 1, "There is no checkpoint folder"),
        (["--text-column", "body"], 1, "no field 'body'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(
    run: Run, corpus: list[Path], options: list[str], code: int, message: str
) -> None:
    found, out, err = run("estimate", corpus[1], *options)
    assert (found, out) == (code, "")
    assert message in " ".join(err.split())


def test_a_bad_record_can_be_skipped(run: Run, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "Fine."}, {"text": 7}, {"text": "Also."}])
    assert run("estimate", path)[0] == 1
    code, out, err = run("estimate", path, "--on-error", "skip", "--json")
    result = json.loads(out)
    assert (code, result["documents"], len(result["skipped"])) == (3, 2, 1)
    assert "skipped" in err
    assert "line 2" in err


@pytest.mark.parametrize("options", [[], ["--checkpoint", "bundled"]])
def test_no_model_library_is_loaded(corpus: list[Path], options: list[str]) -> None:
    arguments = ["estimate", *map(str, corpus), *options]
    code = f"from lclm_rag.cli.main import _run; assert _run({arguments!r}) == 0"
    assert loaded_after(code) == set()
