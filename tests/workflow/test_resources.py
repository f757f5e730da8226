"""What jobs ask of a machine or a scheduler, read from dry runs; nothing is computed."""

import re
from pathlib import Path

import pytest
import yaml
from snakes import snakemake

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "workflow/config"


def dry_run(config, results, *arguments):
    """Text of a dry run of the whole study."""
    words = ["-n", "--nolock", *arguments, "--configfile", config, "--config", f"results={results}"]
    done = snakemake(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def resources(text):
    """rule -> the resource lines of its jobs, as mappings."""
    found, rule = {}, None
    for line in map(str.strip, text.splitlines()):
        if match := re.match(r"(?:local)?rule (\w+):", line):
            rule = match[1]
        if line.startswith("resources: "):
            pairs = (pair.split("=", 1) for pair in line.removeprefix("resources: ").split(", "))
            found.setdefault(rule, []).append(dict(pairs))
    return found


def counts(text):
    """Jobs by rule, from the table of a dry run."""
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}


@pytest.fixture(scope="module")
def cuda_study(tmp_path_factory):
    """A dry run of the tiny study on a GPU, with a larger size on another partition."""
    folder = tmp_path_factory.mktemp("cuda")
    config = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    config["sizes"]["large"] = config["sizes"]["nano"] | {"memory_mb": 9000}
    config["grid"]["sizes"] = ["nano", "large"]
    config["runtime"] = {"device": "cuda", "threads": 4}
    config["cluster"] = {
        "partition": "gpu",
        "minutes": {"evaluate": 7},
        "sizes": {"large": {"partition": "gpu-large", "minutes": {"train": 500}}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    return dry_run(folder / "study.yaml", folder / "results", "--cores", "8")


def test_jobs_that_compute_ask_for_gpu_memory_time_and_partition(cuda_study):
    found = resources(cuda_study)
    for rule in ("pretrain", "train", "evaluate", "evaluate_base", "probe", "cost"):
        assert {job["gpu"] for job in found[rule]} == {"1"}
        assert {(job["slurm_partition"], job["mem_mb"]) for job in found[rule]} == {
            ("gpu", "2000"),
            ("gpu-large", "9000"),
        }
    assert {job["runtime"] for job in found["evaluate"]} == {"7"}
    assert {job["runtime"] for job in found["train"]} == {"240", "500"}
    assert "threads: 4" in cuda_study


def test_a_cell_is_one_job(cuda_study):
    groups = cuda_study.split("Group job cell")[1:]
    assert len(groups) == 6
    for group in groups:
        rules = re.findall(r"^ +rule (\w+):$", group, re.MULTILINE)
        assert sorted(rules) == ["evaluate", "probe", "train"]


def test_a_cell_may_be_three_jobs(tmp_path):
    config = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    config["cluster"] = {"one_job_a_cell": False}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    assert "Group job" not in dry_run(tmp_path / "study.yaml", tmp_path / "results")


@pytest.mark.parametrize(
    ("name", "cells", "sizes"),
    [("paper", 96, 4), pytest.param("gpu", 126, 7, marks=pytest.mark.slow)],
)
def test_large_studies_print_their_whole_dag_in_seconds(tmp_path, name, cells, sizes):
    found = counts(dry_run(CONFIGS / f"{name}.yaml", tmp_path / "results", "--quiet", "rules"))
    assert found["train"] == found["evaluate"] == found["probe"] == cells
    assert found["pretrain"] == found["evaluate_base"] == found["cost"] == sizes
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_the_fast_scheduler_needs_no_flag_and_joins_other_profiles(tmp_path, cuda_study, profile):
    used = "workflow specific profile profiles/default"
    assert used in cuda_study
    if profile == "slurm":
        pytest.importorskip("snakemake_executor_plugin_slurm")
    arguments = ("--profile", f"workflow/profiles/{profile}", "--quiet", "rules")
    both = dry_run(CONFIGS / "tiny.yaml", tmp_path / "results", *arguments)
    assert f"workflow/profiles/{profile} and {used}" in both
    assert counts(both)["train"] == 3
