"""Scores of one problem from the marks of its k responses."""

from __future__ import annotations

from math import comb


def pass_at(k: int, responses: int, right: int) -> float:
    """Unbiased estimate of the probability that one of k responses is right, from n >= k of them.

        1 - C(n - c, k) / C(n, k)        n responses, c of them right

    (Chen et al., arXiv 2107.03374.) Raises ValueError for fewer than k responses.
    """
    if not 1 <= k <= responses:
        raise ValueError(f"pass@{k} of {responses} responses; allowed: 1 to {responses}")
    return 1 - comb(responses - right, k) / comb(responses, k)


def pass_name(k: int) -> str:
    """`pass@8`"""
    return f"pass@{k}"


def share_of_right(problems: list[tuple[int, int]]) -> float:
    """Share of the right responses that are flawless. (flawless, right) of each problem.

    NaN if none is right.
    """
    right = sum(count for _, count in problems)
    return sum(count for count, _ in problems) / right if right else float("nan")
