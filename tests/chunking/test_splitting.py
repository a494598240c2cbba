"""Documents are split into passages that give back the exact text, cut where the text allows."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lclm_rag import Document, KnowledgeBase, Passage, PassageKey
from lclm_rag.chunking.headings import Headings
from lclm_rag.chunking.splitting import split_document
from lclm_rag.compression import Compressor
from lclm_rag.decoding.transformers import TransformersDecoder


def letters(text: str) -> list[tuple[int, int]]:
    """A tokenizer for which every character is a token."""
    return [(i, i + 1) for i in range(len(text))]


def split(text: str, limit: int, title: str | None = None) -> list[Passage]:
    metadata = {} if title is None else {"title": title}
    document = Document("d", text, metadata)
    return list(split_document(document, letters, limit, contextual_headers=title is not None))


def texts(text: str, limit: int) -> list[str]:
    return [passage.text for passage in split(text, limit)]


# Pieces of which the interesting places of a text are made.
pieces = st.sampled_from(
    ["\n# One\n", "## Two\n", "```\n", "~~~", "\n\n", "\r\n", " ", "e.g. ", "A b. C", "。", "e\u0301",
     "👨‍👩‍👧", "🇩🇪", "\t", "\u2028", "word ", "#", "x"]
)  # fmt: skip
any_text = st.one_of(st.text(min_size=1), st.lists(pieces, min_size=1, max_size=60).map("".join))


@settings(deadline=None, max_examples=300)
@given(
    text=any_text.filter(str.strip),
    limit=st.integers(1, 40),
    title=st.one_of(st.none(), st.text(max_size=30)),
)
def test_passages_joined_are_the_document(text: str, limit: int, title: str | None) -> None:
    passages = split(text, limit, title)
    assert "".join(p.text for p in passages) == text
    for i, passage in enumerate(passages):
        assert passage.key == PassageKey("d", i)
        assert passage.text == text[passage.start : passage.end]
        assert passage.text.strip()
        assert "\n" not in passage.header
        assert len(passage.header) < limit
        if passage.header:
            assert passage.content == f"{passage.header}\n{passage.text}"


@settings(deadline=None, max_examples=50)
@given(
    text=st.one_of(st.text(min_size=1, max_size=300), any_text).filter(str.strip),
    limit=st.integers(8, 64),
    headers=st.booleans(),
)
@example(text="0000\n00000000 🈯\u200d🈲", limit=8, headers=False)
def test_passages_hold_at_most_the_tokens_asked_for_their_headers_included(
    compressor: Compressor, text: str, limit: int, headers: bool
) -> None:
    # White space alone may make a passage longer, by what of it would have been a passage.
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    document = Document("d", text, {"title": "A long title of the document"})
    for passage in split_document(
        document, compressor.checkpoint.token_offsets, limit, contextual_headers=headers
    ):
        white = len(passage.text) - len(passage.text.strip())
        assert len(compressor.checkpoint.encoder_token_ids([passage.content])[0]) <= limit + white


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One two three.\n\nFour five six seven.", "One two three.\n\n"),
        ("One two three. Four five six seven.", "One two three. "),
        ("alpha beta gamma delta epsilon", "alpha beta gamma "),
        ("a" * 40, "a" * 20),
        ("First line here.\n\n## Two\n\nMore text of it.", "First line here.\n\n"),
        ("A para here.\n\nB b\n# H1\nthe text goes on", "A para here.\n\nB b\n"),
        ("line one is it\nand two goes on", "line one is it\n"),
        ("so it was. line\nof more text here", "so it was. line\n"),
        ("It was Dr. Smith Jones who came", "It was Dr. Smith "),
        ("It is, e.g. those who came here", "It is, e.g. those "),
        ("Some a b.\n\n# H\n\nAnd then it goes on", "Some a b.\n\n"),
        ("Here is J. R. Tolkien. He wrote it", "Here is J. R. "),
        ("今日は晴れです。明日は雨です。明後日は雪でしょう。", "今日は晴れです。明日は雨です。"),
        (
            "它说：「好。」然后就走了，走得很远很远，再也没有回来",
            "它说：「好。」然后就走了，走得很远很远，",
        ),
    ],
)
def test_a_passage_ends_where_the_text_does(text: str, first: str) -> None:
    assert texts(text, 20)[0] == first


def test_a_heading_begins_a_passage_but_not_within_code() -> None:
    text = "ls -l here\n\nls\n# Heading or comment\nls and so on\n"
    assert texts(f"xyz\n{text}", 24)[0] == "xyz\nls -l here\n\nls\n"
    assert texts(f"```\n{text}```\n", 24)[0] == "```\nls -l here\n\n"


@pytest.mark.parametrize(
    "character", ["e\u0301", "\r\n", "👨‍👩‍👧", "🇩🇪", "한", "🤦🏽‍♂️", "e" + "\u0301" * 30]
)
def test_what_a_reader_sees_as_one_character_is_not_cut(character: str) -> None:
    for limit in range(len(character), 3 * len(character)):
        for text in texts(f"a{character * 20}b", max(limit, 2)):
            whole = text.removeprefix("a").removesuffix("b")
            assert whole == character * (len(whole) // len(character))


def test_a_character_longer_than_a_passage_is_cut_all_the_same() -> None:
    assert "".join(texts("e" + "\u0301" * 100, 10)) == "e" + "\u0301" * 100


def test_a_short_document_is_one_passage() -> None:
    (passage,) = split_document(Document("d", "# Short\n\ntext", {"lang": "en"}), letters, 100)
    assert (passage.start, passage.end, passage.metadata) == (0, 13, {"lang": "en"})
    assert (passage.header, passage.content) == ("", "# Short\n\ntext")


def test_passages_of_a_long_document_come_one_after_another(compressor: Compressor) -> None:
    """What is held is a few numbers for each heading, not the passages."""
    section = "## Section\n\n" + "Some words of a sentence. " * 20
    document = Document("d", section * 4_000)
    passages = split_document(document, compressor.checkpoint.token_offsets, 64)
    tracemalloc.start()
    try:
        assert next(passages).start == 0
        for _ in range(50):
            next(passages)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # of 2 MB


def test_the_tokenizer_reads_no_more_than_a_few_times_the_text() -> None:
    read = 0

    def counting(text: str) -> list[tuple[int, int]]:
        nonlocal read
        read += len(text)
        return [(i, i + 3) for i in range(0, len(text), 3)]

    for unit in ("word ", "x", "一二三。", "\n", "A b c.\n\n# H\n", "# H\n"):
        text = "a" + unit * (200_000 // len(unit)) + "b"
        read = 0
        passages = list(split_document(Document("d", text), counting, 100))
        assert "".join(p.text for p in passages) == text
        assert read < 4 * len(text)


# --- headers --------------------------------------------------------------------------------------

GUIDE = """Preface of the guide, which is long enough.

# Lines

About lines in general, which is long enough too.

## Northern line ##

It opens in May, as was decided in the last meeting.

```
# not a heading
```

And it has five stops, which is not all that many.

# Fares

A ticket is three euros, and one for the day is six.
"""


def test_a_header_is_the_title_and_the_headings_above() -> None:
    headers = {p.text.strip()[:9]: p.header for p in split(GUIDE, 120, "City  guide\n2026")}
    title = "City guide 2026"
    assert headers["Preface o"] == title
    assert headers["# Lines\n\n"] == title  # It begins with its own heading.
    assert headers["## Northe"] == f"{title} > Lines"
    assert headers["```\n# not"] == f"{title} > Lines > Northern line"
    assert headers["# Fares\n\n"] == title


def test_a_header_that_takes_more_than_half_loses_its_outermost_parts() -> None:
    text = "# Outer\n\n## Inner part\n\n" + "word " * 40
    headers = {limit: split(text, limit, "Title")[-1].header for limit in (60, 44, 26, 20)}
    assert headers == {
        60: "Title > Outer > Inner part",
        44: "Outer > Inner part",
        26: "Inner part",
        20: "",
    }


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# Plain", "Plain"),
        ("   ###### Six ######  ", "Six"),
        ("# C#", "C#"),
        ("#\tTab", "Tab"),
        ("# Two \t words #\r", "Two words"),
        ("#none", None),
        ("####### seven", None),
        ("    # code", None),
        ("text # no", None),
        ("``` # ```\n# Yes", "Yes"),
        ("~~~\n# no", None),
        ("```\n# no\n````\n# Yes", "Yes"),
        ("````\n# no\n```\n# no", None),
    ],
)
def test_headings_are_those_of_commonmark(line: str, title: str | None) -> None:
    text = f"before\n{line}\nafter"
    assert Headings(text).path(len(text)) == ([] if title is None else [title])


def test_headers_are_compressed_indexed_and_pasted_and_the_text_stays_exact(
    tmp_path: Path, decoder: TransformersDecoder
) -> None:
    document = Document("guide", GUIDE, {"title": "Velun zebra handbook"})
    with KnowledgeBase.create(
        tmp_path / "kb", passage_tokens=80, contextual_headers=True, decoder=decoder
    ) as kb:
        kb.add([document])
    with KnowledgeBase.open(tmp_path / "kb", decoder=decoder) as kb:
        rows = list(kb.store.passages())
        assert "".join(row.passage.text for row in rows) == GUIDE
        assert all(row.passage.header.startswith("Velun zebra") for row in rows)
        row = next(row for row in rows if row.passage.text.startswith("And it has"))
        assert row.passage.header == "Velun zebra handbook > Lines > Northern line"
        (latents,) = kb.compressor.compress([row.passage.content], "encoder")
        assert latents.shape == row.latents.shape
        assert torch.cosine_similarity(latents, row.latents).min() > 0.98
        assert row.tokens == len(
            kb.compressor.checkpoint.encoder_token_ids([row.passage.content])[0]
        )
        # No passage's own text has the word.
        hit = kb.retrieve("zebra", 1)[0]
        assert hit.text == GUIDE[hit.start : hit.end]
        pasted = kb.checkpoint.decoder_tokenizer.decode(
            kb.assemble("zebra", 1, context="text").token_ids
        )
        assert "Velun zebra handbook" in pasted
        assert kb.add([document]).unchanged == 1
    with KnowledgeBase.open(tmp_path / "kb", decoder=decoder) as kb:
        kb.add([Document("nodes", "Split elsewhere.", {"title": "T"})], split=False)
        (row,) = kb.store.read([PassageKey("nodes", 0)])
        assert row.passage.header == ""
