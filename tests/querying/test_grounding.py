"""Strings that must be exact: found in answers, looked up in sources, wanted by questions."""

from __future__ import annotations

import string
import unicodedata
import uuid

import pytest
import regex
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
    ("answer", "source"),
    [
        ("12\u00a0345", "12,345"),
        ("12’345", "12 345"),
        ("1.234,50 €", "EUR 1,234.50"),
        ("0,93", "0.93"),
        ("٨٥٪", "85 %"),
        ("10 km", "10km"),
        ("−5 °C", "minus 5°C"),
        ("According to passage 3, 5 (2, 4) [1]", "5"),
        ("Laut den Quellen 2 und 4: 5", "5"),
        ("Selon le passage 2, 640 arbres", "640 arbres"),
        ("根据第3段，有5人", "5人"),
        ("وفقا للمقطع 2: 5", "٥"),
        ("<think>No. 7? 8!</think>5", "5"),
        ("«\u202fL’eau\u202f»", "L'eau"),
        ('„Maß und Mut“, "Mut,"', "»Maß und Mut«"),
        ("「江上有风」", "“江上有风”"),
        ("**AB12‑CD34**, `AB12-CD34`", "AB12–CD34."),
        ("SPRING25", "SPRING\u200b25, SPR\u00adING25"),
        ("[here](https://a.b/c).", "https://a.b/c/"),
        ("v1.2.3", "1.2.3"),
        ("20 h 30, 14:30", "20h30; 14.30 Uhr"),
        ("2019–2020", "from 2019 to 2020"),
        ("10-day trip", "10 days"),
        ("DE89 3704 0044 0532 0130 00", "DE89370400440532013000"),
        ("CO2, A4, A5", "CO₂-Ausstoß, A4/A5"),
    ],
)
def test_how_a_string_is_written_makes_no_difference(answer: str, source: str) -> None:
    assert ground(answer, "", [source]).missing == ()
    assert ground(source, "", [answer]).missing == ()


@pytest.mark.parametrize(
    ("missing", "source"),
    [
        ("AB12-CD34", "AB12-CD34-EF56"),
        ("CD34-EF56", "AB12-CD34-EF56"),
        ("`AB12-CD34`", "AB12-CD34-EF56"),
        ("GRX-5520", "XGRX-5520"),
        ("VT-2209", "VT-2209/7"),
        ("https://a.b/c", "https://a.b/c/d"),
        ("https://a.b/c", "https://a.b/c?d=1"),
        ("https://a.b", "https://a.b.org"),
        ("bob@x.org", "bob@x.org.uk, bill.bob@x.org"),
        ("1.2", "v1.2.3"),
        ("5 mg", "5 µg"),
        ("-5 °C", "5 °C"),
        ("102", "10²"),
        ("1.25", "125"),
        ("3 200", "13 200"),
        ("01 44 27 10 09", "01 44 27 09 10"),
        ("2011–2021", "2011–2012, and again in 2020"),
        ('"fees are waived"', "fees are raised"),
        (r"C:\Users\x1", r"C:\Users\x1\a.txt"),
    ],
)
def test_a_string_is_found_only_as_a_whole(missing: str, source: str) -> None:
    grounding = ground(f"It is {missing}.", "", ["another", source])
    assert (grounding.found, grounding.missing) == ((), (missing.strip('"`'),))


def test_a_file_is_found_by_its_name() -> None:
    assert ground("It is report2.pdf.", "", ["/home/ann/report2.pdf"]).missing == ()


def test_the_numbers_of_list_items_are_no_strings_but_a_date_at_the_start_is() -> None:
    assert exact_strings("1. Open.\n2. Wait 90 seconds.\n3) Shut.") == ["90"]
    assert exact_strings("17. Juni 1842") == ["17", "1842"]


# --- any white space, quotation marks, dashes and digits of Unicode ---------------------------------

_ALL = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
WHITE = [c for c in _ALL if c.isspace() and unicodedata.category(c) == "Zs"]
DASHES = [c for c in _ALL if regex.match(r"\p{Pd}|[-−]", c)]
ZEROS = [c for c in _ALL if unicodedata.decimal(c, None) == 0]
MARKS = ['""', "“”", "„“", "«»", "»«", "‹›", "「」", "『』", "‘’", "``", "＂＂", "《》"]
APOSTROPHES = "'’ʼ＇‘"

letters = st.text("abcdefghijklmnopqrstuvwxyzäéßñ", min_size=1, max_size=9)
numbers = st.from_regex(r"[1-9][0-9]{0,6}([.,][0-9]{1,4})?", fullmatch=True)
codes = st.from_regex(r"[A-Z]{1,4}[0-9]{1,4}(-[A-Z0-9]{2,5}){0,3}", fullmatch=True)
ranges = st.from_regex(r"(19|20)[0-9]{2}-(19|20)[0-9]{2}", fullmatch=True)
phrases = st.lists(st.one_of(letters, st.just("don't"), numbers), min_size=2, max_size=6)
copies = st.one_of(
    numbers,
    codes,
    ranges,
    numbers.map(lambda number: f"{number} %"),
    phrases.map(lambda parts: f'"{" ".join(parts)}"'),
)


def otherwise(data: st.DataObject, text: str) -> str:
    """The text with other white space, quotation marks, dashes and digits."""
    zero = ord(data.draw(st.sampled_from(ZEROS)))
    left, right = data.draw(st.sampled_from(MARKS))
    for old, new in (
        (" ", data.draw(st.sampled_from(WHITE))),
        ("-", data.draw(st.sampled_from(DASHES))),
        ("'", data.draw(st.sampled_from(APOSTROPHES))),
        *((str(digit), chr(zero + digit)) for digit in range(10)),
    ):
        text = text.replace(old, new)
    return left + text[1:-1] + right if text.startswith('"') else text


@given(copied=copies, before=letters, after=letters, data=st.data())
def test_a_string_copied_from_a_source_is_grounded_however_it_is_written(
    copied: str, before: str, after: str, data: st.DataObject
) -> None:
    source = f"{before} {otherwise(data, copied)} {after}."
    answer = f"It is {otherwise(data, copied)}."
    assert ground(answer, "", ["nothing", source]).missing == ()


@given(
    st.text(
        st.one_of(
            st.sampled_from(
                "0123456789.,:-/\\ '\"()[]%ABcdeh x\n“”«»№²½™٣५–−\u00a0\u00ad中ابا@_*`"
            ),
            st.characters(exclude_categories=("Cs",)),
        ),
        max_size=40,
    )
)
def test_a_text_that_is_its_own_source_is_grounded(text: str) -> None:
    assert ground(text, "", [text]).missing == ()


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
