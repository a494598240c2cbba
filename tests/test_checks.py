"""Texts that cannot be written down and numbers that are none are refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.checks import check_number, check_whole
from lclm_rag.connectors.corpora import documents_from_records
from lclm_rag.decoding import Sampling
from lclm_rag.errors import ContextLengthError, CorpusError
from lclm_rag.prompting.template import plain_ids

HALF = "half \ud83d"
BYTE = "caf\udce9"


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with KnowledgeBase.create(tmp_path_factory.mktemp("checks") / "kb") as made:
        made.add([Document("v", "The mayor of Velun is Gedul Gizel.", {"year": 2020})])
        yield made


TAKES_TEXT: dict[str, Callable[[KnowledgeBase, str], object]] = {
    "retrieve": lambda kb, text: kb.retrieve(text),
    "retrieve several": lambda kb, text: kb.retrieve(["Velun", text]),
    "assemble": lambda kb, text: kb.assemble(text),
    "query": lambda kb, text: kb.query(text),
    "stream": lambda kb, text: list(kb.stream(text)),
    "history": lambda kb, text: kb.query("Velun?", history=[("user", text), ("assistant", "x")]),
    "filter": lambda kb, text: kb.retrieve("Velun", filters={"year": text}),
    "filter's key": lambda kb, text: kb.retrieve("Velun", filters={text: 1}),
    "list of values": lambda kb, text: kb.find({"year": ["2020", text]}),
    "encoder": lambda kb, text: Checkpoint.open("bundled").encoder_token_ids(["good", text]),
    "decoder": lambda kb, text: plain_ids(Checkpoint.open("bundled").inert_decoder_tokenizer, text),
}


@pytest.mark.parametrize("where", TAKES_TEXT)
def test_a_text_that_is_not_unicode_is_refused_in_a_sentence(kb: KnowledgeBase, where: str) -> None:
    for text, problem in (
        (HALF, "half a character (U+D83D"),
        (BYTE, "the byte 0xe9, which is not UTF-8"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            TAKES_TEXT[where](kb, text)
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)
        str(caught.value).encode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": float("nan")}, "temperature must be a finite number, not nan."),
        ({"temperature": float("inf")}, "temperature must be a finite number, not inf."),
        (
            {"temperature": 10**400},
            "temperature must be a finite number, not a number of 1,329 bits.",
        ),
        ({"temperature": "1"}, "temperature must be a finite number, not '1'."),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, not nan."),
        ({"max_tokens": float("inf")}, "max_tokens must be a whole number, not inf."),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, not 1.5."),
        ({"max_tokens": True}, "max_tokens must be a whole number, not True."),
        ({"seed": -1}, "seed must be at least 0, not -1."),
        (
            {"seed": 2**63},
            "seed must be at most 9,223,372,036,854,775,807, not 9,223,372,036,854,775,808.",
        ),
        (
            {"seed": 10**4000},
            "seed must be at most 9,223,372,036,854,775,807, not a number of 13,288 bits.",
        ),
    ],
)
def test_numbers_of_sampling_are_numbers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Sampling(**arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan"), True, "3", None, 10**30, 10**4000])
def test_numbers_of_passages_are_whole(kb: KnowledgeBase, value: Any) -> None:
    with pytest.raises(ValueError, match="top_k must be"):
        kb.retrieve("Velun", value)


@pytest.mark.parametrize("wait", [-1, float("nan"), float("-inf"), "1"])
def test_a_wait_is_a_number_of_seconds(tmp_path: Path, kb: KnowledgeBase, wait: Any) -> None:
    with pytest.raises(ValueError, match="wait must be"):
        KnowledgeBase.create(tmp_path / "kb", wait=wait)
    assert not (tmp_path / "kb").exists()
    with pytest.raises(ValueError, match="wait must be"):
        KnowledgeBase.open(kb.path, wait=wait)
    KnowledgeBase.open(kb.path, wait=float("inf")).close()


def test_an_answer_longer_than_the_context_is_refused_by_its_length(kb: KnowledgeBase) -> None:
    for ask in (kb.query, kb.stream):
        with pytest.raises(ContextLengthError) as caught:
            list(ask("Who is the mayor of Velun?", sampling=Sampling(max_tokens=10**8)))  # type: ignore[arg-type]
        assert str(caught.value).startswith(
            "max_tokens is 100,000,000, which leaves no room for a prompt in"
        )


def test_a_bad_record_names_its_place() -> None:
    for metadata in ({"deep": [[]]}, {"n": 10**400}):
        deep: Any = metadata
        if "deep" in metadata:
            for _ in range(200):
                deep = {"deep": [deep]}
        records = [{"id": "a", "text": "good", **deep}]
        with pytest.raises(
            CorpusError, match=r"^records, record 1: Metadata .* of document 'a' holds"
        ):
            list(documents_from_records(records, name="records", metadata_columns=list(deep)))
    with pytest.raises(CorpusError, match=r"record 1: The document id 'a\\x00' has a NUL"):
        list(documents_from_records([{"id": "a\0", "text": "x"}]))


def test_metadata_that_an_earlier_version_stored_are_valid_json(
    kb: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lclm_rag.types._not_json", lambda value: None)
        document = Document(
            "n", "The mayor of Lobek.", {"x": float("nan"), "y": [float("inf")], "z": 1}
        )
    with KnowledgeBase.create(tmp_path / "kb") as old:
        old.add([document])
        (hit,) = old.retrieve("mayor of Lobek")
    assert json.loads(json.dumps(hit.to_dict(), allow_nan=False))["metadata"] == {
        "x": None,
        "y": [None],
        "z": 1,
    }


def test_the_checks_themselves() -> None:
    check_number(0.5, "x", 0, 1)
    check_whole(3, "x", 0, 3)
    with pytest.raises(ValueError, match=r"x must be at most 1, not 1\.5"):
        check_number(1.5, "x", 0, 1)
    with pytest.raises(ValueError, match="x must be at least 0, not -1"):
        check_number(-1, "x", 0)
