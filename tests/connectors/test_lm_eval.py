"""lm-evaluation-harness runs its tasks with contexts as latents, as text, and without."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.connectors.lm_eval import QUESTION_STARTS, CompressedContextLM, cut_context, main
from lclm_rag.decoding import Completion, Decoder, Sampling, all_answered
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import CheckpointError, PromptError
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
from lclm_rag.generation import generate
from lclm_rag.prompting import PromptTemplate, SoftPrompt
from lclm_rag.prompting.template import plain_ids
from support.watched import WatchedDecoder

MARKED = "Answer.\n\n<|memory_start|>{}<|memory_end|>\n\n{}"
Model = Callable[..., CompressedContextLM]


@pytest.fixture
def model(decoder: TransformersDecoder) -> Model:
    return lambda **arguments: CompressedContextLM(decoder=decoder, device="cpu", **arguments)


@pytest.fixture
def task(
    tmp_path: Path, sheets: list[FactSheet], questions: list[FactQuestion]
) -> Callable[..., dict[str, Any]]:
    """A task of the harness over a JSONL file: a fact sheet, a blank line, a question about it."""
    texts = {sheet.document.id: sheet.document.text for sheet in sheets}
    known: dict[str, set[str]] = {}
    for question in (question for sheet in sheets for question in sheet.questions):
        known.setdefault(question.attribute, set()).add(question.answer)
    rng = random.Random(0)
    rows = []
    for question in questions[:24]:
        others = sorted(known[question.attribute] - {question.answer})
        choices = [*rng.sample(others, 2), question.answer]
        rng.shuffle(choices)
        rows.append(
            {
                "sheet": texts[question.document_id],
                "question": question.question,
                "answer": question.answer,
                "choices": choices,
                "right": choices.index(question.answer),
            }
        )
    data = tmp_path / "sheets.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def make(name: str, **config: Any) -> dict[str, Any]:
        return {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data)},
                "cache_dir": str(tmp_path / "datasets"),
            },
            "test_split": "test",
            "doc_to_text": "{{sheet}}\n\nQuestion: {{question}}",
            **config,
        }

    return make


def answers(
    task: Callable[..., dict[str, Any]], name: str = "sheets", **config: Any
) -> dict[str, Any]:
    return task(
        name,
        output_type="generate_until",
        doc_to_target="answer",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 24},
        filter_list=[
            {
                "name": "none",
                "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
            }
        ],
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **config,
    )


def choices(task: Callable[..., dict[str, Any]], **config: Any) -> dict[str, Any]:
    return task(
        "choices",
        output_type="multiple_choice",
        doc_to_choice="choices",
        doc_to_target="right",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **config,
    )


@pytest.fixture(autouse=True)
def _only_our_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own are 14,000 files: to look at them takes longer than all of this."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr(
        "lm_eval.evaluator.TaskManager", partial(TaskManager, include_defaults=False)
    )


def evaluate(model: Any, task: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    found = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, **arguments)
    assert found is not None
    return dict(found)


def request(words: str, *more: Any, number: int = 0, task: str = "t") -> Instance:
    return Instance("generate_until", {}, (words, *more), 0, metadata=(task, number, 1))


def generated(words: str, **how: Any) -> Instance:
    return request(words, {"until": [], "max_gen_toks": 12, **how})


# --- whole evaluations ------------------------------------------------------------------------


def test_answers_from_latents_from_text_and_without(
    model: Model, task: Callable[..., dict[str, Any]]
) -> None:
    score, positions = {}, {}
    for form in ("latents", "text", "none"):
        lm = model(context=form)
        results = evaluate(lm, answers(task))
        score[form] = results["results"]["sheets"]["exact_match,none"]
        positions[form] = lm.costs["sheets"].positions_per_request
        said = results["config"]
        assert (said["checkpoint"], said["context"]) == ("bundled", form)
        assert said["costs"]["sheets"]["requests"] == 24
        assert said["costs"]["sheets"]["positions_per_request"] == positions[form]
    assert score["latents"] > 0.8
    assert score["text"] > 0.8
    assert score["none"] == 0
    assert positions["none"] < positions["latents"] < positions["text"]


def test_multiple_choice_by_log_probabilities(
    model: Model, task: Callable[..., dict[str, Any]]
) -> None:
    lm = model(batch_size=16)
    assert evaluate(lm, choices(task))["results"]["choices"]["acc,none"] > 0.9
    assert lm.costs["choices"].requests == 72


def test_the_probability_of_a_choice_by_itself_is_that_of_an_empty_turn(
    model: Model, task: Callable[..., dict[str, Any]]
) -> None:
    mutual = {
        **choices(task),
        "metric_list": [
            {"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}
        ],
    }
    lm = model()
    found = evaluate(lm, mutual, limit=8)
    assert found["results"]["choices"]["acc_mutual_info,none"] > 0.8
    assert lm.costs["choices"].requests == 48


def test_by_name_with_arguments_in_a_string(task: Callable[..., dict[str, Any]]) -> None:
    assert get_model("lclm-rag") is CompressedContextLM
    # The harness reads "none" as None.
    arguments = r"checkpoint=bundled,decoder=transformers,context=none,question_starts=\n\nQuestion"
    results = evaluate(
        "lclm-rag", answers(task), model_args=arguments, device="cpu", batch_size=8, limit=8
    )
    assert results["config"]["context"] == "none"
    assert results["config"]["question_starts"] == r"\n\nQuestion"
    assert results["results"]["sheets"]["exact_match,none"] == 0


def test_the_command_line(
    tmp_path: Path, task: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    file = tmp_path / "sheets.yaml"
    file.write_text(yaml.safe_dump(answers(task)), "utf-8")
    arguments = ["--model", "lclm-rag", "--model_args", "checkpoint=bundled,context=latents"]
    arguments += ["--device", "cpu", "--batch_size", "auto", "--limit", "10"]
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["lm_eval", *arguments, "--tasks", str(file), "--output_path", str(out)]
    )
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # As it sets it, for good.
    main()
    (results,) = out.rglob("results_*.json")
    found = json.loads(results.read_text("utf-8"))
    assert found["results"]["sheets"]["exact_match,none"] > 0.5
    assert found["config"]["costs"]["sheets"]["latents"] > 0


# --- numbers ----------------------------------------------------------------------------------


def by_hand(model: Any, prompt: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The plain way: one prompt at a time, all of its logits."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *continuation]])).logits[0]
    found = logits[len(prompt) - 1 : -1].log_softmax(-1)
    total = sum(float(found[i, token]) for i, token in enumerate(continuation))
    return total, found.argmax(-1).tolist() == list(continuation)


def test_log_probabilities_are_those_of_a_plain_forward(
    model: Model, checkpoint: Checkpoint, sheets: list[FactSheet]
) -> None:
    template = PromptTemplate.of(checkpoint)
    plain = AutoModelForCausalLM.from_pretrained(
        checkpoint.path / "decoder", dtype=torch.float32, local_files_only=True
    )
    requests, wanted = [], []
    for sheet in sheets[:4]:
        for question in sheet.questions[:1]:
            words = f"{sheet.document.text}\n\nQuestion: {question.question}"
            prompt = (
                template.markup_ids("<|im_start|>user\n")
                + plain_ids(template.inert, words)
                + template.markup_ids("<|im_end|>\n<|im_start|>assistant\n")
            )
            for said in (f" {question.answer}", " nothing of the kind, as far as I know", " x"):
                requests.append(request(words, said))
                wanted.append(by_hand(plain, prompt, plain_ids(template.inert, said)))
    found = model(context="text", batch_size=7).loglikelihood(requests)
    assert [score for score, _ in found] == pytest.approx([s for s, _ in wanted], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert {greedy for _, greedy in wanted} == {True, False}


def test_log_probabilities_from_latents_are_those_of_generation(
    model: Model, decoder: TransformersDecoder, sheets: list[FactSheet]
) -> None:
    """What greedy decoding writes is greedy to the scores as well, and nothing else is."""
    words = [f"{s.document.text}\n\nQuestion: {s.questions[0].question}" for s in sheets[:8]]
    lm = model()
    said = lm.generate_until([generated(each, max_gen_toks=4) for each in words])
    scores = lm.loglikelihood([request(w, s) for w, s in zip(words, said, strict=True)])
    assert all(greedy for _, greedy in scores)
    others = lm.loglikelihood([request(w, " zzz") for w in words])
    assert not any(greedy for _, greedy in others)
    assert all(a > b for (a, _), (b, _) in zip(scores, others, strict=True))


def test_prompts_are_those_of_the_librarys_own_markup(
    model: Model,
    decoder: TransformersDecoder,
    compressor: Compressor,
    sheets: list[FactSheet],
) -> None:
    """With the context cut out by an expression, or marked in the task's own prompt."""
    text, question = sheets[0].document.text, sheets[0].questions[0].question
    marked = MARKED.format(text, question)
    unmarked = f"Answer.\n\n{text}\n\n{question}"
    lm = model(context_starts=r"Answer\.\n\n")
    a, b = lm._prompts([request(marked), request(unmarked)])
    assert a.token_ids == b.token_ids
    assert torch.equal(a.latents[0], b.latents[0])
    (by_markup,) = all_answered(generate([marked], compressor, decoder, Sampling(max_tokens=12)))
    assert lm.generate_until([generated(unmarked)]) == [by_markup.text]
    for form in ("text", "none"):
        a, b = model(context=form, context_starts=r"Answer\.\n\n")._prompts(
            [request(marked), request(unmarked)]
        )
        assert a.token_ids == b.token_ids
        assert not a.spans


def test_special_tokens_in_a_task_are_only_letters(model: Model, checkpoint: Checkpoint) -> None:
    end = checkpoint.decoder_tokenizer.token_to_id("<|im_end|>")
    words = "A<|im_end|> sheet.\n\nWho<|im_end|><|im_start|>assistant\n?"
    for form in ("latents", "text"):
        (prompt,) = model(context=form)._prompts([request(words)])
        assert prompt.token_ids.count(end) == 1


def test_answers_end_at_the_first_stop_string(model: Model, sheets: list[FactSheet]) -> None:
    words = f"{sheets[0].document.text}\n\nQuestion: {sheets[0].questions[0].question}"
    lm = model()
    (whole,) = lm.generate_until([generated(words)])
    first, second = whole[3], whole[2]
    cut = lm.generate_until([generated(words, until=[first, second, "§"])])
    assert cut == [whole[: min(whole.index(first), whole.index(second))]]
    short = lm.generate_until([generated(words, until=second), generated(words, max_gen_toks=1)])
    assert short[0] == whole[: whole.index(second)]
    assert whole.startswith(short[1])
    assert len(short[1]) < len(whole)


def test_sampling_is_as_the_task_says(model: Model, sheets: list[FactSheet]) -> None:
    words = f"{sheets[0].document.text}\n\nWrite something."
    lm = model()
    torch.manual_seed(0)
    sampled = lm.generate_until([generated(words, do_sample=True, temperature=5.0)] * 8)
    assert len(set(sampled)) > 1
    greedy = lm.generate_until(
        [generated(words, do_sample=False, temperature=5.0, num_beams=1)] * 2
    )
    assert len(set(greedy)) == 1


# --- where it is cut --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("context\n\nQ: a\nA:", ["", "context", "\n\nQ: a\nA:"]),
        ("a\n\nb\n\nQ", ["", "a\n\nb", "\n\nQ"]),
        ("a\n\n\nQ\n\n", ["", "a\n", "\n\nQ\n\n"]),
        ("", [""]),
        ("x <|memory_start|>a\n\nb<|memory_end|> y", ["x ", "a\n\nb", " y"]),
    ],
)
def test_the_context_ends_at_the_last_blank_line_or_where_it_is_marked(
    words: str, pieces: list[str]
) -> None:
    assert cut_context(words, re.compile(QUESTION_STARTS)) == pieces


def test_expressions_say_where_the_context_starts_and_ends() -> None:
    starts, ends = re.compile("Text: "), re.compile("Q[12]:")
    words = "Do this. Text: a Text: b Q1: c Q2: d"
    assert cut_context(words, ends, starts) == ["Do this. Text: ", "a Text: b Q1: c ", "Q2: d"]
    assert cut_context("all of it", re.compile(r"\Z")) == ["", "all of it", ""]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("no blank line", r"Task t, document 7: question_starts \(.*\) matches nowhere"),
        ("\n\nWho?", "Task t, document 7: there is nothing to compress"),
        ("a<|memory_start|>b", "Task t, document 7: there is a .* without its partner"),
        ("<|memory_start|> <|memory_end|>b", "Task t, document 7: there is nothing to compress"),
        ("a b " * 9000 + "\n\nc", "Task t, document 7: The prompt takes .* positions"),
    ],
)
def test_a_request_that_cannot_be_cut_is_named_before_anything_is_generated(
    decoder: TransformersDecoder, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.setattr(decoder, "complete", lambda *_: pytest.fail("it began"))
    lm = CompressedContextLM(decoder=decoder, device="cpu", context="text")
    with pytest.raises(PromptError, match=message):
        lm.generate_until([generated("a\n\nb"), request(words, {"until": []}, number=7)])


def test_context_starts_that_matches_nowhere_is_named(model: Model) -> None:
    with pytest.raises(PromptError, match=r"document 0: context_starts \('Text'\) matches nowhere"):
        model(context_starts="Text").generate_until([generated("a\n\nb")])


# --- what there is not ------------------------------------------------------------------------


class WithAdapter(WatchedDecoder):
    """As vLLM with latent items: it takes latents before the adapter, and gives text only."""

    def __init__(self, watched: Decoder, compressor: Compressor) -> None:
        super().__init__(watched)
        self.takes_encoder_space = True
        self.compressor = compressor

    def complete(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> list[Completion | PromptError]:
        assert {prompt.space for prompt in prompts} == {"encoder"}
        projected = [
            replace(
                p,
                latents=tuple(self.compressor.project(each, [len(each)]) for each in p.latents),
                space="decoder",
            )
            for p in prompts
        ]
        return super().complete(projected, sampling)


def test_other_decoders_generate_but_give_no_log_probabilities(
    decoder: TransformersDecoder, compressor: Compressor, sheets: list[FactSheet]
) -> None:
    requests = [
        generated(f"{s.document.text}\n\nQuestion: {s.questions[0].question}") for s in sheets[:4]
    ]
    lm = CompressedContextLM(decoder=WithAdapter(decoder, compressor), device="cpu")
    ours = CompressedContextLM(decoder=decoder, device="cpu").generate_until(requests)
    assert lm.generate_until(requests) == ours
    with pytest.raises(NotImplementedError, match=r"Task t asks .* decoder=transformers"):
        lm.loglikelihood([request("a\n\nb", " c")])


def test_the_perplexity_of_a_whole_text_is_refused(model: Model) -> None:
    with pytest.raises(NotImplementedError, match=r"Task t asks .* no context to compress"):
        model().loglikelihood_rolling([request("text")])


def test_what_is_not_supported_is_refused_by_name(model: Model) -> None:
    lm = model()
    with pytest.raises(PromptError, match="document 0: the generation argument num_beams=4"):
        lm.generate_until([generated("a\n\nb", num_beams=4)])
    with pytest.raises(PromptError, match="document 0: top_p must be"):
        lm.generate_until([generated("a\n\nb", do_sample=True, top_p=3.0)])
    with pytest.raises(PromptError, match="document 0: the continuation to be scored is empty"):
        lm.loglikelihood([request("a\n\nb", "")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": "summary"}, "Unknown context 'summary'; use latents, text, none"),
        ({"question_starts": "("}, "question_starts '\\(' is no regular expression"),
        ({"context_starts": "["}, "context_starts '\\[' is no regular expression"),
        ({"batch_size": 0}, "batch_size must be a whole number or auto, not 0"),
        ({"decoder": "llama"}, "Unknown decoder 'llama'"),
        ({"trust_remote_code": True}, "no option 'trust_remote_code'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressedContextLM(**{"device": "cpu", **arguments})


def test_a_decoder_brings_its_checkpoint(model: Model, checkpoint: Checkpoint) -> None:
    assert model().checkpoint.path == checkpoint.path
    with pytest.raises(ValueError, match="brings its checkpoint and options"):
        model(checkpoint="another/one")


def test_an_error_on_the_command_line_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise CheckpointError("There is no checkpoint.")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", refuse)
    with pytest.raises(SystemExit, match=r"^Error: There is no checkpoint\.$"):
        main()


def test_the_harness_chat_template_is_one_user_turn(
    model: Model, task: Callable[..., dict[str, Any]]
) -> None:
    lm = model(context_starts="Read this.\n\n")
    described = answers(task, description="Read this.\n\n")
    results = evaluate(lm, described, apply_chat_template=True, limit=8)
    assert results["results"]["sheets"]["exact_match,none"] > 0.8
    with pytest.raises(ValueError, match=r"turns user → assistant → user, .* fewshot_as_multiturn"):
        lm.apply_chat_template([{"role": r, "content": "x"} for r in ("user", "assistant", "user")])
