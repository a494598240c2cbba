"""lclm-rag eval: what is asked, what is measured, what a killed run leaves behind."""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checkpoint import MEMORY_END, MEMORY_START
from lclm_rag.decoding import Sampling, all_answered
from lclm_rag.decoding.server import ServerDecoder
from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation import run as evaluation_run
from lclm_rag.evaluation.contexts import in_frames, parse_context
from lclm_rag.evaluation.datasets.exact_strings import (
    RECORD_ID,
    REGISTRY_CODE,
    exact_string_questions,
    with_exact_strings,
)
from lclm_rag.evaluation.datasets.fact_sheet_sets import exact_string_set, fact_sheet_set
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet, fact_sheets
from lclm_rag.evaluation.datasets.needles import needle_questions
from lclm_rag.evaluation.journal import Journal
from lclm_rag.evaluation.passages import documents_to_add
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet
from lclm_rag.evaluation.report import compare, read_report
from lclm_rag.evaluation.run import evaluate
from lclm_rag.generation import generate
from lclm_rag.prompting import FRAMES, load_frame
from support.commands import Run
from support.random_classifiers import save_classifier


@pytest.fixture
def eval_set(questions: list[FactQuestion]) -> EvalSet:
    """Twelve questions about the shared knowledge base."""
    return _set(questions[:12])


def _set(questions: list[FactQuestion], **settings: Any) -> EvalSet:
    return EvalSet(
        name="some",
        questions=[
            EvalQuestion(str(i), q.question, (q.answer,), (q.document_id,), q.attribute.split("/")[0])
            for i, q in enumerate(questions)
        ],
        documents=(),
        whole_documents=False,
        settings=settings,
    )  # fmt: skip


def _contexts(*names: str) -> list[Any]:
    return [parse_context(name) for name in names]


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


# --- what is measured -----------------------------------------------------------------------------


def test_contexts_are_measured_on_the_same_questions(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    names = ("text", "latents", "latents+expand", "closed-book")
    report = evaluate(
        knowledge_base, eval_set, _contexts(*names), tmp_path, top_k=4, alone=3, together=5
    )
    assert report == read_report(tmp_path / "report.json")
    modes = report["modes"]
    assert tuple(modes) == names
    for mode, figures in modes.items():
        answers = [line["modes"][mode] for line in report["answers"]]
        score = figures["score"]
        assert score["mean"] == statistics.mean(answer["score"] for answer in answers)
        assert score["low"] <= score["mean"] <= score["high"]
        assert figures["positions"] == statistics.mean(a["positions"] for a in answers)
        assert (figures["timed"], score["of"]) == (3, 12)
        low, high = figures["first_token_quartiles"]
        assert 0 < low <= figures["first_token"] <= high
    assert modes["text"]["score"]["mean"] >= 0.8
    assert modes["latents"]["score"]["mean"] >= 0.7
    assert modes["closed-book"]["score"]["mean"] <= 0.1
    found = modes["latents"]
    assert found["recall"]["mean"] == found["hit"]["mean"] == 1.0
    assert found["recall_at_1"]["mean"] >= 0.9
    assert modes["closed-book"]["recall"] is None
    assert modes["latents"]["positions"] < modes["text"]["positions"] / 2
    assert modes["latents+expand"]["positions"] > modes["latents"]["positions"]
    assert modes["latents"]["kv_bytes"] == modes["latents"]["positions"] * 4 * 2 * 2 * 64 * 4
    assert report["reference"] == "text"
    difference = report["differences"]["latents"]
    assert difference["mean"] == pytest.approx(
        modes["latents"]["score"]["mean"] - modes["text"]["score"]["mean"]
    )
    assert sum(c["questions"] for c in report["categories"].values()) == 12
    for category in report["categories"].values():
        paired = category["differences"]["latents"]
        assert paired["of"] == category["questions"]
        means = [category["modes"][mode]["mean"] for mode in ("latents", "text")]
        assert paired["mean"] == pytest.approx(means[0] - means[1])
        assert 0 < paired["p"] <= 1
    assert report["store"]["bytes"] > report["store"]["source_tokens"]


@pytest.mark.slow
def test_every_frame_is_asked_beside_the_others(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    frames = [load_frame(name) for name in FRAMES]
    contexts = in_frames(_contexts("latents", "text"), frames)
    report = evaluate(knowledge_base, eval_set, contexts, tmp_path, top_k=4, alone=1)
    assert list(report["modes"]) == [f"{c}@{f}" for c in ("latents", "text") for f in FRAMES]
    assert report["reference"] == "text@numbered"
    lengths = {name: figures["positions"] for name, figures in report["modes"].items()}
    assert lengths["latents@card"] < lengths["latents@numbered"] < lengths["latents@chunks"]
    alone = evaluate(
        knowledge_base, eval_set, _contexts("latents"), tmp_path / "alone", top_k=4, alone=1
    )
    # The bundled checkpoint is asked in its own frame.
    own = [line["modes"]["latents@numbered"]["answer"] for line in report["answers"]]
    assert own == [line["modes"]["latents"]["answer"] for line in alone["answers"]]


def test_line_breaks_that_a_frame_has_inside_the_memory_are_compressed_for_it(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    contexts = in_frames(_contexts("latents"), [load_frame("block")])
    report = evaluate(knowledge_base, eval_set, contexts, tmp_path / "a", top_k=4, alone=1)
    with KnowledgeBase.create(
        tmp_path / "kb", frame="block", decoder=knowledge_base.decoder
    ) as built:
        built.add(
            Document(row.key.document_id, row.text, row.metadata)
            for row in knowledge_base.store.texts()
        )
        same = evaluate(built, eval_set, _contexts("latents"), tmp_path / "b", top_k=4, alone=1)
    found = [line["modes"]["latents@block"]["answer"] for line in report["answers"]]
    assert found == [line["modes"]["latents"]["answer"] for line in same["answers"]]


def test_a_protocol_that_the_decoder_cannot_be_offered_is_refused_before_anything_is_asked(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    contexts = in_frames(_contexts("latents+expand:model"), [load_frame("segments")])
    with pytest.raises(EvaluationError, match=r"expand:model@segments cannot be had: .* no tools"):
        evaluate(knowledge_base, eval_set, contexts, tmp_path)


def test_the_authors_figures_stand_beside_those_of_ruler(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(
        *(
            "eval",
            "ruler",
            "--length",
            "4096",
            "--task",
            "niah_single_2",
            "--task",
            "niah_multivalue",
        ),
        *("--count", "1", "--context", "latents", "--frames", "card", "--frames", "block"),
        *("--out", tmp_path),
    )
    assert code == 0
    rows = [line.replace("│", " ").split() for line in out.splitlines()]
    figures = {row[0]: row[-1] for row in rows if row and row[0].startswith("niah_")}
    assert figures == {"niah_single_2_4096": "90", "niah_multivalue_4096": "74.1"}


def test_answers_are_those_of_query(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    report = evaluate(
        knowledge_base, eval_set, _contexts("latents+expand"), tmp_path, top_k=3, alone=1
    )
    for line in report["answers"][:6]:
        answer = knowledge_base.query(line["question"], 3, sampling=Sampling(max_tokens=64))
        entry = line["modes"]["latents+expand"]
        assert entry["answer"] == answer.text
        assert entry["positions"] == answer.usage.positions


@pytest.mark.slow
def test_needles_are_asked_of_whole_documents(
    tmp_path: Path, knowledge_base: KnowledgeBase
) -> None:
    tokenizer = knowledge_base.checkpoint.inert_decoder_tokenizer
    needles = needle_questions(
        lambda text: len(tokenizer.encode(text).ids),
        tasks=("niah_single_1", "niah_multivalue"),
        context_lengths=(2048,),
        questions_each=2,
    )
    with KnowledgeBase.create(
        tmp_path / "kb", decoder=knowledge_base.decoder, passage_tokens=256
    ) as kb:
        kb.add(documents_to_add(needles))
        report = evaluate(
            kb, needles, _contexts("text", "latents", "latents+expand:1"), tmp_path, alone=0
        )
    modes = report["modes"]
    assert modes["latents"]["recall"]["mean"] == 1.0
    assert 1400 < modes["text"]["positions"] < 2048
    assert modes["latents"]["positions"] < 0.35 * modes["text"]["positions"]
    grown = modes["latents+expand:1"]["positions"] - modes["latents"]["positions"]
    assert 100 < grown < 256
    assert list(report["categories"]) == ["niah_multivalue_2048", "niah_single_1_2048"]
    for line in report["answers"]:
        for answer in line["modes"].values():
            there = [value in answer["answer"] for value in line["expected"]]
            assert answer["score"] == statistics.mean(there)


def test_a_context_may_have_its_own_number_of_passages(
    tmp_path: Path, knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    two = EvalQuestion(
        "both",
        f"{questions[0].question} {questions[1].question}",
        (questions[0].answer, questions[1].answer),
        (questions[0].document_id, questions[1].document_id),
        all_answers=True,
        measure="contains",
    )
    asked = EvalSet("both", [two], (), whole_documents=False, settings={})
    contexts = _contexts("text", "text:1", "latents:1")
    modes = evaluate(knowledge_base, asked, contexts, tmp_path, top_k=8, alone=0)["modes"]
    found = {
        mode: [figures[name]["mean"] for name in ("hit", "recall", "recall_at_1")]
        for mode, figures in modes.items()
    }
    assert found == {
        "text": [1.0, 1.0, 0.5],
        "text:1": [1.0, 0.5, 0.5],
        "latents:1": [1.0, 0.5, 0.5],
    }
    assert modes["latents:1"]["positions"] < modes["text:1"]["positions"]
    assert modes["text:1"]["positions"] < modes["text"]["positions"] / 3


def test_passages_for_which_there_is_no_room_are_counted(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    decoder = copy.copy(knowledge_base.decoder)
    decoder.context_length = 500
    with KnowledgeBase.open(knowledge_base.path, decoder=decoder) as kb:
        report = evaluate(kb, eval_set, _contexts("text", "latents"), tmp_path, top_k=8, alone=0)
    assert report["modes"]["text"]["left_out"] > 1
    assert report["modes"]["latents"]["left_out"] == 0
    assert report["modes"]["text"]["recall"]["mean"] == 1.0  # The best passages go in first.


def test_sets_that_bring_their_prompts_are_asked_as_they_stand(
    tmp_path: Path, knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    kb = knowledge_base
    written = [
        f"Read this.\n{MEMORY_START}{s.document.text}{MEMORY_END}\n{s.questions[0].question}"
        for s in sheets[:3]
    ]
    rendered = [
        kb.checkpoint.chat_tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in written
    ]
    questions = [
        EvalQuestion(str(i), "", (sheets[i].questions[0].answer,), prompt=text)
        for i, text in enumerate(rendered)
    ]
    brought = EvalSet("brought", questions, (), whole_documents=False, settings={})
    contexts = _contexts("latents", "text", "closed-book")
    report = evaluate(kb, brought, contexts, tmp_path, alone=0)
    expected = all_answered(generate(written, kb.compressor, kb.decoder, Sampling(max_tokens=64)))
    for line, completion in zip(report["answers"], expected, strict=True):
        assert line["modes"]["latents"]["answer"] == completion.text.strip()
    by_mode = {mode: figures["positions"] for mode, figures in report["modes"].items()}
    assert by_mode["closed-book"] < by_mode["latents"] < by_mode["text"]
    with pytest.raises(EvaluationError, match="bring their own prompts"):
        evaluate(kb, brought, _contexts("latents+expand"), tmp_path, alone=0)


def test_a_prompt_that_does_not_fit_is_an_error_that_is_counted(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    long = replace(eval_set.questions[0], id="long", question="Who? " * 20_000)
    some = replace(eval_set, questions=[*eval_set.questions[:2], long])
    report = evaluate(knowledge_base, some, _contexts("latents"), tmp_path, alone=0)
    figures = report["modes"]["latents"]
    assert figures["errors"] == 1
    assert "The question takes" in figures["first_error"]
    assert report["answers"][2]["modes"]["latents"]["score"] == 0


# --- what others offer ----------------------------------------------------------------------------


@pytest.mark.slow
def test_another_process_decodes_the_same_from_an_uncut_cache(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    """Where nothing is cut, kvpress's path must give what pasted text gives."""
    environment = Path(sys.prefix)
    contexts = _contexts("text", "kvpress:none")
    some = replace(eval_set, questions=eval_set.questions[:3])
    report = evaluate(
        knowledge_base, some, contexts, tmp_path, top_k=2, alone=1, kvpress=environment
    )
    for line in report["answers"]:
        pressed, text = line["modes"]["kvpress:none"], line["modes"]["text"]
        assert pressed == text


def test_kvpress_needs_its_environment(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    with pytest.raises(EvaluationError, match="kvpress_environment DIR"):
        evaluate(knowledge_base, eval_set, _contexts("latents", "kvpress:snapkv"), tmp_path)
    assert not (tmp_path / "answers.jsonl").exists()


def test_text_is_cut_to_what_latents_take(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet, sheets: list[FactSheet]
) -> None:
    texts = [sheet.document.text for sheet in sheets[:60]]
    model = save_classifier(tmp_path / "classifier", "bert", texts)
    contexts = _contexts("latents", f"llmlingua2:{model}")
    report = evaluate(knowledge_base, eval_set, contexts, tmp_path / "run", top_k=4, alone=2)
    for line in report["answers"]:
        latents, cut = line["modes"].values()
        assert 0.7 * latents["positions"] < cut["positions"] <= latents["positions"]
    assert report["modes"][f"llmlingua2:{model}"]["prepared"] > 0


# --- runs that go on ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, sheets: list[FactSheet]) -> Path:
    """500 questions in a file."""
    path = tmp_path_factory.mktemp("many") / "many.jsonl"
    sample = random.Random(1).sample([q for s in sheets for q in s.questions], 500)
    lines = [json.dumps({"question": q.question, "answer": q.answer, "document_id": q.document_id})
             for q in sample]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_a_killed_run_of_500_questions_goes_on(
    tmp_path: Path, knowledge_base: KnowledgeBase, many: Path, run: Run
) -> None:
    """kill -9 twice, once with half a line written; nothing is asked twice, nothing is lost."""
    command = ["eval", str(many), "--kb", str(knowledge_base.path), "--out", str(tmp_path)]
    command += ["--context", "latents", "--context", "closed-book", "--top-k", "2", "--alone", "3"]
    answers = tmp_path / "answers.jsonl"
    for wanted in (40, 600):
        process = subprocess.Popen(
            [sys.executable, "-m", "lclm_rag.cli", *command], stderr=subprocess.PIPE
        )
        while len(_whole_lines(answers)) < wanted:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stderr:
            process.stderr.close()
        with answers.open("a") as file:
            file.write('{"mode": "latents", "id": "half a li')
    before = _whole_lines(answers)
    assert 600 <= len(before) < 1000
    code, out, _ = run(*command, "--json")
    assert code == 0
    after = _lines(tmp_path)
    assert [json.dumps(line) for line in after[: len(before)]] == [
        json.dumps(json.loads(line)) for line in before
    ]
    assert len({(line["mode"], line["id"]) for line in after}) == len(after) == 1000
    report = json.loads(out)
    assert report["questions"] == 500
    assert report["modes"]["latents"]["timed"] == 3
    assert "answers" not in report


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


def test_runs_with_other_settings_are_never_mixed(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet, questions: list[FactQuestion]
) -> None:
    def ask(eval_set: EvalSet, top_k: int = 2) -> dict[str, Any]:
        return evaluate(
            knowledge_base, eval_set, _contexts("latents"), tmp_path, top_k=top_k, alone=0
        )

    first = ask(eval_set)
    before = (tmp_path / "answers.jsonl").read_bytes()
    assert ask(eval_set) == first
    with pytest.raises(EvaluationError, match="begun with top_k 2, not 3"):
        ask(eval_set, top_k=3)
    with pytest.raises(EvaluationError, match="begun with questions"):
        ask(_set(questions[:12], seed=7))
    with pytest.raises(EvaluationError, match="begun with set"):
        ask(replace(eval_set, name="other"))
    assert (tmp_path / "answers.jsonl").read_bytes() == before


def test_the_code_the_decoders_options_and_the_server_are_part_of_a_run(
    tmp_path: Path,
    knowledge_base: KnowledgeBase,
    eval_set: EvalSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = replace(eval_set, questions=eval_set.questions[:2])

    def ask() -> dict[str, Any]:
        contexts = _contexts("closed-book")
        return evaluate(knowledge_base, few, contexts, tmp_path, alone=0)["settings"]

    settings = ask()
    assert settings["versions"]["transformers"]
    assert settings["server"] is None
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_run, "_commit", lambda: "0" * 40)
        with pytest.raises(EvaluationError, match="begun with commit"):
            ask()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_run, "_versions", lambda: {"transformers": "1.0"})
        with pytest.raises(EvaluationError, match="begun with versions"):
            ask()
    options = {"max_num_seqs": 4, "api_key": "secret"}
    with monkeypatch.context() as patch:
        patch.setattr(knowledge_base, "_decoder_options", options)
        expected = 'begun with decoder_options {}, not .*"max_num_seqs": 4'
        with pytest.raises(EvaluationError, match=expected) as refused:
            ask()
    assert "secret" not in str(refused.value)


def test_a_servers_url_is_noted_without_its_password() -> None:
    server = object.__new__(ServerDecoder)
    server.url, server.model = "http://me:secret@host:8000/v1", "lclm"
    assert evaluation_run._server(server) == {"url": "http://host:8000/v1", "model": "lclm"}


def test_another_checkpoint_does_not_go_on_with_a_run(
    tmp_path: Path, checkpoint: Any, run: Run
) -> None:
    """Same encoder, another decoder: the store could be read, the answers would be others."""
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(checkpoint.path, other)
    weights = other / "decoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] *= 1.01
    save_file(tensors, weights, {"format": "pt"})
    command = ["eval", "ruler", "--task", "niah_single_1", "--length", "512", "--count", "1"]
    command += ["--context", "latents", "--out", str(tmp_path / "run")]
    assert run(*command)[0] == 0
    code, _, err = run(*command, "--checkpoint", str(other))
    assert code == 1
    assert "was begun with checkpoint" in err
    code, _, err = run(*command, "--codec", "bf16")
    assert code == 1
    assert "has codec int4, not bf16" in err


def test_a_context_can_be_added_later(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    first = evaluate(knowledge_base, eval_set, _contexts("latents"), tmp_path, top_k=2, alone=0)
    both = evaluate(knowledge_base, eval_set, _contexts("text"), tmp_path, top_k=2, alone=0)
    assert list(both["modes"]) == ["latents", "text"]
    assert both["modes"]["latents"] == first["modes"]["latents"]


def test_one_process_at_a_time(
    tmp_path: Path, knowledge_base: KnowledgeBase, eval_set: EvalSet
) -> None:
    with (
        Journal(tmp_path, {}),
        pytest.raises(EvaluationError, match="Another process is evaluating"),
    ):
        evaluate(knowledge_base, eval_set, _contexts("latents"), tmp_path)


# --- at the shell ---------------------------------------------------------------------------------


def test_a_table_plots_and_a_comparison(
    tmp_path: Path, knowledge_base: KnowledgeBase, many: Path, run: Run
) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(itertools.islice(many.open(), 10)))
    command = ["eval", str(questions), "--kb", str(knowledge_base.path), "--alone", "2"]
    contexts = ["--context", "text", "--context", "latents"]
    code, out, err = run(
        *command, *contexts, "--out", str(tmp_path / "a"), "--top-k", "2", "--plots"
    )
    assert code == 0, err
    assert "score, %" in out
    assert "recall@2, %" in out
    assert "hit rate@2, %" in out
    assert "recall@1, %" in out
    pictures = ["accuracy_first_token.png", "accuracy_memory.png", "accuracy_ratio.png"]
    for name in pictures:
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / "a" / name) in out
    code, _, _ = run(*command, *contexts[:2], "--out", str(tmp_path / "b"), "--top-k", "4")
    assert code == 0
    reports = [tmp_path / name / "report.json" for name in "ab"]
    code, out, _ = run("eval", "--compare", *reports)
    assert code == 0
    assert "B less A, 10 questions that both asked" in out
    assert "top_k: A 2, B 4" in out
    code, out, _ = run("eval", "--compare", *reports, "--json")
    found = json.loads(out)
    a, b = map(read_report, reports)
    assert list(found["modes"]) == ["text"]
    assert found["modes"]["text"]["difference"]["mean"] == pytest.approx(
        b["modes"]["text"]["score"]["mean"] - a["modes"]["text"]["score"]["mean"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "Say what to ask"),
        (["eval", "riddles", "--out", "x"], "'riddles' is no set of questions"),
        (["eval", "fact-sheets", "--out", "x", "--context", "guess"], "Unknown context 'guess'"),
        (["eval", "fact-sheets", "--out", "x", "--context", "text:0"], "Unknown context 'text:0'"),
        (["eval", "fact-sheets", "--out", "x", "--context", "latents+expand:some"], "Unknown expand"),
        (["eval", "ruler", "--out", "x", "--compare", "README.md", "README.md"], "nothing is asked"),
    ],
)  # fmt: skip
def test_wrong_usage_is_refused(run: Run, arguments: list[str], message: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


def test_a_file_of_questions_needs_a_knowledge_base(
    many: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LCLM_RAG_KB", raising=False)
    code, _, err = run("eval", str(many), "--out", str(tmp_path))
    assert code == 2
    assert "give --kb" in err
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"modes": {}}')
    with pytest.raises(EvaluationError, match="is no report"):
        read_report(path)
    with pytest.raises(EvaluationError, match="no context in common"):
        compare({"modes": {"a": 1}}, {"modes": {"b": 1}})


# --- the built-in sets ----------------------------------------------------------------------------


def test_exact_strings_are_in_their_sheets_and_nowhere_else() -> None:
    eval_set = exact_string_set(200, seed=3)
    texts = {document.id: document.text for document in eval_set.documents}
    kinds = [q.category for q in eval_set.questions]
    assert kinds.count(REGISTRY_CODE) + kinds.count(RECORD_ID) == 100
    assert len(eval_set.questions) == 200 == len({q.id for q in eval_set.questions})
    for question in eval_set.questions:
        (answer,), (document_id,) = question.answers, question.document_ids
        assert answer in texts[document_id]
        if question.category in (REGISTRY_CODE, RECORD_ID):
            assert len(answer) == (12 if question.category == REGISTRY_CODE else 36)
            assert sum(answer in text for text in texts.values()) == 1
    assert exact_string_set(200, seed=3) == eval_set
    assert exact_string_set(200, seed=4).documents != eval_set.documents


def test_the_sheets_are_those_without_strings() -> None:
    (plain,) = itertools.islice(fact_sheets(9, held_out=True), 1)
    with_strings = with_exact_strings(plain, random.Random(0))
    assert with_strings.questions[: len(plain.questions)] == plain.questions
    assert len(exact_string_questions(with_strings)) == 4
    sentences = plain.document.text.split(". ")
    assert all(sentence.rstrip(".") in with_strings.document.text for sentence in sentences)
    first = next(fact_sheets(2026, held_out=True, part="report"))
    assert fact_sheet_set(50).documents[0] == first.document
