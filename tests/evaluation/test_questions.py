"""Where evaluation questions come from: needles made here, the published set, and a user's own file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.datasets.jsonl_questions import read_questions
from lclm_rag.evaluation.datasets.lclm_eval import lclm_eval_questions
from lclm_rag.evaluation.datasets.needles import NEEDLE_TASKS, needle_questions, ruler_prompt
from lclm_rag.evaluation.measures import score
from lclm_rag.evaluation.questions import EvalSet

NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")


def count_tokens(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def needles(**arguments: Any) -> EvalSet:
    return needle_questions(count_tokens, **arguments)


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from(list(NEEDLE_TASKS)),
    length=st.integers(450, 3000),
    seed=st.integers(0, 2**32),
)
def test_every_needle_asked_for_is_in_the_haystack_exactly_as_said(
    task: str, length: int, seed: int
) -> None:
    made = needles(tasks=[task], context_lengths=[length], questions_each=2, seed=seed)
    assert made.whole_documents
    for question, document in zip(made.questions, made.documents, strict=True):
        assert question.document_ids == (document.id,)
        assert question.category == f"{task}_{length}"
        hidden = [(m[2], m[3]) for m in NEEDLE.finditer(document.text)]
        words = set(re.findall(r"[\w-]+", question.question))
        assert sorted(v for key, v in hidden if key in words) == sorted(question.answers)
        spec = NEEDLE_TASKS[task]
        assert len(question.answers) == spec.queries * spec.values
        if spec.haystack != "needle":
            assert len(hidden) == spec.keys * spec.values
        # No key and no value stands there twice by chance.
        assert len({key for key, _ in hidden}) == len(hidden) / spec.values
        assert len({value for _, value in hidden}) == len(hidden)
        for answer in question.answers:
            assert document.text.count(answer) == 1
        assert score(question, f"They are {' and '.join(question.answers)}.".upper())["score"] == 1
        assert score(question, question.answers[0])["score"] == 1 / len(question.answers)
        assert score(question, "I do not know.")["score"] == 0


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from(list(NEEDLE_TASKS)),
    length=st.integers(450, 6000),
    seed=st.integers(0, 2**32),
)
def test_a_context_fills_the_length_but_for_less_than_one_more_piece(
    task: str, length: int, seed: int
) -> None:
    made = needles(tasks=[task], context_lengths=[length], questions_each=1, seed=seed)
    text, question = made.documents[0].text, made.questions[0]
    total = count_tokens(ruler_prompt(text, question.question)) + question.max_tokens
    pieces = text.split("\n") if "\n" in text else re.split(r"(?<=[.]) ", text)
    assert length - 2 * max(map(count_tokens, pieces)) < total <= length


def test_a_context_fills_the_length_by_the_checkpoints_own_tokenizer(
    checkpoint: Checkpoint,
) -> None:
    def count(text: str) -> int:
        return len(checkpoint.chat_tokenizer.encode(text, add_special_tokens=False))

    made = needle_questions(count, context_lengths=[2048], questions_each=1)
    assert len(made.questions) == 8
    for document, question in zip(made.documents, made.questions, strict=True):
        assert 0 <= 2048 - 128 - count(ruler_prompt(document.text, question.question)) < 100


def test_the_question_is_rulers() -> None:
    by_task = {
        q.category.rpartition("_")[0]: q
        for q in needles(context_lengths=[1000], questions_each=1).questions
    }
    single = by_task["niah_single_3"].question
    assert re.fullmatch(
        r"What is the special magic uuid for [a-z]+-[a-z]+ mentioned in the provided text\?", single
    )
    several = by_task["niah_multiquery"].question
    assert re.fullmatch(
        r"What are all the special magic numbers for ([a-z-]+, ){3}and [a-z-]+ "
        r"mentioned in the provided text\?",
        several,
    )
    assert by_task["niah_multivalue"].question.startswith("What are all the special magic numbers")
    question = "What is the special magic number for odd-kite mentioned in the provided text?"
    assert ruler_prompt("The text.", question) == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the number afterwards.\nThe text.\n{question}"
        " The special magic number for odd-kite mentioned in the provided text is"
    )


def test_the_same_seed_gives_the_same_set_and_more_questions_only_add_to_it() -> None:
    few = needles(context_lengths=[600], questions_each=2, seed=4)
    assert few == needles(context_lengths=[600], questions_each=2, seed=4)
    more = needles(context_lengths=[600], questions_each=3, seed=4)
    assert [q for q in more.questions if not q.id.endswith("/2")] == few.questions
    other = needles(context_lengths=[600], questions_each=2, seed=5)
    assert not {q.answers for q in few.questions} & {q.answers for q in other.questions}
    assert few.settings["texts_xxh3_128"] != other.settings["texts_xxh3_128"]
    # Figures that were published for a seed hold for its texts.
    assert few.settings["texts_xxh3_128"] == "5e098be44f5a2ac876179c84fc0e9b8a"


def test_needles_are_hidden_in_the_users_own_essays(tmp_path: Path) -> None:
    essays = tmp_path / "essays.txt"
    essays.write_text("Whales sing.\n\nNobody knows\nwhy! Do they?")
    made = needles(tasks=["niah_single_2"], context_lengths=[400], questions_each=1, essays=essays)
    without = NEEDLE.sub("", made.documents[0].text)
    assert set(re.findall(r"\S[^.!?]*[.!?]", without)) == {
        "Whales sing.",
        "Nobody knows why!",
        "Do they?",
    }
    with pytest.raises(EvaluationError, match=r"none\.txt: cannot be read"):
        needles(tasks=["niah_single_2"], essays=tmp_path / "none.txt")
    essays.write_text(" \n")
    with pytest.raises(EvaluationError, match="holds no text"):
        needles(tasks=["niah_single_2"], essays=essays)


def test_what_cannot_be_made_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no task 'niah'; take of niah_single_1,"):
        needles(tasks=["niah"])
    with pytest.raises(
        ValueError, match=r"200 tokens is too short for niah_multivalue, which needs \d+;"
    ):
        needles(tasks=["niah_multivalue"], context_lengths=[200])


def row(category: str, truth: Any, prompt: str = "", **extra: Any) -> dict[str, Any]:
    """As the published set spells it: the category behind a path, metadata in extra_info."""
    prompt = prompt or (
        "<|im_start|>system\nBe precise.<|im_end|>\n<|im_start|>user\nRead this.\n<|memory_start|>\nText."
        "\n<|memory_end|>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    return {
        "prompt": prompt,
        "category": category,
        "extra_info": {"ground_truth": truth, "variant": "memwrap", **extra},
    }


def ruler_row(task: str, index: int, answers: list[str], scoring: str = "all") -> dict[str, Any]:
    return row(
        f"memwrap/ruler/{task}_4096",
        {"answers": answers, "length": 3799, "index": index},
        scoring_function=f"ruler_string_match_{scoring}",
        ruler_task=task,
        context_length=4096,
    )


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Path]:
    """Writes a config's rows as the hub has them, in small row groups over two files."""

    def write(config: str, rows: list[dict[str, Any]]) -> Path:
        (tmp_path / config).mkdir()
        half = -(-len(rows) // 2)
        table = pa.Table.from_pylist(rows)
        for number, part in enumerate((table[:half], table[half:])):
            path = tmp_path / config / f"test-0000{number}-of-00002.parquet"
            pq.write_table(part, path, row_group_size=2)
        return tmp_path

    return write


def test_rulers_rows_become_questions_scored_as_ruler_does(published: Callable[..., Path]) -> None:
    rows = [ruler_row("niah_multivalue", i, [f"{i}111", f"{i}222"]) for i in range(5)]
    rows += [ruler_row("qa_1", i, ["Paris", "the capital"], "part") for i in range(4)]
    made = lclm_eval_questions("ruler", published("ruler", rows))
    assert [q.id for q in made.questions] == [
        *(f"ruler/niah_multivalue_4096/{i}" for i in range(5)),
        *(f"ruler/qa_1_4096/{i}" for i in range(4)),
    ]
    assert made.documents == ()
    all_of_them, any_of_them = made.questions[3], made.questions[5]
    assert all_of_them.answers == ("3111", "3222")
    assert score(all_of_them, "It is 3222.")["score"] == 0.5
    assert score(any_of_them, "THE CAPITAL")["score"] == 1
    assert all_of_them.prompt == rows[3]["prompt"]
    assert (all_of_them.question, all_of_them.max_tokens) == ("What is it?", 128)


def test_categories_and_a_limit_choose_the_first_questions(published: Callable[..., Path]) -> None:
    rows = [
        ruler_row(task, i, [f"{task}{i}"])
        for i in range(4)
        for task in ("niah_single_1", "niah_single_2", "vt")
    ]
    folder = published("ruler", rows)
    some = lclm_eval_questions("ruler", folder, categories=["niah_*_4096"], limit=3)
    assert sorted(q.answers[0] for q in some.questions) == [
        f"niah_single_{n}{i}" for n in (1, 2) for i in range(3)
    ]
    every = {q.id: q for q in lclm_eval_questions("ruler", folder).questions}
    assert len(every) == 12
    assert all(every[q.id] == q for q in some.questions)
    again = lclm_eval_questions("ruler", folder, categories=["niah_*_4096"], limit=2)
    assert again.settings != some.settings
    with pytest.raises(
        EvaluationError, match=r"no category fits 'niah_9\*'; there are niah_single_1_4096,"
    ):
        lclm_eval_questions("ruler", folder, categories=["niah_9*"])


@pytest.mark.parametrize(
    ("config", "rows", "right", "wrong"),
    [
        (
            "gsm8k",
            [row("memwrap/gsm8k", {"answers": ["3 + 4 = 7. #### 7"]})],
            "5 + 2 = 7",
            "7 - 1 = 6",
        ),
        ("gsm8k", [row("gsm8k", "18")], "So it is $18.00.", "It is 180."),
        (
            "longhealth5",
            [row("memwrap/longhealth", {"answer_letter": "D", "answer_text": "Vincristine"})],
            "D) Vincristine",
            "A) Cisplatin",
        ),
        ("longbench", [row("qasper", {"answers": ["a BERT model", "BERT"]})], "Bert.", "Elmo."),
        (
            "longbench",
            [row("trec", {"answers": ["Food"]}, all_classes=["Food", "Animal"])],
            "Food\nQuestion: What is a lion?\nType: Animal",
            "Animal",
        ),
        (
            "longbench",
            [row("samsum", {"answers": ["Ann will call Bob."]})],
            "\nAnn will call Bob.\nDialogue: Hi!",
            "Nobody calls.",
        ),
        (
            "longbench",
            [row("passage_retrieval_zh", {"answers": ["段落12"]})],
            "段落12",
            "段落1",
        ),
        ("longbench", [row("passage_count", {"answers": ["9"]})], "9", "There are 19"),
        (
            "longbench",
            [row("lcc", {"answers": ["return x + 1"]})],
            "```python\nreturn x + 1\n```",
            "@@",
        ),
        ("longbench", [row("multifieldqa_zh", {"answers": ["北京市"]})], "北京市。", "上海"),
        ("longbench", [row("vcsum", {"answers": ["会议讨论了预算"]})], "会议讨论了预算", "无"),
    ],
)
def test_each_benchmark_is_scored_by_its_own_rule(
    config: Any, rows: list[dict[str, Any]], right: str, wrong: str, published: Callable[..., Path]
) -> None:
    (question,) = lclm_eval_questions(config, published(config, rows)).questions
    assert score(question, right)["score"] == 1
    assert score(question, wrong)["score"] == 0


def test_what_it_is_not_known_how_to_score_is_refused_by_name(
    published: Callable[..., Path], tmp_path: Path
) -> None:
    known, unknown = row("qasper", {"answers": ["x"]}), row("new_task", {"answers": ["x"]})
    folder = published("longbench", [known, unknown])
    with pytest.raises(EvaluationError, match="not known how longbench's 'new_task' is scored"):
        lclm_eval_questions("longbench", folder)
    assert len(lclm_eval_questions("longbench", folder, categories=["qasper"]).questions) == 1
    folder = published("ruler", [ruler_row("vt", 0, ["x"], "some")])
    with pytest.raises(
        EvaluationError, match=r"row 1: .* 'vt_4096' is scored by 'ruler_string_match_some'"
    ):
        lclm_eval_questions("ruler", folder)


@pytest.mark.parametrize(
    ("config", "bad", "message"),
    [
        ("ruler", ruler_row("vt", 0, []), "row 2: no answers in ground_truth"),
        ("longbench", row("trec", {"answers": ["Food"]}), "row 2: 'trec' needs all_classes"),
        (
            "longhealth5",
            row("x", {"answers": ["Vincristine"]}),
            "row 2: by the measure 'choice' no",
        ),
        ("gsm8k", row("gsm8k", {"answers": ["seven"]}), "row 2: by the measure 'number' no answer"),
    ],
)
def test_a_row_that_is_not_as_published_is_named(
    config: Any, bad: dict[str, Any], message: str, published: Callable[..., Path]
) -> None:
    good = {
        "ruler": ruler_row("vt", 0, ["x"]),
        "longbench": row("trec", {"answers": ["Food"]}, all_classes=["Food"]),
        "longhealth5": row("x", {"answers": ["B"]}),
        "gsm8k": row("gsm8k", {"answers": ["7"]}),
    }[config]
    with pytest.raises(EvaluationError, match=rf"test-00000-of-00002\.parquet, {message}"):
        lclm_eval_questions(config, published(config, [good, bad, good]))


def test_a_set_that_is_not_there_or_is_no_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="There is no folder"):
        lclm_eval_questions("ruler", tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match=r"no test-\*\.parquet there"):
        lclm_eval_questions("ruler", tmp_path)
    (tmp_path / "ruler").mkdir()
    file = tmp_path / "ruler" / "test-0.parquet"
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(EvaluationError, match="cannot be read as Parquet"):
        lclm_eval_questions("ruler", tmp_path)
    pq.write_table(pa.table({"text": ["x"]}), file)
    with pytest.raises(EvaluationError, match="has no column 'prompt'"):
        lclm_eval_questions("ruler", tmp_path)


def test_only_one_configs_files_are_fetched_from_the_hub(
    published: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published("gsm8k", [row("gsm8k", {"answers": ["7"]})])
    fetched: list[Any] = []

    def fetch(name: str, **arguments: Any) -> str:
        fetched.append((name, arguments))
        if name == "me/none":
            raise OSError("404 Client Error.\nRequest ID: 1")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert len(lclm_eval_questions("gsm8k").questions) == 1
    assert fetched == [
        (
            "latent-context/lclm-eval",
            {"repo_type": "dataset", "allow_patterns": "gsm8k/test-*.parquet"},
        )
    ]
    with pytest.raises(EvaluationError, match=r"fetched from the hub \(404 Client Error\); check"):
        lclm_eval_questions("gsm8k", "me/none")


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def test_a_users_questions_are_read_with_all_that_they_say(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "mine.jsonl",
        {"question": "Who?", "answer": "Ada", "document_id": "a"},
        "",
        {
            "id": "ports",
            "question": "Which ports?",
            "answers": ["443", "8443"],
            "document_ids": ["a", "b"],
            "category": "network",
            "all_answers": True,
            "measure": "contains",
            "max_tokens": 20,
        },
    )
    made = read_questions(file)
    first, second = made.questions
    assert (first.id, first.answers, first.document_ids) == ("mine.jsonl:1", ("Ada",), ("a",))
    assert (first.measure, first.all_answers) == ("exact_match", False)
    assert (second.id, second.category, second.document_ids) == ("ports", "network", ("a", "b"))
    assert (second.all_answers, second.measure, second.max_tokens) == (True, "contains", 20)
    assert (made.documents, made.whole_documents) == ((), False)
    same = made.settings["xxh3_128"]
    write_lines(file, {"question": "Who?", "answer": "Bob"})
    assert read_questions(file).settings["xxh3_128"] != same


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not an object"),
        ({"answer": "x"}, "'question' is missing"),
        ({"question": "q"}, 'no answer; give "answer" or "answers"'),
        ({"question": "q", "answer": 4}, "'answer' must be a text that is not empty, not 4"),
        ({"question": "q", "answer": " "}, "'answer' must be a text that is not empty"),
        ({"question": "q", "answer": "x", "answers": ["y"]}, "'answer' and 'answers'; give one"),
        ({"question": "q", "answers": "x"}, "'answers' must be a list"),
        ({"question": "q", "answer": "x", "all_answer": True}, "'all_answer' is no field"),
        ({"question": "q", "answer": "x", "all_answers": "yes"}, "must be true or false"),
        ({"question": "q", "answer": "x", "measure": "bleu"}, "There is no measure 'bleu'; take"),
        (
            {"question": "q", "answer": "x", "measure": "choice"},
            "by the measure 'choice' no answer",
        ),
        ({"question": "q", "answer": "x", "measure": "classification"}, "need each other"),
        ({"question": "q", "answer": "x", "max_tokens": 0}, "whole number from 1"),
        ({"question": "q", "answer": "x", "id": "first"}, "'first' is that of line 1 too"),
    ],
)
def test_a_line_that_is_wrong_is_named_with_what_to_do(
    line: Any, message: str, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "q.jsonl", {"question": "q", "answer": "x", "id": "first"}, line)
    with pytest.raises(EvaluationError, match=rf"q\.jsonl, line 2: .*{re.escape(message)}"):
        read_questions(file)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(EvaluationError, match="holds no questions"):
        read_questions(write_lines(tmp_path / "empty.jsonl", "", " "))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "où?", "answer": "x"}'.encode("latin-1"))
    with pytest.raises(EvaluationError, match="line 1: not UTF-8; convert the file"):
        read_questions(latin)
