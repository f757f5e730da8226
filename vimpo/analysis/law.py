"""The capacity law over several studies: at equal capacity, is the implied value as accurate at
every size and length?

A point is one run on clean rewards: how well its implied value follows the true change of value
(probe `common` where the study has it, else `value`), beside the capacity of its beta. The rules
were fixed before any study of several lengths was there:

- the unit is one base policy at one capacity: the mean over the seeds of one group, which is an
  algorithm's settings but beta and learning rate, the kind of prefixes, and whether the model was
  made from scratch (added when the first pretrained model came: it answers another task);
- y = curve of capacity + a log10(params) + b log10(tokens), by least squares; the curve has an
  intercept per group and capacity where capacities repeat, else a quadratic in log10 capacity with
  an intercept per group;
- a and b, the remainders, have intervals with the base policy as the cluster (clustered.py); one
  whose interval excludes zero remains, and nothing is corrected for the number of remainders;
- an explained variance below FLOOR counts as FLOOR: some runs are off by hundreds.

The sharp form says that the value's scale s, its slope on the truth, is proportional to capacity
while that is small: s / capacity is given at the lowest ones. s is derived from stored metrics,

    s = Cov(truth, implied) / Var(truth) = explained_variance_linear / slope
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.analysis.clustered import coefficient, solve
from vimpo.analysis.intervals import (
    AT_MOST_ONE,
    UNBOUNDED,
    Estimate,
    mean_interval,
    not_available,
)
from vimpo.analysis.summaries import interval_columns
from vimpo.analysis.sweep import settings_text
from vimpo.config import ConfigError, Study, VimpoConfig, load_study
from vimpo.storage.archive import archived_frames
from vimpo.storage.codes import Reason, Why
from vimpo.storage.tables import WHOLE, read_table, read_tables, write_table

POINTS, REMAINDER = "capacity_law", "capacity_remainder"
ACCURACY, RESCALED, ORDER, SCALE = "explained_variance", "rescaled", "rank_correlation", "scale"
MEASURES = (ACCURACY, RESCALED, ORDER, SCALE)
PREFIXES = {"common": "common", "value": "own"}  # probe -> whose prefixes, preferred first
PRETRAINED = ", a pretrained model"
FLOOR = -1.0  # of explained variance, in means and fits
BOUNDS = {ACCURACY: (FLOOR, 1.0), RESCALED: AT_MOST_ONE, ORDER: (-1.0, 1.0)}
SAME = 1.25  # sizes or lengths closer than this factor are one
LOWEST = 3  # capacities at which s / capacity is given
GRID = 25  # points of a drawn quadratic
CONFIDENCE = 0.95
SIZE, LENGTH, CURVE, PER_CAPACITY = "size", "length", "curve", "per_capacity"  # terms
UNIT = [
    *("base", "group", "level", "study", "size", "capacity", "params", "tokens"),
    *("mean", "low", "high", "n", "cut"),
]
AXES = {
    SIZE: ("params", Why(Reason.ONE_SIZE, "all base policies are of one size")),
    LENGTH: ("tokens", Why(Reason.ONE_LENGTH, "all responses are of one length")),
}
ONE_BASE = Why(Reason.TOO_FEW_BASES, "one base policy has no spread")
NO_UNITS = Why(Reason.NO_VALUES, "no values")


class Remains(StrEnum):
    """What an interval says of a remainder (column `verdict`)."""

    SHOWN = "remains"
    NOT_SHOWN = "not_shown"
    NOT_KNOWN = "not_known"

    @classmethod
    def of(cls, found: Estimate) -> Remains:
        if not found.available:
            return cls.NOT_KNOWN
        return cls.SHOWN if found.low > 0 or found.high < 0 else cls.NOT_SHOWN


class Finding(StrEnum):
    """What both remainders of a measure say together."""

    SIZE = "size"
    LENGTH = "length"
    BOTH = "both"
    NEITHER = "neither"
    NOT_KNOWN = "not_known"

    @classmethod
    def of(cls, size: str, length: str) -> Finding:
        if Remains.SHOWN in (size, length):
            return cls.BOTH if size == length else cls.SIZE if size == Remains.SHOWN else cls.LENGTH
        return cls.NOT_KNOWN if Remains.NOT_KNOWN in (size, length) else cls.NEITHER


# --- Points --------------------------------------------------------------------------------------


def gather(folders: Iterable[Path]) -> list[dict]:
    """Points of all studies: rows of capacity_law.csv.

    Raises ConfigError for a folder that is no study, has no capacity, or comes twice.
    """
    rows: list[dict] = []
    bases: dict[str, str] = {}
    for folder in map(Path, folders):
        if not (folder / "config.yaml").is_file():
            raise ConfigError(
                f"law: '{folder}' has no config.yaml; allowed: results/<study> or "
                "results/published/<study>"
            )
        if not (found := read_points(folder, bases)):
            raise ConfigError(
                f"law: '{folder}' has no run with a capacity and a value probe; allowed: studies "
                "of VIMPO whose base policies' surprisal was measured, with rows of single runs"
            )
        if found[0]["study"] in {row["study"] for row in rows}:
            name = found[0]["study"]
            raise ConfigError(f"law: study '{name}' comes twice; allowed: each study once")
        rows += found
    return rows


def read_points(folder: Path, bases: dict[str, str]) -> list[dict]:
    """Rows of a finished or published study; none if it has no capacity or no rows of runs."""
    capacity = read_tables(folder / "tables", ["capacity"])["capacity"]
    if not capacity["capacity"].notna().any():
        return []
    probes = archived_frames(folder / "tables", ["probes"])
    study = load_study(folder / "config.yaml")
    return points_of(study, capacity, probes["probes"], bases) if probes else []


def points_of(
    study: Study, capacity: pd.DataFrame, probes: pd.DataFrame, bases: dict[str, str]
) -> list[dict]:
    """Rows of one study. bases: digest of a base policy -> its name, which studies may share."""
    chosen = probes[
        (probes["predictor"] == "implied")
        & (probes["target"] == "change")
        & (probes["position"] == WHOLE)
        & (probes["noise_level"] == 0)
    ]
    probe = next((name for name in PREFIXES if (chosen["probe"] == name).any()), None)
    chosen = chosen[chosen["probe"] == probe]
    rows = []
    for at in capacity.dropna(subset=["capacity"]).itertuples():
        objective = study.algorithms[str(at.algorithm)]
        if not isinstance(objective, VimpoConfig):
            continue
        own = chosen[(chosen["algorithm"] == at.algorithm) & (chosen["size"] == at.size)]
        base = f"{study.study}/{at.size}"
        shared = {
            "study": study.study,
            "algorithm": at.algorithm,
            "family": family(objective) + (PRETRAINED if study.sizes[str(at.size)].path else ""),
            "base": bases.setdefault(study.base_digest(str(at.size)), base),
            "size": at.size,
            "params": at.params,
            "tokens": at.tokens,
            "capacity": at.capacity,
            "prefixes": PREFIXES.get(str(probe), ""),
        }
        for seed, run in own.groupby("seed"):
            values = measures(dict(zip(run["metric"], run["value"], strict=True)))
            rows += [
                shared | {"seed": seed, "measure": name, "value": value}
                for name, value in values.items()
            ]
    return rows


def family(objective: VimpoConfig) -> str:
    """What is not default, but beta and learning rate: `vimpo`, or `vimpo, actor_coef 0`."""
    usual, own = (x.model_dump(exclude={"beta", "lr_scale"}) for x in (VimpoConfig(), objective))
    changed = [name for name, value in own.items() if value != usual.get(name)]
    return ", ".join(filter(None, ["vimpo", settings_text(objective, changed)]))


def measures(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of the value probe -> MEASURES; NaN where the probe has none."""
    rescaled, slope = metrics["explained_variance_linear"], metrics["slope"]
    return {
        ACCURACY: metrics["explained_variance"],
        RESCALED: rescaled,
        ORDER: metrics["spearman"],
        SCALE: rescaled / slope if slope else math.nan,
    }


# --- Units ---------------------------------------------------------------------------------------


def units_of(points: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One row per base policy, group and capacity, with the mean over seeds and its interval.

    Columns: UNIT, where level is the capacity to three digits, n counts seeds, and cut those below
    FLOOR.
    """
    own = _grouped(points, measure)
    unit = ["base", "group", "level"]
    places = own.groupby(unit, sort=False).indices
    columns = {name: column.to_numpy() for name, column in own.items()}
    rows = []
    for key in dict.fromkeys(zip(*(columns[name] for name in unit), strict=True)):
        at = places[key]
        values = columns["value"][at]
        kept = np.maximum(values, FLOOR) if measure == ACCURACY else values
        found = mean_interval(kept, CONFIDENCE, BOUNDS.get(measure, UNBOUNDED))
        shared = dict(zip(unit, key, strict=True))
        shared |= {name: columns[name][at[0]] for name in ("study", "size")}
        shared |= {name: columns[name][at].mean() for name in ("capacity", "params", "tokens")}
        spread = {"mean": found.value, "low": found.low, "high": found.high, "n": found.n}
        rows.append(shared | spread | {"cut": int((kept > values).sum())})
    return pd.DataFrame(rows, columns=UNIT)


def _grouped(points: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The points of a measure, with the group and level of their unit."""
    own = points[(points["measure"] == measure) & points["value"].notna()].copy()
    own["level"] = [float(f"{x:.3g}") for x in own["capacity"]]
    own["group"] = own["family"] + "; " + own["prefixes"] + " prefixes"
    return own


def fitted(points: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The points behind :func:`fit`: without units that are alone at their capacity."""
    used = Curve(units_of(points, measure)).units[["base", "group", "level"]]
    return _grouped(points, measure).merge(used, on=["base", "group", "level"])


def main_group(units: pd.DataFrame) -> str:
    """The group with the most units, the first of equals."""
    return str(units["group"].mode(dropna=False).iloc[0]) if len(units) else ""


# --- Fits ----------------------------------------------------------------------------------------


class Curve:
    """What capacity alone explains, as columns of a regression.

    Capacities repeat if at least half of the units are at one that another base policy of their
    group has too; the others then say nothing of the remainders and are left out. One base policy
    has nothing to be repeated by: its capacities are intercepts.
    """

    def __init__(self, units: pd.DataFrame):
        cells = units.groupby(["group", "level"])["base"].transform("nunique")
        alone = units["base"].nunique() == 1
        self.levels = alone or bool((cells > 1).mean() >= 0.5)
        self.units = units[alone | (cells > 1)] if self.levels else units
        self.groups = list(dict.fromkeys(self.units["group"]))
        self.cells = sorted(set(zip(self.units["group"], self.units["level"], strict=True)))
        self.degree = min(2, units["level"].nunique() - 1)
        self.centre = float(np.log10(units["capacity"]).mean())

    @property
    def kind(self) -> str:
        return "levels" if self.levels else "quadratic"

    def columns(self, groups: Sequence[str], capacities: Sequence[float]) -> np.ndarray:
        """Groups [n] and capacities [n] (levels, if the curve has them) -> [n, p]"""
        pairs = list(zip(groups, capacities, strict=True))
        if self.levels:
            return np.array([[float(pair == cell) for cell in self.cells] for pair in pairs])
        powers = range(1, self.degree + 1)
        return np.array(
            [
                [float(group == own) for own in self.groups]
                + [(math.log10(at) - self.centre) ** k for k in powers]
                for group, at in pairs
            ]
        )

    def places(self, group: str) -> list[float]:
        """Capacities at which the curve of a group is drawn."""
        if self.levels:
            return [level for own, level in self.cells if own == group]
        at = self.units.loc[self.units["group"] == group, "capacity"]
        return np.geomspace(at.min(), at.max(), GRID).tolist()


def distinct(values: np.ndarray) -> int:
    """How many sizes or lengths there are; those within SAME of the next are one."""
    return 1 + int((np.diff(np.sort(np.log10(values))) > math.log10(SAME)).sum())


def fit(points: pd.DataFrame, measure: str) -> list[dict]:
    """Rows of capacity_remainder.csv for one measure."""
    everything = units_of(points, measure)
    main = main_group(everything)
    shared = {"measure": measure, "group": main, "units": 0, "curve": ""}
    if not len(everything):
        nothing = not_available(NO_UNITS, 0)
        return [_row(shared, term, nothing) for term in AXES]
    curve = Curve(everything)
    units = curve.units
    shared |= {"units": len(units), "curve": curve.kind}
    at = units["level"] if curve.levels else units["capacity"]
    logs = {term: np.log10(units[column].to_numpy(float)) for term, (column, _) in AXES.items()}
    used = [term for term in AXES if distinct(units[AXES[term][0]].to_numpy(float)) > 1]
    slopes = [logs[term] - logs[term].mean() for term in used]
    X = np.column_stack([curve.columns(units["group"].tolist(), at.tolist()), *slopes])
    y, bases = units["mean"].to_numpy(float), units["base"].to_numpy(str)
    first = X.shape[1] - len(used)
    rows = []
    for term, (_, why) in AXES.items():
        if term in used:
            found = coefficient(y, X, bases, first + used.index(term), CONFIDENCE)
        else:
            found = not_available(why, units["base"].nunique())
        rows.append(_row(shared, term, found))
    places, intercepts = curve.places(main), solve(y, X)[:first]
    for place, height in zip(
        places, curve.columns([main] * len(places), places) @ intercepts, strict=True
    ):
        rows.append(_row(shared, CURVE, _point(float(height), units["base"].nunique()), place))
    return rows + (_per_capacity(everything, shared) if measure == SCALE else [])


def _per_capacity(units: pd.DataFrame, shared: dict) -> list[dict]:
    """s / capacity at the lowest capacities of the main group, over base policies."""
    own = units[units["group"] == shared["group"]]
    rows = []
    for level in sorted(set(own["level"]))[:LOWEST]:
        there = own[own["level"] == level]
        found = mean_interval(there["mean"] / there["capacity"], CONFIDENCE)
        if found.code == Reason.ONE_SEED:
            found = not_available(ONE_BASE, found.n, found.value)
        rows.append(_row(shared | {"units": len(there)}, PER_CAPACITY, found, level))
    return rows


def _point(value: float, bases: int) -> Estimate:
    return not_available(Why(Reason.COMPUTED, "a fitted value"), bases, value)


def _row(shared: dict, term: str, found: Estimate, capacity: float = math.nan) -> dict:
    """`n` counts base policies."""
    verdict = str(Remains.of(found)) if term in AXES else ""
    where = {"term": term, "capacity": capacity, "verdict": verdict}
    return shared | where | interval_columns(found, found.n, CONFIDENCE)


def law(rows: Sequence[dict], output: Path) -> dict[str, pd.DataFrame]:
    """Write both tables to `output`; returns them by name. rows: of :func:`gather`"""
    points = pd.DataFrame(rows)
    tables = {POINTS: rows, REMAINDER: [row for name in MEASURES for row in fit(points, name)]}
    for name, table in tables.items():
        write_table(output / f"{name}.csv", table)
    return {name: read_table(output, name) for name in tables}
