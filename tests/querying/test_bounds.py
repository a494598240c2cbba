"""Numbers and lengths from outside are bounded before any work, or end where the document ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lclm_rag import KnowledgeBase, PassageKey
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet


def test_passages_beside_end_where_the_document_ends(
    knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    key = PassageKey(sheets[3].document.id, 0)
    beside = knowledge_base.read_passages(key, before=10**18, after=10**12)
    assert "".join(passage.text for passage in beside) == sheets[3].document.text
    hits = knowledge_base.retrieve(sheets[3].document.text[:200], 2, neighbours=10**12)
    assert hits[0].key == key


@pytest.mark.parametrize(
    "ask",
    [
        lambda kb, question: kb.retrieve(question),
        lambda kb, question: kb.query(question),
        lambda kb, question: kb.assemble(question),
        lambda kb, question: next(kb.stream(question)),
        lambda kb, question: kb.query([question]),
        lambda kb, question: asyncio.run(kb.aquery(question)),
        lambda kb, question: kb.query(question, context="none"),
    ],
)
def test_a_question_that_cannot_fit_is_refused_by_its_length(
    knowledge_base: KnowledgeBase,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[KnowledgeBase, str], object],
) -> None:
    def no_work(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was worked on")

    monkeypatch.setattr("lclm_rag.querying.reader.Reader.search", no_work)
    monkeypatch.setattr("lclm_rag.querying.reader.Reader.search_all", no_work)
    monkeypatch.setattr("lclm_rag.prompting.template.plain_ids", no_work)
    with pytest.raises(ValueError, match=r"has 3,000,000 characters, .* Shorten it"):
        ask(knowledge_base, "why" * 1_000_000)


@pytest.mark.parametrize("top_k", [10**10, 10**30])
def test_more_passages_than_can_be_counted_are_refused(
    knowledge_base: KnowledgeBase, top_k: int
) -> None:
    with pytest.raises(ValueError, match="top_k must be at most 1,000,000,000"):
        knowledge_base.retrieve("who", top_k)
    assert knowledge_base.retrieve("mayor", 10**9)
