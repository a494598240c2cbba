"""Documents: what they may hold, and when they count as changed."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from lclm_rag import Answer, Document, Grounding, Hit, PassageKey, Timings, Usage
from lclm_rag.printable import UNSAFE
from lclm_rag.types import Round


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "text"), "document id"),
        (("a", "  \n"), "'a' is empty"),
        (("a", "text", {"when": {0: 2}}), "'when' of document 'a' holds a key of type int"),
        (("a", "text", {"tags": ["x", {"y"}]}), "'tags' of document 'a' holds a set"),
        (("a", None), "text of document 'a' must be a string"),
        (("a", "half \ud83d emoji"), r"The text of document 'a' has half a character \(U\+D83D"),
        (
            ("a", "a" * 3_000_000 + "\udce9"),
            "'a' has the byte 0xe9, which is not UTF-8, at character 3000000",
        ),
        (("c\udce9", "text"), r"The document id 'c\\udce9' has the byte 0xe9"),
        (("c\0", "text"), r"The document id 'c\\x00' has a NUL character"),
        (("a", "text", {"file": "b\udce9"}), "'file' of document 'a' holds the byte 0xe9"),
        (("a", "text", {"b\ud83d": 1}), "of document 'a' holds half a character"),
        (("a", "text", {"x": [{"y\ud83d": 1}]}), "'x' of document 'a' holds half a character"),
        (("a", "text", {"x": float("nan")}), "'x' of document 'a' holds the number nan"),
        (("a", "text", {"x": [{"y": float("-inf")}]}), "'x' of document 'a' holds the number -inf"),
        (
            ("a", "text", {"x": 10**400}),
            "'x' of document 'a' holds a number of more than 308 digits",
        ),
        (("a", "text", {"x": -(10**4000)}), "'x' of document 'a' holds a number of more than 308"),
        (
            ("a", "text", {"x": nested(101)}),
            "'x' of document 'a' holds more than 100 lists and objects",
        ),
        (("a", "text", {"x": nested(100_000)}), "'x' of document 'a' holds more than 100 lists"),
        (("a", "text", ["x"]), "metadata of document 'a' must be a mapping, not list"),
    ],
)
def test_a_document_that_cannot_be_stored_says_which_and_why(
    arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Document(*arguments)  # type: ignore[arg-type]


def test_whatever_json_can_hold_can_be_stored() -> None:
    metadata = {
        "big": 2**64,
        "tiny": -(10**300),
        "deep": nested(100),
        "none": None,
        "s": "a\0\n雪😀",
    }
    document = Document("an id 雪", "text with \0 in it", metadata)
    assert json.loads(json.dumps(document.metadata)) == metadata
    assert len(document.content_hash()) == 32


def test_the_content_hash_sees_text_and_metadata_but_not_their_order() -> None:
    a = Document("d", "text", {"x": 1, "y": 2})
    assert a.content_hash() == Document("other", "text", {"y": 2, "x": 1}).content_hash()
    assert a.content_hash() != Document("d", "text", {"x": 1, "y": 3}).content_hash()
    assert a.content_hash() != Document("d", "Text", {"x": 1, "y": 2}).content_hash()


def test_the_content_hash_sees_the_whole_of_a_long_text() -> None:
    text = "é" * 3_000_000
    changed = text[:2_900_000] + "e" + text[2_900_001:]
    assert Document("d", text).content_hash() != Document("d", changed).content_hash()
    assert Document("d", "1 {}x").content_hash() != Document("d", "x", {}).content_hash()


def test_an_answer_prints_as_its_text_and_a_notebook_shows_its_sources_too() -> None:
    evil = "<script>alert(1)</script> & \x1b[2J \u202e"
    key = PassageKey(f"<b>{evil}", 0)
    hit = Hit(key, 1.25, f"{evil} source", 0, 9, {})
    taken = Round("reply", (key,), (), 40, None, 3, 0.001, 0.002)
    answer = Answer(
        "Who?",
        f"Gedul {evil}\nGizel",
        [hit],
        [PassageKey("left", 2)],
        complete=False,
        grounding=Grounding(missing=("<i>7",)),
        rounds=(taken,),
        usage=Usage(40, 60, 10, 38, 3, None),
        timings=Timings(0.0, 0.0, 0.0, 0.007, 0.057),
    )
    assert str(answer) == answer.text
    shown = answer._repr_html_()
    assert re.findall(r"<[^>]*>", re.sub(r' style="[^"]*"', "", shown)) == [
        "<div>",
        "</div>",
        "<pre>",
        "</pre>",
    ]
    assert not UNSAFE.search(shown)
    assert "Gedul &lt;script&gt;alert(1)&lt;/script&gt; &amp; \\x1b[2J" in shown
    for line in (
        "  1.25  &lt;b&gt;&lt;script&gt;",
        "(verbatim)",
        "not in the sources: &lt;i&gt;7",
        "left out, no room in the prompt: left#2",
        "cut after 3 tokens; raise max_tokens (--max-tokens)",
        "38 source tokens as 10 latents, 40 prompt positions; first token after 7 ms, 57 ms in all",
    ):
        assert line in shown
    nothing = replace(answer, text="", reason="No passage matches.", sources=[], rounds=())
    assert str(nothing) == ""
    assert "No passage matches." in nothing._repr_html_()
