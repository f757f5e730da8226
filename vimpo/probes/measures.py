"""Agreement of a prediction with a truth that is itself only an estimate.

All arrays end in the axes [P, m]: P problems (the independent units) and m prefixes of each;
leading axes are bootstrap resamples. Nothing here knows about policies or files.

The truth of a prefix is a mean of K coin flips, so its variance over prefixes is the variance of
the true values plus the mean squared standard error. Subtracting the latter, estimated without bias
by p(1 - p)/(K - 1), corrects every second moment below. Correlations are not corrected; they come
with the ceiling that noise imposes (Spearman's attenuation formula, 1904).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from vimpo.storage.codes import NO_REASON, Reason, Why

RESAMPLES = 200
SPLITS = 4  # random halvings of the continuations, over which reliability is averaged
FLAT = 1e-15  # a variance below this is rounding

_NO_TRUTH = Why(
    Reason.NO_VARIATION, "the spread of the truth, corrected for its noise, is not positive"
)
_FLAT_PREDICTION = Why(Reason.NO_VARIATION, "the spread of the prediction is not positive")
_CONSTANT = Why(Reason.NO_VARIATION, "the truth or the prediction does not vary")
REASONS = {
    "explained_variance": _NO_TRUTH,
    "explained_variance_linear": Why(
        Reason.NO_VARIATION, "the spread of the truth or of the prediction is not positive"
    ),
    "spread": Why(Reason.NO_VARIATION, "the spread, corrected for its noise, is not positive"),
    "slope": _FLAT_PREDICTION,
    "intercept": _FLAT_PREDICTION,
    "pearson": _CONSTANT,
    "spearman": _CONSTANT,
    "rmse": Why(Reason.BELOW_NOISE, "the error is below the noise of the truth"),
    "pearson_ceiling": _NO_TRUTH,
    "spearman_ceiling": Why(
        Reason.UNRELIABLE, "two halves of the continuations do not agree on the order"
    ),
}


@dataclass(frozen=True)
class Noisy:
    """Estimates [..., P, m] with the variances of their noise.

    own [..., P, m]: independent for each estimate; shared [..., P, 1]: common to a problem's
    prefixes, such as the noise of its V(s_0).
    """

    value: np.ndarray
    own: np.ndarray
    shared: np.ndarray

    @classmethod
    def exact(cls, value: np.ndarray) -> Noisy:
        return cls(value, np.zeros_like(value), np.zeros_like(value[..., :1]))

    def __sub__(self, other: Noisy) -> Noisy:
        """The difference of two estimates with independent noise."""
        return Noisy(self.value - other.value, self.own + other.own, self.shared + other.shared)

    def resampled(self, index: np.ndarray) -> Noisy:
        """index [R, P] -> [R, P, m]."""
        return Noisy(self.value[index], self.own[index], self.shared[index])

    def column(self, j: int) -> Noisy:
        return Noisy(self.value[..., j : j + 1], self.own[..., j : j + 1], self.shared)

    def noise_in_variance(self) -> np.ndarray:
        """What noise adds, in expectation, to the sample variance over all P m estimates.

        (trace S - 1'S1/n) / (n - 1) for a noise covariance S: the mean of `own`, plus the mean of
        `shared` times m(P - 1)/(Pm - 1), because a problem's prefixes share it.
        """
        problems, prefixes = self.value.shape[-2:]
        factor = prefixes * (problems - 1) / (problems * prefixes - 1)
        return self.own.mean((-2, -1)) + factor * self.shared.mean((-2, -1))

    def variance(self) -> np.ndarray:
        """Sample variance corrected for noise: unbiased, so it may be negative. -> [...]"""
        return variance(self.value) - self.noise_in_variance()

    def mean_square(self) -> np.ndarray:
        """Mean square corrected for noise: unbiased, so it may be negative. -> [...]"""
        noise = self.own.mean((-2, -1)) + self.shared.mean((-2, -1))
        return np.square(self.value).mean((-2, -1)) - noise


def bernoulli(outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of K outcomes in {0, 1} and its squared standard error, p(1 - p)/(K - 1), unbiased.

    [..., K] -> [...], [...]. Raises ValueError for fewer than two outcomes.
    """
    count = outcomes.shape[-1]
    if count < 2:
        raise ValueError(f"outcomes: {count} has no standard error; allowed: >= 2")
    mean = outcomes.mean(-1)
    return mean, mean * (1 - mean) / (count - 1)


def variance(x: np.ndarray) -> np.ndarray:
    """Sample variance over the last two axes, with Bessel's correction."""
    return x.reshape(*x.shape[:-2], -1).var(-1, ddof=1)


def covariance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample covariance over the last two axes, with Bessel's correction."""
    x, y = (a.reshape(*a.shape[:-2], -1) for a in (x, y))
    centred = (x - x.mean(-1, keepdims=True)) * (y - y.mean(-1, keepdims=True))
    return centred.sum(-1) / (x.shape[-1] - 1)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN if `below` is not positive."""
    positive = np.asarray(below) > FLAT
    return np.where(positive, above / np.where(positive, below, 1.0), np.nan)


def root(x: np.ndarray) -> np.ndarray:
    """Square root, NaN if x is negative."""
    return np.sqrt(np.where(np.asarray(x) >= 0, x, np.nan))


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation over the last two axes; NaN if either does not vary."""
    vx, vy = variance(x), variance(y)
    both = np.where((vx > FLAT) & (vy > FLAT), vx * vy, 0.0)
    return ratio(covariance(x, y), np.sqrt(both))


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks over the last two axes, ties averaged."""
    return rankdata(x.reshape(*x.shape[:-2], -1), axis=-1).reshape(x.shape)


def agreement(truth: Noisy, prediction: Noisy) -> dict[str, np.ndarray]:
    """Every metric of a prediction; each [...], NaN for the reason in :data:`REASONS`.

    explained_variance = 1 - Var(truth - prediction)/Var(truth); slope = Cov/Var(prediction), of the
    truth on the prediction; explained_variance_linear = Cov^2/(Var(truth) Var(prediction)), what
    the best rescaling of the prediction explains (by chance about 1/n); mse = mean (truth -
    prediction)^2; all corrected for noise. rmse is its root, bias = mean(prediction - truth), and
    spearman and pearson are uncorrected.
    """
    error = truth - prediction
    mse = error.mean_square()
    shared = covariance(truth.value, prediction.value)
    slope = ratio(shared, prediction.variance())
    mean = truth.value.mean((-2, -1)), prediction.value.mean((-2, -1))
    return {
        "explained_variance": 1 - ratio(error.variance(), truth.variance()),
        "explained_variance_linear": ratio(slope * shared, truth.variance()),
        "spearman": pearson(ranks(truth.value), ranks(prediction.value)),
        "pearson": pearson(truth.value, prediction.value),
        "slope": slope,
        "intercept": mean[0] - slope * mean[1],
        "mse": mse,
        "rmse": root(mse),
        "bias": mean[1] - mean[0],
        "spread": root(prediction.variance()),
    }


def truth_summary(truth: Noisy, halves: np.ndarray) -> dict[str, np.ndarray]:
    """The truth's own spread and noise, and the highest correlations that the noise allows.

    halves [2, ..., S, P, m]: the truth from either half of the continuations, for S halvings.
    Reliability is r = Var(true)/Var(measured) for Pearson and, for Spearman, 2r/(1 + r) of the
    halves' rank correlation r (Spearman-Brown); the ceiling is its root. For ranks it is an
    approximation: if many true values are nearly equal, a perfect predictor stays below it.
    """
    own = truth.own.mean((-2, -1)) + truth.shared.mean((-2, -1))
    half = np.nan_to_num(pearson(ranks(halves[0]), ranks(halves[1]))).mean(-1)
    return {
        "mean": truth.value.mean((-2, -1)),
        "spread": root(truth.variance()),
        "mean_stderr": np.sqrt(own),
        "pearson_ceiling": root(ratio(truth.variance(), variance(truth.value))),
        "spearman_ceiling": root(ratio(2 * half, np.where(half > 0, 1 + half, 0))),
    }


def resampling(problems: int, seed: int) -> np.ndarray:
    """Indices of RESAMPLES bootstrap resamples of whole problems. -> [R, P]"""
    rng = np.random.default_rng([seed, problems])
    return rng.integers(problems, size=(RESAMPLES, problems))


def bootstrap_stderr(replicates: np.ndarray) -> float:
    """Half the width of the central 68.27 % of replicates [R].

    Equal to the standard deviation for normal replicates, but robust for a ratio whose denominator
    nears zero in a few resamples. NaN if more than a tenth of the replicates are NaN.
    """
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < 0.9 * len(replicates):
        return float("nan")
    low, high = np.quantile(finite, [0.158655, 0.841345])
    return float(high - low) / 2


def cluster_mean(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Mean of values [n], and its standard error, robust to correlation within clusters [n].

    se^2 = G/(G - 1) sum_g (sum_{i in g} (x_i - mean))^2 / n^2 (Liang and Zeger, 1986), NaN for one
    cluster; (NaN, NaN) for no values.
    """
    if not len(values):
        return float("nan"), float("nan")
    mean = values.mean()
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, values - mean)
    count = len(sums)
    if count < 2:
        return float(mean), float("nan")
    stderr = np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values)
    return float(mean), float(stderr)


def root_mean(x: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Root mean square of x [n], and its standard error by the delta method; clusters [n]."""
    mean, stderr = cluster_mean(np.square(x), clusters)
    rms = float(np.sqrt(mean))
    return rms, stderr / (2 * rms) if rms else 0.0


def row(
    probe: str,
    predictor: str,
    target: str,
    position: str,
    metric: str,
    value: float | np.ndarray,
    stderr: float,
    n: int,
    unit: str,
    reason: Why = NO_REASON,
) -> dict:
    """One row of probes.parquet. A value that is not finite becomes NaN and gets a reason.

    value: a number, or an array that holds one.
    """
    value, stderr = float(value), float(stderr)
    if np.isfinite(value):
        reason = NO_REASON
    else:
        value = stderr = float("nan")
        if not reason.code:
            reason = REASONS.get(metric, Why(Reason.NOT_FINITE, "not finite"))
    return {
        "probe": probe,
        "predictor": predictor,
        "target": target,
        "position": position,
        "metric": metric,
        "value": value,
        "stderr": stderr if np.isfinite(stderr) else float("nan"),
        "n": int(n),
        "unit": unit,
    } | reason.columns()


def metric_rows(
    compute: Callable[..., dict[str, np.ndarray]],
    parts: tuple[Noisy | np.ndarray, ...],
    resampled: tuple[Noisy | np.ndarray, ...],
    units: dict[str, str],
    **labels: Any,
) -> list[dict]:
    """One row per metric of `compute(*parts)`, with its bootstrap standard error.

    labels: the other arguments of `row`.
    """
    estimates, replicates = compute(*parts), compute(*resampled)
    return [
        row(
            metric=metric,
            value=value,
            stderr=bootstrap_stderr(replicates[metric]),
            unit=units.get(metric, "reward"),
            **labels,
        )
        for metric, value in estimates.items()
    ]
