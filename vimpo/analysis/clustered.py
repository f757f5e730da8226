"""Least squares with errors that few clusters share.

Pure functions of arrays. The variance is CR2 and its degrees of freedom are Satterthwaite's, both
of Bell and McCaffrey (Survey Methodology 28, 2002) in the form of Pustejovsky and Tipton (JBES 36,
2018). For two groups with one row per cluster, the standard error is Welch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vimpo.analysis.intervals import Estimate, not_available, t_quantile
from vimpo.storage.codes import Method, Reason, Why

ROUNDING = 1e-9  # eigenvalues and singular values below this share of the largest are zero
TOO_FEW = Why(Reason.TOO_FEW_BASES, "one base policy alone decides it")
CONFOUNDED = Why(Reason.CONFOUNDED, "it does not vary apart from the rest")
EXACT = Why(Reason.ALL_EQUAL, "no residual is left, so the error is unknown")


def solve(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Least squares; the shortest solution if several fit equally. y [n], x [n, p] -> [p]"""
    return np.linalg.lstsq(x, y, rcond=ROUNDING)[0]


def estimable(x: np.ndarray, column: int) -> bool:
    """Whether x [n, p] decides the coefficient of this column."""
    others = np.delete(x, column, 1)
    left = x[:, column] - others @ solve(x[:, column], others)
    return bool(np.linalg.norm(left) > ROUNDING**0.5 * max(np.linalg.norm(x[:, column]), 1e-300))


def coefficient(
    y: np.ndarray,
    x: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    column: int,
    confidence: float = 0.95,
) -> Estimate:
    """A coefficient of y [n] on x [n, p] with its interval; `n` counts clusters [n].

        b = (X'x)^- X'y      v = sum_g (c' x_g' A_g e_g)^2,  c = (X'x)^- of the column
        A_g = (I - H_gg)^(-1/2),  H = x (X'x)^- X'
        df = tr(G'G)^2 / tr((G'G)^2),  G = [(I - H)_g' A_g x_g c]_g

    Not available where the column is a combination of others, or is one without some cluster: the
    fit then has no residual there, and the variance would be too small.
    """
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = len(names)
    if not estimable(x, column):
        return not_available(CONFOUNDED, count)
    value = float(solve(y, x)[column])
    if not all(estimable(x[index != g], column) for g in range(count)):
        return not_available(TOO_FEW, count, value)
    inverse = np.linalg.pinv(x.T @ x, rcond=ROUNDING, hermitian=True)
    maker = np.eye(len(y)) - x @ inverse @ x.T  # of residuals: I - H
    errors, weights = maker @ y, x @ inverse[:, column]
    scores, G = np.zeros(count), np.zeros((len(y), count))
    for g in range(count):
        own = index == g
        adjusted = _inverse_root(maker[np.ix_(own, own)]) @ weights[own]
        scores[g] = adjusted @ errors[own]
        G[:, g] = maker[:, own] @ adjusted
    stderr = math.sqrt(float(np.square(scores).sum()))
    if stderr <= ROUNDING * max(float(np.abs(y).max()), 1e-300):
        return not_available(EXACT, count, value)
    inner = G.T @ G
    df = float(np.trace(inner) ** 2 / np.square(inner).sum())
    half = t_quantile(confidence, df) * stderr
    return Estimate(value, value - half, value + half, count, Method.CR2, stderr=stderr, df=df)


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """M^(-1/2) of a symmetric matrix without negative eigenvalues; zero where those are zero."""
    values, vectors = np.linalg.eigh(matrix)
    roots = np.zeros_like(values)
    positive = values > ROUNDING
    roots[positive] = values[positive] ** -0.5
    return (vectors * roots) @ vectors.T
