"""The numbers of two results, paired, and the difference of each pair in yardsticks.

A score is a number of one run if a side has single runs, and a mean over seeds if only summaries
were published (their intervals then give the spread). agreement.py judges.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vimpo.analysis.curves import LEARNING
from vimpo.analysis.intervals import NAN, t_quantile
from vimpo.analysis.summaries import WINDOWS
from vimpo.compare.agreement import Spread, at_least, difference, pooled, share_stderr
from vimpo.config import Cell, Study
from vimpo.storage.codes import Method
from vimpo.storage.tables import BASE, MEAN, WHOLE

GROUP = ["algorithm", "size", "noise"]
FINAL = (LEARNING,)  # curves whose end is compared
MACHINE_PROBES = ("precision",)
ROW = [
    *("kind", *GROUP, "seed", "number", "a", "b", "equal", "low", "high", "standardised", "p"),
    "judgement",
]


@dataclass(frozen=True)
class Side:
    """One of the two results; source: whether `tables` or `runs` were read; manifests by run."""

    path: Path
    study: Study
    tables: dict[str, pd.DataFrame]
    source: str
    manifests: dict[str, dict]

    @functools.cached_property
    def seeds(self) -> dict[tuple, set[float]]:
        """Seeds of each group that were evaluated; {-1} for base policies."""
        frame = self.tables["accuracy"]
        groups = frame.assign(seed=frame["seed"].fillna(-1)).groupby(GROUP)["seed"]
        return {group: set(seeds) for group, seeds in groups}


@dataclass(frozen=True)
class Score:
    """A number of one run (n = 1), or the mean of n; `sd` between them, if known."""

    value: float
    stderr: float = NAN
    df: float = math.inf
    n: int = 1
    sd: float = NAN


def scores(side: Side, probes: bool) -> dict[tuple, dict[float | None, Score]]:
    """(kind, number, algorithm, size, noise) -> seed -> score; seed None: the mean over seeds."""
    found: dict[tuple, dict[float | None, Score]] = {}
    _accuracies(side, found)
    _curves(side, found)
    if probes:
        _probes(side, found)
    return found


def _accuracies(side: Side, found: dict) -> None:
    frame = side.tables["accuracy"]
    for (*group, seed, metric), rows in frame.assign(seed=frame["seed"].fillna(-1)).groupby(
        [*GROUP, "seed", "metric"], sort=False
    ):
        counts = rows["problems"].to_numpy(float)
        errors = [
            share_stderr(v, e, c)
            for v, e, c in zip(rows["value"], rows["stderr"], counts, strict=True)
        ]
        for name, value, error, count in zip(
            rows["benchmark"], rows["value"], errors, counts, strict=True
        ):
            score = Score(value, error, count - 1)
            found.setdefault(("accuracy", f"{name} {metric}", *group), {})[seed] = score
        mean = Score(
            float(rows["value"].mean()), float(np.linalg.norm(errors)) / len(rows), min(counts) - 1
        )
        found.setdefault(("accuracy", f"{MEAN} {metric}", *group), {})[seed] = mean


def _curves(side: Side, found: dict) -> None:
    """Values at the last step, smoothed as in the figures."""
    for metric in FINAL:
        number = f"final {metric}"
        if "curves" in side.tables:
            window = max(1, side.study.train.steps // WINDOWS)
            frame = side.tables["curves"]
            for (*group, seed), rows in frame[frame["metric"] == metric].groupby([*GROUP, "seed"]):
                smooth = rows.sort_values("step")["value"].rolling(
                    window, center=True, min_periods=1
                )
                score = Score(float(smooth.mean().iloc[-1]))
                found.setdefault(("curves", number, *group), {})[seed] = score
        if "curves_summary" in side.tables:
            frame = side.tables["curves_summary"]
            last = frame[frame["metric"] == metric].sort_values("step").groupby(GROUP).tail(1)
            _add_means(side, last, "curves", [number] * len(last), found)


def _probes(side: Side, found: dict) -> None:
    if "probes" in side.tables:
        frame = side.tables["probes"]
        frame = frame[frame["position"] == WHOLE]
        df = side.study.probes.problems - 1
        for row in frame.itertuples():
            if row.probe not in MACHINE_PROBES:
                key = ("probes", _probe_name(row), row.algorithm, row.size, row.noise)
                found.setdefault(key, {})[row.seed] = Score(row.value, row.stderr, df)
    if "probe_summary" in side.tables:
        frame = side.tables["probe_summary"]
        frame = frame[(frame["position"] == WHOLE) & ~frame["probe"].isin(MACHINE_PROBES)]
        _add_means(side, frame, "probes", [_probe_name(r) for r in frame.itertuples()], found)


def _probe_name(row: Any) -> str:
    return f"{row.probe} {row.predictor} {row.target} {row.metric}"


def _add_means(side: Side, frame: pd.DataFrame, kind: str, names: list[str], found: dict) -> None:
    """Published means over seeds; that of one seed is the seed's own value."""
    seeds = side.seeds
    for row, name in zip(frame.itertuples(), names, strict=True):
        group = (row.algorithm, row.size, row.noise)
        score = _of_interval(row, side.study.probes.problems - 1)
        alone = score.n == 1 and len(seeds.get(group, ())) == 1
        seed = next(iter(seeds[group])) if alone else None
        # a score from the run itself says more
        found.setdefault((kind, name, *group), {}).setdefault(seed, score)


def _of_interval(row: Any, df: float) -> Score:
    """Mean, and the standard deviation or standard error that its interval was computed from.

    Intervals are cut at the bounds of the quantity, and the longer half is the uncut one; an
    interval that is cut at both ends gives no spread.
    """
    n, half = int(row.n), max(row.mean - row.low, row.high - row.mean)
    if row.low in (-1, 0) and row.high == 1:
        return Score(row.mean, n=n)
    if row.method == Method.STUDENT:
        sd = half / t_quantile(row.confidence, n - 1) * math.sqrt(n)
        return Score(row.mean, n=n, sd=sd)
    if row.method == Method.NORMAL:
        return Score(row.mean, half / t_quantile(row.confidence, math.inf), df, n)
    return Score(row.mean, n=n)


def compare_scores(a: Side, b: Side, cells: list[Cell], probes: bool) -> pd.DataFrame:
    """One row per number and shared cell: both values, whether equal, and b by A's yardstick.

    If A has means over seeds alone, one row per group: b is then the mean of B's seeds.
    """
    mine, theirs = scores(a, probes), scores(b, probes)
    spreads = _pooled_spreads(mine)
    shared = {(BASE, c.size, "0"): [-1.0] for c in cells}
    for cell in cells:
        shared.setdefault((cell.algorithm, cell.size, cell.noise), []).append(float(cell.seed))
    rows = []
    for (kind, number, *group), old in mine.items():
        new, seeds = theirs.get((kind, number, *group)), shared.get(tuple(group))
        if new is None or seeds is None:
            continue
        spread = at_least(spreads[kind, number], pooled([_sd(old), _sd(new)]))
        pairs: list[tuple[float | None, Score, Score]] = [
            (s, old[s], new[s]) for s in seeds if s in old and s in new
        ]
        alike = True
        if not pairs:
            pairs = [(None, _mean(old), _mean(new))]
            alike = a.seeds[tuple(group)] == b.seeds[tuple(group)]
        for seed, x, y in pairs:
            label = "mean" if seed is None else f"{seed:g}" if seed >= 0 else ""
            key = dict(zip(GROUP, group, strict=True))
            key |= {"kind": kind, "seed": label, "number": number}
            rows.append(key | _row(x, y, spread, alike and x.n == y.n))
    return pd.DataFrame(rows, columns=ROW)


def _row(a: Score, b: Score, spread: Spread, comparable: bool) -> dict:
    """Values, whether they are equal if both come from the same runs, and the judgement."""
    both = math.isnan(a.value) and math.isnan(b.value)
    equal = comparable and (a.value == b.value or both)
    found = difference(a.value, b.value, spread, (a.stderr, b.stderr), a.df, a.n, b.n)
    judgement = "no yardstick" if math.isnan(found.p) else "outside" if found.outside else "inside"
    return {
        "a": a.value,
        "b": b.value,
        "equal": equal,
        "low": found.low,
        "high": found.high,
        "standardised": found.standardised,
        "p": 1.0 if equal else found.p,
        "judgement": "equal" if equal else judgement,
    }


def _pooled_spreads(found: dict) -> dict[tuple, Spread]:
    """(kind, number) -> spread between seeds, over all groups of the study."""
    groups: dict[tuple, list[tuple[float, int]]] = {}
    for (kind, number, *_), by_seed in found.items():
        groups.setdefault((kind, number), []).append(_sd(by_seed))
    return {key: pooled(values) for key, values in groups.items()}


def _sd(by_seed: dict[float | None, Score]) -> tuple[float, int]:
    """Standard deviation between the runs of a group, and their number."""
    values = [score.value for seed, score in by_seed.items() if seed is not None]
    if values:
        return (float(np.std(values, ddof=1)) if len(values) > 1 else NAN), len(values)
    return by_seed[None].sd, by_seed[None].n


def _mean(by_seed: dict[float | None, Score]) -> Score:
    """Over seeds: from the tables if they have it, so that its digits can be compared."""
    runs = [score for seed, score in by_seed.items() if seed is not None]
    if not runs:
        return by_seed[None]
    mean = float(np.mean([s.value for s in runs]))
    value = by_seed[None].value if None in by_seed else mean
    return Score(value, float(np.mean([s.stderr for s in runs])), runs[0].df, len(runs))
