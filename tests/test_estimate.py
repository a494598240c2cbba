"""lclm-rag estimate: what a build would take, against what builds take."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Run
from conftest import MakeCheckpoint
from corpus_files import write_files, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from test_imports import loaded_after
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checkpoint import Checkpoint, ModelConfig, Pooling, Space
from lclm_rag.cli.machines import GPUS
from lclm_rag.compression import Compressor
from lclm_rag.compression.windows import cut_windows
from lclm_rag.connectors.corpora import read_corpus
from lclm_rag.errors import CheckpointError
from lclm_rag.estimate.cluster import ClusterPlan, Needs, paid_back_after, plan_cluster
from lclm_rag.estimate.limits import next_limit
from lclm_rag.estimate.machines import SERVER_CORES
from lclm_rag.estimate.serving import (
    GPU_MEMORY,
    Gpu,
    Prompt,
    Questions,
    Serving,
    latent_prompt,
    plan_serving,
    text_prompt,
)
from lclm_rag.estimate.shapes import (
    PUBLISHED,
    PUBLISHED_DECODER,
    DecoderShape,
    LclmShape,
    TransformerShape,
)
from lclm_rag.estimate.store import (
    PEAK_TFLOPS,
    CorpusSize,
    equal_passages,
    gpu_hours,
    measure_corpus,
    plan_store,
    split_by_bytes,
)
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from lclm_rag.indexing.advice import EMBEDDED_UP_TO
from lclm_rag.storage import LocalFolder
from lclm_rag.store import CODECS, CodecName, Layout
from lclm_rag.store.manifest import FragmentEntry, Manifest, Totals, write_manifest


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
    read = windows.lengths.tolist()
    encoder = TransformerShape(2, 48, 4, 2, 16, 96)
    shape = LclmShape("x", config, encoder, 48, 64, 64)
    plan = plan_store(CorpusSize(1, 1, 1, {length: 3}), shape, "encoder")
    assert plan.latents == 3 * int(windows.latents.sum())
    pairs = sum(n * (n + 1) // 2 for n in read)
    assert plan.flops == 3 * encoder.flops(sum(read), pairs)


def test_flops_are_those_that_torch_counts(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = Checkpoint.open(make_checkpoint())  # windows of 32 tokens
    compressor = Compressor.from_pretrained(checkpoint, device="cpu", dtype="float32")
    ids = torch.randint(3, 700, (96,)).tolist()
    # Torch counts no fused attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
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


# --- what a question costs ------------------------------------------------------------------------

# Sizes with which everything can be worked out by hand: 14 matrix parameters, 3 · 2 of output.
TINY = DecoderShape(TransformerShape(1, 2, 1, 1, 1, 1), vocabulary=3, context_length=100)


def tiny_serving(memory: float, utilization: float = 1.0, per_second: float = 1.0) -> Serving:
    """10 positions and 4 tokens of answer, on 1,000 FLOP/s and 100 bytes/s."""
    gpu = Gpu("slow", flops=1000, memory=memory, bandwidth=100)
    prompt = Prompt("latents", 10, adapter_flops=0, read_bytes=0, sent_bytes=0)
    questions = Questions(per_second, top_k=1, answer_tokens=4)
    serving = plan_serving(prompt, TINY, questions, gpu, utilization, gpu_hour_price=3.6)
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
    assert serving.servers == serving.gpus == 4
    assert serving.cost_per_1000 == pytest.approx(3.232)
    assert tiny_serving(200, utilization=0.5).gpu_seconds == pytest.approx(2 * 3.232)


def test_a_server_takes_as_many_gpus_as_hold_the_weights_and_one_question() -> None:
    serving = tiny_serving(memory=60)
    assert (serving.tensor_parallel, serving.at_once) == (2, 1)
    # Twice the FLOPs and the bandwidth: 0.256 s and four steps of 88 / 200 s, on two GPUs.
    assert serving.gpu_seconds == pytest.approx(2 * (0.256 + 4 * 0.44))
    assert serving.gpus == 2 * serving.servers


def test_the_published_decoder_has_the_known_sizes() -> None:
    assert PUBLISHED_DECODER.kv_bytes == 147_456
    assert PUBLISHED_DECODER.transformer.matrix_parameters == 3_633_315_840  # "3.6B non-embedding"
    questions = Questions(10, top_k=16)
    latents = latent_prompt(PUBLISHED[2], "encoder", questions, 32, 18_921)
    text = text_prompt(questions, 512, 2304)
    assert latents.positions == 20 + 32 + 16 * (5 + 2 + 32)
    assert text.positions == 20 + 32 + 16 * (5 + 512)
    assert latents.adapter_flops == pytest.approx(16 * 32 * 18.35e6, rel=1e-3)
    assert latent_prompt(PUBLISHED[2], "decoder", questions, 32, 0).adapter_flops == 0
    assert (latents.read_bytes, text.read_bytes) == (16 * 18_921, 16 * 2304)
    assert latents.sent_bytes == pytest.approx(676 * 2560 * 2 * 4 / 3)


def test_what_is_longer_than_the_context_is_not_served() -> None:
    prompt = Prompt("pasted text", 97, 0, 0, 0)
    gpu = Gpu.named("L4")
    assert plan_serving(prompt, TINY, Questions(1, 1, answer_tokens=4), gpu, 0.4, 1) is None
    assert plan_serving(prompt, TINY, Questions(1, 1, answer_tokens=3), gpu, 0.4, 1) is not None


# --- machines -------------------------------------------------------------------------------------


def cluster(passages: int, per_second: float = 10.0, **options: Any) -> ClusterPlan:
    needs = Needs(questions=Questions(per_second, top_k=16), **options)
    size = equal_passages(passages, 512)
    return plan_cluster(size, PUBLISHED[2], PUBLISHED_DECODER, needs, PUBLISHED[:2])


def test_a_million_passages_by_hand() -> None:
    plan = cluster(10**6)
    files = plan.files
    # 32 latents of 514 bytes, 512 tokens of 4.5, 64 of id and metadata, 105 of the row.
    assert files.row_bytes == 32 * 514 + 512 * 4.5 + 64 + 105
    assert files.fragments == math.ceil(10**6 * 512 / 2**19)
    assert files.compacted == math.ceil(files.bytes / 2**26)
    assert files.manifest_bytes == 977 * 320
    assert files.held_memory == 16 * 10**6
    assert plan.compressing.gpu_hours == pytest.approx(0.338, rel=1e-2)
    assert plan.compressing.tokens_per_second == pytest.approx(512e6 / 86_400)
    float32, int8, binary = plan.indexes
    # 153.6 terms of 5.6 bytes and an id of 29 in memory, with the vector; half as much on top.
    words = 153.6 * 5.6 + 29
    assert float32.ram_bytes == pytest.approx(1.5e6 * (words + 4096))
    assert int8.ram_bytes == pytest.approx(1.5e6 * (words + 1024 + 128))
    assert binary.ram_bytes == pytest.approx(1.5e6 * (words + 128 + 128))
    # Ten questions a second, each over a million points of 153.6 terms.
    assert float32.cores == pytest.approx(10 * 153.6e6 * 3e-11)
    assert (float32.nodes, plan.index_server, plan.knowledge_bases) == (3, True, 1)
    assert cluster(EMBEDDED_UP_TO).index_server is False
    forms = [serving.prompt.form for serving in plan.serving]
    assert forms == ["latents 16x", "latents 4x", "latents 8x", "pasted text"]


def test_bm25_alone_has_one_form() -> None:
    plan = cluster(10**8, dense_width=0, replicas=1)
    (index,) = plan.indexes
    assert index.ram_bytes == pytest.approx(1.5e8 * (153.6 * 5.6 + 29))
    assert index.nodes == math.ceil(index.ram_bytes / 2**36)
    busy = cluster(10**8, per_second=1000, dense_width=0, replicas=1).indexes[0]
    assert (busy.ram_bytes, busy.nodes) == (index.ram_bytes, math.ceil(busy.cores / SERVER_CORES))


def test_a_manifest_takes_the_bytes_that_are_assumed(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    layout = Layout("int4", "encoder", 1024, "f" * 16, 16)
    entries = [
        FragmentEntry(
            f"{i:032x}.arrow", 1024, 32_768, 524_288, 19_300_000, f"{i:064x}", 1234, f"{i:016x}"
        )
        for i in range(100)
    ]
    write_manifest(folder, Manifest(1, layout, tuple(entries), Totals(), "add", "now"))
    (written,) = folder.files()
    fragments = cluster(100 * 1024).files
    assert fragments.fragments == 100
    assert fragments.manifest_bytes == pytest.approx(written.size, rel=0.05)


@given(
    passages=st.integers(1, 10**10),
    times=st.integers(2, 1000),
    rate=st.floats(0.01, 1e4),
    width=st.sampled_from([0, 384, 1024]),
)
def test_more_passages_take_more_and_limits_stay_where_they_are(
    passages: int, times: int, rate: float, width: int
) -> None:
    small, large = (
        cluster(count, rate, dense_width=width) for count in (passages, passages * times)
    )
    assert large.files.bytes == times * small.files.bytes
    assert large.compressing.cost == pytest.approx(times * small.compressing.cost)
    assert large.files.fragments >= small.files.fragments
    assert large.compressing.gpus >= small.compressing.gpus
    assert large.knowledge_bases >= small.knowledge_bases
    assert [s.cost_per_1000 for s in large.serving] == [s.cost_per_1000 for s in small.serving]
    for one, other in zip(small.indexes, large.indexes, strict=True):
        assert (other.nodes >= one.nodes, other.ram_bytes >= one.ram_bytes) == (True, True)
    reached = {limit.what: limit.reached_at for limit in small.limits}
    for limit in large.limits:
        if "open" not in limit.what:  # There a last fragment that is not full counts.
            assert limit.reached_at == pytest.approx(reached[limit.what], rel=1e-3)
    shares = [limit.share for limit in large.limits]
    assert shares == sorted(shares, reverse=True)


@given(rate=st.floats(0.01, 1e4), times=st.floats(1, 100), price=st.floats(0.1, 100))
def test_rates_and_prices_scale(rate: float, times: float, price: float) -> None:
    one, more = cluster(10**6, rate), cluster(10**6, rate * times, gpu_hour_price=3 * price)
    for a, b in zip(one.serving, more.serving, strict=True):
        assert b.servers >= a.servers
        assert b.servers >= rate * times * b.gpu_seconds / b.tensor_parallel
        assert b.cost_per_1000 == pytest.approx(price * a.cost_per_1000)
    before, after = (
        paid_back_after(p.compressing, p.serving[0], p.serving[-1]) for p in (one, more)
    )
    assert before == pytest.approx(after)


@pytest.mark.parametrize("passages", [2 * 10**8, 10**10])
def test_a_corpus_that_is_split_as_told_stays_within_its_limits(passages: int) -> None:
    whole = cluster(passages)
    assert whole.knowledge_bases > 1
    part = cluster(passages // whole.knowledge_bases)
    assert part.knowledge_bases == 1
    assert next_limit(part.limits, "passages") is not None


def test_compressing_pays_only_where_a_question_is_cheaper() -> None:
    plan = cluster(10**6)
    latents, text = plan.serving[0], plan.serving[-1]
    after = paid_back_after(plan.compressing, latents, text)
    assert after == pytest.approx(
        1000 * plan.compressing.cost / (text.cost_per_1000 - latents.cost_per_1000)
    )
    assert paid_back_after(plan.compressing, text, latents) is None
    # A latent and its two marks are more than two tokens.
    needs = Needs(questions=Questions(10, top_k=16))
    short = plan_cluster(equal_passages(10**6, 2), PUBLISHED[2], PUBLISHED_DECODER, needs)
    assert paid_back_after(short.compressing, short.serving[0], short.serving[-1]) is None


def test_nothing_is_planned_for_no_passages() -> None:
    with pytest.raises(ValueError, match="no passages"):
        cluster(0)


# --- machines, on the command line ----------------------------------------------------------------


def plan_of(run: Run, *options: str) -> dict[str, Any]:
    code, out, err = run("estimate", *options, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    ("count", "passages", "said"),
    [
        ("1M", 10**6, ["18.9 GB", "977 as built", "Servers of 64 GiB", "Next limit"]),
        (
            "100M",
            10**8,
            ["1.9 TB", "31.3 MB", "Servers of 64 GiB and 16 cores, 2 copies", "Next limit"],
        ),
        ("10B", 10**10, ["189.2 TB", "3.1 GB", "Too large for one knowledge base"]),
    ],
)
def test_passages_alone_give_the_machines(
    run: Run, count: str, passages: int, said: list[str]
) -> None:
    code, out, _ = run("estimate", "--passages", count)
    assert code == 0
    for each in (f"{passages:,}", "Ray actor", "pasted text", "$3 a GPU hour", "40%", *said):
        assert each in out


def test_json_has_the_whole_plan(run: Run) -> None:
    found = plan_of(run, "--passages", "1M")
    assert (found["passages"], found["passage_tokens"]) == (10**6, 512)
    assert len(found["stores"]) == 6
    machines = found["machines"]
    assert set(machines) == {
        "needs",
        "files",
        "compressing",
        "indexes",
        "index_server",
        "serving",
        "too_long",
        "limits",
        "knowledge_bases",
    }
    assert machines["needs"]["questions"]["per_second"] == 10
    assert [index["form"] for index in machines["indexes"]] == ["float32", "int8", "binary"]
    ratios = {serving["prompt"]["form"]: serving for serving in machines["serving"]}
    assert list(ratios) == ["latents 16x", "latents 8x", "latents 4x", "pasted text"]
    assert ratios["pasted text"]["paid_back_after"] is None
    assert ratios["latents 16x"]["paid_back_after"] > 0
    assert ratios["latents 16x"]["cost_per_1000"] < ratios["pasted text"]["cost_per_1000"]
    for limit in machines["limits"]:
        assert limit["share"] == pytest.approx(limit["planned"] / limit["reached_at"])


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
        found: dict[str, Any] = plan_of(run, "--passages", "100M", *options)["machines"]
        return found

    assert with_("--codec", "bf16")["files"]["bytes"] > 3 * base["files"]["bytes"]
    assert with_("--ratio", "4")["serving"][0]["prompt"]["form"] == "latents 4x"
    assert with_("--space", "decoder")["files"]["bytes"] > 2 * base["files"]["bytes"]
    assert with_("--gpu", "l4")["compressing"]["gpus"] > base["compressing"]["gpus"]
    assert with_("--deadline-hours", "1")["compressing"]["gpus"] == 34
    assert with_("--dense-width", "0")["indexes"][0]["form"] == "BM25 alone"
    assert with_("--machine-memory", "128")["indexes"][0]["nodes"] == 11
    assert with_("--replicas", "1")["indexes"][0]["nodes"] == base["indexes"][0]["nodes"] / 2
    top = with_("--top-k", "8")["serving"][0]["prompt"]
    assert top["positions"] == 52 + 8 * 39
    priced = with_("--gpu-hour-price", "6")["compressing"]["cost"]
    assert priced == pytest.approx(2 * base["compressing"]["cost"])


def test_pasted_text_that_does_not_fit_is_named(run: Run) -> None:
    found = plan_of(run, "--passages", "1M", "--top-k", "1000")["machines"]
    assert [prompt["form"] for prompt in found["too_long"]] == ["pasted text"]
    assert found["serving"][0]["paid_back_after"] is None
    code, out, _ = run("estimate", "--passages", "1M", "--top-k", "1000")
    assert code == 0
    assert "As pasted text: 517,052 positions, more than the decoder takes." in out


def test_a_corpus_gets_the_same_section(run: Run, corpus: list[Path]) -> None:
    without = json.loads(run("estimate", *corpus, "--json")[1])
    found = json.loads(run("estimate", *corpus, "--questions-per-second", "2", "--json")[1])
    machines = found.pop("machines")
    assert found == without
    (store,) = (
        s for s in found["stores"] if (s["compression_ratio"], s["space"]) == (16, "encoder")
    )
    assert machines["files"]["bytes"] == store["bytes"]["int4"]
    code, out, _ = run("estimate", *corpus, "--questions-per-second", "2")
    assert code == 0
    assert "The store on disk, text included" in out
    assert "What gives out, and where" in out


def test_a_checkpoint_brings_its_own_decoder(run: Run) -> None:
    options = ("--passages", "1M", "--passage-tokens", "64", "--checkpoint", "bundled")
    machines = plan_of(run, *options)["machines"]
    forms = [serving["prompt"]["form"] for serving in machines["serving"]]
    assert forms == ["latents 4x", "pasted text"]
    # 4 layers, 2 heads of 64 numbers, key and value, 2 bytes; 128 tokens of answer.
    latents = machines["serving"][0]
    assert latents["kv_bytes"] == (latents["prompt"]["positions"] + 128) * 4 * 2 * 64 * 2 * 2


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
        (["--passages", "1M", "--contextual-headers"], 2, "--contextual-headers is for reading"),
        (["README.md", "--top-k", "4"], 2, "--top-k is for the machines"),
        (["--passages", "1M", "--checkpoint", "bundled", "--ratio", "8"], 2, "--ratio is for the"),
        (["--passages", "1M", "--gpu", "TPU"], 2, "'TPU' is not one of"),
        (["--passages", "1M", "--questions-per-second", "inf"], 2, "is not finite"),
        (["--passages", "1M", "--deadline-hours", "0"], 2, "--deadline-hours"),
        (["--passages", "1M", "--bytes-per-token", "inf"], 1, "bytes_per_token must be"),
        (["--passages", "1M", "--top-k", "9999"], 1, "take fewer or shorter passages"),
    ],
)
def test_wrong_usage_of_the_machines_is_refused_in_one_sentence(
    run: Run, options: list[str], code: int, message: str
) -> None:
    found, out, err = run("estimate", *options)
    assert (found, out) == (code, "")
    assert message in " ".join(err.split())


def test_the_command_knows_the_gpus_that_can_be_estimated() -> None:
    assert list(PEAK_TFLOPS) == list(GPU_MEMORY) == GPUS


def test_no_model_library_is_loaded_for_the_machines() -> None:
    arguments = ["estimate", "--passages", "10B"]
    code = f"from lclm_rag.cli.main import _run; assert _run({arguments!r}) == 0"
    assert loaded_after(code) == set()
