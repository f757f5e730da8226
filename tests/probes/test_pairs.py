"""Pairs of a right and a wrong token, on a policy whose values are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from toy_policies import BETA, toy_subject

from vimpo.probes.pairs import draw_pairs, pair_rows, pairs_probe
from vimpo.storage.codes import Reason
from vimpo.tasks.chain import Fork


class Forked:
    """After `a` the response can end, which is right; `b` leads elsewhere."""

    kept_prompt = None

    def __init__(self, *forks: Fork | None) -> None:
        self.forks = forks

    def fork(self, problem, rng) -> Fork | None:
        return self.forks["abcd".index(problem.prompt) % len(self.forks)]


def forked(*forks, **probes):
    subject, values = toy_subject(**{"pairs": 40, "continuations": 400} | probes)
    return type(subject)(**vars(subject) | {"task": Forked(*forks)}), values


def found(rows: list[dict], **labels: str) -> dict:
    (match,) = [r for r in rows if all(r[k] == v for k, v in labels.items())]
    return match


def test_at_the_fixed_point_td_and_critic_know_the_true_difference():
    subject, values = forked(Fork("cd", "a", "b"))
    rows = pairs_probe(subject)
    exact = values[3, 1] - values[3, 2]  # after c, d and either letter, in that place
    assert exact > 0.05
    for predictor in ("implied", "critic"):
        row = found(rows, predictor=predictor, metric="difference")
        assert row["value"] == pytest.approx(exact, abs=1e-5)
        assert found(rows, predictor=predictor, metric="ordered")["value"] == 1
        assert (row["unit"], row["n"]) == ("reward", 40)
    truth = found(rows, predictor="truth", metric="difference")
    assert truth["value"] == pytest.approx(exact, abs=4 * math.sqrt(0.5 / 400))
    assert not [r for r in rows if r["predictor"] == "truth" and r["metric"] == "ordered"]


def test_the_implied_difference_is_that_of_two_log_ratios():
    subject, _ = forked(Fork("", "d", "c"), continuations=4)
    rows = pairs_probe(subject)
    row = found(rows, predictor="implied", metric="difference")
    policy, base = (
        m.table[0].double().log_softmax(-1) for m in (subject.policy, subject.reference)
    )
    ratio = (policy - base).numpy()  # [last token, next token]
    gaps = [BETA * (ratio[last, 4] - ratio[last, 3]) for last in (1, 2, 3, 4)]
    assert row["value"] == pytest.approx(np.mean(gaps), abs=1e-5)
    ordered = np.mean([gap > 0 for gap in gaps])
    assert found(rows, predictor="implied", metric="ordered")["value"] == ordered


def test_problems_without_a_place_and_responses_without_room_are_left_out():
    subject, _ = forked(Fork("c", "a", "b"), None, Fork("abcda", "a", "b"), Fork("", "a", "b"))
    drawn = draw_pairs(subject, 8)
    assert [(p.prompt, right, wrong) for p, right, wrong in drawn] == [
        ("a", [3, 1], [3, 2]),
        ("d", [1], [2]),
    ] * 2
    subject, _ = forked(None)
    (difference, ordered) = pairs_probe(subject)
    assert math.isnan(difference["value"])
    assert math.isnan(ordered["value"])
    assert difference["reason_code"] == Reason.NO_WRONG_STEP


def test_means_and_errors_of_known_gaps():
    """Two pairs of one problem are one cluster."""
    right, wrong = np.array([0.5, 0.4, 0.2, 0.9]), np.array([0.1, 0.4, 0.3, 0.1])
    rows = pair_rows({"implied": (right, wrong)}, np.array([0, 1, 2, 2]))
    ordered, difference = (found(rows, metric=m) for m in ("ordered", "difference"))
    assert ordered["value"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert difference["value"] == pytest.approx((0.4 + 0.0 - 0.1 + 0.8) / 4)
    gaps = np.array([0.4, 0.0, 0.7]) - np.array([1, 1, 2]) * 0.275
    assert difference["stderr"] == pytest.approx(math.sqrt(3 / 2 * (gaps**2).sum()) / 4)
    rows = pair_rows({"implied": (right, wrong + np.inf)}, np.arange(4))
    assert {r["reason_code"] for r in rows} == {Reason.NOT_FINITE}
