"""What comes after a run that failed: evaluation, probes, tables, figures and report."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from failing import NAN, cell, collapsing, manifest_of
from fake_results import seal_again, small_study, write_figures, write_results
from safetensors.torch import load_file, save_file

from vimpo.analysis.aggregate import aggregate
from vimpo.analysis.intervals import mean_interval
from vimpo.analysis.reading import read_probes
from vimpo.analysis.scores import CONTROL
from vimpo.config import Cell
from vimpo.evaluation.lm_eval import evaluate_checkpoint
from vimpo.probes.run import probe_run
from vimpo.report.figures import draw_figures
from vimpo.report.labels import styles
from vimpo.report.page import write_report
from vimpo.storage.columns import PUBLISHED_TABLES
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.tables import read_table, read_tables
from vimpo.training.runs import OUTPUTS, train_cell

SMALL_PROBES = {
    "problems": 3,
    "continuations": 4,
    "baseline_continuations": 4,
    "credit_rollouts": 6,
}


def with_weights(folder, change):
    """The same model folder with changed weights."""
    for path in folder.rglob("*.safetensors"):
        tensors = {name: change(tensor) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("algorithm", "broken"), [("vimpo", None), ("vimpo", math.inf), ("ppo", NAN)]
)
def test_a_failed_run_is_evaluated_and_probed_like_any_other(tiny_study, algorithm, broken):
    """Weights that a collapse left, and the worst that there are: none of them finite."""
    study = collapsing(tiny_study, probes=SMALL_PROBES)
    run = cell(algorithm, noise="0")
    folder = train_cell(study, run, quiet=True)
    if broken is not None:
        with_weights(folder / "model", lambda t: torch.full_like(t, broken))
        seal(folder / SUMS, OUTPUTS)
    report = evaluate_checkpoint(
        folder / "model", study, folder / "eval.json", folder / "samples.jsonl.gz", digest="d"
    )
    assert [r["value"] for r in report["results"]] == [0, 0]
    probe_run(study, run, folder / "probes.parquet")
    rows = pd.DataFrame(read_probes(study, run))
    assert set(rows["probe"]) == {"value", "credit", "consistency", "precision"}
    assert (rows["value"].notna() | (rows["reason"] != "")).all()
    if broken is not None:
        implied = rows[(rows["probe"] == "consistency") & (rows["target"] == "td")]
        assert implied["value"].isna().all()


FAILED = {
    Cell("vimpo", "xs", "0.25", 2): ("not_finite", 11, "the loss is not finite at step 11"),
    Cell("grpo", "s", "0", 1): ("collapsed", 20, "no right rollout in 5 steps up to step 20"),
}


@pytest.fixture(scope="module")
def failed_study(tmp_path_factory):
    """The quick grid with two failed runs, whose tables end at their step."""
    study = small_study(tmp_path_factory.mktemp("failed"))
    write_results(study)
    for run, (kind, step, reason) in FAILED.items():
        folder = study.run_folder(run)
        manifest = manifest_of(folder)
        manifest["outcome"] = {"kind": kind, "step": step, "reason": reason}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        metrics = pd.read_csv(folder / "metrics.csv")[: step + 1]
        if kind == "not_finite":
            metrics.loc[step, ["loss", "grad_norm"]] = np.nan
        metrics.to_csv(folder / "metrics.csv", index=False)
        scores = json.loads((folder / "eval.json").read_text())
        for result in scores["results"]:
            result["value"] = 0.0
        (folder / "eval.json").write_text(json.dumps(scores))
        seal_again(folder)
    aggregate(study, study.folder / "tables")
    return study


def table(study, name, **values):
    frame = read_table(study.folder / "tables", name)
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def test_a_failed_run_is_a_result_and_not_missing(failed_study):
    study = failed_study
    assert table(study, "missing").empty
    runs = table(study, "outcomes")
    assert len(runs) == len(study.cells())
    found = runs[runs["outcome"] != "finished"]
    names = zip(found["algorithm"], found["size"], found["noise"], found["seed"], strict=True)
    ends = zip(found["outcome"], found["step"], found["reason"], strict=True)
    assert {Cell(*n): e for n, e in zip(names, ends, strict=True)} == FAILED
    row = table(study, "outcome_summary", algorithm="vimpo", size="xs", noise="0.25").iloc[0]
    assert (row["finished"], row["not_finite"], row["collapsed"], row["n"]) == (1, 1, 0, 2)
    assert (row["mean"], row["expected"], row["method"]) == (0.5, 2, "Clopper-Pearson")
    assert row["low"] < 0.02
    assert row["high"] > 0.98
    rate = table(study, "claims", part="C4.collapse.grpo")
    runs_below = sum(float(c.noise) < CONTROL for c in study.cells() if c.algorithm == "grpo")
    assert rate["effect"].iloc[0] == 1 / runs_below


def test_a_failed_run_enters_accuracy_with_what_it_scored(failed_study):
    of_cell = {"algorithm": "vimpo", "size": "xs", "noise": "0.25", "metric": "sampled"}
    runs = table(failed_study, "accuracy", **of_cell).groupby("seed")["value"].mean()
    assert runs[2] == 0
    row = table(failed_study, "summary", benchmark="mean", **of_cell).iloc[0]
    assert row["n"] == 2
    assert row["mean"] == pytest.approx(mean_interval(runs).value)
    curve = table(
        failed_study,
        "curves_summary",
        algorithm="vimpo",
        size="xs",
        noise="0.25",
        metric="accuracy",
    )
    assert curve["mean"].notna().sum() == 12  # up to the step at which one of the two ended


def test_a_gap_before_the_step_of_failure_is_still_missing(failed_study, tmp_path):
    copy = failed_study.model_copy(update={"results": str(tmp_path)})
    shutil.copytree(failed_study.folder, copy.folder)
    folder = copy.run_folder(Cell("vimpo", "xs", "0.25", 2))
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics.loc[4, "reward"] = np.nan
    metrics.to_csv(folder / "metrics.csv", index=False)
    seal_again(folder)
    aggregate(copy, copy.folder / "tables")
    assert table(copy, "missing")["reason"].tolist() == ["not finite: reward at 1 of 12 steps"]


def test_the_report_counts_failed_runs_and_names_them(failed_study):
    folder = failed_study.folder
    write_figures(folder / "figures")
    write_report(failed_study, folder / "tables", folder / "figures", folder / "report.html")
    text = (folder / "report.md").read_text()
    assert "2 failed in training, which counts as a result" in text
    assert "| vimpo/xs/noise-0.25/seed-2 | not finite | 11 | the loss is not finite at" in text
    assert "| grpo/s/noise-0/seed-1 | collapsed | 20 | no right rollout" in text
    assert "1 of 2 (collapsed: 1; share [0.01, 0.99])" in text
    assert "0 of 2 (share [0.00, 0.84])" in text
    assert "enters every comparison of accuracy like any other run" in text


def test_figures_of_training_are_drawn_of_a_study_with_failed_runs(failed_study, unprinted):
    frames = read_tables(failed_study.folder / "tables", PUBLISHED_TABLES)
    names = ["learning_curves", "accuracy_vs_noise", "headline"]
    looks = styles(frames["summary"]["algorithm"])
    assert len(draw_figures(frames, names, looks, failed_study.folder / "figures")) == 6
