"""Statistics against scipy, closed forms and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats as st

from vimpo.analysis import inference
from vimpo.analysis import intervals as stats
from vimpo.storage.codes import Reason

NAN = float("nan")


def test_iqm_is_scipys_trimmed_mean_and_keeps_gaps():
    x = np.random.default_rng(0).normal(size=13)
    assert stats.iqm(x) == pytest.approx(st.trim_mean(x, 0.25), abs=1e-15)
    assert stats.iqm([1, 2, 3, 100]) == 2.5  # the middle half
    assert stats.iqm([1, 2, 6]) == 3.0  # too few to trim
    assert math.isnan(stats.iqm([1, NAN, 3, 4]))
    np.testing.assert_allclose(stats.iqm([[0, 1, 2, 9], [5, 5, 5, 5]], axis=1), [1.5, 5])
    with pytest.raises(ValueError, match="no scores"):
        stats.iqm([])


def test_mean_interval_is_scipys_t_interval():
    x = np.array([0.61, 0.64, 0.58, 0.66])
    ours = stats.mean_interval(x, 0.9)
    expected = st.ttest_1samp(x, 0).confidence_interval(0.9)
    np.testing.assert_allclose((ours.low, ours.high), expected, rtol=1e-12)
    assert ours.value == pytest.approx(x.mean())
    assert (ours.n, ours.reason, ours.available) == (4, "", True)


def test_intervals_are_cut_at_the_bounds_of_the_quantity():
    estimate = stats.mean_interval([0.2, 0.9], bounds=(0, 1))
    assert (estimate.low, estimate.high) == (0, 1)


def test_stratified_mean_of_two_is_welchs_interval():
    a, b = np.array([0.5, 0.7, 0.55]), np.array([0.9, 0.94, 0.8, 0.86])
    # the mean of (a, -b) over strata is half of Welch's difference
    ours = stats.stratified_mean([a, -b])
    welch = st.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose((2 * ours.low, 2 * ours.high), welch, rtol=1e-12)


def test_stratified_mean_weighs_strata_equally():
    assert stats.stratified_mean([[0, 0.1], [1, 1.1, 0.9, 1.0]]).value == pytest.approx(0.525)


@pytest.mark.parametrize(
    ("scores", "value", "code", "reason"),
    [
        ([0.5], 0.5, Reason.ONE_SEED, "one seed"),
        ([0.5, 0.5, 0.5], 0.5, Reason.ALL_EQUAL, "all 3 values are equal"),
        ([0.5, NAN], NAN, Reason.NOT_FINITE, "1 of 2 values are not finite"),
        ([NAN, NAN], NAN, Reason.NOT_FINITE, "2 of 2"),
        ([], NAN, Reason.NO_VALUES, "no values"),
    ],
)
def test_what_cannot_be_estimated_says_why(scores, value, code, reason):
    estimate = stats.mean_interval(scores)
    assert not estimate.available
    assert estimate.value == pytest.approx(value, nan_ok=True)
    assert reason in estimate.reason
    assert estimate.code == code
    assert estimate.n == len(scores)


def test_tiny_and_huge_scales_do_not_change_the_interval():
    x = np.array([1.0, 2.0, 4.0])
    one = stats.mean_interval(x)
    for scale in (1e-6, 1e9):
        other = stats.mean_interval(scale * x)
        np.testing.assert_allclose((other.low, other.high), (scale * one.low, scale * one.high))


def test_normal_interval_is_the_closed_form():
    estimate = stats.normal_interval(0.5, 0.1, confidence=0.95)
    assert estimate.high == pytest.approx(0.5 + 1.959963984540054 * 0.1)
    assert "not finite" in stats.normal_interval(0.5, NAN).reason
    assert not stats.normal_interval(1.0, 0.0).available


def test_the_wider_of_two_intervals_is_kept_but_one_seed_stays_one_seed():
    floor = stats.normal_interval(0.5, 0.02)
    lucky, honest = stats.mean_interval([0.5, 0.5001]), stats.mean_interval([0.3, 0.7])
    assert stats.wider(lucky, floor).high == floor.high
    assert stats.wider(honest, floor) == honest
    assert stats.wider(stats.mean_interval([0.5, 0.5]), floor).available
    assert not stats.wider(stats.mean_interval([0.5]), floor).available
    assert not stats.wider(stats.mean_interval([0.5, NAN]), floor).available


# --- Bootstrap -----------------------------------------------------------------------------------


def mean_of_all(groups):
    return np.mean([g.mean(axis=(-2, -1)) for g in groups], axis=0)


def test_bootstrap_of_a_mean_is_the_t_interval():
    groups = [np.array([0.5, 0.6, 0.64]), np.array([0.7, 0.9, 0.8])]
    ours = stats.bootstrap_interval(groups, mean_of_all, resamples=20_000)
    exact = stats.stratified_mean(groups)
    assert ours.value == pytest.approx(exact.value)
    assert ours.high - ours.low == pytest.approx(exact.high - exact.low, rel=0.03)


def test_bootstrap_repeats_with_its_seed_only():
    groups = [np.random.default_rng(0).normal(size=(5, 4))]
    first = stats.bootstrap_interval(groups, resamples=200, seed=1)
    np.random.seed(7)
    assert stats.bootstrap_interval(groups, resamples=200, seed=1) == first
    assert stats.bootstrap_interval(groups, resamples=200, seed=2) != first


def test_bootstrap_keeps_the_tasks_of_a_seed_together():
    """Tasks that move together make the interval of independent ones too narrow."""
    seeds = np.array([[0.2], [0.5], [0.8]])
    together = stats.bootstrap_interval([np.repeat(seeds, 4, axis=1)], mean_of_all, resamples=2000)
    alone = stats.bootstrap_interval([seeds], mean_of_all, resamples=2000)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=1e-9)


def test_bootstrap_says_why_not():
    assert "one seed" in stats.bootstrap_interval([[0.5]]).reason
    assert "not finite" in stats.bootstrap_interval([[0.5, NAN]]).reason
    assert "equal" in stats.bootstrap_interval([[0.5, 0.5]]).reason
    assert "no values" in stats.bootstrap_interval([]).reason


# --- Comparisons ---------------------------------------------------------------------------------


def test_probability_of_improvement_is_mann_whitneys_u():
    x, y = np.array([0.5, 0.6, 0.7, 0.7]), np.array([0.4, 0.6, 0.65])
    expected = st.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    estimate = inference.probability_of_improvement(x, y)
    assert estimate.value == pytest.approx(expected)
    assert estimate.low < expected < estimate.high
    assert inference.probability_of_improvement([1, 1], [1, 1]).value == 0.5


def test_separated_samples_do_not_give_certainty():
    above = inference.probability_of_improvement([2, 3], [0, 1])
    below = inference.probability_of_improvement([0, 1], [2, 3])
    assert above.value == above.high == 1
    assert 0 < above.low < 0.6
    assert below.high == pytest.approx(1 - above.low)
    assert not inference.probability_of_improvement([1], [0, 2]).available
    assert not inference.probability_of_improvement([], [0, 2]).available


def test_paired_difference_is_scipys_paired_t_test():
    a = {(s, 0.25): v for s, v in enumerate([0.62, 0.66, 0.61, 0.70])}
    b = {(s, 0.25): v for s, v in enumerate([0.60, 0.61, 0.60, 0.63])}
    ours = inference.paired_difference(a, b)
    expected = st.ttest_rel(list(a.values()), list(b.values()))
    assert inference.p_value(ours) == pytest.approx(expected.pvalue)
    np.testing.assert_allclose((ours.low, ours.high), expected.confidence_interval(0.95))


def test_paired_difference_pairs_by_key_and_leaves_out_the_rest():
    ours = inference.paired_difference({1: 0.5, 2: 0.7, 9: 0.0}, {2: 0.6, 1: 0.45, 3: 1.0})
    assert ours.value == pytest.approx(0.075)
    assert ours.n == 2
    none = inference.paired_difference({1: 0.5}, {2: 0.5})
    assert "no pair" in none.reason
    assert none.code == Reason.NO_PAIR
    assert math.isnan(inference.p_value(none))
    assert math.isnan(inference.p_value(inference.paired_difference({1: 0.5}, {1: 0.4})))


def test_strata_take_the_difference_between_sizes_out_of_the_noise():
    a = {("xs", 1): 0.10, ("xs", 2): 0.12, ("l", 1): 0.50, ("l", 2): 0.53}
    b = dict.fromkeys(a, 0.0)
    plain = inference.paired_difference(a, b)
    by_size = inference.paired_difference(a, b, stratum=lambda key: key[0])
    assert by_size.value == pytest.approx(plain.value)
    assert inference.p_value(by_size) < 0.05 < inference.p_value(plain)


def test_holm_by_hand():
    np.testing.assert_allclose(inference.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(inference.holm([0.6, 0.7]), [1, 1])
    # the NaN keeps its place in the family
    np.testing.assert_allclose(inference.holm([0.01, NAN]), [0.02, NAN])
    assert inference.holm([]).size == 0
    with pytest.raises(ValueError, match="outside"):
        inference.holm([1.2])


def test_slope_is_scipys_regression():
    rng = np.random.default_rng(0)
    params = np.repeat([1e5, 1e6, 1e7], 3)
    gaps = 0.2 - 0.05 * np.log10(params) + rng.normal(0, 0.01, 9)
    shuffled = rng.permutation(9)
    ours = inference.slope_log10(params[shuffled], gaps[shuffled], resamples=500)
    expected = st.linregress(np.log10(params), gaps)
    assert ours.value == pytest.approx(expected.slope)
    assert ours.low < -0.05 < ours.high


def test_slope_says_why_not():
    assert "1 size" in inference.slope_log10([10, 10], [0.1, 0.2]).reason
    assert "one seed" in inference.slope_log10([10, 10, 100], [0.1, 0.2, 0.3]).reason
    assert "not finite" in inference.slope_log10([10, 10, 100, 100], [0.1, 0.2, 0.3, NAN]).reason
    with pytest.raises(ValueError, match="does not match"):
        inference.slope_log10([1, 2], [1])


# --- Coverage: 95 % intervals of few seeds must hold what they say --------------------------------


def coverage(make, draw, truth, repetitions):
    estimates = [make(draw()) for _ in range(repetitions)]
    return np.mean([e.low <= truth <= e.high for e in estimates])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_coverage_of_the_mean(n):
    rng = np.random.default_rng(n)
    normal = coverage(stats.mean_interval, lambda: rng.normal(size=n), 0, 3000)
    skewed = coverage(stats.mean_interval, lambda: rng.beta(8, 2, n), 0.8, 3000)
    assert 0.935 < normal < 0.965
    assert skewed > 0.91
    # what this interval replaces: percentile bootstrap, far below its nominal level
    draws = rng.normal(size=(500, n))
    means = draws[:, rng.integers(0, n, (400, n))].mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.9


@pytest.mark.parametrize(("strata", "n"), [(2, 2), (4, 2), (2, 5), (4, 3)])
def test_coverage_over_strata_of_unequal_spread(strata, n):
    rng = np.random.default_rng(strata + n)
    spread = np.linspace(1, 3, strata)[:, None]
    covered = coverage(
        stats.stratified_mean, lambda: list(rng.normal(size=(strata, n)) * spread), 0, 2000
    )
    assert covered > 0.935


@pytest.mark.parametrize("n", [2, 3, 5])
def test_coverage_of_the_interquartile_mean(n):
    rng = np.random.default_rng(n)
    covered = coverage(
        lambda groups: stats.bootstrap_interval(groups, resamples=200),
        lambda: [rng.normal(0, spread, (n, 4)) for spread in (1, 2)],
        0,
        300,
    )
    assert covered > 0.92


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_coverage_of_the_probability_of_improvement(shift):
    rng = np.random.default_rng(shift)
    truth = st.norm.cdf(shift / math.sqrt(2))
    for n in (3, 5):
        covered = coverage(
            lambda xy: inference.probability_of_improvement(*xy),
            lambda n=n: (rng.normal(shift, 1, n), rng.normal(0, 1, n)),
            truth,
            600,
        )
        assert covered > 0.87


def test_coverage_of_the_slope():
    rng = np.random.default_rng(0)
    params = np.repeat([1e5, 1e6, 1e7], 3)
    covered = coverage(
        lambda gaps: inference.slope_log10(params, gaps, resamples=200),
        lambda: 0.1 * np.log10(params) + rng.normal(0, 0.05, 9),
        0.1,
        300,
    )
    assert covered > 0.92


def test_false_positives_of_the_paired_test():
    rng = np.random.default_rng(0)
    p = [
        inference.p_value(
            inference.paired_difference(
                dict(enumerate(rng.normal(size=3))), dict.fromkeys(range(3), 0)
            )
        )
        for _ in range(2000)
    ]
    assert 0.035 < np.mean(np.array(p) < 0.05) < 0.065
