"""Words of any language: what is typed one way is found when it is asked another way, on the real engine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import qdrant_edge

from lclm_rag.retrieval import (
    LANGUAGES,
    Bm25Settings,
    EdgeIndex,
    IndexEntry,
    average_length,
    check_language,
    detect_language,
)
from lclm_rag.retrieval.words import WORDS, normal_words
from lclm_rag.types import PassageKey


def share_a_word(text: str, question: str, language: str) -> bool:
    model = Bm25Settings(language).model()
    words = set(model.embed_document(text).indices)
    return not words.isdisjoint(model.embed_query(question).indices)


@pytest.mark.parametrize(
    ("language", "text", "question"),
    [
        ("english", "cafe\u0301", "café"),
        ("english", "café", "CAFE"),
        ("english", "Groß", "GROSS"),
        ("english", "İSTANBUL", "istanbul"),
        ("english", "oﬃce", "offices"),
        ("english", "Bür\u00ad\nger", "burger"),
        ("english", "ＡＢＣ１２", "abc12"),
        ("english", "ｶﾞｰﾃﾞﾝ", "ガーデン"),
        ("english", "Velun™", "velun"),
        ("english", "٣٤ १२", "34"),
        ("english", "a fine 👩🏽‍💻!", "👩"),
        ("english", "🇩🇪", "🇩🇪"),
        ("english", "☕️", "☕"),
        ("english", "Smørrebrød", "smorrebrod"),
        ("german", "Bürgermeister", "Burgermeister"),
        ("german", "Bürgermeister", "Buergermeisters"),
        ("german", "Häuser", "HAUS"),
        ("german", "Straße", "Strassen"),
        ("french", "l’élection", "elections"),
        ("french", "L'élection", "élections"),
        ("spanish", "canción", "canciones"),
        ("turkish", "İSTANBUL'un", "istanbul"),
        ("turkish", "ISPARTA", "ısparta"),
        ("turkish", "ısparta", "isparta"),
        ("turkish", "IBM", "ibm"),
        ("russian", "Ёлка", "елки"),
        ("russian", "за́мок", "замок"),
        ("russian", "Київ", "київ"),
        ("greek", "ΠΌΛΗΣ", "πόλη"),
        ("arabic", "كـــتاب", "كِتَاب"),
        ("arabic", "أحمد", "احمد"),
        ("none", "کتاب", "كتاب"),
        ("hebrew", "שָׁלוֹם", "שלום"),
        ("hindi", "फ़िल्म", "फिल्म"),
        ("hindi", "किताबें", "किताब"),
        ("none", "पुलों", "पुल"),
        ("none", "பள்ளிகள்", "பள்ளி"),
        ("chinese", "维伦市的市长是张伟。", "市长"),
        ("chinese", "黑猫在睡觉", "猫"),
        ("japanese", "ヴェルンの市長は山田さんです。", "市長は誰ですか"),
        ("korean", "벨룬의 시장은 김철수입니다.", "벨룬"),
        ("korean", "꽃이 핀다", "꽃을"),
        ("thai", "นายกเทศมนตรีของเมืองเวลุนคือสมชาย", "สมชาย"),
        ("none", "ທະນາຄານແຫ່ງລາວ", "ລາວ"),
    ],
)
def test_a_word_is_found_however_it_is_typed(language: str, text: str, question: str) -> None:
    assert share_a_word(text, question, language)
    assert share_a_word(question, text, language)


@pytest.mark.parametrize(
    ("language", "text", "question"),
    [
        ("russian", "мой", "мои"),  # й is a letter of its own
        ("chinese", "市长", "江"),
        ("english", "velun", "ve lun"),
        ("korean", "시장", "장미"),
    ],
)
def test_what_is_another_word_stays_one(language: str, text: str, question: str) -> None:
    assert not share_a_word(text, question, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_of_every_script_find_themselves_in_every_language(language: str) -> None:
    texts = [
        "Velun",
        "Größe",
        "Київ",
        "Αθήνα",
        "مدينة",
        "ירושלים",
        "दिल्ली",
        "北京",
        "さくら",
        "서울",
        "กรุงเทพ",
        "తెలుగు",
    ]
    for text in texts:
        assert share_a_word(f"1 {text}.", f"{text}?", language), text


def test_english_without_accents_has_the_vectors_that_qdrant_gives_it() -> None:
    text = "The mayors of Velun don't run_fast: 3,000 E-mails, and it's the CITY's best."
    theirs = qdrant_edge.Bm25(qdrant_edge.Bm25Config(avg_len=6.0)).embed_document(text)
    ours = Bm25Settings(avg_len=6.0).model().embed_document(text)
    assert dict(zip(ours.indices, ours.values, strict=True)) == dict(
        zip(theirs.indices, theirs.values, strict=True)
    )


def test_stop_words_are_left_out_with_their_accents() -> None:
    assert Bm25Settings("french").model().embed_query("même, à, ÉTÉ").indices == []
    assert Bm25Settings("german").model().embed_query("für, über").indices == []
    assert average_length(["für das Haus", "Häuser"], "german") == pytest.approx(1)


def test_the_rule_has_a_name_that_another_program_can_repeat() -> None:
    assert normal_words("Die GROẞE Straße", "german") == "grosse strasse"
    assert asdict(Bm25Settings())["words"] == WORDS == "lclm-words-1"
    with pytest.raises(ValueError, match=r"lclm-words-9.*this lclm-rag knows"):
        Bm25Settings(words="lclm-words-9")


def test_an_index_from_before_keeps_the_words_that_it_was_made_with(tmp_path: Path) -> None:
    early = Bm25Settings.from_json(json.loads('{"language": "english", "avg_len": 6.0}'))
    assert early != Bm25Settings(avg_len=6.0)
    assert Bm25Settings.from_json(asdict(early)) == early
    index = EdgeIndex.create(tmp_path / "index", bm25=early)
    index.upsert([IndexEntry(PassageKey("d", 0), "Le café de Velun")])
    assert index.search("cafe", 1) == []
    assert [str(hit.key) for hit in index.search("CAFÉ", 1)] == ["d#0"]
    index.close()


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("english", "The mayor of Velun is Gedul Gizel."),
        ("english", "Velun: Gedul Gizel"),
        ("english", "12345"),
        ("german", "Der Bürgermeister von Velun ist Gedul Gizel."),
        ("french", "Le maire de Velun est Gedul Gizel."),
        ("spanish", "El alcalde de la ciudad de Velun es Gedul."),
        ("portuguese", "O prefeito de Velun é o Gedul e ele mora na cidade."),
        ("italian", "Il sindaco di Velun è Gedul e vive nella città."),
        ("dutch", "De burgemeester van Velun is Gedul en hij woont in de stad."),
        ("swedish", "Borgmästaren i Velun är Gedul och han bor i staden."),
        ("finnish", "Velunin pormestari on Gedul ja hän asuu kaupungissa."),
        ("turkish", "Velun'un belediye başkanı Gedul'dur ve bu şehirde yaşıyor."),
        ("turkish", "Kütüphane kitapları haftalığına verir."),
        ("hungarian", "A polgármester a városháza mellett lakik, és nem szereti az esőt, a hőt."),
        ("russian", "Мэр города Велун — Гедул, он живёт в доме."),
        ("none", "Міським головою є Гедул, який живе у місті."),
        ("none", "Starostou města Velun je Gedul a bydlí v domě na náměstí."),
        ("greek", "Ο δήμαρχος είναι ο Γεδούλ."),
        ("arabic", "عمدة مدينة فيلون هو جدول وهو يعيش في المدينة"),
        ("none", "شهردار شهر ولون گدول است و در این شهر زندگی می‌کند"),
        ("hindi", "वेलुन के महापौर गेदुल हैं।"),
        ("nepali", "नेपालको राजधानी काठमाडौं हो र यो एक सुन्दर शहर हो।"),
        ("chinese", "维伦市的市长是张伟。"),
        ("japanese", "ヴェルンの市長は山田太郎さんです。"),
        ("korean", "벨룬의 시장은 김철수입니다."),
        ("thai", "นายกเทศมนตรีของเมืองเวลุนคือสมชาย"),
    ],
)
def test_the_language_is_told_by_script_and_stop_words(language: str, text: str) -> None:
    assert detect_language([text]) == language


def test_an_unknown_language_is_refused_with_those_there_are() -> None:
    check_language("auto")
    with pytest.raises(ValueError, match=r"Unknown language 'klingon'; use auto, arabic, .*none\."):
        check_language("klingon")
