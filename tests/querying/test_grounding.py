"""Strings that must be exact: found in answers, looked up in sources, wanted by questions."""

from __future__ import annotations

import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclm_rag.querying.grounding import exact_strings, ground, wants_exact_string


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs 69,798 euros.", ["69,798"]),
        ("af0cbf4f-ce9e-4ab7-a9fe-92f34d3344c0.", ["af0cbf4f-ce9e-4ab7-a9fe-92f34d3344c0"]),
        ("See https://x.org/a?b=1, or ask bob@x.org.", ["https://x.org/a?b=1", "bob@x.org"]),
        ('They wrote "to be", and “not 2 be”.', ["to be", "not 2 be"]),
        ("Use `make -j2` here", ["make -j2"]),
        ("The key is LBPXAVPPAH; NATO knows.", ["LBPXAVPPAH"]),
        ("At 18:30 on 2024-05-06, v1.2.3", ["18:30", "2024-05-06", "v1.2.3"]),
        ("5% more (AB-1234)", ["5%", "AB-1234"]),
        ("1. yes\n2) Gedul Gizel [3], [4, 5]", []),
        ("18 and 18 again", ["18"]),
        ("Gedul Gizel is the mayor.", []),
    ],
)  # fmt: skip
def test_exact_strings_of_a_text(text: str, expected: list[str]) -> None:
    assert exact_strings(text) == expected


@pytest.mark.parametrize(
    ("answer", "sources", "found", "missing"),
    [
        ("69798 euros", ["costs 69,798 euros"], ("69798",), ()),
        ("12 metres", ["3128 metres"], (), ("12",)),
        ("1.5 kg", ["it weighs 21.57 kg", "or 1.55"], (), ("1.5",)),
        ("1.5 kg", ["it weighs 1.5."], ("1.5",), ()),
        ("AB-1234", ["code AB-1243", "code AB-1234."], ("AB-1234",), ()),
        ("AB-1234", ["code ab-1234"], (), ("AB-1234",)),
        ('It says "Not  To be".', ["whether not to\nbe is"], ("Not  To be",), ()),
        ("In 1999 there were 7.", ["There were 7."], ("7",), ()),
        ("Gedul Gizel", [], (), ()),
        ("AB-1234", [], (), ("AB-1234",)),
    ],
)
def test_an_answers_strings_are_looked_up_in_its_sources(
    answer: str, sources: list[str], found: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    grounding = ground(answer, "How many were there in 1999?", sources)
    assert (grounding.found, grounding.missing) == (found, missing)
    assert grounding.complete is not missing


@given(
    number=st.integers(0, 10**9),
    code=st.text(string.ascii_uppercase + string.digits, min_size=8, max_size=16),
    identity=st.uuids(),
    around=st.text(string.ascii_lowercase + " ,\n", max_size=40),
)
def test_what_is_copied_from_a_source_is_found_there(
    number: int, code: str, identity: uuid.UUID, around: str
) -> None:
    source = f"{around} The total is {number:,}, the key {code}; it is {identity}. {around}"
    copied = f"It is {number}, key {code}, id {identity}."
    grounding = ground(copied, "", ["nothing", source])
    assert grounding.missing == ()
    assert str(identity) in grounding.found
    wrong = copied.replace(str(identity), str(identity)[:-1] + "x")
    assert not ground(wrong, "", [source]).complete


@pytest.mark.parametrize(
    "question",
    [
        "What is the badge code of Tazur Lonanar?",
        "Which record id does Velun have?",
        "What is the reference number of the agreement?",
        "How is the mayor's name spelled?",
        "Quote the clause on payment verbatim.",
        "Who carries AB-1234?",
        'Which page says "no refunds"?',
        "Under which URL is the manual?",
    ],
)
def test_questions_that_want_an_exact_string(question: str) -> None:
    assert wants_exact_string(question)


@pytest.mark.parametrize(
    "question",
    [
        "How much does the kettle cost?",
        "Who is the mayor of Velun?",
        "What is the number of people in Velun?",
        "When was Velun founded?",
        "Which keyboard does the laptop have?",
        "Who identified the problem in 2019?",
    ],
)
def test_questions_that_do_not(question: str) -> None:
    assert not wants_exact_string(question)
