"""Inference from few seeds: paired differences, tests, corrections, slopes, seeds needed.

Pure functions of arrays. The docstring of vimpo/analysis/intervals.py says which interval is used
and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special
from scipy import stats as st

from vimpo.analysis.intervals import (
    NAN,
    ONE_SEED,
    Estimate,
    bootstrap_interval,
    fault_of,
    not_available,
    stratified_mean,
    t_quantile,
)
from vimpo.storage.codes import Method, Reason, Why

Key = TypeVar("Key", bound=Hashable)


def probability_of_improvement(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Estimate:
    """P(X > Y) + P(X = Y)/2 of independent scores x [m], y [n]: the Mann-Whitney U over mn.

    The interval inverts a score test (Newcombe 2006, method 5), so it has width even if x and y do
    not overlap; a bootstrap would claim certainty there:

        |p - p_hat| = z sqrt( p(1-p)/(mn) * [1 + (N-1)((1-p)/(2-p) + p/(1+p))] ),  N = (m+n)/2
    """
    x, y = np.asarray(x, float).ravel(), np.asarray(y, float).ravel()
    n = min(x.size, y.size)
    if n == 0:
        return not_available(Why(Reason.NO_VALUES, "one side has no values"), n)
    if fault := fault_of([x, y]):
        return not_available(fault, n)
    above = x[:, None] - y[None, :]
    value = float(((above > 0) + 0.5 * (above == 0)).mean())
    if n < 2:
        return not_available(ONE_SEED, n, value)
    z, mean_n = st.norm.ppf((1 + confidence) / 2), (x.size + y.size) / 2

    def excess(p: float) -> float:
        factor = 1 + (mean_n - 1) * ((1 - p) / (2 - p) + p / (1 + p))
        return (p - value) ** 2 - z**2 * p * (1 - p) / (x.size * y.size) * factor

    # at 0 and 1 the value itself is a root, but not the one we want
    inside = min(max(value, 1e-9), 1 - 1e-9)
    low = 0.0 if value == 0 else optimize.brentq(excess, 0, inside)
    high = 1.0 if value == 1 else optimize.brentq(excess, inside, 1)
    return Estimate(value, low, high, n, Method.NEWCOMBE)


def paired_difference(
    a: Mapping[Key, float],
    b: Mapping[Key, float],
    confidence: float = 0.95,
    stratum: Callable[[Key], Hashable] | None = None,
) -> Estimate:
    """Mean of a - b over the keys that both have.

    A key names what the two runs share: seed and noise draw, and with them prompts and flips.
    `stratum` maps a key to its stratum (its size, say); the mean then weighs strata equally, and
    differences between strata are not taken for noise. Without it this is the paired t interval.
    """
    shared = [key for key in a if key in b]
    groups: dict[Hashable, list[float]] = {}
    for key in shared:
        groups.setdefault(stratum(key) if stratum else None, []).append(a[key] - b[key])
    estimate = stratified_mean(list(groups.values()), confidence)
    if not shared:
        estimate = replace(estimate, why=Why(Reason.NO_PAIR, "no pair has both sides"))
    return estimate


def p_value(estimate: Estimate, threshold: float = 0.0) -> float:
    """Two-sided t test of value = threshold; NaN if the estimate has no t interval."""
    if not estimate.available:
        return NAN
    return float(2 * special.stdtr(estimate.df, -abs(estimate.value - threshold) / estimate.stderr))


MOST_SEEDS = 10_000


def seeds_needed(
    estimate: Estimate,
    threshold: float,
    seeds: int,
    confidence: float = 0.95,
    power: float = 0.8,
    floor: float = 0.0,
) -> float:
    """Seeds per stratum that would settle `value` against `threshold` with the given power.

    The smallest k with |value - threshold| >= (t_confidence + t_power)(df k/seeds) se sqrt(seeds/k)
    if the observed value and spread are the true ones; they were observed with `seeds`.
    `floor`: a standard error that no number of seeds goes below. Infinite above MOST_SEEDS, NaN
    if the estimate has no t interval.
    """
    if not estimate.available or not math.isfinite(estimate.stderr):
        return NAN
    distance = abs(estimate.value - threshold)

    def settles(k: int) -> bool:
        df = max(1.0, estimate.df * (k - 1) / max(1, seeds - 1))
        quantiles = t_quantile(confidence, df) + float(special.stdtrit(df, power))
        return distance >= quantiles * max(floor, estimate.stderr * math.sqrt(seeds / k))

    if not settles(MOST_SEEDS):
        return math.inf
    low, high = 1, MOST_SEEDS  # settles() is monotone in k: bisect
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settles(middle) else (middle, high)
    return high


def holm(pvalues: ArrayLike) -> np.ndarray:
    """Holm's step-down adjusted p values (1979), in the order given.

    p_(i) adjusted = max_{j <= i} min(1, (m - j + 1) p_(j)). A NaN stays NaN but counts in m: a test
    that was announced but could not be made does not make the others easier.
    """
    p = np.asarray(pvalues, float).ravel()
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"p values outside [0, 1]: {p}")
    order = np.argsort(np.where(np.isnan(p), np.inf, p), kind="stable")
    steps = p.size - np.arange(p.size)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * steps))
    return adjusted


def slope_log10(
    params: ArrayLike,
    gaps: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Estimate:
    """Least-squares slope of gaps [N] on log10(params [N]): change per tenfold of parameters.

    Bootstrap stratified by size: sizes are chosen, not drawn, so the interval is about these sizes
    and other seeds. Not available below two sizes, or with one seed at a size.
    """
    params, gaps = np.asarray(params, float).ravel(), np.asarray(gaps, float).ravel()
    if params.shape != gaps.shape:
        raise ValueError(f"{params.shape=} does not match {gaps.shape=}")
    if params.size and not np.all(params > 0):
        raise ValueError(f"params: {params} are not all above 0")
    sizes = np.unique(params)
    if sizes.size < 2:
        text = f"{sizes.size} size gives no slope; 2 or more are needed"
        return not_available(Why(Reason.ONE_SIZE, text), gaps.size)
    counts = [int((params == size).sum()) for size in sizes]
    x = np.repeat(np.log10(sizes), counts)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()

    def slope(groups: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([g[..., 0] for g in groups], axis=-1) @ weights

    return bootstrap_interval(
        [gaps[params == size] for size in sizes],
        slope,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


# --- Descriptions of runs ------------------------------------------------------------------------


def pooled_spread(groups: Sequence[ArrayLike], confidence: float = 0.95) -> Estimate:
    """Standard deviation between the runs of a group, pooled over groups of one algorithm.

        s^2 = sum_k (n_k - 1) s_k^2 / df,   df = sum_k (n_k - 1),   df s^2 / sigma^2 ~ chi^2(df)

    The interval assumes normal scores with one standard deviation in all groups. Groups of one
    run say nothing about spread and do not count in n.
    """
    arrays = [a for g in groups if (a := np.asarray(g, float).ravel()).size > 1]
    n = sum(a.size for a in arrays)
    if not arrays:
        return not_available(ONE_SEED, 0)
    if fault := fault_of(arrays):
        return not_available(fault, n)
    df = n - len(arrays)
    total = sum(((a - a.mean()) ** 2).sum() for a in arrays)
    upper, lower = st.chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], df)
    low, high = math.sqrt(total / upper), math.sqrt(total / lower)
    return Estimate(math.sqrt(total / df), low, high, n, Method.CHI_SQUARE)


def share(happened: Sequence[bool], confidence: float = 0.95) -> Estimate:
    """Share of runs to which something happened, with Clopper and Pearson's exact interval."""
    n = len(happened)
    if n == 0:
        return not_available(Why(Reason.NO_VALUES, "no runs"), 0)
    found = st.binomtest(sum(happened), n)
    low, high = found.proportion_ci(confidence, method="exact")
    return Estimate(float(found.statistic), float(low), float(high), n, Method.CLOPPER_PEARSON)
