r"""A study of real problems from its base policy to its report, at the smallest size there is."""

from __future__ import annotations

import json
import math

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from real_data import byte_model

from vimpo.cli import main

NO_ORACLE = "no oracle grades the steps of this task"
PROBLEMS = [{"problem": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(1, 13)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def study_file(folder, **sections):
    """A dataset study of two algorithms on a random byte model; its YAML file."""
    data = write_lines(folder / "problems.jsonl", PROBLEMS)
    held_out = [{"problem": "What is 1 plus 2?", "answer": "3"}]
    study = {
        "study": "real",
        "results": str(folder / "results"),
        "task": {
            "kind": "dataset",
            "datasets": [{"path": data}],
            "prompt": "{problem} Put the answer in \\boxed{}.",
            "max_prompt": 80,
            "verifier": {"workers": 1},
            "benchmarks": {
                "aime25": {
                    "task": "aime25",
                    "path": write_lines(folder / "held_out.jsonl", held_out),
                    "samples": 2,
                    "limit": 1,
                }
            },
        },
        "sizes": {"bytes": {"path": str(byte_model(folder / "model", positions=200))}},
        "train": {
            "steps": 2, "prompts_per_step": 3, "group_size": 2, "max_response": 12, "micro_batch": 2,
        },
        "evaluation": {"samples": 2, "batch_size": 4},
        "probes": {
            "problems": 4, "positions": [0.5], "continuations": 4, "baseline_continuations": 4,
            "credit_rollouts": 14,
        },
        "statistics": {"resamples": 100},
        "grid": {
            "algorithms": ["vimpo", "ppo"], "sizes": ["bytes"], "noise": [0], "seeds": [1],
        },
        "runtime": {"logit_chunk": 8},
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | sections))
    return path


def run(path, command, *arguments):
    assert main([command, "--config", str(path), *arguments]) == 0, command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of the study after every command of the workflow, in the workflow's order."""
    folder = tmp_path_factory.mktemp("study")
    path = study_file(folder)
    run(path, "pretrain", "--size", "bytes", "--quiet")
    run(path, "evaluate", "--size", "bytes", "--base")
    run(path, "cost", "--size", "bytes")
    for algorithm in ("vimpo", "ppo"):
        cell = ("--algorithm", algorithm, "--size", "bytes")
        run(path, "train", *cell, "--quiet")
        run(path, "evaluate", *cell)
        run(path, "probe", *cell)
    run(path, "resolve", "--output", str(folder / "results/real/config.yaml"))
    for command in ("aggregate", "plot", "report"):
        run(path, command)
    return folder / "results/real"


def test_all(finished):
    t = pq.read_table(finished / "runs/ppo/bytes/noise-0/seed-1/probes.parquet").to_pandas()
    pd.set_option("display.width", 250, "display.max_rows", 500, "display.max_columns", 20)
    print(t.to_string())
    print(pd.read_csv(finished / "tables/missing.csv"))
    print(pd.read_csv(finished / "tables/claims.csv").to_string())
    print((finished / "report.md").read_text())
