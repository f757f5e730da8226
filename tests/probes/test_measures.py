"""Measures of the probes: their corrections for noise, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vimpo.probes.measures import (
    Noisy,
    agreement,
    bernoulli,
    bootstrap_stderr,
    cluster_mean,
    resampling,
    row,
    truth_summary,
)
from vimpo.storage.codes import Reason, Why

SIMULATIONS = 4000


def simulate(seed: int, simulations: int = SIMULATIONS, problems: int = 12, prefixes: int = 3):
    """True values [S, P, m], V(s_0) [S, P, 1], and both measured by 8 and 6 continuations."""
    rng = np.random.default_rng(seed)
    start = rng.beta(3, 2, (simulations, problems, 1))
    true = rng.beta(10 * start + 0.3, 10 * (1 - start) + 0.3, (simulations, problems, prefixes))
    mean, noise = bernoulli(rng.random((*true.shape, 8)) < true[..., None])
    first, first_noise = bernoulli(rng.random((*start.shape, 6)) < start[..., None])
    nothing = np.zeros_like(first)
    measured = Noisy(mean, noise, nothing)
    baseline = Noisy(np.broadcast_to(first, mean.shape), np.zeros_like(mean), first_noise)
    return true, start, measured, baseline


def near(estimates: np.ndarray, truth: np.ndarray | float, sigmas: float = 4.0) -> None:
    """The mean over simulations agrees with the truth within its own error."""
    difference = np.asarray(estimates) - truth
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    assert abs(difference.mean()) < sigmas * error, (difference.mean(), error)


def total(x: np.ndarray) -> np.ndarray:
    """Plain sample variance over problems and prefixes."""
    return x.reshape(len(x), -1).var(-1, ddof=1)


def test_bernoulli_standard_error_is_unbiased():
    rng = np.random.default_rng(0)
    _, noise = bernoulli(rng.random((200_000, 5)) < 0.3)
    assert noise.mean() == pytest.approx(0.3 * 0.7 / 5, rel=0.01)
    with pytest.raises(ValueError, match=">= 2"):
        bernoulli(np.ones((3, 1)))


def test_corrected_variances_are_unbiased():
    true, start, measured, baseline = simulate(1)
    near(measured.variance(), total(true))
    # V(s_0) is measured once per problem: its noise is shared by the prefixes.
    near((measured - baseline).variance(), total(true - start))
    assert total(measured.value).mean() > 1.1 * total(true).mean()


def test_corrected_squares_are_unbiased():
    true, start, measured, baseline = simulate(2)
    guess = 0.8 * true
    near(agreement(measured, Noisy.exact(guess))["mse"], ((true - guess) ** 2).mean((-2, -1)))
    near(agreement(measured, baseline)["mse"], ((true - start) ** 2).mean((-2, -1)))


def test_a_perfect_predictor_scores_one_and_a_shuffled_one_nothing():
    true, _, measured, _ = simulate(3, simulations=400, problems=100)
    perfect = agreement(measured, Noisy.exact(true))
    near(perfect["explained_variance"], 1.0)
    near(perfect["slope"], 1.0)
    near(perfect["intercept"], 0.0)
    near(perfect["bias"], 0.0)
    assert perfect["explained_variance_linear"].mean() == pytest.approx(1, abs=0.02)
    ceiling = truth_summary(measured, np.zeros((2, 400, 1, 100, 3)))["pearson_ceiling"]
    assert (perfect["pearson"] / ceiling).mean() == pytest.approx(1, abs=0.01)

    shuffled = agreement(measured, Noisy.exact(np.roll(true, 1, axis=0)))  # of other problems
    for metric in ("spearman", "pearson", "slope"):
        near(shuffled[metric], 0.0)
    assert shuffled["explained_variance_linear"].mean() < 0.02
    # Its spread is only an error: as much as the truth's own.
    assert shuffled["explained_variance"].mean() == pytest.approx(-1, abs=0.1)


def test_a_constant_explains_nothing_and_has_no_correlation():
    true, _, measured, _ = simulate(4, simulations=1)
    scores = agreement(measured, Noisy.exact(np.full_like(true, 0.7)))
    assert scores["explained_variance"] == pytest.approx(0, abs=1e-12)
    for metric in ("spearman", "pearson", "slope", "intercept", "explained_variance_linear"):
        assert np.isnan(scores[metric]), metric


def test_the_noise_of_v0_is_not_the_predictors_fault():
    """Where V(s_t) = V(s_0), an estimate of V(s_0) is perfect, and its slope is 1."""
    rng = np.random.default_rng(5)
    start = rng.beta(2, 2, (100, 400, 1))
    true = np.broadcast_to(start, (100, 400, 3))
    mean, noise = bernoulli(rng.random((*true.shape, 8)) < true[..., None])
    first, first_noise = bernoulli(rng.random((*start.shape, 6)) < start[..., None])
    measured = Noisy(mean, noise, np.zeros_like(first))
    baseline = Noisy(np.broadcast_to(first, mean.shape), np.zeros_like(mean), first_noise)
    scores = agreement(measured, baseline)
    near(scores["explained_variance"], 1.0)
    assert scores["slope"].mean() == pytest.approx(1, abs=0.02)


def test_spearman_ceiling_is_what_a_perfect_predictor_reaches():
    rng = np.random.default_rng(6)
    true = rng.random((100, 150, 2))
    outcomes = rng.random((*true.shape, 16)) < true[..., None]
    mean, noise = bernoulli(outcomes)
    measured = Noisy(mean, noise, np.zeros((100, 150, 1)))
    halves = np.stack([outcomes[..., :8].mean(-1), outcomes[..., 8:].mean(-1)])[:, :, None]
    reached = agreement(measured, Noisy.exact(true))["spearman"]
    ceiling = truth_summary(measured, halves)["spearman_ceiling"]
    assert (reached / ceiling).mean() == pytest.approx(1, abs=0.01)
    assert ceiling.mean() < 0.98


def test_bootstrap_error_is_that_of_repeated_experiments():
    """Of explained variance, with problems as the units: prefixes of one problem share V(s_0)."""
    true, start, measured, _ = simulate(7, simulations=300, problems=60)
    guess = start + 0.5 * (true - start)
    repeated = agreement(measured, Noisy.exact(guess))["explained_variance"].std(ddof=1)
    index = resampling(60, seed=0)
    errors = []
    for i in range(40):
        one = Noisy(measured.value[i], measured.own[i], measured.shared[i])
        drawn = agreement(one.resampled(index), Noisy.exact(guess[i][index]))
        errors.append(bootstrap_stderr(drawn["explained_variance"]))
    assert np.mean(errors) == pytest.approx(repeated, rel=0.15)


def test_cluster_mean_counts_clusters_and_not_copies():
    x = np.array([1.0, 4.0, 2.0, 7.0])
    mean, stderr = cluster_mean(np.repeat(x, 5), np.repeat(np.arange(4), 5))
    assert (mean, stderr) == pytest.approx((3.5, x.std(ddof=1) / 2))
    assert all(map(math.isnan, cluster_mean(np.array([]), np.array([]))))
    assert math.isnan(cluster_mean(x, np.zeros(4))[1])


def test_a_row_without_a_value_says_why():
    labels = ("value", "implied", "value", "all")
    bad = row(*labels, "rmse", math.nan, 0.1, 3, "reward")
    assert math.isnan(bad["value"])
    assert math.isnan(bad["stderr"])
    assert bad["reason"] == "the error is below the noise of the truth"
    assert bad["reason_code"] == Reason.BELOW_NOISE
    unused = Why(Reason.NOT_FINITE, "unused")
    sound = row(*labels, "rmse", 0.1, math.nan, 3, "reward", unused)
    assert (sound["reason_code"], sound["reason"]) == ("", "")


def test_bootstrap_error_needs_nine_in_ten_replicates():
    assert math.isnan(bootstrap_stderr(np.array([1.0] * 8 + [math.nan] * 2)))
    assert bootstrap_stderr(np.random.default_rng(0).normal(0, 3, 100_000)) == pytest.approx(
        3, rel=0.02
    )
