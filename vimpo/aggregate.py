"""From a folder of runs to tidy tables: one observation a row, nothing averaged over silently.

Every cell of the grid either contributes or stands in `missing.csv` with its reason. A run that was
made by another configuration is refused by name. Figures and report read these tables only.
Rows are in grid order, so bytes repeat.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.config import Cell, ConfigError, Study
from vimpo.summaries import (
    labels,
    metrics_of,
    summarise_accuracy,
    summarise_cost,
    summarise_curves,
)
from vimpo.tables import BASE, COLUMNS, write_table

STEP_PHASES = ("rollout_s", "reference_s", "critic_s", "update_s", "total_s")
# A gap in any of these means a broken run; other columns may be undefined at single steps.
ALWAYS_FINITE = ("accuracy", "reward", "loss", "grad_norm")


# --- Reading runs --------------------------------------------------------------------------------


class IncompleteError(Exception):
    """A stage of a cell has no usable result; carries the reason."""


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise IncompleteError(f"{path.name} is missing")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise IncompleteError(f"{path.name} is not valid JSON: {error}") from None


def _manifest(folder: Path, digest: str, name: str) -> dict:
    """Manifest of a complete run. Raises IncompleteError, or ConfigError for a foreign one."""
    manifest = _read_json(folder / "manifest.json")
    found = manifest.get("digest")
    if found != digest:
        raise ConfigError(
            f"results: '{name}' was made by another configuration (digest {found} in '{folder}'); "
            f"allowed: {digest}; remove the folder, or use the configuration beside its results"
        )
    if (status := manifest.get("status", "complete")) != "complete":
        raise IncompleteError(f"the run is {status}")
    return manifest


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise IncompleteError(f"{path.name} is missing")
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise IncompleteError(f"{path.name} is not a table: {error}") from None
    if frame.empty or "step" not in frame:
        raise IncompleteError(f"{path.name} has no rows")
    return frame


def _scores(folder: Path, study: Study) -> list[dict]:
    """Results of lm-eval: every benchmark of the study with every metric, all finite.

    Problems and samples must be those of the study, or scores of two settings would be compared.
    """
    results = _read_json(folder / "eval.json").get("results", [])
    found = {(r["benchmark"], r["metric"]): r for r in results}
    wanted = list(itertools.product(study.task.benchmarks, metrics_of(study)))
    if absent := [f"{b} {m}" for b, m in wanted if (b, m) not in found]:
        raise IncompleteError(f"eval.json lacks {', '.join(absent)}")
    rows = [found[key] for key in wanted]
    for row in rows:
        problems = study.task.benchmarks[row["benchmark"]].problems
        samples = study.samples_of(row["benchmark"]) if row["metric"] == "sampled" else 1
        for field, asked in (("problems", problems), ("samples", samples)):
            if asked is not None and row[field] != asked:
                raise IncompleteError(
                    f"eval.json has {row[field]} {field} of {row['benchmark']} {row['metric']}, "
                    f"the study asks for {asked}: it is of another evaluation"
                )
    bad = [f"{r['benchmark']} {r['metric']}" for r in rows if not _finite(r["value"])]
    if bad:
        raise IncompleteError(f"eval.json is not finite: {', '.join(bad)}")
    return [r | {"stderr": r["stderr"] if _finite(r["stderr"]) else math.nan} for r in rows]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class Collection:
    """Rows of all tables, filled run by run."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.tables: dict[str, list[dict]] = {name: [] for name in COLUMNS}
        self.params: dict[str, float] = {}
        self.seen: dict[tuple[str, str], int] = {}

    def missing(self, cell: str, stage: str, reason: object) -> None:
        self.tables["missing"].append({"cell": cell, "stage": stage, "reason": str(reason)})

    def base(self, size: str) -> None:
        folder, name = self.study.base_folder(size), f"{BASE}/{size}"
        key = labels(BASE, size, "0")
        try:
            manifest = _manifest(folder, self.study.base_digest(size), name)
        except IncompleteError as reason:
            self.missing(name, "pretrain", reason)
            return
        self.params[size] = manifest.get("parameters", math.nan)
        key["params"] = self.params[size]
        self._provenance(manifest)
        self._costs(key, manifest, None)
        self._evaluation(folder, name, key)

    def cell(self, cell: Cell) -> None:
        folder = self.study.run_folder(cell)
        key = labels(cell.algorithm, cell.size, cell.noise) | {"seed": cell.seed}
        try:
            manifest = _manifest(folder, self.study.cell_digest(cell), cell.name)
            metrics = _read_csv(folder / "metrics.csv")
        except IncompleteError as reason:
            self.missing(cell.name, "train", reason)
            return
        params = manifest.get("parameters", math.nan)
        if self.params.setdefault(cell.size, params) != params:
            raise ConfigError(
                f"results: '{cell.name}' has {params} parameters, other runs of size '{cell.size}' "
                f"have {self.params[cell.size]}; allowed: one model a size"
            )
        key["params"] = params
        self._provenance(manifest)
        self._curves(key, metrics, cell.name)
        self._costs(key, manifest, folder, metrics)
        self._evaluation(folder, cell.name, key)

    def _evaluation(self, folder: Path, name: str, key: dict) -> None:
        try:
            scores = _scores(folder, self.study)
        except IncompleteError as reason:
            self.missing(name, "evaluate", reason)
            return
        self.tables["accuracy"] += [key | score for score in scores]

    def _curves(self, key: dict, metrics: pd.DataFrame, name: str) -> None:
        numeric = metrics.drop(columns="step").apply(pd.to_numeric, errors="coerce")
        bad = {c: int((~np.isfinite(numeric[c])).sum()) for c in ALWAYS_FINITE if c in numeric}
        if bad := {c: n for c, n in bad.items() if n}:
            listed = ", ".join(f"{c} at {n} of {len(numeric)} steps" for c, n in bad.items())
            self.missing(name, "train", f"not finite: {listed}")
        for metric in numeric.columns:
            self.tables["curves"] += [
                key | {"step": int(step), "metric": metric, "value": value}
                for step, value in zip(metrics["step"], numeric[metric], strict=True)
            ]

    def _costs(
        self, key: dict, manifest: dict, folder: Path | None, metrics: pd.DataFrame | None = None
    ) -> None:
        """Manifest fields, medians of the step timings, and the rates that follow from them."""
        costs: list[tuple[str, str, float]] = [
            (f"step_{phase.removesuffix('_s')}", "s", median)
            for phase, median in self._step_medians(folder, key).items()
        ]
        step = dict((name, value) for name, _, value in costs).get("step_total", math.nan)
        if metrics is not None and step > 0:
            rollouts = self.study.rollouts_per_step
            length = metrics.get("response_length", pd.Series([math.nan])).median()
            costs.append(("rollouts_per_second", "1/s", rollouts / step))
            costs.append(("tokens_per_second", "1/s", rollouts * length / step))
        for name, unit in (
            ("peak_memory_mb", "MB"),
            ("trainable_parameters", "count"),
            ("resident_parameters", "count"),
            ("optimizer_bytes", "B"),
            ("wall_s", "s"),
        ):
            costs.append((name, unit, manifest.get(name, math.nan)))
        phases = manifest.get("phases_s") or {}
        costs += [(f"wall_{phase}", "s", seconds) for phase, seconds in phases.items()]
        self.tables["cost"] += [
            key | {"metric": name, "unit": unit, "value": value}
            for name, unit, value in costs
            if _finite(value)
        ]

    def _step_medians(self, folder: Path | None, key: dict) -> dict[str, float]:
        if folder is None:
            return {}
        try:
            timing = _read_csv(folder / "timing.csv")
        except IncompleteError as reason:
            name = Cell(key["algorithm"], key["size"], key["noise"], key["seed"]).name
            self.missing(name, "timing", reason)
            return {}
        return {p: float(timing[p].median()) for p in STEP_PHASES if p in timing}

    def _provenance(self, manifest: dict) -> None:
        facts = {"git_commit": manifest.get("git_commit")}
        for group in ("versions", "hardware"):
            value = manifest.get(group)
            if isinstance(value, dict):
                facts |= {f"{group}.{k}": v for k, v in value.items() if v is not None}
            elif value is not None:
                facts[group] = value
        for item, value in facts.items():
            if value is not None:
                self.seen[item, str(value)] = self.seen.get((item, str(value)), 0) + 1


# --- Whole study ---------------------------------------------------------------------------------


def aggregate(study: Study, output: Path) -> None:
    """Write every table of `study` into `output`.

    Raises ConfigError where a run was made by another configuration; nothing is written then.
    """
    collection = Collection(study)
    for size in study.used_sizes():
        collection.base(size)
    for cell in study.cells():
        collection.cell(cell)
    tables = collection.tables

    def frame(name: str) -> pd.DataFrame:
        return pd.DataFrame(tables[name], columns=COLUMNS[name])

    tables["summary"] = summarise_accuracy(frame("accuracy"), study, collection.params)
    tables["curves_summary"] = summarise_curves(frame("curves"), study)
    tables["cost_summary"] = summarise_cost(frame("cost"), study)
    tables["provenance"] = [
        {"item": item, "value": value, "count": count}
        for (item, value), count in sorted(collection.seen.items())
    ] + _digests(study)
    for name, rows in tables.items():
        write_table(Path(output) / f"{name}.csv", rows)


def _digests(study: Study) -> list[dict]:
    digests: dict[tuple[str, str], int] = {}
    for cell in study.cells():
        key = (f"configuration.{cell.algorithm}/{cell.size}", study.cell_digest(cell))
        digests[key] = digests.get(key, 0) + 1
    digests["configuration.evaluation", study.evaluation_digest()] = 1
    return [{"item": i, "value": v, "count": c} for (i, v), c in digests.items()]
