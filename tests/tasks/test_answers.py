"""What a response answers, and that finding it takes linear time."""

from __future__ import annotations

import time

import pytest

from vimpo.tasks.answers import answers, last_boxed


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
    "text",
    [
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
    assert time.perf_counter() - start < 1
