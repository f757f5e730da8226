"""Statistics of few seeds: estimates with intervals. vimpo/analysis/inference.py compares them.

Pure functions of arrays, which know nothing of algorithms, files or figures. If no interval can be
given, the result says why (:class:`Estimate`).

Which interval, and why. The unit is the seed: one training run, whose benchmarks are averaged
first, because they score the same policy. Common practice in deep RL is the percentile bootstrap
(rliable, arXiv 2108.13264), which needs about ten runs. Coverage of nominal 95 % intervals of a
mean, by simulation (4,000 repetitions; percentile 1,000):

    distribution of a seed's score        n   Student t   percentile bootstrap   bootstrap-t
    normal                                2     .953            .51              unbounded
                                          3     .951            .69              unbounded
                                          5     .951            .84                .954
    Beta(8, 2), skewed                    2     .942            .47              unbounded
                                          5     .928            .82                .944
    normal, one run in five collapses     2     .74             .32              unbounded
                                          5     .66             .65                .70

So single means use Student's t (:func:`mean_interval`), and means over strata its extension by
Welch and Satterthwaite (:func:`stratified_mean`: .95 to .98 for 2 to 8 strata of 2 to 5 seeds, with
standard deviations equal or spread over 1 to 3). Other statistics use the stratified bootstrap for
the standard error alone, corrected for n, with the same t quantile (:func:`bootstrap_interval`: .95
to .99 for the interquartile mean, of which the percentile method covers .60 to .92). No method
mends the last rows of the table: a failure that no seed has shown cannot be in an interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from scipy import stats as st

from vimpo.storage.codes import NO_REASON, Method, Reason, Why

NAN = float("nan")
# Bounds of quantities.
UNBOUNDED = (-math.inf, math.inf)
FRACTION, POSITIVE, AT_MOST_ONE = (0.0, 1.0), (0.0, math.inf), (-math.inf, 1.0)
NO_VALUES = Why(Reason.NO_VALUES, "no values")
EMPTY_STRATUM = Why(Reason.NO_VALUES, "a stratum has no values")
ONE_SEED = Why(Reason.ONE_SEED, "one seed has no spread")
STRATUM_ONE_SEED = Why(Reason.STRATUM_ONE_SEED, "a stratum has one seed")


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. `why`: the reason if value or interval is NaN.

    `stderr` and `df` are set for t intervals.
    """

    value: float
    low: float
    high: float
    n: int
    method: Method
    why: Why = NO_REASON
    stderr: float = NAN
    df: float = NAN

    @property
    def available(self) -> bool:
        """Whether there is an interval, and therefore a value."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def reason(self) -> str:
        return self.why.text

    @property
    def code(self) -> Reason:
        return self.why.code


def not_available(why: Why, n: int, value: float = NAN) -> Estimate:
    return Estimate(value, NAN, NAN, n, Method.NOT_AVAILABLE, why)


def fault_of(groups: Sequence[np.ndarray]) -> Why | None:
    """Why the values of these groups cannot be averaged; None if they can."""
    values = np.concatenate([g.ravel() for g in groups]) if groups else np.empty(0)
    if not values.size:
        return NO_VALUES
    if bad := int((~np.isfinite(values)).sum()):
        return not_finite(bad, values.size)
    return EMPTY_STRATUM if any(g.size == 0 for g in groups) else None


def not_finite(bad: int, count: int) -> Why:
    return Why(Reason.NOT_FINITE, f"{bad} of {count} values are not finite")


@functools.lru_cache(maxsize=4096)
def t_quantile(confidence: float, df: float) -> float:
    """Half-width of a two-sided Student t interval, in standard errors."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not in (0, 1)")
    return float(special.stdtrit(df, (1 + confidence) / 2))


# --- Point estimates -----------------------------------------------------------------------------


def iqm(scores: ArrayLike, axis: int | None = None) -> np.ndarray | float:
    """Interquartile mean: the mean of the middle half (arXiv 2108.13264, section 4.3).

    25 % of the count, rounded down, is cut from each end, so fewer than four scores give the plain
    mean. NaN if a score is NaN. `axis` None pools all scores.
    """
    x = np.asarray(scores, float)
    if axis is None:
        x, axis = x.ravel(), 0
    if x.shape[axis] == 0:
        raise ValueError(f"iqm of no scores: {x.shape=}")
    result = st.trim_mean(x, 0.25, axis=axis)
    result = np.where(np.isnan(x).any(axis=axis), NAN, result)
    return float(result) if result.ndim == 0 else result


def pooled_iqm(groups: Sequence[np.ndarray]) -> np.ndarray | float:
    """Interquartile mean over all seeds and tasks of strata [..., n_k, tasks] -> [...]."""
    return iqm(np.concatenate([g.reshape(*g.shape[:-2], -1) for g in groups], axis=-1), axis=-1)


# --- Means ---------------------------------------------------------------------------------------


def mean_interval(
    scores: ArrayLike, confidence: float = 0.95, bounds: tuple[float, float] = UNBOUNDED
) -> Estimate:
    """Mean of independent scores [n] with Student's t interval, cut at the quantity's `bounds`."""
    return stratified_mean([scores], confidence, bounds)


def stratified_mean(
    groups: Sequence[ArrayLike],
    confidence: float = 0.95,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Mean over strata of the means of their seeds; every stratum has equal weight.

        mean = 1/K sum_k m_k      se^2 = 1/K^2 sum_k s_k^2/n_k      interval = mean +- t(df) se
        df   = (sum_k v_k)^2 / sum_k v_k^2/(n_k - 1),   v_k = s_k^2/n_k     (Welch, Satterthwaite)

    `groups`: one array [n_k] per stratum (a size, say), drawn independently of each other. One seed
    gives a value; an interval needs two in every stratum, and some two that differ.
    """
    arrays = [np.asarray(g, float).ravel() for g in groups]
    n = sum(a.size for a in arrays)
    if fault := fault_of(arrays):
        return not_available(fault, n)
    value = float(np.mean([a.mean() for a in arrays]))
    se, df, fault = _standard_error(arrays)
    if fault:
        return not_available(fault, n, value)
    method = Method.STUDENT if len(arrays) == 1 else Method.WELCH
    return _t_interval(value, n, method, se / len(arrays), df, confidence, bounds)


def _t_interval(
    value: float,
    n: int,
    method: Method,
    se: float,
    df: float,
    confidence: float,
    bounds: tuple[float, float],
) -> Estimate:
    half = t_quantile(confidence, df) * se
    estimate = Estimate(value, value - half, value + half, n, method, stderr=se, df=df)
    return clipped(estimate, bounds)


def _standard_error(arrays: Sequence[np.ndarray]) -> tuple[float, float, Why | None]:
    """Standard error of the sum of the means, its degrees of freedom, or why there is none."""
    sizes = np.array([a.size for a in arrays])
    if sizes.min() < 2:
        return NAN, NAN, ONE_SEED if len(arrays) == 1 else STRATUM_ONE_SEED
    variances = np.array([a.var(ddof=1) for a in arrays]) / sizes
    total = variances.sum()
    if total <= np.finfo(float).eps ** 2 * max(1.0, max(np.abs(a).max() for a in arrays)):
        text = f"all {sizes.sum()} values are equal, so their spread is unknown"
        return NAN, NAN, Why(Reason.ALL_EQUAL, text)
    # scaled first, because squares of tiny variances underflow
    share = variances / total
    return math.sqrt(total), float(1 / (share**2 / (sizes - 1)).sum()), None


def normal_interval(
    value: float,
    stderr: float,
    n: int = 1,
    confidence: float = 0.95,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """A value with a known standard error, such as that of a policy over many problems."""
    for number, what in ((value, "value"), (stderr, "standard error")):
        if not math.isfinite(number):
            return not_available(Why(Reason.NOT_FINITE, f"the {what} is not finite"), n, value)
    if stderr == 0:
        why = Why(Reason.NO_ERROR, "the standard error over problems is 0")
        return not_available(why, n, value)
    half = float(special.ndtri((1 + confidence) / 2)) * stderr
    return clipped(Estimate(value, value - half, value + half, n, Method.NORMAL), bounds)


def wider(estimate: Estimate, floor: Estimate) -> Estimate:
    """`estimate`, or the interval of `floor` if that is wider.

    Two seeds often agree by luck, and their t interval shrinks to nothing; but no score is known
    better than its problems allow. One seed stays one seed: a spread that was not observed is not
    replaced.
    """
    if estimate.n < 2 or not math.isfinite(estimate.value) or not floor.available:
        return estimate
    if estimate.available and estimate.high - estimate.low >= floor.high - floor.low:
        return estimate
    if not estimate.available and estimate.code != Reason.ALL_EQUAL:
        return estimate
    return replace(floor, value=estimate.value, n=estimate.n)


def clipped(estimate: Estimate, bounds: tuple[float, float]) -> Estimate:
    low, high = bounds
    return replace(estimate, low=max(low, estimate.low), high=min(high, estimate.high))


# --- Bootstrap -----------------------------------------------------------------------------------


def bootstrap_interval(
    groups: Sequence[ArrayLike],
    statistic: Callable[[list[np.ndarray]], np.ndarray | float] = pooled_iqm,
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Interval of a smooth statistic of stratified seeds.

        value +- t(df) * sqrt(n/(n-1)) * sd of the statistic over bootstrap resamples

    `groups`: one array [seeds] or [seeds, tasks] per stratum. Whole rows are resampled, each
    stratum from itself: the tasks of a seed stay together, because one policy produced them all.
    `statistic`: from a list of arrays [..., n_k, tasks] to [...]; default: the interquartile mean
    of everything pooled. sqrt(n/(n-1)), n the smallest stratum, undoes the
    bootstrap's bias in variance; df is that of :func:`stratified_mean`. Same seed, same result.
    """
    arrays = [np.asarray(g, float) for g in groups]
    arrays = [a[:, None] if a.ndim == 1 else a for a in arrays]
    n = sum(len(a) for a in arrays)
    if fault := fault_of(arrays):
        return not_available(fault, n)
    value = float(statistic(arrays))
    _, df, fault = _standard_error([a.mean(axis=1) for a in arrays])
    if fault:
        return not_available(fault, n, value)

    def of_rows(*rows: np.ndarray, axis: int = -1) -> np.ndarray | float:
        # scipy resamples row numbers, so that rows with several tasks stay whole
        return statistic([a[r.astype(int)] for a, r in zip(arrays, rows, strict=True)])

    sampled = st.bootstrap(
        [np.arange(len(a)) for a in arrays],
        of_rows,
        n_resamples=resamples,
        batch=1000,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    smallest = min(len(a) for a in arrays)
    se = math.sqrt(smallest / (smallest - 1)) * float(sampled.standard_error)
    if se == 0 or not math.isfinite(se):
        why = Why(Reason.NO_VARIATION, "the statistic does not vary over resamples")
        return not_available(why, n, value)
    return _t_interval(value, n, Method.BOOTSTRAP, se, df, confidence, bounds)
