"""Learning curves of single runs, and numbers of them.

A run that failed keeps the policy it had: its curve goes on at its last value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from vimpo.analysis.scores import Tables, failed_runs
from vimpo.analysis.summaries import WINDOWS, rows_in
from vimpo.analysis.verdicts import Key
from vimpo.config import Study

LEARNING, DISTANCE, FLAWLESS = "accuracy", "reference_kl", "flawless"  # metrics
EVERY_STEP = (LEARNING, FLAWLESS)


def curves(tables: Tables, algorithm: str, metric: str) -> dict[Key, pd.Series]:
    """Values by step of each run, without the last one of a failed run if it is not finite.

    What is not measured at every step has no value at the other ones; a run that never recorded it
    has no curve of it.
    """
    frame = tables.curves
    rows = frame[(frame.algorithm == algorithm) & (frame.metric == metric)]
    failed, found = failed_runs(tables, algorithm), {}
    for key, run in rows.groupby(["size", "noise", "seed"]):
        curve = run.set_index("step")["value"].astype(float).sort_index()
        if metric not in EVERY_STEP:
            curve = curve.dropna()
            if curve.empty:
                continue
        if key in failed and not math.isfinite(curve.iloc[-1]):
            curve = curve.iloc[:-1]
        found[key] = curve
    return found


def runs_of(runs: Mapping[Key, Any], size: str, noise: str) -> dict[Key, Any]:
    return {key: run for key, run in runs.items() if key[:2] == (size, noise)}


def window(study: Study) -> int:
    """Steps over which curves are smoothed, as in the figures."""
    return max(1, study.train.steps // WINDOWS)


def area_under(curve: pd.Series, steps: int) -> float:
    """Mean height of a curve over steps 0 to steps - 1, by trapezia; its end is held."""
    if curve.empty:
        return math.nan
    x, y = curve.index.to_numpy(float), curve.to_numpy(float)
    if x[-1] < steps - 1:
        x, y = np.append(x, steps - 1), np.append(y, y[-1])
    return float(np.trapezoid(y, x) / np.ptp(x)) if len(x) > 1 else float(y[0])


def smoothed(curve: pd.Series, width: int) -> pd.Series:
    """Centred moving average over `width` steps, not all of which need be recorded."""
    return curve.rolling(rows_in(curve.index, width), center=True, min_periods=1).mean()


def at_end(curve: pd.Series, width: int) -> float:
    """Mean over the last `width` steps, of those that were recorded."""
    if curve.empty:
        return math.nan
    return float(curve[curve.index > curve.index[-1] - width].mean(skipna=False))


def first_step(curve: pd.Series, level: float, steps: int, width: int) -> float:
    """The first step at which the centred moving average is at the level; `steps` if none is."""
    if curve.empty or not np.isfinite(curve).all():
        return math.nan
    smooth = smoothed(curve, width)
    reached = smooth.index[smooth >= level - 1e-12]  # sums of a moving average are not exact
    return float(reached[0]) if len(reached) else float(steps)
