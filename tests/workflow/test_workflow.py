"""The DAG itself: planned by dry runs, and run once for real on the tiny study."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import snakes
import yaml

ROOT = Path(__file__).parents[2]
TINY = ROOT / "workflow/config/tiny.yaml"


def run(folder, *arguments, **options):
    """Snakemake on the workflow of this checkout, at work in another folder."""
    return snakes.snakemake("--directory", folder, *arguments, **options)


def snakemake(folder, *arguments, config=None, cores="1"):
    """Run the workflow on the tiny study, or on a changed one, whose results are in `folder`."""
    path = TINY
    if config is not None:
        path = folder.with_name(f"{folder.name}.yaml")
        path.write_text(yaml.safe_dump(config))
    return run(folder, "--cores", cores, "--configfile", path, *arguments)


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
def tiny_workflow(shared):
    """Where Snakemake ran the tiny study; tests that change it work on a copy.

    TINY_STUDY, if set, is that place: who runs the tests may look at the study afterwards.
    """

    def make(folder):
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
        command += ["--cores", "2", "--configfile", TINY, "--directory", folder]
        result = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert result.returncode == 0, result.stderr
        assert "Report: results/tiny/report.html" in result.stdout + result.stderr

    kept = os.environ.get("TINY_STUDY")
    made = shared("tiny_study", lambda folder: make(Path(kept) if kept else folder))
    return Path(kept) if kept else made


@pytest.fixture
def copy(tiny_workflow, tmp_path):
    """A copy with the same modification times, which Snakemake goes by."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_workflow, folder, copy_function=shutil.copy2)
    return folder


def test_the_quick_study_is_the_default_and_has_42_cells(tmp_path):
    counts, _ = planned(run(ROOT, "-n", "--nolock", "--config", f"results={tmp_path}"))
    assert counts["pretrain"] == counts["evaluate_base"] == 1
    assert counts["train"] == counts["evaluate"] == 42
    assert not list(tmp_path.iterdir())


def test_the_default_study_is_found_from_elsewhere_and_runs_in_this_interpreter(tmp_path):
    (tmp_path / "empty").mkdir()
    path = {"PATH": f"{tmp_path / 'empty'}:/usr/bin:/bin"}
    result = run(tmp_path, "-n", "-p", "--nolock", cwd=tmp_path, environment=path)
    counts, _ = planned(result)
    assert counts["train"] == 42
    assert "results/quick/report.html" in result.stdout + result.stderr
    commands = [
        line.strip()
        for line in (result.stdout + result.stderr).splitlines()
        if " -m vimpo " in line
    ]
    assert len(commands) > 50
    found = {command.split(" -m ")[0].removeprefix("Shell command: ") for command in commands}
    assert found == {sys.executable}


def test_a_finished_study_holds_its_report_tables_and_figures(tiny_workflow):
    folder = tiny_workflow / "results/tiny"
    report = (folder / "report.html").read_text()
    assert "<svg" in report or "data:image" in report
    accuracy = pd.read_csv(folder / "tables/accuracy.csv")
    assert set(accuracy.algorithm) == {"base", "vimpo", "ppo", "grpo"}
    assert set(accuracy.benchmark) == {"chain_easy", "chain_beyond"}
    assert pd.read_csv(folder / "tables/missing.csv").empty
    manifest = json.loads((folder / "runs/ppo/nano/noise-0.25/seed-1/manifest.json").read_text())
    assert manifest["status"] == "complete"


TIMERS = """
import sys
from snakemake.cli import main
from snakemake.scheduling.job_scheduler import JobScheduler
JobScheduler._schedule_reevalutation = lambda self, delay: print("a timer of", delay)
main()
"""


@pytest.mark.parametrize("limit", [None, pytest.param("7/3s", marks=pytest.mark.slow)])
def test_snakemake_starts_timers_only_for_a_limit_that_was_asked_for(tmp_path, limit):
    """A timer per job that ended, and each starts scheduling once more, and the next timer."""
    words = ["--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--configfile", TINY]
    words += ["--cores", "1", *(["--max-jobs-per-timespan", limit] if limit else [])]
    command = [sys.executable, "-c", TIMERS, *map(str, words), "results/tiny/config.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (tmp_path / "results/tiny/config.yaml").is_file(), done.stderr
    assert ("a timer of 3" in done.stdout) == ("a timer" in done.stdout) == bool(limit)


def test_a_finished_study_has_nothing_left_to_do(tiny_workflow):
    counts, _ = planned(snakemake(tiny_workflow, "-n", "--nolock"))
    assert counts == {}


def test_a_changed_hyperparameter_runs_only_its_algorithm_again(copy):
    config = tiny_config() | {"algorithms": {"vimpo": {"beta": 0.5}}}
    counts, trained = planned(snakemake(copy, "-n", config=config))
    assert trained == ["vimpo"]
    assert counts["train"] == counts["evaluate"] == 1
    assert "pretrain" not in counts
    assert "evaluate_base" not in counts


def test_changed_evaluation_settings_train_nothing_again(copy):
    config = tiny_config() | {"evaluation": {"samples": 3, "batch_size": 20}}
    counts, _ = planned(snakemake(copy, "-n", config=config))
    assert counts["evaluate"] == 3
    assert "train" not in counts
    assert "probe" not in counts


def test_a_folder_of_another_study_is_refused_untouched(copy):
    config = tiny_config()
    config["train"]["steps"] = 4
    before = {p: p.stat().st_mtime_ns for p in copy.glob("results/**/*")}
    assert len(before) > 100
    result = snakemake(copy, config=config)
    assert result.returncode != 0
    assert "train.steps: 3 there, 4 here" in result.stderr + result.stdout
    assert {p: p.stat().st_mtime_ns for p in copy.glob("results/**/*")} == before


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            {"algorithms": ["vimpo", "dpo"]},
            ["grid[0].algorithms: 'dpo' is unknown; allowed: vimpo"],
        ),
        ({"sizes": ["huge"]}, ["grid[0].sizes: 'huge' is unknown"]),
        (
            {"noise": [1.5], "seeds": []},
            ["1.5 is not allowed; allowed: a number in [0, 1]", "grid.0.seeds: [] is not allowed"],
        ),
    ],
)
def test_a_wrong_grid_is_one_clear_error_before_anything_runs(tmp_path, change, messages):
    config = tiny_config()
    config["grid"] |= change
    folder = tmp_path / "work"
    result = snakemake(folder, config=config)
    assert result.returncode != 0
    for message in messages:
        assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("twice.yaml", "study: twice\ntrain: {steps: 3, steps: 4}\n"),
        ("twice.json", '{"study": "twice",\t"train": {"steps": 3, "steps": 4}}'),
        ("twice.conf", '{"study": "twice", "train": {"steps": 3, "steps": 4}}'),
    ],
)
def test_a_key_that_is_given_twice_is_refused_before_snakemake_merges_it(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    result = run(tmp_path, "--cores", "1", "--configfile", path)
    assert result.returncode != 0
    assert "'steps'" in result.stderr + result.stdout
    assert not (tmp_path / "results").exists()


def test_a_failed_cell_stops_no_other_and_is_named_in_the_partial_report(copy):
    study = copy / "results/tiny"
    broken = study / "runs/grpo/nano/noise-0.25/seed-1"
    other = study / "runs/vimpo/nano/noise-0.25/seed-1"
    (broken / "model/config.json").write_text("not a model")
    (broken / "eval.json").unlink()
    (other / "eval.json").unlink()
    shutil.rmtree(study / "tables")
    (study / "report.html").unlink()
    result = snakemake(copy, "--keep-going", cores="2")
    assert result.returncode != 0
    assert (other / "eval.json").exists()
    missing = pd.read_csv(study / "partial/tables/missing.csv")
    assert "evaluate" in missing.stage.tolist()
    assert set(missing.cell) == {"grpo/nano/noise-0.25/seed-1"}
    report = (study / "partial/report.html").read_text()
    assert "grpo/nano/noise-0.25/seed-1" in report


def test_lint_is_clean():
    result = run(ROOT, "--lint")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_a_registered_study_starts_from_one_committed_file_alone(tmp_path):
    def git(*arguments):
        named = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run([*named, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def refused(*arguments):
        result = run(tmp_path, "-n", "--nolock", "--configfile", file, *arguments)
        assert result.returncode
        (line,) = (x for x in (result.stdout + result.stderr).splitlines() if "error: " in x)
        assert "error: registered: " in line
        return line

    file = tmp_path / "registered.yaml"
    file.write_text(yaml.safe_dump(tiny_config() | {"registered": True}))
    git("init", "-q")
    assert f"'{file}' is not committed" in refused()
    git("add", file.name)
    git("commit", "-q", "-m", "registered")
    counts, _ = planned(run(tmp_path, "-n", "--nolock", "--configfile", file))
    assert counts["train"] == 3
    (kept,) = (tmp_path / ".snakemake/studies").glob("*.registered.json")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True)
    assert json.loads(kept.read_text())["commit"] == commit.stdout.decode().strip()
    assert "is not all of this study" in refused("--config", "study=another")
    second = tmp_path / "second.yaml"
    second.write_text("train: {steps: 3}\n")
    assert f"comes from '{file}', '{second}'" in refused(second)
    file.write_text(file.read_text() + "claims: {value_accuracy: 0.1}\n")
    assert "has changed since it was committed" in refused()


@pytest.mark.slow
def test_only_what_needs_a_number_waits_for_the_surprisal(tmp_path):
    def waiting(folder, config):
        """(rule, algorithm) of the jobs that need it."""
        result = snakemake(tmp_path / folder, "-n", config=config)
        assert planned(result)[0]["surprisal"] == 1
        return {
            (re.search(r"rule (\w+):", job)[1], job.split("algorithm=")[-1].split(",")[0])
            for job in re.split(r"\n *(?=\[)", result.stdout + result.stderr)
            if "rule " in job and "base/nano/surprisal.json" in job.split("output:")[0]
        }

    config = tiny_config()
    assert {rule for rule, _ in waiting("fixed", config)} == {"aggregate"}
    config["algorithms"] = {"vimpo": {"beta": {"capacity": 0.5}}}
    found = waiting("given", config)
    assert {rule for rule, _ in found} == {"train", "probe", "cost", "aggregate"}
    assert {name for rule, name in found if rule == "train"} == {"vimpo"}
    # The values of all policies are read out at VIMPO's beta.
    assert {name for rule, name in found if rule == "probe"} == {"vimpo", "ppo", "grpo"}
