"""Statistics of few seeds: estimates with intervals, paired tests, corrections, slopes.

Pure functions of arrays; nothing here knows of algorithms, files or figures. Where no interval can
be given, the result says why instead of pretending (:class:`Estimate`).

Which interval, and why. The unit is the seed: one training run, whose benchmarks are averaged
first, because they are scored on the same policy. Deep-RL practice is the percentile bootstrap
(rliable, arXiv 2108.13264), which needs about ten runs. Coverage of nominal 95 % intervals of a
mean, measured by simulation (4,000 repetitions, percentile 1,000):

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
to .99 for the interquartile mean where the percentile method covers .60 to .92). The last rows of
the table are beyond any method: a failure that no seed has shown cannot be in an interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special
from scipy import stats as st

NAN = float("nan")
UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. `reason` says why value or interval is NaN; empty otherwise.

    `stderr` and `df` are those of the t interval, where it is one.
    """

    value: float
    low: float
    high: float
    n: int
    method: str = ""
    reason: str = ""
    stderr: float = NAN
    df: float = NAN

    @property
    def available(self) -> bool:
        """Whether there is an interval, and so a value."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Comparison(Estimate):
    """A paired difference: its two-sided p value, and the keys that only one side has."""

    p: float = NAN
    unpaired: tuple[Hashable, ...] = ()


def not_available(reason: str, n: int, value: float = NAN) -> Estimate:
    return Estimate(value, NAN, NAN, n, "not available", reason)


def _fault(values: np.ndarray, what: str = "values") -> str:
    """Why `values` cannot be averaged; empty where they can."""
    bad = int((~np.isfinite(values)).sum())
    if values.size == 0:
        return f"no {what}"
    return f"{bad} of {values.size} {what} are not finite" if bad else ""


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
    mean. NaN where a score is NaN. `axis` None pools all scores.
    """
    x = np.asarray(scores, float)
    if axis is None:
        x, axis = x.ravel(), 0
    if x.shape[axis] == 0:
        raise ValueError(f"iqm of no scores: {x.shape=}")
    result = st.trim_mean(x, 0.25, axis=axis)
    result = np.where(np.isnan(x).any(axis=axis), NAN, result)
    return float(result) if result.ndim == 0 else result


# --- Means ---------------------------------------------------------------------------------------


def mean_interval(
    scores: ArrayLike, confidence: float = 0.95, bounds: tuple[float, float] = UNBOUNDED
) -> Estimate:
    """Mean of independent scores [n] with Student's t interval, cut at `bounds` of the quantity."""
    return stratified_mean([scores], confidence, bounds)


def stratified_mean(
    groups: Sequence[ArrayLike],
    confidence: float = 0.95,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Mean over strata of the means of their seeds, every stratum with equal weight.

        mean = 1/K sum_k m_k      se^2 = 1/K^2 sum_k s_k^2/n_k      interval = mean +- t(df) se
        df   = (sum_k v_k)^2 / sum_k v_k^2/(n_k - 1),   v_k = s_k^2/n_k     (Welch, Satterthwaite)

    `groups`: one array [n_k] a stratum (a size, say), drawn independently of each other. The value
    is given with one seed, an interval only where every stratum has two that differ somewhere.
    """
    arrays = [np.asarray(g, float).ravel() for g in groups]
    n = sum(a.size for a in arrays)
    fault = _fault(np.concatenate(arrays)) if arrays else "no values"
    if fault or any(a.size == 0 for a in arrays):
        return not_available(fault or "a stratum has no values", n)
    value = float(np.mean([a.mean() for a in arrays]))
    se, df, reason = _standard_error(arrays)
    if reason:
        return not_available(reason, n, value)
    se /= len(arrays)
    half = t_quantile(confidence, df) * se
    method = "Student t" if len(arrays) == 1 else "Welch-Satterthwaite t"
    estimate = Estimate(value, value - half, value + half, n, method, stderr=se, df=df)
    return _clip(estimate, bounds)


def _standard_error(arrays: Sequence[np.ndarray]) -> tuple[float, float, str]:
    """Standard error of the sum of the means, its degrees of freedom, and why there is none."""
    sizes = np.array([a.size for a in arrays])
    if sizes.min() < 2:
        return NAN, NAN, "one seed has no spread" if len(arrays) == 1 else "a stratum has one seed"
    variances = np.array([a.var(ddof=1) for a in arrays]) / sizes
    total = variances.sum()
    if total <= np.finfo(float).eps ** 2 * max(1.0, max(np.abs(a).max() for a in arrays)):
        return NAN, NAN, f"all {sizes.sum()} values are equal, so their spread is unknown"
    # scaled first, because squares of tiny variances underflow
    share = variances / total
    return math.sqrt(total), float(1 / (share**2 / (sizes - 1)).sum()), ""


def normal_interval(
    value: float,
    stderr: float,
    n: int = 1,
    confidence: float = 0.95,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """A value whose standard error is known, as of policies scored on many problems."""
    for number, what in ((value, "value"), (stderr, "standard error")):
        if not math.isfinite(number):
            return not_available(f"the {what} is not finite", n, value)
    if stderr == 0:
        return not_available("the standard error over problems is 0", n, value)
    half = float(st.norm.ppf((1 + confidence) / 2)) * stderr
    return _clip(Estimate(value, value - half, value + half, n, "normal over problems"), bounds)


def wider(estimate: Estimate, floor: Estimate) -> Estimate:
    """`estimate`, or the interval of `floor` where that is the wider one.

    Two seeds agree by luck often enough that their t interval shrinks to nothing; whatever the
    seeds do, a score is not known better than its problems allow. One seed stays one seed: a
    spread that was not observed is not replaced.
    """
    if estimate.n < 2 or not math.isfinite(estimate.value) or not floor.available:
        return estimate
    if estimate.available and estimate.high - estimate.low >= floor.high - floor.low:
        return estimate
    if not estimate.available and not estimate.reason.startswith("all "):
        return estimate
    return replace(floor, value=estimate.value, n=estimate.n)


def _clip(estimate: Estimate, bounds: tuple[float, float]) -> Estimate:
    low, high = bounds
    return replace(estimate, low=max(low, estimate.low), high=min(high, estimate.high))


# --- Bootstrap -----------------------------------------------------------------------------------


def bootstrap_interval(
    groups: Sequence[ArrayLike],
    statistic: Callable[[list[np.ndarray]], np.ndarray] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Interval of any smooth statistic of stratified seeds.

        value +- t(df) * sqrt(n/(n-1)) * sd of the statistic over bootstrap resamples

    `groups`: one array [seeds] or [seeds, tasks] a stratum. Whole rows are resampled, each stratum
    from itself: the tasks of a seed stay together, because one policy produced them all.
    `statistic`: from a list of arrays [..., n_k, tasks] to [...]; default: the interquartile mean
    of everything pooled. sqrt(n/(n-1)), n the smallest stratum, undoes the
    bootstrap's bias in variance; df is that of :func:`stratified_mean`. Same seed, same result.
    """
    statistic = statistic or pooled_iqm
    arrays = [np.asarray(g, float) for g in groups]
    arrays = [a[:, None] if a.ndim == 1 else a for a in arrays]
    n = sum(len(a) for a in arrays)
    fault = _fault(np.concatenate([a.ravel() for a in arrays])) if arrays else "no values"
    if fault or any(a.size == 0 for a in arrays):
        return not_available(fault or "a stratum has no values", n)
    value = float(statistic(arrays))
    _, df, reason = _standard_error([a.mean(axis=1) for a in arrays])
    if reason:
        return not_available(reason, n, value)

    def of_rows(*rows: np.ndarray, axis: int = -1) -> np.ndarray:
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
        return not_available("the statistic does not vary over resamples", n, value)
    half = t_quantile(confidence, df) * se
    estimate = Estimate(value, value - half, value + half, n, "bootstrap-SE t", stderr=se, df=df)
    return _clip(estimate, bounds)


def pooled_iqm(groups: Sequence[np.ndarray]) -> np.ndarray | float:
    """Interquartile mean over all seeds and tasks of strata [..., n_k, tasks] -> [...]."""
    return iqm(np.concatenate([g.reshape(*g.shape[:-2], -1) for g in groups], axis=-1), axis=-1)


# --- Comparisons ---------------------------------------------------------------------------------


def probability_of_improvement(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Estimate:
    """P(X > Y) + P(X = Y)/2 of independent scores x [m], y [n]: the Mann-Whitney U over mn.

    The interval inverts a score test (Newcombe 2006, method 5), so that it has width where x and y
    do not overlap; a bootstrap would claim certainty there:

        |p - p_hat| = z sqrt( p(1-p)/(mn) * [1 + (N-1)((1-p)/(2-p) + p/(1+p))] ),  N = (m+n)/2
    """
    x, y = np.asarray(x, float).ravel(), np.asarray(y, float).ravel()
    n = min(x.size, y.size)
    if n == 0 or (fault := _fault(np.concatenate([x, y]))):
        return not_available("one side has no values" if n == 0 else fault, n)
    above = x[:, None] - y[None, :]
    value = float(((above > 0) + 0.5 * (above == 0)).mean())
    if n < 2:
        return not_available("one seed has no spread", n, value)
    z, mean_n = st.norm.ppf((1 + confidence) / 2), (x.size + y.size) / 2

    def excess(p: float) -> float:
        factor = 1 + (mean_n - 1) * ((1 - p) / (2 - p) + p / (1 + p))
        return (p - value) ** 2 - z**2 * p * (1 - p) / (x.size * y.size) * factor

    # at 0 and 1 the value itself is a root, but not the one that is meant
    inside = min(max(value, 1e-9), 1 - 1e-9)
    low = 0.0 if value == 0 else optimize.brentq(excess, 0, inside)
    high = 1.0 if value == 1 else optimize.brentq(excess, inside, 1)
    return Estimate(value, low, high, n, "Newcombe score")


def paired_difference(
    a: Mapping[Hashable, float],
    b: Mapping[Hashable, float],
    confidence: float = 0.95,
    stratum: Callable[[Hashable], Hashable] | None = None,
) -> Comparison:
    """Mean of a - b over the keys that both have, with interval and two-sided t test of 0.

    A key names what the two runs share: seed and noise draw, and with them prompts and flips.
    `stratum` maps a key to its stratum (its size, say); the mean then weighs strata equally, and
    differences between strata are not taken for noise. Without it this is the paired t test.
    """
    shared = [key for key in a if key in b]
    unpaired = tuple(k for k in [*a, *b] if not (k in a and k in b))
    groups: dict[Hashable, list[float]] = {}
    for key in shared:
        groups.setdefault(stratum(key) if stratum else None, []).append(a[key] - b[key])
    arrays = [np.asarray(g, float) for g in groups.values()]
    estimate = stratified_mean(arrays, confidence)
    if not shared:
        estimate = replace(estimate, reason="no pair has both sides")
    return Comparison(**vars(estimate), p=p_value(estimate), unpaired=unpaired)


def p_value(estimate: Estimate, threshold: float = 0.0) -> float:
    """Two-sided t test of value = threshold; NaN where the estimate has no t interval."""
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
) -> float:
    """Seeds a stratum that would settle `value` against `threshold` with the given power.

    The smallest k with |value - threshold| >= (t_confidence + t_power)(df k/seeds) se sqrt(seeds/k)
    if the observed value and spread are the true ones; `seeds` is what they were observed with.
    Infinite above MOST_SEEDS, NaN where the estimate has no t interval.
    """
    if not estimate.available or not math.isfinite(estimate.stderr):
        return NAN
    distance = abs(estimate.value - threshold)

    def settles(k: int) -> bool:
        df = max(1.0, estimate.df * (k - 1) / max(1, seeds - 1))
        quantiles = t_quantile(confidence, df) + float(special.stdtrit(df, power))
        return distance >= quantiles * estimate.stderr * math.sqrt(seeds / k)

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
    that was announced and could not be made does not make the others easier.
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
    """Least-squares slope of gaps [N] on log10(params [N]): change a tenfold of parameters.

    Bootstrap stratified by size: the sizes are chosen, not drawn, so the interval speaks of these
    sizes and of other seeds. Not available below two sizes, or with one seed at a size.
    """
    params, gaps = np.asarray(params, float).ravel(), np.asarray(gaps, float).ravel()
    if params.shape != gaps.shape:
        raise ValueError(f"{params.shape=} does not match {gaps.shape=}")
    if params.size and not np.all(params > 0):
        raise ValueError(f"params: {params} are not all above 0")
    sizes = np.unique(params)
    if sizes.size < 2:
        return not_available(f"{sizes.size} size gives no slope; 2 or more are needed", gaps.size)
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
