"""Means and intervals over seeds, from tidy rows: what figures and report show.

:mod:`vimpo.analysis.intervals` makes the intervals; this module decides what counts as a unit and
what is averaged first.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from vimpo.analysis.along import BOUNDS, is_sparse
from vimpo.analysis.inference import share
from vimpo.analysis.intervals import (
    AT_MOST_ONE,
    FRACTION,
    POSITIVE,
    UNBOUNDED,
    Estimate,
    mean_interval,
    normal_interval,
    not_available,
    stratified_mean,
    wider,
)
from vimpo.config import Cell, Noise, Study
from vimpo.storage.codes import Reason, Why
from vimpo.storage.columns import OUTCOMES, PROBED
from vimpo.storage.tables import ALL_SIZES, BASE, MEAN, WHOLE

# What is drawn by step, each with its bounds; and what is measured at some steps alone (along.py).
SUMMARISED_CURVES = {
    "accuracy": FRACTION,
    "response_length": POSITIVE,
    "entropy": POSITIVE,
    "reference_kl": POSITIVE,
}
DRAWN = 25  # points of a curve other than that of accuracy, which is committed whole
# Numbers of single positions that are drawn; the rest would make committed tables large.
BY_POSITION = {
    "value": ("explained_variance", "rmse"),
    "credit": ("mean_advantage",),
    "precision": ("rms_drift", "relative_drift"),
}
_BOUNDS = {
    FRACTION: "auc top1 top1_chance wrong_rollouts accuracy pearson_ceiling spearman_ceiling "
    "ordered",
    POSITIVE: "spread mean_stderr mse rmse rms residual_rms target_rms residual_ratio "
    "rms_drift relative_drift",
    (-1.0, 1.0): "spearman pearson",
    AT_MOST_ONE: "explained_variance explained_variance_linear",
}
PROBE_BOUNDS = {metric: bounds for bounds, names in _BOUNDS.items() for metric in names.split()}
WINDOWS = 10  # learning curves are smoothed over a tenth of the steps


@functools.lru_cache(maxsize=1024)
def _parsed(noise: str) -> Noise:
    return Noise.parse(noise)


def labels(algorithm: str, size: str, noise: str) -> dict:
    level = _parsed(noise)
    return {
        "algorithm": algorithm,
        "size": size,
        "noise": noise,
        "noise_mode": level.mode,
        "noise_level": level.level,
    }


def metrics_of(study: Study) -> list[str]:
    return study.score_names()


def summarise_accuracy(
    accuracy: pd.DataFrame, study: Study, params: dict[str, float]
) -> list[dict]:
    """Mean and interval over seeds for each policy, benchmark and metric; also over benchmarks.

    The seed is the unit: benchmarks are averaged within it first. Size `all` weighs sizes equally
    and is not available unless every size of that algorithm and noise has a result. The base
    policy is one network per size, so its interval is over problems alone.
    """
    confidence = study.statistics.confidence
    groups = {k: f for k, f in accuracy.groupby(["algorithm", "size", "noise", "metric"])}
    cells = [Cell(BASE, size, "0", 0) for size in study.used_sizes()] + study.cells()
    expected: dict[tuple[str, str], dict[str, int]] = {}
    for cell in cells:
        counts = expected.setdefault((cell.algorithm, cell.noise), {})
        counts[cell.size] = counts.get(cell.size, 0) + 1
    rows = []
    for (algorithm, noise), counts in expected.items():
        sizes = {size: counts.get(size, 0) for size in study.used_sizes()}
        for metric, benchmark in itertools.product(
            metrics_of(study), [*study.task.benchmarks, MEAN]
        ):
            frames = {s: groups.get((algorithm, s, noise, metric)) for s in sizes}
            chosen = {s: _seed_scores(f, benchmark) for s, f in frames.items()}
            estimates = {s: _over_seeds(algorithm, [chosen[s]], confidence) for s in sizes}
            if empty := [s for s, scores in chosen.items() if scores.empty]:
                why = Why(Reason.NO_RESULT, f"no result at size {', '.join(empty)}")
                whole = not_available(why, sum(map(len, chosen.values())))
            else:
                whole = _over_seeds(algorithm, list(chosen.values()), confidence)
                lone = [s for s, scores in chosen.items() if len(scores) == 1]
                if lone and len(sizes) > 1 and algorithm != BASE:
                    text = f"one seed at size {', '.join(lone)}"
                    whole = replace(whole, why=Why(Reason.STRATUM_ONE_SEED, text))
            for size, estimate in [*estimates.items(), (ALL_SIZES, whole)]:
                if size != ALL_SIZES and not sizes[size]:
                    continue  # not in the grid: nothing is missing
                key = labels(algorithm, size, noise) | {"params": params.get(size, math.nan)}
                count = sum(sizes.values()) if size == ALL_SIZES else sizes[size]
                rows.append(
                    key
                    | {"benchmark": benchmark, "metric": metric}
                    | interval_columns(estimate, count, confidence)
                )
    return rows


def _seed_scores(frame: pd.DataFrame | None, benchmark: str) -> pd.DataFrame:
    """One row per seed: value, and standard error over problems."""
    if frame is None:
        return pd.DataFrame(columns=["value", "stderr"])
    if benchmark != MEAN:
        return frame.loc[frame["benchmark"] == benchmark, ["value", "stderr"]]
    by_seed = frame.assign(seed=frame["seed"].fillna(-1)).groupby("seed")
    count = by_seed["value"].size()
    stderr = by_seed["stderr"].agg(lambda s: math.sqrt((s**2).sum(skipna=False))) / count
    return pd.DataFrame({"value": by_seed["value"].mean(), "stderr": stderr})


def _over_seeds(algorithm: str, sizes: list[pd.DataFrame], confidence: float) -> Estimate:
    """Interval over seeds, but never narrower than over problems, which all runs share."""
    if any(scores.empty for scores in sizes):
        return not_available(Why(Reason.NO_RESULT, "no result"), sum(map(len, sizes)))
    value = float(np.mean([scores["value"].mean() for scores in sizes]))
    # the same problems everywhere: their error does not average out over runs
    stderr = float(np.mean([scores["stderr"].mean(skipna=False) for scores in sizes]))
    problems = normal_interval(value, stderr, sum(map(len, sizes)), confidence, FRACTION)
    if algorithm == BASE:
        return problems
    return wider(stratified_mean([s["value"] for s in sizes], confidence, FRACTION), problems)


def interval_columns(estimate: Estimate, expected: int, confidence: float) -> dict:
    return {
        "mean": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "confidence": confidence,
        "n": estimate.n,
        "expected": expected,
        "method": str(estimate.method),
    } | estimate.why.columns()


def rows_in(steps: pd.Index, width: int) -> int:
    """How many recorded steps a window of `width` steps holds: one if they are farther apart."""
    apart = np.diff(steps.to_numpy(float))
    return max(1, int(width / np.median(apart))) if len(apart) else 1


def summarise_curves(curves: pd.DataFrame, study: Study) -> list[dict]:
    """Mean and interval over seeds of moving averages along training.

    Steps are smoothed within a seed first (centred, a tenth of the run), so that the interval
    shows the spread between seeds and not the sampling noise of single batches. What is measured
    at some steps alone (along.py) is not smoothed, and has rows for those.
    """
    confidence = study.statistics.confidence
    expected = expected_runs(study)
    rows = []
    for (metric, *key), frame in drawn_curves(curves).groupby(["metric", *GROUP]):
        sparse = is_sparse(metric)
        window = 1 if sparse else max(1, study.train.steps // WINDOWS)
        points = len(frame) if sparse or metric == "accuracy" else DRAWN
        smooth = smoothed_seeds(frame, window, points)
        bounds = SUMMARISED_CURVES.get(metric) or BOUNDS[metric.partition(".")[0]]
        row = labels(*map(str, key)) | {"params": frame["params"].iloc[0], "metric": metric}
        for step, values in zip(smooth.index, smooth.to_numpy(), strict=True):
            estimate = mean_interval(values, confidence, bounds)
            interval = interval_columns(estimate, expected[tuple(key)], confidence)
            rows.append(row | {"step": int(step), "window": window} | interval)
    return _in_grid_order(rows, study)


GROUP = ("algorithm", "size", "noise")


def drawn_curves(curves: pd.DataFrame) -> pd.DataFrame:
    metric = curves["metric"]
    return curves[metric.isin(SUMMARISED_CURVES) | metric.map(is_sparse)]


def smoothed_seeds(frame: pd.DataFrame, window: int, points: int) -> pd.DataFrame:
    """Steps x seeds of one metric, at so many of its steps.

    Gaps are not bridged: where a seed has no value, it has none.
    """
    seeds = frame.pivot(index="step", columns="seed", values="value").dropna(how="all")
    rows = rows_in(seeds.index, window)
    smooth = seeds.rolling(rows, center=True, min_periods=1).mean().where(seeds.notna())
    if len(smooth) <= points:
        return smooth
    return smooth.iloc[np.linspace(0, len(smooth) - 1, points).round().astype(int)]


def summarise_outcomes(outcomes: pd.DataFrame, study: Study) -> list[dict]:
    """How the runs of each algorithm, size and noise ended. The mean is the share that failed."""
    confidence = study.statistics.confidence
    expected = expected_runs(study)
    rows = []
    for key, frame in outcomes.groupby(["algorithm", "size", "noise"]):
        counts = {kind: int((frame["outcome"] == kind).sum()) for kind in OUTCOMES}
        failed = share([kind != OUTCOMES[0] for kind in frame["outcome"]], confidence)
        row = labels(*map(str, key)) | {"params": frame["params"].iloc[0]} | counts
        rows.append(row | interval_columns(failed, expected[key], confidence))
    return _in_grid_order(rows, study)


def summarise_cost(cost: pd.DataFrame, study: Study) -> list[dict]:
    """Mean and interval over all runs of an algorithm at a size: noise does not change costs."""
    confidence = study.statistics.confidence
    expected: dict[tuple, int] = {}
    for cell in study.cells():
        key = (cell.algorithm, cell.size)
        expected[key] = expected.get(key, 0) + 1
    rows = []
    for (algorithm, size, metric), frame in cost.groupby(
        ["algorithm", "size", "metric"], sort=False
    ):
        estimate = mean_interval(frame["value"], confidence, POSITIVE)
        row = {"algorithm": algorithm, "size": size, "params": frame["params"].iloc[0]}
        row |= {"metric": metric, "unit": frame["unit"].iloc[0]}
        rows.append(
            row | interval_columns(estimate, expected.get((algorithm, size), 1), confidence)
        )
    return _in_grid_order(rows, study)


def summarise_measured(measured: pd.DataFrame, study: Study) -> list[dict]:
    """Mean and interval over rounds of the side-by-side measurement; the model's as computed."""
    confidence = study.statistics.confidence
    policy = measured[measured["metric"] == "parameters"].groupby("size")["value"].first()
    rows = []
    for key, frame in measured.groupby(["kind", "algorithm", "size", "metric"], sort=False):
        row = dict(zip(("kind", "algorithm", "size", "metric"), key, strict=True))
        row |= {"params": policy.get(row["size"], math.nan), "unit": frame["unit"].iloc[0]}
        turns = measured.loc[measured["kind"] == row["kind"], "round"].nunique()
        estimate = mean_interval(frame["value"], confidence, POSITIVE)
        if row["kind"] == "model":
            why = Why(Reason.COMPUTED, "computed, not measured")
            estimate = not_available(why, 1, frame["value"].iloc[0])
        rows.append(row | interval_columns(estimate, turns, confidence))
    return rows


def summarise_probes(probes: pd.DataFrame, study: Study) -> list[dict]:
    """Mean and interval over seeds of the probes' numbers; of single positions, those drawn.

    If one run has no number, neither has its group: an average over the rest would be about other
    runs. All runs answer the same problems, whose error does not average out over seeds, so no
    interval is narrower than the mean standard error over problems allows.
    """
    confidence = study.statistics.confidence
    expected = expected_runs(study)
    # plain lists: pandas is slow on the ten thousand small groups of a large study
    names = ["algorithm", "size", "noise", *PROBED]
    groups: dict[tuple, list[tuple]] = {}
    facts = ["params", "unit", "value", "stderr", "reason_code", "reason"]
    for *key, params, unit, value, stderr, code, reason in zip(
        *(probes[name] for name in names + facts), strict=True
    ):
        probe, position, metric = key[3], key[6], key[7]
        if position == WHOLE or metric in BY_POSITION.get(probe, ()):
            fact = (params, unit, value, stderr, (code, reason))
            groups.setdefault(tuple(key), []).append(fact)
    rows = []
    for group, found in groups.items():
        params, units, values, errors, reasons = zip(*found, strict=True)
        estimate = _of_probe(group[-1], values, errors, reasons, confidence)
        row = labels(*group[:3]) | dict(zip(PROBED, group[3:], strict=True))
        row |= {"params": params[0], "unit": units[0]}
        rows.append(row | interval_columns(estimate, expected[group[:3]], confidence))
    return _in_grid_order(rows, study)


def _of_probe(
    metric: str,
    values: Sequence[float],
    errors: Sequence[float],
    reasons: Sequence[tuple[str, str]],
    confidence: float,
) -> Estimate:
    """Mean over seeds of a probe's metric. errors: standard errors over problems."""
    bounds = PROBE_BOUNDS.get(metric, UNBOUNDED)
    estimate = mean_interval(values, confidence, bounds)
    if given := {(code, text) for code, text in reasons if code}:
        bad = sum(math.isnan(value) for value in values)
        prefix = "" if bad == len(values) else f"{bad} of {len(values)} runs: "
        codes, texts = {code for code, _ in given}, sorted({text for _, text in given})
        code = Reason(codes.pop()) if len(codes) == 1 else Reason.SEVERAL
        return replace(estimate, why=Why(code, prefix + "; ".join(texts)))
    error = sum(errors) / len(errors)
    return wider(estimate, normal_interval(estimate.value, error, len(values), confidence, bounds))


def expected_runs(study: Study) -> dict[tuple, int]:
    """Number of runs in the grid for each algorithm, size and noise."""
    counts: dict[tuple, int] = {}
    for cell in study.cells():
        key = (cell.algorithm, cell.size, cell.noise)
        counts[key] = counts.get(key, 0) + 1
    return counts


def _in_grid_order(rows: list[dict], study: Study) -> list[dict]:
    """Sorted by place in the grid, stably; the base policy first."""
    place: dict[tuple, int] = {}
    for cell in study.cells():
        for key in ((cell.algorithm, cell.size, cell.noise), (cell.algorithm, cell.size)):
            place.setdefault(key, len(place))

    def rank(row: dict) -> int:
        key = (row["algorithm"], row["size"])
        return place.get((*key, row["noise"]) if "noise" in row else key, -1)

    return sorted(rows, key=rank)
