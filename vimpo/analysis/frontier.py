"""The frontier: what accuracy an algorithm reaches at which distance from the base policy.

An algorithm that is steady because it hardly moves is no better for it, so algorithms are compared
where they are equally far. A run's curves of accuracy and of KL to the base (of a response, in
nats) are smoothed as in the figures; its accuracy at distance d is that at the step where the KL
first reaches d, interpolated linearly in the KL between recorded steps. Seeds are the unit.

A distance that one run of an algorithm never reaches has no number: the mean over the others would
be about other runs. So each line ends at the least of its runs' largest distances.

The points of a line are evenly spaced in the square root of the KL, in which gains of reward are
close to linear (Gao et al., arXiv 2210.10760).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vimpo.analysis.along import HELD_OUT
from vimpo.analysis.curves import DISTANCE, LEARNING, at_end, curves, runs_of, smoothed, window
from vimpo.analysis.headroom import ENDS
from vimpo.analysis.intervals import FRACTION, POSITIVE, Estimate, mean_interval, not_available
from vimpo.analysis.scores import OURS, RIVALS, Tables
from vimpo.analysis.summaries import expected_runs, interval_columns, labels
from vimpo.analysis.verdicts import Key, difference
from vimpo.config import Study
from vimpo.storage.codes import Reason, Why

POINTS = 12  # of a line
END = "kl"  # metric: the distance at the end of training


@dataclass(frozen=True)
class Path:
    """A run's accuracy against its distance, which only grows: arrays [steps]."""

    distance: np.ndarray
    accuracy: np.ndarray

    def __post_init__(self) -> None:
        if self.distance.shape != self.accuracy.shape or self.distance.ndim != 1:
            raise ValueError(f"path: {self.distance.shape=}, {self.accuracy.shape=}; allowed: [n]")

    @property
    def reach(self) -> float:
        return float(self.distance[-1])

    def at(self, distance: float) -> float:
        """Accuracy where the distance is first reached; NaN if it never is."""
        if distance > self.reach:
            return np.nan
        after = int(np.searchsorted(self.distance, distance))
        before = max(0, after - 1)
        near, far = self.distance[before], self.distance[after]
        share = (distance - near) / (far - near) if far > near else 1.0
        return float((1 - share) * self.accuracy[before] + share * self.accuracy[after])


def path_of(accuracy: pd.Series, distance: pd.Series, width: int) -> Path | None:
    """The path of a run, at the steps of the curve that has fewer; None if there is none.

    width: steps over which both are smoothed.
    """
    accuracy, distance = smoothed(accuracy.dropna(), width), smoothed(distance.dropna(), width)
    if accuracy.empty or distance.empty:
        return None
    fewer, other = sorted((accuracy, distance), key=len)
    steps = fewer.index[(fewer.index >= other.index[0]) & (fewer.index <= other.index[-1])]
    if not len(steps):
        return None
    x, y = (np.interp(steps, curve.index, curve) for curve in (distance, accuracy))
    return Path(np.maximum.accumulate(x), y)


def frontier_rows(study: Study, tables: Tables, params: Mapping[str, float]) -> list[dict]:
    """Rows of frontier.csv, for each algorithm, size and noise level.

    accuracy, validation_accuracy.*     accuracy (of rollouts; held-out, by decoder) at a distance
    the same, with a rival      minus the rival's, over pairs of a seed, at the largest distance
                                that all runs of both reach: of every algorithm against the floor
                                of headroom.csv, and of VIMPO against each of its rivals
    kl                          distance at the end of training, the mean over its last tenth

    An algorithm whose distance was not measured has one row that says so.
    """
    recorded = set(tables.curves["metric"])
    if DISTANCE not in recorded:
        return []
    expected = expected_runs(study)
    names = list(dict.fromkeys(name for name, *_ in expected))
    distances = {name: curves(tables, name, DISTANCE) for name in names}
    validated = sorted(m for m in recorded if m.startswith(HELD_OUT))
    rows = []
    for metric in (LEARNING, *validated):
        paths = {name: _paths(study, tables, name, metric, distances[name]) for name in names}
        for (name, size, noise), count in expected.items():
            key = labels(name, size, noise) | {"params": params.get(size, np.nan)}
            group = {other: runs_of(paths[other], size, noise) for other in names}
            if metric != LEARNING and not group[name]:
                continue
            rows += [
                key
                | {"metric": metric, "rival": rival, "kl": distance}
                | interval_columns(estimate, count, study.statistics.confidence)
                for rival, distance, estimate in _line(study, name, group)
            ]
            if metric == LEARNING and (ends := runs_of(distances[name], size, noise)):
                at = [at_end(curve, window(study)) for curve in ends.values()]
                estimate = mean_interval(at, study.statistics.confidence, POSITIVE)
                rows.append(
                    key
                    | {"metric": END, "rival": "", "kl": np.nan}
                    | interval_columns(estimate, count, study.statistics.confidence)
                )
    return rows


Group = Mapping[str, Mapping[Key, Path]]


def _line(study: Study, name: str, group: Group) -> Iterator[tuple[str, float, Estimate]]:
    """Rival, distance and estimate of an algorithm's rows."""
    own, confidence = group[name], study.statistics.confidence
    if not own:
        text = f"the runs of {name} have no KL to the base policy"
        yield "", np.nan, not_available(Why(Reason.NOT_MEASURED, text), 0)
        return
    for distance in _points(_reach(own)):
        values = [path.at(distance) for path in own.values()]
        yield "", distance, mean_interval(values, confidence, FRACTION)
    for rival in dict.fromkeys([ENDS.floor, *(RIVALS if name == OURS else ())]):
        if rival != name and (theirs := group.get(rival)):
            distance = min(_reach(own), _reach(theirs))
            ours, others = ({k: p.at(distance) for k, p in x.items()} for x in (own, theirs))
            yield rival, distance, difference(ours, others, list(own), confidence).estimate


def _paths(
    study: Study, tables: Tables, name: str, metric: str, distances: Mapping[Key, pd.Series]
) -> dict[Key, Path]:
    learnt, width = curves(tables, name, metric), window(study)
    found = {k: path_of(learnt[k], d, width) for k, d in distances.items() if k in learnt}
    return {key: path for key, path in found.items() if path is not None}


def _reach(paths: Mapping[Key, Path]) -> float:
    return min(path.reach for path in paths.values())


def _points(reach: float) -> np.ndarray:
    between = np.linspace(0, np.sqrt(max(0.0, reach)), POINTS)[:-1] ** 2
    return np.unique([*between, reach])
