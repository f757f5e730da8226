"""Compares two results of one study: is a re-run what was published?

A side is a results folder (its tables, or its runs if they were not aggregated) or a published one,
with rows of single runs in cells/ or, as results/published/quick, with means alone. Cells that both
sides have, made by the same configuration, are compared: to the last digit, and by the yardsticks
of agreement.py. Timings and memory depend on the machine and are reported apart, as is the
precision probe, which measures the machine's arithmetic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from vimpo.analysis.intervals import NAN
from vimpo.compare.agreement import Agreement, agreement
from vimpo.compare.scores import GROUP, Side, compare_scores
from vimpo.config import (
    NO_RESULT,
    PLACEMENT,
    Cell,
    ConfigError,
    Study,
    load_study,
    setting_differences,
)
from vimpo.storage.archive import FOLDER as CELLS
from vimpo.storage.archive import archived_frames
from vimpo.storage.columns import PROBED
from vimpo.storage.manifests import FILE as MANIFESTS
from vimpo.storage.manifests import checksums, read_manifests
from vimpo.storage.tables import BASE, MEAN, WHOLE, check_tables, read_tables

TABLES = (
    "accuracy",
    "missing",
    "curves",
    "curves_summary",
    "probes",
    "probe_summary",
    "cost",
    "cost_summary",
)
SINGLE_RUNS = ("curves", "probes", "cost")
MACHINE_COSTS = ("step_total", "peak_memory_mb")
# The numbers of each table: what identifies one, and the column that holds it.
KEYS = {
    "accuracy": ([*GROUP, "seed", "benchmark", "metric"], "value"),
    "curves": ([*GROUP, "seed", "step", "metric"], "value"),
    "probes": ([*GROUP, "seed", *PROBED], "value"),
    "curves_summary": ([*GROUP, "step", "metric"], "mean"),
    "probe_summary": ([*GROUP, *PROBED], "mean"),
}


@dataclass(frozen=True)
class Comparison:
    """Everything that is known of two sides."""

    rows: pd.DataFrame
    digits: dict[str, tuple[int, int]]
    verdict: str
    agreement: Agreement
    machine: list[dict]
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return int(self.verdict == "different")


# --- Reading -------------------------------------------------------------------------------------


def read_side(path: str | Path, config: Path | None = None) -> Side:
    """Read a results folder, a published one, or a folder of tables.

    config: the study's file, if the folder holds none. Raises ConfigError.
    """
    folder = Path(path)
    tables = next((t for t in (folder / "tables", folder) if (t / "provenance.csv").exists()), None)
    home = folder if tables is None or tables != folder else folder.parent
    file = home / "config.yaml" if (home / "config.yaml").is_file() else config
    if (tables is None and not (folder / "runs").is_dir()) or file is None:
        raise ConfigError(
            f"compare: '{folder}' is not a results folder (config.yaml with tables/ or runs/); "
            "allowed: results/<study>, results/published/<study>, or --config for a folder of runs"
        )
    study = load_study(file)
    here = study.model_copy(update={"results": str(home.parent), "study": home.name})
    if tables is not None:
        places = [place for place in (home, tables / CELLS) if (place / MANIFESTS).is_file()]
        manifests = read_manifests(places[0]) if places else {}
        return Side(folder, study, _checked(study, tables, file), "tables", manifests)
    from vimpo.analysis.aggregate import aggregate

    with tempfile.TemporaryDirectory() as aside:
        aggregate(here, Path(aside))
        manifests = read_manifests(Path(aside) / CELLS)
        return Side(folder, study, _checked(here, Path(aside), None), "runs", manifests)


def _checked(study: Study, folder: Path, file: Path | None) -> dict[str, pd.DataFrame]:
    names = [name for name in (*TABLES, "summary") if (folder / f"{name}.csv").is_file()]
    frames = read_tables(folder, [*names, "accuracy", "missing"])
    empty = {"summary": pd.DataFrame({"confidence": pd.Series(dtype=float)})}
    check_tables(study, empty | frames, file)
    return frames | archived_frames(folder, SINGLE_RUNS)


# --- Configurations ------------------------------------------------------------------------------


def shared_cells(a: Side, b: Side) -> list[Cell]:
    """Cells that both sides have, in the order of A's grid. Raises ConfigError if there is none."""
    mine, other = a.seeds, b.seeds

    def done(cell: Cell, seeds: dict) -> bool:
        return cell.seed in seeds.get((cell.algorithm, cell.size, cell.noise), ())

    theirs = set(b.study.cells())
    cells = [c for c in a.study.cells() if c in theirs and done(c, mine) and done(c, other)]
    if not cells:
        raise ConfigError(f"compare: '{a.path}' and '{b.path}' have no finished cell in common")
    return cells


def check_configurations(a: Study, b: Study, cells: Iterable[Cell]) -> list[str]:
    """Differences that do not rule out a comparison: those of the machine.

    Raises ConfigError that names every setting of training or evaluation that differs.
    """
    refused: dict[str, str] = {}
    notes: dict[str, None] = {}
    for cell in cells:
        same = a.cell_digest(cell) == b.cell_digest(cell)
        if same and a.evaluation_digest() == b.evaluation_digest():
            continue
        (old, old_machine), (new, new_machine) = _settings(a, cell), _settings(b, cell)
        for line in setting_differences(old, new, ""):
            refused.setdefault(line.removeprefix("."), cell.name)
        notes |= dict.fromkeys(setting_differences(old_machine, new_machine, "runtime"))
    if refused:
        shown = "; ".join(f"{line} ({name})" for line, name in list(refused.items())[:4])
        more = f" and {len(refused) - 4} more" if len(refused) > 4 else ""
        raise ConfigError(
            f"compare: two configurations: {shown}{more}; allowed: cells of one configuration"
        )
    return list(notes)


def _settings(study: Study, cell: Cell) -> tuple[dict, dict]:
    """What a cell's result depends on, and the kind of machine it was made on."""
    config = study.cell_config(cell).model_dump(mode="json")
    machine = {k: v for k, v in config.pop("runtime").items() if k not in PLACEMENT}
    config["model"] = {k: v for k, v in config["model"].items() if k not in NO_RESULT}
    config["evaluation"] = study.evaluation.model_dump(mode="json")
    return config, machine


# --- Digits --------------------------------------------------------------------------------------


def equal_digits(a: Side, b: Side, cells: list[Cell], probes: bool) -> dict[str, tuple[int, int]]:
    """For each table that both have: how many numbers there are, and how many are unequal.

    Means over seeds are comparable if both sides have the same seeds.
    """
    groups = {(BASE, c.size, "0"): {-1.0} for c in cells}
    for cell in cells:
        groups.setdefault((cell.algorithm, cell.size, cell.noise), set()).add(cell.seed)
    whole = {g for g in groups if a.seeds.get(g) == b.seeds.get(g)}
    found = {}
    for name, (key, value) in KEYS.items():
        raw = name.replace("curves_summary", "curves").replace("probe_summary", "probes")
        both = name in a.tables and name in b.tables
        if not both or ("prob" in name and not probes):
            continue
        if raw != name and raw in a.tables and raw in b.tables:
            continue  # the single runs show it already
        sides = [_of_groups(f, groups if raw == name else whole) for f in _alike(name, a, b)]
        columns = [*key, value]
        x, y = (
            s[columns].assign(**{c: s[c].fillna(-1) for c in key if c == "seed"}) for s in sides
        )
        if "seed" in key:
            x, y = (
                s[[r in groups[tuple(g)] for *g, r in s[[*GROUP, "seed"]].values]] for s in (x, y)
            )
        pairs = x.merge(y, on=key, how="outer", suffixes=("_a", "_b"), indicator=True)
        u, v = pairs[f"{value}_a"], pairs[f"{value}_b"]
        same = ((u == v) | (u.isna() & v.isna())) & (pairs["_merge"] == "both")
        if len(pairs):
            found[name] = (len(pairs), int((~same).sum()))
    return found


def equal_files(a: Side, b: Side, cells: list[Cell]) -> dict[str, tuple[int, int]]:
    """For weights and metrics with checksums on both sides: how many, and how many differ."""
    names = [*(f"{BASE}/{size}" for size in {c.size for c in cells}), *(c.name for c in cells)]
    sides = [
        {
            (n, file): value
            for n in names
            for file, value in checksums(side.manifests.get(n, {})).items()
        }
        for side in (a, b)
    ]
    both = sides[0].keys() & sides[1].keys()
    unequal = sum(sides[0][file] != sides[1][file] for file in both)
    return {"files of weights and metrics": (len(both), unequal)} if both else {}


def _alike(name: str, a: Side, b: Side) -> list[pd.DataFrame]:
    """A table of both sides, as far as both can have it.

    For probes, CSV has whole responses alone, cells/ all positions; of curves and scores, later
    versions of the suite record more metrics.
    """
    frames = [side.tables[name] for side in (a, b)]
    if name.startswith("curves") or name == "accuracy":
        known = set(frames[0]["metric"]) & set(frames[1]["metric"])
        frames = [frame[frame["metric"].isin(known)] for frame in frames]
    if name == "probes" and any(set(frame["position"]) == {WHOLE} for frame in frames):
        return [frame[frame["position"] == WHOLE] for frame in frames]
    return frames


def _of_groups(frame: pd.DataFrame, groups: Iterable[tuple]) -> pd.DataFrame:
    chosen = set(groups)
    return frame[[tuple(g) in chosen for g in frame[GROUP].to_numpy()]]


# --- All of it -----------------------------------------------------------------------------------


def compare(a: Side, b: Side) -> Comparison:
    """Compare B with A. Raises ConfigError for different configurations, or no cell in common."""
    cells = shared_cells(a, b)
    notes = check_configurations(a.study, b.study, cells)
    probes = _probed_alike(a.study, b.study, cells)
    if not probes:
        notes.append("probes: other settings, not compared")
    left_out = [
        f"{len(set(s.study.cells()) - set(cells))} only in {n}" for n, s in (("A", a), ("B", b))
    ]
    notes.insert(0, f"{len(cells)} cell{'s' * (len(cells) > 1)} in common, {', '.join(left_out)}")
    rows = compare_scores(a, b, cells, probes)
    digits = equal_digits(a, b, cells, probes) | equal_files(a, b, cells)
    found = _agreement(rows)
    same = not any(unequal for _, unequal in digits.values())
    verdict = "different" if found.different else "statistically the same"
    if same and not found.different:
        verdict = "byte-equal"
    return Comparison(rows, digits, verdict, found, machine_rows(a, b, cells), notes)


def _probed_alike(a: Study, b: Study, cells: Iterable[Cell]) -> bool:
    algorithms = {cell.algorithm for cell in cells}
    betas = ({x: study.readout_beta(x) for x in algorithms} for study in (a, b))
    return a.probes == b.probes and next(betas) == next(betas)


def _agreement(rows: pd.DataFrame) -> Agreement:
    head = rows[(rows["number"] == f"{MEAN} sampled") & (rows["algorithm"] != BASE)]
    groups: dict[Hashable, dict[str, list[float]]] = {}
    for kind, *group, p in rows[["kind", *GROUP, "p"]].itertuples(index=False):
        groups.setdefault(tuple(group), {}).setdefault(kind, []).append(p)
    return agreement(list(head["p"]), groups)


def machine_rows(a: Side, b: Side, cells: list[Cell]) -> list[dict]:
    """What depends on the machine: hardware and versions that differ, step time and memory."""
    facts = [s.tables["provenance"].groupby("item")["value"].agg(" | ".join) for s in (a, b)]
    items = [i for i in facts[0].index.union(facts[1].index) if not i.startswith(_OWN)]
    rows = [{"item": i, "a": facts[0].get(i, ""), "b": facts[1].get(i, "")} for i in items]
    rows = [row for row in rows if row["a"] != row["b"]]
    medians = [_medians(s) for s in (a, b)]
    for algorithm, size in dict.fromkeys((c.algorithm, c.size) for c in cells):
        for metric in MACHINE_COSTS:
            x, y = (m.get((algorithm, size, metric), NAN) for m in medians)
            rows.append({"item": f"{algorithm} {size} {metric}", "a": f"{x:.4g}", "b": f"{y:.4g}"})
    return rows


def _medians(side: Side) -> pd.Series:
    """Median over the runs of an algorithm at a size; their mean if only that was published."""
    name, value = ("cost", "value") if "cost" in side.tables else ("cost_summary", "mean")
    frame = side.tables.get(name, pd.DataFrame(columns=["algorithm", "size", "metric", value]))
    return frame.groupby(["algorithm", "size", "metric"])[value].median()


_OWN = ("configuration.", "study.")
