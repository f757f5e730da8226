"""From a folder of runs to tidy tables: one observation per row, nothing averaged silently.

Every cell of the grid either contributes or stands in `missing.csv` with its reason; so does a run
of another configuration. Figures and report read only these tables. Rows are in grid order, so
bytes repeat.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.analysis.along import Point, snapshot_points, validation_points
from vimpo.analysis.claims import claim_rows
from vimpo.analysis.comparisons import compare_accuracy
from vimpo.analysis.frontier import frontier_rows
from vimpo.analysis.headroom import headroom_rows
from vimpo.analysis.reading import (
    IncompleteError,
    is_finite,
    read_manifest,
    read_measured_cost,
    read_outcome,
    read_probes,
    read_scores,
    read_series,
)
from vimpo.analysis.scores import Tables
from vimpo.analysis.summaries import (
    labels,
    summarise_accuracy,
    summarise_cost,
    summarise_curves,
    summarise_measured,
    summarise_outcomes,
    summarise_probes,
)
from vimpo.config import Cell, ConfigError, Study
from vimpo.models.memory import projection
from vimpo.storage.archive import FOLDER as ARCHIVE
from vimpo.storage.archive import archived, write_archive
from vimpo.storage.columns import COLUMNS, SNAPSHOTS, curves_of
from vimpo.storage.continued import taken_over
from vimpo.storage.integrity import SUMS, sealing
from vimpo.storage.manifests import (
    BASE_SURPRISAL,
    BASE_WEIGHTS,
    CONVERTED,
    weights,
    write_manifests,
)
from vimpo.storage.manifests import FILE as MANIFESTS
from vimpo.storage.registration import registered_items
from vimpo.storage.surprisal import Surprisal, betas_at, read_surprisal
from vimpo.storage.tables import BASE, WHOLE, read_table, section_digests, write_tables

STEP_PHASES = ("rollout_s", "reference_s", "critic_s", "update_s", "total_s")
# A gap in any of these means a broken run; other columns may be undefined at single steps.
ALWAYS_FINITE = ("accuracy", "reward", "loss", "grad_norm")
AT_SOME_STEPS = ("reference_kl",)
VALIDATED = {"step", "accuracy", "flawless", "problems", "samples", "stderr"}


class Collection:
    """Rows of all tables, collected run by run: from its folder, or from a published study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.taken = taken_over(study)
        self.tables: dict[str, list[dict]] = {name: [] for name in COLUMNS}
        self.params: dict[str, float] = {}
        self.manifests: dict[str, dict] = {}
        self.seen: dict[tuple[str, str], int] = {}

    def frame(self, name: str) -> pd.DataFrame:
        return pd.DataFrame(self.tables[name], columns=COLUMNS[name])

    def numbers(self) -> Tables:
        """Scores and curves of single runs, and measurements of cost."""
        names = ["accuracy", "probes", "measured_cost", "outcomes", "curves"]
        names += SNAPSHOTS * bool(self.study.hypotheses)
        return Tables(**{name: self.frame(name) for name in names})

    def provenance(self) -> list[dict]:
        return [
            {"item": item, "value": value, "count": count}
            for (item, value), count in sorted(self.seen.items())
        ]

    def missing(self, cell: str, stage: str, reason: object) -> None:
        self.tables["missing"].append({"cell": cell, "stage": stage, "reason": str(reason)})

    def base(self, size: str) -> None:
        folder, name = self.study.base_folder(size), f"{BASE}/{size}"
        key = labels(BASE, size, "0")
        taken = self.taken.manifests.get(name)
        try:
            manifest = taken or read_manifest(folder, self.study.base_digest(size))
        except IncompleteError as reason:
            self.missing(name, "pretrain", reason)
            return
        self.params[size] = manifest.get("parameters", math.nan)
        self.manifests[name] = manifest
        key["params"] = self.params[size]
        if not taken and (surprisal := read_surprisal(self.study, size)):
            manifest[BASE_SURPRISAL] = surprisal.to_json()
        self._capacity(size, manifest)
        self._provenance(manifest)
        self._saw(f"{BASE_WEIGHTS}.{size}", weights(manifest))
        if made_of := manifest.get(CONVERTED):
            self._saw(f"{CONVERTED}.{size}", f"{made_of['file']}, sha256 {made_of['sha256']}")
        if taken:
            self._take_over(name)
            return
        self._costs(key, manifest, None)
        self._evaluation(folder, name, key)

    def _capacity(self, size: str, manifest: dict) -> None:
        """Surprisal of a base policy, if it was measured, and the capacities that follow."""
        if (record := manifest.get(BASE_SURPRISAL)) is None:
            return
        found = Surprisal.from_json(record)
        shared = {"size": size, "params": self.params[size]} | found.columns()
        self.tables["capacity"].append({"algorithm": BASE} | shared)
        for name, beta in betas_at(self.study, size).items():
            number = found.beta(beta, size)
            capacity = {"beta": number, "capacity": found.capacity(number)}
            self.tables["capacity"].append({"algorithm": name} | shared | capacity)

    def cell(self, cell: Cell) -> None:
        folder = self.study.run_folder(cell)
        taken = self.taken.manifests.get(cell.name)
        try:
            manifest = taken or read_manifest(folder, self.study.cell_digest(cell))
            metrics = None if taken else read_series(folder / "metrics.csv")
        except IncompleteError as reason:
            self.missing(cell.name, "train", reason)
            return
        params = manifest.get("parameters", math.nan)
        if self.params.setdefault(cell.size, params) != params:
            raise ConfigError(
                f"results: '{cell.name}' has {params} parameters, other runs of size '{cell.size}' "
                f"have {self.params[cell.size]}; allowed: one model per size"
            )
        if not taken and (started := weights(self.manifests.get(f"{BASE}/{cell.size}", {}))):
            manifest[BASE_WEIGHTS] = started
        self.manifests[cell.name] = manifest
        self._provenance(manifest)
        # A run that was taken over may have started from another base policy than those here.
        self._saw(f"{BASE_WEIGHTS}.{cell.size}", manifest.get(BASE_WEIGHTS))
        if taken:
            self._take_over(cell.name)
        else:
            self._run(cell, folder, manifest, metrics)

    def _take_over(self, name: str) -> None:
        for table, rows in self.taken.rows[name].items():
            self.tables[table] += rows

    def _run(self, cell: Cell, folder: Path, manifest: dict, metrics: pd.DataFrame) -> None:
        """What a complete run left in its folder."""
        key = labels(cell.algorithm, cell.size, cell.noise) | {"seed": cell.seed}
        key["params"] = self.params[cell.size]
        outcome = read_outcome(manifest)
        self.tables["outcomes"].append(key | outcome)
        self._curves(key, metrics, cell.name, outcome)
        if self.study.train.validation:
            try:
                looked_at = read_series(folder / "validation.csv", VALIDATED)
                self._points(key, validation_points(looked_at))
            except IncompleteError as reason:
                self.missing(cell.name, "train", reason)
        for step in self.study.train.snapshots:
            self._snapshot(cell, key, step)
        self._costs(key, manifest, folder, metrics)
        self._evaluation(folder, cell.name, key)
        try:
            probes = read_probes(self.study, cell)
        except IncompleteError as reason:
            self.missing(cell.name, "probe", reason)
            return
        self.tables["probes"] += [key | row for row in probes]

    def _snapshot(self, cell: Cell, key: dict, step: int) -> None:
        study, folder = self.study, self.study.run_folder(cell, step)
        try:
            read_manifest(folder, study.cell_digest(cell))
            scores, probes = read_scores(folder, study), read_probes(study, cell, step)
        except IncompleteError as reason:
            self.missing(cell.name, "snapshot", f"step {step}: {reason}")
            return
        at = key | {"step": step}
        self.tables["snapshot_accuracy"] += [at | row for row in scores]
        self.tables["snapshot_probes"] += [at | row for row in probes]
        self._points(key, snapshot_points(step, study.decoders(), scores, probes))

    def _points(self, key: dict, points: Iterable[Point]) -> None:
        self.tables["curves"] += [
            key | {"step": step, "metric": metric, "value": value} for step, metric, value in points
        ]

    def measured_cost(self, size: str) -> None:
        if size in self.taken.sizes:
            self._take_over(f"cost/{size}")
            return
        try:
            self.tables["measured_cost"] += read_measured_cost(self.study, size)
        except IncompleteError as reason:
            self.missing(f"cost/{size}", "cost", reason)

    def _evaluation(self, folder: Path, name: str, key: dict) -> None:
        try:
            scores = read_scores(folder, self.study)
        except IncompleteError as reason:
            self.missing(name, "evaluate", reason)
            return
        self.tables["accuracy"] += [key | score for score in scores]

    def _curves(self, key: dict, metrics: pd.DataFrame, name: str, outcome: dict) -> None:
        numeric = metrics.drop(columns="step").apply(pd.to_numeric, errors="coerce")
        # The step at which a run failed is its result; its numbers need not be finite.
        failed = outcome["outcome"] == "not_finite"
        checked = numeric[metrics["step"] != outcome["step"]] if failed else numeric
        bad = {c: int((~np.isfinite(checked[c])).sum()) for c in ALWAYS_FINITE if c in checked}
        if bad := {c: n for c, n in bad.items() if n}:
            listed = ", ".join(f"{c} at {n} of {len(numeric)} steps" for c, n in bad.items())
            self.missing(name, "train", f"not finite: {listed}")
        for metric in numeric.columns:
            series = zip(metrics["step"].astype(int), numeric[metric], strict=True)
            # Without the steps at which it was not measured.
            known = (pair for pair in series if metric not in AT_SOME_STEPS or pair[1] == pair[1])
            self._points(key, ((step, metric, value) for step, value in known))

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
        critic = manifest.get("critic_pretraining", {})  # once for all seeds
        costs.append(("critic_pretraining", "s", critic.get("seconds", math.nan)))
        phases = manifest.get("phases_s") or {}
        costs += [(f"wall_{phase}", "s", seconds) for phase, seconds in phases.items()]
        self.tables["cost"] += [
            key | {"metric": name, "unit": unit, "value": value}
            for name, unit, value in costs
            if is_finite(value)
        ]

    def _step_medians(self, folder: Path | None, key: dict) -> dict[str, float]:
        if folder is None:
            return {}
        try:
            timing = read_series(folder / "timing.csv")
        except IncompleteError as reason:
            name = Cell(key["algorithm"], key["size"], key["noise"], key["seed"]).name
            self.missing(name, "timing", reason)
            return {}
        return {p: float(timing[p].median()) for p in STEP_PHASES if p in timing}

    def _provenance(self, manifest: dict) -> None:
        self._saw("git_commit", manifest.get("git_commit"))
        for item, registered in registered_items(manifest).items():
            self._saw(item, registered)
        for group in ("versions", "hardware"):
            value = manifest.get(group)
            if isinstance(value, dict):
                for name, part in value.items():
                    self._saw(f"{group}.{name}", part)
            else:
                self._saw(group, value)

    def _saw(self, item: str, value: object) -> None:
        if value is not None:
            self.seen[item, str(value)] = self.seen.get((item, str(value)), 0) + 1


# --- Whole study ---------------------------------------------------------------------------------


def aggregate(study: Study, output: Path) -> None:
    """Write every table of `study` into `output`, and the rows of single runs into its cells/."""
    collection = Collection(study)
    for size in study.used_sizes():
        collection.base(size)
        collection.measured_cost(size)
    for cell in study.cells():
        collection.cell(cell)
    tables, frame, numbers = collection.tables, collection.frame, collection.numbers()
    tables["summary"] = summarise_accuracy(numbers.accuracy, study, collection.params)
    tables["comparisons"] = compare_accuracy(numbers.accuracy, study, collection.params)
    tables["curves_summary"] = summarise_curves(numbers.curves, study)
    tables["outcome_summary"] = summarise_outcomes(numbers.outcomes, study)
    tables["cost_summary"] = summarise_cost(frame("cost"), study)
    tables["probe_summary"] = summarise_probes(numbers.probes, study)
    tables["measured_summary"] = summarise_measured(numbers.measured_cost, study)
    tables["memory_projection"] = projection(study)
    tables["claims"] = claim_rows(study, numbers, collection.params)
    tables["headroom"] = headroom_rows(study, numbers, collection.params)
    tables["frontier"] = frontier_rows(study, numbers, collection.params)
    tables["sweeps"] = [
        row
        for path in map(Path, study.sweeps)
        for row in read_table(path.parent, "sweeps", path.name).to_dict("records")
    ]
    tables["sweeps_curves"] = [
        row
        for path in map(Path, map(curves_of, study.sweeps))
        if path.is_file()
        for row in read_table(path.parent, "sweeps_curves", path.name).to_dict("records")
    ]
    tables["provenance"] = [*collection.provenance(), *_digests(study)]
    files = [*(f"{name}.parquet" for name in archived(tables)), MANIFESTS]
    single_runs = [f"{ARCHIVE}/{name}" for name in files]
    with sealing(Path(output) / SUMS, [*(f"{name}.csv" for name in COLUMNS), *single_runs]):
        write_archive(Path(output) / ARCHIVE, tables)
        write_manifests(Path(output) / ARCHIVE, collection.manifests)
        for name in ("probes", "snapshot_probes"):
            tables[name] = [row for row in tables[name] if row["position"] == WHOLE]
        write_tables(Path(output), tables)


def _digests(study: Study) -> list[dict]:
    """Digests of the configuration: of each cell, of the evaluation, of each section."""
    digests: dict[tuple[str, str], int] = {}
    for cell in study.cells():
        key = (f"configuration.{cell.algorithm}/{cell.size}", study.cell_digest(cell))
        digests[key] = digests.get(key, 0) + 1
    digests["configuration.evaluation", study.evaluation_digest()] = 1
    for section, value in section_digests(study.model_dump(mode="json")).items():
        digests[section, value] = 1
    return [{"item": i, "value": v, "count": c} for (i, v), c in digests.items()]
