"""Numbers of single runs that the claims C1 to C6 compare, and the runs that the grid should have.

Keys are (size, noise, seed), or (size, "", round) for measurements of cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from vimpo.analysis.names import LABELS
from vimpo.analysis.verdicts import Key, Scores
from vimpo.config import Noise, Study
from vimpo.storage.columns import COLUMNS, OUTCOMES
from vimpo.storage.tables import BASE, WHOLE

CONTROL = 0.5  # flip rate from which on labels say nothing, or the opposite
OURS, RIVALS = "vimpo", {name: LABELS[name] for name in ("grpo", "ppo")}
PLACE = "position"  # the control of credit: the token's place in its response
NAMES = {OURS: LABELS[OURS]} | RIVALS


@dataclass(frozen=True)
class Tables:
    """What claims are made from; see vimpo/storage/columns.py for the columns."""

    accuracy: pd.DataFrame
    probes: pd.DataFrame
    measured_cost: pd.DataFrame
    outcomes: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=lambda: _empty("curves"))
    snapshot_accuracy: pd.DataFrame = field(default_factory=lambda: _empty("snapshot_accuracy"))
    snapshot_probes: pd.DataFrame = field(default_factory=lambda: _empty("snapshot_probes"))


def _empty(table: str) -> pd.DataFrame:
    return pd.DataFrame(columns=COLUMNS[table])


def accuracies(tables: Tables, algorithm: str) -> Scores:
    return accuracies_of(tables.accuracy, algorithm)


def accuracies_of(frame: pd.DataFrame, algorithm: str) -> Scores:
    """Sampled accuracy of each run, the mean over benchmarks; NaN if one of them is."""
    frame = frame[(frame.algorithm == algorithm) & (frame.metric == "sampled")]
    if algorithm == BASE:
        frame = frame.assign(seed=0)
    return over_benchmarks(frame)


def over_benchmarks(frame: pd.DataFrame) -> Scores:
    """Mean of the rows of each run; NaN if one of them is."""
    by_run = frame.groupby(["size", "noise", "seed"])["value"]
    means = by_run.agg(lambda values: values.mean(skipna=False))
    return dict(zip(means.index, means, strict=True))


def clean_keys(study: Study, *algorithms: str) -> list[Key]:
    """The grid's runs on clean rewards that all of these algorithms have."""
    return shared(
        [
            [(c.size, c.noise, c.seed) for c in study.cells() if c.algorithm == name]
            for name in algorithms
        ],
        lambda key: Noise.parse(key[1]).level == 0,
    )


def shared(keys: list[list[Key]], wanted=lambda key: True) -> list[Key]:
    return [k for k in keys[0] if wanted(k) and all(k in other for other in keys[1:])]


def noise_curves(study: Study, algorithm: str) -> dict[Key, dict[float, Key]]:
    """(size, mode, seed) -> flip rate -> run, for curves of at least two rates below 1/2."""
    for mode in ("group", "rollout"):
        curves: dict[Key, dict[float, Key]] = {}
        for cell in study.cells():
            noise = Noise.parse(cell.noise)
            fits = noise.level == 0 or (noise.mode == mode and noise.level < CONTROL)
            if cell.algorithm == algorithm and fits:
                curve = curves.setdefault((cell.size, mode, cell.seed), {})
                curve[noise.level] = (cell.size, cell.noise, cell.seed)
        if curves := {key: curve for key, curve in curves.items() if len(curve) > 1}:
            return curves
    return {}


Summary = Callable[[np.ndarray, np.ndarray], float]


def along_noise(study: Study, scores: Scores, algorithm: str, summary: Summary) -> Scores:
    """summary(rates, scores) of each complete noise curve."""
    found = {}
    for key, curve in noise_curves(study, algorithm).items():
        rates = sorted(curve)
        if all(curve[rate] in scores for rate in rates):
            values = [scores[curve[rate]] for rate in rates]
            found[key] = float(summary(np.array(rates), np.array(values)))
    return found


def lost(rates: np.ndarray, values: np.ndarray) -> float:
    """Accuracy lost per unit of noise, by least squares."""
    x = rates - rates.mean()
    return -(x * values).sum() / (x**2).sum()


def area(rates: np.ndarray, values: np.ndarray) -> float:
    """Mean accuracy along the noise curve, by trapezia."""
    return np.trapezoid(values, rates) / np.ptp(rates)


def probed(
    tables: Tables, algorithm: str, labels: tuple[str, str, str, str], column: str = "value"
) -> dict[Key, Any]:
    """A column of the probes' table for each run. labels: probe, predictor, target, metric."""
    frame = tables.probes
    chosen = (frame.algorithm == algorithm) & (frame.position == WHOLE)
    for name, label in zip(("probe", "predictor", "target", "metric"), labels, strict=True):
        chosen &= frame[name] == label
    rows = frame[chosen]
    return dict(
        zip(zip(rows["size"], rows.noise, rows.seed, strict=True), rows[column], strict=True)
    )


def measured(tables: Tables, algorithm: str, metric: str) -> Scores:
    """Logarithm of a measured cost, for each round of the side-by-side measurement."""
    frame = tables.measured_cost
    chosen = (frame.kind == "measured") & (frame.algorithm == algorithm)
    rows = frame[chosen & (frame.metric == metric)]
    return {
        (size, "", turn): math.log(value) if value > 0 else math.nan
        for size, turn, value in zip(rows["size"], rows["round"], rows.value, strict=True)
    }


def rounds(study: Study, tables: Tables, *algorithms: str) -> list[Key]:
    """Measurements that all of these algorithms should have, at every size that has them all."""
    frame = tables.measured_cost
    turns = sorted(set(frame.loc[frame.kind == "measured", "round"])) or [1]
    return [
        (size, "", turn)
        for size in study.used_sizes()
        if set(algorithms) <= set(study.algorithms_at(size))
        for turn in turns
    ]


def failed_runs(tables: Tables, algorithm: str) -> set[Key]:
    frame = tables.outcomes
    rows = frame[(frame.algorithm == algorithm) & (frame.outcome != OUTCOMES[0])]
    return set(zip(rows["size"], rows.noise, rows.seed, strict=True))


def noisy_runs(study: Study, algorithm: str) -> list[Key]:
    """Runs below the control's flip rate, including clean ones."""
    runs = [(c.size, c.noise, c.seed) for c in study.cells() if c.algorithm == algorithm]
    return [key for key in runs if Noise.parse(key[1]).level < CONTROL]
