"""lclm-rag estimate: what a build would take, against what builds take."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checkpoint import Checkpoint, MaskType, ModelConfig, Pooling, Space
from lclm_rag.compression import Compressor, attention
from lclm_rag.compression.windows import cut_windows
from lclm_rag.connectors.corpora import read_corpus
from lclm_rag.errors import CheckpointError
from lclm_rag.estimate.devices import GPUS, Gpu
from lclm_rag.estimate.index import SERVER_CORES, IndexPlan, plan_index
from lclm_rag.estimate.serving import (
    Context,
    Questions,
    Serving,
    paid_back_after,
    plan_contexts,
    plan_serving,
)
from lclm_rag.estimate.shapes import (
    PUBLISHED,
    PUBLISHED_DECODER,
    DecoderShape,
    LclmShape,
    TransformerShape,
)
from lclm_rag.estimate.store import (
    BYTES_PER_TOKEN,
    COMPILED_AFTER,
    CorpusSize,
    StorePlan,
    encoder_utilization,
    equal_passages,
    measure_corpus,
    plan_store,
    split_by_bytes,
)
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from lclm_rag.indexing.advice import EMBEDDED_UP_TO
from lclm_rag.store import CODECS, CodecName
from support.checkpoints import MakeCheckpoint
from support.commands import Run
from support.corpus_files import write_files, write_jsonl
from support.imports import loaded_after

H100 = GPUS["H100 SXM"]


def store_of(
    size: CorpusSize, shape: LclmShape = PUBLISHED[2], space: Space = "encoder"
) -> StorePlan:
    return plan_store(size, shape, space, GPUS.values(), 0.4)


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
        keys = sum(16 * run.rows for run in kb.store.manifest.keys)
        stored = kb.store.manifest.bytes + keys

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
        assert set(store["gpu_hours"]) == set(store["gpu_cost"]) == set(GPUS)
        assert store["checkpoint"].endswith(f"-{store['compression_ratio']}x")


def test_the_tables_show_what_was_assumed(run: Run, corpus: list[Path]) -> None:
    code, out, _ = run("estimate", *corpus, "--utilization", "0.25")
    assert code == 0
    shown = ("16x", "encoder 1024", "H100 SXM", "at 4.5 bytes a token", "25% of its peak", "$4.18")
    for words in shown:
        assert words in out
    code, out, _ = run("estimate", *corpus, "--checkpoint", "bundled")
    assert code == 0
    assert ", counted" in out
    assert "bytes a token" not in out
    assert "bytes of text" not in out


def test_a_build_is_faster_once_the_encoder_is_compiled() -> None:
    assert COMPILED_AFTER == attention._COMPILED_AFTER
    assert encoder_utilization(1) == encoder_utilization(COMPILED_AFTER) == pytest.approx(0.3)
    # Three times as many: a third of them takes 1/0.3, the rest 1/0.4.
    assert encoder_utilization(3 * COMPILED_AFTER) == pytest.approx(3 / (1 / 0.3 + 2 / 0.4))
    assert encoder_utilization(10**12) == pytest.approx(0.4, rel=1e-3)


def test_a_price_replaces_that_of_its_gpu_alone(run: Run, corpus: list[Path]) -> None:
    options = ("--gpu", "l4", "--gpu-hour-price", "0.5", "--json")
    for store in json.loads(run("estimate", *corpus, *options)[1])["stores"]:
        hours, cost = store["gpu_hours"], store["gpu_cost"]
        assert cost["L4"] == pytest.approx(0.5 * hours["L4"])
        assert cost["H100 SXM"] == pytest.approx(H100.dollars_per_hour * hours["H100 SXM"])


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
        store_of(one_latent, space=space) for space in ("encoder", "decoder")
    )
    assert (encoder_space.latents, encoder_space.width, decoder_space.width) == (1, 1024, 2560)
    assert decoder_space.flops - encoder_space.flops == pytest.approx(18.35e6, rel=1e-3)
    # A million English books of 100,000 tokens on one H100: some 70 hours.
    books = CorpusSize(10**6, 45 * 10**10, 0, {1024: 10**11 // 1024})
    assert store_of(books).gpu_hours["H100 SXM"] == pytest.approx(70, rel=0.1)


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
    mask=st.sampled_from(["causal", "bidirectional"]),
)
def test_windows_are_those_of_the_compressor(
    length: int, ratio: int, groups: int, overlap: int, pooling: Pooling, mask: MaskType
) -> None:
    config = ModelConfig(ratio, ratio * groups, pooling, mask, overlap, "mlp")
    windows = cut_windows([range(length)], config, 0 if pooling == "eos" else None)
    read = windows.lengths.tolist()
    encoder = TransformerShape(2, 48, 4, 2, 16, 96)
    shape = LclmShape("x", config, encoder, 48, 64, 64)
    plan = store_of(CorpusSize(1, 1, 1, {length: 3}), shape)
    assert plan.latents == 3 * int(windows.latents.sum())
    pairs = sum(n * (n + 1) // 2 if mask == "causal" else n * n for n in read)
    assert plan.flops == 3 * encoder.flops(sum(read), pairs)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoder_mask_type": "bidirectional", "adapter_type": "attn_mlp"},
        {"adapter_type": "mlp_attn", "num_adapter_layers": 2},
    ],
)
def test_flops_are_those_that_torch_counts(
    make_checkpoint: MakeCheckpoint, settings: dict[str, Any]
) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(**settings))  # windows of 32 tokens
    compressor = Compressor.from_pretrained(checkpoint, device="cpu", dtype="float32")
    ids = torch.randint(3, 700, (96,)).tolist()
    # Torch counts no fused attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        compressor.compress_token_ids([ids], "decoder")
    shape = LclmShape.of(checkpoint)
    plan = store_of(CorpusSize(1, 300, 0, {96: 1}), shape, "decoder")
    # It counts what a causal mask hides as well.
    hidden = shape.encoder.flops(0, 3 * (32 * 31 // 2)) if shape.config.is_causal else 0
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
        (["--bytes-per-token", "inf"], 2, "is not finite"),
        (["--gpu-hour-price", "0"], 2, "--gpu-hour-price"),
        (["--passage-tokens", "0"], 2, "--passage-tokens"),
        (["--contextual-headers"], 2, "give a CORPUS, --checkpoint"),
        (
            ["--contextual-headers", "--checkpoint", "bundled", "--bytes-per-token", "3"],
            2,
            "no --bytes-per-token, or leave it out",
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


# --- what a question costs ------------------------------------------------------------------------

# Sizes with which everything can be worked out by hand: 14 matrix parameters, 3 · 2 of output.
TINY = DecoderShape(TransformerShape(1, 2, 1, 1, 1, 1), vocabulary=3, context_length=100)


def tiny_serving(memory: float, utilization: float = 1.0) -> Serving:
    """10 positions and 4 tokens of answer, on 1,000 FLOP/s and 100 bytes/s."""
    gpu = Gpu("slow", flops=1000, memory=memory, bandwidth=100, dollars_per_hour=3.6)
    questions = Questions(per_second=1, top_k=1, answer_tokens=4)
    serving = plan_serving(10, TINY, questions, gpu, utilization)
    assert serving is not None
    return serving


def test_a_question_costs_what_is_worked_out_by_hand() -> None:
    assert (TINY.output_flops, TINY.weight_bytes, TINY.kv_bytes) == (12, 40, 4)
    serving = tiny_serving(memory=200)
    # (0.92 · 200 - 40) / (14 · 4) = 2.6 questions at once.
    assert (serving.at_once, serving.tensor_parallel, serving.kv_bytes) == (2, 1, 56)
    assert serving.prefill_flops == 2 * 14 * 10 + 4 * 55 + 12
    # A step reads 40 bytes of weights and 2 · 12 · 4 of cache: 1.36 s, shared by two, four times.
    assert serving.gpu_seconds == pytest.approx(0.512 + 4 * 1.36 / 2)
    assert serving.gpus == 4
    assert serving.cost_per_1000 == pytest.approx(3.232)
    assert tiny_serving(200, utilization=0.5).gpu_seconds == pytest.approx(2 * 3.232)


def test_a_server_takes_as_many_gpus_as_hold_the_weights_and_one_question() -> None:
    serving = tiny_serving(memory=60)
    assert (serving.tensor_parallel, serving.at_once) == (2, 1)
    # Twice the FLOPs and the bandwidth: 0.256 s and four steps of 88 / 200 s, on two GPUs, three servers.
    assert serving.gpu_seconds == pytest.approx(2 * (0.256 + 4 * 0.44))
    assert serving.gpus == 2 * 3


def test_the_published_decoder_has_the_known_sizes() -> None:
    assert PUBLISHED_DECODER.kv_bytes == 147_456
    assert PUBLISHED_DECODER.transformer.matrix_parameters == 3_633_315_840  # "3.6B non-embedding"


def test_what_is_longer_than_the_decoder_takes_is_not_served() -> None:
    gpu = GPUS["L4"]
    assert plan_serving(97, TINY, Questions(1, 1, answer_tokens=4), gpu, 0.4) is None
    assert plan_serving(97, TINY, Questions(1, 1, answer_tokens=3), gpu, 0.4) is not None


# --- contexts and the passage index ---------------------------------------------------------------


def contexts_of(
    size: CorpusSize, per_second: float = 10.0, gpu: Gpu = H100, top_k: int = 16
) -> dict[str, Context]:
    stores = [plan_store(size, shape, "encoder", [gpu], 0.4) for shape in PUBLISHED]
    questions = Questions(per_second, top_k)
    plans = plan_contexts(size, stores, PUBLISHED_DECODER, questions, gpu, 0.4)
    return {context.name: context for context in plans}


def cost_of(context: Context) -> float:
    assert context.serving is not None
    return context.serving.cost_per_1000


def passages_of(count: int, tokens: int = 512) -> CorpusSize:
    return equal_passages(count, tokens, BYTES_PER_TOKEN)


def index_of(
    count: int, per_second: float = 10.0, dense_width: int = 1024, replicas: int = 2
) -> IndexPlan:
    return plan_index(passages_of(count), dense_width, per_second, 64 * 2**30, replicas)


def test_a_million_passages_by_hand() -> None:
    size = passages_of(10**6)
    store = store_of(size)
    # 32 latents of 514 bytes, 512 tokens of 4.5, 64 of id and metadata, 105 of the row, 16 of the key.
    assert store.bytes["int4"] == 10**6 * (32 * 514 + 512 * 4.5 + 64 + 105 + 16)
    assert store.gpu_hours["H100 SXM"] == pytest.approx(0.338, rel=1e-2)
    assert store.gpu_cost["H100 SXM"] == pytest.approx(0.338 * 4.18, rel=1e-2)
    index = index_of(10**6)
    # 153.6 terms of 5.6 bytes and an id of 29 in memory, with the vector; half as much on top.
    assert index.ram_bytes == pytest.approx(1.5e6 * (153.6 * 5.6 + 29 + 4096))
    assert index.disk_bytes == pytest.approx(1.5e6 * (153.6 * 13.3 + 29 + 300 + 4096))
    # Ten questions a second, each over a million points of 153.6 terms.
    assert index.cores == pytest.approx(10 * 153.6e6 * 3e-11)
    assert (index.nodes, index.embedded) == (3, False)
    assert index_of(EMBEDDED_UP_TO).embedded is True
    contexts = contexts_of(size)
    assert list(contexts) == ["latents 4x", "latents 8x", "latents 16x", "text"]
    assert contexts["latents 16x"].positions == 20 + 32 + 16 * (5 + 2 + 32)
    assert contexts["text"].positions == 20 + 32 + 16 * (5 + 512)


def test_servers_are_counted_by_memory_or_by_cores() -> None:
    index = index_of(10**8, dense_width=0, replicas=1)
    assert index.ram_bytes == pytest.approx(1.5e8 * (153.6 * 5.6 + 29))
    assert index.nodes == math.ceil(index.ram_bytes / 2**36)
    busy = index_of(10**8, per_second=1000, dense_width=0, replicas=1)
    assert (busy.ram_bytes, busy.nodes) == (index.ram_bytes, math.ceil(busy.cores / SERVER_CORES))


@given(
    passages=st.integers(1, 10**9),
    times=st.integers(2, 1000),
    rate=st.floats(0.01, 1e4),
    width=st.sampled_from([0, 384, 1024]),
)
def test_more_passages_take_more_and_a_question_costs_the_same(
    passages: int, times: int, rate: float, width: int
) -> None:
    small, large = store_of(passages_of(passages)), store_of(passages_of(passages * times))
    for codec in CODECS:
        assert large.bytes[codec] == times * small.bytes[codec]
    for gpu in GPUS:
        assert large.gpu_cost[gpu] == pytest.approx(times * small.gpu_cost[gpu])
    one, other = (index_of(count, rate, width) for count in (passages, passages * times))
    assert other.nodes >= one.nodes
    assert other.ram_bytes > one.ram_bytes
    assert other.disk_bytes > other.ram_bytes
    few, many = (contexts_of(passages_of(count), rate) for count in (passages, passages * times))
    for name in few:
        assert cost_of(many[name]) == cost_of(few[name])


@given(rate=st.floats(0.01, 1e4), times=st.floats(1, 100), price=st.floats(0.1, 100))
def test_rates_and_prices_scale(rate: float, times: float, price: float) -> None:
    size = passages_of(10**6)
    one = contexts_of(size, rate)
    dear = replace(H100, dollars_per_hour=price * H100.dollars_per_hour)
    more = contexts_of(size, rate * times, dear)
    for name, context in one.items():
        a, b = context.serving, more[name].serving
        assert a is not None
        assert b is not None
        assert b.gpus >= a.gpus
        assert b.gpus >= rate * times * b.gpu_seconds
        assert b.cost_per_1000 == pytest.approx(price * a.cost_per_1000)
        assert more[name].paid_back_after == pytest.approx(context.paid_back_after)


def test_compressing_pays_only_where_a_question_is_cheaper() -> None:
    size = passages_of(10**6)
    contexts = contexts_of(size)
    latents, text = contexts["latents 16x"], contexts["text"]
    cost = store_of(size).gpu_cost["H100 SXM"]
    saved = (cost_of(text) - cost_of(latents)) / 1000
    assert latents.paid_back_after == pytest.approx(cost / saved)
    assert text.paid_back_after is None
    assert paid_back_after(cost, text.serving, latents.serving) is None
    # A latent and its two marks are more than two tokens.
    assert contexts_of(passages_of(10**6, 2))["latents 16x"].paid_back_after is None


def test_nothing_is_planned_for_no_passages() -> None:
    with pytest.raises(ValueError, match="no passages"):
        contexts_of(passages_of(0))


# --- machines, on the command line ----------------------------------------------------------------


def plan_of(run: Run, *options: str) -> dict[str, Any]:
    code, out, err = run("estimate", *options, "--json")
    assert code == 0, err
    plan: dict[str, Any] = json.loads(out)
    return plan


@pytest.mark.parametrize(
    ("count", "passages", "shown"),
    [
        ("1M", 10**6, ["18.9 GB", "7.5 GB", "3 of 64 GiB and 16 cores, 2 copies"]),
        ("100M", 10**8, ["1.9 TB", "747.8 GB", "22 of 64 GiB and 16 cores, 2 copies"]),
        ("250k", 250_000, ["4.7 GB", "the embedded index will do"]),
    ],
)
def test_passages_alone_give_the_machines(
    run: Run, count: str, passages: int, shown: list[str]
) -> None:
    code, out, _ = run("estimate", "--passages", count)
    assert code == 0
    for words in (f"{passages:,}", "latents 16x", "text", "$4.18", "40%", "GPUs for 10/s", *shown):
        assert words in out


def test_json_has_the_whole_plan(run: Run) -> None:
    plan = plan_of(run, "--passages", "1M")
    assert (plan["passages"], plan["passage_tokens"]) == (10**6, 512)
    assert len(plan["stores"]) == 6
    machines = plan["machines"]
    assert set(machines) == {"questions", "gpu", "index", "contexts"}
    assert machines["questions"] == {
        "per_second": 10,
        "top_k": 16,
        "question_tokens": 32,
        "answer_tokens": 128,
    }
    assert machines["gpu"]["name"] == "H100 SXM"
    contexts = {context["name"]: context for context in machines["contexts"]}
    latents, text = contexts["latents 16x"], contexts["text"]
    assert text["paid_back_after"] is None
    assert latents["serving"]["cost_per_1000"] < text["serving"]["cost_per_1000"]
    (store,) = (
        s for s in plan["stores"] if (s["compression_ratio"], s["space"]) == (16, "encoder")
    )
    saved = text["serving"]["cost_per_1000"] - latents["serving"]["cost_per_1000"]
    paid_back = 1000 * store["gpu_cost"]["H100 SXM"] / saved
    assert latents["paid_back_after"] == pytest.approx(paid_back)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("1000000", 10**6),
        ("1_000_000", 10**6),
        ("250k", 250_000),
        ("2.5m", 2_500_000),
        ("1B", 10**9),
    ],
)
def test_counts_are_read_as_people_write_them(run: Run, written: str, count: int) -> None:
    assert plan_of(run, "--passages", written)["passages"] == count


def test_options_of_the_machines_are_heard(run: Run) -> None:
    base = plan_of(run, "--passages", "100M")["machines"]

    def with_(*options: str) -> dict[str, Any]:
        machines: dict[str, Any] = plan_of(run, "--passages", "100M", *options)["machines"]
        return machines

    def cost(machines: dict[str, Any]) -> float:
        return float(machines["contexts"][0]["serving"]["cost_per_1000"])

    assert with_("--gpu", "l4")["gpu"]["name"] == "L4"
    assert with_("--gpu", "l4")["contexts"][0]["serving"] != base["contexts"][0]["serving"]
    assert with_("--dense-width", "0")["index"]["ram_bytes"] < base["index"]["ram_bytes"] / 4
    assert with_("--machine-memory", "128")["index"]["nodes"] == 11
    assert with_("--replicas", "1")["index"]["nodes"] == base["index"]["nodes"] / 2
    assert with_("--top-k", "8")["contexts"][2]["positions"] == 52 + 8 * 39
    assert with_("--questions-per-second", "1000")["index"]["cores"] == pytest.approx(460.8)
    assert cost(with_("--gpu-hour-price", "8.36")) == pytest.approx(2 * cost(base))
    assert cost(with_("--utilization", "0.2")) == pytest.approx(2 * cost(base))


def test_pasted_text_that_does_not_fit_is_named(run: Run) -> None:
    contexts = plan_of(run, "--passages", "1M", "--top-k", "1000")["machines"]["contexts"]
    fits = {context["name"]: context["serving"] is not None for context in contexts}
    assert fits == {"latents 4x": True, "latents 8x": True, "latents 16x": True, "text": False}
    assert contexts[0]["paid_back_after"] is None
    code, out, _ = run("estimate", "--passages", "1M", "--top-k", "1000")
    assert code == 0
    assert "517,052" in out
    assert "does not fit" in out


def test_a_corpus_gets_the_same_section(run: Run, corpus: list[Path]) -> None:
    without = json.loads(run("estimate", *corpus, "--json")[1])
    plan = json.loads(run("estimate", *corpus, "--questions-per-second", "2", "--json")[1])
    machines = plan.pop("machines")
    assert plan == without
    assert machines["index"]["embedded"] is True
    code, out, _ = run("estimate", *corpus, "--questions-per-second", "2")
    assert code == 0
    assert "The store on disk, text included" in out
    assert "Answering on H100 SXM" in out


def test_a_checkpoint_brings_its_own_decoder(run: Run) -> None:
    options = ("--passages", "1M", "--passage-tokens", "64", "--checkpoint", "bundled")
    latents, text = plan_of(run, *options)["machines"]["contexts"]
    assert (latents["name"], text["name"]) == ("latents 4x", "text")
    # 4 layers, 2 heads of 64 numbers, key and value, 2 bytes; 128 tokens of answer.
    assert latents["serving"]["kv_bytes"] == (latents["positions"] + 128) * 4 * 2 * 64 * 2 * 2


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "Give either a CORPUS or --passages."),
        (["README.md", "--passages", "1M"], 2, "Give either a CORPUS or --passages."),
        (["--passages", "many"], 2, "is not a count like"),
        (["--passages", "0"], 2, "is not a count like"),
        (["--passages", "9" * 400], 2, "is not a count like"),
        (["--passages", "1M", "--text-column", "a"], 2, "--text-column is for reading"),
        (["--passages", "1M", "--numbers", "a"], 2, "--numbers is for reading"),
        (["--passages", "1M", "--contextual-headers"], 2, "--contextual-headers is for counted"),
        (["README.md", "--top-k", "4"], 2, "--top-k is for the machines"),
        (["README.md", "--replicas", "1"], 2, "--replicas is for the machines"),
        (["--passages", "1M", "--gpu", "TPU"], 2, "'TPU' is not one of"),
        (["--passages", "1M", "--questions-per-second", "inf"], 2, "is not finite"),
        (["--passages", "1M", "--machine-memory", "0"], 2, "--machine-memory"),
        (["--passages", "1M", "--bytes-per-token", "inf"], 2, "is not finite"),
        (["--passages", "1M", "--top-k", "9999"], 1, "take fewer or shorter passages"),
    ],
)
def test_wrong_usage_of_the_machines_is_refused_in_one_sentence(
    run: Run, options: list[str], code: int, message: str
) -> None:
    found, out, err = run("estimate", *options)
    assert (found, out) == (code, "")
    assert message in " ".join(err.split())


def test_no_model_library_is_loaded_for_the_machines() -> None:
    arguments = ["estimate", "--passages", "10B"]
    code = f"from lclm_rag.cli.main import _run; assert _run({arguments!r}) == 0"
    assert loaded_after(code) == set()
