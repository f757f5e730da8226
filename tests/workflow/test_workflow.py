"""The DAG itself: planned by dry runs, and run once for real on the tiny study."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TINY = "workflow/config/tiny.yaml"


def snakemake(*arguments, results, config=None, cores="2"):
    """Run the workflow on the tiny study, or on a changed one."""
    path = TINY
    if config is not None:
        path = Path(results).parent / "study.yaml"
        path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--cores", cores, "--configfile", str(path)]
    command += ["--config", f"results={results}", "--nolock", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tiny_config():
    return yaml.safe_load((ROOT / TINY).read_text())


def planned(result):
    """Jobs by rule, and the wildcards of train jobs, from the output of a dry run."""
    assert result.returncode == 0, result.stderr
    lines = (result.stdout + result.stderr).splitlines()
    counts, trained, rule = {}, [], None
    for line in lines:
        words = line.split()
        if line.lstrip().startswith(("rule ", "localrule ")):  # those of a group are indented
            rule = words[1].rstrip(":")
            counts[rule] = counts.get(rule, 0) + 1
        if rule == "train" and line.strip().startswith("wildcards:"):
            trained.append(line.split("algorithm=")[1].split(",")[0])
    return counts, trained


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished tiny study; tests that change it work on a copy."""
    results = tmp_path_factory.mktemp("study") / "results"
    result = snakemake(results=results)
    assert result.returncode == 0, result.stderr
    assert f"Report: {results}/tiny/report.html" in result.stdout + result.stderr
    return results


@pytest.fixture
def copy(finished, tmp_path):
    """A copy with the same modification times, which Snakemake goes by."""
    shutil.copytree(finished, tmp_path / "results", copy_function=shutil.copy2)
    return tmp_path / "results"


def test_the_quick_study_is_the_default_and_has_24_cells(tmp_path):
    command = [sys.executable, "-m", "snakemake", "-n", "--nolock"]
    command += ["--config", f"results={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    counts, _ = planned(result)
    assert counts["pretrain"] == counts["evaluate_base"] == 2
    assert counts["train"] == counts["evaluate"] == 24
    assert not list(tmp_path.iterdir())


def test_a_finished_study_holds_its_report_tables_and_figures(finished):
    folder = finished / "tiny"
    report = (folder / "report.html").read_text()
    assert "<svg" in report or "data:image" in report
    accuracy = pd.read_csv(folder / "tables/accuracy.csv")
    assert set(accuracy.algorithm) == {"base", "vimpo", "ppo", "grpo"}
    assert set(accuracy.benchmark) == {"chain_easy", "chain_beyond"}
    assert pd.read_csv(folder / "tables/missing.csv").empty
    manifest = json.loads((folder / "runs/ppo/nano/noise-0.25/seed-1/manifest.json").read_text())
    assert manifest["status"] == "complete"


def test_a_finished_study_has_nothing_left_to_do(copy):
    # The copy lies elsewhere, so Snakemake has no record of its parameters: by time alone.
    counts, _ = planned(snakemake("-n", "--rerun-triggers", "mtime", results=copy))
    assert counts == {}


def test_a_changed_hyperparameter_runs_only_its_algorithm_again(finished):
    config = tiny_config() | {"algorithms": {"vimpo": {"beta": 0.5}}}
    config_path = finished.parent / "study.yaml"
    counts, trained = planned(snakemake("-n", results=finished, config=config))
    config_path.unlink()
    assert trained == ["vimpo"]
    assert counts["train"] == counts["evaluate"] == 1
    assert "pretrain" not in counts
    assert "evaluate_base" not in counts


def test_changed_evaluation_settings_train_nothing_again(finished):
    config = tiny_config() | {"evaluation": {"samples": 3, "batch_size": 20}}
    counts, _ = planned(snakemake("-n", results=finished, config=config))
    assert counts["evaluate"] == 3
    assert "train" not in counts
    assert "probe" not in counts


def test_a_folder_of_another_study_is_refused_untouched(copy):
    config = tiny_config()
    config["train"]["steps"] = 4
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    result = snakemake(results=copy, config=config)
    assert result.returncode != 0
    assert "train.steps: 3 there, 4 here" in result.stderr + result.stdout
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithms": ["vimpo", "dpo"]}, "grid[0].algorithms: 'dpo' is unknown; allowed: vimpo"),
        ({"sizes": ["huge"]}, "grid[0].sizes: 'huge' is unknown"),
        ({"noise": [1.5]}, "1.5 is not allowed; allowed: a number in [0, 1]"),
        ({"seeds": []}, "grid.0.seeds: [] is not allowed"),
    ],
)
def test_a_wrong_grid_is_one_clear_error_before_anything_runs(tmp_path, change, message):
    config = tiny_config()
    config["grid"] |= change
    result = snakemake(results=tmp_path / "results", config=config)
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "results").exists()


def test_a_key_that_is_given_twice_is_refused_before_snakemake_merges_it(tmp_path):
    path = tmp_path / "twice.yaml"
    results = tmp_path / "results"
    path.write_text(f"study: twice\nresults: {results}\ntrain: {{steps: 3, steps: 4}}\n")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "'steps'" in result.stderr + result.stdout
    assert not results.exists()


def test_a_failed_cell_stops_no_other_and_is_named_in_the_partial_report(copy):
    broken = copy / "tiny/runs/grpo/nano/noise-0.25/seed-1"
    other = copy / "tiny/runs/vimpo/nano/noise-0.25/seed-1"
    (broken / "model/config.json").write_text("not a model")
    (broken / "eval.json").unlink()
    (other / "eval.json").unlink()
    shutil.rmtree(copy / "tiny/tables")
    (copy / "tiny/report.html").unlink()
    triggers = ("--keep-going", "--rerun-triggers", "mtime")
    result = snakemake(*triggers, results=copy)
    assert result.returncode != 0
    assert (other / "eval.json").exists()
    missing = pd.read_csv(copy / "tiny/partial/tables/missing.csv")
    assert "evaluate" in missing.stage.tolist()
    assert set(missing.cell) == {"grpo/nano/noise-0.25/seed-1"}
    report = (copy / "tiny/partial/report.html").read_text()
    assert "grpo/nano/noise-0.25/seed-1" in report


def test_lint_is_clean():
    command = [sys.executable, "-m", "snakemake", "--lint"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
