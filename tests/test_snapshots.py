"""Snapshots through all stages: trained, evaluated, probed, and in the tables by step."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

from vimpo.analysis.aggregate import aggregate
from vimpo.cli import main
from vimpo.config import Cell, dump_yaml
from vimpo.storage.archive import archived_rows, check_archive
from vimpo.storage.tables import read_table

RUN = Cell("vimpo", "tiny", "rollout-0.25", 1)
STEPS = [2, 6]
PROBES = {"problems": 3, "continuations": 4, "baseline_continuations": 4, "credit_rollouts": 6}


@pytest.fixture
def study(tiny_study):
    return tiny_study(
        train={"snapshots": STEPS, "validation": {"every": 3, "problems": 4}},
        grid={"algorithms": ["vimpo"]},
        evaluation={"pass_at": [2], "decoders": {"training": {}}},
        probes=PROBES,
    )


@pytest.fixture
def vimpo(study, tmp_path):
    """Runs a command on the run: exit code."""
    config = tmp_path / "study.yaml"
    config.write_text(dump_yaml(study))

    def run(command, *options):
        named = [f"--{name}={value}" for name, value in vars(RUN).items()]
        return main([command, f"--config={config}", *named, *options])

    return run


@pytest.mark.slow
def test_snapshots_are_evaluated_probed_and_aggregated(study, vimpo, capsys):
    assert vimpo("train", "--quiet") == 0
    for step in STEPS:
        assert vimpo("evaluate", f"--step={step}") == vimpo("probe", f"--step={step}") == 0
    assert vimpo("evaluate") == vimpo("probe") == 0
    tables = study.folder / "tables"
    aggregate(study, tables)
    accuracy, probes, curves = (
        read_table(tables, name) for name in ("snapshot_accuracy", "snapshot_probes", "curves")
    )
    assert "snapshot" not in set(read_table(tables, "missing")["stage"])

    # The last snapshot is the end of training, and scores like it.
    end = read_table(tables, "accuracy").query("algorithm == 'vimpo'")
    last = accuracy[accuracy["step"] == 6].drop(columns="step").reset_index(drop=True)
    pd.testing.assert_frame_equal(last, end.reset_index(drop=True), check_like=True)
    assert set(accuracy["step"]) == set(probes["step"]) == set(STEPS)
    assert {"sampled", "sampled_pass@2", "greedy", "training"} <= set(accuracy["metric"])
    at_end = read_table(tables, "probes")
    assert len(at_end) == (probes["step"] == 6).sum()

    # As curves: means over benchmarks, validation by decoder, and the KL at both ends.
    curve = curves.set_index(["metric", "step"])["value"]
    mean = accuracy.query("metric == 'training' and step == 2")["value"].mean()
    assert curve["evaluated.training", 2] == pytest.approx(mean)
    for step in (0, 3, 6):
        assert 0 <= curve["validation_accuracy.greedy", step] <= 1
    probed = probes.query("step == 2 and metric == 'auc' and predictor == 'implied_td'")["value"]
    assert curve["credit.implied_td.auc", 2] == pytest.approx(probed.iloc[0], nan_ok=True)
    summary = read_table(tables, "curves_summary").set_index(["metric", "step"])
    assert summary.loc["validation_accuracy.sampled", 3]["window"] == 1

    # Archived only because there are some, whole.
    check_archive(tables / "cells")
    kept = archived_rows(tables / "cells", "snapshot_probes")
    assert {row["position"] for row in kept} > {"all"}

    # What is gone is named.
    (study.run_folder(RUN, 2) / "eval.json").unlink()
    aggregate(study, tables)
    (gone,) = read_table(tables, "missing").query("stage == 'snapshot'")["reason"]
    assert gone == "step 2: eval.json is missing"
    assert set(read_table(tables, "snapshot_accuracy")["step"]) == {6}


@pytest.mark.parametrize("command", ["evaluate", "probe"])
def test_a_step_without_a_snapshot_is_refused(study, vimpo, capsys, command):
    assert vimpo(command, "--step=3") == 2
    assert capsys.readouterr().err == (
        "error: step: 3 has no snapshot in this study; allowed: 2, 6\n"
    )


def test_a_base_policy_has_no_snapshot(study, vimpo, capsys):
    assert vimpo("evaluate", "--base", "--step=2") == 2
    assert "step: 2 is of a run; allowed: without --base" in capsys.readouterr().err


def test_a_damaged_snapshot_is_refused(study, vimpo, capsys):
    assert vimpo("train", "--quiet") == 0
    weights = study.run_folder(RUN, 2) / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert vimpo("probe", "--step=2") == 2
    assert "model.safetensors' is damaged" in capsys.readouterr().err


def test_a_run_from_scratch_keeps_no_snapshot_of_another(study, vimpo):
    old = study.run_folder(RUN, 4)
    old.mkdir(parents=True)
    assert vimpo("train", "--quiet") == 0
    assert not old.exists()
    manifest = json.loads((study.run_folder(RUN, 2) / "manifest.json").read_text())
    assert manifest["digest"] == study.cell_digest(RUN)
    assert (manifest["step"], manifest["updates"]) == (2, 2)
    resolved = yaml.safe_load((study.run_folder(RUN) / "config.yaml").read_text())
    assert resolved["train"]["snapshots"] == STEPS
