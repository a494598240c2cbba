"""The language of a knowledge base: chosen or told from the texts, kept, and what older indexes become."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.cli import cli
from lclm_rag.config import read_settings
from lclm_rag.retrieval import WORDS
from lclm_rag.storage import LocalFolder

GERMAN = [
    Document("haus", "Der Bürgermeister hat die Häuser am See für die Stadt gekauft."),
    Document("zug", "Die Züge fahren in der Nacht nicht nach Lyon, und das ist schade."),
]
MIXED = [
    Document("zh", "维伦市的市长是张伟。"),
    Document("ko", "벨룬의 시장은 김철수입니다."),
    Document("th", "นายกเทศมนตรีของเมืองเวลุนคือสมชาย"),
    Document("nfd", "Le cafe\u0301 de la re\u0301publique appartient a\u0300 Zoe\u0308."),
]


def found(kb: KnowledgeBase, question: str) -> list[str]:
    return [hit.key.document_id for hit in kb.retrieve(question, 1)]


def test_auto_becomes_the_language_of_what_is_added_first(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        assert kb.index.search("Haus", 1) == []  # Opened before there is a language.
        kb.add(GERMAN)
        assert found(kb, "Wem gehört das Haus?") == ["haus"]
        assert found(kb, "BUERGERMEISTER") == ["haus"]
        kb.add(
            [
                Document(
                    "en", "The trains of Velun and the houses on the lake are not what they were."
                )
            ]
        )
    settings = read_settings(LocalFolder(tmp_path / "kb"))
    assert (settings.language, settings.words) == ("german", WORDS)
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        assert found(kb, "Zug nach Lyon") == ["zug"]


def test_texts_in_other_languages_find_themselves(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", language="english") as kb:
        kb.add(MIXED)
        assert found(kb, "谁是市长？") == ["zh"]
        assert found(kb, "벨룬 시장") == ["ko"]
        assert found(kb, "สมชาย คือใคร") == ["th"]
        assert found(kb, "CAFÉ") == found(kb, "zoe") == ["nfd"]


def test_a_language_that_is_not_known_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown language 'deutsch'"):
        KnowledgeBase.create(tmp_path / "kb", language="deutsch")
    assert not (tmp_path / "kb").exists()


def test_an_embedded_index_from_before_is_built_anew_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kb"
    with KnowledgeBase.create(path, language="german") as kb:
        kb.add(GERMAN)
    (path / "kb.json").write_bytes(as_before(path / "kb.json", settings=True))
    (snapshot,) = path.glob("index/published/*/index.json")
    snapshot.write_bytes(as_before(snapshot, settings=False))
    with caplog.at_level(logging.WARNING), KnowledgeBase.open(path) as kb:
        assert kb.settings.language == "english"
        assert found(kb, "burgermeister") == ["haus"]
    assert [record.getMessage() for record in caplog.records] == [
        f"The passage index in {path / 'index'} splits texts into words as an earlier lclm-rag did, or for "
        "another language. It is built anew."
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING), KnowledgeBase.open(path) as kb:
        assert found(kb, "burgermeister") == ["haus"]
    assert caplog.records == []


def as_before(path: Path, *, settings: bool) -> bytes:
    """A file as a version of lclm-rag wrote it that knew English only."""
    raw = unseal(path.read_bytes())
    if settings:
        del raw["language"], raw["words"]
        raw["format"] = 5
    else:
        raw["bm25"] = {"language": "english", "avg_len": raw["bm25"]["avg_len"]}
    return seal(raw)


def test_build_says_what_it_chose_and_info_shows_it(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in GERMAN))
    run = CliRunner().invoke(cli, ["build", str(corpus), "--kb", str(tmp_path / "kb")])
    assert run.exit_code == 0
    assert "The language of the texts: german; build --language names another.\n" in run.stderr
    run = CliRunner().invoke(cli, ["info", "--kb", str(tmp_path / "kb"), "--json"])
    assert (json.loads(run.stdout)["language"], json.loads(run.stdout)["words"]) == (
        "german",
        WORDS,
    )
    arguments = ["build", str(corpus), "--kb", str(tmp_path / "other"), "--language", "none"]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 0
    assert "The language" not in run.stderr
