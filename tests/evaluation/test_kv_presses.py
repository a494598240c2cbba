"""The decoder under kvpress's presses: the client, the worker's protocol, and kvpress itself.

The worker's "none" runs on this environment's Python. The presses need the environment that
`python -m lclm_rag.evaluation.baselines.kvpress_environment DIR` makes; LCLM_RAG_KVPRESS_ENV names it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, GenerationConfig

from lclm_rag import DecoderError, PromptError
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding.decoder import end_token_ids
from lclm_rag.evaluation.baselines import kvpress_environment, kvpress_worker
from lclm_rag.evaluation.baselines.kv_presses import PRESSES, PressedDecoder
from lclm_rag.evaluation.datasets.fact_sheets import fact_sheets
from lclm_rag.prompting import PromptTemplate
from lclm_rag.prompting.template import plain_ids

pytestmark = pytest.mark.slow

OURS = Path(sys.prefix)
KVPRESS = os.environ.get("LCLM_RAG_KVPRESS_ENV", "")
needs_kvpress = pytest.mark.skipif(
    not KVPRESS,
    reason="LCLM_RAG_KVPRESS_ENV names no environment with kvpress (it takes minutes to make)",
)


@dataclass(frozen=True)
class Prompt:
    context: list[int]
    question: list[int]
    stops: list[int]


@pytest.fixture(scope="module")
def prompt(checkpoint: Checkpoint) -> Prompt:
    """About a thousand tokens of passages, and a question about one in the middle."""
    template = PromptTemplate.of(checkpoint)
    sheets = list(islice(fact_sheets(5, held_out=True), 9))
    bodies = [plain_ids(template.inert, sheet.document.text) for sheet in sheets]
    ends = template.ends(sheets[4].questions[0].question)
    context, _ = template.context(ends, bodies)
    assert len(context) > 800
    return Prompt(context, ends.after, end_token_ids(checkpoint))


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.path / "decoder"


@pytest.fixture(scope="module")
def unpressed(folder: Path) -> Iterator[PressedDecoder]:
    with PressedDecoder(OURS, folder, "none") as decoder:
        yield decoder


@pytest.fixture(scope="module")
def generated(folder: Path, prompt: Prompt) -> list[int]:
    """What transformers' own generate says to the same ids."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()
    ids = torch.tensor([prompt.context + prompt.question])
    config = GenerationConfig(
        max_new_tokens=24, do_sample=False, eos_token_id=prompt.stops, pad_token_id=prompt.stops[0]
    )
    made = model.generate(ids, generation_config=config)
    return [int(token) for token in made[0, ids.shape[1] :]]


def test_without_a_press_the_tokens_are_those_of_generate(
    unpressed: PressedDecoder, prompt: Prompt, generated: list[int]
) -> None:
    answer = unpressed.answer(prompt.context, prompt.question, 1, 24, prompt.stops)
    assert answer.token_ids == generated
    assert answer.finish_reason == "stop"
    # The folder's generation config names the same token.
    assert unpressed.answer(prompt.context, prompt.question, 1, 24).token_ids == generated
    short = unpressed.answer(prompt.context, prompt.question, 1, 2, prompt.stops)
    assert (short.token_ids, short.finish_reason) == (generated[:2], "length")


def test_what_an_answer_took(unpressed: PressedDecoder, prompt: Prompt) -> None:
    answer = unpressed.answer(prompt.context, prompt.question, 1, 24)
    assert (answer.kept, answer.masked) == (len(prompt.context), False)
    # 4 layers of 2 heads, 64 wide, keys and values, float32.
    assert answer.full_cache_bytes == answer.cache_bytes == len(prompt.context) * 4 * 2 * 64 * 2 * 4
    assert answer.peak_memory is None
    assert 0 < answer.first_token <= answer.total
    assert (unpressed.device, unpressed.dtype) == ("cpu", "float32")
    assert set(unpressed.versions) == {"torch", "transformers"}


@pytest.mark.parametrize(
    ("context", "question", "keep", "max_tokens", "message"),
    [
        ([], [5], 1, 1, "at least one token"),
        ([5], [], 1, 1, "at least one token"),
        ([5], [5], 0, 1, "at least 1"),
        ([5, 768], [5], 1, 1, "768 is outside the decoder's vocabulary of 768"),
        ([5] * 16380, [5], 1, 9, "take 16390 positions; the decoder holds 16384"),
    ],
)
def test_a_request_that_cannot_be_met_leaves_the_worker_alive(
    unpressed: PressedDecoder,
    context: list[int],
    question: list[int],
    keep: int,
    max_tokens: int,
    message: str,
) -> None:
    with pytest.raises(PromptError, match=message):
        unpressed.answer(context, question, keep, max_tokens)
    assert len(unpressed.answer([5, 6], [7], 1, 1).token_ids) == 1


def test_the_protocol_is_json_lines_and_nothing_else(folder: Path) -> None:
    good = {"context_ids": [5, 6, 7], "question_ids": [8], "keep": 2, "max_tokens": 1}
    lines = ["no json", json.dumps({"keep": 1}), json.dumps(good), ""]
    done = subprocess.run(
        [sys.executable, "-I", kvpress_worker.__file__, str(folder)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    ready, broken, incomplete, answer = map(json.loads, done.stdout.splitlines())
    assert ready["ready"]["dtype"] == "float32"
    assert broken["kind"] == incomplete["kind"] == "request"
    assert (len(answer["token_ids"]), answer["kept"]) == (1, 3)
    assert answer["finish"] in ("stop", "length")


def test_an_unknown_press_is_answered_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown press 'snap'; known: none, .*snapkv.*kvzip"):
        PressedDecoder(OURS, folder, "snap")


def test_a_missing_environment_is_answered_with_the_command_that_makes_it(
    folder: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "not there"
    with pytest.raises(DecoderError) as error:
        PressedDecoder(missing, folder, "snapkv")
    command = f"python -m lclm_rag.evaluation.baselines.kvpress_environment '{missing}'"
    assert str(error.value).endswith(command)


def test_an_environment_without_kvpress_is_answered_so_too(folder: Path) -> None:
    with pytest.raises(DecoderError, match=r"No module named 'kvpress'\); run: python -m lclm_rag"):
        PressedDecoder(OURS, folder, "snapkv")


def test_a_folder_without_a_decoder(tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match=r"has no config\.json"):
        PressedDecoder(OURS, tmp_path, "none")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(DecoderError, match="The decoder cannot be loaded for the press none: "):
        PressedDecoder(OURS, tmp_path, "none")


def test_a_dead_worker_is_reported_with_its_last_words(folder: Path) -> None:
    with PressedDecoder(OURS, folder, "none") as decoder:
        with pytest.raises(PromptError):
            decoder.answer([5], [5], 0, 1)
        decoder._worker.kill()
        with pytest.raises(DecoderError) as error:
            decoder.answer([5], [5], 1, 1)
        assert "died with exit status -9; it last said:" in str(error.value)
        assert "keep and max_tokens must be at least 1" in str(error.value)
    with pytest.raises(DecoderError, match="closed"):
        decoder.answer([5], [5], 1, 1)


def test_the_environment_is_not_made_over_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    result = CliRunner().invoke(kvpress_environment.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert f"{tmp_path} exists and is not a virtual environment" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@needs_kvpress
def test_an_environment_that_is_whole_is_left_as_it_is() -> None:
    result = CliRunner().invoke(kvpress_environment.main, [KVPRESS])
    assert result.exit_code == 0, result.stderr
    assert "kvpress 0.5.5" in result.stdout
    assert not result.stderr


@needs_kvpress
@pytest.mark.parametrize("press", PRESSES)
def test_a_press_keeps_as_much_as_it_is_asked_to(
    press: str, folder: Path, prompt: Prompt, generated: list[int]
) -> None:
    with PressedDecoder(KVPRESS, folder, press) as decoder:
        quarter = len(prompt.context) // 4
        for keep in (quarter, 100):
            answer = decoder.answer(prompt.context, prompt.question, keep, 24, prompt.stops)
            if press == "none":
                assert answer.kept == len(prompt.context)
            elif press.startswith("chunkkv"):  # Keeps whole chunks of 20.
                assert keep - 20 < answer.kept <= keep
            else:
                assert answer.kept == keep
            assert answer.masked == press.startswith(("adakv", "kvzip"))
            held = len(prompt.context) if answer.masked else answer.kept
            assert answer.cache_bytes == held * answer.full_cache_bytes / len(prompt.context)
        # Nothing is left over from one request to the next.
        whole = decoder.answer(
            prompt.context, prompt.question, len(prompt.context), 24, prompt.stops
        )
        assert (whole.token_ids, whole.masked) == (generated, False)
        again = decoder.answer(prompt.context, prompt.question, 100, 24, prompt.stops)
        assert again.token_ids == answer.token_ids


# kvpress's own pipeline, from the point on where it has token ids; answers as JSON.
PIPELINE = """
import json, sys, torch, kvpress
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, request = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
pipeline = kvpress.KVPressTextGenerationPipeline(model=model, tokenizer=tokenizer)
ids = {"context_ids": torch.tensor([request["context"]]),
       "questions_ids": [torch.tensor([request["question"]])]}
ratio = 1 - (request["keep"] + 1e-3) / len(request["context"])
answers = {}
for name in request["presses"]:
    press = getattr(kvpress, name)(compression_ratio=ratio)
    with torch.inference_mode():
        answers[name] = pipeline._forward(ids, max_new_tokens=24, press=press)[0]
print(json.dumps(answers))
"""


@needs_kvpress
def test_answers_are_those_of_kvpress_own_pipeline(
    checkpoint: Checkpoint, folder: Path, prompt: Prompt
) -> None:
    presses = {"knorm": "KnormPress", "keydiff": "KeyDiffPress", "snapkv": "SnapKVPress"}
    request = {"context": prompt.context, "question": prompt.question, "keep": 200}
    request["presses"] = list(presses.values())
    command = [Path(KVPRESS) / "bin" / "python", "-I", "-c", PIPELINE, folder, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    for press, name in presses.items():
        with PressedDecoder(KVPRESS, folder, press) as decoder:
            answer = decoder.answer(prompt.context, prompt.question, 200, 24, prompt.stops)
        text = checkpoint.chat_tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        assert text == theirs[name]


@needs_kvpress
def test_a_context_that_is_too_short_for_a_press(folder: Path) -> None:
    with (
        PressedDecoder(KVPRESS, folder, "snapkv") as decoder,
        pytest.raises(PromptError, match="should be greater than the window size 64"),
    ):
        decoder.answer([5] * 40, [6], 10, 4)
