"""Sweeps: which settings a study gives each algorithm, and where they are stable.

A sweep is an ordinary study whose entries of `algorithms` are trials; those of one objective
compete. It runs before the study whose settings it decides, with other seeds. The rule:

- every objective has the same number of trials, all with the same sizes, noise and seeds;
- a run's score is the mean of two numbers: its sampled accuracy, the mean over benchmarks, and the
  area under its learning curve; a run that failed in training keeps the accuracy of the policy it
  left, and the last height of its curve to the end;
- a trial's score is the mean over its runs; the highest is chosen, the first of equals.

Accuracy alone chose the sweeps published before 2026-11-27; their tables say so.

Luck flatters the best of many, for every objective alike. A study names its sweeps in `sweeps`,
and its report prints them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.analysis.aggregate import Collection
from vimpo.analysis.curves import DISTANCE, LEARNING, area_under, curves, window
from vimpo.analysis.intervals import FRACTION, UNBOUNDED, mean_interval
from vimpo.analysis.scores import Tables, accuracies, probed
from vimpo.analysis.summaries import DRAWN, SUMMARISED_CURVES, interval_columns, smoothed_seeds
from vimpo.analysis.verdicts import Scores
from vimpo.config import Capacity, ConfigError, PolicyUpdate, Study
from vimpo.storage.columns import OUTCOMES
from vimpo.storage.tables import write_table

TABLE, CURVES = "sweeps", "sweeps_curves"
SCORE = "mean of sampled accuracy and area under the learning curve"
ACCURACY, AREA = "sampled accuracy", "area under the learning curve"
VALUE = "explained variance of the change of value"
IMPLIED = ("value", "implied", "change", "explained_variance")


# --- Trials --------------------------------------------------------------------------------------


def trials(study: Study) -> dict[str, list[str]]:
    """Objective -> its trials, in grid order.

    Raises ConfigError if objectives have unequal numbers of trials, or trials unequal cells: the
    choice would not be fair.
    """
    found: dict[str, list[str]] = {}
    cells: dict[str, set] = {}
    for cell in study.cells():
        cells.setdefault(cell.algorithm, set()).add((cell.size, cell.noise, cell.seed))
        if isinstance(scale := study.algorithms[cell.algorithm].lr_scale, dict):
            raise ConfigError(
                f"algorithms.{cell.algorithm}.lr_scale: {scale} is no place on a sweep's axis; "
                "allowed: a number"
            )
    for name in cells:
        found.setdefault(study.algorithms[name].objective, []).append(name)
    if len({len(names) for names in found.values()}) > 1:
        counts = ", ".join(f"{len(names)} of {objective}" for objective, names in found.items())
        raise ConfigError(
            f"grid: a sweep of {counts}; allowed: as many trials of each objective, or the choice "
            "favours the one with more"
        )
    most = max(cells.values(), key=len)
    if fewer := [name for name, own in cells.items() if own != most]:
        raise ConfigError(
            f"grid: trial '{fewer[0]}' has other sizes, noise levels or seeds than the rest; "
            "allowed: the same cells for every trial"
        )
    return found


def varied(study: Study, names: Iterable[str]) -> list[str]:
    """Fields in which these algorithms differ, in the configuration's order."""
    settings = [study.algorithms[name].model_dump(mode="json") for name in names]
    return [f for f in settings[0] if len({json.dumps(s[f]) for s in settings}) > 1]


def settings_text(objective: PolicyUpdate, fields: Iterable[str]) -> str:
    """`beta 0.02, actor_coef 0.005`"""
    values = objective.model_dump(mode="json")
    return ", ".join(
        f"{f} {values[f]:g}" if isinstance(values[f], float) else f"{f} {json.dumps(values[f])}"
        for f in fields
    )


# --- Rows ----------------------------------------------------------------------------------------


def sweep_tables(study: Study) -> dict[str, list[dict]]:
    """Rows of sweeps.csv, one per trial and metric, and of its curves; intervals are over seeds.

    The implied value is judged if all runs were probed. Raises ConfigError with the number of
    missing runs: a choice waits for all.
    """
    competitors = trials(study)
    tables, all_probed = _collected(study)
    return {
        TABLE: _trial_rows(study, competitors, tables, all_probed),
        CURVES: _curve_rows(study, competitors, tables),
    }


def _trial_rows(
    study: Study, competitors: dict[str, list[str]], tables: Tables, all_probed: bool
) -> list[dict]:
    failed = tables.outcomes[tables.outcomes["outcome"] != OUTCOMES[0]]["algorithm"].value_counts()
    rows = []
    for objective, names in competitors.items():
        fields = varied(study, names)
        group = [
            _identity(study, name, fields)
            | {"objective": objective, "failed": int(failed.get(name, 0))}
            for name in names
        ]
        measured = {name: scored(study, tables, name) for name in names}
        # The first of equals.
        best = max(names, key=lambda name: float(np.mean([*measured[name][SCORE].values()])))
        for metric in (SCORE, ACCURACY, AREA):
            rows += [
                row
                | {"metric": metric, "chosen": "yes" * (metric == SCORE and row["trial"] == best)}
                | _over_seeds(study, measured[row["trial"]][metric], FRACTION)
                for row in group
            ]
        if all_probed:
            rows += [
                row
                | {"metric": VALUE, "chosen": ""}
                | _over_seeds(study, probed(tables, row["trial"], IMPLIED), UNBOUNDED)
                for row in group
            ]
    return rows


def scored(study: Study, tables: Tables, name: str) -> dict[str, Scores]:
    """SCORE, ACCURACY and AREA of each run of a trial."""
    accuracy, steps = accuracies(tables, name), study.train.steps
    areas = {key: area_under(c, steps) for key, c in curves(tables, name, LEARNING).items()}
    area = {key: areas.get(key, math.nan) for key in accuracy}
    score = {key: (accuracy[key] + area[key]) / 2 for key in accuracy}
    return {SCORE: score, ACCURACY: accuracy, AREA: area}


def _curve_rows(study: Study, competitors: dict[str, list[str]], tables: Tables) -> list[dict]:
    """Training accuracy and distance of each trial by step; the mean over its other cells first."""
    width, confidence = window(study), study.statistics.confidence
    rows = []
    for objective, names in competitors.items():
        fields = varied(study, names)
        for name, metric in itertools.product(names, (LEARNING, DISTANCE)):
            chosen = (tables.curves.algorithm == name) & (tables.curves.metric == metric)
            by_seed = tables.curves[chosen].groupby(["step", "seed"], as_index=False)["value"]
            smooth = smoothed_seeds(by_seed.agg(lambda x: x.mean(skipna=False)), width, DRAWN)
            row = _identity(study, name, fields) | {"objective": objective, "metric": metric}
            for step, values in zip(smooth.index, smooth.to_numpy(), strict=True):
                estimate = mean_interval(values, confidence, SUMMARISED_CURVES[metric])
                interval = interval_columns(estimate, smooth.shape[1], confidence)
                rows.append(row | {"step": int(step), "window": width} | interval)
    return rows


def _collected(study: Study) -> tuple[Tables, bool]:
    """Numbers of all runs, and whether all were probed. Raises ConfigError if a run is missing.

    A run that failed in training counts like any other.
    """
    collection = Collection(study)
    for cell in study.cells():
        collection.cell(cell)
    missing = collection.frame("missing")
    unfinished = missing[missing["stage"].isin(["train", "evaluate"])]
    if len(unfinished):
        cells = unfinished["cell"].nunique()
        first = unfinished.iloc[0]
        raise ConfigError(
            f"sweep: {cells} of {len(study.cells())} runs are missing, such as {first['cell']} "
            f"({first['reason']}); allowed: a sweep whose runs are all trained and evaluated"
        )
    return collection.numbers(), "probe" not in set(missing["stage"])


def _identity(study: Study, name: str, fields: list[str]) -> dict:
    """Trial, the field on a figure's axis, and the other settings."""
    axis, *others = fields or ["lr_scale"]
    objective = study.algorithms[name]
    at = getattr(objective, axis)
    if isinstance(at, Capacity):
        axis, at = "capacity", at.capacity
    return {
        "sweep": study.study,
        "trial": name,
        "axis": axis,
        "at": at,
        "settings": settings_text(objective, others),
    }


def _over_seeds(study: Study, scores: Scores, bounds: tuple[float, float]) -> dict:
    by_seed = pd.Series(list(scores.values())).groupby([seed for *_, seed in scores]).mean()
    confidence = study.statistics.confidence
    found = mean_interval(by_seed.to_numpy(), confidence, bounds)
    return interval_columns(found, len(by_seed), confidence)


def sweep(study: Study, folder: Path) -> Path:
    """Write the tables into `folder`. Returns the path of that which chooses."""
    for name, rows in sweep_tables(study).items():
        write_table(folder / f"{name}.csv", rows)
    return folder / f"{TABLE}.csv"
