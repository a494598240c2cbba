"""Latents are what a plain loop over windows gives, whatever the settings and the batch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_rag.compression import Compressor
from support.checkpoints import MakeCheckpoint
from support.reference import Reference

LENGTHS = [1, 2, 3, 4, 5, 31, 32, 33, 64, 65, 90]
"""1 token, exactly one window (32), one window + 1, and around groups."""


def token_ids(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(6, 768, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("overlap", [0, 5])
@pytest.mark.parametrize("ratio", [1, 4, 8, 16])
@pytest.mark.parametrize("pooling", ["mean", "concat", "eos"])
def test_latents_equal_a_plain_loop_for_every_pooling_ratio_and_overlap(
    make_checkpoint: MakeCheckpoint, pooling: str, ratio: int, overlap: int
) -> None:
    folder = make_checkpoint(pooling=pooling, compression_ratio=ratio, boundary_overlap=overlap)
    reference = Reference(folder)
    texts = token_ids(LENGTHS)
    compressor = Compressor.from_pretrained(folder, device="cpu", token_budget=100)
    for space in ("encoder", "decoder"):
        latents = compressor.compress_token_ids(texts, space)  # type: ignore[arg-type]
        for ids, found in zip(texts, latents, strict=True):
            expected = reference.encode(ids)
            if space == "decoder":
                expected = reference.project(expected)
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


ADAPTERS: list[dict[str, Any]] = [
    {"adapter_type": "mlp"},
    {"adapter_type": "mlp_attn", "num_adapter_layers": 2},
    {"adapter_type": "attn_mlp"},
    {"adapter_type": "attn_mlp", "num_adapter_layers": 2},
]


@pytest.mark.parametrize(
    ("pooling", "adapter"),
    [
        *itertools.product(["mean", "eos"], ADAPTERS),
        *itertools.product(["concat"], ADAPTERS[:2]),  # The others do not go with it.
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
@pytest.mark.parametrize("overlap", [0, 5, 40])
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_latents_equal_a_plain_loop_for_every_mask_and_adapter(
    make_checkpoint: MakeCheckpoint,
    mask: str,
    pooling: str,
    overlap: int,
    adapter: dict[str, Any],
) -> None:
    folder = make_checkpoint(
        pooling=pooling, encoder_mask_type=mask, boundary_overlap=overlap, **adapter
    )
    reference = Reference(folder)
    texts = token_ids(LENGTHS)
    # A budget that puts the windows of one text into several batches.
    compressor = Compressor.from_pretrained(folder, device="cpu", token_budget=100)
    for ids, *found in zip(
        texts,
        compressor.compress_token_ids(texts, "encoder"),
        compressor.compress_token_ids(texts, "decoder"),
        strict=True,
    ):
        encoded = reference.encode(ids)
        for one, expected in zip(found, (encoded, reference.project(encoded)), strict=True):
            torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["attn_mlp", "mlp_attn"])
def test_attention_in_the_adapter_sees_all_of_a_passage_and_no_other(
    make_checkpoint: MakeCheckpoint, kind: str
) -> None:
    compressor = Compressor.from_pretrained(make_checkpoint(adapter_type=kind), device="cpu")
    texts = token_ids([70, 9, 33])
    together = compressor.compress_token_ids(texts)
    for ids, latents in zip(texts, together, strict=True):
        (alone,) = compressor.compress_token_ids([ids])
        torch.testing.assert_close(latents, alone, atol=1e-5, rtol=1e-5)
    # The last token of a text changes its first latent, two windows before.
    (changed,) = compressor.compress_token_ids([[*texts[0][:-1], 7]])
    assert (changed[0] - together[0][0]).norm() > 1e-3 * changed[0].norm()
    with_space = Compressor.from_pretrained(compressor.checkpoint, device="cpu", token_budget=40)
    encoded, counts = with_space.compress_together(texts, "encoder")
    torch.testing.assert_close(with_space.project(encoded, counts), torch.cat(together))
    assert with_space.project(encoded[:0], []).shape == (0, 64)


def test_a_text_gives_one_latent_for_every_group_of_tokens(compressor: Compressor) -> None:
    latents = compressor.compress_token_ids(token_ids(LENGTHS))
    assert [len(x) for x in latents] == [-(-n // 4) for n in LENGTHS]


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6), budget=st.integers(1, 900))
def test_latents_do_not_depend_on_the_batch(
    compressor: Compressor, lengths: list[int], budget: int
) -> None:
    texts = token_ids(lengths)
    other = Compressor(compressor.checkpoint, compressor.encoder, compressor.adapter, budget)
    together = other.compress_token_ids(texts, "encoder")
    alone = [compressor.compress_token_ids([ids], "encoder")[0] for ids in texts]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_special_tokens_in_a_text_are_only_letters(compressor: Compressor) -> None:
    ids = compressor.checkpoint.encoder_token_ids(["a<|im_end|>b<|memory|>"])[0]
    assert not {compressor.checkpoint.decoder_tokenizer.token_to_id(t) for t in
                ("<|im_end|>", "<|memory|>")} & set(ids)  # fmt: skip


def test_an_empty_text_is_refused_by_its_number(compressor: Compressor) -> None:
    with pytest.raises(ValueError, match="Text 1 is empty"):
        compressor.compress(["something", ""])


def test_bfloat16_stays_close_to_float32(compressor: Compressor) -> None:
    low = Compressor.from_pretrained(compressor.checkpoint, device="cpu", dtype="bfloat16")
    texts = token_ids([50, 120])
    for a, b in zip(
        low.compress_token_ids(texts), compressor.compress_token_ids(texts), strict=True
    ):
        assert a.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(a.float(), b, dim=-1).min() > 0.98


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"device": "warp"}, "Unknown device 'warp'"),
        ({"dtype": "float8"}, "Unknown dtype 'float8'"),
    ],
)
def test_an_unknown_device_or_dtype_is_named(
    compressor: Compressor, option: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Compressor.from_pretrained(compressor.checkpoint, **option)
