"""A packed batch: each block has the loss and the gradient that it has alone, and they go where they must."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting import PromptTemplate
from lclm_rag.training.blocks import Block, BlockBuilder
from lclm_rag.training.flops import Shapes, training_flops
from lclm_rag.training.model import PARTS, Part, TrainedLCLM
from lclm_rag.training.packing import group_by_budget, pack
from lclm_rag.training.recipe import Stage
from support.checkpoints import MakeCheckpoint

CPU = torch.device("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional, overlap": {"encoder_mask_type": "bidirectional", "boundary_overlap": 8},
    "concat": {"pooling": "concat"},
    "eos": {"pooling": "eos"},
    "attention adapter": {"adapter_type": "mlp_attn"},
}


def block(template: PromptTemplate, seed: int, objective: str = "repeat") -> Block:
    """Two memories of random tokens, some words between them, some learned words at the end."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(20, 700, (count,), generator=generator).tolist()

    built = BlockBuilder(template, 4, objective).given(ids(3 + seed)).memory(ids(5 + 17 * seed))
    return built.given(ids(2)).memory(ids(9)).said(ids(4)).given(ids(1)).said(ids(2)).block()


@pytest.fixture(params=SETTINGS)
def model(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> TrainedLCLM:
    folder = make_checkpoint("trained", **SETTINGS[request.param])
    return TrainedLCLM(Checkpoint.open(folder), CPU, torch.float32)


def losses_and_gradients(
    model: TrainedLCLM, blocks: list[Block]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = pack(blocks, model.checkpoint.config, model.placeholder, model.marker_id)
    losses = model(batch).tokens
    model.zero_grad()
    losses.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return losses.detach(), gradients


def test_a_packed_block_gives_the_loss_and_the_gradient_that_it_gives_alone(
    model: TrainedLCLM,
) -> None:
    template = PromptTemplate.of(model.checkpoint)
    blocks = [block(template, seed) for seed in range(4)]
    together, gradients = losses_and_gradients(model, blocks)
    alone = [losses_and_gradients(model, [each]) for each in blocks]
    torch.testing.assert_close(together, torch.cat([losses for losses, _ in alone]))
    assert any(name.startswith("encoder.layers") for name in gradients)
    for name, gradient in gradients.items():
        expected = sum(found[name] for _, found in alone)
        torch.testing.assert_close(gradient, expected, atol=2e-4, rtol=1e-3, msg=name)


def test_tails_give_the_losses_and_gradients_of_blocks_that_begin_alike(
    model: TrainedLCLM,
) -> None:
    """A context is computed once for all that is asked about it, and nothing else differs."""
    template = PromptTemplate.of(model.checkpoint)

    def asked(*tails: int, tail: bool) -> Block:
        built = BlockBuilder(template, 4, "asked").given([5, 6, 7]).memory(range(30, 53))
        built.given([8]).memory(range(60, 70)).given([9, 10])
        for n in tails:
            built = built.tail() if tail else built
            built.given([11 + n, 12]).said([40 + n] * (1 + n)).given([13]).said([41])
        return built.block()

    plain = block(template, 2)
    shared, gradients = losses_and_gradients(model, [plain, asked(2, 0, 1, tail=True), plain])
    apart = [plain, *(asked(n, tail=False) for n in (2, 0, 1)), plain]
    expected, each = losses_and_gradients(model, apart)
    torch.testing.assert_close(shared, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, each[name], atol=2e-4, rtol=1e-3, msg=name)


def test_gradient_reaches_every_part_and_every_latent(model: TrainedLCLM) -> None:
    template = PromptTemplate.of(model.checkpoint)
    _, gradients = losses_and_gradients(model, [block(template, 2)])
    for part in PARTS:
        reached = [g for n, g in gradients.items() if n.startswith(f"{part}.")]
        assert reached
        assert all(g.isfinite().all() for g in reached)
        assert max(float(g.abs().max()) for g in reached) > 0
    row = pack(
        [block(template, 2)], model.checkpoint.config, model.placeholder, model.marker_id
    ).row
    latents = model.latents(row)
    latents.retain_grad()
    model.latents = lambda row: latents  # type: ignore[method-assign]
    model.logits(row).sum().backward()
    assert latents.grad is not None
    assert bool((latents.grad.abs().sum(1) > 0).all())


@pytest.mark.parametrize("parts", [("adapter",), ("encoder", "adapter"), PARTS])
def test_only_the_parts_that_are_trained_get_a_gradient(
    make_checkpoint: MakeCheckpoint, parts: tuple[Part, ...]
) -> None:
    model = TrainedLCLM(Checkpoint.open(make_checkpoint()), CPU, torch.float32)
    model.train_only(parts)
    template = PromptTemplate.of(model.checkpoint)
    _, gradients = losses_and_gradients(model, [block(template, 1)])
    reached = {name.partition(".")[0] for name in gradients}
    if "decoder" in parts:
        assert reached == set(parts)
    else:
        assert reached == {*parts, "memory_rows"}
        assert bool((gradients["memory_rows"].abs().sum(1) > 0).all())


def test_the_first_losses_are_those_of_the_library(
    make_checkpoint: MakeCheckpoint,
) -> None:
    """Latents are the compressor's, and a block is read as the transformers decoder reads a prompt."""
    from lclm_rag.compression import Compressor
    from lclm_rag.decoding.transformers import TransformersDecoder, embed
    from lclm_rag.prompting import SoftPrompt, Span

    opened = Checkpoint.open(make_checkpoint())
    model = TrainedLCLM(opened, CPU, torch.float32)
    one = block(PromptTemplate.of(opened), 3)
    losses, _ = losses_and_gradients(model, [one])
    latents = Compressor.from_pretrained(opened, device="cpu").compress_token_ids(one.memories)
    starts = [
        i + 1
        for i, token in enumerate(one.token_ids)
        if token == opened.decoder_tokenizer.token_to_id("<|memory_start|>")
    ]
    spans = tuple(Span(s, len(v)) for s, v in zip(starts, latents, strict=True))
    decoder = TransformersDecoder.from_pretrained(opened, device="cpu")
    embeds, _ = embed(decoder.model, [SoftPrompt(list(one.token_ids), tuple(latents), spans)])
    with torch.no_grad():
        expected = decoder.model(inputs_embeds=embeds).logits[0].log_softmax(-1)
    places = [i for i, learned in enumerate(one.learned) if learned]
    wanted = torch.stack([-expected[i - 1, one.token_ids[i]] for i in places])
    torch.testing.assert_close(losses, wanted, atol=1e-4, rtol=1e-4)


def test_a_teacher_is_followed_and_gets_no_gradient(make_checkpoint: MakeCheckpoint) -> None:
    model = TrainedLCLM(Checkpoint.open(make_checkpoint()), CPU, torch.float32)
    template = PromptTemplate.of(model.checkpoint)
    student = block(template, 1)
    words = list(range(30, 36))
    teacher = BlockBuilder(template, 4, "distill").given([5, 6, 7]).said(words).block()
    taught = replace(student, teacher=teacher)
    plain = block(template, 2)
    losses, _ = losses_and_gradients(model, [plain, taught])
    with torch.no_grad():
        batch = pack([plain, taught], model.checkpoint.config, model.placeholder)
        assert batch.teacher is not None
        own = model.logits(batch.row)[6:].log_softmax(-1)
        theirs = model.logits(batch.teacher).log_softmax(-1)
        expected = (theirs.exp() * (theirs - own)).sum(-1)
    torch.testing.assert_close(losses[6:], expected, atol=1e-5, rtol=1e-4)
    # A student that reads what its teacher reads has nothing to learn.
    same = replace(teacher, teacher=teacher)
    losses, _ = losses_and_gradients(model, [same])
    torch.testing.assert_close(losses, torch.zeros(6), atol=1e-5, rtol=0)


def test_the_flops_of_blocks(make_checkpoint: MakeCheckpoint) -> None:
    """Six for each matrix parameter and position if all is trained; what is shared is counted once."""
    opened = Checkpoint.open(make_checkpoint())
    shapes, template = Shapes.of(opened), PromptTemplate.of(opened)
    everything = Stage("all", dict.fromkeys(PARTS, 1.0), 1, 1)
    plain = BlockBuilder(template, 4, "x").given([5]).said([6] * 19).block()
    layers = shapes.decoder.transformer
    matrices = 6 * layers.matrix_parameters * 20
    attention = 12 * layers.num_hidden_layers * layers.num_attention_heads * layers.head_dim * 200
    output = 3 * shapes.decoder.output_flops * 19
    assert training_flops(shapes, everything, [plain]) == matrices + attention + output
    one = block(template, 2)
    adapter = Stage("adapter", {"adapter": 1.0}, 1, 1)
    flops = [training_flops(shapes, stage, [one]) for stage in (adapter, everything)]
    assert flops[0] < flops[1] < 2 * flops[0]
    context = BlockBuilder(template, 4, "x").memory(range(100))
    shared = context.tail().given([5]).said([6]).tail().given([5]).said([6]).block()
    alone = BlockBuilder(template, 4, "x").memory(range(100)).given([5]).said([6]).block()
    once, twice = (training_flops(shapes, everything, each) for each in ([shared], [alone] * 2))
    assert once < 0.6 * twice


def test_blocks_are_shared_out_by_their_positions(template: PromptTemplate) -> None:
    blocks = [block(template, seed) for seed in (0, 1, 2, 3, 0, 0)]
    groups = group_by_budget(blocks, 90)
    assert [b for group in groups for b in group] == blocks
    assert all(sum(map(len, group)) <= 90 for group in groups if len(group) > 1)
    assert len(group_by_budget(blocks, 1)) == len(blocks)


@pytest.mark.parametrize(
    ("token_ids", "learned", "message"),
    [
        ((1, 2), (False,), "of each of its tokens"),
        ((1, 2), (True, False), "nothing before it"),
        ((1, 2, 3, 4), (False, False, True, True), "first token of a tail"),
        ((1, 2, 3), (False, False, False), "need something before them"),
    ],
)
def test_a_block_that_cannot_be_is_refused(
    token_ids: tuple[int, ...], learned: tuple[bool, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Block(token_ids, learned, (), "x", (2, 1) if len(token_ids) > 2 else ())
