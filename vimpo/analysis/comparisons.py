"""VIMPO against each other algorithm of the study, size by size: comparisons.csv.

difference    sampled accuracy, VIMPO minus the rival: the mean over pairs of runs that share
              size, noise and seed, with Student's t (size `all`: sizes weigh equally)
probability   that a run of VIMPO beats one of the rival
iqm           without a rival: the interquartile mean over seeds and benchmarks
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from vimpo.analysis.inference import probability_of_improvement
from vimpo.analysis.intervals import FRACTION, Estimate, bootstrap_interval, not_available
from vimpo.analysis.scores import OURS, accuracies_of
from vimpo.analysis.summaries import interval_columns, labels
from vimpo.analysis.verdicts import difference
from vimpo.config import Study
from vimpo.storage.codes import Reason, Why
from vimpo.storage.tables import ALL_SIZES


def compare_accuracy(accuracy: pd.DataFrame, study: Study, params: dict[str, float]) -> list[dict]:
    """Rows of comparisons.csv, in grid order."""
    cells = study.cells()
    noises = list(dict.fromkeys(cell.noise for cell in cells))
    rivals = [a for a in dict.fromkeys(cell.algorithm for cell in cells) if a != OURS]
    sizes = study.used_sizes()
    several = [ALL_SIZES] if len(sizes) > 1 else []
    confidence = study.statistics.confidence
    scores = {name: accuracies_of(accuracy, name) for name in [OURS, *rivals]}
    rows = []

    def add(
        names: tuple[str, str], size: str, noise: str, metric: str, found: Estimate, expected: int
    ) -> None:
        algorithm, rival = names
        key = labels(algorithm, size, noise) | {"params": params.get(size, math.nan)}
        row = key | {"rival": rival, "metric": metric}
        rows.append(row | interval_columns(found, expected, confidence))

    for noise, size in itertools.product(noises, [*sizes, *several]):
        for rival in rivals:
            keys = [
                (c.size, c.noise, c.seed)
                for c in cells
                if c.algorithm == rival and c.noise == noise and size in (c.size, ALL_SIZES)
            ]
            own = {(c.size, c.noise, c.seed) for c in cells if c.algorithm == OURS}
            keys = [key for key in keys if key in own]
            partial = size == ALL_SIZES and len({key[0] for key in keys}) < len(sizes)
            if not keys or partial:
                continue
            found = difference(scores[OURS], scores[rival], keys, confidence)
            add((OURS, rival), size, noise, "difference", found.estimate, found.expected)
            if size == ALL_SIZES:
                continue
            ours, theirs = ([scores[a][k] for k in keys if k in scores[a]] for a in (OURS, rival))
            chance = probability_of_improvement(ours, theirs, confidence)
            add((OURS, rival), size, noise, "probability", chance, len(keys))
    for algorithm, noise in itertools.product([OURS, *rivals], noises):
        groups = [(c.size, c.seed) for c in cells if c.algorithm == algorithm and c.noise == noise]
        if {size for size, _ in groups} == set(sizes):
            middle = _iqm(accuracy, study, algorithm, noise)
            size = several[0] if several else sizes[0]
            add((algorithm, ""), size, noise, "iqm", middle, len(groups))
    return rows


def _iqm(accuracy: pd.DataFrame, study: Study, algorithm: str, noise: str) -> Estimate:
    """Over seeds and benchmarks of all sizes; whole seeds are resampled within their size."""
    chosen = (accuracy.algorithm == algorithm) & (accuracy.noise == noise)
    frame = accuracy[chosen & (accuracy.metric == "sampled")]
    groups: list[np.ndarray] = []
    for size in study.used_sizes():
        part = frame[frame["size"] == size]
        if part.empty:
            why = Why(Reason.NO_RESULT, f"no result at size {size}")
            return not_available(why, frame.seed.nunique())
        groups.append(part.pivot(index="seed", columns="benchmark", values="value").to_numpy())
    s = study.statistics
    return bootstrap_interval(
        groups, confidence=s.confidence, resamples=s.resamples, seed=s.seed, bounds=FRACTION
    )
