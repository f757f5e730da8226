r"""Bad input is one clear error before anything is computed: of `train`, `check` and Snakemake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from real_data import byte_model

from vimpo.cli import main
from vimpo.config import ConfigError, Probes, dump_yaml, load_study
from vimpo.planning.preflight import check_before_jobs, check_before_running
from vimpo.tasks.sources import read_rows

ROOT = Path(__file__).parents[2]
ROWS = [{"problem": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(1, 21)]
PROSE = "Cut it along its midline and turn one half."
AIME = [{"problem": "What is 5 times 5?", "answer": "025"}]
OFFLINE = "with network or a filled cache"
# What is wrong -> the error in words: field, value, what to change. See `study_file`.
FAULTS = {
    "missing column": r"task\.datasets\[0\]\.answer: '.*' has no column 'gold'; allowed: problem,",
    "missing column in one row": r"task\.datasets\[0\]\.answer: '.*' has no column 'answer'; allow",
    "empty dataset": r"task\.datasets\[0\]\.path: '.*' holds no rows; allowed: a dataset with prob",
    "gold": r"task\.datasets: 1 gold answers cannot be read .* such as 'Cut it along .*; allowed",
    "no pad token": r"sizes\.bytes\.path: the tokenizer of '.*' has no pad_token; one must be set",
    "no EOS token": r"sizes\.bytes\.path: the tokenizer of '.*' has no eos_token; one must be set",
    "long prompts": r"task\.max_prompt: .* of 20 prompts are longer than 18 tokens, .*; allowed: a",
    "hub dataset": rf"datasets\[0\]\.path: 'nobody/nothing' could not be loaded .*{OFFLINE}",
    "hub model": rf"sizes\.bytes\.path: 'nobody/nothing' could not be loaded: .*{OFFLINE}",
    "hub benchmark": rf"task\.benchmarks\.aime\.path: '.*' could not be loaded .*{OFFLINE}",
    "long benchmark": r"train\.max_response: 1900 and the longest prompt of aime .*; allowed: at m",
}
LOCAL = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def study_file(folder, fault=None):
    """A study on files and a tiny model, with one fault."""
    special = {"no pad token": {"eos_token": "<eos>"}, "no EOS token": {"pad_token": "<pad>"}}
    model = byte_model(folder / "model", positions=2048, **special.get(fault, {}))
    rows = {
        "empty dataset": [],
        "gold": [*ROWS, {"problem": "Why?", "answer": PROSE}],
        "missing column in one row": [*ROWS, {"problem": "What?"}],
    }
    source = {"path": jsonl(folder / "train.jsonl", rows.get(fault, ROWS))}
    benchmark = {"task": "aime25", "path": jsonl(folder / "aime.jsonl", AIME), "samples": 1}
    task = {"kind": "dataset", "verifier": {"workers": 1}, "max_prompt": 120}
    train = {"steps": 2, "prompts_per_step": 3, "group_size": 2, "max_response": 6}
    if fault == "missing column":
        source["answer"] = "gold"
    if fault == "long prompts":
        task |= {"prompt": "{problem}", "max_prompt": 18, "long_prompts": "refuse"}
    if fault == "long benchmark":
        train["max_response"] = 1900
        benchmark["prompt"] = "{problem}" + "!" * 200
    if fault == "hub dataset":
        source["path"] = "nobody/nothing"
    if fault == "hub model":
        model = "nobody/nothing"
    if fault == "hub benchmark":
        del benchmark["path"]
    data = {
        "study": "real",
        "results": str(folder / "results"),
        "task": task | {"datasets": [source], "benchmarks": {"aime": benchmark}},
        "sizes": {"bytes": {"path": str(model)}},
        "train": train,
        "evaluation": {"greedy": False, "batch_size": 8},
        "probes": {"problems": 2, "continuations": 4, "baseline_continuations": 4},
        "grid": {"algorithms": ["grpo"], "sizes": ["bytes"], "noise": [0], "seeds": [1]},
    }
    if fault == "GPUs":
        data["runtime"] = {"device": "cuda", "processes": 3}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def errors(text):
    """Lines of errors, each once."""
    return list(dict.fromkeys(line for line in text.splitlines() if line.startswith("error: ")))


def computed(folder):
    """Whatever a base policy or a run would leave."""
    return [*folder.glob("results/real/base/*"), *folder.glob("results/real/runs/*")]


@pytest.mark.parametrize("command", ["train", "pretrain", "check"])
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_error_before_any_compute(tmp_path, capsys, fault, command):
    arguments = {"train": ["--algorithm", "grpo", "--size", "bytes"], "pretrain": ["--size=bytes"]}
    file = study_file(tmp_path, fault)
    assert main([command, "--config", str(file), *arguments.get(command, [])]) == 2
    (line,) = errors(capsys.readouterr().err)
    assert re.search(FAULTS[fault], line), line
    assert not computed(tmp_path)


def test_good_input_passes_and_a_finished_run_belongs_to_it(tmp_path, capsys):
    file = study_file(tmp_path)
    arguments = ["train", "--config", str(file), "--algorithm", "grpo", "--size", "bytes"]
    assert main(["check", "--config", str(file)]) == 0
    assert not computed(tmp_path)
    assert main([*arguments, "--quiet"]) == 0
    assert main(arguments) == 0
    assert not errors(capsys.readouterr().err)
    (tmp_path / "train.jsonl").write_text(json.dumps({"problem": "?", "answer": PROSE}))
    assert main(arguments) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "was made by another configuration" in line


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_one_process_reads_its_data_once(tmp_path, monkeypatch, command):
    file = study_file(tmp_path)
    data = yaml.safe_load(file.read_text())
    data["task"]["datasets"][0]["solution"] = "answer"
    data["sizes"]["bytes"]["pretrain_steps"] = 1
    data["pretrain"] = {"batch_size": 4}
    file.write_text(yaml.safe_dump(data))
    read = []
    monkeypatch.setattr(
        "vimpo.tasks.dataset.read_rows",
        lambda path, *rest, **which: read.append(path) or read_rows(path, *rest, **which),
    )
    arguments = {"train": ["--algorithm=grpo"], "pretrain": []}[command]
    assert main([command, "--config", str(file), "--size=bytes", "--quiet", *arguments]) == 0
    assert read == [data["task"]["datasets"][0]["path"]]


def test_studies_from_scratch_have_nothing_to_look_at(capsys):
    script = (
        "import sys; from vimpo.cli import main; main(['check']); "
        "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


def test_local_files_are_looked_at_quickly_while_snakemake_starts(tmp_path):
    study = load_study(study_file(tmp_path))
    start = time.perf_counter()
    check_before_running(study)
    assert time.perf_counter() - start < 20  # usually milliseconds: nothing heavy is imported


# --- Snakemake -----------------------------------------------------------------------------------


def snakemake(file, *arguments, **environment):
    """Run the workflow on a study, without a network."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", *arguments]
    return subprocess.run(
        [*command, "--configfile", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )


@pytest.mark.parametrize(
    "fault", ["missing column", "gold", pytest.param("hub benchmark", marks=pytest.mark.slow)]
)
def test_snakemake_says_the_same_before_any_job(tmp_path, fault):
    done = snakemake(study_file(tmp_path, fault), "--retries", "2", "--keep-going")
    assert done.returncode != 0
    (line,) = errors(done.stderr)
    assert re.search(FAULTS[fault], line), line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_what_began_to_run_is_not_looked_at_again(tmp_path):
    file = study_file(tmp_path, "hub dataset")
    study = load_study(file)
    study.folder.mkdir(parents=True)
    (study.folder / "config.yaml").write_text(dump_yaml(study))
    check_before_jobs(study, file)
    other = study.model_copy(update={"probes": Probes(problems=9)})
    with pytest.raises(ConfigError, match=FAULTS["hub dataset"]):
        check_before_jobs(other, file)


@LOCAL
def test_snakemake_says_that_gpus_are_missing_before_any_job(tmp_path):
    done = snakemake(study_file(tmp_path, "GPUs"))
    assert done.returncode != 0
    (line,) = errors(done.stderr)
    assert line.startswith("error: runtime.processes: 3 on 1 node(s) need 3 GPUs on each, torch se")
    assert not (tmp_path / "results").exists()


def test_snakemake_says_that_a_partition_is_unknown_before_any_job(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    answers = {
        "squeue": "",  # without it the plugin refuses to start
        "sinfo": "main*|up|infinite|2|16|64000|(null)",
        "scontrol": "AccountingStorageType   = accounting_storage/none\nMinJobAge = 300 sec",
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
        (tmp_path / name).chmod(0o755)
    file = study_file(tmp_path)
    study = yaml.safe_load(file.read_text()) | {"cluster": {"partition": "gqu"}}
    file.write_text(yaml.safe_dump(study))
    profile = ["--profile", "workflow/profiles/slurm"]
    done = snakemake(file, *profile, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode != 0
    (line,) = errors(done.stderr)
    assert "cluster.partition: 'gqu' is unknown to Slurm; allowed: main" in line
    assert not (tmp_path / "results").exists()
