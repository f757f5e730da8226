"""Sweeps: which settings a study gives each algorithm, and where they are stable.

A sweep is a study like any other whose entries of `algorithms` are trials; those of one objective
compete. It is run before the study that it decides, with other seeds. The rule that chooses was
fixed before the first sweep ran:

- every objective has the same number of trials, all with the same sizes, noise and seeds;
- a run's score is its sampled accuracy, the mean over benchmarks; a run that failed in training
  keeps the score of the policy that it left;
- a trial's score is the mean over its runs; the highest is chosen, the first of equal ones.

The best of many is flattered by luck, every objective's alike. A study names its sweeps in
`sweeps`; its report prints them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.config import Cell, ConfigError, PolicyUpdate, Study
from vimpo.contents import OUTCOMES
from vimpo.plots import draw_figures
from vimpo.reading import (
    IncompleteError,
    read_manifest,
    read_outcome,
    read_probes,
    read_scores,
)
from vimpo.stats import UNBOUNDED, mean_interval
from vimpo.summaries import FRACTION, interval_columns
from vimpo.tables import WHOLE, read_table, write_table

TABLE = "sweeps"
ACCURACY, VALUE = "sampled accuracy", "explained variance of the change of value"
IMPLIED = {
    "probe": "value",
    "predictor": "implied",
    "target": "change",
    "position": WHOLE,
    "metric": "explained_variance",
}


# --- Trials --------------------------------------------------------------------------------------


def trials(study: Study) -> dict[str, list[str]]:
    """Objective -> its trials, in the order of the grid.

    Raises ConfigError where objectives have unequal numbers of trials, or trials unequal cells: the
    choice would not be a fair one.
    """
    found: dict[str, list[str]] = {}
    cells: dict[str, set] = {}
    for cell in study.cells():
        cells.setdefault(cell.algorithm, set()).add((cell.size, cell.noise, cell.seed))
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
    """Fields in which these algorithms differ, as the configuration orders them."""
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


def sweep_rows(study: Study) -> list[dict]:
    """A row a trial and metric, with the columns of the table `sweeps`; intervals are over seeds.

    The implied value is judged where all runs were probed. Raises ConfigError that counts the runs
    which are missing: a choice waits for all.
    """
    competitors = trials(study)
    scores, failed = _accuracies(study)
    values = _value_accuracies(study)
    rows = []
    for objective, names in competitors.items():
        fields = varied(study, names)
        for metric, numbers in ((ACCURACY, scores), (VALUE, values)):
            group = [
                _identity(study, name, fields)
                | {"objective": objective, "metric": metric}
                | {"failed": sum(cell.algorithm == name for cell in failed), "chosen": ""}
                | _over_seeds(study, name, numbers, metric)
                for name in names
                if numbers
            ]
            if metric == ACCURACY:
                max(group, key=lambda row: row["mean"])["chosen"] = "yes"  # the first of equal ones
            rows += group
    return rows


def _identity(study: Study, name: str, fields: list[str]) -> dict:
    """Trial, the field that a figure has on its axis, and the other settings."""
    axis, *others = fields or ["lr_scale"]
    objective = study.algorithms[name]
    return {
        "sweep": study.study,
        "trial": name,
        "axis": axis,
        "at": getattr(objective, axis),
        "settings": settings_text(objective, others),
    }


def _over_seeds(study: Study, name: str, numbers: Mapping[Cell, float], metric: str) -> dict:
    own = {cell: number for cell, number in numbers.items() if cell.algorithm == name}
    by_seed = pd.Series(list(own.values())).groupby([c.seed for c in own]).mean()
    confidence = study.statistics.confidence
    bounds = FRACTION if metric == ACCURACY else UNBOUNDED
    found = mean_interval(by_seed.to_numpy(), confidence, bounds)
    return interval_columns(found, len(by_seed), confidence)


def _accuracies(study: Study) -> tuple[dict[Cell, float], set[Cell]]:
    """Score of every run, and which of them failed in training."""
    scores, failed, missing = {}, set(), []
    for cell in study.cells():
        folder = study.run_folder(cell)
        try:
            manifest = read_manifest(folder, study.cell_digest(cell), cell.name)
            rows = read_scores(folder, study)
        except IncompleteError as reason:
            missing.append(f"{cell.name} ({reason})")
            continue
        scores[cell] = float(np.mean([r["value"] for r in rows if r["metric"] == "sampled"]))
        if read_outcome(manifest)["outcome"] != OUTCOMES[0]:
            failed.add(cell)
    if missing:
        raise ConfigError(
            f"sweep: {len(missing)} of {len(study.cells())} runs are missing, such as "
            f"{missing[0]}; allowed: a sweep whose runs are all trained and evaluated"
        )
    return scores, failed


def _value_accuracies(study: Study) -> dict[Cell, float]:
    """Explained variance of the implied change of value of every run; empty unless all have one."""
    found = {}
    for cell in study.cells():
        try:
            rows = read_probes(study, cell)
        except IncompleteError:
            return {}
        found[cell] = next(r["value"] for r in rows if all(r[k] == v for k, v in IMPLIED.items()))
    return found


def sweep(study: Study, folder: Path) -> Path:
    """Write the table into `folder`, the figure into `folder`/figures; returns the table."""
    path = folder / f"{TABLE}.csv"
    write_table(path, sweep_rows(study))
    draw_figures({TABLE: read_table(folder, TABLE)}, [TABLE], {}, folder / "figures")
    return path


def published_sweeps(study: Study) -> list[dict]:
    """Rows of all sweeps that the study names. Raises ConfigError for a file that is none."""
    rows = []
    for path in map(Path, study.sweeps):
        rows += read_table(path.parent, TABLE, path.name).to_dict("records")
    return rows
