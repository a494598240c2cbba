"""What counts as right, and how sure the mean of scores is."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lclm_rag.evaluation import measures
from lclm_rag.evaluation.intervals import (
    bootstrap_interval,
    mcnemar,
    mean_interval,
    paired_difference,
    wilson_interval,
)
from lclm_rag.evaluation.measures import (
    check_answers,
    check_measure,
    choice,
    classification,
    code_similarity,
    contains,
    exact_match,
    f1_zh,
    no_answer,
    number,
    retrieval,
    rouge_l,
    rouge_l_zh,
    score,
    share_of_numbers,
    token_f1,
    verbatim,
)
from lclm_rag.evaluation.questions import EvalQuestion

TEXTS = st.text("ab the. 12'\n", max_size=30)
SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def question(*answers: str, **fields: Any) -> EvalQuestion:
    return EvalQuestion(id="q", question="?", answers=answers, **fields)


def test_exact_match_is_squads() -> None:
    assert exact_match(" The  Answer.", "an answer")
    assert exact_match("KV-4821!", "kv4821")
    assert not exact_match("the answers", "the answer")
    # Which is why `verbatim` is there.
    assert exact_match("4.3 kg", "43 kg")


def test_verbatim_looks_past_case_white_space_and_a_full_stop_alone() -> None:
    assert verbatim(" The  Answer.", "the answer")
    assert not verbatim("4.3 kg", "43 kg")
    assert not verbatim("answer", "the answer")


def test_what_any_answer_would_match_is_refused() -> None:
    with pytest.raises(ValueError, match="take the measure 'verbatim'"):
        check_answers(question("@@"))
    check_answers(question("@@", measure="verbatim"))


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("", True),
        ("Not stated.", True),
        ("The passages do not mention it", True),
        ("I don’t know.", True),
        ("Unanswerable", True),
        ("Nothing Hill", False),
        ("KV-4821", False),
    ],
)
def test_no_answer_is_any_way_to_say_so(answer: str, refuses: bool) -> None:
    assert no_answer(answer) is refuses
    assert score(question("not stated", measure="no_answer"), answer)["score"] == refuses


def test_f1_is_squads() -> None:
    assert token_f1("The cat!", "a cat") == 1
    assert token_f1("one two", "two three") == 0.5
    assert token_f1("one two three four", "two") == pytest.approx(2 * 0.25 / 1.25)
    assert token_f1("", "word") == 0


@given(TEXTS, TEXTS)
def test_f1_is_symmetric_bounded_and_one_for_the_same(one: str, other: str) -> None:
    assert token_f1(one, other) == token_f1(other, one)
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, one) == 1


def test_contains_is_rulers() -> None:
    assert contains("The number is 1234567.", "1234567")
    assert contains("PARIS, of course", "paris")
    assert not contains("123456", "1234567")


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("That makes 1,200.", "#### 1200", True),
        ("It costs $18.00 in all", "18", True),
        ("First 5, then 6", "5", False),
        ("5-3", "3", True),
        ("It fell to -3", "-3", True),
        ("It fell to -3", "3", False),
        ("1, 2,345", "2345", True),
        ("none", "3", False),
        ("0.50", "0.5", True),
    ],
)
def test_number_compares_the_last_numbers(answer: str, expected: str, right: bool) -> None:
    assert number(answer, expected) is right


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B) Vincristine", "B"),
        ("**B.** Vincristine", "B"),
        ("B: it is C that is wrong", "B"),
        ("The answer is B, since C is wrong.", "B"),
        ("Answer: **B**", "B"),
        ("A patient like this has option B.", "B"),
        ("First I thought the answer is A. The correct option is B", "B"),
        ("B or C", ""),
        ("A patient came in.", ""),
        ("Vincristine", ""),
    ],
)
def test_choice_finds_the_letter_chosen(answer: str, letter: str) -> None:
    assert [c for c in "ABCDE" if choice(answer, c)] == ([letter] if letter else [])


def test_classification_shares_its_point_among_the_classes_named() -> None:
    classes = ["Food", "Animal", "Animal organ"]
    assert classification("Food", "Food", classes) == 1
    assert classification("Food or Animal", "Food", classes) == 0.5
    assert classification("Animal organ", "Animal organ", classes) == 1
    assert classification("Animal", "Food", classes) == 0
    assert classification("food", "Food", classes) == 0


def test_numbers_count_by_their_share() -> None:
    assert share_of_numbers("7", "7") == 1
    assert share_of_numbers("7, not 8", "7") == 0.5
    assert share_of_numbers("none", "7") == 0
    assert retrieval("Paragraph 3 or 4", "Paragraph 3") == 0.5
    assert retrieval("段落3", "段落3") == 1
    with pytest.raises(ValueError, match="names no paragraph"):
        retrieval("3", "3")


def test_code_is_compared_by_its_first_line_without_marks_and_comments() -> None:
    assert code_similarity("```python\n# a comment\nreturn 1\nreturn 2", "return 1") == 1
    assert code_similarity("return 2", "return 1") == 0.88
    assert code_similarity("", "return 1") == 0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert rouge_l("The cat sat.", "the cat sat") == 1
    assert rouge_l("one two three four", "one three five") == pytest.approx(4 / 7)
    # Each word counts as often as it comes, and their order counts.
    assert rouge_l("one one one two", "one two") == pytest.approx(4 / 6)
    assert rouge_l("two one", "one two") == pytest.approx(1 / 2)
    assert rouge_l("où est-il", "où est-elle") == pytest.approx(2 / 3)
    assert rouge_l("", "one") == 0


def test_chinese_is_compared_by_words() -> None:
    assert f1_zh("北京。", "北京") == 1
    assert 0 < f1_zh("我喜欢北京", "我喜欢上海") < 1
    assert rouge_l_zh("会议讨论了预算。", "会议讨论了预算。") == 1
    assert 0 < rouge_l_zh("会议讨论了预算", "会议讨论了人员") < 1


@given(TEXTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_every_measure_is_a_share(answer: str, expected: str) -> None:
    rules: list[Any] = [
        exact_match,
        verbatim,
        no_answer,
        contains,
        number,
        choice,
        share_of_numbers,
    ]
    rules += [code_similarity, rouge_l, f1_zh]
    for rule in rules:
        assert 0 <= rule(answer, expected) <= 1


def test_a_question_is_scored_by_its_own_measure_and_by_the_common_ones() -> None:
    scores = score(question("four", "4", measure="number"), "It is 4")
    assert scores == {
        "exact_match": 0,
        "verbatim": 0,
        "f1": pytest.approx(0.5),
        "contains": 1,
        "score": 1,
    }
    assert score(question("Ada"), "ada.")["score"] == 1


def test_alternatives_take_the_best_and_all_answers_the_mean() -> None:
    expected = ("111", "222", "333", "444")
    assert score(question(*expected, measure="contains"), "111 333")["score"] == 1
    everything = question(*expected, measure="contains", all_answers=True)
    assert score(everything, "111 333")["score"] == 0.5
    with pytest.raises(ValueError, match="'q' has no answers"):
        score(question(), "x")


def test_only_the_first_line_counts_where_longbench_says_so() -> None:
    made_up = "\nParis\nQuestion: Capital of Spain?\nAnswer: Madrid"
    assert score(question("Paris", measure="f1_first_line"), made_up)["score"] == 1
    assert score(question("Paris", measure="f1"), made_up)["score"] < 1
    assert score(question("A", measure="classification", classes=("A", "B")), "A\nB")["score"] == 1


def test_a_measure_that_cannot_be_taken_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_measure("rouge_l") == "rouge_l"
    with pytest.raises(ValueError, match="no measure 'bleu'; take one of exact_match, verbatim,"):
        check_measure("bleu")
    measures._segmenter.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    for measure in ("f1_zh", "rouge_l_zh"):
        with pytest.raises(ImportError, match=r"needs jieba: pip install 'lclm-rag\[eval\]'"):
            check_measure(measure)
    measures._rouge.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ImportError, match=r"rouge-score: pip install 'lclm-rag\[eval\]'"):
        check_measure("rouge_l")


@given(SCORES, st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_an_interval_holds_the_mean_within_the_values(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, seed, resamples=2000)
    slack = 1e-9
    assert min(values) - slack <= low <= np.mean(values) + slack
    assert np.mean(values) - slack <= high <= max(values) + slack
    assert (low, high) == bootstrap_interval(values, seed, resamples=2000)


def test_an_interval_is_as_wide_as_the_textbook_says() -> None:
    values = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap_interval(values, seed=1)
    error = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert low == pytest.approx(0.3 - error, abs=0.003)
    assert high == pytest.approx(0.3 + error, abs=0.003)
    wide = bootstrap_interval(values, seed=1, confidence=0.99)
    assert wide[0] < low < high < wide[1]
    assert bootstrap_interval(values, seed=2) != (low, high)


@pytest.mark.parametrize(("right", "of"), [(0, 40), (40, 40), (1, 3), (488, 500), (1999, 2000)])
def test_the_interval_of_a_share_is_wilsons(right: int, of: int) -> None:
    expected = binomtest(right, of).proportion_ci(method="wilson")
    assert wilson_interval(right, of) == pytest.approx((expected.low, expected.high), abs=1e-12)
    scores = [1.0] * right + [0.0] * (of - right)
    assert mean_interval(scores, seed=0) == wilson_interval(right, of)


def test_none_of_forty_may_still_be_one_in_twelve() -> None:
    low, high = wilson_interval(0, 40)
    assert (low, round(high, 3)) == (0.0, 0.088)
    same = paired_difference([0.0] * 40, [0.0] * 40, seed=0)
    assert (same.low, same.high, same.p) == (-high, high, 1.0)


@pytest.mark.parametrize(("better", "worse"), [(5, 0), (3, 9), (9, 3), (20, 22), (700, 600)])
def test_mcnemars_test_is_the_exact_one(better: int, worse: int) -> None:
    expected = binomtest(better, better + worse).pvalue
    assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(0, 0) == 1


def test_documents_are_drawn_and_not_questions() -> None:
    # 20 documents with 10 questions each, all of a document right or all wrong.
    values = [float(document % 2) for document in range(20) for _ in range(10)]
    groups = [document for document in range(20) for _ in range(10)]
    low, high = bootstrap_interval(values, seed=1, groups=groups)
    alone = bootstrap_interval(values, seed=1)
    assert high - low == pytest.approx(10**0.5 * (alone[1] - alone[0]), rel=0.1)
    each = bootstrap_interval([0.0, 1.0] * 10, seed=1)
    assert (low, high) == pytest.approx(each, abs=1e-12)
    with pytest.raises(ValueError, match="200 values need as many groups, not 3"):
        bootstrap_interval(values, seed=1, groups=[1, 2, 3])


def test_many_values_are_resampled_in_parts() -> None:
    values = np.random.default_rng(0).random(20_000)
    low, high = bootstrap_interval(values.tolist(), seed=1, resamples=500)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20_000**0.5, rel=0.2)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
@settings(max_examples=20, deadline=None)
def test_a_paired_difference_turns_its_sign_with_the_sides(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = [list(side) for side in zip(*pairs, strict=True)]
    there, back = paired_difference(a, b, seed=3), paired_difference(b, a, seed=3)
    assert there.mean == pytest.approx(-back.mean, abs=1e-9)
    assert there.low == pytest.approx(-back.high, abs=1e-9)
    assert there.high == pytest.approx(-back.low, abs=1e-9)
    assert (there.better, there.worse) == (back.worse, back.better)
    assert there.low - 1e-9 <= there.mean <= there.high + 1e-9


def test_a_paired_difference_counts_the_questions() -> None:
    difference = paired_difference([1, 1, 0, 1], [0, 1, 1, 0], seed=0)
    assert (difference.mean, difference.better, difference.worse) == (0.25, 2, 1)
    assert (difference.p, difference.of) == (1.0, 4)


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="one or more numbers"):
        bootstrap_interval([], seed=0)
    with pytest.raises(ValueError, match="one or more numbers"):
        bootstrap_interval([0.5, float("nan")], seed=0)
    with pytest.raises(ValueError, match="confidence between 0 and 1"):
        bootstrap_interval([0.5], seed=0, confidence=95)
    with pytest.raises(ValueError, match="0 to n right"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="two counts"):
        mcnemar(-1, 2)
    with pytest.raises(ValueError, match="2 and 1 scores cannot be paired"):
        paired_difference([1, 0], [1], seed=0)
