"""Windows lie one behind the other in a batch, and none sees another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GptOssConfig,
    GptOssModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    Qwen3NextConfig,
    Qwen3NextModel,
)

from lclm_rag.compression import Compressor, attention
from lclm_rag.compression.attention import PackedEncoder
from lclm_rag.compression.norms import fuse_norms
from lclm_rag.errors import CheckpointError, CompressionError

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 200,
    "pad_token_id": 0,
}
SLIDING = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}


def model(config: type, kind: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return kind(config(**SHAPE, **more)).eval()


@pytest.mark.parametrize(
    "encoder",
    [
        pytest.param(lambda: model(Qwen3Config, Qwen3Model), id="qwen3"),
        pytest.param(lambda: model(Qwen3Config, Qwen3Model, **SLIDING), id="qwen3 sliding"),
        pytest.param(lambda: model(Qwen2Config, Qwen2Model), id="qwen2"),
        pytest.param(lambda: model(LlamaConfig, LlamaModel), id="llama"),
        pytest.param(lambda: model(MistralConfig, MistralModel, sliding_window=6), id="mistral"),
    ],
)
@torch.inference_mode()
def test_each_window_is_as_if_it_were_alone(encoder: Any) -> None:
    lengths = [1, 20, 7, 33, 6]
    ids = torch.randint(1, 200, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    plain = encoder()
    alone = [plain(part[None], use_cache=False).last_hidden_state[0] for part in ids.split(lengths)]
    positions = torch.cat([torch.arange(n) for n in lengths])
    packed = PackedEncoder(plain, 64)(ids, positions, lengths)
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "encoder",
    [
        pytest.param(lambda: model(Qwen3Config, Qwen3Model), id="qwen3"),
        pytest.param(lambda: model(LlamaConfig, LlamaModel), id="llama"),
        pytest.param(lambda: model(MistralConfig, MistralModel, sliding_window=64), id="mistral"),
    ],
)
@torch.inference_mode()
def test_without_a_causal_mask_a_window_sees_all_of_itself_and_nothing_else(encoder: Any) -> None:
    lengths = [1, 20, 7]
    ids = torch.randint(1, 200, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    plain = encoder()
    plain.config.is_causal = False  # transformers' own way.
    alone = [plain(part[None], use_cache=False).last_hidden_state[0] for part in ids.split(lengths)]
    positions = torch.cat([torch.arange(n) for n in lengths])
    packed = PackedEncoder(encoder(), 64, causal=False)
    torch.testing.assert_close(
        packed(ids, positions, lengths), torch.cat(alone), atol=1e-5, rtol=1e-5
    )
    # Its first token sees its last, and that of no other window.
    changed = packed(torch.cat([ids[:20], ids[:1], ids[21:]]), positions, lengths)
    assert not torch.allclose(changed[1], torch.cat(alone)[1], atol=1e-3)
    torch.testing.assert_close(changed[21:], torch.cat(alone)[21:], atol=1e-5, rtol=1e-5)


def test_a_sliding_window_is_refused_without_a_causal_mask() -> None:
    with pytest.raises(
        CheckpointError, match="at most 6 positions at once, fewer than a window's 64"
    ):
        PackedEncoder(model(MistralConfig, MistralModel, sliding_window=6), 64, causal=False)


def test_a_model_that_keeps_its_causal_mask_is_refused() -> None:
    encoder = model(Qwen3Config, Qwen3Model)
    forward = encoder.forward
    encoder.forward = lambda attention_mask=None, **rest: forward(**rest)  # It drops our mask.
    with pytest.raises(CheckpointError, match="Qwen3Model, keeps its causal mask"):
        PackedEncoder(encoder, 64, causal=False)


@pytest.mark.parametrize(
    "encoder",
    [
        # Attention sinks; a soft cap so low that it shows; states that run on from token to token.
        pytest.param(
            lambda: model(GptOssConfig, GptOssModel, num_local_experts=2, num_experts_per_tok=1),
            id="gpt-oss",
        ),
        pytest.param(
            lambda: model(Gemma2Config, Gemma2Model, attn_logit_softcapping=0.01), id="gemma2"
        ),
        pytest.param(
            lambda: model(Qwen3NextConfig, Qwen3NextModel, num_experts=2, num_experts_per_tok=1),
            id="qwen3-next",
        ),
    ],
)
def test_an_architecture_that_cannot_be_packed_is_refused(encoder: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot read windows one behind the other"):
        PackedEncoder(encoder(), 64)


@torch.inference_mode()
def test_uneven_norms_in_half_precision_are_no_reason_to_refuse_a_model() -> None:
    encoder = model(Qwen3Config, Qwen3Model)
    random = torch.Generator().manual_seed(0)
    for name, weight in encoder.named_parameters():
        if "norm" in name and name != "norm.weight":
            weight.data.mul_(torch.randn(weight.shape, generator=random).mul(1.5).exp())
    encoder = encoder.bfloat16()
    ids = torch.arange(1, 8)[None]
    found = {}
    for own in ("eager", "sdpa"):
        encoder.set_attn_implementation(own)
        found[own] = encoder(ids, use_cache=False).last_hidden_state.float()
    noise = (found["sdpa"] - found["eager"]).norm() / found["eager"].norm()
    assert noise > 0.05  # transformers' own implementations differ so much.
    packed = PackedEncoder(encoder, 64)(ids[0], torch.arange(7), [7])
    assert (packed.dtype, encoder.dtype) == (torch.bfloat16, torch.bfloat16)


def test_what_cannot_be_packed_is_refused_in_half_precision_too() -> None:
    encoder = model(Gemma2Config, Gemma2Model, attn_logit_softcapping=0.01)
    with pytest.raises(CheckpointError, match="cannot read windows one behind the other"):
        PackedEncoder(encoder.bfloat16(), 64)


def test_a_kernel_that_is_not_there_or_wrong_is_not_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = attention._kernel_works.__wrapped__
    given = (torch.device("cpu"), torch.bfloat16, 4, 2, 16)
    assert not works(*given)  # torch has it for CUDA alone.
    assert (
        "torch's flash attention does not work on cpu (Could not run 'aten::_flash" in caplog.text
    )

    def right(q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
        rows = [each.transpose(0, 1)[None] for each in (q, k, v)]
        own = torch.tensor([7, 1, 5])
        out = attention._window_by_window(*rows, None, None, (own, own), rest[-1])
        return out[0].transpose(0, 1)

    monkeypatch.setattr(attention, "_flash", right)
    assert works(*given)
    monkeypatch.setattr(attention, "_flash", lambda *parts: right(*parts) * 1.1)
    assert not works(*given)
    assert "(what it computes is wrong)" in caplog.text


def test_the_kernel_for_gpus_takes_what_it_is_given() -> None:
    """Shapes and types only: what it computes needs a GPU."""
    heads = {"query": 4, "key": 2, "value": 2}
    packed = {
        name: torch.empty(1, n, 40, 16, dtype=torch.bfloat16, device="meta")
        for name, n in heads.items()
    }
    ends = torch.empty(4, dtype=torch.int32, device="meta")
    for sliding, causal in ((None, True), (6, True), (None, False)):
        out, _ = attention._attention(
            None,
            **packed,
            attention_mask=None,
            scaling=0.25,
            sliding_window=sliding,
            cu_seq_lens_q=ends,
            max_length_q=32,
            causal=causal,
        )
        assert out.shape == (1, 40, 4, 16)
        assert out.dtype == torch.bfloat16


@torch.inference_mode()
def test_norms_are_one_kernel_where_they_are_what_torch_computes() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 5, 64, generator=random)
    for plain, number in (
        (model(Qwen3Config, Qwen3Model), 3 * 4 + 1),
        (model(LlamaConfig, LlamaModel), 3 * 2 + 1),
        (model(Gemma2Config, Gemma2Model), 0),  # Its weights count from one.
    ):
        norms = [m for m in plain.modules() if "RMSNorm" in type(m).__name__]
        for norm in norms:
            norm.weight.data.add_(torch.randn(norm.weight.shape, generator=random) * 0.3)
        before = [norm(rows[..., : len(norm.weight)]) for norm in norms]
        assert fuse_norms(plain) == number
        for norm, expected in zip(norms, before, strict=True):
            torch.testing.assert_close(norm(rows[..., : len(norm.weight)]), expected)
    packed = PackedEncoder(model(Qwen3Config, Qwen3Model).bfloat16(), 64)
    assert all(
        "forward" in vars(m) for m in packed.model.modules() if "RMSNorm" in type(m).__name__
    )


@pytest.mark.parametrize("works", [True, False])
@torch.inference_mode()
def test_on_a_gpu_a_long_build_is_compiled_once_it_pays(
    works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here on a CPU, after 30 positions."""
    encoder = PackedEncoder(model(Qwen3Config, Qwen3Model), 64, compile=None)
    assert encoder._until_compiled is None  # Not on a CPU.
    encoder._until_compiled = 30
    compiled = list[Any]()

    def compile(part: Any, **options: Any) -> None:
        def call(*inputs: Any, **named: Any) -> Any:
            if not works:
                raise RuntimeError("Cannot find a working triton installation.")
            compiled.append(part)
            return part._call_impl(*inputs, **named)

        part._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    ids, positions = torch.arange(12), torch.arange(12)
    found = [encoder(ids, positions, [12]) for _ in range(5)]
    assert all(torch.equal(each, found[0]) for each in found)
    assert len(compiled) == (3 * 3 if works else 0)  # Three layers; the last three calls.
    assert ("cannot be compiled here (Cannot find a working" in caplog.text) is not works


# --- memory ---------------------------------------------------------------------------------------

# A real want of memory: the process may have so much more than it has once the model is loaded.
_LITTLE_MEMORY = """
import resource, sys, torch
from lclm_rag.compression import Compressor
torch.set_num_threads(1)
compressor = Compressor.from_pretrained("bundled", device="cpu", token_budget=200_000)
ids = [[5 + i % 700 for i in range(1000)]] * 100
expected = compressor.compress_token_ids(ids[:1], "encoder")[0]
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]) * 2**20, -1))
found = compressor.compress_token_ids(ids, "encoder")
assert len(found) == 100
assert all(torch.allclose(each, expected, atol=1e-5) for each in found)
assert compressor.token_budget < 100_000
print("budget", compressor.token_budget)
"""


@pytest.mark.slow
def test_out_of_memory_the_budget_is_halved_and_it_is_said() -> None:
    command = [sys.executable, "-c", _LITTLE_MEMORY, "400"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    budget = int(done.stdout.split()[1])
    assert 1_000 <= budget < 100_000
    assert f"going on with at most {budget:,}" in done.stderr


def test_without_memory_for_one_window_it_is_said(compressor: Compressor) -> None:
    class Full:
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, *_: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    full: Any = Full()
    compressor = Compressor(compressor.checkpoint, full, compressor.adapter)
    with pytest.raises(
        CompressionError, match="not enough memory on cpu for one window of 9 tokens"
    ):
        compressor.compress_token_ids([[7] * 9, [8] * 5])


def test_a_budget_of_nothing_is_refused(compressor: Compressor) -> None:
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        Compressor(compressor.checkpoint, compressor.encoder, compressor.adapter, 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_gives_the_same(compressor: Compressor) -> None:
    compiled = Compressor.from_pretrained("bundled", device="cpu", token_budget=300, compile=True)
    texts = [[5 + i % 700 for i in range(n)] for n in (3, 90, 250, 17, 1100)]
    for a, b in zip(
        compiled.compress_token_ids(texts, "encoder"),
        compressor.compress_token_ids(texts, "encoder"),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
