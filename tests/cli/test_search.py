"""search and ls: what is in a knowledge base, without a decoder."""

from __future__ import annotations

import json

import pytest

from lclm_rag import Document, KnowledgeBase
from support.commands import Run

TEXT = "\n\n".join(
    f"Chapter {n}. The {word} is open." for n, word in enumerate(["mill", "inn", "quay"])
)


@pytest.fixture
def kb(small_kb: KnowledgeBase) -> KnowledgeBase:
    small_kb.add([Document("guide", TEXT, {"lang": "en", "year": 2024})])
    return small_kb


def test_search_prints_passages_with_scores(kb: KnowledgeBase, run: Run) -> None:
    code, out, err = run("search", "--kb", kb.folder, "Is the quay open?", "--filter", "lang=en")
    assert (code, err) == (0, "")
    score, key = out.split("\n")[0].split()
    assert key == "guide#0"
    assert float(score) > 0
    assert "    Chapter 2. The quay is open." in out.split("\n")


def test_search_gives_lines_of_json(kb: KnowledgeBase, run: Run) -> None:
    code, out, _ = run("search", "--kb", kb.folder, "quay", "--json", "--top-k", "2")
    assert code == 0
    (found,) = [json.loads(line) for line in out.splitlines()]
    (hit,) = kb.retrieve("quay", 2)
    assert found == {**hit.to_dict(), "score": found["score"]}
    assert (found["text"], found["span"]) == (TEXT, [0, len(TEXT)])


def test_search_says_why_nothing_is_found(kb: KnowledgeBase, run: Run) -> None:
    code, out, err = run("search", "--kb", kb.folder, "quay", "--filter", "long=en", "--json")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].startswith("No passage has the metadata key 'long'")
    assert run("search", "--kb", kb.folder, " ") == (1, "", "Error: The question is empty.\n")
    code, _, err = run("search", "--kb", kb.folder, "quay", "--mmr", "0.5")
    assert code == 1
    assert "create the knowledge base with an embedder" in err


def test_ls_lists_documents(kb: KnowledgeBase, run: Run) -> None:
    code, out, _ = run("ls", "--kb", kb.folder)
    assert code == 0
    assert len(out.splitlines()) == 1 + 6
    code, out, _ = run("ls", "--kb", kb.folder, "--filter", "year>=2024")
    assert code == 0
    (line,) = out.splitlines()[1:]
    assert line.split()[:2] == ["1", str(len(TEXT))]
    assert line.endswith('  guide  {"lang": "en", "year": 2024}')
    code, out, _ = run("ls", "--kb", kb.folder, "--filter", "lang=en", "--json")
    assert [json.loads(line) for line in out.splitlines()] == [
        d.to_dict() for d in kb.documents({"lang": "en"})
    ]


def test_ls_lists_what_can_be_filtered_by(kb: KnowledgeBase, run: Run) -> None:
    code, out, _ = run("ls", "--kb", kb.folder, "--fields")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["5", "kind", "string"],
        ["1", "lang", "string"],
        ["5", "name", "string"],
        ["1", "year", "number"],
    ]
    code, out, _ = run("ls", "--kb", kb.folder, "--fields", "--json")
    assert json.loads(out.splitlines()[0]) == {"name": "kind", "kinds": ["string"], "documents": 5}
    assert run("ls", "--kb", kb.folder, "--fields", "--filter", "lang=en")[0] == 2


def test_ls_of_a_filter_that_matches_nothing(kb: KnowledgeBase, run: Run) -> None:
    code, out, err = run("ls", "--kb", kb.folder, "--filter", "lang=fr")
    assert (code, out, err) == (3, "", "No passage matches the filter.\n")
