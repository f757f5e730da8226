"""What a response answers, and that finding it takes linear time."""

from __future__ import annotations

import time

import pytest

from vimpo.tasks.answers import answers, last_boxed, last_number


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{1} no, \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}} is the answer", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{", None),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_the_last_closed_box_is_the_answer(response, expected):
    assert last_boxed(response) == expected


def test_boxes_of_one_sentence_are_also_one_answer():
    text = "First \\boxed{9}.\n\nThe roots are \\boxed{3} and \\boxed{4}."
    assert answers(text) == ["4", "3,4"]


def test_without_a_box_there_is_no_answer_unless_asked_for():
    assert answers("The answer is 12.") == []
    assert answers("The answer is 12.", boxed_only=False)[0] == "12"
    assert answers("#### 1,234", boxed_only=False)[0] == "1,234"
    assert "7" in answers("Hence $x = 7$.", boxed_only=False)
    assert answers("nothing at all", boxed_only=False) == []


@pytest.mark.parametrize(
    "response",
    [
        "The answer is −4.",  # U+2212
        "so we get −4",
        "7 − 11 = −4",
        "The answer is - 4.",
        "hence 3 - 7 = - 4",
        "#### －4",
    ],
)
def test_a_minus_sign_belongs_to_its_number(response):
    assert {answer.replace(" ", "") for answer in answers(response, boxed_only=False)} == {"-4"}


def test_a_bullet_is_no_sign():
    assert answers("We need:\n- 4", boxed_only=False) == ["4"]
    assert last_number("We need:\n- 4") == last_number("We need:\n* 4") == "4"


@pytest.mark.parametrize(
    "echo",
    ["0 + 3", "answer is 0 + 3", "7 -4", "1 × 3", "2**3", r"$1 \times 3$", "0 + (3)", "1 + 2 ="],
)
def test_an_operand_is_no_answer_where_answers_must_be_worked_out(echo):
    assert answers(echo, boxed_only=False)
    found = answers(echo, boxed_only=False, evaluated=True)
    assert not {"3", "-4"} & set(found)
    assert last_number(echo) is None


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("7 − 11 = −4", "-4"),
        ("it is -4.", "-4"),
        ("a total of 1,234.50 dollars", "1234.50"),
        ("10/2 = 5, so **5**", "5"),
        ("half of it, 50%", "50"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(response, number):
    assert last_number(response) == number


@pytest.mark.parametrize(
    "text",
    [
        "3 - " * 200_000,
        "\\boxed{" * 150_000,
        "\\boxed{1" + "{" * 1_000_000,
        "}" * 1_000_000,
        "\\boxed" * 170_000,
        "$" * 1_000_000,
        "answer is " * 100_000,
        "**" * 500_000,
    ],
    ids=lambda text: text[:8],
)
def test_extraction_takes_linear_time(text):
    start = time.perf_counter()
    answers(text, boxed_only=False)
    answers(text, boxed_only=False, evaluated=True)
    last_number(text)
    assert time.perf_counter() - start < 1
