"""Thoughts are left out of replies, whole or in pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclm_rag.prompting.replies import without_mark
from lclm_rag.prompting.thinking import Spoken, opens_thought, spoken

PIECES = st.lists(
    st.sampled_from(
        "<think> </think> <thinking> [THINK] [/THINK] ◁think▷ ◁/think▷".split()
        + "< </ think> th <th a<b [TH ◁ word x</ <b>".split()
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Nine.", "Nine."),
        ("<think>It may be 8.</think>Nine.", "Nine."),
        ("It may be 8.</think>Nine.", "Nine."),
        ("It may be 8.</think>Nine. <think>Or ten?</think>Or so.", "Nine. Or so."),
        ("<think>It may be 8", ""),
        ("<think></think>\n\nNine.", "\n\nNine."),
        ("[THINK]8?[/THINK]Nine.", "Nine."),
        ("◁think▷8?◁/think▷Nine.", "Nine."),
        ("a < b, and <b>c</b>", "a < b, and <b>c</b>"),
        ("It ends with <th", "It ends with <th"),
    ],
)
def test_what_is_said(reply: str, said: str) -> None:
    assert spoken(reply) == said


def test_the_mark_of_an_answer_is_found_behind_thoughts() -> None:
    assert without_mark("<think>ANSWER: 8?</think>\nANSWER: Nine.") == "Nine."
    assert without_mark("ANSWER： Nine.") == "Nine."


@given(reply=PIECES, cuts=st.lists(st.integers(0, 80)), thinking=st.booleans())
def test_pieces_say_what_the_whole_says(reply: str, cuts: list[int], thinking: bool) -> None:
    whole = Spoken(thinking=thinking)
    expected = whole(reply) + whole.end()
    places = sorted({min(cut, len(reply)) for cut in cuts} | {0, len(reply)})
    strip, said = Spoken(thinking=thinking), ""
    for start, end in pairwise(places):
        said += strip(reply[start:end])
        assert expected.startswith(said)
    assert said + strip.end() == expected
    assert not any(tag in expected for tag in ("<think>", "[THINK]", "◁think▷")) or thinking


def test_a_prompt_may_begin_the_thought() -> None:
    assert opens_thought("<|im_start|>assistant\n<think>\n")
    assert not opens_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not opens_thought("<|im_start|>assistant\n")
