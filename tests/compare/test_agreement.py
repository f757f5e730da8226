"""Prediction intervals and the verdict over many, by simulation where a formula is claimed."""

import math

import numpy as np
import pytest
from scipy import stats as st

from vimpo.analysis.intervals import mean_interval
from vimpo.compare.agreement import (
    ALARM,
    Difference,
    Spread,
    agreement,
    at_least,
    difference,
    pooled,
    share_stderr,
)

NAN = float("nan")


def spread_of(x):
    """x [groups, seeds]"""
    return pooled([(s, x.shape[1]) for s in x.std(axis=1, ddof=1)])


@pytest.mark.parametrize(("groups", "seeds"), [(1, 2), (1, 5), (6, 2), (12, 3)])
def test_a_new_run_is_in_its_prediction_interval_as_often_as_it_says(groups, seeds):
    """Coverage of nominal 95 %, two seeds to many; that of the mean's own interval is far below."""
    rng = np.random.default_rng(groups * seeds)
    inside_own, inside_mean, inside_ci, repeats = 0, 0, 0, 4000
    for _ in range(repeats):
        x = rng.normal(size=(groups, seeds)) + 3 * rng.normal(size=(groups, 1))
        centre = rng.normal()
        x[0] = centre + rng.normal(size=seeds)
        new = centre + rng.normal()
        spread = spread_of(x)
        inside_mean += not difference(x[0].mean(), new, spread, n=seeds).outside
        inside_own += not difference(x[0, 0], new, spread).outside
        ci = mean_interval(x[0])
        inside_ci += ci.low <= new <= ci.high
    assert abs(inside_mean / repeats - 0.95) < 0.01  # three standard errors
    assert inside_own / repeats > 0.94  # not quite t: the old cell is part of the spread
    assert inside_ci / repeats < {2: 0.93, 3: 0.86, 5: 0.72}[seeds]


def test_a_correlated_re_run_is_inside_more_often():
    rng = np.random.default_rng(0)
    inside, repeats = 0, 2000
    for _ in range(repeats):
        x = rng.normal(size=(8, 2))
        new = 0.7 * x[0, 0] + math.sqrt(1 - 0.49) * rng.normal()
        inside += not difference(x[0, 0], new, spread_of(x)).outside
    assert inside / repeats > 0.97


def test_the_numbers_of_a_difference():
    found = difference(0.5, 0.8, Spread(0.1, 4))
    scale = 0.1 * math.sqrt(2)
    assert found.standardised == pytest.approx(0.3 / scale)
    assert found.p == pytest.approx(2 * st.t.sf(0.3 / scale, 4))
    assert found.high == pytest.approx(0.5 + st.t.ppf(0.975, 4) * scale)
    assert not found.outside
    # the mean of 3 new runs against the mean of 5 old ones
    found = difference(0.5, 0.8, Spread(0.1, 4), n=5, m=3)
    assert found.standardised == pytest.approx(0.3 / (0.1 * math.sqrt(1 / 5 + 1 / 3)))
    assert found.outside


def test_problems_set_the_least_width_and_are_all_there_is_of_one_seed():
    alone = difference(0.5, 0.6, Spread(), (0.03, 0.04), df=19)
    assert alone.standardised == pytest.approx(0.1 / 0.05)
    assert alone.p == pytest.approx(2 * st.t.sf(2, 19))
    lucky = difference(0.5, 0.6, Spread(0.001, 4), (0.03, 0.04), df=19)
    assert lucky == alone
    assert difference(0.5, 0.6, Spread(), (NAN, 0.03)).standardised == pytest.approx(
        0.1 / (0.03 * math.sqrt(2))
    )


@pytest.mark.parametrize("b", [0.5, NAN])
def test_without_a_yardstick_nothing_is_judged(b):
    found = difference(0.4, b, Spread())
    assert math.isnan(found.p)
    assert not found.outside
    assert pooled([(0.0, 3), (NAN, 2), (1.0, 1)]) == Spread()


def test_pooled_weighs_by_degrees_of_freedom():
    found = pooled([(1.0, 2), (2.0, 4), (9.0, 1)])
    assert found.df == 4
    assert found.sd == pytest.approx(math.sqrt((1 + 3 * 4) / 4))


def test_none_right_of_few_problems_is_not_certain():
    assert share_stderr(0.0, 0.0, 20) == pytest.approx(math.sqrt(2 / 24 * 22 / 24 / 24))
    assert share_stderr(0.5, 0.2, 20) == 0.2
    assert share_stderr(1.0, NAN, 20) == pytest.approx(share_stderr(0.0, 0.0, 20))
    # all against none is a difference all the same
    error = share_stderr(0.0, 0.0, 20)
    assert difference(0.0, 1.0, Spread(), (error, error), df=19).p < 1e-8


def test_a_group_that_spreads_wider_has_its_own_yardstick():
    assert at_least(Spread(1.0, 12), Spread(2.0, 2)) == Spread(2.0, 12)
    assert at_least(Spread(1.0, 12), Spread(0.5, 2)) == Spread(1.0, 12)
    assert at_least(Spread(1.0, 12), Spread()) == Spread(1.0, 12)
    assert at_least(Spread(), Spread(2.0, 1)) == Spread(2.0, 1)


def simulate(repeats, rng, *, groups=12, seeds=2, numbers=8, shift=0.0, one=0.0, sds=None, rho=0.0):
    """Share of studies that are called different.

    Every cell has `numbers` scores that share a part of its policy; shift: of all cells of the
    second study; one: of a single group; sds [groups]: spread of each group; rho: correlation of
    all cells of the second study, as by a base policy of their own.
    """
    sds = np.ones(groups) if sds is None else np.asarray(sds)
    alarms = 0
    for _ in range(repeats):
        studies = []
        for new in (False, True):
            policy = rng.normal(size=(groups, seeds, 1))
            noise = rng.normal(size=(groups, seeds, numbers))
            common = math.sqrt(rho) * rng.normal() * new
            own = math.sqrt(0.5 * (1 - rho * new)) * policy + math.sqrt(0.5) * noise
            x = (own + common) * sds[:, None, None]
            studies.append(x + new * shift)
        a, b = studies
        b[0] += one
        headlines, found = [], {}
        judge = [judged(a[..., k], b[..., k]) for k in range(numbers)]
        whole = judged(a.mean(axis=2), b.mean(axis=2))
        for g in range(groups):
            p = [p for number in judge for p in number[g]]
            found[g] = {"accuracy": p[: len(p) // 2], "probes": p[len(p) // 2 :]}
            headlines += whole[g]
        alarms += agreement(headlines, found).different
    return alarms / repeats


def judged(a, b):
    """p values [groups][seeds] of b [groups, seeds] against a, as `compare` makes them."""
    pool, found = spread_of(a), []
    for old, new in zip(a, b, strict=True):
        spread = at_least(pool, spread_of(np.array([old, new])))
        found.append([difference(x, y, spread).p for x, y in zip(old, new, strict=True)])
    return found


def test_the_verdict_keeps_its_error_rate():
    """At most ALARM of equal studies are called different: plain, and with unequal spreads."""
    rng = np.random.default_rng(1)
    limit = ALARM + 3 * math.sqrt(ALARM / 250)
    assert simulate(250, rng) <= limit
    assert simulate(250, rng, sds=[1] * 11 + [3]) <= limit


def test_the_verdict_sees_a_shift_of_everything_and_of_one_group():
    rng = np.random.default_rng(2)
    assert simulate(40, rng, shift=3.0) > 0.9
    assert simulate(40, rng, one=15.0) > 0.9
    assert simulate(40, rng, shift=1.5) > 0.1  # a cell alone would show nothing


def test_agreement_by_hand():
    found = agreement(
        [0.01, 0.2, NAN, 0.04, 0.9], {"g": {"accuracy": [0.5, 0.02], "probes": [0.3]}}
    )
    assert (found.headlines, found.outside) == (4, 2)
    assert found.p_share == pytest.approx(st.binom.sf(1, 4, 0.05))
    assert found.p_largest == pytest.approx(2 * 2 * 0.02)
    assert found.largest == "g"
    assert not found.different
    assert found.allowed == 2
    assert st.binom.sf(2, 4, 0.05) <= ALARM / 2 < st.binom.sf(1, 4, 0.05)
    nothing = agreement([], {"g": {"probes": [NAN]}})
    assert nothing.p == 1
    assert not nothing.different
    assert agreement([0.5] * 20, {"g": {"a": [1e-9]}, "h": {"a": [0.5]}}).largest == "g"
    assert Difference(p=0.049).outside
