"""A plausible results folder for tests of tables, figures and report: no model is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vimpo.config import Cell, Study, dump_yaml, load_study
from vimpo.probes import COLUMNS as PROBE_COLUMNS
from vimpo.probes.cost import COLUMNS as COST_COLUMNS
from vimpo.report.figures.registry import FIGURES
from vimpo.storage.codes import NO_REASON, Reason, Why
from vimpo.storage.files import write_rows
from vimpo.storage.integrity import SUMS, beside, seal
from vimpo.storage.surprisal import Surprisal, surprisal_digest, surprisal_file

PARAMETERS = {"xs": 107_000, "s": 371_000, "m": 860_000, "l": 2_900_000, "xl": 6_800_000}
PROVENANCE = {
    "versions": {"python": "3.11.9", "torch": "2.13.0"},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "hardware": {"cpu": "test", "cores": 2, "memory_mb": 8000, "gpu": None, "threads": 1},
}
GAIN = {"vimpo": 0.17, "ppo": 0.15, "grpo": 0.13, "vimpo_value_only": 0.11, "grpo_naive": 0.09}
GAIN |= {"oracle": 0.3, "oracle_shuffled": -0.1}
NOISE_LOSS = {"vimpo": 0.15, "ppo": 0.3, "grpo": 0.45}
CONSTANT = Why(Reason.NO_VARIATION, "the prediction does not vary")
HARDNESS = (0.0, 0.1, 0.22, 0.35)
# For tests of other tables: judging claims is a large part of aggregating.
NO_CLAIMS = {"tested": []}


def small_study(folder: Path, **changes: object) -> Study:
    """The quick grid: 2 sizes x 2 noises x 3 algorithms x 2 seeds."""
    quick = {"resamples": 200}  # the bootstrap has its own tests
    return load_study({"study": "fake", "results": str(folder), "statistics": quick} | changes)


def large_study(folder: Path) -> Study:
    """The widest grid that figures must stay readable on: 4 sizes x 4 noises x 7 algorithms."""
    algorithms = {
        "vimpo_beta_high": {"objective": "vimpo", "beta": 0.1},
        "ppo_warm": {"objective": "ppo", "critic_warmup": 5},
    }
    names = ["vimpo", "ppo", "grpo", "vimpo_value_only", "grpo_naive", *algorithms]
    grid = {
        "algorithms": names,
        "sizes": ["xs", "s", "m", "l"],
        "noise": [0, 0.1, 0.25, 0.4],
        "seeds": [1, 2],
    }
    return small_study(folder, algorithms=algorithms, grid=[grid])


def write_results(study: Study, seed: int = 0, unprobed: Collection[str] = ()) -> Path:
    """Write base policies and all runs of `study`; unprobed: noise whose runs have no probes.

    Returns the study's folder.
    """
    rng = np.random.default_rng(seed)
    shutil.rmtree(study.folder, ignore_errors=True)
    study.folder.mkdir(parents=True)
    (study.folder / "config.yaml").write_text(dump_yaml(study))
    for size in study.used_sizes():
        _write_base(study, size, rng)
        write_cost(study, size, rng)
    for cell in study.cells():
        _write_cell(study, cell, rng)
        if cell.noise not in unprobed:
            write_probes(study, cell, rng)
    return study.folder


def base_accuracy(study: Study, size: str) -> float:
    return 0.5 + 0.04 * study.used_sizes().index(size)


def final_accuracy(study: Study, cell: Cell) -> float:
    """Noiseless accuracy at the end of a run, before the difficulty of a benchmark."""
    objective = cell.algorithm.partition("_")[0]
    gain = GAIN.get(cell.algorithm, GAIN.get(objective, 0.15) - 0.03)
    level = study.cell_config(cell).noise.level
    return base_accuracy(study, cell.size) + gain * (1 - NOISE_LOSS.get(objective, 0.3) * level * 3)


def _write_base(study: Study, size: str, rng: np.random.Generator) -> None:
    folder = study.base_folder(size)
    folder.mkdir(parents=True)
    manifest = {
        "digest": study.base_digest(size),
        "status": "complete",
        "parameters": PARAMETERS[size],
        "trainable_parameters": PARAMETERS[size],
        "resident_parameters": PARAMETERS[size],
        "wall_s": 31.5,
        "phases_s": {"startup": 4.5, "pretrain": 27.0},
    }
    _write_json(folder / "manifest.json", manifest | PROVENANCE)
    _write_json(folder / "eval.json", _evaluation(study, base_accuracy(study, size), rng))
    seal_again(folder)


def write_surprisal(study: Study, size: str, surprisal: Surprisal) -> None:
    """As vimpo/training/surprisal.py leaves it beside a base policy."""
    path = surprisal_file(study, size)
    _write_json(path, {"digest": surprisal_digest(study, size)} | surprisal.to_json())
    seal(beside(path), [path.name])


def _write_cell(study: Study, cell: Cell, rng: np.random.Generator) -> None:
    folder = study.run_folder(cell)
    folder.mkdir(parents=True)
    config = study.cell_config(cell)
    (folder / "config.yaml").write_text(dump_yaml(config))
    start, end = base_accuracy(study, cell.size), final_accuracy(study, cell)
    end += rng.normal(0, 0.01)
    steps = np.arange(study.train.steps)
    expected = end + (start - end) * np.exp(-4 * steps / len(steps))
    accuracy = np.clip(expected + rng.normal(0, 0.03, len(steps)), 0, 1)
    metrics = pd.DataFrame(
        {
            "step": steps,
            "accuracy": accuracy,
            "reward": accuracy * (1 - 2 * config.noise.level) + config.noise.level,
            "response_length": 20 + rng.normal(0, 0.5, len(steps)),
            "truncated": 0.01,
            "loss": rng.normal(0.1, 0.01, len(steps)),
            "grad_norm": rng.uniform(0.5, 1.0, len(steps)),
            "entropy": 0.3 + 0.1 * np.exp(-steps / 20),
            "reference_kl": 0.01 * steps,
        }
    )
    objective = config.objective.objective
    parameters = PARAMETERS[cell.size]
    scale = parameters / PARAMETERS["xs"]
    seconds = {
        "rollout_s": 0.3 * scale,
        "reference_s": 0.06 * scale if objective == "vimpo" else 0.0,
        "critic_s": 0.15 * scale if objective == "ppo" else 0.0,
        "update_s": 0.16 * scale,
    }
    timing = pd.DataFrame({"step": steps})
    for phase, value in seconds.items():
        timing[phase] = value * rng.uniform(0.9, 1.2, len(steps))
    timing["total_s"] = timing[list(seconds)].sum(axis=1)
    if objective == "ppo":
        metrics["critic_loss"] = 0.1
        metrics["explained_variance"] = np.linspace(-0.2, 0.4, len(steps))
    metrics.to_csv(folder / "metrics.csv", index=False)
    timing.to_csv(folder / "timing.csv", index=False)
    trained = 2 if objective == "ppo" else 1
    resident = {"vimpo": 2, "ppo": 2}.get(objective, 1)
    wall = float(timing["total_s"].sum())
    manifest = {
        "digest": study.cell_digest(cell),
        "status": "complete",
        "parameters": parameters,
        "trainable_parameters": trained * parameters,
        "resident_parameters": resident * parameters,
        "optimizer_bytes": 8 * trained * parameters,
        "peak_memory_mb": 600 + 40 * (trained + resident) * scale**0.5 + rng.normal(0, 4),
        "wall_s": wall + 7.0,
        "phases_s": {"startup": 7.0} | {k.removesuffix("_s"): wall / 4 for k in seconds},
        "outcome": {"kind": "finished", "step": study.train.steps - 1, "reason": ""},
    }
    _write_json(folder / "manifest.json", manifest | PROVENANCE)
    _write_json(folder / "eval.json", _evaluation(study, end, rng))
    seal_again(folder)


def seal_again(folder: Path) -> None:
    """Seal the files of a run or base policy as its stages would have, after a test edited them."""
    (folder / "samples.jsonl.gz").touch()
    seals = {
        SUMS: ("config.yaml", "metrics.csv", "timing.csv", "model", "manifest.json"),
        "eval.sha256": ("eval.json", "samples.jsonl.gz"),
        "probes.sha256": ("probes.parquet",),
    }
    for sums, parts in seals.items():
        seal(folder / sums, [part for part in parts if (folder / part).exists()])


def _evaluation(study: Study, accuracy: float, rng: np.random.Generator) -> dict:
    results = []
    for (name, benchmark), hardness in zip(study.task.benchmarks.items(), HARDNESS, strict=True):
        for metric, bonus, samples in (
            ("sampled", 0.0, study.evaluation.samples),
            ("greedy", 0.3, 1),
        ):
            if metric == "greedy" and not study.evaluation.greedy:
                continue
            value = min(0.99, accuracy - hardness + bonus + rng.normal(0, 0.01))
            results.append(
                {
                    "benchmark": name,
                    "metric": metric,
                    "value": value,
                    "stderr": float(np.sqrt(value * (1 - value) / benchmark.problems)),
                    "problems": benchmark.problems,
                    "samples": samples,
                }
            )
    return {"digest": study.evaluation_digest(), "results": results, "seconds": 3.0}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_figures(folder: Path) -> Path:
    """Files that the report embeds and links: drawing them takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        (folder / f"{name}.svg").write_text(f"<svg><title>{name}</title></svg>")
        (folder / f"{name}.png").write_bytes(b"")
    return folder


# --- Probes and cost -----------------------------------------------------------------------------


def write_cost(study: Study, size: str, rng: np.random.Generator, rounds: int = 2) -> None:
    """Side-by-side measurements in the format of vimpo/probes/cost.py."""
    rows = []
    for algorithm in study.algorithms_at(size):
        objective, count = study.algorithms[algorithm].objective, PARAMETERS[size]
        trained, resident = (2, 2) if objective == "ppo" else (1, 1 + (objective == "vimpo"))
        seconds = {
            "rollout": 0.3,
            "reference": 0.06 * (objective == "vimpo"),
            "critic": 0.15 * (objective == "ppo"),
            "update": 0.16,
        }
        key = {"algorithm": algorithm, "size": size}
        for turn in range(1, rounds + 1):
            spent = {k: v * count / 1e5 * rng.uniform(0.98, 1.02) for k, v in seconds.items()}
            values = [(f"step_{k}", "s", v) for k, v in spent.items()]
            values += [
                ("step_total", "s", sum(spent.values())),
                ("memory_peak", "bytes", 6e8 + 400 * count * trained + rng.normal(0, 1e6)),
                ("memory_floor", "bytes", 4e8),
                ("memory_above_floor", "bytes", 2e8 + 400 * count * trained + rng.normal(0, 1e6)),
                ("optimizer", "bytes", 8 * trained * count),
                ("parameters", "1", count),
                ("parameters_resident", "1", resident * count),
                ("parameters_trainable", "1", trained * count),
            ]
            row = key | {"kind": "measured", "round": turn}
            rows += [row | {"metric": m, "unit": u, "value": v} for m, u, v in values]
        model = key | {"kind": "model", "round": 0, "unit": "bytes"}
        rows.append(model | {"metric": "memory_above_floor", "value": 9e7 + 300 * count * trained})
    rows = [{c: row[c] for c in COST_COLUMNS} for row in rows]
    path = study.cost_file(size)
    write_rows(path, rows, COST_COLUMNS)
    seal(beside(path), [path.name])


def write_probes(
    study: Study, cell: Cell, rng: np.random.Generator, change: dict | None = None
) -> None:
    """probes.parquet as vimpo/probes writes it. change: (predictor, metric) -> value, or Why."""
    rows = probe_rows(study, cell, rng)
    for row in rows:
        new = (change or {}).get((row["predictor"], row["metric"]))
        if isinstance(new, Why):
            row |= {"value": np.nan, "stderr": np.nan} | new.columns()
        elif new is not None:
            row["value"] = new
    types = {"value": pa.float64(), "stderr": pa.float64(), "n": pa.int64()}
    schema = pa.schema(
        [(name, types.get(name, pa.string())) for name in PROBE_COLUMNS],
        metadata={"digest": study.probe_digest(cell)},
    )
    table = pa.table({c: [row[c] for row in rows] for c in PROBE_COLUMNS}, schema=schema)
    pq.write_table(table, study.run_folder(cell) / "probes.parquet")
    seal_again(study.run_folder(cell))


def probe_rows(study: Study, cell: Cell, rng: np.random.Generator) -> list[dict]:
    """The rows that figures and report use, with plausible numbers."""
    objective = study.algorithms[cell.algorithm].objective
    grown = np.log10(PARAMETERS[cell.size] / PARAMETERS["xs"])
    skill = {"vimpo": 0.4 - 0.1 * grown, "ppo": 0.3, "grpo": 0.1}.get(objective, 0.1)
    places = ["all", *(f"{p:g}" for p in study.probes.positions)]
    found = [
        *_value_rows(objective, skill, places, rng),
        *_credit_rows(objective, skill, rng),
        *_consistency_rows(rng),
        *_precision_rows(rng),
    ]
    rows = [
        (*labels, metric, value, stderr, 160, "1", *(why[0] if why else NO_REASON))
        for labels, metric, value, stderr, *why in found
    ]
    return [dict(zip(PROBE_COLUMNS, row, strict=True)) for row in rows]


def _value_rows(
    objective: str, skill: float, places: list[str], rng: np.random.Generator
) -> Iterator[tuple]:
    predictors = {"implied": skill if objective != "ppo" else 0.1, "group_mean": 0.0}
    if objective == "ppo":
        predictors["critic"] = skill
    for place in places:
        for target, more in (("change", 0.0), ("value", 0.4)):
            for metric, value in (("spread", 0.3), ("mean_stderr", 0.08)):
                yield ("value", "truth", target, place), metric, value, 0.02
            for name, level in predictors.items():
                constant = name == "group_mean" and target == "change"
                labels, noise = ("value", name, target, place), rng.normal(0, 0.03)
                explained = 0.0 if constant else level + more + noise
                yield labels, "explained_variance", explained, 0.0 if constant else 0.08
                yield labels, "rmse", 0.3 - 0.1 * level + noise / 5, 0.02
                if constant:
                    for metric in ("spearman", "slope", "explained_variance_linear", "intercept"):
                        yield labels, metric, np.nan, np.nan, CONSTANT
                    continue
                for metric, value in (
                    ("spearman", level + more),
                    ("slope", 1.2),
                    ("explained_variance_linear", level + more + 0.02),
                ):
                    yield labels, metric, value + noise, 0.07
                yield labels, "intercept", noise, 0.05


def _credit_rows(objective: str, skill: float, rng: np.random.Generator) -> Iterator[tuple]:
    signals = {"implied_td": 0.5 + skill / 2, "implied_gae": 0.5 + skill / 3, "group": 0.5}
    signals["position"] = 0.56
    if objective == "ppo":
        signals |= {"critic_td": 0.62, "critic_gae": 0.45}
    for name, auc in signals.items():
        constant, noise = name == "group", rng.normal(0, 0.02)
        labels = ("credit", name, "step", "all")
        yield labels, "auc", auc + (not constant) * noise, 0.04
        yield labels, "top1", 0.24 + (auc - 0.5) + noise / 2, 0.05
        yield labels, "top1_chance", 0.24 + noise / 9, 0.006
        for offset in range(-10, 11):
            dip = -2.0 * (auc - 0.5) * np.exp(-((offset - 3) ** 2) / 4)
            labels = ("credit", name, "profile", str(offset))
            yield labels, "mean_advantage", -0.5 if constant else dip + noise, 0.05


def _consistency_rows(rng: np.random.Generator) -> Iterator[tuple]:
    for target, metric, value in (
        ("td", "mean", rng.normal(0, 1e-5)),
        ("td", "rms", 0.003 + rng.normal(0, 1e-4)),
        ("terminal", "residual_ratio", 0.95 + rng.normal(0, 0.01)),
        ("terminal", "pearson", 0.2 + rng.normal(0, 0.02)),
    ):
        yield ("consistency", "policy", target, "all"), metric, value, abs(value) / 10


def _precision_rows(rng: np.random.Generator) -> Iterator[tuple]:
    for name, level in (("float32", 1e-5), ("bfloat16_float32_softmax", 0.1), ("bfloat16", 0.11)):
        for place, tokens in (("4", 4), ("16", 16), ("32", 32), ("all", 40)):
            drift = level * np.sqrt(tokens) * rng.uniform(0.9, 1.1)
            for target, metric, scale in (
                ("log_ratio", "rms_drift", 1.0),
                ("implied_value", "rms_drift", 0.02),
                ("implied_value", "relative_drift", 1.0),
            ):
                labels = ("precision", name, target, place)
                yield labels, metric, scale * drift, scale * drift / 8
