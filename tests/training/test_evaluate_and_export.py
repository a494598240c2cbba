"""Generated answers during training, and the checkpoint that is written at its end."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import CheckpointError, CorpusError
from lclm_rag.evaluation.datasets.exact_strings import with_exact_strings
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from lclm_rag.prompting import PromptTemplate
from lclm_rag.training.evaluate import Question, evaluate, read_questions
from lclm_rag.training.export import export
from lclm_rag.training.model import TrainedLCLM
from lclm_rag.training.recipe import Recipe, Stage
from lclm_rag.training.run import carry_out
from support.checkpoints import MakeCheckpoint
from support.training_run import RECIPE, run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> TrainedLCLM:
    return TrainedLCLM(checkpoint, CPU, torch.float32)


@pytest.fixture(scope="module")
def asked(sheets: list[FactSheet]) -> list[Question]:
    """Of two sheets each, the second is asked for."""
    return [
        Question(
            (other.document.text, sheet.document.text),
            sheet.questions[0].question,
            (sheet.questions[0].answer,),
        )
        for other, sheet in zip(sheets[:20], sheets[20:40], strict=True)
    ]


def test_answers_are_generated_from_latents_text_and_nothing(
    model: TrainedLCLM, template: PromptTemplate, asked: list[Question]
) -> None:
    found = evaluate(model, template, asked)
    assert list(found) == ["latents", "text", "none"]
    assert found["latents"]["exact"] >= 0.8
    assert found["text"]["exact"] >= 0.9
    assert found["none"]["exact"] <= 0.1
    assert found["latents"]["positions"] < found["text"]["positions"] / 2
    assert found["latents"]["contains"] >= found["latents"]["exact"]
    # Training goes on as before.
    assert evaluate(model, template, asked[:2], contexts=["text"])["text"]["exact"] >= 0.5


def test_answers_are_those_of_the_library(
    tmp_path: Path,
    model: TrainedLCLM,
    template: PromptTemplate,
    decoder: TransformersDecoder,
    asked: list[Question],
) -> None:
    with KnowledgeBase.create(tmp_path / "kb", codec="fp16", decoder=decoder) as kb:
        kb.add(Document(f"{i:06}", text) for i, text in enumerate(asked[0].passages))
        answer = kb.query(asked[0].question, 2, expand="never").text
    found = evaluate(model, template, [Question(asked[0].passages, asked[0].question, (answer,))])
    assert found["latents"]["exact"] == 1.0


def test_questions_are_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    record = {"passages": ["It is late."], "question": "When?", "answers": ["late", "It is late"]}
    path.write_text(
        json.dumps(record) + "\n" + json.dumps({**record, "answers": [], "answer": "l"})
    )
    assert [q.answers for q in read_questions(path)] == [("late", "It is late"), ("l",)]
    path.write_text(json.dumps(record) + '\n{"question": "When?"}\n')
    with pytest.raises(CorpusError, match="line 2: this is no question"):
        read_questions(path)


def test_what_was_trained_is_written_opened_and_used(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    model, _ = run(make_checkpoint(frame="chunks"), tmp_path / "run", RECIPE)
    written = export(model, tmp_path / "out", torch.float32)
    assert written.config == model.checkpoint.config
    assert written.fingerprint("encoder") != model.checkpoint.fingerprint("encoder")
    again = TrainedLCLM(written, CPU, torch.float32)
    for (name, value), (other, expected) in zip(
        again.named_parameters(), model.named_parameters(), strict=True
    ):
        assert name == other
        # Once the decoder is trained, the memory tokens are rows of its table.
        assert name == "memory_rows" or torch.equal(value, expected), name
    with KnowledgeBase.create(tmp_path / "kb", written.path) as kb:
        kb.add([Document("a", "Velun lies by a lake.")])
        assert kb.frame.name == "chunks"
        assert kb.query("Where does Velun lie?").sources
    for part in ("encoder", "decoder"):
        for path in (model.checkpoint.path / part).iterdir():
            if path.suffix != ".safetensors" and path.name != "config.json":
                assert (written.path / part / path.name).read_bytes() == path.read_bytes()
    half = export(model, tmp_path / "half")
    weights = half.decoder_folder.glob("*.safetensors")
    assert sum(p.stat().st_size for p in weights) < 0.6 * sum(
        p.stat().st_size for p in written.decoder_folder.glob("*.safetensors")
    )
    with pytest.raises(CheckpointError, match="not an empty folder"):
        export(model, tmp_path / "out")


@pytest.mark.slow
def test_an_encoder_learns_to_read_a_corpus_without_questions(
    tmp_path: Path, sheets: list[FactSheet]
) -> None:
    """By distillation: the decoder stays as it is, and what follows a memory comes nearer to its text's."""
    rng = random.Random(0)
    texts = [with_exact_strings(sheet, rng).document.text for sheet in sheets]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines)
    part = {"objective": "distill", "source": "texts.jsonl"}
    rates = {"encoder": 3e-4, "adapter": 1e-3}
    stage = Stage("domain", rates, steps=100, blocks=6, warmup=10, data=(part,))
    model = carry_out(Recipe("bundled", (stage,), folder=tmp_path), tmp_path / "run", device="cpu")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["objectives"]["distill"]["loss"] for line in log]
    assert sum(losses[-20:]) < 0.85 * sum(losses[:20])
    assert {name.partition(".")[0] for name in model.touched} == {
        "encoder",
        "adapter",
        "memory_rows",
    }


def test_a_checkpoint_that_is_not_finite_is_not_put_in_place(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    model = TrainedLCLM(Checkpoint.open(make_checkpoint()), CPU, torch.float32)
    with torch.no_grad():
        model.adapter.fc2.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
