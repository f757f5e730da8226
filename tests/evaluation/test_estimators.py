"""pass@k against enumeration."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from vimpo.evaluation.estimators import pass_at, share_of_right


@pytest.mark.parametrize("responses", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer(responses):
    for right in range(responses + 1):
        marks = [1] * right + [0] * (responses - right)
        for k in range(1, responses + 1):
            draws = list(combinations(marks, k))
            assert pass_at(k, responses, right) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased():
    """Its mean over all outcomes of n responses, each right with probability p, is 1 - (1-p)^k."""
    n, k, p = 6, 3, 0.3
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at(k, n, c) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize("k", [0, 3])
def test_pass_at_k_needs_k_responses(k):
    with pytest.raises(ValueError, match=f"pass@{k} of 2 responses; allowed: 1 to 2"):
        pass_at(k, 2, 1)


def test_the_share_of_flawless_responses_is_over_all_problems():
    assert share_of_right([(1, 2), (0, 0), (3, 4)]) == pytest.approx(4 / 6)
    assert math.isnan(share_of_right([(0, 0)]))
