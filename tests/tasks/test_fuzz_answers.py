"""Random answers: a verdict, in time."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import pytest
from fuzzing import profile
from hypothesis import example, given

from vimpo.config.task import VerifierLimits
from vimpo.tasks.answers import answers, last_boxed
from vimpo.tasks.prompts import fill
from vimpo.tasks.verifier import Verifier

PIECES = [
    *("\\boxed{", "\\fbox{", "}", "{", "\\frac", "\\sqrt", "\\left(", "\\right)", "^", "_", "$"),
    *("$$", "\\[", "\\]", "\\text{", "answer is", "#### ", "\n\n", ",", " and ", "**", "/", "\\%"),
    *("1", "0", "-", ".", "x", "\\pi", "\\infty", "=", "\\\\", "\\begin{matrix}", "&", "!", "10^{"),
    *("\0", "\ud800", "\u202e", "½", "٣", "999999999999999999999999", "1e999", "^{9^{9^9}}"),
]
soup = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
texts = st.one_of(soup, st.text(max_size=40), soup.map(lambda s: f"so \\boxed{{{s}}}"))


@profile(400)
@given(texts)
def test_answers_are_found_in_any_text(text):
    for boxed_only in (True, False):
        assert all(isinstance(answer, str) for answer in answers(text, boxed_only))
    assert last_boxed(text) is None or "\\" in text
    assert fill("{problem}\\boxed{}", text) == text + "\\boxed{}"


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier(VerifierLimits(workers=1, seconds=2))
    verifier.readable(["x"])  # the worker has started
    yield verifier
    verifier.close()


def judge_in_time(verifier, gold, text):
    started = time.perf_counter()
    verdict = verifier.grade([gold], [text], boxed_only=False)
    assert verdict[0] in (True, False)
    # an answer can have several forms, and a worker may have to be started again
    assert time.perf_counter() - started < 60
    assert verifier.readable([gold])[0] in (True, False)


@profile(40)
@given(texts, texts)
@example("\ud800", "\\boxed{\ud800}")
@example("\0", "\\boxed{\0}")
@example("10^{10^{10}}", "\\boxed{9^{9^{9^9}}}")
@example("1" * 900, "\\boxed{" + "1" * 5000 + "}")
@example("٣", "\\boxed{3}")
def test_any_answer_gets_a_verdict(verifier, gold, text):
    judge_in_time(verifier, gold, text)


@pytest.mark.slow
@profile(400)
@given(texts, texts)
def test_many_answers_get_a_verdict(verifier, gold, text):
    judge_in_time(verifier, gold, text)
